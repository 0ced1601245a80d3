"The transformers of 05a at the edges: ranks, zero updates, rows that must not know of each other"
import numpy as np
import pytest
import torch

from loragrass.directions import Canonicalize, ProjectionKernelPCA, ReferenceAngles
from loragrass.features import Features
from loragrass.lora_io import LoRA, LoRAUpdate


def update(m, n, r, seed):
    gen = torch.Generator().manual_seed(seed)
    return LoRAUpdate(torch.randn(m, r, generator=gen), torch.randn(r, n, generator=gen), 0.7, (m, n))

def adapters(N=6, ranks=(1, 2, 4)):
    def one(r, seed): return {"a.q": update(12, 9, r, seed), "a.v": update(7, 20, r, seed + 1)}
    return [LoRA(one(ranks[i % len(ranks)], 10 * i), name=f"#{i}") for i in range(N)]

def with_a_zero(X): return [*X, LoRA({"a.q": LoRAUpdate(torch.zeros(12, 2), torch.ones(2, 9), 1., (12, 9)), "a.v": update(7, 20, 2, 99)}, name="zero")]

@pytest.mark.parametrize("side, sides", [("left", 1), ("right", 1), ("both", 2)])
@pytest.mark.parametrize("kernel", [None, "projection"])
def test_angles_lie_in_01_are_1_to_oneself_and_0_to_a_zero_update(side, sides, kernel):
    X = with_a_zero(adapters())
    t = ReferenceAngles(side=side, kernel=kernel).fit(X)
    rows, names = t.transform(X), list(t.get_feature_names_out())
    assert rows.shape == (7, 2 * sides * 7) == (7, len(set(names))) and rows.dtype == np.float32
    assert rows.min() >= 0 and rows.max() <= 1 + 1e-6
    for s in ("left", "right")[side == "right":2 - (side == "left")]:
        columns = [names.index(f"a.q.{s}.ref{i}") for i in range(7)]
        assert np.allclose(rows[:, columns].diagonal()[:6], 1) and (rows[6, columns] == 0).all() and (rows[:, columns[6]] == 0).all()

@pytest.mark.parametrize("t", [ReferenceAngles(4, random_state=0), ReferenceAngles(4, side="both", random_state=1), ProjectionKernelPCA(3)], ids=str)
def test_a_row_does_not_depend_on_the_other_rows_or_on_the_gauge(t):
    X = adapters(9)
    rows = t.fit(X[:6]).transform(X)
    assert np.allclose(t.transform(X[7:8]), rows[7:8], atol=1e-6) and np.allclose(t.transform(X[::-1]), rows[::-1], atol=1e-6)
    def rescaled(u): return LoRAUpdate(-3 * u.up.flip(1), 5 * u.down.flip(0), 1e-3, u.weight_shape)
    assert np.allclose(t.transform([LoRA({m: rescaled(u) for m, u in lora.items()}) for lora in X]), rows, atol=1e-5)

def test_references_are_drawn_by_seed_from_the_training_adapters():
    X = adapters(30)
    draws = [tuple(lora.name for lora in ReferenceAngles(5, random_state=seed).fit(X).references_) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 5 and set(draws[0]) <= {lora.name for lora in X}

def test_components_are_centred_and_uncorrelated_with_descending_variance():
    rows = ProjectionKernelPCA(10).fit_transform(adapters(9)).astype(float)
    C = rows.T @ rows
    assert rows.shape == (9, 8) and np.abs(rows.mean(0)).max() < 1e-6 and np.abs(C - np.diag(C.diagonal())).max() < 1e-6 and (np.diff(C.diagonal()) <= 1e-9).all()

@pytest.mark.parametrize("sign", ["reference", "max_abs", None])
def test_canonical_factors_hold_the_same_update(sign):
    X = with_a_zero(adapters())
    for before, after in zip(X, Canonicalize(sign).fit_transform(X)):
        for m in before: assert torch.allclose(after[m].dense(), before[m].dense(), atol=1e-5) and after[m].rank == len(before[m].svd().S)

@pytest.mark.parametrize("sign", ["reference", "max_abs"])
def test_signs_are_fixed(sign):
    X = adapters()
    flipped = [LoRA({m: LoRAUpdate(-u.up, -u.down, u.scale, u.weight_shape) for m, u in lora.items()}) for lora in X]
    c = Canonicalize(sign).fit(X)
    flat = Features("flat").fit(c.transform(X))
    assert np.allclose(flat.transform(c.transform(X)), flat.transform(c.transform(flipped)), atol=1e-5)
    for lora in c.transform(X):
        for m, u in lora.items():
            towards = c.references_[m].float() @ u.up if sign == "reference" else u.up.gather(0, u.up.abs().argmax(0, keepdim=True))
            assert (towards > 0).all()

@pytest.mark.parametrize("t, message", [(Canonicalize("positive"), "sign='positive'"), (ReferenceAngles(side="up"), "side='up'"), (ProjectionKernelPCA(side="up"), "side='up'")], ids=str)
def test_settings_that_cannot_be(t, message):
    with pytest.raises(ValueError, match=message): t.fit(adapters())

@pytest.mark.parametrize("t", [Canonicalize(), ReferenceAngles(), ProjectionKernelPCA()], ids=str)
def test_numbers_that_are_none_are_named(t):
    X = adapters()
    X[2] = LoRA(X[2].updates | {"a.v": LoRAUpdate(X[2]["a.v"].up * torch.nan, X[2]["a.v"].down, 1., (7, 20))}, name="odd")
    with pytest.raises(ValueError, match="odd: NaN or infinite numbers in a.v"): t.fit(X)
