"What 01_kernels and 01a_det_kernels promise beside their lessons"
import math, warnings
from functools import partial

import loragrass as lg
import numpy as np
import pytest
import torch
from loragrass import det_kernels
from loragrass.det_kernels import bc_distance, binomial_kernel, laplace_kernel, logarithm_kernel, polynomial_kernel, rbf_kernel
from loragrass.kernels import (BOUNDS, EMBEDDINGS, FORMS, KERNELS, METRICS, Embedding, Form, GrassmannKernel, KernelDegenerateWarning, _projector_gram, distance,
                               gram, kernel_health, named_kernel, overlap, pairwise_distances)
from loragrass.plucker import orthonormalize, principal_angles

def rand(N, n, k, seed=0, dtype=torch.float64):
    return orthonormalize(torch.randn(N, n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).to(dtype)

def turned(X, seed=9): return X @ torch.linalg.qr(torch.randn(len(X), X.shape[-1], X.shape[-1], dtype=X.dtype, generator=torch.Generator().manual_seed(seed)))[0]

def lowest(K):
    e = torch.linalg.eigvalsh(K)
    return float(e[0] / e[-1])

def lines(N):
    t = torch.arange(N, dtype=torch.float64) * math.pi / N
    return torch.stack([t.cos(), t.sin()], -1)[..., None]

SOURCE = [partial(polynomial_kernel, alpha=2, beta=3), partial(rbf_kernel, beta=3), partial(laplace_kernel, beta=3), partial(binomial_kernel, alpha=2, beta=3),
          logarithm_kernel, bc_distance]

@pytest.mark.parametrize("f", [*(partial(gram, kernel=k) for k in KERNELS), *(partial(pairwise_distances, metric=m) for m in METRICS),
                               *(lambda X, Y, e=e: GrassmannKernel("linear", e).log_similarity(X, Y) for e in EMBEDDINGS),
                               *(lambda X, Y, m=m: distance(X[:, None], Y, m) for m in METRICS), *(lambda X, Y, f=f: f(X[:, None], Y) for f in SOURCE)])
def test_a_change_of_basis_and_a_rotation_of_everything_change_nothing(f):
    X, Y, O = rand(4, 7, 3), rand(3, 7, 3, seed=1), rand(1, 7, 7, seed=2)[0]
    K = f(X, Y)
    assert K.shape == (4, 3) and torch.allclose(f(turned(X), turned(Y)), K, atol=1e-12) and torch.allclose(f(O @ X, O @ Y), K, atol=1e-12)

@pytest.mark.parametrize("name", KERNELS)
def test_one_collection_is_that_collection_twice(name):
    X = torch.cat([rand(5, 7, 3), rand(1, 7, 3).expand(3, 7, 3)])
    assert torch.allclose(gram(X, kernel=name), gram(X, X, kernel=name), atol=1e-14) and torch.equal(gram(X, kernel=name), gram(X, kernel=name).T)
    assert torch.allclose(gram(X, kernel=name).diagonal(), torch.full((8,), 0. if "logarithm" in name else 1.).double(), atol=1e-14)

@pytest.mark.filterwarnings("ignore:the default of")
@pytest.mark.parametrize("name", [k for k in KERNELS if "binet" not in k])
def test_lists_of_different_dimension(name):
    bases = [rand(1, 8, k, seed=s)[0] for s, k in enumerate((3, 2, 3, 5))]
    K = gram(bases, kernel=name, beta=None if "binomial" not in name else 20.)
    one = torch.tensor([[gram([x], [y], kernel=GrassmannKernel(*KERNELS[name], tau=.2, beta={"polynomial": 1, "binomial": 20., "linear": None, "logarithm": None}.get(
        KERNELS[name][0], .2))).item() for y in bases] for x in bases], dtype=torch.float64)
    assert torch.allclose(K, one, atol=1e-13) and torch.equal(K, K.T)
    assert torch.allclose(gram(bases, bases[:2], kernel=name, beta=None if "binomial" not in name else 20.), K[:, :2], atol=1e-13)

@pytest.mark.filterwarnings("ignore:the default of")
@pytest.mark.parametrize("name", [k for k in KERNELS if "logarithm" not in k])
@pytest.mark.parametrize("X", [lines(24), rand(40, 4, 2), rand(30, 6, 3), [rand(1, 5, 1 + s % 4, seed=s)[0] for s in range(40)]], ids=["lines", "Gr24", "Gr36", "mixed"])
def test_positive_definite(name, X):
    if isinstance(X, list) and "binet" in name: pytest.skip("one dimension only")
    assert lowest(gram(X, kernel=name)) > -1e-12 and lowest(gram(X, kernel=name, normalize=False)) > -1e-12

@pytest.mark.parametrize("form", FORMS)
def test_abs_det_is_indefinite(form):
    X = rand(150, 4, 2) if form == "laplace" else lines(24)
    K = gram(X, kernel=GrassmannKernel(form, "plucker", abs_det=True, beta=.5 if form == "laplace" else None))
    if form == "logarithm": J = torch.eye(24) - 1 / 24; K = J.double() @ K @ J.double()
    assert lowest(K) < -1e-4

def test_min_of_dimensions_is_no_kernel_and_the_mean_is(): # Laplace for k ≠ l
    bases = [rand(1, 5, 1 + s % 4, seed=s)[0] for s in range(40)]
    T, k = torch.stack([torch.stack([(x.T @ y).square().sum() for y in bases]) for x in bases]), torch.tensor([b.shape[1] for b in bases])
    assert lowest(torch.exp(-(torch.minimum(k[:, None], k) - T).clamp(min=0).sqrt())) < -1e-2 < lowest(gram(bases, kernel="projection_laplace", beta=1.)) + 1e-2

@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pairs_agree_with_single_distances_near_and_far(metric, dtype):
    X = rand(5, 9, 3)
    X = torch.cat([X, orthonormalize(X + 1e-7 * rand(5, 9, 3, seed=1)), orthonormalize(X + 1e-2 * rand(5, 9, 3, seed=2)), torch.eye(9, dtype=torch.float64)[:, :3][None],
                   torch.eye(9, dtype=torch.float64)[:, 3:6][None]]).to(dtype)
    D, single = pairwise_distances(X, metric=metric), distance(X[:, None], X, metric)
    tol = 1e-13 if dtype == torch.float64 else 2e-5
    finite = single.isfinite() & (single < 5) # orthogonal to rounding: Martin's is anything large
    assert ((D - single).abs()[finite & ~torch.eye(len(X)).bool()] < tol).all() and (D.diagonal() == 0).all() and (D[~finite] > 5).all()
    assert D.dtype == dtype and torch.allclose(pairwise_distances(X, X, metric)[finite], single[finite], atol=2e-6 if dtype == torch.float32 else 1e-12)

@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("t", [.03, .06, .11, .18, .3])
def test_sixteen_equal_angles_to_60_eps(t, dtype, metric): # on both sides of where pairs are done again; relative, but of arccos
    Q, R = rand(1, 64, 32)[0], rand(2, 16, 16, seed=1)
    X, Y = (Q[:, :16] @ R[0]).to(dtype), ((Q[:, :16] * math.cos(t) + Q[:, 16:] * math.sin(t)) @ R[1]).to(dtype)
    single = distance(orthonormalize(X.double()), orthonormalize(Y.double()), metric)
    assert abs(pairwise_distances(X[None], Y[None], metric)[0, 0].double() - single) < 60 * torch.finfo(dtype).eps * (1 if METRICS[metric].of == "angles" else single)

def test_precisions_and_sizes_may_differ():
    X, Y = rand(3, 6, 2), rand(2, 6, 2, seed=1)
    for f in (gram, pairwise_distances): assert f(X.float(), Y).equal(f(X.float().double(), Y)) and f(X[:0]).shape == (0, 0) and f(X[:0], Y).shape == (0, 2)

def test_only_three_completions_tell_pairs_apart():
    X, Y = rand(9, 8, 2), rand(1, 8, 3, seed=1)
    assert [m for m in METRICS if pairwise_distances(X, Y, m).unique().numel() > 1 and METRICS[m].of != "log_cos2"] == ["geodesic", "chordal", "procrustes"]
    assert all((pairwise_distances(X, Y, m) == distance(Y[0], X[0], m)).all() for m in METRICS if m not in ("geodesic", "chordal", "procrustes"))

@pytest.mark.parametrize("metric", METRICS)
def test_different_dimensions(metric):
    X, Y = rand(1, 8, 2)[0], rand(1, 8, 4, seed=1)[0]
    D = pairwise_distances([X, Y, X], metric=metric)
    theta = principal_angles(X, Y)
    if METRICS[metric].of == "angles":
        full = torch.cat([theta, torch.full((2,), math.pi / 2).double()])
        assert torch.allclose(distance(X, Y, metric), METRICS[metric].f(full)) and torch.allclose(distance(X, Y, metric, complete=False), METRICS[metric].f(theta))
    assert torch.allclose(D[0, 1], distance(X, Y, metric)) and D[0, 2] < 1e-7 and torch.equal(D, D.T)
    inside = torch.cat([Y[:, :2] @ rand(1, 2, 2)[0]], 1)
    assert distance(inside, Y, metric, complete=False) < 1e-7
    assert torch.allclose(pairwise_distances([X], [Y], metric, complete=False)[0, 0], distance(X, Y, metric, complete=False), atol=1e-12)

def test_chordal_and_geodesic_completions_are_metrics_on_all_dimensions():
    bases = [rand(1, 5, 1 + s % 4, seed=s)[0] for s in range(24)]
    for metric in ("chordal", "geodesic"):
        D = pairwise_distances(bases, metric=metric)
        assert (D[:, None] - D[..., None] - D).max() < 1e-12 and (D + torch.eye(24) > 0).all()

def test_weights():
    X, Y, w, v = rand(4, 9, 3), rand(3, 9, 2, seed=1), torch.rand(4, 3).double() + .1, torch.rand(3, 2).double() + .1
    P, Q = X * w[:, None] @ X.mT, Y * v[:, None] @ Y.mT
    expected = torch.einsum("aij,bij->ab", P, Q) / (P.flatten(1).norm(dim=1)[:, None] * Q.flatten(1).norm(dim=1))
    assert torch.allclose(gram(X, Y, weights=w, weights_Y=7 * v), expected) and torch.allclose(gram(X, weights=torch.ones(4, 3)), gram(X))
    assert torch.allclose(gram(list(X), list(Y), weights=list(w), weights_Y=list(v)), expected)
    plain = torch.einsum("aij,bij->ab", P, Q) * (3 ** .5 / w.norm(dim=1))[:, None] * 2 ** .5 / v.norm(dim=1) # ‖w‖² = k
    assert torch.allclose(gram(X, Y, kernel="projection", weights=w, weights_Y=v, normalize=False), plain)
    assert gram(X, kernel="projection_laplace", weights=w).isfinite().all() and lowest(gram(X, kernel="projection_rbf", weights=w)) > 0

@pytest.mark.parametrize("N, n, k, M, l", [(7, 9, 2, 5, 4), (3, 20, 20, 3, 20), (130, 10, 8, 140, 7), (1, 5, 1, 1, 1)])
def test_both_routes_of_the_overlap(N, n, k, M, l):
    X, Y = rand(N, n, k), rand(M, n, l, seed=1)
    loop = torch.einsum("ank,bnl->abkl", X, Y).square().sum((-2, -1))
    for route in (overlap, _projector_gram):
        assert torch.allclose(route(X, Y), loop) and torch.allclose(route(X), route(X, X)) and torch.equal(route(X), route(X).T)

def test_tiles_cover_every_pair(): # more than one tile, none of full size
    X, Y = rand(150, 40, 16), rand(70, 40, 16, seed=1)
    assert torch.allclose(gram(X, Y, kernel="det_regularized"), torch.cat([gram(x, Y, kernel="det_regularized") for x in X.split(11)]))
    assert torch.allclose(gram(X, kernel="det_regularized"), gram(X, X, kernel="det_regularized"))

@pytest.mark.parametrize("name", KERNELS)
def test_gradients(name): # along tangents: bases stay orthonormal to first order
    X, Y = rand(3, 6, 2), rand(2, 6, 2, seed=1)
    assert torch.autograd.gradcheck(lambda A: gram(orthonormalize(A), Y, kernel=name), X.clone().requires_grad_())

@pytest.mark.parametrize("f", [*(partial(gram, kernel=k) for k in KERNELS), *(partial(pairwise_distances, metric=m) for m in METRICS)])
def test_gradients_are_finite_on_coinciding_and_orthogonal_subspaces(f):
    if getattr(f, "keywords", {}).get("metric") == "martin": pytest.skip("infinite where orthogonal")
    A = torch.cat([rand(2, 8, 2), rand(1, 8, 2), torch.eye(8).double()[None, :, :2], torch.eye(8).double()[None, :, 2:4]]).requires_grad_()
    f(orthonormalize(A)).sum().backward()
    assert A.grad.isfinite().all()

@pytest.mark.parametrize("f", [*(partial(gram, kernel=k) for k in KERNELS), *(partial(pairwise_distances, metric=m) for m in METRICS),
                               lambda X: GrassmannKernel().log_similarity(X), lambda X: kernel_health(gram(X), n=9, k=2)])
def test_precision_device_and_input_are_kept(f):
    for dtype in (torch.float32, torch.float64):
        X = rand(6, 9, 2, dtype=dtype); before = X.clone()
        with torch.device("meta"): K = f(X) # what is made without the input's device fails to mix
        assert torch.equal(X, before) and getattr(K, "dtype", dtype) == dtype

def test_read_only_arrays():
    X = rand(4, 9, 2).numpy(); X.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gram(X).shape == pairwise_distances(X, list(X)).shape == (4, 4)

def test_float32_agrees_with_float64_in_the_log_domain(): # where det² itself is 0 in float32
    X = rand(6, 3072, 64)
    for kernel, tol in ((GrassmannKernel("linear", "plucker"), .1), (GrassmannKernel("linear", "det_regularized"), 1e-5), (GrassmannKernel("linear"), 1e-3)):
        L = kernel.log_similarity(X)
        assert (kernel.log_similarity(X.float()) - L).abs().max() < tol and L[0, 1] < -.01

@pytest.mark.parametrize("name", ["projection", "projection_rbf", "det_regularized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_kernels_are_not_constant_at_k_64(name, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error", KernelDegenerateWarning)
        K = gram(rand(12, 3072, 64, dtype=dtype), kernel=name)
    assert kernel_health(K).distinct > .9 and kernel_health(K).spread > 1e-4

@pytest.mark.parametrize("name, n, k, dtype, warned", [("binet_cauchy_rbf", 768, 16, torch.float64, True), ("binet_cauchy_polynomial", 320, 4, torch.float32, True),
    ("binet_cauchy_rbf", 20, 3, torch.float64, False), ("binet_cauchy", 768, 16, torch.float64, False), ("binet_cauchy", 768, 32, torch.float32, True)])
def test_determinant_kernels_say_so_before(name, n, k, dtype, warned):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        gram(rand(2, n, k, dtype=dtype), kernel=name)
    said = [w for w in seen if w.category is KernelDegenerateWarning]
    assert bool(said) == warned and all(f"Gr({k}, {n})" in str(w.message) and w.filename == __file__ for w in said)

def test_det_regularized_between_projection_and_determinant():
    X = rand(12, 6, 2)
    T, K, det2 = overlap(X), lambda tau: gram(X, kernel="det_regularized", tau=tau), gram(X, kernel="binet_cauchy")
    assert torch.allclose((K(1e-5) - 1) / 1e-5, T - 2, atol=1e-4) and torch.allclose(K(1e8), det2, atol=1e-6)

# kernel_health

def wishart(N=30, n=6): return gram(rand(N, n, 2))

@pytest.mark.parametrize("K, kwargs, verdict", [
    (wishart(), {}, "healthy"), (torch.eye(30) + 1 - 1e-9 * wishart().float(), {}, "degenerate"), (torch.ones(9, 9), {}, "degenerate"), (torch.eye(9), {}, "degenerate"),
    (torch.eye(30).double() + .03 * wishart(), {}, "diagonal-dominated"), (wishart(), {"n_clusters": 15}, "diagonal-dominated"), (wishart(), {"n_clusters": 2}, "healthy"),
    (gram(rand(40, 3, 1), kernel=GrassmannKernel("linear", "plucker", abs_det=True)), {}, "indefinite"),
    (gram(rand(4, 9, 2).repeat_interleave(5, 0)), {}, "healthy"), (gram(rand(10, 9, 2).repeat(2, 1, 1)), {}, "healthy"), (gram(lines(24)), {}, "healthy"), # values repeat
    (gram(lines(24), kernel=GrassmannKernel("linear", "plucker", abs_det=True)), {}, "indefinite"), (torch.eye(20) + .3 * torch.eye(20).flip(0), {}, "healthy"),
    (torch.eye(20) + .01 * torch.eye(20).flip(0), {}, "degenerate"), (gram(rand(400, 6, 3, dtype=torch.float32), kernel="binet_cauchy"), {}, "healthy")]) # det² is proven positive
def test_verdicts(K, kwargs, verdict):
    health = kernel_health(K, **kwargs)
    assert health.verdict == verdict
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert health.warn() is health
    assert [w.category for w in seen] == ([] if verdict == "healthy" else [KernelDegenerateWarning]) and all(w.filename == __file__ for w in seen)

def test_health_knows_the_chance_level():
    n, k = 60, 3
    T = overlap(rand(200, n, k))[tuple(torch.triu_indices(200, 200, 1))] / k
    health = kernel_health(wishart(), n=n, k=k)
    assert abs(T.mean() - health.chance) < 5 * health.chance_std / 100 and abs(T.std() / health.chance_std - 1) < .1
    assert health.log10_det2 < 0 and f"Gr({k}, {n})" in health.advice and kernel_health(wishart()).chance is None

def test_indefiniteness_is_seen_among_many():
    A = gram(rand(2100, 3, 1), kernel=GrassmannKernel("linear", "plucker", abs_det=True))
    assert kernel_health(A).eig_ratio < -1e-3

@pytest.mark.parametrize("f, message", [
    (lambda: gram(rand(3, 6, 2), rand(3, 7, 2)), "ambient dimensions differ: 6 and 7"), (lambda: gram([rand(1, 6, 2)[0], rand(1, 7, 2)[0]]), "ambient dimensions differ"),
    (lambda: gram(rand(3, 6, 2)[0]), "expected a stack"), (lambda: gram([]), "list of 0 arrays"), (lambda: gram(torch.ones(2, 6, 2)), "not orthonormal"),
    (lambda: gram([rand(1, 6, 2)[0], torch.ones(6, 2)]), r"columns of X\[1\] are not orthonormal"), (lambda: gram(rand(2, 6, 2), kernel="rbf"), "kernel 'rbf' is unknown"),
    (lambda: distance(rand(1, 6, 2), rand(1, 6, 2), "euclid"), "metric 'euclid' is unknown"), (lambda: pairwise_distances(rand(1, 6, 2), metric="euclid"), "is unknown"),
    (lambda: GrassmannKernel("cubic"), "form='cubic'"), (lambda: GrassmannKernel("rbf", "angles"), "embedding='angles'"),
    (lambda: GrassmannKernel("polynomial", alpha=1.5), "polynomial needs alpha = 1, 2, 3"), (lambda: GrassmannKernel("binomial", alpha=0), "alpha > 0"),
    (lambda: GrassmannKernel("rbf", beta=0), "rbf needs beta > 0"), (lambda: GrassmannKernel("polynomial", beta=-1), "polynomial needs beta ≥ 0"),
    (lambda: GrassmannKernel(embedding="det_regularized", tau=0), "tau > 0"), (lambda: GrassmannKernel(abs_det=True), "abs_det=True needs embedding='plucker'"),
    (lambda: GrassmannKernel("logarithm", normalize=True), "normalize=True"), (lambda: gram(rand(2, 6, 3), kernel="projection_binomial", beta=3), "beta > t_max = 3"),
    (lambda: gram(rand(2, 6, 3), kernel="binet_cauchy_binomial", beta=1), "beta > t_max = 1"), (lambda: gram(rand(2, 6, 3), rand(2, 6, 2), kernel="binet_cauchy"), "needs one k"),
    (lambda: gram(rand(2, 6, 2), kernel="binet_cauchy", weights=torch.ones(2, 2)), "weights need embedding='projection'"),
    (lambda: gram(rand(2, 6, 2), weights=torch.ones(3, 2)), r"weights of X have shape \(3, 2\); expected \(2, 2\)"),
    (lambda: gram(rand(2, 6, 2), weights=-torch.ones(2, 2)), "none negative"), (lambda: kernel_health(torch.ones(2, 3)), r"shape \(2, 3\)"),
    (lambda: gram(rand(2, 6, 2), weights=torch.full((2, 2), math.inf)), "must be finite"), (lambda: gram(list(rand(2, 6, 2)), weights=[[1, 1]]), "1 weights for the 2 subspaces"),
    (lambda: GrassmannKernel("polynomial", alpha=math.inf), "alpha=inf; polynomial needs"), (lambda: GrassmannKernel("polynomial", alpha=math.nan), "alpha=nan"),
    (lambda: GrassmannKernel("rbf", beta=math.inf), "beta=inf; rbf needs beta > 0, finite"), (lambda: gram(["a"]), r"X\[0\] has dtype <U1"),
    (lambda: kernel_health(torch.ones(9, 9).triu()), "K is not symmetric"), (lambda: kernel_health(wishart(), n=3, k=5), "5 columns in ℝ.3"),
    (lambda: kernel_health(torch.ones(1, 1)), "N ≥ 2"), (lambda: kernel_health(torch.full((2, 2), math.nan)), "4 entries of K are NaN")])
def test_errors_say_what_came_and_what_to_do(f, message):
    with pytest.raises(ValueError, match=message): f()

@pytest.mark.parametrize("name", ["polynomial_kernel", "rbf_kernel", "laplace_kernel", "binomial_kernel", "logarithm_kernel", "bc_distance"])
def test_what_is_no_kernel_is_not_among_them(name):
    assert name not in dir(lg) and name not in lg.__all__
    with pytest.warns(FutureWarning, match=f"now loragrass.det_kernels.{name}") as seen: f = getattr(lg, name)
    assert f is getattr(det_kernels, name) and seen[0].filename == __file__

@pytest.mark.parametrize("f", SOURCE)
def test_source_functions_on_stacks_and_any_basis(f):
    X, Y = (np.random.default_rng(s).normal(size=(3, 6, 2)) for s in (0, 1))
    K = f(X, Y)
    assert K.shape == (3,) and torch.allclose(K[1], f(X[1], Y[1])) and torch.allclose(f(X @ np.array([[2., 1], [0, -3]]), Y), K)
    assert f(X, X).isfinite().all() # |det| of a subspace with itself may round to more than 1
    A = torch.cat([rand(1, 6, 2), torch.eye(6).double()[None, :, 2:4]]).requires_grad_()
    f(A, torch.cat([A[:1].detach(), torch.eye(6).double()[None, :, :2]])).sum().backward() # coinciding and orthogonal
    assert A.grad.isfinite().all()

@pytest.mark.parametrize("f, form, normalize", [(SOURCE[0], "polynomial", False), (SOURCE[1], "rbf", None), (SOURCE[2], "laplace", None), (SOURCE[4], "logarithm", None)])
def test_source_functions_are_the_abs_det_kernels(f, form, normalize):
    X = rand(5, 6, 2)
    K = gram(X, kernel=GrassmannKernel(form, "plucker", beta=3, abs_det=True, normalize=normalize))
    assert torch.allclose(K, f(X[:, None], X), atol=3e-7) # √(1 − t) at identity

# the two tables, and kernels that are fitted

def e2(M, kernel): # e₂ of the cos²θ
    G = M @ M.mT
    return (G.diagonal(dim1=-2, dim2=-1).sum(-1) ** 2 - G.square().sum((-2, -1))) / 2

@pytest.fixture
def more_rows(monkeypatch):
    monkeypatch.setitem(EMBEDDINGS, "pairs", Embedding("e₂(cos²θ)", e2, size=lambda k: k * (k - 1) / 2))
    monkeypatch.setitem(FORMS, "cauchy", Form("1/(1 + β(t_max − t))", lambda d, kernel: 1 / (1 + kernel.beta * d), of="gap"))

def test_a_row_is_all_that_a_kernel_takes(more_rows):
    assert len(KERNELS) == len(list(KERNELS)) == 28 and KERNELS["pairs_rbf"] == ("rbf", "pairs") and KERNELS["binet_cauchy_cauchy"] == ("cauchy", "plucker")
    X = rand(5, 7, 3)
    c = torch.linalg.svdvals(X.mT[:, None] @ X).square()
    t = c[..., 0] * c[..., 1] + c[..., 0] * c[..., 2] + c[..., 1] * c[..., 2]
    assert torch.allclose(gram(X, kernel="pairs_polynomial"), ((1 + t) / 4) ** 2) and torch.allclose(gram(X, kernel="pairs_laplace", beta=2.), (-2 * (3 - t).clamp(min=0).sqrt()).exp(), atol=1e-6)
    assert torch.allclose(gram(X, kernel="projection_cauchy", beta=.5), 1 / (1 + .5 * (3 - overlap(X))))
    for name in (k for k in KERNELS if "pairs" in k or k.endswith("_cauchy") and k != "binet_cauchy"): # the laws of every kernel
        test_a_change_of_basis_and_a_rotation_of_everything_change_nothing(partial(gram, kernel=name))
        test_one_collection_is_that_collection_twice(name)
        test_gradients(name)
        test_precision_device_and_input_are_kept(partial(gram, kernel=name))
        if "logarithm" not in name: test_positive_definite(name, rand(30, 6, 3))
    with pytest.raises(ValueError, match="choose one of .*pairs_cauchy"): gram(X, kernel="none")
    with pytest.raises(ValueError, match="embedding='none' is unknown; choose one of .*, pairs"): GrassmannKernel("rbf", "none")
    with pytest.raises(ValueError, match="cauchy needs beta > 0, finite"): GrassmannKernel("cauchy", beta=0)
    with pytest.raises(ValueError, match="take embedding='projection' or 'det_regularized' or 'pairs'"): gram(list(rand(2, 6, 2)) + list(rand(2, 6, 3)), kernel="binet_cauchy")

@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_what_a_row_says_twice_agrees(embedding): # t by products, by pairs, by logarithm, by angles
    X, Y, row, kernel = rand(6, 9, 3), rand(5, 9, 3, seed=1), EMBEDDINGS[embedding], GrassmannKernel("linear", embedding, tau=.3)
    t, theta = row.t(X.mT[:, None] @ Y, kernel), principal_angles(X[:, None], Y)
    if row.all_pairs: assert torch.allclose(row.all_pairs(X, Y), t)
    if row.log_t: assert torch.allclose(row.log_t(X.mT[:, None] @ Y, kernel).exp() * row.size(3), t)
    assert torch.allclose(row.gap(theta, 0, kernel), row.size(3) - t) and torch.allclose(row.t(X.mT @ X, kernel), torch.tensor(float(row.size(3))).double())
    assert set(BOUNDS) >= {form.alpha for form in FORMS.values()} | {form.beta for form in FORMS.values()}

MIXED = [rand(1, 9, k, seed=k)[0] for k in (2, 3, 5, 3)]

@pytest.mark.parametrize("name", [k for k in KERNELS if "binet" not in k])
def test_a_fitted_kernel_is_one_kernel(name):
    kernel = named_kernel(name).fit(MIXED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        K = kernel(MIXED)
        assert torch.allclose(kernel(MIXED[:2], MIXED), K[:2], atol=1e-14) and torch.allclose(gram(MIXED[:2], kernel=kernel), K[:2, :2], atol=1e-14)
        new = [rand(1, 9, 7)[0], MIXED[0]] # a larger dimension than was trained on
        if "binomial" not in name: assert torch.allclose(kernel(new, MIXED)[1], K[0], atol=1e-14)
        assert torch.allclose(gram(MIXED[:2], MIXED, kernel=kernel, alpha=3), gram(MIXED, kernel=kernel, alpha=3)[:2], atol=1e-14) # other parameters keep what was fitted
    assert kernel.k_ == 5 and named_kernel(name).k_ is None and kernel.fit(MIXED) is kernel

def test_known_values_of_fitted_kernels():
    x, y = (torch.eye(9, dtype=torch.float64)[:, :k] for k in (2, 3)) # ‖xᵀy‖² = 2, t_max − t = ½
    assert torch.allclose(GrassmannKernel("rbf").fit(MIXED)([x], [y]), torch.tensor(-.1).double().exp()) # β = 1/5
    assert torch.allclose(GrassmannKernel("linear", "det_regularized").fit(MIXED)([x], [y]), torch.tensor(1.2 ** -.5).double()) # (1 + τ)² / (1 + τ)^2.5

@pytest.mark.parametrize("name, said", [("projection_rbf", "beta"), ("projection_laplace", "beta"), ("projection_binomial", "beta"), ("det_regularized", "tau"), ("det_regularized_rbf", "beta and tau"),
                                        ("det_regularized_polynomial", "tau"), ("projection", None), ("projection_polynomial", None), ("projection_logarithm", None)])
def test_mixed_dimensions_are_said_where_a_default_follows_them(name, said):
    for X, Y, expected in ((MIXED, None, said), (MIXED[:1], MIXED[1:2], said), (MIXED[1:2], MIXED[3:], None)):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            gram(X, Y, kernel=name)
            gram(X, Y, kernel=name, **{k: 20. for k in ("beta", "tau")})
        assert len(seen) == bool(expected) and all(f"the default of {expected} follows" in str(w.message) and w.filename == __file__ for w in seen)

ODD = {"backwards": lambda A: A[..., ::-1, ::-1], "big-endian": lambda A: A.astype(">f8"), "longdouble": lambda A: A.astype(np.longdouble)}

@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("f", [gram, pairwise_distances, lambda A: gram(list(A), A), lambda A: distance(A[0], A[1]), lambda A: GrassmannKernel().fit(A)(A), lambda A: GrassmannKernel().log_similarity(A),
                               lambda A: gram(A, weights=np.abs(A[:, 0])), lambda A: torch.tensor(kernel_health(A[0].T @ A[0]).eig_ratio), lambda A: polynomial_kernel(A, A, 2, 3)])
def test_arrays_as_people_have_them(f, odd):
    A = rand(4, 9, 3).numpy()
    assert torch.allclose(f(odd(A)), f(np.array(odd(A), dtype=float, order="C")), atol=1e-14)
