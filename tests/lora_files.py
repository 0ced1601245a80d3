"Key lists of real adapters (key → shape, with 'r' for the rank), tables of module names, and files made of them"
import gzip, json
from pathlib import Path

import torch
from safetensors.torch import save_file

_DATA = json.loads(gzip.decompress((Path(__file__).parent/"data"/"key_lists.json.gz").read_bytes()))
LISTS, MAPS = _DATA["lists"], _DATA["maps"]
PEFT_TYPES = {"peft_adalora_llama": "ADALORA", "peft_vera_llama": "VERA", "peft_loha_llama": "LOHA", "peft_lokr_llama": "LOKR"}

def tensors(keys, rank=2, alpha=1.0, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    def one(key, shape): return torch.tensor(alpha) if key.endswith(".alpha") else torch.randn([rank if d == "r" else d for d in shape], generator=g)
    return {key: one(key, shape).to(dtype) for key, shape in keys.items()}

def adapter(folder, name, rank=4, **config):
    "The adapter of a key list: a file, or for PEFT a folder"
    keys, path = LISTS[name], Path(folder)/name
    if not name.startswith("peft_"):
        save_file(tensors(keys, rank, dtype=torch.float16), path := path.with_suffix(".safetensors"))
        return path
    return peft_folder(path, tensors(keys, rank), peft_type=PEFT_TYPES.get(name, "LORA"), r=rank, lora_alpha=8, alpha=8, **config)

def peft_folder(path, tensors, **config):
    Path(path).mkdir()
    save_file(tensors, path/"adapter_model.safetensors")
    (path/"adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    return path

def kohya(*shapes, rank=4, alpha=2.0, prefix="lora_unet_mid_block_attentions_0_transformer_blocks_{}_attn1_to_q"):
    "Tensors of a small kohya file: one module for each (m, n)"
    t = {}
    for i, (m, n) in enumerate(shapes):
        name = prefix.format(i)
        t |= {f"{name}.lora_up.weight": torch.randn(m, rank), f"{name}.lora_down.weight": torch.randn(rank, n), f"{name}.alpha": torch.tensor(alpha)}
    return t

def sample(n=10, m=12, k=4): return kohya((m, n), rank=k)
