"Kernel matrices of subspaces: how much of a matrix product's speed they keep, and against the loops that people write"
import time, warnings
from functools import partial

import numpy as np
import torch
from common import gemm_peak, machine, medians, peer, table
from loragrass.kernels import gram
from loragrass.plucker import orthonormalize

warnings.simplefilter("ignore")

def seconds(fn, repeats=1):
    start = time.process_time()
    for _ in range(repeats): fn()
    return (time.process_time() - start) / repeats

def points(N, n, k, dtype): return orthonormalize(torch.randn(N, n, k, dtype=dtype, generator=torch.Generator().manual_seed(0)))

def pairs(dtype, N=1000, n=768, k=16, few=60):
    X, rows = points(N, n, k, dtype), []
    peak, flops = gemm_peak(dtype), N * (N + 1) * k * k * n # of the upper triangle
    for name in ("projection", "projection_rbf", "det_regularized", "binet_cauchy"):
        s = seconds(partial(gram, X, kernel=name))
        peak = max(peak, gemm_peak(dtype))
        rows.append({"by": f"gram, {name}", "CPU s": s, "useful GFLOP/s": 1e-9 * flops / s})
    arrays, scale = list(X[:few].numpy()), (N / few) ** 2
    loops = {"NumPy double loop, projection": lambda: [np.sum((x.T @ y) ** 2) for x in arrays for y in arrays],
             "NumPy double loop, det²": lambda: [np.linalg.det(x.T @ y) ** 2 for x in arrays for y in arrays]}
    if dtype == torch.float64 and not (uqpy := peer("UQpy.utilities")): print("UQpy: install it with --no-deps, for it pins torch 2.2")
    elif dtype == torch.float64: # it refuses float32
        bases = [uqpy.GrassmannPoint(x) for x in arrays]
        loops["UQpy, projection"] = lambda: uqpy.kernels.ProjectionKernel().calculate_kernel_matrix(bases, bases)
        loops["UQpy, det²"] = lambda: uqpy.kernels.BinetCauchyKernel().calculate_kernel_matrix(bases, bases)
    for name, s in medians(loops, 3).items(): rows.append({"by": f"{name} (from {few}²)", "CPU s": s * scale, "useful GFLOP/s": 1e-9 * flops / (s * scale)})
    for row in rows: row |= {"of the peak": f"{row['useful GFLOP/s'] / peak:.0%}", "× gram": row["CPU s"] / rows[3 if "det²" in row["by"] else 0]["CPU s"]}
    table(f"{N} × {N} kernel matrix on Gr({k}, {n}), {dtype}; a plain matrix product reaches {peak:.1f} GFLOP/s", rows)

def by_rows(X): return torch.stack([(x.T @ X).square().sum((-2, -1)) for x in X])

def large_k(N, n, k):
    X = points(N, n, k, torch.float64)
    times = medians({"gram": lambda: gram(X), "by rows": lambda: by_rows(X)}, 1)
    return {"N, n, k": (N, n, k), "gram, CPU s": times["gram"], "one row of pairs at a time, CPU s": times["by rows"], "×": times["by rows"] / times["gram"]}

def gram_schmidt(A): # the source's loop, on a copy
    A = A.copy()
    for i in range(A.shape[1]):
        q = A[:, i]
        for j in range(i): q -= (A[:, j] @ A[:, i]) * A[:, j]
        A[:, i] = q / np.linalg.norm(q)
    return A

def source_kernel(U, V): return (3 + abs(np.linalg.det(gram_schmidt(U).T @ gram_schmidt(V)))) ** 2 # Gram–Schmidt in each call

def source(m, n, r, N=32):
    g = torch.Generator().manual_seed(0)
    B, A = torch.randn(N, m, r, generator=g) / m ** .5, torch.randn(N, r, n, generator=g)
    B = B + torch.randn(m, r, generator=g) * (6 * r / 16 / m) ** .5 # the more in common the larger r, so that |det| is no rounding
    ours = lambda: gram(orthonormalize(B), kernel="binet_cauchy_polynomial", abs_det=True, beta=3., alpha=2, normalize=False)
    s = sorted(seconds(ours) for _ in range(8))[4]
    dense = [(B[i] @ A[i]).numpy() for i in range(2)]
    svd, all_of_svd = seconds(lambda: np.linalg.svd(dense[0], full_matrices=False)), seconds(lambda: np.linalg.svd(dense[0]))
    U = [np.linalg.svd(W, full_matrices=False)[0][:, :r] for W in dense]
    thin = seconds(lambda: source_kernel(*U), 5)
    full = 2 * seconds(lambda: gram_schmidt(np.eye(m, 64, dtype=np.float32))) * (m / 64) ** 2 # its cost is that of m (m − 1) / 2 projections
    cut, literal = svd * N + thin * N * N, all_of_svd * N + full * N * N
    theirs, error = float(source_kernel(*U)), abs(float(source_kernel(*U)) - float(ours()[0, 1]))
    return {"update": f"{m} × {n}, r = {r}", "ours, CPU ms": 1e3 * s, "source cut to rank r, CPU s": cut, "×": cut / s, "with all of U, CPU s": literal, "× ": literal / s,
            "one value, source": theirs, "difference": error}

if __name__ == "__main__":
    machine("UQpy")
    for dtype in (torch.float32, torch.float64): pairs(dtype)
    table("Projection kernel where k is large, float64: from projectors, when they cost less", [large_k(*s) for s in ((200, 320, 64), (200, 768, 64), (200, 768, 16))])
    table("Kernel matrix of 32 updates from their factors, float32, against the source: SVD of each dense update, Gram–Schmidt in each of 32² calls (extrapolated from 1 SVD and 5 calls)",
          [source(*shape) for shape in ((3072, 768, 16), (3072, 768, 64), (768, 768, 16))])
