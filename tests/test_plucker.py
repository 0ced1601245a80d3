"What 00_plucker promises beside its lessons: against mpmath, under a change of basis, on stacks, for every input it accepts or refuses"
import itertools, math, warnings

import mpmath
import numpy as np
import pytest
import torch
from loragrass.plucker import (expected_log_det2, orthonormalize, plucker_basis, plucker_embedding, plucker_inner_product, plucker_relations,
                               principal_angles)

def randn(*shape, seed=0, dtype=torch.float64): return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))

def planted(theta, n, dtype, seed=0):
    k = len(theta)
    Q = torch.linalg.qr(randn(n, 2 * k, seed=seed))[0]
    X, Y = Q[:, :k], Q[:, :k] * theta.cos() + Q[:, k:] * theta.sin()
    U, V = (torch.linalg.qr(randn(k, k, seed=s))[0] for s in (seed + 1, seed + 2))
    return (X @ U).to(dtype), (Y @ V).to(dtype)

def exact_angles(X, Y): # of the spans of the rounded matrices, to 60 digits
    with mpmath.workdps(60):
        Qx, Qy = (mpmath.qr(mpmath.matrix(Z.double().tolist()), mode="skinny")[0] for Z in (X, Y))
        C = mpmath.svd_r(Qx.T * Qy, compute_uv=False)
        S = mpmath.svd_r(Qy - Qx * (Qx.T * Qy), compute_uv=False)
        return torch.tensor([float(mpmath.atan2(s, c)) for c, s in zip(C, reversed(list(S)))], dtype=torch.float64)

half_pi = math.pi / 2
SPECTRA = {"tiny": [1e-12, 1e-10, 1e-9, 1e-8], "near π/2": [half_pi - 1e-3, half_pi - 1e-6, half_pi - 1e-9, half_pi],
           "mixed": [1e-10, 1e-5, 0.7, half_pi - 1e-8], "repeated": [0.3, 0.3, 0.3, 0.3], "zero": [0, 0, 0, 0]}

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_angles_to_50_eps(name, dtype):
    X, Y = planted(torch.tensor(SPECTRA[name], dtype=torch.float64), 12, dtype)
    assert (principal_angles(X, Y).double() - exact_angles(X, Y)).abs().max() <= 50 * torch.finfo(dtype).eps

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_angles_to_50_eps_at_real_size(dtype): # planted angles: the float32 inputs are float64 truth, rounded
    theta = torch.cat([torch.logspace(-10, 0, 14, dtype=torch.float64), torch.tensor([half_pi - 1e-7, half_pi], dtype=torch.float64)])
    assert (principal_angles(*planted(theta, 768, dtype)).double() - theta).abs().max() <= 50 * torch.finfo(dtype).eps

def test_angles_of_different_dimensions():
    X, Y = orthonormalize(randn(9, 2)), orthonormalize(randn(9, 5, seed=1))
    assert torch.equal(principal_angles(X, Y), principal_angles(Y, X)) and principal_angles(X, Y).shape == (2,)
    assert torch.allclose(principal_angles(X, torch.cat([X, orthonormalize(randn(9, 4, seed=2))[:, :0]], 1)), torch.zeros(2).double(), atol=1e-15)
    assert principal_angles(Y, torch.eye(9).double()).max() < 1e-15

def invariant(X): # functions of the subspace, no basis in them
    return [principal_angles(X, orthonormalize(randn(8, 3, seed=5))), plucker_inner_product(X, orthonormalize(randn(8, 3, seed=5))).abs(),
            plucker_inner_product(X, orthonormalize(randn(8, 3, seed=5)), log=True)[1], plucker_embedding(X)[:, None] * plucker_embedding(X),
            plucker_basis(plucker_embedding(X), 8, 3) @ plucker_basis(plucker_embedding(X), 8, 3).T,
            plucker_relations(plucker_embedding(X), 8, 3), orthonormalize(X) @ orthonormalize(X).T]

def test_a_change_of_basis_changes_nothing():
    X, Q = orthonormalize(randn(8, 3)), torch.linalg.qr(randn(3, 3, seed=1))[0]
    for a, b in zip(invariant(X), invariant(X @ Q)): assert torch.allclose(a, b, atol=1e-13)

@pytest.mark.parametrize("pair", [(0.7, 0.7), (1e-9, half_pi), (0.2, 1.1)])
def test_gradient_of_the_angles(pair): # along a geodesic the squared distance changes by 2θ per radian
    theta = torch.tensor(pair, dtype=torch.float64)
    X, Y = planted(theta, 7, torch.float64)
    x = X.clone().requires_grad_()
    principal_angles(x, Y).square().sum().backward()
    G = x.grad - X @ (X.T @ x.grad)
    assert torch.allclose(G.norm(), 2 * theta.norm(), rtol=1e-6)
    step, f = 1e-6, lambda Z: float(principal_angles(orthonormalize(Z), Y).square().sum())
    D = torch.linalg.qr(randn(7, 2, seed=3))[0]; D = D - X @ (X.T @ D)
    if max(pair) < half_pi: assert abs((f(X + step * D) - f(X - step * D)) / (2 * step) - float((G * D).sum())) < 1e-6

def test_gradients_are_finite_where_angles_are_zero():
    X = orthonormalize(randn(7, 3)).requires_grad_()
    principal_angles(X, X.detach()).square().sum().backward()
    assert X.grad.abs().max() < 1e-14

@pytest.mark.parametrize("n, k", [(6, 2), (6, 4)])
def test_gradient_of_the_coordinates(n, k): assert torch.autograd.gradcheck(plucker_embedding, randn(2, n, k).requires_grad_())

def test_gradient_of_basis_and_inner_product():
    A, B = randn(6, 3).requires_grad_(), randn(6, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(orthonormalize, A) and torch.autograd.gradcheck(plucker_inner_product, (A, B))

@pytest.mark.parametrize("n, k", [(4, 1), (5, 2), (6, 3), (6, 5), (4, 4), (7, 4), (40, 38)])
def test_coordinates_on_stacks(n, k):
    X = randn(2, 3, n, k)
    p = plucker_embedding(X)
    rows = [list(I) for I in itertools.combinations(range(n), k)]
    assert p.shape == (2, 3, math.comb(n, k)) and torch.allclose(p, torch.stack([torch.linalg.det(X[..., I, :]) for I in rows], -1))
    Y = randn(3, n, k, seed=1)
    assert torch.allclose(plucker_inner_product(X, Y), (p * plucker_embedding(Y)).sum(-1))
    basis = plucker_basis(p, n, k)
    assert torch.allclose(plucker_embedding(basis), p / p.norm(dim=-1, keepdim=True), atol=1e-12)
    if math.comb(n, k - 1) * math.comb(n, k + 1) < 1e5:
        R = plucker_relations(p, n, k)
        assert R.shape == (2, 3, math.comb(n, k - 1), math.comb(n, k + 1)) and (R.numel() == 0 or R.abs().max() < 1e-12 * p.square().sum(-1).max())

@pytest.mark.parametrize("n, k", [(4, 2), (5, 2), (6, 3)])
def test_relations_and_basis_refuse_what_is_no_subspace(n, k):
    p = randn(math.comb(n, k))
    assert plucker_relations(p, n, k).abs().max() > 1e-2
    with pytest.raises(ValueError, match="belongs to no subspace"): plucker_basis(p, n, k)
    for bad in (torch.zeros(math.comb(n, k)), torch.full((math.comb(n, k),), math.nan)):
        with pytest.raises(ValueError, match="belongs to no subspace"): plucker_basis(bad, n, k)

def test_basis_from_noisy_coordinates():
    X = orthonormalize(randn(6, 3))
    p = plucker_embedding(X) + 1e-3 * randn(20, seed=1)
    assert principal_angles(plucker_basis(p, 6, 3, atol=.1), X).max() < 5e-3

def test_batches_agree_with_loops():
    A, B = randn(4, 1, 8, 3), randn(2, 8, 3, seed=1)
    Q, theta = orthonormalize(A), principal_angles(orthonormalize(A), orthonormalize(B))
    assert Q.shape == (4, 1, 8, 3) and theta.shape == (4, 2, 3)
    assert torch.allclose(theta[3, 1], principal_angles(orthonormalize(A[3, 0]), orthonormalize(B[1])))
    assert plucker_basis(randn(2, 3).half(), 3, 1).dtype == torch.float32 and plucker_basis(randn(0, 3), 3, 1).shape == (0, 3, 1)
    assert orthonormalize(A[:0]).shape == (0, 1, 8, 3) and principal_angles(Q[:0], Q[:0]).shape == (0, 1, 3)

@pytest.mark.parametrize("kind, out", [(np.float32, torch.float32), (np.float64, torch.float64), (np.float16, torch.float32), (np.int64, torch.float64)])
def test_read_only_arrays_of_any_precision(kind, out):
    A = (8 * np.random.default_rng(0).normal(size=(6, 2))).astype(kind); A.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Q = orthonormalize(A)
        p = plucker_embedding(A)
        principal_angles(Q.numpy(), Q.numpy())
    assert Q.dtype == p.dtype == out

@pytest.mark.parametrize("f", [orthonormalize, lambda A: orthonormalize(A, rank=2), plucker_embedding, lambda A: plucker_inner_product(A, A),
                               lambda A: plucker_basis(plucker_embedding(A), 6, 3), lambda A: principal_angles(orthonormalize(A), orthonormalize(A))])
def test_inputs_are_never_changed_nor_their_precision(f):
    for dtype in (torch.float32, torch.float64):
        A = randn(6, 3, dtype=dtype); before = A.clone()
        assert f(A).dtype == dtype and torch.equal(A, before)

@pytest.mark.parametrize("f", [orthonormalize, lambda A: orthonormalize(A, rank=2), plucker_embedding, lambda A: plucker_inner_product(A, A, log=True),
                               lambda A: plucker_basis(plucker_embedding(A), 7, 3), lambda A: plucker_relations(plucker_embedding(A), 7, 3),
                               lambda A: principal_angles(orthonormalize(A), orthonormalize(A)), lambda A: expected_log_det2(7, 3)])
def test_no_tensor_is_made_on_another_device(f):
    A = randn(7, 3)
    with torch.device("meta"): f(A) # whatever is made without the input's device lands on meta, and fails to mix

@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_of_columns_do_not_matter(scale):
    A = randn(9, 3)
    assert principal_angles(orthonormalize(A * torch.tensor([1, scale, 1e-5])), orthonormalize(A)).max() < 1e-14

def test_orthonormalize_keeps_orthonormal_columns_and_orientation():
    Q, A = orthonormalize(randn(9, 3)), randn(9, 3, seed=1)
    for X in (Q, -Q): assert torch.allclose(orthonormalize(X), X, atol=1e-15)
    assert plucker_inner_product(orthonormalize(A), A) > 0

@pytest.mark.parametrize("condition", [1e3, 1e8, 1e12])
def test_orthogonality_does_not_depend_on_the_condition(condition):
    A = torch.linalg.qr(randn(50, 10))[0] * torch.logspace(0, -math.log10(condition), 10, dtype=torch.float64) @ torch.linalg.qr(randn(10, 10))[0]
    Q = orthonormalize(A)
    assert (Q.T @ Q - torch.eye(10)).abs().max() < 5e-15

def test_rank_keeps_the_leading_directions():
    U, V = torch.linalg.qr(randn(12, 5))[0], torch.linalg.qr(randn(20, 5, seed=1))[0]
    W = U * torch.tensor([5., 4, 3, 1e-3, 0]).double() @ V.T
    assert principal_angles(orthonormalize(W, rank=3), U[:, :3]).max() < 1e-14 and orthonormalize(W, rank=4).shape == (12, 4)
    with pytest.raises(ValueError, match="has 4 independent columns"): orthonormalize(W, rank=5)
    assert orthonormalize(W, rank=3, rtol=1e-2).shape == (12, 3)
    with pytest.raises(ValueError, match="has 3 independent columns"): orthonormalize(W, rank=4, rtol=1e-2)

@pytest.mark.parametrize("A, message", [
    (torch.tensor([[1., 2], [2, 4], [3, 6]]), "A has 1 independent columns"), (torch.zeros(3, 2), "A has 0 independent columns"),
    (torch.stack([torch.eye(3)[:, :2], torch.ones(3, 2)]), r"A\[1\] has 1 independent"), (torch.ones(2, 3), "transpose"),
    (torch.tensor([[1., math.nan], [0, 1], [0, 0]]), r"A\[0, 1\] is NaN or infinite"), (torch.tensor([[1., 0], [math.inf, 1], [0, 0]]), r"A\[1, 0\]"),
    ("a", "A has dtype <U1; expected numbers"), (None, "A has dtype object"), (torch.ones(3), "expected real numbers"), (torch.ones(3, 0), "expected real numbers"), (torch.ones(3, 2) * 1j, "expected real numbers")])
def test_orthonormalize_refuses(A, message):
    with pytest.raises(ValueError, match=message): orthonormalize(A)

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounded_dependence_is_dependence(dtype):
    with pytest.raises(ValueError, match="has 15 independent"): orthonormalize(randn(768, 15, dtype=dtype) @ randn(15, 16, dtype=dtype, seed=1))

@pytest.mark.parametrize("f, message", [
    (lambda: principal_angles(torch.eye(3)[:, :2], torch.eye(4)[:, :2]), "ambient dimensions differ: 3 and 4"),
    (lambda: principal_angles(torch.ones(3, 2), torch.eye(3)[:, :2]), "columns of X are not orthonormal"),
    (lambda: principal_angles(torch.eye(3)[:, :2], torch.eye(3)[:, :2] * math.nan), "columns of Y are not orthonormal"),
    (lambda: plucker_inner_product(torch.eye(3)[:, :2], torch.eye(3)[:, :1]), "dimensions differ: 2 and 1"),
    (lambda: orthonormalize(torch.eye(3), rank=1.5), "rank=1.5 of a 3 × 3"), (lambda: plucker_basis(torch.ones(3) * 1j, 3, 1), "complex64; expected real"),
    (lambda: expected_log_det2(3, 5), "5 columns in ℝ.3; expected 1 ≤ k ≤ n"),
    (lambda: plucker_embedding(torch.ones(4, 2)), "dependent or NaN"), (lambda: plucker_embedding(torch.ones(2, 4)), "4 columns in ℝ"),
    (lambda: plucker_embedding(torch.eye(60)[:, :30]), "1.18e\\+17 coordinates, more than 1e6"),
    (lambda: plucker_relations(torch.ones(5), 4, 2), r"Gr\(2, 4\) has C\(4, 2\) = 6"), (lambda: plucker_basis(torch.ones(6), 3, 4), "4 columns in ℝ"),
    (lambda: plucker_relations(torch.ones(math.comb(22, 5)), 22, 5), "relations, more than 1e8")])
def test_errors_say_what_came_and_what_to_do(f, message):
    with pytest.raises(ValueError, match=message): f()

def test_inner_product_where_the_determinant_underflows():
    X, Y = (orthonormalize(randn(2000, 150, seed=s)) for s in (0, 1))
    sign, log = plucker_inner_product(X, Y, log=True)
    f32 = plucker_inner_product(X.float(), Y.float(), log=True)
    assert abs(sign) == 1 and f32[0] == sign and torch.allclose(f32[1].double(), log, atol=1e-2) and plucker_inner_product(X.float(), Y.float()) == 0
    assert abs(2 * log - expected_log_det2(2000, 150)) < 20

def test_expected_log_det2_known_values(): # lines in the plane: the mean of log cos² is −2 log 2
    assert expected_log_det2(2, 1) == pytest.approx(-2 * math.log(2), abs=1e-14) and expected_log_det2(5, 5) == 0

def test_planes_are_pairs_of_points_on_spheres(): # for α + β ≤ π half of it is the larger angle, beyond it π less that
    X, Y = orthonormalize(randn(200, 4, 2)), orthonormalize(randn(200, 4, 2, seed=1))
    def spheres(Z):
        p01, p02, p03, p12, p13, p23 = plucker_embedding(Z).unbind(-1)
        return torch.stack([p01 + p23, p02 - p13, p03 + p12], -1), torch.stack([p01 - p23, p02 + p13, p03 - p12], -1)
    alpha, beta = ((a * b).sum(-1).clamp(-1, 1).acos() for a, b in zip(spheres(X), spheres(Y)))
    larger = torch.where(alpha + beta <= math.pi, (alpha + beta) / 2, math.pi - (alpha + beta) / 2)
    angles = torch.stack([(alpha - beta).abs() / 2, larger], -1)
    assert torch.allclose(angles, principal_angles(X, Y), atol=1e-7) and 20 < (alpha + beta > math.pi).sum() < 180

def test_zero_satisfies_the_relations_and_is_no_subspace():
    assert (plucker_relations(torch.zeros(20), 6, 3) == 0).all()
    with pytest.raises(ValueError, match="belongs to no subspace"): plucker_basis(torch.zeros(20), 6, 3)

ODD = {"backwards": lambda A: A[::-1, ::-1], "big-endian": lambda A: A.astype(">f8"), "longdouble": lambda A: A.astype(np.longdouble), "list": lambda A: A.tolist()}

@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("f", [orthonormalize, lambda A: orthonormalize(A, rank=2), plucker_embedding, lambda A: plucker_inner_product(A, A), lambda A: principal_angles(A, A),
                               lambda A: plucker_relations(np.asarray(A)[:, 0], 7, 1), lambda A: plucker_basis(np.asarray(A)[:, 0], 7, 1)])
def test_arrays_as_people_have_them(f, odd):
    A = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 3)))[0]
    with torch.device("meta"): assert f(odd(A)).equal(f(np.array(odd(A), dtype=float, order="C"))) # and on the CPU, whatever the default
