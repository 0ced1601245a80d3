"The transformers of 05 at the edges: ranks, dtypes, memory, rows that must not know of each other, adapters that do not fit"
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.linear_model import LogisticRegression
from torch.utils._python_dispatch import TorchDispatchMode

import loragrass.features as features
from loragrass.features import REPRESENTATIONS, SIDES, Features, _moments, _order_statistics, _quantiles, _selected
from loragrass.lora_io import LoRA, LoRACollection, LoRAUpdate

ALL = {"stats": 7, "spectral": 32, "norms": 7, "distribution": 12, "frequency": 14, "information": 2, "ensemble": 67}
EVERY = [*ALL, "coupling", "flat"]

def on_of(kind): return "factors" if kind == "coupling" else "update"

def test_the_sizes_are_of_the_whole_table(): assert set(EVERY) == set(REPRESENTATIONS)


def update(m, n, r, dtype=torch.float64, seed=0, scale=0.7):
    gen = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype) for shape in ((m, r), (r, n)))
    return LoRAUpdate(up, down, scale, (m, n))

def adapters(N=6, ranks=(1, 2, 4), **kwargs):
    def one(r, seed): return {"a.q": update(12, 9, r, seed=seed, **kwargs), "a.v": update(7, 20, r, seed=seed + 1, **kwargs)}
    return [LoRA(one(ranks[i % len(ranks)], 10 * i), name=f"#{i}") for i in range(N)]

@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("on, sides", [("update", 1), ("factors", 2), ("A", 1), ("B", 1), ("canonical", 2)])
def test_width_names_and_dtype(kind, on, sides):
    t = Features(kind, on=on).fit(adapters())
    X, names = t.transform(adapters()), t.get_feature_names_out()
    assert X.shape == (6, 2 * sides * ALL[kind]) and X.dtype == np.float32 and np.isfinite(X).all()
    assert len(set(names)) == X.shape[1] and t.gauge_invariant_ == (on in ("update", "canonical"))
    assert all(name.startswith(("a.q.", "a.v.")) for name in names)

@pytest.mark.parametrize("m, n, r", [(12, 9, 1), (12, 9, 4), (9, 12, 9), (5, 4, 11), (2, 3, 1), (1, 1, 1)])
def test_spectral_is_the_dense_svd(m, n, r):
    u = update(m, n, r)
    s = torch.linalg.svdvals(u.dense())
    x = Features("spectral").fit_transform([LoRA({"w": u})])[0]
    k = min(m, n, r)
    assert np.allclose(x[:min(k, 10)], s[:min(k, 10)], rtol=1e-5) and (x[k:10] == 0).all()
    assert x[-1] == pytest.approx(s[:k].sum().item(), rel=1e-5) and x[-2] == pytest.approx((s[0] / s[k - 1]).item(), rel=1e-4)
    assert x[10:20].sum() == pytest.approx((s[:10].sum() / s.sum()).item(), rel=1e-5) and 1 <= x[-3] * (1 + 1e-6) and x[-3] <= k * (1 + 1e-6)

@pytest.mark.parametrize("kind", ALL)
def test_zero_rank_zero_update_and_duplicated_columns(kind):
    u = update(12, 9, 2)
    twice = LoRAUpdate(torch.cat([u.up, u.up], 1), torch.cat([u.down, u.down]) / 2, u.scale, u.weight_shape)
    zero, none = LoRAUpdate(0 * u.up, u.down, 1., (12, 9)), LoRAUpdate(torch.zeros(12, 0), torch.zeros(0, 9), 1., (12, 9))
    X = Features(kind).fit_transform([LoRA({"w": x}) for x in (u, twice, zero, none)])
    assert np.allclose(X[0], X[1], rtol=1e-5, atol=1e-7) and (X[2:] == 0).all()

def test_a_constant_update_has_no_shape():
    v, down = update(13, 7, 1).up, torch.full((2, 7), 0.3, dtype=torch.float64)
    x = Features("stats").fit_transform([LoRA({"w": LoRAUpdate(torch.cat([v, 0.1 - v], 1), down, 1., (13, 7))})])[0] # 0.03 everywhere, to rounding
    assert np.allclose(x, [0.03, 0, 0.03, 0.03, 0.03, 0, 0]) and (x[5:] == 0).all()

@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_files_in_half_precision(kind, dtype, rtol):
    X, Y = (Features(kind).fit_transform(adapters(dtype=d)) for d in (torch.float64, dtype))
    assert np.abs(Y - X).max() <= rtol * np.abs(X).max()

@pytest.mark.parametrize("kind, powers", [
    ("stats", [1, 1, 1, 1, 1, 0, 0]), ("spectral", [1] * 10 + [0] * 21 + [1]), ("norms", [1] * 5 + [0] * 2), ("distribution", [1] * 9 + [0] * 3),
    ("frequency", [1] * 13 + [0]), ("information", [0, 0])])
def test_scale_law(kind, powers):
    def scaled(c): return [LoRA({"w": LoRAUpdate(u.up, u.down, c * u.scale, u.weight_shape)}) for u in [update(12, 9, 4)]]
    X, Y = (Features(kind).fit_transform(scaled(c))[0] for c in (1., 1e-8))
    assert np.allclose(Y / 1e-8 ** np.array(powers), X, rtol=1e-4)

@pytest.mark.parametrize("kind", ALL)
def test_a_row_does_not_depend_on_the_others(kind):
    X, t = adapters(9, ranks=(1, 2, 4)), Features(kind)
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
    places, identity = torch.tensor([0, 1, 34649, 34650, 69298, 69299]), torch.eye(210, dtype=torch.float64)
    assert torch.equal(_order_statistics(W[None], identity[None], places)[0], exact[places])
    assert torch.equal(_selected(W[None], identity[None], places), exact[places])

@pytest.mark.parametrize("entries", [1000, 10**5, 10**6])
def test_quantiles_and_moments_do_not_depend_on_the_block(entries, monkeypatch):
    B, A = torch.randn(2, 300, 300, dtype=torch.float64), torch.randn(2, 300, 220, dtype=torch.float64) # rank 300: moments by entries too
    whole, blocks = (B @ A).flatten(1), features._row_blocks
    monkeypatch.setattr(features, "ENTRIES", entries) # what is larger is not sorted
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
    x = Features("spectral", k=2).fit_transform([LoRA({"w": update(200_000, 300_000, 2, torch.float32)})]) # 480 GB as a matrix
    assert x[0, 0] == pytest.approx(0.7 * (200_000 * 300_000) ** 0.5, rel=0.02)

def test_entries_are_taken_in_blocks():
    with Largest() as seen: Features("ensemble").fit_transform([LoRA({"w": update(2048, 2048, 4, torch.float32)})])
    assert seen.numel <= 1 << 20

def test_modules_that_only_some_have():
    X = adapters()
    X[0] = LoRA(X[0].updates | {"extra": update(3, 3, 1)})
    with pytest.warns(UserWarning, match="1 modules that only some adapters have are left out: extra"): t = Features("spectral").fit(X)
    assert t.transform(X).shape == (6, 64) and t.skipped_modules_ == ["extra"]

@pytest.mark.parametrize("other, message", [
    (lambda x: {"a.q": x["a.q"]}, "odd lacks 1 of the modules of fit, a.v first"),
    (lambda x: x.updates | {"b": x["a.q"]}, "odd has 1 modules that fit had not, b first"),
    (lambda x: x.updates | {"a.q": update(12, 8, 2)}, r"odd: a.q is \(12, 8\) and was \(12, 9\) in fit"),
    (lambda x: x.updates | {"a.q": LoRAUpdate(x["a.q"].up * torch.nan, x["a.q"].down, 1., (12, 9))}, "odd: NaN or infinite numbers in a.q"),
])
def test_adapters_that_do_not_fit_are_named(other, message):
    X = adapters()
    t = Features("stats").fit(X)
    with pytest.raises(ValueError, match=message): t.transform([LoRA(other(X[0]), name="odd")])

@pytest.mark.parametrize("kwargs, message", [
    (dict(on="C"), "on='C'; expected one of update, A, B, factors, canonical, or None"), (dict(modules="z"), "6 adapters share 2 of 2 modules"),
    (dict(representations="spectra"), "representation 'spectra'; expected one of flat, spectral"), (dict(representations=[]), "expected one or more, each once"),
    (dict(representations=["norms", "norms"]), "expected one or more, each once"), (dict(representations=3), "representations is 3"),
    (dict(representations="coupling", on="update"), "on='update' for 'coupling', which looks at A and B together"),
    (dict(mode="rows"), "mode='rows'; expected one of auto, guide, columns"), (dict(k=0), "k=0; expected 1 or more")])
def test_settings_that_cannot_be(kwargs, message):
    with pytest.raises(ValueError, match=message): Features(**(dict(representations="spectral") | kwargs)).fit(adapters())

def test_scikit_learn_manners():
    t = clone(Features("spectral", k=3, modules="q$"))
    frame = t.set_output(transform="pandas").fit_transform(adapters())
    assert frame.columns.tolist()[:3] == ["a.q.s1", "a.q.s2", "a.q.s3"] and frame.shape == (6, 11)

@pytest.mark.parametrize("on, width", [("factors", 4 * (12 + 9 + 7 + 20)), ("update", 12 * 9 + 7 * 20)])
def test_flat_holds_every_number_under_its_name(on, width):
    X, t = adapters(), Features("flat", on=on)
    rows = t.fit_transform(X)
    frame = dict(zip(t.get_feature_names_out(), rows[1]))
    assert rows.shape == (6, width) == (6, len(frame)) and rows.dtype == np.float32
    u = X[1]["a.v"]
    known = {"a.v.3.5": u.dense()[3, 5]} if on == "update" else {"a.v.A.1.5": u.down[1, 5], "a.v.B.3.1": u.up[3, 1], "a.v.A.2.5": 0, "a.v.B.3.3": 0}
    for name, value in known.items(): assert frame[name] == pytest.approx(float(value), rel=1e-6)

def test_flat_refuses_a_larger_rank():
    with pytest.raises(ValueError, match="a.q: rank 4, and fit has seen 2 at most"): Features("flat").fit(adapters(ranks=(1, 2))).transform(adapters(ranks=(4,)))

def gauged(lora, condition=10., seed=0):
    gen = torch.Generator().manual_seed(seed)
    def turn(u):
        Q, P = (torch.linalg.qr(torch.randn(u.rank, u.rank, generator=gen, dtype=torch.float64))[0] for _ in range(2))
        G = Q @ torch.logspace(0, np.log10(condition), u.rank, dtype=torch.float64).diag() @ P
        return LoRAUpdate(u.up @ G, torch.linalg.solve(G, u.down), u.scale, u.weight_shape)
    return LoRA({m: turn(u) for m, u in lora.items()}, name=lora.name)

@pytest.mark.parametrize("on", SIDES)
@pytest.mark.parametrize("kind", EVERY)
def test_gauge(kind, on):
    if kind == "coupling" and on not in ("factors", "canonical"): return
    X = adapters(9, ranks=(2, 3, 4))
    t = Features(kind, on).fit(X)
    before, after = t.describe(X), t.describe([gauged(lora, seed=i) for i, lora in enumerate(X)])
    change = np.abs(after - before).max() / np.abs(before).max()
    by_order = kind in ("stats", "distribution", "ensemble") # through float32
    if t.gauge_invariant_: assert change <= (1e-6 if by_order else 1e-10)
    else: assert change > 1e-2
    assert t.gauge_invariant_ == (on in ("update", "canonical"))

def test_spectra_of_factors_see_no_rotation_but_a_scalar():
    X = adapters(6, ranks=(3, 4))
    t = Features("spectral", "A").fit(X)
    doubled = [LoRA({m: LoRAUpdate(2 * u.up, u.down / 2, u.scale, u.weight_shape) for m, u in lora.items()}) for lora in X]
    assert np.allclose(t.describe([gauged(lora, 1.) for lora in X]), t.describe(X), rtol=1e-12)
    assert np.abs(t.describe(doubled) - t.describe(X)).max() > 0.1

def test_canonical_factors_are_those_of_the_numerical_rank():
    X = adapters(6, ranks=(2,))
    padded = [LoRA({m: LoRAUpdate(torch.cat([u.up, 0 * u.up], 1), torch.cat([u.down, u.down]), u.scale, u.weight_shape) for m, u in lora.items()}) for lora in X]
    for kind in EVERY:
        t = Features(kind, "canonical").fit(X)
        assert np.allclose(t.describe(padded), t.describe(X), rtol=1e-6, atol=1e-9)

def test_the_reference_of_many_columns_is_that_of_all_of_them():
    updates = [update(6, 30, 2, seed=i) for i in range(40)] # 80 columns in R⁶, in stacks of one
    direction, rank = features.leading_direction(updates)
    C = torch.cat([u.svd().U * u.svd().S for u in updates], 1)
    assert rank == 2 and abs(float(direction @ torch.linalg.svd(C)[0][:, 0])) == pytest.approx(1, abs=1e-6)
    whole = features._stacks
    few = lambda updates, scaled=True: whole(updates, scaled, numbers=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_stacks", few)
        again, _ = features.leading_direction(updates)
    assert abs(float(direction @ again)) == pytest.approx(1, abs=1e-6)

def test_several_rows_stand_side_by_side_under_their_names():
    X = adapters()
    both = Features(["norms", "flat"]).fit(X)
    rows = dict(zip(both.get_feature_names_out(), both.transform(X).T))
    assert len(rows) == both.transform(X).shape[1]
    for kind, head in (("norms", "a.q."), ("flat", "a.v.A.")):
        alone = Features(kind).fit(X)
        for name, column in zip(alone.get_feature_names_out(), alone.transform(X).T):
            if name.startswith(head): assert np.array_equal(rows[head + f"{kind}." + name.removeprefix(head)], column)

def test_coupling_of_the_columns_and_of_the_entries():
    u = update(12, 9, 3)
    def describe(mode): return Features("coupling", mode=mode).fit_transform([LoRA({"w": u})])[0]
    a, b = u.down.norm(dim=1), u.up.norm(dim=0)
    assert np.allclose(describe("columns")[:2], [np.corrcoef(a, b)[0, 1], a @ b / a.norm() / b.norm()], rtol=1e-5)
    assert np.array_equal(describe("auto"), describe("columns")) and describe("guide")[2] == pytest.approx(u.norm(), rel=1e-5)
    a, b = torch.cat([u.down.flatten(), torch.zeros(9)]), u.up.T.flatten()
    assert np.allclose(describe("guide")[:2], [np.corrcoef(a, b)[0, 1], a @ b / a.norm() / b.norm()], rtol=1e-5)
    assert np.allclose(describe("guide")[3], np.corrcoef(torch.linalg.svdvals(u.down), torch.linalg.svdvals(u.up))[0, 1], rtol=1e-5)

@pytest.mark.parametrize("kind", EVERY)
def test_odd_updates_give_numbers(kind):
    tiny, big = update(2, 3, 1), update(12, 9, 2)
    zero, constant = LoRAUpdate(0 * big.up, big.down, 1., (12, 9)), LoRAUpdate(torch.ones(12, 1), torch.full((1, 9), 0.1), 3., (12, 9))
    none = LoRAUpdate(torch.zeros(12, 0), torch.zeros(0, 9), 1., (12, 9))
    for on in (on_of(kind), "factors", "canonical"):
        for u in (zero, constant, none, big):
            assert np.isfinite(Features(kind, on).fit([LoRA({"w": big})]).transform([LoRA({"w": u})])).all()
        assert np.isfinite(Features(kind, on).fit_transform([LoRA({"w": tiny})])).all()
        assert np.isfinite(Features(kind, on).fit_transform([LoRA({"w": zero, "v": none})])).all()

def test_numbers_beyond_float32_are_named():
    X = adapters()
    X[3] = LoRA(X[3].updates | {"a.v": LoRAUpdate(X[3]["a.v"].up * 1e30, X[3]["a.v"].down * 1e30, 1., (7, 20))}, name="loud")
    with pytest.raises(ValueError, match=r"loud: a\.v\.s1 is beyond float32"): Features("spectral").fit_transform(X)

def test_adapters_of_two_base_models_are_named():
    X = adapters()
    X[4] = LoRA(X[4].updates, name="odd", arch="flux1")
    X[0] = LoRA(X[0].updates, name="first", arch="sd15")
    with pytest.raises(ValueError, match="odd is for flux1 and others are for sd15; take adapters of one base model"): Features("norms").fit(X)
    t = Features("norms").fit(X[:2])
    with pytest.raises(ValueError, match="odd is for flux1"): t.transform(X[4:])
    with pytest.raises(ValueError, match="2 adapters share 0 of 2 modules"): Features("norms").fit([LoRA({m: update(3, 3, 1)}) for m in "ab"])
    with pytest.raises(ValueError, match="no adapters"): Features("norms").fit([])

@pytest.mark.parametrize("kind", EVERY)
def test_manners_of_every_row(kind):
    import pickle
    X, y = adapters(8), np.arange(8) % 2
    for on in (None, "canonical"):
        t = Features(kind, on).fit(X)
        again, new = pickle.loads(pickle.dumps(t)), clone(t)
        assert np.array_equal(again.transform(X), t.transform(X)) and not hasattr(new, "modules_") and new.get_params() == t.get_params()
    union = FeatureUnion([("a", Features(kind)), ("b", Features("norms"))]).set_output(transform="pandas")
    for Z in (X, LoRACollection(X)):
        frame = union.fit_transform(Z)
        assert frame.shape[1] == Features(kind).fit_transform(X).shape[1] + 14 and frame.columns.is_unique and (frame.index == np.arange(8)).all()
    search = GridSearchCV(make_pipeline(Features(kind), LogisticRegression()), {"features__on": [on_of(kind), "canonical"]}, cv=2, error_score="raise")
    assert search.fit(LoRACollection(X), y).predict(X).shape == (8,)

@pytest.mark.parametrize("old, new", features._OLD.items())
def test_old_names_for_one_release(old, new):
    import loragrass as lg
    X = adapters()
    for found in (lg, features):
        with pytest.warns(FutureWarning, match=rf"loragrass.features.{old} is now Features\('{new}'\)") as told: kind = getattr(found, old)
        assert len(told) == 1 and told[0].filename == __file__
        assert np.array_equal(kind(on="factors").fit_transform(X), Features(new, "factors").fit_transform(X))
    if new == "spectral": assert kind(3).fit_transform(X).shape == (6, 2 * 11)
