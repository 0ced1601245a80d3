"What 02d_statistics promises beside its lessons: exact p-values, every form of input, invariances, both precisions, and errors that say what came"
import itertools, math

import numpy as np
import pytest, torch
from loragrass.karcher import Grassmann
from loragrass.kernels import pairwise_distances
from loragrass.plucker import orthonormalize
from loragrass.statistics import frechet_variance, two_sample_test

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
