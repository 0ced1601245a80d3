"Laws of similarity, grouping and means that are no lessons: edge cases, invariances, what is said when something is odd"
import subprocess, sys, warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from loragrass.zoo import load_zoo
from loragrass.cluster_merge import SharedInitWarning, UnrelatedWarning, cluster, cluster_merge
from loragrass.clustering import GrassmannKMeans
from loragrass.comparing import compare, similarity
from loragrass.kernels import KernelDegenerateWarning
from loragrass.lora_io import LoRA, LoRAUpdate
from loragrass.merging import layer_means, mean_lora
from loragrass.subspace_index import SubspaceIndex

pytestmark = pytest.mark.filterwarnings("ignore::loragrass.cluster_merge.UnrelatedWarning") # random adapters have nothing in common

def adapter(seed, ranks=(3, 2), shapes=((12, 9), (7, 9)), name=""):
    g = torch.Generator().manual_seed(seed)
    def update(shape, r): return LoRAUpdate(torch.randn(shape[0], r, generator=g), torch.randn(r, shape[1], generator=g), 0.5, shape)
    return LoRA({f"m{i}": update(s, r) for i, (s, r) in enumerate(zip(shapes, ranks))}, name=name or f"a{seed}")

def gauged(lora, seed=0):
    g = torch.Generator().manual_seed(seed)
    def change(u):
        G = torch.randn(u.up.shape[1], u.up.shape[1], generator=g)
        return replace(u, up=u.up @ G, down=torch.linalg.solve(G, u.down))
    return LoRA({m: change(u) for m, u in lora.items()}, name=lora.name)

def rotated(loras, seed=0):
    "Another orthonormal basis of outputs and inputs, the same for all"
    g = torch.Generator().manual_seed(seed)
    Q = {m: [torch.linalg.qr(torch.randn(n, n, generator=g)).Q for n in u.weight_shape] for m, u in loras[0].items()}
    return [LoRA({m: replace(u, up=Q[m][0] @ u.up, down=u.down @ Q[m][1].mT) for m, u in lora.items()}, name=lora.name) for lora in loras]

def close(a, b, tol=1e-5):
    assert set(a) == set(b)
    for m in b: torch.testing.assert_close(a[m].dense(), b[m].dense(), rtol=0, atol=tol * max(1, float(b[m].norm())))

@pytest.mark.parametrize("method", ["svd", "cat", "karcher", "chordal"])
class TestMeans:
    def test_one_weight(self, method): close(mean_lora([adapter(1), adapter(2, (2, 1))], [1, 0], method=method).lora, adapter(1))
    def test_copies(self, method): close(mean_lora([adapter(1), gauged(adapter(1)), adapter(1)], [3, 1, 2], method=method).lora, adapter(1), 1e-4)
    def test_gauge(self, method):
        a, b = adapter(1), adapter(2)
        close(mean_lora([gauged(a), gauged(b, 3)], method=method).lora, mean_lora([a, b], method=method).lora, 1e-4)
    def test_order(self, method):
        a, b, c = (adapter(i) for i in range(3))
        close(mean_lora([a, b, c], [1, 2, 3], method=method).lora, mean_lora([c, a, b], [3, 1, 2], method=method).lora, 1e-4)
    def test_full_rank_is_the_dense_sum(self, method):
        a, b = adapter(1, (2, 2)), adapter(2, (1, 2))
        merged = mean_lora([a, b], [0.7, 0.3], method=method, rank="sum").lora
        for m in a: torch.testing.assert_close(merged[m].dense(), 0.7 * a[m].dense() + 0.3 * b[m].dense(), rtol=1e-4, atol=1e-4)
    def test_zero_update(self, method):
        a = adapter(1)
        zero = LoRA({m: replace(u, up=torch.zeros_like(u.up)) for m, u in a.items()}, name="zero")
        merged = mean_lora([a, zero], method=method)
        close(merged.lora, LoRA({m: replace(u, scale=u.scale / 2) for m, u in a.items()}))
        assert all(u.up.isfinite().all() for u in mean_lora([zero, zero], method=method).lora.values())

def test_svd_is_the_best_of_its_rank():
    a, b = adapter(1), adapter(2)
    merged = mean_lora([a, b], rank=2)
    S = torch.linalg.svdvals((a["m0"].dense() + b["m0"].dense()) / 2)
    assert merged.per_module.rel_error["m0"] == pytest.approx(float(S[2:].norm() / S.norm()), rel=1e-5)

def test_rel_error_and_energy_of_the_exact_sum():
    merged = mean_lora([adapter(1), adapter(2)], method="cat")
    assert merged.rel_error < 1e-6 and merged.energy == pytest.approx(1)

def test_rescale_restores_the_members_norm():
    a, b = adapter(1), adapter(2)
    merged = mean_lora([a, b], rescale="norm").lora
    assert float(merged["m0"].norm()) == pytest.approx(float(a["m0"].norm() + b["m0"].norm()) / 2, rel=1e-5)

def test_missing_modules_count_as_zero_and_are_named():
    a, b = adapter(1), LoRA({"m0": adapter(2)["m0"]}, name="half")
    merged = mean_lora([a, b], method="cat")
    torch.testing.assert_close(merged.lora["m1"].dense(), a["m1"].dense() / 2, rtol=1e-4, atol=1e-5)
    assert any("m1" in note and "half" in note for note in merged.notes)
    assert similarity([a, b]).missing == {"m1": ["half"]} and compare(a, b).only_in["m1"] == "a1"

@pytest.mark.parametrize("call, message", [
    (lambda: mean_lora([]), "at least one"),
    (lambda: cluster_merge([]), "at least one"),
    (lambda: mean_lora([adapter(1), adapter(2)], [1, -1]), "sum"),
    (lambda: mean_lora([adapter(1)], [1, 1]), "2 weights for 1"),
    (lambda: mean_lora([adapter(1)], method="average"), "expected one of"),
    (lambda: mean_lora([adapter(1), adapter(2, shapes=((10, 9), (7, 9)))]), "shapes differ"),
    (lambda: similarity([adapter(1), adapter(2, shapes=((10, 9), (7, 9)))]), "shapes differ"),
    (lambda: similarity([adapter(1)], side="up"), "'left', 'right' or 'both'"),
    (lambda: similarity([adapter(1)], kernel="binet_cauchy", sqrt_weighted=True), "sqrt_weighted=False"),
    (lambda: similarity([adapter(1)], kernel="cosine"), "choose one of projection"),
    (lambda: similarity([adapter(1), LoRA({"m0": replace(adapter(2)["m0"], up=torch.full((12, 3), float("nan")))}, name="burnt")]), "m0 of burnt has NaN"),
    (lambda: compare(LoRA({}), LoRA({})), "both adapters are empty"),
    (lambda: layer_means([adapter(i) for i in range(3)], pd.DataFrame([[0, 0, 1], [0, 1, 1]], ["m0", "m1"]), weights=[1, -1, 1]), "m0: the weights .* sum to 0"),
    (lambda: cluster(torch.eye(4), 2.5), "n_clusters is 2.5; expected a whole number"),
    (lambda: similarity([adapter(1)], modules={"nowhere": 1.0}), "no module"),
    (lambda: cluster(torch.eye(4), 5), "1 … 4"),
    (lambda: cluster([adapter(1), adapter(2)], 2, "grassmann"), "expected one of"),
    (lambda: cluster(torch.eye(4), 2, "grassmann_kmeans"), "needs the adapters"),
    (lambda: cluster([adapter(1), adapter(2)], 2, centers="karcher"), "centers: options of clustering 'grassmann_kmeans'"),
    (lambda: cluster([adapter(1), LoRA({"x": adapter(2)["m0"]})], 2, "grassmann_kmeans"), "no module is in all"),
    (lambda: cluster_merge([adapter(1), adapter(2)], weights=[1]), "1 weights for 2"),
    (lambda: cluster(-torch.ones(4, 4)), "≥ 0"),
    (lambda: GrassmannKMeans(3).fit(torch.zeros(2, 4, 1)), "1 … 2"),
    (lambda: mean_lora([adapter(1), adapter(2)], [2, -1], method="karcher"), "weights ≥ 0"),
    (lambda: mean_lora([adapter(1)], weights="votes"), "'agreement'"),
    (lambda: mean_lora([adapter(1)], rank=0), "a number ≥ 1"),
])
def test_errors_say_what_came_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message): call()

@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("weighted", [True, False])
def test_similarity_is_a_kernel_of_updates(side, weighted):
    loras = [adapter(i, (1 + i % 3, 2)) for i in range(6)]
    K = similarity(loras, side=side, sqrt_weighted=weighted).joint
    torch.testing.assert_close(K.diagonal(), torch.ones(6, dtype=K.dtype))
    assert torch.linalg.eigvalsh(K)[0] > -1e-10
    torch.testing.assert_close(K, similarity([gauged(a, i) for i, a in enumerate(loras)], side=side, sqrt_weighted=weighted).joint, rtol=0, atol=1e-4)
    torch.testing.assert_close(K, similarity(rotated(loras), side=side, sqrt_weighted=weighted).joint, rtol=0, atol=1e-4)
    torch.testing.assert_close(K.flip(0, 1), similarity(loras[::-1], side=side, sqrt_weighted=weighted).joint)

def test_similarity_of_scaled_updates_is_one():
    a = adapter(1)
    K = similarity([a, LoRA({m: replace(u, scale=-3.0) for m, u in a.items()})]).joint
    torch.testing.assert_close(K, torch.ones_like(K), rtol=0, atol=1e-6)

def test_few_adapters():
    assert cluster_merge([adapter(1)]).labels.tolist() == [0]
    assert cluster_merge([adapter(1), adapter(2)], 2).labels.tolist() == [0, 1]
    result = cluster_merge([adapter(1), gauged(adapter(1)), adapter(2)], 2)
    assert result.labels.tolist() == [0, 0, 1] and result.medoids[1] == 2
    close(result.means[0], adapter(1), 1e-4)

def test_same_input_same_result():
    loras = [adapter(i) for i in range(8)]
    a, b = cluster_merge(loras, 3), cluster_merge(loras, 3)
    assert (a.labels == b.labels).all() and all(torch.equal(x[m].up, y[m].up) for x, y in zip(a.means, b.means) for m in x)

def test_inputs_are_not_changed():
    loras = [adapter(i) for i in range(4)]
    before = [u.up.clone() for lora in loras for u in lora.values()]
    cluster_merge(loras, 2)
    assert all(torch.equal(x, u.up) for x, u in zip(before, (u for lora in loras for u in lora.values())))

def test_no_group_is_lost_when_points_coincide():
    X = torch.eye(5)[:, :2].expand(4, 5, 2).contiguous()
    assert set(np.unique(GrassmannKMeans(2).fit(X).labels_)) <= {0, 1}

@pytest.mark.parametrize("first", ["from loragrass.cluster_merge import cluster", "pass"])
def test_the_function_is_not_hidden_by_its_module(first):
    code = f"import loragrass as lg; {first}; assert callable(lg.cluster_merge) and lg.cluster_merge.__name__ == 'cluster_merge'"
    subprocess.run([sys.executable, "-c", code], check=True)

# ---- the front door

def family(seed, group, shared=None, ranks=(3, 2), noise=0.2):
    "Adapters of a group have one output subspace, but for noise; A is of their own, or shared"
    a, g, own = adapter(1000 + group, ranks), torch.Generator().manual_seed(seed), adapter(2000 + seed if shared is None else 3000 + shared, ranks)
    return LoRA({m: replace(u, up=u.up + noise * torch.randn(u.up.shape, generator=g), down=own[m].down) for m, u in a.items()}, name=f"g{group}-{seed}")

FAMILY, GROUPS = [family(i, i % 2) for i in range(12)], np.arange(12) % 2

@pytest.mark.parametrize("way", [{}, {"normalized": False}, {"clustering": "agglomerative"}, {"clustering": "hdbscan"}, {"clustering": "kernel_kmeans"}, {"clustering": "grassmann_kmeans"},
                                 {"clustering": "grassmann_kmeans", "centers": "karcher"}, {"clustering": "grassmann_kmeans", "assign": "kernel", "batch_size": 6}], ids=str)
def test_every_way_of_grouping(way):
    assert adjusted_rand_score(GROUPS, cluster(FAMILY, 2, **way).labels) == 1

def test_many_adapters_are_grouped_from_a_sample(monkeypatch):
    monkeypatch.setattr(sys.modules["loragrass.cluster_merge"], "LARGE", 10) # its name in the package is the function
    assert adjusted_rand_score(GROUPS, cluster(FAMILY, 2).labels) == 1
    zoo = load_zoo()
    found = cluster(zoo.loras[:16])
    assert adjusted_rand_score(zoo.labels.task[:16], found.labels) == 1 and "4 groups were found in a sample of 16" in found.note
    with pytest.raises(ValueError, match="of so many a sample"): cluster(FAMILY, 2, "agglomerative")

@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_chance_is_what_random_adapters_have(side, weighted):
    loras = [adapter(i, (1 + i % 3, 2), ((60, 50), (40, 50))) for i in range(40)]
    loras[3] = LoRA({"m0": loras[3]["m0"]})
    sim = similarity(loras, side=side, sqrt_weighted=weighted)
    off = sim.joint[~torch.eye(40, dtype=torch.bool)].mean()
    assert float(off) == pytest.approx(sim.chance, rel=0.05) and similarity(loras[:2], "binet_cauchy_rbf", sqrt_weighted=False, modules={"m1": 1}).chance is None

# ---- means that follow the groups of each layer, and weights

def test_per_layer_follows_the_layers():
    loras = FAMILY[:8]
    loras[0] = LoRA({"m0": loras[0]["m0"], "m1": loras[1]["m1"]}, name="mixed") # its second module is of the other group
    result = cluster_merge(loras, 2, "svd", per_layer=True)
    labels = result.layer_labels
    assert labels.loc["m1"].iloc[0] != labels.loc["m0"].iloc[0] or (labels.loc["m1"] != labels.loc["m0"]).sum() == 1
    for g, mean in enumerate(result.means):
        for m in mean: torch.testing.assert_close(mean[m].dense(), mean_lora([a for a, l in zip(loras, labels.loc[m]) if l == g]).lora[m].dense(), rtol=1e-4, atol=1e-5)
    assert result.parameters["per_layer"] and result.method == "svd"

def test_weights_reach_the_means():
    w = list(range(1, 13))
    means = cluster_merge(FAMILY, 2, weights=w).means # of numbers the default is "svd"
    for g in range(2): close(means[g], mean_lora(FAMILY[g::2], w[g::2]).lora)
    close(cluster_merge(FAMILY, 2, weights="agreement").means[1], mean_lora(FAMILY[1::2], "agreement", "median").lora)

# ---- what stands in

def test_the_median_stands_in_unless_another_mean_is_asked_for():
    for g, mean in enumerate(cluster_merge(FAMILY, 2).means): close(mean, mean_lora(FAMILY[g::2], method="median").lora)

def test_a_medoid_stands_in_as_it_came():
    loras = [LoRA(a.updates, a.name, "x/" + a.name, "peft", config={"modules_to_save": ["head"]}, passthrough={"base_model.model.head.weight": torch.full((1 + i, 2), float(i))})
             for i, a in enumerate(FAMILY)] # heads of other classes: no mean
    with pytest.raises(ValueError, match="shapes differ.*stand_in='medoid'"): cluster_merge(loras, 2)
    result = cluster_merge(loras, 2, stand_in="medoid")
    summary = result.summary()
    for g, one in enumerate(result.means):
        at = result.medoids[g]
        K = result.similarity.joint[g::2, g::2]
        assert at == g + 2 * int(K.sum(0).argmax()) and summary.medoid[g] == loras[at].name and one.name == f"medoid_{g}"
        assert one.path == loras[at].path and one.passthrough is loras[at].passthrough and all(one[m] is loras[at][m] for m in one)
        dense = torch.stack([torch.cat([u.dense().flatten() for u in a.values()]) for a in loras[g::2]]).double()
        error = (dense[at // 2] - dense.mean(0)).norm() / dense.mean(0).norm()
        assert summary.rel_error[g] == pytest.approx(float(error), rel=1e-4)
        cosines = torch.nn.functional.cosine_similarity(dense, dense[at // 2, None])
        assert summary.to_medoid[g] == pytest.approx(float((cosines.sum() - 1) / 5), rel=1e-4)
    assert "medoids" in repr(result) and "means by median" in repr(cluster_merge(FAMILY, 2))

def test_a_medoid_takes_no_options_of_means():
    for options in ({"rank": 2}, {"rescale": "norm"}, {"per_layer": True}):
        with pytest.raises(ValueError, match="stands in as it came"): cluster_merge(FAMILY, 2, stand_in="medoid", **options)
    with pytest.raises(ValueError, match="stand_in 'median': expected 'mean' or 'medoid'"): cluster_merge(FAMILY, 2, stand_in="median")

def test_one_of_weight_zero_is_no_medoid():
    first = cluster_merge(FAMILY, 2).medoids[0]
    w = [float(i != first) for i in range(12)]
    assert cluster_merge(FAMILY, 2, weights=w, stand_in="medoid").medoids[0] != first

def test_norms_that_differ_are_told_and_stand_in_the_summary():
    def longer(lora, c): return LoRA({m: replace(u, scale=c * u.scale) for m, u in lora.items()}, name=lora.name)
    a, b = FAMILY[0], FAMILY[2]
    norms = [float(torch.cat([u.dense().flatten() for u in x.values()]).norm()) for x in (a, b)]
    for c, said in ((2.4, False), (2.6, True)):
        pair = [a, longer(b, c * norms[0] / norms[1])]
        result = cluster_merge(pair, 1)
        assert result.summary().spread[0] == pytest.approx(c, rel=1e-4)
        assert any(f"differ {c} times ({b.name}" in note and "stand_in='medoid'" in note for note in result.merged[0].notes) == said

def test_cosine_is_the_mean_cosine():
    loras = [adapter(i) for i in range(3)]
    flat = [a["m0"].dense().flatten() for a in loras]
    pairs = [(i, j) for i in range(3) for j in range(i)]
    inner, norms = sum(flat[i] @ flat[j] for i, j in pairs), sum(flat[i].norm() * flat[j].norm() for i, j in pairs)
    merged = mean_lora(loras)
    assert merged.per_module.cosine["m0"] == pytest.approx(float(inner / norms), abs=1e-6) and np.isnan(mean_lora(loras[:1]).cosine)

# ---- what a user is told

def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return {w.category for w in caught}

def test_shared_initial_a_is_told_on_the_right_side_only():
    shared = [family(i, i % 2, shared=i // 6) for i in range(12)] # two starts, two tasks
    for side, expected in (("left", set()), ("right", {SharedInitWarning})):
        assert told(lambda: cluster(shared, 2, side=side)) == expected # noqa: B023
        assert told(lambda: cluster_merge(shared, 2, side=side)) - {UnrelatedWarning} == expected # noqa: B023
    own = [family(i, i % 2, shared=i % 2) for i in range(12)] # inputs that tell the task
    assert SharedInitWarning not in told(lambda: cluster(own, 2, side="right"))

def test_a_degenerate_kernel_is_told():
    loras = [adapter(i, (16, 2), ((400, 20), (7, 9))) for i in range(4)]
    assert KernelDegenerateWarning in told(lambda: cluster_merge([LoRA({"m0": a["m0"]}) for a in loras], 2, kernel="binet_cauchy_rbf", sqrt_weighted=False))

def test_groups_without_anything_in_common_are_told():
    strangers = [adapter(i, shapes=((60, 50), (40, 50))) for i in range(8)]
    with pytest.warns(UnrelatedWarning, match="in group 0, .*Ask for more groups"): cluster_merge(strangers, 1)
    assert len(cluster_merge(strangers).means_) == 8
    assert told(lambda: cluster_merge(FAMILY[::2], 1, side="left")) <= {UnrelatedWarning}

def test_energy_lost_by_the_cut_is_told():
    loras = [adapter(i) for i in range(6)]
    assert any("cut of the rank loses" in n for n in mean_lora(loras, rank=1).notes) and not mean_lora(loras, rank="sum").notes

def test_a_mean_that_may_not_be_the_only_one_is_told():
    assert any("one of several" in n for n in mean_lora([adapter(i) for i in range(4)], method="karcher").notes)

def test_copies_are_one_group():
    result = cluster_merge([gauged(adapter(1), i) for i in range(6)])
    assert not result.labels.any()
    close(result.means[0], adapter(1), 1e-4)

@pytest.mark.parametrize("clustering", ["spectral", "agglomerative", "kernel_kmeans", "hdbscan", "grassmann_kmeans"])
def test_adapters_without_an_update_are_a_group_of_their_own(clustering):
    members = [gauged(adapter(i), j) for i in (1, 2) for j in range(3)]
    zero = LoRA({m: replace(u, up=torch.zeros_like(u.up)) for m, u in members[0].items()}, name="untrained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = cluster_merge([*members[:3], zero, *members[3:], LoRA({}, name="empty")], 2, clustering=clustering)
    assert result.labels.tolist() == [0, 0, 0, 1, 2, 2, 2, 1] and "zero updates" in repr(result)
    assert all(not u.norm() for u in result.means[1].values())
    assert cluster_merge([zero, zero]).labels.tolist() == [0, 0]

def test_modules_that_some_lack_are_told():
    with pytest.warns(UserWarning, match="1 of 2 modules are missing in some adapters .m1 in 1 of 3"): cluster_merge([adapter(1), adapter(2), LoRA({"m0": adapter(3)["m0"]})], 1)

def test_too_many_for_all_pairs():
    with pytest.raises(ValueError, match="5001 adapters: .* group them with `cluster`"): cluster_merge([adapter(1)] * 5001)

# ---- one word for one thing: old spellings

def test_results_have_their_names_with_and_without_an_underscore():
    result = cluster_merge(FAMILY, 2)
    for name in ("labels", "layer_labels", "means", "medoids", "merged", "similarity", "clusters", "health"): assert getattr(result, f"{name}_") is getattr(result, name)
    assert result.agreement_.equals(result.agreement) and result.layer_agreement_.equals(result.layer_agreement)

def test_old_keywords_are_taken_and_warned_of():
    for call, old, new in ((lambda: similarity(FAMILY, weighted=False).sqrt_weighted, "weighted", "sqrt_weighted"), (lambda: cluster(FAMILY, 2, method="agglomerative"), "method", "clustering"),
                           (lambda: cluster_merge(FAMILY, 2, weighted=False), "weighted", "sqrt_weighted"), (lambda: SubspaceIndex(weighted=False), "weighted", "sqrt_weighted")):
        with pytest.warns(FutureWarning, match=f"^{old}= of .* is now {new}=") as seen: call()
        assert seen[0].filename == __file__

# ---- similarities are computed once

def test_similarities_are_computed_once_and_handed_on(monkeypatch):
    module, asked = sys.modules["loragrass.cluster_merge"], []
    monkeypatch.setattr(module, "similarity", lambda loras, *args, **kwargs: asked.append(0) or similarity(loras, *args, **kwargs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side, calls in (("left", 1), ("both", 1), ("right", 2)): # of the right side alone, the left one is compared as well
            for call in (cluster, cluster_merge):
                asked.clear()
                call(FAMILY, 2, side=side)
                assert len(asked) == calls
    both = similarity(FAMILY, side="both")
    for side in ("left", "right"): torch.testing.assert_close(both.sides[side], similarity(FAMILY, side=side).joint)

def test_an_update_is_decomposed_once_for_both_sides(monkeypatch):
    count, svd = [], LoRAUpdate.svd
    monkeypatch.setattr(LoRAUpdate, "svd", lambda self, *args: count.append(0) or svd(self, *args))
    similarity(FAMILY, side="both")
    assert len(count) == sum(len(a) for a in FAMILY)

def test_warnings_point_at_the_line_that_asked():
    shared = [family(i, i % 2, shared=i // 6) for i in range(12)]
    for call in (lambda: cluster(shared, 2, side="right"), lambda: cluster_merge(shared, 2, side="right")):
        with pytest.warns(SharedInitWarning) as seen: call()
        assert {w.filename for w in seen if w.category in (SharedInitWarning, UnrelatedWarning)} == {__file__}
