"The transformers of 05a at the edges: ranks, zero updates, rows that must not know of each other"
import numpy as np
import pytest
import torch

from loragrass.base_report import BaseBlock
from loragrass.directions import Canonicalize, Leverage, ProjectionKernelPCA, ProjectorSketch, ReferenceAngles
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

def base(): # of `adapters`
    gen = torch.Generator().manual_seed(5)
    return {"a.q.weight": torch.randn(12, 9, generator=gen), "a.v.weight": torch.randn(7, 20, generator=gen)}

EVERY = [ReferenceAngles(4, random_state=0), ReferenceAngles(4, "projection_rbf", "both", random_state=0), ProjectionKernelPCA(3), ProjectionKernelPCA(3, max_exact=4, n_landmarks=5),
         ProjectorSketch(3, "both"), ProjectorSketch(3, weighted=True), Leverage("both"), BaseBlock(base(), 4)]
def short(t): return str(t)[:60]

@pytest.mark.parametrize("t", EVERY, ids=short)
def test_manners_of_every_class(t):
    import pickle
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from loragrass.lora_io import LoRACollection
    X, y = adapters(12), np.arange(12) % 2
    rows = clone(t).fit(X).transform(X)
    assert rows.dtype == np.float32 and np.isfinite(rows).all()
    fitted = clone(t).fit(X)
    assert len(set(fitted.get_feature_names_out())) == rows.shape[1] and fitted.gauge_invariant_ and not hasattr(clone(fitted), "modules_")
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).transform(X), fitted.transform(X)) and np.array_equal(fitted.transform(X), rows)
    frame = FeatureUnion([("a", clone(t)), ("b", Features("norms"))]).set_output(transform="pandas").fit_transform(LoRACollection(X))
    assert frame.shape == (12, rows.shape[1] + 14) and frame.columns.is_unique
    name = type(t).__name__.lower()
    search = GridSearchCV(make_pipeline(clone(t), LogisticRegression()), {f"{name}__modules": [None, "q$"]}, cv=2, error_score="raise")
    assert search.fit(LoRACollection(X), y).predict(X).shape == (12,)
    assert np.isfinite(clone(t).fit(with_a_zero(X)).transform(with_a_zero(X))).all()

@pytest.mark.parametrize("t", EVERY, ids=short)
def test_no_class_sees_the_gauge_and_all_see_the_update(t):
    X = [LoRA({m: LoRAUpdate(u.up.double(), u.down.double(), u.scale, u.weight_shape) for m, u in lora.items()}, name=lora.name) for lora in adapters(9, ranks=(2, 3))]
    def gauged(u):
        G = torch.linalg.qr(torch.randn(u.rank, u.rank, dtype=torch.float64))[0] * torch.logspace(0, 1, u.rank, dtype=torch.float64)
        return LoRAUpdate(u.up @ G, torch.linalg.solve(G, u.down), u.scale, u.weight_shape)
    rows = t.fit(X).transform(X)
    assert np.abs(t.transform([LoRA({m: gauged(u) for m, u in lora.items()}) for lora in X]) - rows).max() <= 1e-6 * np.abs(rows).max()
    assert np.abs(rows - rows[:1]).max() > 1e-2 * np.abs(rows).max()

@pytest.mark.parametrize("t", EVERY, ids=short)
def test_numbers_that_are_none_are_named_by_every_class(t):
    X = adapters()
    X[2] = LoRA(X[2].updates | {"a.v": LoRAUpdate(X[2]["a.v"].up * torch.nan, X[2]["a.v"].down, 1., (7, 20))}, name="odd")
    with pytest.raises(ValueError, match="odd: NaN or infinite numbers in a.v"): t.fit(adapters()).transform(X)

def test_a_pipeline_gives_frames_behind_canonicalize():
    from sklearn.pipeline import make_pipeline
    pipe = make_pipeline(Canonicalize(), Features("stats", "factors")).set_output(transform="pandas")
    frame = pipe.fit_transform(adapters())
    assert frame.shape == (6, 2 * 2 * 7) and frame.columns[0] == "a.q.A.mean"
    assert np.allclose(frame, Features("stats", "canonical").fit_transform(adapters()), rtol=1e-4, atol=1e-5)

def test_leverage_sums_to_the_rank_and_a_sketch_is_that_of_the_projector():
    X = adapters()
    rows = Leverage(modules="q$").fit_transform(X)
    assert np.allclose(rows.sum(1), [1, 2, 4] * 2, atol=1e-5) and rows.min() >= 0 and rows.max() <= 1 + 1e-6
    t = ProjectorSketch(5, "right", weighted=True, modules="v$").fit(X)
    R, svd = t.vectors_["a.v", "right"], X[4]["a.v"].svd()
    dense = R @ (svd.Vh.T * svd.S ** 2) @ svd.Vh @ R.T
    assert np.allclose(t.transform(X)[4], dense[tuple(torch.triu_indices(5, 5))], rtol=1e-4, atol=1e-4)
    assert np.array_equal(ProjectorSketch(5).fit_transform(X), ProjectorSketch(5).fit_transform(X))
    assert not np.array_equal(ProjectorSketch(5).fit_transform(X), ProjectorSketch(5, random_state=1).fit_transform(X))

def test_a_base_block_is_the_dense_one():
    X, W = adapters(), base()["a.v.weight"]
    U, _, Vh = torch.linalg.svd(W.double())
    t = BaseBlock(base(), 4).fit(X)
    dense = U[:, :4].T @ X[3]["a.v"].dense().double() @ Vh[:4].T
    assert np.allclose(np.abs(t.transform(X)[3, 16:]), dense.abs().flatten(), atol=1e-4) and t.transform(X).shape == (6, 32)
    assert BaseBlock(base(), 100).fit_transform(X).shape == (6, 9 * 9 + 7 * 7)
    with pytest.raises(ValueError, match="a.v: the base has no weight for it"): BaseBlock({"a.q.weight": base()["a.q.weight"]}).fit(X)
    with pytest.raises(ValueError, match="base is 3; expected a Module or a dict"): BaseBlock(3).fit(X)

def test_landmarks_lose_what_they_say_and_all_of_them_nothing():
    X = adapters(30)
    exact, all_of_them = ProjectionKernelPCA(5).fit(X), ProjectionKernelPCA(5, max_exact=2, n_landmarks=30).fit(X)
    assert exact.nystrom_error_ == pytest.approx(0, abs=1e-9) and all_of_them.nystrom_error_ == pytest.approx(0, abs=1e-9)
    assert np.allclose(np.abs(exact.transform(X)), np.abs(all_of_them.transform(X)), atol=1e-4)
    few = ProjectionKernelPCA(5, max_exact=2, n_landmarks=8).fit(X)
    K, K_XL = exact.kernel(X), few.kernel(X)
    K_LL = few._against(few.bases_)
    assert few.nystrom_error_ == pytest.approx(1 - np.trace(K_XL @ np.linalg.pinv(K_LL) @ K_XL.T) / np.trace(K), abs=1e-6) and 0.1 < few.nystrom_error_ < 0.9
    assert not np.array_equal(few.transform(X), ProjectionKernelPCA(5, max_exact=2, n_landmarks=8, random_state=1).fit_transform(X))

def test_components_need_two_adapters_with_a_direction():
    with pytest.raises(ValueError, match="one adapter has no principal components"): ProjectionKernelPCA().fit(adapters(1))
    zero = [LoRA({"a": LoRAUpdate(torch.zeros(5, 2), torch.ones(2, 4), 1., (5, 4))})] * 3
    with pytest.raises(ValueError, match="all updates of fit are zero"): ProjectionKernelPCA().fit(zero)
