"What 02d_statistics promises beside its lessons: exact p-values, every form of input, invariances, both precisions, and errors that say what came"
import itertools, math

import numpy as np
import pytest, torch
from loragrass.karcher import Grassmann, geodesic, karcher_mean
from loragrass.kernels import pairwise_distances
from loragrass.plucker import orthonormalize
from scipy.optimize import brentq, minimize
from scipy.special import hyp1f1
from loragrass.statistics import MatrixLangevin, fit_matrix_langevin, frechet_variance, geodesic_regression, two_sample_test

pytestmark = pytest.mark.filterwarnings("ignore::loragrass.karcher.NonUniqueMeanWarning")
GR = Grassmann()

def randn(*shape, seed=0, dtype=torch.float64): return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
def eye(n, k): return torch.eye(n, dtype=torch.float64)[:, :k]
def around(c, N, spread, seed=0): return GR.expmap(c, spread * GR.proju(c, randn(N, *c.shape, seed=seed)))

# two groups

def energy(D, first): # by its definition
    second = [i for i in range(len(D)) if i not in first]
    mean = lambda a, b: np.mean([D[i, j] for i in a for j in b])
    return 2 * mean(first, second) - mean(first, first) - mean(second, second)

@pytest.mark.parametrize("N, M", [(3, 4), (4, 4), (1, 6), (2, 1)])
@pytest.mark.parametrize("metric", ["chordal", "geodesic"])
def test_all_groupings_are_those_of_the_definition(N, M, metric):
    X, Y = around(eye(7, 2), N, .3, 1), around(eye(7, 2), M, .3, 2)
    D = pairwise_distances(torch.cat([X, Y]), metric=metric).numpy()
    values = [energy(D, chosen) for chosen in itertools.combinations(range(N + M), N)]
    test = two_sample_test(X, Y, metric)
    assert test.exact and test.n_permutations == len(values) - 1 and abs(test.statistic - values[0]) < 1e-12
    assert test.p_value == np.mean(np.array(values) >= values[0] - 1e-12)
    assert test.smallest_p == (2 if N == M else 1) / len(values) and min(np.mean(np.array(values) >= v - 1e-12) for v in values) >= test.smallest_p

def test_random_groupings_agree_with_all_of_them():
    X, Y = around(eye(7, 2), 7, .3, 1), around(GR.expmap(eye(7, 2), .1 * GR.proju(eye(7, 2), randn(7, 2))), 6, .3, 2)
    exact, some = two_sample_test(X, Y), two_sample_test(X, Y, n_permutations=1500)
    assert exact.exact and exact.n_permutations == math.comb(13, 6) - 1 and not some.exact and some.n_permutations == 1500 and .02 < exact.p_value < .98
    assert abs(some.p_value - exact.p_value) < 4 * (exact.p_value * (1 - exact.p_value) / 1500) ** .5
    assert some == two_sample_test(X, Y, n_permutations=1500) and some.p_value != two_sample_test(X, Y, n_permutations=1500, random_state=1).p_value

def test_p_is_never_0_and_is_at_most_alpha_that_often():
    X, Y = around(eye(7, 2), 10, .01), around(eye(7, 3)[:, 1:], 10, .01)
    assert two_sample_test(X, Y, n_permutations=99).p_value == .01 == two_sample_test(X, Y, n_permutations=99).smallest_p
    p = torch.stack([two_sample_test(around(eye(6, 2), 6, .5, 2 * i), around(eye(6, 2), 8, .5, 2 * i + 1), n_permutations=39).p_value * torch.ones(()) for i in range(400)])
    for alpha in (.05, .1, .25, .5): assert (p <= alpha + 1e-9).double().mean() < alpha + 3 * (alpha * (1 - alpha) / 400) ** .5

def test_the_default_dtype_changes_nothing():
    X, Y = around(eye(7, 2), 12, .3, 1), around(eye(7, 2), 12, .3, 2)
    test = two_sample_test(X, Y, n_permutations=200)
    torch.set_default_dtype(torch.float64)
    try: assert two_sample_test(X, Y, n_permutations=200) == test
    finally: torch.set_default_dtype(torch.float32)

def test_one_against_many_and_copies():
    X = around(eye(6, 2), 1200, .1)
    assert two_sample_test(X[:1], X[1:]).n_permutations == 1199
    same = two_sample_test(eye(6, 2).expand(3, 6, 2), eye(6, 2).expand(4, 6, 2))
    assert same.p_value == 1 and same.statistic == same.effect == 0

def test_a_batch_is_as_many_tests_and_lists_have_points_of_several_dimensions():
    X, Y = (torch.stack([around(eye(7, 2), 9, s, seed) for s in (.1, .2, .3)], 1) for seed in (1, 2))
    batch = two_sample_test(X, Y, n_permutations=200)
    for i in range(3):
        one = two_sample_test(X[:, i], Y[:, i], n_permutations=200)
        assert (batch.p_value[i], batch.n_permutations) == (one.p_value, 200) and abs(batch.statistic[i] - one.statistic) < 1e-14 and abs(batch.effect[i] - one.effect) < 1e-14
    several = two_sample_test([eye(7, 1), eye(7, 2), *X[:3, 0]], list(Y[:4, 0]))
    assert several.n_permutations == math.comb(9, 4) - 1
    assert two_sample_test(list(X[:, 0]), list(Y[:, 0]), n_permutations=200).p_value == batch.p_value[0]

def test_the_effect_is_what_groups_keep_from_each_other():
    D = torch.tensor([[0, 1, 4, 4], [1, 0, 4, 4], [4, 4, 0, 3], [4, 4, 3, 0]], dtype=torch.float64)
    assert abs(two_sample_test(D, [0, 0, 1, 1], "precomputed").effect - .5) < 1e-15 and abs(two_sample_test(D[:3, :3], [0, 0, 1], "precomputed").effect - .75) < 1e-15
    effects = torch.stack([torch.tensor(two_sample_test(around(eye(6, 2), N, .3, 2 * i), around(eye(6, 2), 4, .3, 2 * i + 1), n_permutations=1).effect) for N in (3, 12) for i in range(100)])
    assert effects.view(2, 100).mean(1).abs().max() < .03 # alike, of any size

def test_invariance_and_precision():
    X, Y = around(eye(7, 2), 9, .2, 1), around(eye(7, 2), 8, .2, 2)
    test = two_sample_test(X, Y, n_permutations=300)
    Q, R = orthonormalize(randn(7, 7)), orthonormalize(randn(2, 2))
    turned = two_sample_test(Q @ X @ R, Q @ Y, n_permutations=300)
    assert turned.p_value == test.p_value and abs(turned.statistic - test.statistic) < 1e-13
    low = two_sample_test(X.float(), Y.float().numpy(), n_permutations=300)
    assert abs(low.p_value - test.p_value) < .011 and abs(low.statistic - test.statistic) < 1e-5
    swapped = two_sample_test(Y, X, n_permutations=300)
    assert abs(swapped.statistic - test.statistic) < 1e-13

def test_precomputed():
    X, Y = around(eye(7, 2), 5, .2, 1), around(eye(7, 2), 4, .2, 2)
    D = pairwise_distances(torch.cat([X, Y]), metric="chordal")
    test, order = two_sample_test(X, Y), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    labels = np.array([False] * 5 + [True] * 4)
    for given in (D, D.numpy()): assert two_sample_test(given, labels, "precomputed").p_value == test.p_value
    mixed = two_sample_test(D[order][:, order], labels[order], "precomputed")
    assert abs(mixed.p_value - test.p_value) < 1e-12 and abs(mixed.statistic - test.statistic) < 1e-13

@pytest.mark.parametrize("X, Y, options, said", [
    (around(eye(7, 2), 3, .1), around(eye(7, 3), 3, .1), {}, "dimensions 2 and 3; pass two lists"),
    (around(eye(7, 2), 3, .1), around(eye(6, 2), 3, .1), {}, "shapes .*7, 2.* and .*6, 2.*; expected stacks"),
    (eye(7, 2), eye(7, 2), {}, "expected stacks"),
    (eye(7, 2)[None], eye(7, 2)[None], {}, "groups of 1 and 1 points; expected three"),
    (2 * eye(7, 2)[None], eye(7, 2)[None], {}, "not orthonormal.*pass orthonormalize"),
    (around(eye(7, 2), 3, .1), around(eye(7, 2), 3, .1), dict(metric="euclid"), "euclid"),
    (around(eye(7, 2), 3, .1), around(eye(7, 2), 3, .1), dict(n_permutations=0), "n_permutations=0; expected 1 or more"),
    (around(eye(7, 2), 3, .1), around(eye(7, 2), 3, .1), dict(n_permutations="many"), "n_permutations is 'many'; expected a whole number"),
    (-torch.ones(4, 4), [0, 0, 1, 1], dict(metric="precomputed"), r"shape \(4, 4\).*symmetric, not negative, diagonal 0"),
    (torch.zeros(4, 5), [0, 0, 1, 1], dict(metric="precomputed"), r"shape \(4, 5\)"),
    (torch.zeros(4, 4), [0, 0, 0, 0], dict(metric="precomputed"), r"1 values.*4 points, of two"),
    (torch.zeros(4, 4), [0, 1], dict(metric="precomputed"), r"shape \(2,\).*4 points"),
])
def test_errors_of_two_samples(X, Y, options, said):
    with pytest.raises(ValueError, match=said): two_sample_test(X, Y, **options)

# the variance

def test_variance_of_two_points_and_of_one_place():
    X, Y = eye(7, 2), GR.expmap(eye(7, 2), .3 * GR.proju(eye(7, 2), randn(7, 2)))
    v = frechet_variance(torch.stack([X, Y]))
    assert abs(v.variance - GR.dist2(X, Y) / 2) < 1e-12 and v.low <= v.variance <= v.high # as of two numbers
    still = frechet_variance(X.expand(4, 7, 2))
    assert still.variance < 1e-20 and still.high < 1e-20 and still.low == 0

def test_the_interval_covers():
    for n, k, N, spread in ((6, 1, 8, .2), (12, 3, 8, .1), (20, 4, 25, .05)):
        truth, seeds = spread ** 2 * k * (n - k), 300
        v = frechet_variance(torch.stack([around(eye(n, k), N, spread, seed) for seed in range(seeds)], 1))
        covered = ((v.low < truth) & (truth < v.high)).double().mean()
        assert .87 < covered < .985 and abs(v.variance.mean() / truth - 1) < 4 * v.std_error.mean() / seeds ** .5 / truth + .01

def test_variance_of_batches_precisions_and_confidences():
    X = torch.stack([around(eye(7, 2), 9, s, 1) for s in (.1, .2)], 1)
    batch, one = frechet_variance(X), frechet_variance(X[:, 1])
    assert abs(batch.variance[1] - one.variance) < 1e-12 and abs(batch.high[1] - one.high) < 1e-12 and batch.mean.mean.shape == (2, 7, 2)
    assert abs(frechet_variance(X.float()).variance - batch.variance).max() < 1e-5
    wide = frechet_variance(X[:, 1], confidence=.99)
    assert wide.low < one.low < one.high < wide.high and wide.confidence == .99

@pytest.mark.parametrize("X, options, said", [
    (eye(7, 2), {}, r"shape \(7, 2\); expected a stack"), (eye(7, 2)[None], {}, r"shape \(1, 7, 2\).*N ≥ 2"),
    (torch.ones(3, 7, 2), {}, "orthonormal"), (around(eye(7, 2), 3, .1), dict(confidence=95), "confidence=95.*between 0 and 1, such as 0.95"),
])
def test_errors_of_a_variance(X, options, said):
    with pytest.raises(ValueError, match=said): frechet_variance(X, **options)

# along a number

def curve(n=12, k=3, N=10, size=1., noise=0., seed=0, batch=()): # points at t in [0, 3] on a geodesic of length `size`, its point at 0 and velocity
    x = orthonormalize(randn(*batch, n, k, seed=seed))
    u = GR.proju(x, randn(*batch, n, k, seed=seed + 1))
    u = size / 3 * u / torch.linalg.matrix_norm(u, 2)[..., None, None]
    t = 3 * torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    Y = GR.expmap(x, t.view(-1, *[1] * x.ndim) * u)
    return GR.expmap(Y, noise * GR.proju(Y, randn(N, *batch, n, k, seed=seed + 2))), t, x, u

@pytest.mark.parametrize("n, k, size", [(3, 1, 1.2), (12, 3, .01), (12, 3, 1.4), (60, 4, 1.), (200, 2, 1.)])
def test_points_on_a_geodesic_are_recovered(n, k, size):
    Y, t, x, u = curve(n, k, 8, size)
    fit = geodesic_regression(Y, t)
    assert fit.converged and fit.point.shape == (n, k) and fit.residual_variance < 1e-16 and abs(fit.center - t.mean()) < 1e-15
    assert GR.dist(fit.predict(0), x) < 1e-7 and GR.dist(fit.predict(t), Y).max() < 1e-7 and GR.dist(fit.predict([4.]), GR.expmap(x, 4 * u)) < 2e-7
    assert (fit.rates - torch.linalg.svdvals(u)).abs().max() < 1e-7 and fit.r2 > 1 - 1e-9 and fit.n_iter < 200

def test_two_points_have_the_geodesic_between_them():
    X, Y = orthonormalize(randn(2, 8, 2))
    fit = geodesic_regression(torch.stack([X, Y]), [1, 3])
    assert GR.dist(fit.predict(2), geodesic(X, Y, .5)) < 1e-7 and abs(fit.velocity.norm() - GR.dist(X, Y) / 2) < 1e-7 and fit.n_permutations == 1 and fit.p_value == 1

def test_lines_against_a_search_over_great_circles():
    Y, t, _, _ = curve(3, 1, 12, 1., .1, seed=5)
    fit = geodesic_regression(Y, t)
    def residual(v): # a great circle by a rotation vector and a start, with formulas of the sphere
        p, w = v[:3] / np.linalg.norm(v[:3]), v[3:] - v[:3] * (v[:3] @ v[3:]) / (v[:3] @ v[:3])
        s = np.linalg.norm(w)
        along = np.cos(s * (t.numpy() - fit.center))[:, None] * p + np.sin(s * (t.numpy() - fit.center))[:, None] * w / s
        return np.mean(np.arccos(np.clip(np.abs((along * Y[..., 0].numpy()).sum(1)), 0, 1)) ** 2)
    start = np.concatenate([fit.point[:, 0], fit.velocity[:, 0]]) + .05 * randn(6).numpy()
    best = minimize(residual, start, method="Nelder-Mead", options=dict(xatol=1e-10, fatol=1e-14, maxiter=5000)).fun
    assert abs(best - fit.residual_variance) < 1e-9 and abs(residual(np.concatenate([fit.point[:, 0], fit.velocity[:, 0]])) - fit.residual_variance) < 1e-12

@pytest.mark.parametrize("noise", [.05, .2])
def test_no_curve_nearby_is_better(noise):
    Y, t, _, _ = curve(noise=noise, seed=3)
    fit, z = geodesic_regression(Y, t), (t - t.mean())[:, None, None]
    assert fit.converged and fit.grad_norm <= 1e-8 and 0 < fit.r2 < 1 and abs(fit.r2 - 1 + fit.residual_variance / fit.variance) < 1e-12
    def residual(h, A, B):
        point, velocity = GR.retr_transp(fit.point, h * A, fit.velocity + h * B)
        return GR.dist2(GR.expmap(point, z * velocity), Y).mean()
    for seed in range(8):
        A, B = (GR.proju(fit.point, randn(12, 3, seed=seed + s)) for s in (0, 50))
        assert abs(residual(1e-5, A, B) - residual(-1e-5, A, B)) / 2e-5 < 1e-8 and residual(1e-3, A, B) > fit.residual_variance

def test_invariance_batch_and_precision():
    Y, t, _, _ = curve(noise=.1, batch=(2,), seed=4)
    both, one = geodesic_regression(Y, t), geodesic_regression(Y[:, 1], t)
    assert both.point.shape == (2, 12, 3) and both.p_value[1] == one.p_value and abs(both.r2[1] - one.r2) < 1e-12 and both.predict(t).shape == Y.shape and both.rates.shape == (2, 3)
    assert GR.dist(both.point[1], one.point) < 1e-6
    Q = orthonormalize(randn(12, 12))
    turned = geodesic_regression(Q @ Y[:, 1] @ orthonormalize(randn(3, 3)), 10 * t - 7)
    assert GR.dist(turned.predict(3.), Q @ one.predict(1.)) < 1e-6 and (10 * turned.rates - one.rates).abs().max() < 1e-6 and turned.p_value == one.p_value
    low = geodesic_regression(Y[:, 1].float(), t.float())
    assert low.point.dtype == low.velocity.dtype == torch.float32 and low.converged and abs(low.r2 - one.r2) < 1e-5
    wide = torch.cat([Y[:, 1], torch.zeros(10, 90, 3)], 1) # in ℝ¹⁰², found in the span
    assert abs(geodesic_regression(wide, t).r2 - one.r2) < 1e-9 and (geodesic_regression(wide, t).velocity[12:].norm() < 1e-12)

def test_directions_are_what_the_curve_turns_towards():
    Y, t, x, u = curve(size=1.2)
    fit = geodesic_regression(Y, t)
    assert (fit.directions.mT @ fit.point).abs().max() < 1e-12 and ((fit.directions * fit.rates).mT @ fit.velocity @ torch.linalg.svd(fit.velocity, full_matrices=False)[2].mT - torch.diag(fit.rates ** 2)).abs().max() < 1e-12

def test_slopes_of_all_orders():
    Y, t, _, _ = curve(N=5, noise=.5, seed=1)
    fit, mean = geodesic_regression(Y, t), karcher_mean(Y).mean
    logs, z = GR.logmap(mean, Y), t - t.mean()
    lengths = torch.tensor([(z[list(order)][:, None, None] * logs).sum(0).norm() for order in itertools.permutations(range(5))])
    assert fit.n_permutations == 119 and abs(fit.p_value - (lengths >= lengths[0] - 1e-9).double().mean()) < 1e-12 and fit.smallest_p == 1 / 120
    assert geodesic_regression(Y, range(5)).smallest_p == 2 / 120 # turned round, the slope is as large

def test_p_of_a_number_that_says_nothing_is_uniform():
    Y = torch.stack([around(eye(6, 2), 8, .3, seed) for seed in range(300)], 1)
    p = geodesic_regression(Y, randn(8), n_permutations=99, max_iter=0).p_value
    for alpha in (.05, .25, .5): assert abs((p <= alpha + 1e-9).double().mean() - alpha) < 3.5 * (alpha * (1 - alpha) / 300) ** .5

def test_a_fit_that_stops_early_says_so_and_one_place_has_no_slope():
    Y, t, _, _ = curve(noise=.3)
    short = geodesic_regression(Y, t, max_iter=1)
    assert short.converged is False and short.n_iter == 1 and short.grad_norm > 1e-8
    still = geodesic_regression(eye(5, 2).expand(4, 5, 2), range(4))
    assert still.r2 == 0 and still.rates.max() < 1e-12 and still.p_value == 1

@pytest.mark.parametrize("X, t, said", [
    (around(eye(7, 2), 3, .1), [1, 2], r"t has shape \(2,\); expected one finite number for each of the 3 points"),
    (around(eye(7, 2), 3, .1), [1, 2, math.nan], "finite number"), (around(eye(7, 2), 3, .1), [2, 2, 2], "t is 2 for all 3 points; expected numbers that differ"),
    (eye(7, 2), [1], r"shape \(7, 2\); expected a stack"), (torch.ones(3, 7, 2), [1, 2, 3], "orthonormal"),
])
def test_errors_of_a_regression(X, t, said):
    with pytest.raises(ValueError, match=said): geodesic_regression(X, t)

# a law

def watson(kappa, n): return hyp1f1(1.5, n / 2 + 1, kappa) / hyp1f1(.5, n / 2, kappa) / n # mean of (mᵀx)² of a line

@pytest.mark.parametrize("n, kappa", [(3, .5), (3, 30.), (12, 8.), (40, 100.)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lines_have_the_moments_of_watson(n, kappa, dtype):
    law = MatrixLangevin(orthonormalize(randn(n, 1)).to(dtype), kappa)
    x = law.sample(4000, sweeps=1)
    h = (law.mode.mT @ x).square()
    assert x.dtype == dtype and x.shape == (4000, n, 1) and (x.mT @ x - 1).abs().max() < 1e-5 and abs(h.mean() - watson(kappa, n)) < 4 * h.std() / 4000 ** .5

def test_planes_of_space_are_normals():
    for kappa in (1., 6.):
        h = MatrixLangevin(eye(3, 1), kappa).sample(4000, k=2)[:, 0].square().sum(-1)
        assert abs(h.mean() - 1 + watson(-kappa, 3)) < 4 * h.std() / 4000 ** .5

def test_no_concentration_is_uniform_and_a_large_one_is_normal():
    h = MatrixLangevin(eye(9, 3), 0).sample(2000).square().sum(-1)
    assert (h.mean(0) - 1 / 3).abs().max() < 4 * h.std() / 2000 ** .5
    u = GR.logmap(eye(9, 3), MatrixLangevin(eye(9, 3), 5000).sample(1000))[:, 3:]
    assert abs(u.square().mean() * 1e4 - 1) < .06 and u.mean(0).abs().max() < 5 * u.std() / 1000 ** .5 and (torch.cov(u.flatten(1).T) * 1e4 - torch.eye(18)).abs().max() < .25

def test_concentrations_belong_to_directions():
    law = MatrixLangevin(torch.eye(6, dtype=torch.float64)[:, [4, 1]], [20., 2.])
    h = law.sample(1500).square().sum(-1).mean(0)
    assert h[4] > h[1] + .2 and h[1] > h[[0, 2, 3, 5]].max() + .05
    X = randn(7, 6, 2)
    X = orthonormalize(X)
    assert (law.log_density(X) - (20 * X[:, 4].square().sum(-1) + 2 * X[:, 1].square().sum(-1))).abs().max() < 1e-13

def test_draws_have_a_seed_and_are_independent():
    law = MatrixLangevin(eye(6, 2), 3.)
    assert law.sample(5).equal(law.sample(5)) and not law.sample(5).equal(law.sample(5, random_state=1))
    h = law.sample(2001).square()[:, 0].sum(-1)
    assert abs(torch.corrcoef(torch.stack([h[1:], h[:-1]]))[0, 1]) < .08

def test_the_fit_of_lines_is_the_exact_one():
    X = MatrixLangevin(eye(5, 1), 9.).sample(60, random_state=2)
    fit = fit_matrix_langevin(X, draws=3000)
    exact = brentq(lambda kappa: watson(kappa, 5) - float(fit.target), .1, 100)
    slope = (watson(exact + 1e-4, 5) - watson(exact - 1e-4, 5)) / 2e-4
    assert abs(fit.law.concentration / exact - 1) < .03 and abs(fit.std_error * (60 * slope) ** .5 - 1) < .15 and fit.chance == .2

def test_the_fit_is_within_its_errors():
    z = []
    for seed in range(12):
        fit = fit_matrix_langevin(MatrixLangevin(eye(10, 3), 25.).sample(40, sweeps=8, random_state=seed), draws=100, steps=6)
        z.append(float((fit.law.concentration[0] - 25) / fit.std_error[0]))
    assert abs(np.mean(z)) < .9 and .5 < np.std(z) < 1.7

def test_the_fit_of_directions():
    law = MatrixLangevin(eye(8, 2), [40., 8.])
    fit = fit_matrix_langevin(law.sample(200, random_state=1).float(), shared=False, draws=600)
    assert fit.law.mode.dtype == torch.float32 and GR.dist(fit.law.mode.double(), eye(8, 2)) < .2
    assert ((fit.law.concentration - torch.tensor([40., 8.])).abs() < 4 * fit.std_error).all() and (fit.reached - fit.target).abs().max() < .02

@pytest.mark.parametrize("make, said", [
    (lambda: MatrixLangevin(eye(5, 2), -1.), "concentration is -1.0; expected a number ≥ 0, or one for each of the 2"),
    (lambda: MatrixLangevin(eye(5, 2), [1., 2., 3.]), "2 columns of mode"), (lambda: MatrixLangevin(eye(5, 2), math.nan), "concentration is nan"),
    (lambda: MatrixLangevin(torch.ones(5, 2), 1.), "orthonormal"), (lambda: MatrixLangevin(torch.eye(4).expand(2, 4, 4), 1.), r"shape \(2, 4, 4\); expected one subspace"),
    (lambda: MatrixLangevin(eye(5, 2), 1.).sample(3, k=5), r"k=5 in ℝ\^5; expected"), (lambda: MatrixLangevin(eye(5, 2), 1.).sample(0), "N=0"),
    (lambda: fit_matrix_langevin(eye(5, 2)), r"shape \(5, 2\); expected a stack"), (lambda: fit_matrix_langevin(eye(5, 2).expand(3, 5, 2)), "all points contain one direction"),
    (lambda: fit_matrix_langevin(around(eye(5, 2), 3, .1), draws=2), "draws=2, steps=12"),
])
def test_errors_of_a_law(make, said):
    with pytest.raises(ValueError, match=said): make()
