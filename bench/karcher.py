"The Karcher mean: time, gradient left and distance from ours, against a textbook loop and other packages' optimisers"
import sys, warnings
from functools import partial

import numpy as np
import torch
from common import machine, medians, peer, table
from loragrass.karcher import GrassmannExact, karcher_mean
from loragrass.plucker import orthonormalize, principal_angles

warnings.simplefilter("ignore")
TOL, GR = 1e-8, GrassmannExact()

def points(size, N=32, n=768, k=16, seed=0): # exp of random tangent vectors of spectral norm `size` at one point
    g = torch.Generator().manual_seed(seed)
    c = orthonormalize(torch.randn(n, k, dtype=torch.float64, generator=g))
    u = GR.proju(c, torch.randn(N, n, k, dtype=torch.float64, generator=g))
    return GR.expmap(c, size * u / torch.linalg.matrix_norm(u, 2)[:, None, None])

def log(x, y): # the usual formulas
    M = x.T @ y
    U, S, Vh = np.linalg.svd(np.linalg.solve(M.T, (y - x @ M).T).T, full_matrices=False)
    return U * np.arctan(S) @ Vh

def exp(x, u):
    U, S, Vh = np.linalg.svd(u, full_matrices=False)
    return np.linalg.qr((x @ Vh.T * np.cos(S) + U * np.sin(S)) @ Vh)[0]

def textbook(Y):
    x = Y[0]
    while np.linalg.norm(g := sum(log(x, y) for y in Y) / len(Y)) > TOL: x = exp(x, g)
    return x

def cost(Y, x): return float(np.sum(np.arccos(np.minimum(np.linalg.svd(x.T @ Y, compute_uv=False), 1)) ** 2) / 2 / len(Y))
def gradient(Y, x): return -sum(log(x, y) for y in Y) / len(Y)

def near(Y): return np.linalg.qr(Y[0] + 1e-3 * np.random.default_rng(0).normal(size=Y[0].shape))[0] # at a point itself autodiff fails

def by_pymanopt(pymanopt, Y, which):
    manifold = pymanopt.manifolds.Grassmann(*Y.shape[1:])
    options = dict(min_gradient_norm=TOL, max_time=30, verbosity=0)
    if which == "CG":
        numpy = pymanopt.function.numpy(manifold)
        problem = pymanopt.Problem(manifold, numpy(partial(cost, Y)), riemannian_gradient=numpy(partial(gradient, Y)))
        return pymanopt.optimizers.ConjugateGradient(**options, max_iterations=500).run(problem, initial_point=near(Y)).point
    T = torch.from_numpy(Y)
    def f(x): return (torch.linalg.svdvals(x.mT @ T).clamp(max=1 - 1e-15).acos() ** 2).sum() / 2 / len(T)
    problem = pymanopt.Problem(manifold, pymanopt.function.pytorch(manifold)(f)) # the Hessian by autodiff
    return pymanopt.optimizers.TrustRegions(**options).run(problem, initial_point=near(Y), maxinner=30, Delta_bar=4., Delta0=1.).point

def by_uqpy(operations, Y, **options):
    return operations.GrassmannOperations.karcher_mean(list(Y), "GradientDescent", sys.modules["UQpy.utilities.distances"].GeodesicDistance(), tolerance=TOL, **options).data

def methods(Y):
    A = Y.numpy()
    fns = {"karcher_mean": lambda: karcher_mean(Y).mean, "textbook fixed point, NumPy": lambda: textbook(A), "geoopt RiemannianSGD on our Grassmann": lambda: karcher_mean(Y, solver="geoopt").mean}
    if pymanopt := peer("pymanopt"):
        for which, name in (("TR", "pymanopt trust regions, autodiff Hessian, tuned"), ("CG", "pymanopt conjugate gradients")): fns[name] = partial(by_pymanopt, pymanopt, A, which)
    if uqpy := peer("UQpy.dimension_reduction.grassmann_manifold.GrassmannOperations"):
        fns |= {"UQpy gradient descent": partial(by_uqpy, uqpy, A), "UQpy, accelerated": partial(by_uqpy, uqpy, A, acceleration=True)}
    else: print("UQpy: install it with --no-deps, for it pins torch 2.2")
    return fns

def one_mean(name, size):
    Y = points(size)
    fns, ours = methods(Y), karcher_mean(Y)
    times, rows = medians(fns), []
    for who, t in times.items():
        x = torch.as_tensor(fns[who]())
        rows.append({"by": who, "CPU ms": 1e3 * t, "× ours": t / times["karcher_mean"], "gradient left": float(GR.logmap(x, Y).mean(0).norm()),
                     "distance from ours": float(principal_angles(x, ours.mean).norm())})
    table(f"Mean of 32 points of Gr(16, 768), {name}: angles to it up to {ours.max_angle:.2f}; float64, gradient ≤ 1e-8 asked of all; unique: {ours.unique}", rows)

def limit(Y, steps): # what no arrangement of the work avoids: each line timed alone
    "CPU seconds of the matrix products and decompositions of a mean found in `steps` steps"
    N, n, k = Y.shape
    A, S = Y.permute(1, 0, 2).flatten(1).contiguous(), Y.mT @ Y
    wide = n > 4 * N * k
    B = torch.linalg.cholesky(A.mT @ A).mT.contiguous() if wide else A
    x = torch.linalg.qr(B[:, :k])[0]
    parts = {"gram": lambda: A.mT @ A, "start": lambda: torch.linalg.eigh(B @ B.mT)} if wide else {"start": lambda: [(B.float().T @ x.float()), (B.float() @ B.float().T[:, :k])]}
    parts |= {"products": lambda: (x.T @ B) @ B.T, "angles": lambda: torch.linalg.eigh(S)}
    times = medians(parts, 3)
    return times.pop("gram", 0) + times.pop("start") * (1 if wide else 3) + (steps + 1) * sum(times.values())

def wide():
    "Few subspaces of a large space: groups of adapters"
    rows = []
    for n, k, N in ((3072, 16, 8), (8192, 16, 8), (200_000, 4, 6)):
        Y = points(.5, N, n, k)
        ours, A = karcher_mean(Y), Y.numpy()
        times = medians({"ours": partial(karcher_mean, Y), "textbook": partial(textbook, A)}, 1)
        apart = principal_angles(torch.as_tensor(textbook(A)), ours.mean).norm()
        rows.append({"points": N, "of": f"Gr({k}, {n})", "CPU ms": 1e3 * times["ours"], "textbook, × ours": times["textbook"] / times["ours"],
                     "machine's limit, ms": 1e3 * limit(Y, ours.n_iter), "apart": float(apart)})
    table("Means of few subspaces of a large space (in the span of all of them where n > 4·N·k)", rows)

def layers(count=48, size=.68):
    Y = torch.stack([points(size, seed=s) for s in range(count)], 1)
    arrays = [Y[:, i].numpy() for i in range(count)]
    times = medians({"karcher_mean, one batch": lambda: karcher_mean(Y), "karcher_mean, one after the other": lambda: [karcher_mean(Y[:, i]) for i in range(count)],
                     "textbook loop": lambda: [textbook(A) for A in arrays]}, 1)
    times["machine's limit"] = count * limit(Y[:, 0], karcher_mean(Y[:, 0]).n_iter)
    table(f"{count} means at once (moderate)", [{"by": name, "CPU s": t, "× ours": t / times["karcher_mean, one batch"]} for name, t in times.items()])
    print("On one core a batch shares no arithmetic: what it saves are the calls, a few milliseconds a mean, which is the noise of this table; it is for cores and GPUs.")

if __name__ == "__main__":
    machine("geoopt", "pymanopt", "UQpy")
    for name, size in (("tight", .29), ("moderate", .68), ("wide", 1.17)): one_mean(name, size)
    wide()
    layers()
