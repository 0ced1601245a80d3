"The transformers of 05 at the edges: ranks, dtypes, memory, rows that must not know of each other, adapters that do not fit"
import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch.utils._python_dispatch import TorchDispatchMode

from loragrass.features import Distribution, Ensemble, Flat, Frequency, Information, Norms, Spectral, Stats, _moments, _order_statistics, _quantiles
from loragrass.lora_io import LoRA, LoRACollection, LoRAUpdate

ALL = {Stats: 7, Spectral: 32, Norms: 7, Distribution: 12, Frequency: 14, Information: 2, Ensemble: 67}


def update(m, n, r, dtype=torch.float64, seed=0, scale=0.7):
    gen = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype) for shape in ((m, r), (r, n)))
    return LoRAUpdate(up, down, scale, (m, n))

def adapters(N=6, ranks=(1, 2, 4), **kwargs):
    def one(r, seed): return {"a.q": update(12, 9, r, seed=seed, **kwargs), "a.v": update(7, 20, r, seed=seed + 1, **kwargs)}
    return [LoRA(one(ranks[i % len(ranks)], 10 * i), name=f"#{i}") for i in range(N)]

@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("on, sides", [("update", 1), ("factors", 2), ("A", 1), ("B", 1)])
def test_width_names_and_dtype(kind, on, sides):
    t = kind(on=on).fit(adapters())
    X, names = t.transform(adapters()), t.get_feature_names_out()
    assert X.shape == (6, 2 * sides * ALL[kind]) and X.dtype == np.float32 and np.isfinite(X).all()
    assert len(set(names)) == X.shape[1] and t.gauge_invariant_ == (on == "update")
    assert all(name.startswith(("a.q.", "a.v.")) for name in names)

@pytest.mark.parametrize("m, n, r", [(12, 9, 1), (12, 9, 4), (9, 12, 9), (5, 4, 11), (2, 3, 1), (1, 1, 1)])
def test_spectral_is_the_dense_svd(m, n, r):
    u = update(m, n, r)
    s = torch.linalg.svdvals(u.dense())
    x = Spectral().fit_transform([LoRA({"w": u})])[0]
    k = min(m, n, r)
    assert np.allclose(x[:min(k, 10)], s[:min(k, 10)], rtol=1e-5) and (x[k:10] == 0).all()
    assert x[-1] == pytest.approx(s[:k].sum().item(), rel=1e-5) and x[-2] == pytest.approx((s[0] / s[k - 1]).item(), rel=1e-4)
    assert x[10:20].sum() == pytest.approx((s[:10].sum() / s.sum()).item(), rel=1e-5) and 1 <= x[-3] * (1 + 1e-6) and x[-3] <= k * (1 + 1e-6)

@pytest.mark.parametrize("kind", ALL)
def test_zero_rank_zero_update_and_duplicated_columns(kind):
    u = update(12, 9, 2)
    twice = LoRAUpdate(torch.cat([u.up, u.up], 1), torch.cat([u.down, u.down]) / 2, u.scale, u.weight_shape)
    zero, none = LoRAUpdate(0 * u.up, u.down, 1., (12, 9)), LoRAUpdate(torch.zeros(12, 0), torch.zeros(0, 9), 1., (12, 9))
    X = kind().fit_transform([LoRA({"w": x}) for x in (u, twice, zero, none)])
    assert np.allclose(X[0], X[1], rtol=1e-5, atol=1e-7) and (X[2:] == 0).all()

def test_a_constant_update_has_no_shape():
    v, down = update(13, 7, 1).up, torch.full((2, 7), 0.3, dtype=torch.float64)
    x = Stats().fit_transform([LoRA({"w": LoRAUpdate(torch.cat([v, 0.1 - v], 1), down, 1., (13, 7))})])[0] # 0.03 everywhere, to rounding
    assert np.allclose(x, [0.03, 0, 0.03, 0.03, 0.03, 0, 0]) and (x[5:] == 0).all()

@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_files_in_half_precision(kind, dtype, rtol):
    X, Y = (kind().fit_transform(adapters(dtype=d)) for d in (torch.float64, dtype))
    assert np.abs(Y - X).max() <= rtol * np.abs(X).max()

@pytest.mark.parametrize("kind, powers", [
    (Stats, [1, 1, 1, 1, 1, 0, 0]), (Spectral, [1] * 10 + [0] * 21 + [1]), (Norms, [1] * 5 + [0] * 2), (Distribution, [1] * 9 + [0] * 3),
    (Frequency, [1] * 13 + [0]), (Information, [0, 0])])
def test_scale_law(kind, powers):
    def scaled(c): return [LoRA({"w": LoRAUpdate(u.up, u.down, c * u.scale, u.weight_shape)}) for u in [update(12, 9, 4)]]
    X, Y = (kind().fit_transform(scaled(c))[0] for c in (1., 1e-8))
    assert np.allclose(Y / 1e-8 ** np.array(powers), X, rtol=1e-4)

@pytest.mark.parametrize("kind", ALL)
def test_a_row_does_not_depend_on_the_others(kind):
    X, t = adapters(9, ranks=(1, 2, 4)), kind()
    rows = t.fit(X).transform(X)
    assert np.allclose(t.transform(X[3:4]), rows[3:4], rtol=1e-6) and np.allclose(t.transform(X[::-1]), rows[::-1], rtol=1e-6)
    assert np.array_equal(t.transform(LoRACollection(X)[np.arange(9) % 2 == 0]), t.transform(X[::2]))

@pytest.mark.parametrize("case", ["normal", "ties", "constant", "outlier", "tiny", "negative zero"])
def test_order_statistics_are_exact(case):
    gen = torch.Generator().manual_seed(0)
    W = torch.randn(330, 210, generator=gen, dtype=torch.float64)
    W = {"normal": W, "ties": W.round(), "constant": 0 * W + 3, "outlier": torch.where(W == W.max(), 1e9, W),
         "tiny": W * 1e-30, "negative zero": -0. * W.abs()}[case]
    exact = W.float().double().flatten().sort().values
    places = torch.tensor([0, 1, 34649, 34650, 69298, 69299])
    assert torch.equal(_order_statistics(W, torch.eye(210, dtype=torch.float64), places), exact[places])

@pytest.mark.parametrize("entries", [1, 1000, 10**6])
def test_quantiles_and_moments_do_not_depend_on_the_block(entries, monkeypatch):
    B, A = torch.randn(2, 300, 300, dtype=torch.float64), torch.randn(2, 300, 220, dtype=torch.float64) # rank 300: moments by entries too
    import loragrass.features as features
    whole, blocks = (B @ A).flatten(1), features._row_blocks
    monkeypatch.setattr(features, "_row_blocks", lambda B, A: blocks(B, A, entries))
    q = torch.tensor([0., 0.05, 0.5, 0.9, 1.], dtype=torch.float64)
    assert torch.allclose(_quantiles(B, A, q), torch.quantile(whole, q, dim=1).T, rtol=1e-6)
    centred = whole - whole.mean(1, keepdim=True)
    std = centred.square().mean(1).sqrt()
    assert torch.allclose(_moments(B, A), torch.stack([whole.mean(1), std, (centred ** 3).mean(1) / std ** 3, (centred ** 4).mean(1) / std ** 4], 1))

class Largest(TorchDispatchMode):
    "The most numbers in any result of an operation"
    numel = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor))])
        return out

def test_spectra_need_no_dense_update():
    x = Spectral(k=2).fit_transform([LoRA({"w": update(200_000, 300_000, 2, torch.float32)})]) # 480 GB as a matrix
    assert x[0, 0] == pytest.approx(0.7 * (200_000 * 300_000) ** 0.5, rel=0.02)

def test_entries_are_taken_in_blocks():
    with Largest() as seen: Ensemble().fit_transform([LoRA({"w": update(2048, 2048, 4, torch.float32)})])
    assert seen.numel <= 1 << 20

def test_modules_that_only_some_have():
    X = adapters()
    X[0] = LoRA(X[0].updates | {"extra": update(3, 3, 1)})
    with pytest.warns(UserWarning, match="1 modules that only some adapters have are left out: extra"): t = Spectral().fit(X)
    assert t.transform(X).shape == (6, 64) and t.skipped_modules_ == ["extra"]

@pytest.mark.parametrize("other, message", [
    (lambda x: {"a.q": x["a.q"]}, "odd lacks 1 of the modules of fit, a.v first"),
    (lambda x: x.updates | {"b": x["a.q"]}, "odd has 1 modules that fit had not, b first"),
    (lambda x: x.updates | {"a.q": update(12, 8, 2)}, r"odd: a.q is \(12, 8\) and was \(12, 9\) in fit"),
    (lambda x: x.updates | {"a.q": LoRAUpdate(x["a.q"].up * torch.nan, x["a.q"].down, 1., (12, 9))}, "odd: NaN or infinite numbers in a.q"),
])
def test_adapters_that_do_not_fit_are_named(other, message):
    X = adapters()
    t = Stats().fit(X)
    with pytest.raises(ValueError, match=message): t.transform([LoRA(other(X[0]), name="odd")])

@pytest.mark.parametrize("kwargs, message", [
    (dict(on="C"), "on='C'; expected one of update, A, B, factors"), (dict(modules="z"), "6 adapters share 2 of 2 modules")])
def test_settings_that_cannot_be(kwargs, message):
    with pytest.raises(ValueError, match=message): Spectral(**kwargs).fit(adapters())

def test_scikit_learn_manners():
    t = clone(Spectral(k=3, modules="q$"))
    frame = t.set_output(transform="pandas").fit_transform(adapters())
    assert frame.columns.tolist()[:3] == ["a.q.s1", "a.q.s2", "a.q.s3"] and frame.shape == (6, 11)

@pytest.mark.parametrize("on, width", [("factors", 4 * (12 + 9 + 7 + 20)), ("update", 12 * 9 + 7 * 20)])
def test_flat_holds_every_number_under_its_name(on, width):
    X, t = adapters(), Flat(on=on)
    rows = t.fit_transform(X)
    frame = dict(zip(t.get_feature_names_out(), rows[1]))
    assert rows.shape == (6, width) == (6, len(frame)) and rows.dtype == np.float32
    u = X[1]["a.v"]
    known = {"a.v.3.5": u.dense()[3, 5]} if on == "update" else {"a.v.A.1.5": u.down[1, 5], "a.v.B.3.1": u.up[3, 1], "a.v.A.2.5": 0, "a.v.B.3.3": 0}
    for name, value in known.items(): assert frame[name] == pytest.approx(float(value), rel=1e-6)

def test_flat_refuses_a_larger_rank():
    with pytest.raises(ValueError, match="a.q: rank 4, and fit has seen 2 at most"): Flat().fit(adapters(ranks=(1, 2))).transform(adapters(ranks=(4,)))
