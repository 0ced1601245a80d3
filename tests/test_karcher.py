"What 02_karcher and 02a_means promise beside their lessons: certificates that are never wrong, every form of input, invariances, both precisions"
import math, warnings

import numpy as np
import pytest, torch
import loragrass as lg
from loragrass import karcher
from loragrass.karcher import (Grassmann, NonUniqueMeanWarning, _exp, _horizontal, as_points, chordal_mean, cost_and_gradient, dense_directions,
                               evidence, geodesic, in_span, karcher_mean, leading_directions)
from loragrass.means import flag_mean, karcher_median, principal_geodesics, streaming_mean
from loragrass.plucker import orthonormalize, principal_angles

pytestmark = pytest.mark.filterwarnings("ignore::loragrass.karcher.NonUniqueMeanWarning")

def randn(*shape, seed=0, dtype=torch.float64): return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
def dist(x, y): return principal_angles(x, y).norm(dim=-1)

def cloud(N, n, k, size, batch=(), seed=0, dtype=torch.float64): # at angles up to `size` from one point
    c = orthonormalize(randn(*batch, n, k, seed=seed))
    u = _horizontal(c, randn(N, *batch, n, k, seed=seed + 1))
    return _exp(c, size * u / torch.linalg.matrix_norm(u, 2)[..., None, None]).to(dtype)

def half_shared(N=12, n=40, k=6, shared=3, noise=.1, seed=0):
    common = randn(n, shared, seed=seed)
    columns = lambda i: [common + noise * randn(n, shared, seed=seed + 1 + i), randn(n, k - shared, seed=seed + 100 + i)]
    return torch.stack([orthonormalize(torch.cat(columns(i), 1)) for i in range(N)])

def variance(x, Y, w=None):
    d2 = torch.stack([principal_angles(x, y).square().sum(-1) for y in Y])
    return d2.mean(0) if w is None else (torch.as_tensor(w, dtype=d2.dtype) * d2).sum(0) / sum(w)

SETS = {f"{size}, k={k}": (cloud, dict(N=8, n=20, k=k, size=size)) for k in (1, 2, 5) for size in (.01, .5, .8, 1.2, 1.5)} | {"half shared": (half_shared, {})}

@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("seed", range(3))
def test_the_certificate_is_never_wrong(name, seed):
    make, args = SETS[name]
    Y = make(**args, seed=10 * seed)
    m, again = karcher_mean(Y), karcher_mean(Y, restarts=10)
    assert m.converged and abs(m.variance - variance(m.mean, Y)) < 1e-10 and abs(m.max_angle - principal_angles(m.mean, Y).max()) < 1e-7
    assert m.lower_bound <= min(m.variance, again.variance) + 1e-12
    for i in range(20): # no subspace is below the bound, near or far
        assert variance(orthonormalize(m.mean + (.1 * 2 ** (i % 7)) * randn(*m.mean.shape, seed=i)), Y) >= m.lower_bound
    if m.unique: assert again.spread < 1e-6 and dist(m.mean, again.mean) < 1e-6 and again.unique

def test_the_certificate_says_something():
    seen = {name: karcher_mean(make(**args), restarts=6).unique for name, (make, args) in SETS.items()}
    assert all(seen[f"{size}, k={k}"] is True for size in (.01, .5) for k in (1, 2, 5)) and seen["half shared"] is False and seen["1.5, k=5"] is not True

def test_two_clusters_of_lines_have_two_means(): # at right angles: the means are the two bisectors, and a lone descent cannot tell
    Y = torch.tensor([[1, 0], [0, 1]], dtype=torch.float64)[..., None]
    m = karcher_mean(Y, restarts=4)
    assert m.unique is False and abs(m.variance - (math.pi / 4) ** 2) < 1e-12 and m.eigengap < 1e-12 and abs(m.lower_bound - m.variance) < 1e-12

def test_warnings_name_the_batch_and_the_advice():
    Y = torch.stack([cloud(12, 40, 6, .2), half_shared()], 1)
    with pytest.warns(NonUniqueMeanWarning, match=r"mean 1 of 2; the eigengap is widest at k=3") as said: m = karcher_mean(Y)
    assert said[0].filename == __file__ and m.unique == [True, False] and m.effective_k.tolist() == [6, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        karcher_mean(Y[:, 0])

def test_the_mean_is_where_an_independent_gradient_vanishes():
    Y, w = cloud(7, 25, 4, .6), [1, 2, 3, 4, 5, 6, 7]
    m = karcher_mean(Y, w)
    for seed in range(5):
        u = _horizontal(m.mean, randn(25, 4, seed=seed))
        ahead, behind = (variance(orthonormalize(m.mean + h * u), Y, w) for h in (1e-4, -1e-4))
        assert abs(ahead - behind) < 1e-10 and ahead + behind > 2 * m.variance

@pytest.mark.parametrize("size", [1e-8, 1e-4, .5, 1.2])
def test_all_methods_end_at_one_point(size):
    Y = cloud(6, 15, 3, size)
    a, b = karcher_mean(Y), karcher_mean(Y, solver="geoopt", max_iter=1000)
    assert a.converged and b.converged and dist(a.mean, b.mean) < 1e-6 * min(1, 10 * size) + 1e-8
    assert abs(a.variance - b.variance) < 1e-9 * a.variance + 1e-15

def test_tiny_spreads_are_not_lost(): # 1 − cos² would say 0, or 1e-8
    Y = cloud(6, 15, 3, 1e-9)
    m = karcher_mean(Y)
    assert .5 < m.variance / variance(m.mean, Y) < 2 and .3e-9 < m.max_angle < 3e-9 and m.unique and m.lower_bound <= m.variance
    same = karcher_mean(Y[:1].expand(5, 15, 3))
    assert same.variance < 1e-28 and same.unique and dist(same.mean, Y[0]) < 1e-13

MEANS = {"karcher_mean": lambda Y, **kw: karcher_mean(Y, **kw).mean, "chordal_mean": lambda Y, **kw: chordal_mean(Y, **kw).mean,
         "karcher_median": lambda Y, **kw: karcher_median(Y, **kw).median, "flag_mean": lambda Y, **kw: flag_mean(Y, **kw).basis}

@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
def test_invariances(mean):
    Y, w = cloud(6, 20, 3, .5), torch.tensor([1., 2, 3, 1, 2, 3])
    Q, O, order = orthonormalize(randn(6, 3, 3, seed=5)), orthonormalize(randn(20, 20, seed=6)), [3, 1, 4, 0, 5, 2]
    base = mean(Y, weights=w)
    for other in (mean(Y @ Q, weights=w), O.T @ mean(O @ Y, weights=w), mean(Y[order], weights=w[order]),
                  mean(list(Y), weights=w.tolist()), mean(Y, weights=10 * w)):
        assert dist(base, other) < 1e-7
    repeated = torch.repeat_interleave(Y, w.long(), 0)
    assert dist(base, mean(repeated)) < 1e-7
    assert dist(mean(Y, weights=torch.tensor([0., 0, 1, 0, 0, 0])), Y[2]) < 2e-6 and dist(mean(Y[:1]), Y[0]) < 1e-12

@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
def test_batches_are_loops(mean):
    Y = cloud(5, 12, 3, .5, batch=(2, 3))
    w = torch.rand(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    many = mean(Y, weights=w)
    assert many.shape == (2, 3, 12, 3)
    for i in range(2):
        for j in range(3): assert dist(many[i, j], mean(Y[:, i, j], weights=w[:, i, j])) < 1e-7

def test_a_batch_of_easy_and_hard(): # finished problems leave the batch and keep their result
    parts = [cloud(12, 40, 6, .3), half_shared(), cloud(12, 40, 6, 1e-3, seed=4), half_shared(seed=7), cloud(12, 40, 6, .9, seed=8)]
    m, one = karcher_mean(torch.stack(parts, 1)), [karcher_mean(Y) for Y in parts]
    assert m.converged.all() and m.n_iter.tolist()[2] < m.n_iter.tolist()[1] and m.mean.shape == (5, 40, 6)
    for i in (0, 2, 4): assert dist(m.mean[i], one[i].mean) < 1e-7
    for field in ("variance", "max_angle", "eigengap", "lower_bound"): assert all(abs(getattr(m, field)[i] - getattr(one[i], field)) < 1e-6 for i in (0, 2, 4))
    assert m.unique[0] is one[0].unique and m.unique[1] is one[1].unique

def test_points_of_several_dimensions(): # by hand: only min(kᵢ, k) angles count
    Y = [orthonormalize(torch.cat([randn(10, 3) + .2 * randn(10, 3, seed=i), randn(10, 1, seed=9)], 1))[:, :l] for i, l in enumerate((1, 2, 3, 3, 3, 4))]
    w = [1, 2, 1, 2, 1, 3]
    m = karcher_mean(Y, w, k=3)
    assert m.mean.shape == (10, 3) and abs(m.variance - variance(m.mean, Y, w)) < 1e-12 and m.unique is not True and m.lower_bound <= m.variance
    for seed in range(5):
        u = _horizontal(m.mean, randn(10, 3, seed=seed))
        assert variance(orthonormalize(m.mean + 1e-2 * u), Y, w) > m.variance
        assert variance(orthonormalize(randn(10, 3, seed=50 + seed)), Y, w) >= m.lower_bound
    assert dist(karcher_mean(Y[::-1], w[::-1], k=3).mean, m.mean) < 1e-7

@pytest.mark.parametrize("n, N, k", [(300, 4, 3), (30, 200, 3), (120, 60, 4), (5, 9, 5), (6, 1, 2), (7, 12, 1)])
def test_leading_eigenvectors_against_the_dense_projector(n, N, k):
    Y, w = cloud(N, n, k, .7) if k < n else orthonormalize(randn(N, n, k)), torch.linspace(1, 2, N, dtype=torch.float64)
    points, *_ = as_points(Y, w)
    P = torch.einsum("i,ink,imk->nm", w / w.sum(), Y, Y)
    true = torch.linalg.eigvalsh(P).flip(0)
    for exact in (True, False):
        V, values, residual = leading_directions(points, k, exact)
        assert values.shape == residual.shape == (1, min(k + 1, n)) and (values[0] - true[:k + 1]).abs().max() < .02
        assert (values[0, :k] - true[:k]).abs().max() < (1e-12 if exact else 1e-4)
        assert (values[0, k:] + residual[0, k:] >= true[k:k + 1] - 1e-6).all() # the eigengap is not overstated
        assert ((V[0].T @ P @ V[0]).trace() - true[:k].sum()).abs() < (1e-12 if exact else 1e-4)

def test_gradient_near_the_cut_locus(): # where the eigenvalues of MMᵀ are no longer enough
    x = torch.eye(8, dtype=torch.float64)[:, :2]
    for t in (1.5, math.pi / 2 - 1e-4, math.pi / 2 - 1e-7, math.pi / 2):
        theta = torch.tensor([t, .3], dtype=torch.float64)
        y = torch.zeros(8, 2, dtype=torch.float64)
        y[[0, 1], [0, 1]], y[[2, 3], [0, 1]] = theta.cos(), theta.sin()
        cost, g, _ = cost_and_gradient(x[None], as_points(y[None])[0])
        assert (torch.linalg.svdvals(g[0]) - theta).abs().max() < 1e-11 and abs(cost - theta.square().sum() / 2) < 1e-12

def test_float32():
    Y = cloud(10, 60, 4, .6)
    m, exact = karcher_mean(Y.float()), karcher_mean(Y)
    assert m.mean.dtype == torch.float32 and m.converged and m.unique and dist(m.mean.double(), exact.mean) < 1e-5
    assert karcher_mean(cloud(10, 60, 4, 1.2).float()).converged and karcher_mean(half_shared().float()).converged
    assert chordal_mean(Y.float()).mean.dtype == karcher_median(Y.float()).median.dtype == torch.float32 and karcher_median(Y.float()).converged

def test_inputs_stay_as_they_are():
    Y = cloud(5, 12, 3, .5)
    before = Y.clone()
    for f in (karcher_mean, chordal_mean, karcher_median, flag_mean, principal_geodesics): f(Y)
    assert Y.equal(before) and karcher_mean(Y.numpy()).mean.equal(karcher_mean(Y).mean) and karcher_mean(Y).mean.equal(karcher_mean(Y).mean)
    assert not chordal_mean(Y.clone().requires_grad_()).mean.requires_grad

@pytest.mark.parametrize("mean", [lambda Y: karcher_mean(Y, max_iter=0).mean, lambda Y: karcher_median(Y, max_iter=0).median, lambda Y: streaming_mean([Y], max_iter=0).mean])
def test_a_start_that_eight_steps_do_not_find_is_orthonormal(mean): # no gap after the k-th eigenvalue
    x = mean(orthonormalize(randn(32, 300, 8)))
    assert (x.mT @ x - torch.eye(8)).abs().max() < 1e-11 # orthonormal in float32, one Newton–Schulz step

def test_what_is_the_same_is_unique():
    for Y in (torch.eye(6, dtype=torch.float64)[:, :2].expand(5, 6, 2), orthonormalize(randn(4, 3, 3))): assert karcher_mean(Y).unique is True
    assert karcher_median(Y[:1]).mean_distance < 1e-14

def test_missed_convergence_comes_back():
    assert karcher_mean(cloud(8, 20, 2, .3), max_iter=1).unique is None and karcher_mean(cloud(8, 20, 2, .3), tol=0., max_iter=20).converged is False
    m = karcher_mean(half_shared(), max_iter=3)
    assert m.converged is False and m.n_iter == 3 and m.grad_norm > 1e-8
    assert karcher_median(cloud(5, 12, 3, .5), max_iter=2).converged is False

Y = cloud(3, 8, 2, .5)
REFUSED = {
    "expected a stack": lambda: karcher_mean(Y[0]),
    "one or more": lambda: karcher_mean([]),
    "expected a stack (N": lambda: chordal_mean(Y[:0]),
    "not orthonormal": lambda: karcher_mean(2 * Y),
    "say the mean's with k=": lambda: karcher_mean([Y[0], Y[1, :, :1]]),
    "ambient dimensions differ": lambda: karcher_mean([Y[0], torch.eye(5, dtype=torch.float64)[:, :2]]),
    "weights have shape": lambda: karcher_mean(Y, [1, 2]),
    "none negative": lambda: karcher_mean(Y, [1, 1, -1]),
    "not all zero": lambda: karcher_mean(Y, [0, 0, 0]),
    "must be finite": lambda: karcher_mean(Y, [1, 1, math.nan]),
    "k=9": lambda: karcher_mean(Y, k=9),
    "k=0": lambda: karcher_mean(Y, k=0),
    "solver 'newton' is unknown": lambda: karcher_mean(Y, solver="newton"),
    "of the mean's dimension only": lambda: karcher_mean(Y, k=1, solver="geoopt"),
    "points of Gr(2, 8) and Gr(1, 8)": lambda: geodesic(Y[0], Y[1, :, :1], .5),
    "n_components=7": lambda: principal_geodesics(Y, 7),
    "expected a stack (N, n, k)": lambda: principal_geodesics(Y[None]),
    "chunks is empty": lambda: streaming_mean([]),
    "read only once": lambda: streaming_mean(y for y in [Y]),
    "a chunk has points of shape (1, 8, 2)": lambda: streaming_mean([Y[:, None]]),
    "a chunk has points of shape (6, 2); expected (8, k)": lambda: streaming_mean([Y, cloud(3, 6, 2, .5)]),
    "expected that of a point, (8, 2)": lambda: principal_geodesics(Y, mean=Y[0, :, :1]),
    "k=1.5": lambda: karcher_mean(Y, k=1.5),
    "flag: k=0": lambda: flag_mean(Y, k=0),
    "(3, 0, 8, 2); expected a stack": lambda: karcher_mean(Y[:, None][:, :0]),
    "restarts=-1": lambda: karcher_mean(Y, restarts=-1),
    "expected one for each of the 3 points, (3,) or (3, 2)": lambda: karcher_mean(torch.stack([Y, Y], 1), torch.ones(3, 3)),
}

@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(ValueError) as error: REFUSED[message]()
    assert message.removeprefix("flag: ") in str(error.value)

def test_forms_of_input():
    assert streaming_mean([Y[:0], Y[:2], Y[2:], Y[:0]]).mean.equal(streaming_mean([Y[:2], Y[2:]]).mean) and karcher_mean(Y, k=2.).mean.equal(karcher_mean(Y).mean)
    pg = principal_geodesics(Y.float(), mean=Y[0])
    assert pg.point([0] * 3).dtype == torch.float32 and dist(pg.point(pg.scores.double()), Y.float()).max() < 1e-5
    assert geodesic(Y[0].float(), Y[1], .5).equal(geodesic(Y[0].float().double(), Y[1], .5))

def test_the_warning_names_the_line_that_asked():
    lines = torch.eye(2, dtype=torch.float64)[..., None]
    for f in (karcher_mean, principal_geodesics, lambda Y: streaming_mean([Y])):
        with pytest.warns(NonUniqueMeanWarning) as said: f(lines)
        assert said[0].filename == __file__

def test_median_of_a_majority():
    Y = torch.cat([cloud(1, 20, 3, .5).expand(5, 20, 3), cloud(4, 20, 3, 1., seed=50)]) # five of nine agree
    m = karcher_median(Y)
    assert m.converged and dist(m.median, Y[0]) < 2e-6 and abs(m.mean_distance - dist(Y[0], Y).mean()) < 1e-5

def test_median_is_stationary():
    Y, w = cloud(7, 15, 2, .7), [1, 2, 3, 4, 3, 2, 1]
    m, cost = karcher_median(Y, w), lambda x: (torch.tensor(w) * dist(x, Y)).sum() / sum(w)
    assert abs(cost(m.median) - m.mean_distance) < 1e-12 and m.grad_norm <= 1e-8
    for seed in range(5): assert cost(orthonormalize(m.median + .01 * randn(15, 2, seed=seed))) > m.mean_distance

def test_flag_is_nested_and_starts_with_the_chordal_mean():
    Y = [cloud(1, 12, l, .5, seed=l)[0] for l in (1, 3, 4, 2)]
    flag = flag_mean(Y, [1, 2, 3, 4])
    assert flag.basis.shape == (12, 4) and (flag.shares.diff() <= 0).all()
    for j in (1, 2, 3): assert dist(flag.basis[:, :j], chordal_mean(Y, [1, 2, 3, 4], k=j).mean) < 1e-10

def test_principal_geodesics_are_weighted_and_elsewhere():
    Y, w = cloud(6, 15, 2, .5), torch.tensor([1, 2, 3, 1, 2, 3], dtype=torch.float64)
    pg, m = principal_geodesics(Y, weights=w), karcher_mean(Y, w)
    gram = torch.einsum("ank,bnk->ab", pg.directions[:4], pg.directions[:4])
    assert (gram - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-10 and (pg.mean.T @ pg.directions[:4]).abs().max() < 1e-10
    assert abs(pg.variances.sum() - m.variance) < 1e-12 and abs((w / w.sum()) @ pg.scores[:, 0]) < 1e-7 and (pg.variances.diff() <= 1e-12).all()
    two = principal_geodesics(Y, n_components=2, mean=Y[0])
    assert two.scores.shape == (6, 2) and two.mean.equal(Y[0]) and two.scores[0].abs().max() < 1e-12

@pytest.mark.parametrize("make, args", [(cloud, dict(N=23, n=60, k=3, size=.6)), (cloud, dict(N=23, n=6, k=3, size=.6)), (half_shared, dict(N=23))])
def test_streaming_is_the_mean_of_all(make, args):
    Y = make(**args)
    class Chunks: # read anew each time
        def __iter__(self): return iter([Y[:10], Y[10:11], Y[11:]])
    s, m = streaming_mean(Chunks()), karcher_mean(Y)
    assert s.converged and s.unique is m.unique and abs(s.eigengap - m.eigengap) < .03
    if make is half_shared: return
    assert dist(s.mean, m.mean) < 1e-7 and abs(s.variance - m.variance) < 1e-10 and abs(s.lower_bound - m.lower_bound) < .02 * m.variance

def lines_around(N): # N lines, each with squared cosine 1.5 / N to the first axis, and that axis: a known line
    c2 = 1.5 / N
    L = torch.zeros(N, N + 1, 1, dtype=torch.float64)
    L[:, 0, 0], L[torch.arange(N), torch.arange(1, N + 1), 0] = c2 ** .5, (1 - c2) ** .5
    Q = orthonormalize(randn(N + 1, N + 1, seed=N))
    return Q @ L, Q[:, :1]

@pytest.mark.parametrize("N", [100, 300, 400])
def test_a_bound_is_below_a_known_line(N): # Ritz values of eight steps lie below the eigenvalues, and gave 2.2646 for N = 300
    Y, known = lines_around(N)
    m = karcher_mean(Y, max_iter=20)
    assert variance(m.mean, Y) * .95 < m.lower_bound <= variance(known, Y) and m.lower_bound <= m.variance

@pytest.mark.parametrize("size", [.2, .6, .9, 1.3])
def test_enclosed_eigenvalues_are_above_the_dense_ones(size): # large enough for subspace iteration
    Y = cloud(30, 250, 8, size)
    points, k, _ = as_points(Y)
    m, leading = karcher_mean(Y), leading_directions(points, k, exact=False)
    dense = dense_directions(points, k)
    assert leading.residuals.any() and not dense.residuals.any()
    upper, following, says = karcher._enclosed(m.mean[None], evidence(m.mean[None], points), leading)
    assert (upper >= dense.values[:, :k]).all() and (following >= dense.values[:, k]).all() and bool(says) is (size < .8)
    lower = math.fsum(math.acos(l ** .5) ** 2 for l in dense.values[0, :k].tolist())
    assert .9 * lower - 1e-9 <= m.lower_bound <= lower + 1e-12

def test_the_start_sees_the_data(): # which are orthogonal to what the generator would draw in ℝⁿ
    n, k = 300, 2
    drawn = torch.randn(n, k + 8, generator=torch.Generator().manual_seed(0)).double()
    hidden = orthonormalize(torch.linalg.qr(drawn, mode="complete")[0][:, k + 8:][:, :k])
    Y = _exp(hidden, 1e-3 * _horizontal(hidden, randn(250, n, k)))
    assert dist(karcher_mean(Y, max_iter=0).mean, hidden) < .1 and dist(chordal_mean(Y).mean, hidden) < .1

@pytest.mark.parametrize("size, dtype", [(.5, torch.float64), (1.2, torch.float64), (1e-6, torch.float64), (.5, torch.float32)])
@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
def test_means_of_few_in_many_dimensions(mean, size, dtype): # in the span of all, against all of ℝⁿ by embedding the span by hand
    small, Q = cloud(4, 8, 2, size), orthonormalize(randn(8 * 40, 8))
    wide = mean((Q @ small).to(dtype))
    assert wide.dtype == dtype and dist(wide.double(), Q @ mean(small)) < (3e-8 if dtype == torch.float64 else 1e-4)
    assert (wide.mT @ wide - torch.eye(2, dtype=dtype)).abs().max() < 50 * torch.finfo(dtype).eps

def test_wide_means_of_every_kind():
    Q, w = orthonormalize(randn(400, 8)), [3, 1, 2, 1]
    same = Q[:, :3].expand(4, 400, 3) # the span has dimension 3, and fewer columns than there are
    assert karcher_mean(same).variance < 1e-28 and dist(karcher_mean(same).mean, Q[:, :3]) < 1e-13 and dist(flag_mean(same, k=3).basis, Q[:, :3]) < 1e-13
    mixed = [Q @ y for y in (cloud(1, 8, 1, .5)[0], *cloud(3, 8, 2, .5, seed=3))]
    m = karcher_mean(mixed, w, k=2)
    assert m.converged and abs(m.variance - variance(m.mean, mixed, w)) < 1e-12
    batch = Q @ cloud(4, 8, 2, .5, batch=(3,))
    for field in ("variance", "lower_bound", "eigengap", "max_angle"):
        assert (getattr(karcher_mean(batch), field) - torch.tensor([getattr(karcher_mean(batch[:, i]), field) for i in range(3)], dtype=torch.float64)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="leave 1 … 8"): karcher_mean(Q @ cloud(4, 8, 2, .5), k=9)

def test_weights_of_any_scale():
    for scale in (1e308, 1e-308, 3e38, 1):
        m = karcher_mean(Y, [scale] * 3)
        assert dist(m.mean, karcher_mean(Y).mean) < 1e-12 and m.variance == karcher_mean(Y).variance > .01
    assert dist(karcher_mean(Y.float(), [1e300, 0, 1e300]).mean, karcher_mean(Y.float(), [1, 0, 1]).mean) < 1e-6
    assert karcher_mean(Y, torch.tensor([1, 2, 3.])[[2, 1, 0]].numpy()[::-1]).variance == karcher_mean(Y, [1, 2, 3]).variance

def test_arrays_as_people_have_them():
    C = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double().numpy()
    V = np.linalg.eigh(C + C.T)[1][:, ::-1]
    wanted = karcher_mean([torch.tensor(V[:, :2].copy()), Y[0]]).variance
    for X in (V[:, :2], V[:, :2].astype(">f8"), V[:, :2].astype(np.longdouble)): assert karcher_mean([X, Y[0]]).variance == wanted

@pytest.mark.parametrize("device", ["meta"])
def test_nothing_is_made_on_the_default_device(device):
    wide, mixed = orthonormalize(randn(100, 8)) @ Y, [Y[0], Y[1, :, :1]]
    calls = {"mean": lambda: karcher_mean(Y, [1, 2, 3], restarts=2).mean, "geoopt": lambda: karcher_mean(Y, solver="geoopt").mean, "wide": lambda: karcher_mean(wide).mean,
             "large": lambda: karcher_mean(cloud_of_many).mean, "mixed": lambda: karcher_mean(mixed, k=2).mean, "batch": lambda: karcher_mean(torch.stack([Y, Y], 1)).mean,
             "far": lambda: karcher_mean(half).mean, "chordal": lambda: chordal_mean(cloud_of_many).mean, "flag": lambda: flag_mean(Y).basis,
             "median": lambda: karcher_median(Y).median, "pga": lambda: principal_geodesics(Y).point([.1] * 2), "streaming": lambda: streaming_mean([Y, Y]).mean,
             "streaming, large": lambda: streaming_mean([cloud_of_many[:100], cloud_of_many[100:]]).mean, "geodesic": lambda: geodesic(Y[0], Y[1], .5),
             "array": lambda: karcher_mean(Y.numpy(), [1., 2, 3]).mean}
    cloud_of_many, half = cloud(150, 300, 2, .5), half_shared()
    before = {name: call() for name, call in calls.items()}
    torch.set_default_device(device)
    try: after = {name: call() for name, call in calls.items()}
    finally: torch.set_default_device(None)
    for name in calls: assert after[name].device.type == "cpu" and after[name].equal(before[name]), name

def test_old_names_are_taken_for_one_release():
    with pytest.warns(FutureWarning, match="method= of karcher_mean.. is now solver=") as said: m = karcher_mean(Y, method="geoopt")
    assert said[0].filename == __file__ and m.mean.equal(karcher_mean(Y, solver="geoopt").mean)

def test_restarts_depend_on_random_state_only():
    Z = half_shared()
    a, b, c = (karcher_mean(Z, restarts=3, random_state=r).mean for r in (0, 0, 7))
    assert a.equal(b) and not a.equal(c)

def test_evidence_of_a_chordal_mean():
    Z, w = cloud(6, 15, 3, .5), [1, 2, 3, 1, 2, 3]
    m = chordal_mean(Z, w)
    sin2 = torch.stack([principal_angles(m.mean, z).sin().square().sum() for z in Z])
    assert abs(m.variance - (torch.tensor(w, dtype=torch.float64) * sin2).sum() / 12) < 1e-13 and m.residual < 1e-12 and m.eigengap > .5
    lines = torch.eye(2, dtype=torch.float64)[..., None]
    assert chordal_mean(lines).eigengap < 1e-12 and abs(chordal_mean(lines).variance - .5) < 1e-13
    assert chordal_mean(torch.stack([Z, Z], 1)).variance.shape == (2,)

@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_few_wide_points_are_not_laid_out(batch):
    X = cloud(5, 400, 4, .4, batch)
    points, k, shape, lift = in_span(X)
    laid = as_points(X)[0]
    assert points.columns.shape == (len(laid.columns), 20, 20) and (k, shape) == (4, batch)
    torch.testing.assert_close(points.columns.mT @ points.columns, laid.columns.mT @ laid.columns)
    torch.testing.assert_close(lift(points.columns), laid.columns)
    one = X if not batch else X[:, 1]
    by_list, by_stack = karcher_mean(list(one)), karcher_mean(X)
    assert principal_angles(by_list.mean, by_stack.mean[1] if batch else by_stack.mean).max() < 1e-7
    twice = torch.cat([X, X[:1]]) # AᵀA is singular: by QR
    torch.testing.assert_close(in_span(twice)[3](in_span(twice)[0].columns), as_points(twice)[0].columns)
    with pytest.raises(ValueError, match=r"\|XᵀX − I\| up to 3.*pass orthonormalize\(X\)"): karcher_mean(2 * X)
    with pytest.raises(ValueError, match="k=21; the 20 columns of all points in ℝ.400 leave 1 … 20"): karcher_mean(X, k=21)

@pytest.mark.parametrize("size, left", [(.2, 0), (1.2, 1e-3)]) # far from the points L-BFGS has to go on
def test_plain_steps_end_where_the_gradient_shrinks_slowly(size, left):
    Y = cloud(6, 40, 3, size)
    points, tol = as_points(Y)[0], 1e-10
    x = chordal_mean(Y).mean[None]
    cost, g, bend = cost_and_gradient(x, points)
    at, steps = karcher._plain_steps(karcher._at(x, cost, g), 1 / bend[:, None, None], points, tol, 50, cost_and_gradient)
    assert at.cost <= cost and at.g.norm() < g.norm() and 1 <= steps < 12
    assert (at.g.norm() > left) if left else (at.g.norm() <= tol)
    assert karcher_mean(Y, tol=tol).grad_norm <= tol

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_squared_distance_is_negative(dtype): # Σθ² − Σ sin²θ rounds below 0, whose root is NaN
    for seed in range(20):
        Y = orthonormalize(torch.randn(30, 3, dtype=dtype, generator=torch.Generator().manual_seed(seed)))
        assert (karcher.evidence(Y[None], as_points(Y[None])[0]).d2 >= 0).all()

def test_public_names():
    for name in ("Grassmann", "GrassmannExact", "KarcherMean", "NonUniqueMeanWarning", "karcher_mean", "chordal_mean", "geodesic", "karcher_median",
                 "flag_mean", "principal_geodesics", "streaming_mean"): assert hasattr(lg, name)
    assert Grassmann().dist(geodesic(Y[0], Y[1], 1), Y[1]) < 1e-13

def test_forward_over_forward_is_refused_and_the_other_orders_are_right(): # PyTorch would drop terms without a word
    from torch.func import hessian, jacfwd, jacrev, vmap
    G, x, W = Grassmann(), orthonormalize(randn(7, 2)), randn(7, 2, seed=1)
    u, y = G.proju(x, randn(7, 2, seed=2)), orthonormalize(randn(7, 2, seed=3))
    maps = {"expmap": lambda t: (G.expmap(x, t * u) * W).sum(), "retr": lambda t: (G.retr(x, t * u) * W).sum(), "projx": lambda t: (G.projx(x + t * W) * W).sum(),
            "logmap": lambda t: (G.logmap(G.expmap(x, t * u), y) * W).sum(), "dist2": lambda t: G.dist2(G.expmap(x, t * u), y)}
    t, h = torch.tensor(.3, dtype=torch.float64), 1e-4
    for name, f in maps.items():
        second = (f(t + h) - 2 * f(t) + f(t - h)) / h ** 2
        for order in (jacfwd(jacrev(f)), jacrev(jacfwd(f)), hessian(f)): assert abs(order(t) - second) < 1e-5 * (1 + abs(second)), name
        with pytest.raises(NotImplementedError, match="take torch.func.hessian"): jacfwd(jacfwd(f))(t)
    assert vmap(vmap(jacfwd(maps["dist2"])))(torch.rand(2, 2, dtype=torch.float64)).shape == (2, 2)

# the derivative of a mean

def slope(f, Y, u, w=None, a=None, h=1e-4): # central difference, the points moved along u and the weights along a
    ahead, behind = (f(_exp(Y, s * u), None if w is None else w + s * a) for s in (h, -h))
    return (ahead - behind) / (2 * h)

def score(x): return (x * torch.linspace(1, 2, x.shape[-2], dtype=x.dtype)[:, None]).square().sum((-2, -1)) # of a subspace

@pytest.mark.parametrize("N, n, k, batch, size", [(5, 12, 3, (), .6), (3, 9, 1, (), 1.), (4, 10, 2, (3,), .5), (2, 40, 2, (2, 2), .4), (6, 8, 4, (), .9)])
def test_a_mean_follows_its_points_and_weights(N, n, k, batch, size):
    Y = cloud(N, n, k, size, batch)
    w, u, a = torch.rand(N, dtype=torch.float64) + .5, _horizontal(Y, randn(*Y.shape, seed=7)), randn(N, seed=8)
    def f(Y, w): return score(karcher_mean(Y, w, tol=1e-12).mean).sum()
    points, weights = Y.clone().requires_grad_(), w.clone().requires_grad_()
    to_points, to_weights = torch.autograd.grad(f(points, weights), (points, weights))
    assert abs(slope(f, Y, u, w, a) - (u * to_points).sum() - (a * to_weights).sum()) < 1e-6
    assert (Y.mT @ to_points).abs().max() < 1e-12 and abs((w * to_weights).sum()) < 1e-9 # tangent; a common factor of the weights does nothing
    each = torch.rand(N, *batch, dtype=torch.float64) + .5 # weights of each problem
    alone = each.clone().requires_grad_()
    to_each, = torch.autograd.grad(f(Y, alone), alone)
    assert abs(slope(f, Y, 0 * u, each, each.flip(0)) - (each.flip(0) * to_each).sum()) < 1e-6

def test_gradients_reach_lists_raw_matrices_and_both_precisions():
    A = cloud(4, 10, 2, .5) + .05 * randn(4, 10, 2, seed=3)
    def f(A): return score(karcher_mean([orthonormalize(a) for a in A], tol=1e-12).mean)
    raw, u = A.clone().requires_grad_(), randn(4, 10, 2, seed=4)
    grad, = torch.autograd.grad(f(raw), raw)
    assert abs((f(A + 1e-4 * u) - f(A - 1e-4 * u)) / 2e-4 - (u * grad).sum()) < 1e-6
    low = A.float().requires_grad_()
    rough, = torch.autograd.grad(f(low), low)
    assert rough.dtype == torch.float32 and (rough - grad).abs().max() < 1e-3 * grad.abs().max()

def test_a_mean_has_a_gradient_only_if_one_is_asked_for():
    Y = cloud(4, 10, 2, .5)
    points = Y.clone().requires_grad_()
    assert not karcher_mean(Y).mean.requires_grad and karcher_mean(points).mean.requires_grad and karcher_mean(Y, torch.ones(4, requires_grad=True)).mean.requires_grad
    with torch.no_grad(): assert not karcher_mean(points).mean.requires_grad
    assert karcher_mean(points).mean.equal(karcher_mean(Y).mean) and isinstance(karcher_mean(points).variance, float)
    grad, = torch.autograd.grad(score(karcher_mean(points).mean), points, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"): grad.sum().backward()

def test_a_mean_without_a_derivative_says_so():
    x, e = torch.eye(4, dtype=torch.float64)[:, :2], torch.eye(4, dtype=torch.float64)[:, 2:]
    points = torch.stack([x, _exp(x, 1.2 * e), _exp(x, -1.2 * e)]).requires_grad_()
    saddle = karcher_mean(points, [2., 1, 1]) # x by symmetry, between two means that are turned against each other
    assert saddle.converged and dist(saddle.mean.detach(), x) < 1e-7 and karcher_mean(points.detach(), [2., 1, 1], restarts=8).variance < saddle.variance - .01
    with pytest.raises(ValueError, match="Hessian of the variance is not positive definite.*chordal_mean"): (randn(4, 2) * saddle.mean).sum().backward()
    several = [randn(9, l, seed=l) for l in (1, 2)]
    with pytest.raises(ValueError, match=r"dimensions \[1, 2\] have a mean of dimension 2.*detach"):
        karcher_mean([orthonormalize(x).requires_grad_() for x in several], k=2)
