"Tensors of more than one call to the system gives, adapters of 8 bits, and what memory they take"
import io, json, struct

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
