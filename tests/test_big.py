"Tensors of more than one call to the system gives, adapters of 8 bits, and what memory they take"
import io, json, struct, subprocess, sys

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import loragrass as lg
from loragrass.lora_io import TensorFile, peak

def sparse(path, shape, end):
    "A file of zeros that the disk does not hold, with `end` as its last bytes"
    n = shape[0] * shape[1]
    header = json.dumps({"x": {"dtype": "U8", "shape": shape, "data_offsets": [0, n]}}).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        f.truncate(8 + len(header) + n)
        f.seek(-len(end), 2)
        f.write(end)
    return path

def test_a_tensor_beyond_2_gib_is_read_to_its_end(tmp_path):
    x = TensorFile(sparse(tmp_path/"x.safetensors", [2049, 1 << 20], b"end"))["x"]
    assert bytes(x[-1, -3:].tolist()) == b"end" and x.shape == (2049, 1 << 20)

class Short(io.FileIO):
    "A file that gives less than it is asked for, as systems do"
    def readinto(self, view): return super().readinto(memoryview(view)[:1000])

class Ended(Short):
    def readinto(self, view): return super().readinto(view) if len(view) > 3000 else 0

@pytest.mark.parametrize("made, whole", [(Short, True), (Ended, False)])
def test_short_reads_are_read_on_or_refused(tmp_path, monkeypatch, made, whole):
    x = torch.randn(40, 50)
    save_file({"x": x}, tmp_path/"x.safetensors")
    file = TensorFile(tmp_path/"x.safetensors")
    monkeypatch.setattr(TensorFile, "_open", lambda self: made(self.path))
    if whole: assert torch.equal(file["x"], x) and torch.equal(torch.cat(list(file.blocks("x", 4096))), x.flatten())
    else:
        with pytest.raises(lg.LoRAFormatError, match="ended .* bytes too early") as e: file["x"]
        assert e.value.code == "E2"

@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64])
def test_the_largest_value_and_what_is_none(dtype):
    t = torch.tensor([[0.5, -3.0], [2.0, 1.0]]).to(dtype)
    assert peak(t) == 3
    t[1, 0] = torch.nan
    assert peak(t) != peak(t)

# 8 and 16 bits

def adapters(folder, dtype, n=4):
    "Two kinds of adapters of two modules, as files of a dtype"
    g = torch.Generator().manual_seed(0)
    starts = [[torch.randn(s, generator=g) for s in ((2, 12), (10, 2)) * 2] for _ in range(2)]
    for i in range(n):
        t = {}
        for m in range(2):
            A, B = (x + 0.05 * torch.randn(x.shape, generator=g) for x in starts[i % 2][2 * m:2 * m + 2])
            t |= {f"unet.mid_block.attentions.{m}.proj.lora_A.weight": A.to(dtype), f"unet.mid_block.attentions.{m}.proj.lora_B.weight": B.to(dtype)}
        save_file(t | {"head.weight": torch.full((3, 4), i + 1.0).to(dtype)}, folder/f"{i}.safetensors")
    return lg.load_all(folder)

EIGHT = [torch.float8_e4m3fn, torch.float8_e5m2]
USES = {
    "to_frame": lambda a, p: a[0].to_frame(), "save": lambda a, p: lg.save(a[0], p/"b.safetensors"), "save kohya": lambda a, p: lg.save(a[0], p/"b.safetensors", format="kohya"),
    "save peft": lambda a, p: lg.save(a[0], p/"b", format="peft"), "save in 8 bits": lambda a, p: lg.save(a[0], p/"b.safetensors", dtype=torch.float8_e5m2) if a[0].to_frame().dtype.iloc[0] == "float8_e5m2" else 0,
    "resize": lambda a, p: lg.resize(a[0], rank=1), "energy": lambda a, p: lg.resize(a[0], energy=0.5), "compare": lambda a, p: lg.compare(a[0], a[1]), "similarity": lambda a, p: lg.similarity(a),
    "cluster": lambda a, p: lg.cluster(a, 2), "cluster_merge": lambda a, p: lg.cluster_merge(a, 2), "mean_lora": lambda a, p: lg.mean_lora(a), "layer_means": lambda a, p: lg.layer_means(list(a), pd.DataFrame([[0, 1, 0, 1]] * 2, a.modules)),
    "representatives": lambda a, p: lg.representatives(lg.similarity(a), 2), "index": lambda a, p: lg.SubspaceIndex(p/"index").add(list(a)).nearest(list(a), 2),
    "combinations": lambda a, p: lg.search_combinations([a[0], a[1]], lambda lora: -lora[a.modules[0]].norm()), "spectral": lambda a, p: lg.Features("spectral").fit_transform(a), "stats": lambda a, p: lg.Features("stats").fit_transform(a),
    "distribution": lambda a, p: lg.Features("distribution").fit_transform(a), "ensemble": lambda a, p: lg.Features("ensemble").fit_transform(a), "frequency": lambda a, p: lg.Features("frequency").fit_transform(a),
    "information": lambda a, p: lg.Features("information").fit_transform(a), "norms": lambda a, p: lg.Features("norms").fit_transform(a), "flat": lambda a, p: lg.Features("flat").fit_transform(a),
    "Canonicalize": lambda a, p: lg.Canonicalize().fit_transform(a), "ReferenceAngles": lambda a, p: lg.ReferenceAngles().fit_transform(a),
    "ProjectionKernelPCA": lambda a, p: lg.ProjectionKernelPCA().fit_transform(a),
}

@pytest.fixture(scope="module")
def stored(tmp_path_factory): return {dtype: adapters(tmp_path_factory.mktemp("stored"), dtype) for dtype in (*EIGHT, torch.float16, torch.bfloat16)}

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("use", USES)
def test_every_use_takes_every_dtype(stored, tmp_path, use):
    for i, loras in enumerate(stored.values()):
        (tmp_path/str(i)).mkdir()
        USES[use](loras, tmp_path/str(i))

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", EIGHT)
def test_what_is_computed_from_8_bits_is_what_float32_gives(stored, tmp_path, dtype):
    loras = stored[dtype]
    wide = [lg.LoRA({m: lg.LoRAUpdate(u.up.float(), u.down.float(), u.scale, u.weight_shape) for m, u in lora.items()}, str(i)) for i, lora in enumerate(loras)]
    for rule in ("svd", "ties"):
        ours, theirs = (lg.merge(x, [0.25] * 4, rule).lora for x in (list(loras), wide))
        for m in ours: torch.testing.assert_close(ours[m].dense(), theirs[m].dense(), atol=1e-4, rtol=1e-4)
    saved = lg.save(loras[0], tmp_path/"a.safetensors")
    back = lg.load(saved.path)
    for m in back: assert back[m].up.dtype == torch.float16 and torch.equal(back[m].dense(), loras[0][m].dense())

MEMORY = """
import resource, sys, warnings
warnings.simplefilter("ignore")
import torch, loragrass as lg
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before, lora = peak(), lg.load(sys.argv[1] + "/a.safetensors")
read = peak() - before
lg.save(lora, sys.argv[1] + "/b.safetensors")
print(read, peak() - before)
"""

def test_what_is_passed_on_is_held_once_at_most(tmp_path):
    big = torch.zeros(256, 1 << 20, dtype=torch.uint8).view(torch.float8_e4m3fn) # 256 MiB
    t = {f"unet.mid_block.attentions.0.proj.lora_{x}.weight": torch.ones(s) for x, s in (("A", (2, 12)), ("B", (10, 2)))}
    save_file(t | {"head.weight": big}, tmp_path/"a.safetensors")
    del big
    run = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    read, saved = map(int, run.stdout.split())
    assert read < 300 and saved < 600 # MiB; all at once in float32 it would be 1 280
