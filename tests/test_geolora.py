"The step of 07 at the edges of its domain: shapes, dtypes, degenerate inputs, errors"
import pytest
import torch

from loragrass.geolora import geolora_step


def problem(m, n, r, dtype=torch.float64, seed=0):
    gen = torch.Generator().manual_seed(seed)
    def randn(*shape): return torch.randn(*shape, dtype=dtype, generator=gen)
    return torch.linalg.qr(randn(m, r))[0], randn(r, r), torch.linalg.qr(randn(n, r))[0], randn(m, n)

def tangent(G, U, V): return U @ U.mT @ G + G @ V @ V.mT - U @ U.mT @ G @ V @ V.mT

def dense(step): return step.U @ step.S @ step.V.mT

def check_orthonormal(step, atol):
    for Q in (step.U, step.V): assert (Q.mT @ Q - torch.eye(step.rank, dtype=Q.dtype)).abs().max() < atol

@pytest.mark.parametrize("m, n, r", [(12, 9, 1), (12, 9, 4), (9, 12, 4), (12, 9, 7), (12, 9, 9), (9, 9, 9), (10, 256, 8), (2, 3, 1)])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_step_is_projected_descent(m, n, r, dtype, atol):
    U, S, V, G = problem(m, n, r, dtype)
    step = geolora_step(U, S, V, G @ V, G.mT @ U, lr=0.3)
    assert (dense(step) - (U @ S @ V.mT - 0.3 * tangent(G, U, V))).abs().max() < atol
    assert step.rank == min(2 * r, m, n) and step.U.dtype == step.S.dtype == step.V.dtype == dtype
    check_orthonormal(step, atol / 10)

@pytest.mark.parametrize("gradient", ["zero", "inside", "rank one", "tiny residual"])
def test_gradients_that_add_little(gradient):
    U, S, V, G = problem(20, 15, 5)
    one = torch.outer(G[:, 0], G[0])
    G = {"zero": 0 * G, "inside": U @ U.mT @ G @ V @ V.mT, "rank one": one, "tiny residual": U @ U.mT @ G @ V @ V.mT + 1e-11 * G}[gradient]
    step = geolora_step(U, S, V, G @ V, G.mT @ U, lr=0.3)
    assert (dense(step) - (U @ S @ V.mT - 0.3 * tangent(G, U, V))).abs().max() < 1e-13
    assert step.rank == (6 if gradient == "rank one" else 5)
    check_orthonormal(step, 1e-13)

@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_lossless_truncation_of_a_nonsymmetric_core_changes_nothing(dtype, atol):
    U, S, V, _ = problem(20, 15, 5, dtype)
    step = geolora_step(U, S, V, torch.zeros_like(U), torch.zeros_like(V), lr=1.)
    assert (dense(step) - U @ S @ V.mT).abs().max() < atol and step.rank == 5

@pytest.mark.parametrize("tau", [0.01, 0.1, 0.5, 0.9])
def test_tau_is_kept_and_the_rank_is_minimal(tau):
    U, S, V, G = problem(40, 30, 8)
    W = U @ S @ V.mT - 0.1 * tangent(G, U, V)
    step = geolora_step(U, S, V, G @ V, G.mT @ U, lr=0.1, tau=tau)
    assert (W - dense(step)).norm() / W.norm() == pytest.approx(step.rel_error, abs=1e-12) and step.rel_error <= tau
    assert geolora_step(U, S, V, G @ V, G.mT @ U, lr=0.1, tau=tau, rank_max=max(step.rank - 1, 1)).rel_error > tau or step.rank == 1

def test_rank_limits():
    U, S, V, G = problem(40, 30, 8)
    ranks = [geolora_step(U, S, V, G @ V, G.mT @ U, 0.1, tau, rank_min, rank_max).rank
             for tau, rank_min, rank_max in ((0., 1, 5), (0.99, 6, None), (0.99, 100, None), (0., 3, 3))]
    assert ranks == [5, 6, 16, 3]

def test_parameters_are_taken_without_a_graph():
    U, S, V, G = problem(12, 9, 3)
    step = geolora_step(U.requires_grad_(), S.requires_grad_(), V.requires_grad_(), G @ V, G.mT @ U, lr=0.1)
    assert not any(x.requires_grad for x in step[:3])

def test_orthonormality_does_not_drift():
    U, S, V, G = problem(12, 9, 3, torch.float32)
    gen = torch.Generator().manual_seed(1)
    for _ in range(2000):
        G_noisy = U @ S @ V.mT - G + 0.5 * torch.randn(12, 9, generator=gen)
        step = geolora_step(U, S, V, G_noisy @ V, G_noisy.mT @ U, lr=0.05, tau=0.1)
        U, S, V = step[:3]
    check_orthonormal(step, 1e-5)

@pytest.mark.parametrize("change, message", [
    (dict(G_K=torch.zeros(9, 3), G_L=torch.zeros(12, 3)), "G_K = G V belongs to U"),
    (dict(S=torch.zeros(3)), r"shapes .* expected"),
    (dict(U=torch.ones(12, 3)), "columns of U are not orthonormal .* orthonormalise U"),
    (dict(V=torch.full((9, 3), torch.nan)), "columns of V are not orthonormal"),
    (dict(G_L=torch.full((9, 3), torch.inf)), "27 of 27 entries of G_L are NaN or infinite"),
    (dict(S=torch.zeros(3, 3, dtype=torch.float64)), "dtypes .* expected one"),
    (dict(tau=1.), "tau=1.0; expected"),
    (dict(rank_min=0), "rank_min=0"),
    (dict(rank_min=4, rank_max=3), "rank_max=3"),
])
def test_errors_say_what_to_do(change, message):
    U, S, V, G = problem(12, 9, 3, torch.float32)
    with pytest.raises(ValueError, match=message): geolora_step(**(dict(U=U, S=S, V=V, G_K=G @ V, G_L=G.mT @ U, lr=0.1) | change))
