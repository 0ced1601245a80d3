"Kernel matrices of subspaces, how much of a matrix product's speed they keep, and against the loops that people write; and what groups by them"
import time, warnings
from functools import partial

import numpy as np
import torch
from common import gemm_peak, machine, medians, peer, table
from loragrass.clustering import GrassmannKMeans, KernelKMeans, cluster_kernel
from loragrass.karcher import GrassmannExact
from loragrass.kernels import gram
from loragrass.plucker import orthonormalize
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score

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

def grouped(sizes, theta, n=64, k=8, seed=0):
    g, labels = torch.Generator().manual_seed(seed), np.repeat(np.arange(len(sizes)), sizes)
    x = orthonormalize(torch.randn(len(sizes), n, k, dtype=torch.float64, generator=g))[labels]
    v = torch.randn(len(labels), n, k, dtype=torch.float64, generator=g)
    v = v - x @ (x.mT @ v)
    return GrassmannExact().expmap(x, theta * v / torch.linalg.matrix_norm(v, 2)[:, None, None]), labels

def all_eigenvectors(K, c):
    d = K.sum(1)
    rows = np.linalg.eigh(K / np.sqrt(np.outer(d, d)))[1][:, :-c - 1:-1]
    return KMeans(c, n_init=10, random_state=0).fit_predict(rows / np.linalg.norm(rows, axis=1, keepdims=True))

def spectral(N, c=8):
    X, truth = grouped([N // c] * c, 1.2)
    K = gram(X).numpy()
    ways = {"cluster_kernel": lambda: cluster_kernel(K, c).labels, "all eigenvectors (eigh)": lambda: all_eigenvectors(K, c),
            "scikit-learn's SpectralClustering": lambda: SpectralClustering(c, affinity="precomputed", random_state=0).fit_predict(K)}
    times = medians(ways, 3)
    return [{"N": N, "by": name, "CPU s": s, "× ours": s / times["cluster_kernel"], "ARI": adjusted_rand_score(truth, ways[name]())} for name, s in times.items()]

def point_by_point(K, c, seed, passes=100): # Hartigan's rule as it is written: every point in turn
    rng, N = np.random.default_rng(seed), len(K)
    labels, diagonal = rng.permutation(np.arange(N) % c), K.diagonal()
    Z = np.eye(c)[labels]
    F, n, within = K @ Z, Z.sum(0), ((K @ Z) * Z).sum(0)
    for _ in range(passes):
        moved = False
        for x in rng.permutation(N):
            a, m = labels[x], n.clip(1)
            if n[a] == 1: continue
            cost = np.where(n > 0, n / (n + 1) * (diagonal[x] - 2 * F[x] / m + within / m ** 2), 0)
            cost[a] *= (n[a] + 1) / (n[a] - 1)
            b = int(cost.argmin())
            if b == a or cost[b] >= cost[a] - 1e-12 * abs(diagonal[x]): continue
            within[a] += diagonal[x] - 2 * F[x, a]
            within[b] += diagonal[x] + 2 * F[x, b]
            F[:, a] -= K[:, x]
            F[:, b] += K[:, x]
            n[a] -= 1
            n[b] += 1
            labels[x], moved = b, True
        if not moved: break
    return float(diagonal.sum() - (within / n.clip(1)).sum())

def moves(N, c, starts=5):
    P = np.random.default_rng(0).normal(size=(N, 5)) # no groups at all: many passes
    K = P @ P.T
    ours = lambda: KernelKMeans(c, n_init=starts).fit(K).inertia_
    loop = lambda: min(point_by_point(K, c, seed) for seed in range(starts))
    times = medians({"ours": ours, "loop": loop}, 1)
    return {"N, groups": (N, c), "KernelKMeans, CPU s": times["ours"], "every point in turn, CPU s": times["loop"], "×": times["loop"] / times["ours"], "J": ours(), "J of the loop": loop()}

def starts(sizes, theta, n, k, seeds=3):
    made, c = [grouped(sizes, theta, n, k, seed) for seed in range(seeds)], len(sizes)
    ways = {"spectral": lambda X: GrassmannKMeans(c).fit_predict(X), "k-means++, best of 5": lambda X: GrassmannKMeans(c, init="k-means++").fit_predict(X),
            "KMeans on projectors": lambda X: KMeans(c, n_init=10, random_state=0).fit_predict((X @ X.mT).flatten(1).numpy()), "cluster_kernel, spectral": lambda X: cluster_kernel(gram(X), c).labels}
    times = medians({name: partial(lambda f: [f(X) for X, _ in made], f) for name, f in ways.items()}, 1)
    ari = {name: float(np.mean([adjusted_rand_score(t, f(X)) for X, t in made])) for name, f in ways.items()}
    return [{"groups": f"{sizes} on Gr({k}, {n}), θ = {theta}", "by": name, "CPU s": s / seeds, "ARI": ari[name]} for name, s in times.items()]

if __name__ == "__main__":
    machine("UQpy")
    table("Spectral clustering of a kernel matrix, 8 groups", [row for N in (400, 1000, 2000) for row in spectral(N)])
    table("Kernel k-means by Hartigan's moves, 5 starts, points without groups", [moves(*s) for s in ((500, 8), (2000, 8), (2000, 40))])
    table("k-means with subspaces as centres, by its start; mean of 3 seeds",
          [row for case in (((20,) * 4, 1.4, 64, 8), ((20,) * 4, 1.4, 256, 16), ((60, 6, 6), 1., 64, 8), ((60, 6, 6), 1.2, 64, 8)) for row in starts(*case)])
    for dtype in (torch.float32, torch.float64): pairs(dtype)
    table("Projection kernel where k is large, float64: from projectors, when they cost less", [large_k(*s) for s in ((200, 320, 64), (200, 768, 64), (200, 768, 16))])
    table("Kernel matrix of 32 updates from their factors, float32, against the source: SVD of each dense update, Gram–Schmidt in each of 32² calls (extrapolated from 1 SVD and 5 calls)",
          [source(*shape) for shape in ((3072, 768, 16), (3072, 768, 64), (768, 768, 16))])
