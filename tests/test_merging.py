"Laws of every rule at once, and each rule against its published definition on dense toys"
import inspect
from dataclasses import replace

import pytest
import torch
from loragrass.combining import _batches, _Job, combine
from loragrass.cores import _by_gram, stacked, weighted_sums
from loragrass.lora_io import LoRA, LoRAUpdate
from loragrass.merging import RULES, mean_lora, merge

pytestmark = pytest.mark.filterwarnings("ignore::loragrass.karcher.NonUniqueMeanWarning") # random subspaces have many Karcher means
M, N_IN, R = 14, 11, 2
DENSITY = {m: {"density": 1.0} for m, rule in RULES.items() if "density" in inspect.signature(rule.combine).parameters}
RANDOM, FIRST = {"dare", "dare_ties", "della", "della_linear"}, {"nearswap", "arcee_fusion"} # rules that draw; that keep near the first adapter
SPECTRA = {"tsv", "iso", "tsv_iso", "iso_cts"}

def update(seed, r=R, scale=0.5):
    g = torch.Generator().manual_seed(seed)
    return LoRAUpdate(torch.randn(M, r, generator=g, dtype=torch.float64), torch.randn(r, N_IN, generator=g, dtype=torch.float64), scale, (M, N_IN))

def adapter(seed, r=R, **kwargs): return LoRA({"m": update(seed, r, **kwargs)}, name=f"a{seed}")
def gauged(lora, seed=0):
    G = torch.randn(lora["m"].up.shape[1], lora["m"].up.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LoRA({"m": replace(lora["m"], up=lora["m"].up @ G, down=torch.linalg.solve(G, lora["m"].down))}, name=lora.name)
def scaled(lora, c): return LoRA({"m": replace(lora["m"], scale=c * lora["m"].scale)}, name=lora.name)
def dense(lora): return lora["m"].dense().double()
def close(x, y, tol=2e-6): # results are float32
    x, y = (t if isinstance(t, torch.Tensor) else dense(t) for t in (x, y))
    assert float((x - y).norm()) <= tol * max(1.0, float(y.norm()))
def run(loras, w, method, **kwargs): return merge(loras, w, method, **{**DENSITY.get(method, {}), **kwargs}).lora

abc = [adapter(1), adapter(2), adapter(3)]

def some(method, weights): # as many adapters as the rule takes
    n = RULES[method].most or 3
    return abc[:n], weights[:n]

@pytest.mark.parametrize("method", RULES)
class TestEveryRule:
    def test_weight_zero_is_absent(self, method): close(run(abc, [0, 0.7, 0], method), run(abc[1:2], [0.7], method))
    def test_weights_are_homogeneous(self, method): close(run(*some(method, [2, 1, 4]), method), 2 * dense(run(*some(method, [1, 0.5, 2]), method)))
    def test_order(self, method):
        if method in RANDOM | FIRST: pytest.skip("draws in order, or keeps near the first")
        loras, w = some(method, [1, 2, 3])
        close(run(loras, w, method), run(loras[::-1], w[::-1], method), 1e-5)
    def test_gauge(self, method):
        loras, w = some(method, [1, 2, 3])
        other = run([gauged(a, i) for i, a in enumerate(loras)], w, method)
        if RULES[method].raw: assert float((dense(other) - dense(run(loras, w, method))).norm()) > 1e-2
        else: close(other, run(loras, w, method), 1e-5)
    def test_rescale(self, method):
        loras, w = some(method, [1, 2, 1])
        mean = sum(c * float(a["m"].norm()) for c, a in zip(w, loras)) / sum(w)
        assert float(dense(run(loras, w, method, rescale="norm")).norm()) == pytest.approx(mean, rel=1e-5)
    def test_rank(self, method):
        loras, w = some(method, [1, 1, 1])
        if method == "cat":
            with pytest.raises(ValueError, match="take 'svd'"): run(loras, w, method, rank=1)
        else: assert run(loras, w, method, rank=1)["m"].up.shape[1] <= 1
        assert run(loras, w, method)["m"].up.shape[1] <= (6 if method == "cat" else 2)
    def test_missing_and_zero(self, method):
        zero, other = LoRA({"m": replace(update(5), up=torch.zeros(M, R))}, name="zero"), LoRA({"x": update(4)}, name="other")
        for loras in ([abc[0], zero], [other, abc[1]]) if RULES[method].most else ([abc[0], zero, other, abc[1]],):
            merged = merge(loras, [1] * len(loras), method)
            assert all(t.isfinite().all() for u in merged.lora.values() for t in (u.up, u.down)) and (zero in loras or any("missing" in n for n in merged.notes))
        assert not dense(merge([zero, zero], [1, 1], method).lora).any()
    def test_what_cancels_is_no_noise(self, method):
        opposite = LoRA({m: replace(u, up=-u.up) for m, u in abc[0].items()}, name="opposite")
        norm = float(merge([abc[0], opposite], [1, 1], method).lora["m"].norm()) / float(abc[0]["m"].norm())
        assert method in {"polar", "procrustes", "lego"} | RANDOM | FIRST or norm < 1e-6 # those turn factors, cluster them, draw, or keep the first
    def test_same_seed_same_bytes(self, method): assert torch.equal(*(merge(*some(method, [1, 1, 1]), method).lora["m"].up for _ in range(2)))
    def test_rel_error_is_of_the_exact_sum(self, method):
        loras, w = some(method, [1, 2, 3])
        exact, merged = sum(c * dense(a) for c, a in zip(w, loras)), merge(loras, w, method)
        assert merged.rel_error == pytest.approx(float((dense(merged.lora) - exact).norm() / exact.norm()), rel=1e-4, abs=1e-6)
        assert 0 <= merged.energy <= 1 + 1e-9

@pytest.mark.parametrize("method", sorted(set(RULES) - {"iso", "tsv_iso", "iso_cts", "pcb"})) # PCB drops from one as from many
def test_one_adapter_is_itself(method): close(run(abc[:1], [1], method), abc[0], 1e-5)

@pytest.mark.parametrize("method", sorted(set(RULES) - SPECTRA - {"pico", "pcb"})) # TSV and Pico take what is shared for interference
def test_copies_add_their_weights(method):
    w = [1, 0.5, 2][:RULES[method].most]
    close(run([abc[0]] * len(w), w, method), sum(w) * dense(abc[0]), 1e-5)

@pytest.mark.parametrize("method", ["iso", "tsv_iso", "iso_cts"])
def test_an_isotropic_adapter_stays(method):
    U, V = (torch.linalg.qr(torch.randn(n, R, dtype=torch.float64, generator=torch.Generator().manual_seed(n))).Q for n in (M, N_IN))
    a = LoRA({"m": LoRAUpdate(3 * U, V.mT, 1.0, (M, N_IN))})
    close(run([a], [1], method), a)
    if method == "iso": close(run([a, a], [1, 2], method), 3 * dense(a))

LINEAR = ["svd", "cat", "karcher", "chordal", "chordal_s", "hosvd", "tucker"] # the core is the least-squares one
@pytest.mark.parametrize("method", LINEAR)
def test_uncut_is_the_dense_sum(method): close(run(abc, [0.7, 0.4, 1.5], method, rank="sum"), sum(w * dense(a) for w, a in zip((0.7, 0.4, 1.5), abc)))

@pytest.mark.parametrize("method", ["svd", "cat", "ties", "dare", "tsv", "iso", "robust"])
def test_negative_weights_subtract(method):
    a = scaled(abc[0], -1)
    if RULES[method].raw: close(run(abc, [1, -1, 2], method), -dense(run(abc, [-1, 1, -2], method)))
    else: close(run([a, *abc[1:]], [-1, 2, 1], method, rank="sum"), run(abc, [1, 2, 1], method, rank="sum"))

def best(X, r): U, S, Vh = torch.linalg.svd(X); return U[:, :r] * S[:r] @ Vh[:r]
def test_svd_is_the_best_of_its_rank(): close(run(abc, [1, -2, 3], "svd", rank=3), best(dense(abc[0]) - 2 * dense(abc[1]) + 3 * dense(abc[2]), 3))

# --- published definitions, densely

def trimmed(X, density):
    k = int(density * X[0].numel())
    return torch.stack([x * (x.abs() >= x.abs().flatten().sort().values[-k]) for x in X])
def elected(X, w): # Yadav et al. 2023, entry by entry
    out = torch.zeros_like(X[0])
    for i in range(X.shape[1]):
        for j in range(X.shape[2]):
            x = [(a * float(X[n, i, j]), abs(a)) for n, a in enumerate(w)]
            total = sum(v for v, _ in x)
            same = [(v, a) for v, a in x if v * total > 0]
            if same: out[i, j] = sum(abs(a) for a in w) * sum(v for v, _ in same) / sum(a for _, a in same)
    return out

W, w = torch.stack([dense(a) for a in abc]), [1.0, 0.5, 2.0]

def test_ties_is_knots():
    U, S, Vh = torch.linalg.svd(torch.cat(list(W), 1), full_matrices=False) # Stoica et al. 2025: SVD of the updates side by side
    U, sV = U[:, :6], S[:6, None] * Vh[:6]
    close(merge(abc, w, "ties", rank="sum", density=0.3).lora, U @ elected(trimmed(torch.stack(sV.split(N_IN, 1)), 0.3), w))

def test_ties_is_core_ties():
    def balanced(X): U, S, Vh = torch.linalg.svd(X); return U[:, :R] * S[:R].sqrt(), S[:R, None].sqrt() * Vh[:R]
    B, A = zip(*map(balanced, W))
    U, V = torch.linalg.svd(torch.cat(B, 1), full_matrices=False)[0], torch.linalg.svd(torch.cat(A), full_matrices=False)[2].mT # Panariello et al. 2025, eq. 5
    close(merge(abc, w, "ties", rank="sum", density=0.3, coordinates="core").lora, U @ elected(trimmed(U.mT @ W @ V, 0.3), w) @ V.mT)

def test_ties_of_equal_signs_keeping_all_is_the_sum():
    close(run([scaled(abc[0], c) for c in (1, 2, 3)], w, "ties", rank="sum"), 8 * dense(abc[0]))

@pytest.mark.parametrize("coordinates", ["left", "core"])
def test_dare_is_unbiased_with_its_variance(coordinates):
    n, p = 200, 0.4
    X = torch.stack([dense(merge(abc, w, "dare", rank="sum", density=p, coordinates=coordinates, random_state=i).lora) for i in range(n)])
    off = (X.mean(0) - torch.einsum("i,imn->mn", torch.tensor(w).double(), W)).norm()
    sd = ((1 - p) / p * sum(a * a * x.square().sum() for a, x in zip(w, W))).sqrt()
    assert off < 1.5 * sd / n ** 0.5 and float((X - X.mean(0)).square().sum((1, 2)).mean().sqrt()) == pytest.approx(float(sd), rel=0.1)

def test_dare_ties_keeping_all_is_election():
    close(run(abc, w, "dare_ties", rank="sum", mean=True), run(abc, w, "ties", rank="sum"))
    X = torch.tensor([[[1., -2]], [[3., 1]], [[-1., -1]]]).double()
    assert entries("dare_ties")(X, torch.ones(3).double(), density=1.0).tolist() == [[4, -3]] # mergekit: what agrees is summed

def polar(X): U, _, Vh = torch.linalg.svd(X, full_matrices=False); return U @ Vh
@pytest.mark.parametrize("rank, k", [(6, 2), (3, 1)])
def test_tsv_is_tsv_m(rank, k):
    svds = [torch.linalg.svd(x) for x in W]
    U, S, V = (torch.cat([(d[:, :k], a * s[:k], v[:k].mT)[j] for a, (d, s, v) in zip(w, svds)], -1) for j in range(3))
    close(merge(abc, w, "tsv", rank=rank).lora, polar(U) * S @ polar(V).mT)

def flat(X, r, mean): U, _, Vh = torch.linalg.svd(X); return mean * U[:, :r] @ Vh[:r]
def test_iso_is_iso_c():
    total = torch.einsum("i,imn->mn", torch.tensor(w).double(), W)
    S = torch.linalg.svdvals(total)
    close(merge(abc, w, "iso", rank="sum").lora, flat(total, 6, S[:6].mean())) # Core Space: over Σr
    close(merge(abc, w, "iso", rank=2).lora, flat(total, 2, S[:2].mean()))
    close(merge(abc, w, "iso", rank="sum", count=min(M, N_IN)).lora, flat(total, 6, S.mean())) # Marczak et al. 2025, on dense matrices
    both = merge(abc, w, "tsv", rank=6).lora
    close(merge(abc, w, "tsv_iso", rank=6).lora, flat(dense(both), 6, torch.linalg.svdvals(dense(both))[:6].mean()))

def hooi(X, r):
    U = torch.linalg.svd(torch.cat(list(X), 1))[0][:, :r]
    for _ in range(500):
        V = torch.linalg.svd(torch.cat([U.mT @ x for x in X]))[2][:r].mT
        U = torch.linalg.svd(torch.cat([x @ V for x in X], 1))[0][:, :r]
    return U, V
def test_tucker_is_hooi():
    X = torch.tensor(w).double().sqrt()[:, None, None] * W
    U, V = hooi(X, 2)
    close(merge(abc, w, "tucker").lora, U @ U.mT @ torch.einsum("i,imn->mn", torch.tensor(w).double(), W) @ V @ V.mT, 1e-3)

def test_ctm_trims_in_tucker_bases():
    norms = W.flatten(1).norm(dim=1)
    U, V = hooi(W * (0.5 + 0.5 * norms.mean() / norms)[:, None, None], 3)
    close(merge(abc, w, "ctm", rank=3, beta=0.5, density=0.5).lora, U @ elected(trimmed(U.mT @ W @ V, 0.5), w) @ V.mT, 1e-3)

def test_sphere_of_two_is_the_midpoint():
    a, b = (x / x.norm() for x in W[:2])
    close(merge(abc[:2], [1, 1], "sphere", rank="sum").lora, (W[0].norm() + W[1].norm()) * (a + b) / (a + b).norm())
def test_sphere_is_stationary():
    X = dense(merge(abc, w, "sphere", rank="sum").lora)
    X, units = X / X.norm(), [x / x.norm() for x in W]
    logs = [(c := (X * u).sum()).acos() / (1 - c * c).sqrt() * (u - c * X) for u in units]
    assert float(sum(a * v for a, v in zip(w, logs)).norm()) < 1e-5

def test_median_is_stationary_and_stays_on_a_majority():
    X = dense(merge(abc, [1, 0.8, 1.2], "median", rank="sum").lora) / 3
    assert float(sum(a * (x - X) / (x - X).norm() for a, x in zip([1, 0.8, 1.2], W)).norm()) < 1e-4
    close(merge([abc[0], abc[0], abc[1]], [1, 1, 1], "median", rank="sum").lora, 3 * dense(abc[0]), 1e-5)

def friends(seeds, apart): return [LoRA({"m": replace(u := abc[0]["m"], up=u.up + apart * update(i).up, down=u.down + apart * update(i + 50).down)}) for i in seeds]

def test_procrustes_is_the_mean_after_turning():
    def balanced(X): U, S, Vh = torch.linalg.svd(X); return torch.cat([U[:, :R] * S[:R].sqrt(), Vh[:R].mT * S[:R].sqrt()])
    near = friends((11, 12, 13), 0.5)
    Z = [balanced(dense(a)) for a in near]
    mean = Z[1]
    for _ in range(300): mean = sum(a / 3.5 * z @ polar(z.mT @ mean) for a, z in zip(w, Z))
    close(merge(near, w, "procrustes").lora, 3.5 * mean[:M] @ mean[M:].mT, 1e-5)

def raw(a): h = a["m"].scale ** 0.5; return h * a["m"].up, h * a["m"].down
B, A = (torch.stack(f) for f in zip(*map(raw, abc)))

def test_pico():
    U, S, _ = torch.linalg.svd(torch.cat(list(B), 1), full_matrices=False)
    alpha = 1 / (1 + 2 * S ** 2 / (S ** 2).sum())
    calibrated = sum(a * (x + U * (alpha - 1) @ U.mT @ x) for a, x in zip(w, W))
    close(merge(abc, w, "pico", rank="sum").lora, calibrated * sum(a * x.norm() for a, x in zip(w, W)) / calibrated.norm())

def test_robustmerge():
    a, b = trimmed(A, 0.6), trimmed(B, 0.6)
    s = A.abs().sum(-1) / a.abs().sum(-1)
    close(merge(abc, w, "robust", density=0.6).lora, sum(c * (b[i] * (s[i] / s.sum(0))) for i, c in enumerate(w)) @ a.sum(0))
    with pytest.raises(ValueError, match="equal ranks"): merge([adapter(1), adapter(2, 1)], [1, 1], "robust")

def test_lego_puts_a_centroid_in_the_place_of_a_cluster():
    near = [LoRA({"m": replace(a["m"], up=a["m"].up + 1e-3 * a["m"].up.roll(1, 0))}) for a in abc[:1]] # the units of the first adapter, twice
    merged = dense(merge([abc[0], near[0]], [1, 1], "lego").lora)
    expected = 0
    for j in range(R):
        units = [torch.cat([f[0][:, j], f[1][j]]) for f in map(raw, (abc[0], near[0]))]
        c = sum(units) / 2
        c = c * sum(u.abs().max() for u in units) / 2 / c.abs().max()
        expected = expected + 2 * torch.outer(c[:M], c[M:])
    close(merged, expected)
    one = dense(merge([abc[0]], [1], "lego", rank=1).lora) # both units in one: √(2/1) times the centroid's
    units = [torch.cat([raw(abc[0])[0][:, j], raw(abc[0])[1][j]]) for j in range(R)]
    c = sum(units) / 2
    c = c * sum(u.abs().max() for u in units) / 2 / c.abs().max()
    close(one, 2 ** 0.5 * torch.outer(c[:M], c[M:]))

# --- rules of two, towards the base, and in directions

def unit(x): return x / x.norm()
def test_slerp_is_on_the_great_circle():
    a, b, t = W[0], W[1], 3 / 4
    theta = (unit(a) * unit(b)).sum().acos()
    close(merge(abc[:2], [0.5, 1.5], "slerp", rank="sum").lora, 2 * (((1 - t) * theta).sin() * a + (t * theta).sin() * b) / theta.sin())
    close(merge([abc[0], scaled(abc[0], 3)], [1, 1], "slerp").lora, 4 * dense(abc[0])) # on one line there is no angle
    with pytest.raises(ValueError, match="m: method 'slerp' takes 2 adapters, and 3 take part; for more take 'sphere'"): merge(abc, 1, "slerp")

def test_multislerp_has_no_tangent_step(): # as mergekit writes it
    U, c, norms = torch.stack([unit(x) for x in W]), torch.tensor(w).double() / sum(w), W.flatten(1).norm(dim=1)
    mean = unit(torch.einsum("i,imn->mn", c, U))
    step = torch.einsum("i,imn->mn", c, U - (U * mean).sum((1, 2), keepdim=True) * mean)
    assert float(step.norm()) < 1e-12
    close(merge(abc, w, "multislerp", rank="sum").lora, sum(w) * (c @ norms) * mean)

def test_model_stock():
    near = friends((11, 12, 13), 0.5)
    X = torch.stack([dense(a) for a in near])
    cos = sum(float((unit(X[i]) * unit(X[j])).sum()) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    close(merge(near, w, "model_stock", rank="sum").lora, 3 * cos / (1 + 2 * cos) * torch.einsum("i,imn->mn", torch.tensor(w).double(), X))
    assert cos > 0.3

def test_cart():
    mean = W.mean(0)
    close(merge(abc, [1 / 3] * 3, "cart", rank="sum", share=0.34, strength=0.7).lora, mean + 0.7 * sum(best(x - mean, 2) for x in W))

def test_iso_cts():
    v, r, k, n = torch.tensor(w).double()[:, None, None] * W, 6, 3, 1 # of six directions half are common, one is each task's own
    U, S, Vh = torch.linalg.svd(v.sum(0))
    P, s, Qh = torch.linalg.svd(v - U[:, :k] @ U[:, :k].mT @ v)
    left, right = torch.cat([U[:, :k], *P[..., :n]], 1), torch.cat([Vh[:k].mT, *Qh[:, :n].mT], 1)
    close(merge(abc, w, "iso_cts", rank="sum", common=0.5).lora, (S[:k].sum() + s[:, :n].sum()) / r * polar(left) @ polar(right).mT)
    close(merge(abc, w, "iso_cts", rank=2, common=1.0).lora, merge(abc, w, "iso", rank=2).lora)

# --- rules of entries, each on dense entries as published, and in left coordinates

def entries(name): return RULES[name].combine.entries
def lefts():
    U, S, Vh = torch.linalg.svd(torch.cat(list(W), 1), full_matrices=False)
    return U[:, :6], torch.stack((S[:6, None] * Vh[:6]).split(N_IN, 1))
def one_third(): return torch.full((3,), 1 / 3, dtype=torch.float64)

@pytest.mark.parametrize("name", sorted(n for n, r in RULES.items() if hasattr(r.combine, "entries") and n not in RANDOM))
def test_a_rule_of_entries_is_itself_in_left_coordinates(name):
    loras, v = some(name, w)
    U, S, Vh = torch.linalg.svd(torch.cat(list(W[:len(v)]), 1), full_matrices=False)
    r = 2 * len(v)
    X = torch.stack((S[:r, None] * Vh[:r]).split(N_IN, 1))
    close(merge(loras, v, name, rank="sum").lora, U[:, :r] @ entries(name)(X, torch.tensor(v).double()))

def test_frequency_counts_heads():
    X = torch.tensor([[[-1., 1, 2]], [[-1., 1, 1]], [[5., -5, -9]]]).double()
    assert entries("ties")(X, one_third(), density=1.0).tolist() == [[5, -5, -9]]
    assert entries("ties")(X, one_third(), density=1.0, signs="frequency").tolist() == [[-1, 1, 1.5]]

def test_magnitude_prune_and_breadcrumbs():
    X = torch.tensor([[[1., -2, 3, -4, 5, -6, 7, -8, 9, 40]], [[10., 9, 8, 7, 6, 5, 4, 3, 2, 1]]]).double()
    half = torch.full((2,), 0.5).double()
    assert (2 * entries("magnitude_prune")(X, half, density=0.3)).tolist() == [[10, 9, 8, 0, 0, 0, 0, -8, 9, 40]]
    assert (2 * entries("breadcrumbs")(X, half, density=0.3, gamma=0.1)).tolist() == [[0, 9, 8, 7, 0, 0, 7, -8, 9, 0]]
    assert (2 * entries("breadcrumbs_ties")(X, half, density=0.3, gamma=0.1)).tolist() == [[0, 9, 8, 7, 0, 0, 7, -8, 9, 0]]
    assert entries("magnitude_prune")(X, half, density=torch.tensor([0.1, 0.2])).tolist() == [[5, 4.5, 0, 0, 0, 0, 0, 0, 0, 20]]

def test_della_keeps_the_large_more_often():
    X = torch.tensor([[[1., -2, 3, -4, 50], [5., 4, 3, 2, 1]]]).double()
    rng, n = torch.Generator().manual_seed(0), 4000
    kept = sum((entries("della_linear")(X, torch.ones(1).double(), 0.5, 0.2, rng) != 0).double() for _ in range(n)) / n
    assert kept.flatten().tolist() == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.7, 0.6, 0.5, 0.4, 0.3], abs=0.03)
    mean = sum(entries("della_linear")(X, torch.ones(1).double(), 0.5, 0.2, rng) for _ in range(n)) / n
    torch.testing.assert_close(mean, X[0], rtol=0.1, atol=0)
    with pytest.raises(ValueError, match="density 0.9 and epsilon 0.2"): merge(abc, 1, "della", density=0.9, epsilon=0.2)

def test_sce():
    X = lefts()[1]
    spread = ((X - X.mean(0)) ** 2).mean(0)
    chosen = spread >= spread.flatten().sort().values[-20]
    x = X * chosen
    c = (x ** 2).mean((1, 2)) / (x ** 2).mean((1, 2)).sum()
    agree = x.sign() == torch.where(x.sum(0) >= 0, 1, -1)
    weights = c[:, None, None] * agree
    expected = (x * weights).sum(0) / weights.sum(0).clamp_min(1e-6)
    torch.testing.assert_close(entries("sce")(X, one_third(), density=20 / X[0].numel() + 1e-9), expected)

def test_pcb():
    X = lefts()[1]
    x, n, d = X.flatten(1), 3, X[0].numel()
    def scale(v): low, high = v.min(1, keepdim=True).values, v.max(1, keepdim=True).values; return (v - low) / (high - low)
    balance = torch.exp(n * scale(x.abs().clamp(max=x.abs().sort(1).values[:, d - 2, None])) ** 2) * torch.tanh(x * x.sum(0)) # of 66 entries the largest is clamped
    floor = balance.sort(1).values[:, int(0.8 * d), None]
    s = scale(balance.clamp(min=floor))
    expected = (x.sign() * x.abs().clamp(max=x.abs().sort(1).values[:, d - 2, None]) * s).sum(0) / s.sum(0).clamp_min(1e-12)
    torch.testing.assert_close(entries("pcb")(X, one_third(), density=0.2), expected.view_as(X[0]))

def test_nearswap_goes_no_further_than_t():
    a, b = W[:2]
    expected = torch.stack([x + min(max(y - x, -0.3), 0.3) for x, y in zip(a.flatten(), b.flatten())]).view_as(a)
    torch.testing.assert_close(entries("nearswap")(W[:2], torch.tensor([0.5, 0.5]).double(), t=0.3), expected)
    weight = (0.3 / (a - b).abs()).clamp(0, 1) # as mergekit writes it
    torch.testing.assert_close(expected, weight * b + (1 - weight) * a)

def test_arcee_fusion():
    U, S, Vh = torch.linalg.svd(torch.cat(list(W[:2]), 1), full_matrices=False)
    X = torch.stack((S[:4, None] * Vh[:4]).split(N_IN, 1))
    s = X.sum((0, 2)).sign()[:, None]
    x, y = s * X
    p, q = y.softmax(-1) + 1e-8, x.softmax(-1) + 1e-8
    score = (y - x).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    v = score.flatten().sort().values
    q1, q2, q3 = (v[int(c * (len(v) - 1))] for c in (0.25, 0.5, 0.75))
    assert 0 < int((mask := score >= q2 + 1.5 * (q3 - q1)).sum()) < len(v)
    close(merge(abc[:2], [0.5, 0.5], "arcee_fusion", rank="sum").lora, U[:, :4] @ (s * torch.where(mask, y, x)))

def test_trimmed_over_all_modules():
    loras = [LoRA({"m": a["m"], "n": replace(b["m"], scale=2.0)}, name=a.name) for a, b in zip(abc, abc[1:] + abc[:1])]
    blocks = {m: torch.stack([lora[m].dense().double() for lora in loras]) for m in ("m", "n")}
    left = {m: torch.linalg.svd(torch.cat(list(x), 1), full_matrices=False) for m, x in blocks.items()}
    X = {m: torch.stack((S[:6, None] * Vh[:6]).split(N_IN, 1)) for m, (U, S, Vh) in left.items()}
    whole = torch.cat([X["m"].flatten(1), X["n"].flatten(1)], 1).abs()
    least = whole.sort(1).values[:, -int(0.3 * whole.shape[1])]
    merged = merge(loras, w, "ties", rank="sum", density=0.3, trim="model").lora # KnOTS: entries of all modules, ranked together
    for m in ("m", "n"): close(merged[m].dense().double(), left[m][0][:, :6] @ elected(X[m] * (X[m].abs() >= least[:, None, None]), w))
    few = merge(loras, [1, 0, 1], "magnitude_prune", rank="sum", density=[0.3, 0.9, 0.5], trim="model").lora
    close(few, merge(loras[::2], [1, 1], "magnitude_prune", rank="sum", density=[0.3, 0.5], trim="model").lora)
    with pytest.raises(ValueError, match="trim 'all': expected 'module' or 'model'"): merge(loras, w, "ties", trim="all")
    with pytest.raises(ValueError, match="share of entries"): merge(loras, w, "ties", trim="model", density=1.5)

@pytest.mark.parametrize("name, same", [("task_arithmetic", "cat"), ("dare_linear", "dare"), ("nuslerp", "slerp")])
def test_names_of_others_for_the_same(name, same): assert torch.equal(merge(abc[:2], 1, name).lora["m"].up, merge(abc[:2], 1, same).lora["m"].up)

@pytest.mark.parametrize("call, message", [
    (lambda: merge(abc, 1, "linear"), "PEFT's 'linear' adds the factors.*Take 'svd'"),
    (lambda: merge(abc, 1, "dare_ties_svd"), "trims entries of the dense update.*'dare_ties'"),
    (lambda: merge(abc, 1, "karcher", max_iter=10), "does not know max_iter; its options: none. mergekit's 'karcher' is .*here 'sphere'"),
    (lambda: merge(abc, 1, "ram"), "it is the mean: take 'cat'"), (lambda: merge(abc, 1, "task_arithmetic", rank=2), "'task_arithmetic' is exact"),
    (lambda: merge(abc, 1, "ties", signs="count"), "'total' .* or 'frequency'"), (lambda: merge(abc, 1, "ties", least=1), "does not know least"),
    (lambda: merge(abc, 1, "cart", share="x"), "share='x': expected a number"), (lambda: merge(abc, [1, -1, 1], "model_stock"), "weights ≥ 0"),
])
def test_what_else_a_name_means(call, message):
    with pytest.raises(ValueError, match=message): call()

# --- weights by agreement, and the two routes to the sum

def test_agreement_leaves_the_stranger_out():
    near = friends((11, 12, 13), 0.1)
    merged = merge([*near, abc[1]], "agreement", "cat")
    weights = merged.per_module.weights["m"]
    assert sum(weights) == pytest.approx(1, abs=2e-3) and weights[3] < 0.1 < 0.25 < min(weights[:3])
    close(merged.lora, mean_lora([*near, abc[1]], "agreement", "cat").lora)
    same = merge([abc[0], abc[0]], "agreement").per_module.weights["m"]
    assert same == [0.5, 0.5] and merge(abc[:1], "agreement").per_module.weights["m"] == [1.0]
    assert merge([abc[0], scaled(abc[0], -1)], "agreement").per_module.weights["m"] == [0.5, 0.5] # nobody agrees

@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4, 1e-6, 1e-9, 0.0])
def test_the_sum_is_as_good_when_adapters_share_a_side(apart):
    for side in ("up", "down"):
        us = [replace(u := update(i), **{side: getattr(update(0), side) + apart * getattr(u, side)}) for i in range(1, 5)]
        v = torch.tensor([1, -0.5, 2, 1e-3], dtype=torch.float64)
        stack, exact = stacked([us]), sum(a * u.dense().double() for a, u in zip(v, us))
        ((fast,), (part,)), S = (_by_gram(stack, v[None], 3, torch.float64), weighted_sums(stack, v[None], 3)), torch.linalg.svdvals(exact)
        expected = best(exact, min(3, int((S > 1e-5 * S[0]).sum()))) # smaller directions are rounding
        assert float((part.up @ part.down - expected).norm() / exact.norm()) < 1e-9
        if side == "up" and apart < 1e-6: assert fast is None

def many(n=9, shapes=((40, 30), (30, 40)), ranks=(3, 2, 4), dtype=torch.float32):
    "Modules of two sizes; half of each adapter is common to all"
    def rand(*shape): return torch.randn(*shape, generator=g, dtype=dtype)
    g = torch.Generator().manual_seed(0)
    common = {f"m{i}": (rand(shapes[i % 2][0], max(ranks)), rand(max(ranks), shapes[i % 2][1])) for i in range(n)}
    def own(B, A, r): return LoRAUpdate(B[:, :r] + rand(len(B), r), A[:r] + rand(r, A.shape[1]), 0.5, (len(B), A.shape[1]))
    return [LoRA({m: own(B, A, r) for m, (B, A) in common.items()}, name=f"a{i}") for i, r in enumerate(ranks)]

@pytest.mark.parametrize("rule", [None, RULES["tsv"].combine, RULES["ties"].combine])
@pytest.mark.parametrize("weights", [[0.5, 1, 2], "agreement"])
def test_what_is_computed_together_changes_no_result(rule, weights):
    loras = many()
    loras[1] = LoRA({m: u for m, u in loras[1].items() if m != "m4"}, name="lacks one") # a kind of its own
    one, all_of = (combine(loras, weights, rule, 3, batch_bytes=size) for size in (0, 1 << 30))
    assert list(one.lora) == list(all_of.lora) == list(loras[0]) and one.notes == all_of.notes
    for m in one.lora: torch.testing.assert_close(one.lora[m].dense(), all_of.lora[m].dense(), rtol=1e-5, atol=1e-5)
    for frame, other in ((one.per_module, all_of.per_module), (one.members, all_of.members)):
        for column in set(frame) & {"rel_error", "energy", "cosine", "norm", "with_result"}: assert frame[column].to_numpy() == pytest.approx(other[column].to_numpy(), rel=1e-4, abs=1e-6)
    again = combine(loras, weights, rule, 3)
    for m, u in combine(loras, weights, rule, 3).lora.items(): assert torch.equal(u.up, again.lora[m].up) and torch.equal(u.down, again.lora[m].down)

def test_what_is_drawn_at_a_module_depends_on_its_name_alone():
    loras = many()
    few = [LoRA({m: lora[m] for m in ("m7", "m2")}, name=lora.name) for lora in loras]
    whole, part = (merge(x, 1, "dare", density=0.5, random_state=3).lora for x in (loras, few))
    for m in part: torch.testing.assert_close(part[m].dense(), whole[m].dense(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(merge(few, 1, "dare", random_state=4).lora["m2"].up, merge(few, 1, "dare", random_state=3).lora["m2"].up)

def test_batches_are_bounded_whatever_the_kinds():
    jobs = [_Job(f"m{i}", [], [LoRAUpdate(torch.zeros(10, 1 + i % 30), torch.zeros(1 + i % 30, 10), 1.0, (10, 10))], [True], 1) for i in range(300)]
    for size in (0, 3000, 10 ** 9):
        made, waiting = [], 0
        def counted():
            nonlocal waiting
            for job in jobs: waiting += job.size; yield job
        for batch in _batches(counted(), size):
            assert waiting <= max(8 * size, jobs[29].size) + jobs[29].size and len({job.kind for job in batch}) == 1
            assert sum(job.size for job in batch) <= size + jobs[29].size
            waiting -= sum(job.size for job in batch)
            made += batch
            if not size or size == 10 ** 9: waiting = 0
        assert sorted(job.module for job in made) == sorted(job.module for job in jobs)

def test_float32_products_are_taken_where_they_are_enough():
    loras = many(4, ((200, 120), (120, 200)), (8, 8, 8))
    w = torch.tensor([[0.5, 0.25, 0.25]]).double()
    stack = stacked([[lora["m0"] for lora in loras]])
    (fast,), (part,) = _by_gram(stack, w, 8, torch.float32), weighted_sums(stack, w, 8)
    exact = torch.einsum("i,imn->mn", w[0], torch.stack([lora["m0"].dense().double() for lora in loras]))
    assert torch.equal(fast.up, part.up) and fast.up.dtype == torch.float32
    lost, least = (exact - part.up @ part.down).norm(), torch.linalg.svdvals(exact)[8:].norm()
    assert float(lost - least) < 2e-5 * float(exact.norm()) and float(part.error) ** 0.5 == pytest.approx(float(least), rel=1e-3)
    copies = stacked([[loras[0]["m0"], replace(loras[0]["m0"], up=loras[1]["m0"].up), loras[2]["m0"]]]) # a shared A: the sum is of rank 16
    (nothing,), (part,) = _by_gram(copies, w, 16, torch.float32), weighted_sums(copies, w, 16)
    assert nothing is None and float(part.error / part.exact) < 1e-14

def test_numbers_that_are_none_are_named():
    bad = many()
    bad[1]["m3"].up[2, 1] = float("nan")
    for method in ("svd", "tsv"):
        with pytest.raises(ValueError, match="m3 of a1 has NaN or infinite numbers"): merge(bad, 1, method)
    large = [LoRA({"m": LoRAUpdate(torch.full((4, 1), 1e38), torch.full((1, 4), 1e-38), 1.0, (4, 4))}, name="large")] # a sum that overflows is none
    assert float(merge(large, 1).lora["m"].norm()) == pytest.approx(4.0, rel=1e-4)

@pytest.mark.parametrize("call, message", [
    (lambda: merge([], []), "at least one"),
    (lambda: merge(abc, [1, 1], "svd"), "2 weights for 3"),
    (lambda: merge(abc, [0, 0, 0]), "not all 0"),
    (lambda: merge(abc, [1, float("nan"), 1]), "finite"),
    (lambda: merge(abc, [1, 1, 1], "average"), "expected one of svd"),
    (lambda: merge(abc, [1, 1, 1], "tsv", density=0.5), "does not know density; its options: none"),
    (lambda: merge(abc, [1, 1, 1], "ties", denisty=0.5), "its options: coordinates, density, signs, trim"),
    (lambda: merge(abc, [1, 1, 1], "dare", rng=None), "does not know rng"),
    (lambda: merge(abc, [1, 1, 1], "ties", density=0), "share of entries"),
    (lambda: merge(abc, [1, 1, 1], "dare", density=1.5), "share of entries"),
    (lambda: merge(abc, [1, 1, 1], "ties", coordinates="dense"), "'left' .KnOTS. or 'core'"),
    (lambda: merge(abc, [1, -1, 1], "sphere"), "weights ≥ 0"),
    (lambda: merge(abc, [1, 1, 1], rescale="max"), "'none' or 'norm'"),
])
def test_errors_say_what_came_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message): call()

def test_tsv_not_cut_takes_all_triples_of_unequal_ranks():
    big, small = LoRA({"m": update(1, r=4)}, name="big"), LoRA({"m": replace(update(2, r=2), up=torch.zeros(M, 2))}, name="zero")
    close(merge([big, small], [1, 1], "tsv", rank="sum").lora, big)
