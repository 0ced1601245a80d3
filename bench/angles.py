"Principal angles, logarithms and distances: the largest error of each way, in units of eps, over spectra that are known"
import math, warnings

import scipy.linalg
import torch
from common import machine, medians, peer, table
from loragrass.karcher import GrassmannExact
from loragrass.plucker import orthonormalize, principal_angles

warnings.simplefilter("ignore")
N, K = 768, 16
MANIFOLD = GrassmannExact()

def planted(theta, dtype, seed, n=N): # a pair with these angles, each in a random basis
    g = torch.Generator().manual_seed(seed)
    Q, k = torch.linalg.qr(torch.randn(n, 2 * len(theta), dtype=torch.float64, generator=g))[0], len(theta)
    R = torch.linalg.qr(torch.randn(2, k, k, dtype=torch.float64, generator=g))[0]
    return (Q[:, :k] @ R[0]).to(dtype), ((Q[:, :k] * theta.cos() + Q[:, k:] * theta.sin()) @ R[1]).to(dtype)

def spectra(seed):
    g = torch.Generator().manual_seed(seed)
    log = 10 ** (-12 * torch.rand(K, dtype=torch.float64, generator=g))
    return {"anywhere": math.pi / 2 * torch.rand(K, dtype=torch.float64, generator=g), "small, 1e-12 … 1": log, "near π/2": math.pi / 2 - log.clamp(max=.1),
            "mixed, 1e-12 … π/2": torch.where(torch.arange(K) % 2 == 0, log, math.pi / 2 - log.clamp(max=.7)),
            "identical": torch.zeros(K, dtype=torch.float64), "orthogonal": torch.full((K,), math.pi / 2, dtype=torch.float64)}

def by_cosines(X, Y): return torch.linalg.svdvals(X.mT @ Y).clamp(max=1).acos()
def by_scipy(X, Y): return torch.from_numpy(scipy.linalg.subspace_angles(X.numpy(), Y.numpy())[::-1].copy())
ANGLES = {"principal_angles": principal_angles, "scipy.linalg.subspace_angles": by_scipy, "arccos of the cosines (pymanopt, UQpy)": by_cosines}

def angles(dtype, seeds=8):
    eps, worst = torch.finfo(dtype).eps, {name: {} for name in ANGLES}
    for seed in range(seeds):
        for kind, theta in spectra(seed).items():
            X, Y = planted(theta, dtype, seed)
            for name, f in ANGLES.items():
                error = float((f(X, Y).double() - theta.sort().values).abs().max()) / eps
                worst[name][kind] = max(worst[name].get(kind, 0.), error)
    table(f"Largest error of {K} angles in ℝ^{N}, {dtype}, in eps ({seeds} pairs a column; ≤ 50 is the aim)", [{"by": name} | errors for name, errors in worst.items()])

def inverse_log(x, y): # the usual formula, (I − xxᵀ) y (xᵀy)⁻¹ = U tan(Θ) Vᵀ
    M = x.mT @ y
    U, S, Vh = torch.linalg.svd(torch.linalg.solve(M.mT, (y - x @ M).mT).mT, full_matrices=False)
    return U * S.atan() @ Vh

def maps(dtype, seeds=8):
    LOGS, rows = {"Grassmann.logmap": MANIFOLD.logmap, "inverse of xᵀy (pymanopt, UQpy)": inverse_log}, []
    if dtype == torch.float64 and (pymanopt := peer("pymanopt.manifolds")):
        LOGS["pymanopt.Grassmann.log"] = lambda x, y: torch.from_numpy(pymanopt.Grassmann(N, K).log(x.numpy(), y.numpy()))
    for name, log in LOGS.items():
        trip, same, vertical = [], [], []
        for seed in range(seeds):
            for theta in spectra(seed).values():
                x, y = planted(theta.clamp(max=math.pi / 2 - 1e-6), dtype, seed)
                u = log(x, y)
                back = MANIFOLD.expmap(x, u)
                trip.append(float(torch.linalg.matrix_norm(back - y @ (y.mT @ back), 2)))
                vertical.append(float((x.mT @ u).norm() / u.norm()) if theta.any() else 0.)
            turn = orthonormalize(torch.randn(K, K, dtype=dtype, generator=torch.Generator().manual_seed(seed)))
            same.append(float(log(x, x @ turn).norm()))
        rows.append({"logarithm": name, "sin of the angle between exp(log y) and y": max(trip), "‖log x(xQ)‖": max(same), "‖xᵀu‖ / ‖u‖": max(vertical)})
    table(f"There and back on Gr({K}, {N}), {dtype}, largest of {6 * seeds} pairs (aims: {'1e-13' if dtype == torch.float64 else '2e-6'}, 0)", rows)

def by_projectors(n=64, seeds=4): # geomstats: n × n projectors and a matrix logarithm, on a space small enough for it
    if not (geomstats := peer("geomstats.geometry.grassmannian")): return
    metric, rows = geomstats.Grassmannian(n, K).metric, []
    for kind in spectra(0):
        worst = {"Grassmann.logmap": 0., "geomstats log": 0.}
        for seed in range(seeds):
            theta = spectra(seed)[kind].clamp(max=math.pi / 2 - 1e-6)
            x, y = planted(theta, torch.float64, seed, n)
            lengths = MANIFOLD.logmap(x, y).norm(), torch.as_tensor(metric.log((y @ y.T).numpy(), (x @ x.T).numpy())).norm() / 2 ** .5
            for name, length in zip(worst, lengths): worst[name] = max(worst[name], float((length - theta.norm()).abs()))
        rows.append({"angles": kind} | worst)
    table(f"Error of the distance on Gr({K}, {n}), as the length of the logarithm [rad]", rows)

def speed(batch=200):
    pairs = [planted(spectra(seed)["anywhere"], torch.float64, seed) for seed in range(batch)]
    X, Y = (torch.stack(t) for t in zip(*pairs))
    times = medians({"principal_angles": lambda: principal_angles(X, Y), "scipy.linalg.subspace_angles": lambda: [by_scipy(x, y) for x, y in pairs],
                     "arccos of the cosines": lambda: by_cosines(X, Y)}, 5)
    table(f"{batch} pairs of Gr({K}, {N}), float64", [{"by": name, "CPU ms a pair": 1e3 * t / batch, "× ours": t / times["principal_angles"]} for name, t in times.items()])

if __name__ == "__main__":
    machine("pymanopt")
    for dtype in (torch.float64, torch.float32):
        angles(dtype)
        maps(dtype)
    by_projectors()
    speed()
    lines = torch.eye(2, dtype=torch.float64)[..., None]
    print(f"\nThe distance of two orthogonal lines: {MANIFOLD.dist(*lines):.16g}, exactly {math.pi / 2:.16g}.")
