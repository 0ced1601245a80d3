"What 02c_levels and the groups of 04 promise beside their lessons"
import importlib
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import loragrass as lg
from loragrass.cluster_merge import SharedInitWarning, UnrelatedWarning, cluster, cluster_merge
from loragrass.comparing import similarity
from loragrass.levels import NU, Experience, Level, Sums, _fit_all, _log_partitions, _posterior, cluster_levels, experiences, learn, witnesses
from loragrass.lora_io import LoRA
from loragrass.zoo import load_zoo

ZOO = load_zoo()
TASK = ZOO.labels.task.to_numpy()
SIM = similarity(ZOO.loras)
W = [M.numpy() for M in SIM.witnesses]

def part(rows): return [M[np.ix_(rows, rows)] for M in W]
def pick(*sizes): # so many adapters of task 0, 1, …
    return [4 * t + s for t, n in enumerate(sizes) for s in range(n)]
def negative(lora, name="minus"): return LoRA({m: replace(u, scale=-u.scale) for m, u in lora.items()}, name=name)
def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return {w.category for w in caught}

@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (2, 2), (3, 1), (2,), (3,), (4,), (1,), (4, 4, 1, 1), (1,) * 8, (4,) * 8])
def test_as_many_groups_as_tasks(sizes):
    rows = pick(*sizes)
    found = cluster([ZOO.loras[i] for i in rows])
    assert found.labels.tolist() == pd.factorize(TASK[rows])[0].tolist() and 0 <= found.confidence <= 1
    assert len(found.evidence) == len(rows) and found.other != found.labels.max() + 1

def test_the_order_of_the_adapters_is_nothing():
    order = np.random.default_rng(0).permutation(32)
    assert adjusted_rand_score(cluster_levels(*part(order)).labels, cluster_levels(*W).labels[order]) == 1

def test_witnesses_are_those_of_dense_updates():
    rows = [0, 1, 5]
    flat = torch.stack([torch.cat([ZOO.loras[i][m].dense().double().flatten() for m in ZOO.loras[0]]) for i in rows])
    flat = flat / flat.norm(dim=1, keepdim=True)
    torch.testing.assert_close(torch.as_tensor(part(rows)[2]), flat @ flat.T, atol=1e-6, rtol=1e-5)
    left, right = (similarity([ZOO.loras[i] for i in rows], side=side).joint for side in ("left", "right"))
    torch.testing.assert_close(torch.as_tensor(part(rows)[0]), left)
    torch.testing.assert_close(torch.as_tensor(part(rows)[1]), right)

def test_modules_have_one_weight_in_the_alignment():
    a, b = (ZOO.loras[i] for i in (0, 1))
    cosine, most = 0.0, 0.0
    for m in a:
        u, v = (x[m].dense().double().flatten() for x in (a, b))
        left, right = (float(similarity([a, b], side=side, modules={m: 1.0}).joint[0, 1]) for side in ("left", "right"))
        cosine, most = cosine + float(u @ v / u.norm() / v.norm()), most + ((left + 0.1) * (right + 0.1)) ** 0.5
    loud = [LoRA({m: replace(u, scale=u.scale * (100 if m == next(iter(x)) else 1)) for m, u in x.items()}) for x in (a, b)]
    for pair in ([a, b], loud): assert float(similarity(pair).witnesses[3][0, 1]) == pytest.approx(cosine / most, abs=1e-5)

def test_modules_that_are_missing_are_not_compared():
    names = list(ZOO.loras[0])
    some = [LoRA({m: u for k, (m, u) in enumerate(lora.items()) if k == 0 or (i + k) % 3}, name=lora.name) for i, lora in enumerate(ZOO.loras[:16])]
    sim = similarity(some)
    a, b = some[0], some[1]
    both = [m for m in names if m in a and m in b]
    u, v = (torch.cat([x[m].dense().double().flatten() for m in both]) for x in (a, b))
    assert sim.witnesses[2][0, 1] == pytest.approx(float(u @ v / u.norm() / v.norm()), abs=1e-6)
    assert adjusted_rand_score(TASK[:16], cluster_levels(*sim.witnesses).labels) == 1

def test_in_tiles_as_at_once(monkeypatch):
    monkeypatch.setattr(importlib.import_module("loragrass.comparing"), "_TILE", 1000)
    for M, tiled in zip(SIM.witnesses, similarity(ZOO.loras).witnesses): torch.testing.assert_close(tiled, M)

def test_module_matrices_are_kept_or_computed_again(monkeypatch):
    module = importlib.import_module("loragrass.comparing")
    monkeypatch.setattr(module, "KEPT", 0)
    lean = similarity(ZOO.loras)
    assert not lean.modules._kept and SIM.modules._kept and list(lean.modules) == list(SIM.modules)
    for m, K in SIM.modules.items(): torch.testing.assert_close(lean.modules[m], K)
    with pytest.raises(KeyError): lean.modules["no such module"]

def test_the_limit_counts_modules(monkeypatch):
    module = importlib.import_module("loragrass.cluster_merge")
    monkeypatch.setattr(module, "LARGE", 9) # 64 · 81 pairs
    few, many = [ZOO.loras[0]] * 9, [LoRA({f"m{i}": ZOO.loras[0]["inp"] for i in range(65)})] * 9
    assert not module.too_many(few) and module.too_many(many) and module.too_many([ZOO.loras[0]] * 10)

def test_copies_opposites_and_zeros():
    a, b, c = (ZOO.loras[i] for i in (0, 4, 8))
    zero = LoRA({m: replace(u, up=torch.zeros_like(u.up)) for m, u in a.items()}, name="zero")
    found = cluster([a, LoRA(dict(a)), b, negative(a), zero, c, zero])
    assert found.labels.tolist() == [0, 0, 1, 2, 3, 4, 3]
    assert found.copies == [[0, 1]] and found.opposites == [(0, 3)]
    assert cluster([a] * 5).labels.tolist() == [0] * 5 and cluster([a] * 5).copies == [[0, 1, 2, 3, 4]]
    assert cluster([a, negative(a)]).labels.tolist() == [0, 1] and cluster([zero, zero]).labels.tolist() == [0, 0]
    assert cluster([zero, a]).labels.tolist() == [0, 1]

def test_a_negative_leaves_its_group_alone():
    rows = [ZOO.loras[i] for i in pick(4, 4)]
    assert cluster([*rows, negative(ZOO.loras[0])]).labels.tolist() == [0] * 4 + [1] * 4 + [2]

def test_max_clusters_is_kept(): assert cluster(ZOO.loras, max_clusters=3).labels.max() == 2

def test_levels_of_a_sample_find_the_same():
    assert adjusted_rand_score(TASK, cluster_levels(*W, sample=20).labels) == 1

def test_evidence_of_no_rows_is_one():
    level = Level(np.zeros(3), np.eye(3))
    e, after = _posterior(Sums(np.zeros(1), np.zeros((1, 3)), np.zeros((1, 3, 3))), level)
    assert e[0] == pytest.approx(0) and after.mean[0].tolist() == [0, 0, 0]
    assert np.allclose(after.cov[0], np.eye(3)) and NU > 4

def test_partitions(): assert np.exp(_log_partitions(5)).round().tolist() == [1, 15, 25, 10, 1]

def test_what_is_learned_is_what_was_seen():
    x = witnesses(W[0], W[1], W[3])
    i, j = np.triu_indices(32, 1)
    same = TASK[i] == TASK[j]
    one, = learn([(x, same)])
    assert np.allclose(one.same.mean, x[same].mean(0)) and np.allclose(one.apart.cov, np.cov(x[~same].T))
    assert np.allclose(one.same.mean, experiences()["tasks"].same.mean, atol=2e-3)
    cuts = _fit_all(x, np.zeros(len(x), bool), 32, [one])
    assert 32 - cuts.evidence.argmax() == 8 and isinstance(one, Experience)

@pytest.mark.parametrize("bad", [W[:2] + [W[2][:3]], [*W[:3], W[3][:3]], [np.zeros((0, 0))] * 3, [M * np.nan for M in W], [np.triu(M) for M in W]])
def test_bad_matrices_are_told(bad):
    with pytest.raises(ValueError, match="expected"): cluster_levels(*bad)

def test_a_stranger_in_a_group_is_told():
    three = [ZOO.loras[i] for i in (0, 1, 4)]
    with pytest.warns(UnrelatedWarning, match=f"in group 0, .*{ZOO.loras[4].name}"): result = cluster_merge(three, 1)
    assert any("the pairs say 2" in note for note in result.notes())
    for number in (2, "auto"): assert UnrelatedWarning not in told(lambda: cluster_merge(three, number)) # noqa: B023

def test_the_evidence_names_pairs():
    result = cluster_merge([ZOO.loras[i] for i in pick(3, 2)])
    table = result.evidence()
    assert {n for pair in table.closest for n in pair} <= {lora.name for lora in ZOO.loras}
    assert (table.weakest_odds > 0).all() and (table.closest_odds < 0).all()
    i, j = (result.similarity_.names.index(n) for n in table.weakest[0])
    assert result.summary().weakest[0] == pytest.approx(float(result.similarity_.witnesses[2][i, j]))

def test_copies_are_noted():
    notes = cluster_merge([ZOO.loras[0], LoRA(dict(ZOO.loras[0]), name="again"), negative(ZOO.loras[0])]).notes()
    assert any("nearly the same" in n and "again" in n for n in notes) and any("minus" in n and "opposite" in n for n in notes)

def test_noise_is_no_shared_start():
    g = torch.Generator().manual_seed(0)
    def noise(lora): return LoRA({m: replace(u, down=torch.randn(u.down.shape, generator=g)) for m, u in lora.items()}, name=lora.name)
    own = [noise(lora) for lora in ZOO.loras]
    for side in ("right", "both"): assert SharedInitWarning not in told(lambda: cluster(own, 8, side=side)) # noqa: B023

def test_another_kernel_takes_the_number():
    for how in ({"clustering": "agglomerative"}, {"clustering": "grassmann_kmeans"}, {"side": "both"}):
        assert len(set(cluster(ZOO.loras, **how).labels)) == 8

def test_a_doubt_is_told():
    found = cluster_levels(*W)
    assert not found.doubt
    doubtful = replace(found, confidence=0.2)
    assert "in doubt" in doubtful.doubt and f"{found.other} is" in doubtful.doubt
    result = replace(lg.cluster_merge(ZOO.loras[:8]), clusters=replace(lg.cluster_merge(ZOO.loras[:8]).clusters, confidence=0.2))
    assert any("in doubt" in caution for caution in result.cautions())
