"What is no lesson about the index: folders, missing modules, mixed ranks, refusals"
import json, struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from loragrass.comparing import similarity
from loragrass.lora_io import LoRA, LoRAFormatError, LoRAUpdate
from loragrass.plucker import orthonormalize
from loragrass.subspace_index import SubspaceIndex

def adapter(seed, modules=("a", "b"), r=2, n=9):
    g = torch.Generator().manual_seed(seed)
    return LoRA({m: LoRAUpdate(torch.randn(n, r, generator=g), torch.randn(r, 7, generator=g), 0.5, (n, 7)) for m in modules}, name=f"a{seed}")

MIXED = [adapter(0), adapter(1, ("a",)), adapter(2, ("b",), 3), adapter(3, r=1), adapter(4, ("b", "a"), 4)]

@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("block", [1, 2, 9])
def test_is_similarity(side, weighted, block):
    found = SubspaceIndex(side=side, sqrt_weighted=weighted, block=block).add(MIXED).nearest(MIXED, 5)
    torch.testing.assert_close(torch.zeros(5, 5).scatter(1, found.index, found.similarity), similarity(MIXED, side=side, sqrt_weighted=weighted).joint.float(), rtol=1e-4, atol=1e-5)

def test_a_block_without_its_list_is_not_there(tmp_path):
    SubspaceIndex(tmp_path).add(MIXED[:2])
    (tmp_path / "00001.safetensors").write_bytes(b"cut off")
    index = SubspaceIndex(tmp_path)
    assert len(index) == 2 and len(index.add(MIXED[2:])) == 5 and index.nearest(MIXED[4:], 1).index.item() == 4

def test_folder_is_memory(tmp_path):
    X = orthonormalize(torch.randn(60, 12, 2, generator=torch.Generator().manual_seed(0)))
    a, b = (SubspaceIndex(path, block=7).add(X) for path in (None, tmp_path))
    assert torch.equal(a.nearest(X, 3).index, b.nearest(X, 3).index) and (a.cluster(3).labels == b.cluster(3).labels).all()

@pytest.mark.parametrize("sample", [2, 3, 2000])
def test_zero_adapters_are_a_group_of_their_own(sample):
    import numpy as np
    zero = [LoRA({m: LoRAUpdate(torch.zeros_like(u.up), u.down, 0.5, (9, 7)) for m, u in a.items()}, name="zero") for a in MIXED[:2]]
    pairs = [adapter(0), adapter(0), adapter(3, r=1), adapter(3, r=1)]
    found = SubspaceIndex(block=3).add([*pairs[:2], zero[0], *pairs[2:], zero[1], LoRA({}, name="none")]).cluster(2, sample)
    assert (np.flatnonzero(found.labels == found.labels.max()) == [2, 5, 6]).all() and (found.similarity[[2, 5, 6]] == 0).all() and np.isfinite(found.similarity).all()
    if sample == 2000: assert len(set(found.labels[[0, 1]])) == 1 and len(set(found.labels)) == 3

def test_nothing_but_zeros_is_one_group():
    zero = LoRA({"a": LoRAUpdate(torch.zeros(9, 2), torch.ones(2, 7), 0.5, (9, 7))})
    assert SubspaceIndex().add([zero] * 3).cluster().labels.tolist() == [0, 0, 0]

def test_one_group(): assert SubspaceIndex().add(MIXED).cluster(1).labels.tolist() == [0] * 5

def test_refuses():
    with pytest.raises(ValueError, match="the index is empty"): SubspaceIndex().cluster()
    for k, said in ((0, "expected 'auto' or 1 … 5"), (2.5, "n_clusters is 2.5; expected a whole number"), ("two", "expected 'auto' or 1 … 5")):
        with pytest.raises(ValueError, match=said): SubspaceIndex().add(MIXED).cluster(k)
    with pytest.raises(ValueError, match="empty"): SubspaceIndex().nearest(MIXED)
    with pytest.raises(ValueError, match="different base models"): SubspaceIndex().add(MIXED).nearest([adapter(9, n=5)])
    with pytest.raises(ValueError, match="n_clusters=9"): SubspaceIndex().add(MIXED).cluster(9)
    with pytest.raises(ValueError, match="2 names for 5"): SubspaceIndex().add(MIXED, ["x", "y"])

def test_index_files_of_before_still_open(tmp_path):
    SubspaceIndex(tmp_path, sqrt_weighted=False).add(MIXED)
    saved = json.loads((tmp_path / "index.json").read_text())
    saved["weighted"] = saved.pop("sqrt_weighted") # as it was written before
    (tmp_path / "index.json").write_text(json.dumps(saved))
    assert len(SubspaceIndex(tmp_path, sqrt_weighted=False).add(MIXED[:1])) == 6 and "sqrt_weighted" in (tmp_path / "index.json").read_text()
    with pytest.raises(ValueError, match="sqrt_weighted=False; open it with those"): SubspaceIndex(tmp_path)

def test_zero_adapters_outlive_the_process(tmp_path):
    zero = LoRA({"a": LoRAUpdate(torch.zeros(9, 2), torch.ones(2, 7), 0.5, (9, 7))})
    SubspaceIndex(tmp_path, block=2).add([zero, zero, MIXED[0], LoRA({})])
    assert SubspaceIndex(tmp_path).nearest(MIXED[:1], 1).index.item() == 2 and SubspaceIndex(tmp_path).cluster(1).labels.tolist() == [1, 1, 0, 1]

LISTS = {"no JSON": "{", "deep": "[" * 100_000, "a list": "[1]", "NaN": "NaN", "nothing": "{}", "a pickle": "\x80\x04}",
    "version": {"version": 2}, "side": {"side": ["left"]}, "root": {"sqrt_weighted": 1}, "no sizes": {"sizes": None}, "text for sizes": {"sizes": "22"}, "NaN for a size": {"sizes": [float("nan"), 3]},
    "a size of zero": {"sizes": [5, 0]}, "negative": {"sizes": [6, -1]}, "true": {"sizes": [True, 4]}, "huge": {"sizes": [2**62]}, "one block more": {"sizes": [2, 2, 1]},
    "one block less": {"sizes": [5]}, "other sizes": {"sizes": [3, 2]}, "short names": {"names": ["a"]}, "numbers for names": {"names": [1, 2, 3, 4, 5]}, "no names": {"names": None}}

@pytest.mark.parametrize("what", LISTS)
def test_a_list_is_not_believed(tmp_path, what):
    SubspaceIndex(tmp_path, block=3).add(MIXED)
    file, change = tmp_path / "index.json", LISTS[what]
    if what == "other sizes": change = {"sizes": [2, 3]}
    saved = json.loads(file.read_text())
    assert len(SubspaceIndex(tmp_path)) == 5
    file.write_text(change if isinstance(change, str) else json.dumps(saved | change))
    with pytest.raises(LoRAFormatError, match=r"expected .*(Remove the folder and add the adapters again|Open it with)|No such file.*Remove") as e: SubspaceIndex(tmp_path)
    assert tmp_path in e.value.path.parents

def without(path, cut): path.write_bytes(path.read_bytes()[:-cut])
def changed(path, f): save_file(f(load_file(path)), path)
BLOCKS = {"gone": lambda p: p.unlink(), "cut off": lambda p: without(p, 4), "a pickle": lambda p: p.write_bytes(b"\x80\x02}q\x00."), "a folder": lambda p: (p.unlink(), p.mkdir()),
    "another size": lambda p: changed(p, lambda t: {k: x[:1] for k, x in t.items()}), "another width": lambda p: changed(p, lambda t: {k: x[:, :5].contiguous() for k, x in t.items()}),
    "flat": lambda p: changed(p, lambda t: {k: x.flatten() for k, x in t.items()}), "half": lambda p: changed(p, lambda t: {k: x.half() for k, x in t.items()}),
    "text": lambda p: p.write_bytes(struct.pack("<Q", 99) + b"{")}

@pytest.mark.parametrize("what", BLOCKS)
def test_a_block_is_not_believed(tmp_path, what):
    SubspaceIndex(tmp_path, block=3).add(MIXED)
    BLOCKS[what](tmp_path / "00001.safetensors")
    with pytest.raises(LoRAFormatError, match="Remove the folder and add the adapters again") as e: SubspaceIndex(tmp_path)
    assert e.value.path == tmp_path / "00001.safetensors"

@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tmp_path, value):
    X = orthonormalize(torch.randn(6, 12, 2, generator=torch.Generator().manual_seed(0)))
    SubspaceIndex(tmp_path, block=3).add(X)
    changed(tmp_path / "00001.safetensors", lambda t: {k: x.fill_(value) for k, x in t.items()})
    index = SubspaceIndex(tmp_path)
    for use in (lambda: index.nearest(X, 1), index.cluster):
        with pytest.raises(LoRAFormatError, match="subspace holds NaN or infinity"): use()
    X[1, 2, 0] = value
    with pytest.raises(ValueError, match=r"points\[1, 2, 0\] is NaN or infinite"): index.add(X)

def test_what_could_not_be_opened_again_is_not_kept(tmp_path):
    index = SubspaceIndex(tmp_path).add(MIXED)
    with pytest.raises(LoRAFormatError, match="Give the modules other names"): index.add([adapter(0, ("a/b",))])
    assert len(SubspaceIndex(tmp_path)) == len(index) == 5
