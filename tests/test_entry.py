"What comes in at the door of every public function of chapters 04, 05 and 08: what was meant is taken, the rest is refused by name"
import inspect
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import loragrass as lg
from loragrass.clustering import cluster_kernel
from loragrass.merging import RULES

def adapter(seed, r=2, name=None):
    g = torch.Generator().manual_seed(seed)
    return lg.LoRA({m: lg.LoRAUpdate(torch.randn(9, r, generator=g), torch.randn(r, 7, generator=g), 1.0, (9, 7)) for m in ("m0", "m1")}, name=name or f"a{seed}")

L = [adapter(i) for i in range(4)]
A, B = L[:2]
SIM, RESULT = lg.similarity(L), lg.cluster_merge(L)
SCORES = lg.score_groups(RESULT, L, lambda lora, task: 0.5, list("abab"))
INDEX = lg.SubspaceIndex().add(L)
TOPICS = lg.find_topics(torch.eye(2).repeat(3, 1), ["bread and flour", "rain and wind"] * 3, 2)
TABLE = lg.ablate(L, list("abab"), "norms", cv=2)
ON_BASE = lg.subspace_report(A, {f"{m}.weight": torch.randn(A.shapes[m]) for m in A})
WRONG = [None, "x", Path("x"), {}, {"x": 1}, torch.ones(2), torch.ones(3, 3), 3, 2.5, True, [], A, [A, B], [None], ["x"], [Path("x")], {"a": A}, object(), lg.merge(L, 1)]
GOOD = {
    lg.compare: dict(a=A, b=B), lg.similarity: dict(loras=L), lg.merge: dict(loras=L, weights=1), lg.mean_lora: dict(loras=L), lg.layer_means: dict(loras=L, layer_labels=RESULT.layer_labels_),
    lg.cluster: dict(X=L), lg.cluster_merge: dict(loras=L), lg.score_groups: dict(result=RESULT, loras=L, score=lambda lora, task: 0.5, tasks=list("abab")),
    lg.search_combinations: dict(layer_means=L[:2], score=L), lg.representatives: dict(K=SIM, size=2), lg.kernel_penalty: dict(reference=A),
    lg.SubspaceIndex: {}, INDEX.nearest: dict(points=A), INDEX.cluster: {}, lambda points, names=None: lg.SubspaceIndex().add(points, names): dict(points=L),
    lg.plot_gram: dict(what=SIM), lg.plot_map: dict(what=SIM), lg.plot_angles: dict(a=A, b=B), lg.plot_silhouettes: dict(what=cluster_kernel(SIM.joint)), lg.plot_evidence: dict(what=RESULT), lg.plot_dendrogram: dict(result=RESULT), lg.plot_spectra: dict(result=RESULT), lg.plot_scores: dict(scores=SCORES), lg.plot_topics: dict(what=TOPICS),
    lg.plot_ablation: dict(table=TABLE), lg.plot_history: dict(history={"loss": [2., 1.]}), lg.plot_truncation: dict(lora=A), lg.plot_base_spectrum: dict(report=ON_BASE, module=next(iter(A))),
    lg.html_report: dict(result=RESULT, path="report.html"),
    lg.save: dict(lora=A, path="a", format="peft"), lg.resize: dict(lora=A, rank=1),
}
ROOMS = ("comparing", "merging", "cluster_merge", "selection", "subspace_index", "report", "report_page")
ESTIMATORS = [getattr(lg, name) for name in lg.__all__ if getattr(getattr(lg, name), "__module__", "") in ("loragrass.features", "loragrass.directions")]

def test_the_table_is_complete():
    public = {name for name in lg.__all__ if getattr(getattr(lg, name), "__module__", "").removeprefix("loragrass.") in ROOMS}
    assert public <= {getattr(f, "__name__", "") for f in GOOD} and len(ESTIMATORS) == 6

def refused(f, where, **arguments):
    "A `ValueError`, or an answer; nothing else"
    try: f(**arguments)
    except (ValueError, OSError) as e: assert len(str(e)) > 10, where
    except Exception as e: raise AssertionError(f"{where}: {type(e).__name__}: {e}") from e
    finally: plt.close("all")

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("f", GOOD, ids=lambda f: getattr(f, "__qualname__", "add"))
def test_no_raw_error(f, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = GOOD[f]
    f(**good)
    for name, p in inspect.signature(f).parameters.items():
        if p.kind is p.VAR_KEYWORD: continue
        for x in WRONG: refused(f, f"{f.__qualname__}({name}={x!r})", **good | {name: x})

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", ESTIMATORS, ids=lambda cls: cls.__name__)
def test_no_raw_error_of_an_estimator(cls):
    fitted = cls().fit(L)
    for x in WRONG:
        refused(cls().fit, f"fit({x!r})", X=x)
        refused(fitted.transform, f"transform({x!r})", X=x)
        for name in cls().get_params(): refused(lambda X: cls(**{name: x}).fit(X).transform(X), f"{cls.__name__}({name}={x!r})", X=L) # noqa: B023

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("f, name", [(f, n) for f, good in GOOD.items() for n in good if n in ("a", "b", "lora", "reference", "loras", "X", "points", "layer_means")])
def test_a_path_in_the_place_of_an_adapter_is_told_to_load_it(f, name):
    for path in ("ink.safetensors", Path("ink.safetensors"), *(["ink.safetensors"], [Path("ink.safetensors")]) * (name not in ("a", "b", "lora", "reference"))):
        with pytest.raises(ValueError, match=r"lg\.load\('ink\.safetensors'\)"): f(**GOOD[f] | {name: path})

@pytest.mark.filterwarnings("ignore")
def test_generators_and_one_adapter_are_taken():
    assert torch.equal(lg.similarity(a for a in L).joint, SIM.joint) and len(lg.LoRACollection(a for a in L)) == 4
    assert (lg.cluster((a for a in L), 2).labels == lg.cluster(L, "2").labels).all() and len(lg.cluster_merge((a for a in L), "2").means_) == 2
    for f in (lg.mean_lora, lambda loras: lg.merge(loras, 1)):
        for m, u in f(a for a in L).lora.items(): torch.testing.assert_close(u.up @ u.down, f(L).lora[m].up @ f(L).lora[m].down)
    torch.testing.assert_close(lg.mean_lora(A).lora["m0"].dense(), A["m0"].dense(), rtol=1e-4, atol=1e-5)
    one, listed = INDEX.nearest(A, 2), INDEX.nearest([A], 2)
    assert torch.equal(one.index, listed.index) and one.index[0, 0] == 0 and len(lg.SubspaceIndex().add(a for a in L)) == 4

@pytest.mark.filterwarnings("ignore")
def test_five_copies_are_one_group_and_its_mean_is_each():
    for k in ("auto", 1):
        result = lg.cluster_merge([adapter(1, name=f"copy {i}") for i in range(5)], k)
        assert result.labels_.tolist() == [0] * 5
        for m, u in result.means_[0].items(): torch.testing.assert_close(u.dense(), B[m].dense(), rtol=1e-4, atol=1e-5)

# ---- a number for each adapter

def dense(merged): return torch.stack([merged.lora[m].dense() for m in ("m0", "m1")])

def test_weights_as_a_list_by_name_or_one_number():
    expected = sum(w * torch.stack([a[m].dense() for m in ("m0", "m1")]) for w, a in zip((1, -.5, 2, 0), L))
    for w in ([1, -.5, 2, 0], (1, -.5, 2, 0), torch.tensor([1, -.5, 2, 0]), {"a3": 0, "a0": 1, "a2": 2, "a1": -.5}, pd.Series([1, -.5, 2, 0], index=[9, 8, 7, 6]), (x for x in (1, -.5, 2, 0))):
        torch.testing.assert_close(dense(lg.merge(L, w, "cat")), expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dense(lg.merge(L, 0.25, "cat")), dense(lg.mean_lora(L, 7, "cat")))
    one = lg.cluster_merge(L, 1, "cat", weights={"a3": 0, "a0": 1, "a2": 2, "a1": -.5}, strength=3)
    torch.testing.assert_close(dense(one.merged_[0]), 3 * expected.float(), rtol=1e-4, atol=1e-4)
    assert "as they are" in one.merged_[0].notes[0] and "divided by their sum" in lg.cluster_merge(L, 2, weights=[1, 2, 3, 4]).merged_[0].notes[0]

@pytest.mark.parametrize("weights, says", [([1, 2], "2 weights for 4 adapters; they are, in this order: a0, a1, a2, a3"), ({"a9": 1}, "weights of a9: no adapter has that name; they are a0, a1, a2, a3"),
                                           ({"a0": 1, "a1": 1}, "none for a2, a3"), ([1, 2, 3, "x"], r"weights\[3\] is 'x'; expected a number"), ({"a0": None}, r"weights\['a0'\] is None")])
def test_weights_that_are_none_are_named(weights, says):
    for f in (lg.merge, lg.mean_lora, lambda loras, w: lg.cluster_merge(loras, weights=w)):
        with pytest.raises(ValueError, match=says): f(L, weights)

@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties", "ctm", "robust"])
def test_each_adapter_may_have_its_own_density(method):
    def made(density, **k): return dense(lg.merge(L, 1, method, density=density, random_state=1, **k))
    torch.testing.assert_close(made([.5] * 4), made(.5))
    torch.testing.assert_close(made({"a3": .9, "a1": .2, "a2": .5, "a0": .3}), made([.3, .2, .5, .9]))
    assert not torch.allclose(made([.1, 1, 1, 1]), made([1, 1, 1, .1]))
    torch.testing.assert_close(dense(lg.merge(L, [1, 0, 1, 1], method, density=[.3, .01, .5, .9], random_state=1)), dense(lg.merge([A, *L[2:]], 1, method, density=[.3, .5, .9], random_state=1)))
    for density, says in (([.5], "1 densities for 4"), ({"q": 1}, "densities of q: no adapter"), ([.5, .5, .5, 2], "share of entries"), ("x", "a number for each adapter")):
        with pytest.raises(ValueError, match=says): made(density)

def test_density_one_trims_nobody():
    torch.testing.assert_close(dense(lg.merge(L, 1, "dare", density=[1, 1, 1, 1], rank="sum")), dense(lg.merge(L, 1, "cat")), rtol=1e-4, atol=1e-4)
    assert set(RULES) >= {"ties", "dare"}

# ---- two base models

def other(name): return lg.LoRA({"m0": lg.LoRAUpdate(torch.ones(5, 1), torch.ones(1, 7), 1.0, (5, 7))}, name=name)

@pytest.mark.filterwarnings("ignore")
def test_two_base_models():
    mixed = [A, other("x"), B, L[2], other("y")]
    for f in (lg.cluster, lg.cluster_merge, lambda loras: lg.compare(*loras[:2])):
        with pytest.raises(ValueError, match=r"different base models: unknown-1: a0.*; unknown-2: x.*Shapes differ, as of m0: \(9, 7\) and \(5, 7\).*mixed_bases=True"): f(mixed)
    found = lg.cluster(mixed, 1, mixed_bases=True)
    assert found.labels.tolist() == [0, 1, 0, 0, 1] and "2 base models" in found.note
    results = lg.cluster_merge(mixed, 2, weights=[1, 1, 1, 1, 3], mixed_bases=True)
    assert list(results) == ["unknown-1", "unknown-2"] and results["unknown-2"].similarity_.names == ["x", "y"] and len(results["unknown-1"].means_) == 2
    frame = lg.compare(*mixed[:2], mixed_bases=True)
    assert frame.shapes_differ["m0"] == "(9, 7), (5, 7)" and frame.only_in["m1"] == "a0"

def test_architectures_that_share_no_module_are_two_bases():
    a, b = adapter(0), lg.LoRA({"n": lg.LoRAUpdate(torch.ones(5, 1), torch.ones(1, 7), 1.0, (5, 7))}, arch="flux1")
    a.arch = "sd15"
    with pytest.raises(ValueError, match="sd15: a0; flux1: number 1"): lg.compare(a, b)
    b.arch = "unknown"
    assert lg.compare(a, b).only_in.notna().all()

def test_a_kernel_matrix_may_be_a_list_of_rows(): # as for `cluster_kernel`
    assert lg.cluster([[1, .5, 0], [.5, 1, 0], [0, 0, 1]], 2).labels.tolist() == [0, 0, 1]

def test_weights_of_a_series_go_by_name():
    loras = list(lg.load_zoo().loras)[:2]
    def norm(w): return next(iter(lg.mean_lora(loras, weights=w).lora.values())).norm()
    by_name = norm(pd.Series([1, 3], index=[lora.name for lora in loras[::-1]]))
    assert by_name == norm([3, 1]) == norm(pd.Series([3, 1])) != norm([1, 3])

def test_the_default_device_is_not_asked_about_adapters():
    loras = list(lg.load_zoo().loras)[:6]
    torch.set_default_device("meta")
    try:
        assert lg.cluster(loras, 2).labels.tolist() == [0, 0, 0, 0, 1, 1] == lg.cluster_merge(loras, 2).labels.tolist()
        assert lg.merge(loras[:2], 1, method="ties").lora[next(iter(loras[0]))].up.device.type == "cpu"
    finally: torch.set_default_device(None)

def test_an_adapter_where_a_path_belongs():
    lora = lg.load_zoo().loras[0]
    for f, said in ((lambda: lg.load(lora), "path is a LoRA"), (lambda: lg.load_all(lora), "paths is a LoRA"), (lambda: lg.load_all([lora]), r"paths\[0\] is a LoRA"),
                    (lambda: lg.load(None), "path is None"), (lambda: lora[next(iter(lora))].difference("a"), "other is str; expected a LoRAUpdate")):
        with pytest.raises(ValueError, match=said): f()
