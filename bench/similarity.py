"Joint similarity of a thousand adapters, and groups of a hundred thousand subspaces, against all pairs the slow way"
import sys, time

import torch
from common import machine, peak_mb, table
from loragrass.clustering import GrassmannKMeans, cluster_kernel
from loragrass.comparing import similarity
from loragrass.karcher import GrassmannExact
from loragrass.kernels import gram
from loragrass.lora_io import LoRA, LoRAUpdate
from loragrass.plucker import orthonormalize
from loragrass.subspace_index import SubspaceIndex
from sklearn.metrics import adjusted_rand_score

def seconds(fn):
    start = time.process_time(); out = fn()
    return time.process_time() - start, out

def adapters(N, n=768, r=16):
    g = torch.Generator().manual_seed(0)
    return [LoRA({"m": LoRAUpdate(torch.randn(n, r, generator=g), torch.randn(r, n, generator=g), 1.0, (n, n))}) for _ in range(N)]

def gram_schmidt(A): # the source's loop
    Q = A.clone()
    for i in range(Q.shape[1]):
        for j in range(i): Q[:, i] -= (Q[:, j] @ Q[:, i]) * Q[:, j]
        Q[:, i] /= Q[:, i].norm()
    return Q

def left(lora, r): return torch.linalg.svd(lora["m"].dense())[0][:, :r] # of the dense ΔW

def kernel(X, Y): return (3 + torch.linalg.det(gram_schmidt(X).T @ gram_schmidt(Y)).abs()) ** 2 # Gram–Schmidt inside each call

def joint(N=1000, modules=48):
    loras = adapters(N)
    ours, _ = seconds(lambda: similarity(loras)) # modules are independent and of one shape: one is timed
    a, b = (left(lora, 768) for lora in loras[:2])
    svd, full, thin = (seconds(f)[0] for f in (lambda: left(loras[0], 768), lambda: kernel(a, b), lambda: [kernel(a[:, :16], b[:, :16]) for _ in range(20)]))
    pairs = N * N * modules
    costs = {"loragrass.similarity, one module timed": ours * modules,
             "the source's double loop: SVDs and all of U in every pair": (2 * svd + full) * pairs,
             "the same, cut to rank 16": (2 * svd + thin / 20) * pairs,
             "the same, with one SVD an adapter": svd * N * modules + thin / 20 * pairs}
    table(f"Joint similarity, {N} adapters of rank 16, {modules} modules 768 × 768 (CPU s, extrapolated from one module, pair or SVD)",
          [{"what": what, "CPU s": s, "× ours": s / ours / modules} for what, s in costs.items()])

def simulated(N, K=20, theta=1.2, n=256, k=8, chunk=5000):
    g = torch.Generator().manual_seed(0)
    centers = orthonormalize(torch.randn(K, n, k, generator=g))
    for i in range(0, N, chunk):
        x = centers[torch.arange(i, min(i + chunk, N)) % K]
        v = torch.randn(x.shape, generator=g)
        v = v - x @ (x.mT @ v)
        yield GrassmannExact().expmap(x, theta * v / torch.linalg.matrix_norm(v, 2)[:, None, None])

def group(N, K=20, few=1000):
    index, queries, truth = SubspaceIndex(), next(simulated(few, K)), torch.arange(N) % K
    for part in simulated(N, K): index.add(part)
    mb = peak_mb(lambda: index.cluster(K))
    ours, found = seconds(lambda: index.cluster(K))
    search = seconds(lambda: index.nearest(queries, 1))[0] * N / few / 2 # few × N pairs; all pairs are symmetric
    exact = min(search, seconds(lambda: gram(queries))[0] * (N / few) ** 2) # the faster of our own two
    return {"N": N, "CPU s": ours, "all pairs, CPU s": exact, "×": exact / ours, "ARI": adjusted_rand_score(truth, found.labels), "points, MB": N * 256 * 8 * 4 / 1e6, "peak MB over them": mb}

def groups(sizes=(25_000, 50_000, 100_000)):
    table("Groups of N subspaces Gr(8, 256), 20 centres (all pairs extrapolated from 1000 × N, or 1000 × 1000 by `gram`)", [group(N) for N in sizes])

def hard(kind, theta, seed, K=4, per=20, n=256, k=16):
    "A: centres uniform on Gr(16, 256); B: 8 of 16 directions replaced by random ones; C: centres share 12 directions"
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    common = rand(n, 12)
    centers = orthonormalize(torch.cat([common.expand(K, -1, -1), rand(K, n, 4)], -1) if kind == "C" else rand(K, n, k))
    x = centers.repeat_interleave(per, 0)
    v = rand(*x.shape)
    v = v - x @ (x.mT @ v)
    x = GrassmannExact().expmap(x, theta * v / torch.linalg.matrix_norm(v, 2)[:, None, None])
    return orthonormalize(torch.cat([x[..., :8], rand(K * per, n, 8)], -1)) if kind == "B" else x

def weak(seeds=3):
    truth, rows = torch.arange(4).repeat_interleave(20), []
    for kind, theta in (("A", 1.4), ("B", 1.3), ("C", 1.3)):
        scores: dict = {}
        for seed in range(seeds):
            X = hard(kind, theta, seed)
            K = gram(X)
            found = {name: cluster_kernel(K, 4, method).labels for name, method in (("spectral", "spectral"), ("kernel k-means", "kernel_kmeans"), ("average linkage", "agglomerative"))}
            for name, labels in (found | {"Grassmann k-means": GrassmannKMeans(4).fit_predict(X)}).items(): scores.setdefault(name, []).append(adjusted_rand_score(truth, labels))
        rows.append({"": kind, "θ": theta, **{name: f"{sum(s) / seeds:.2f} (lowest {min(s):.2f})" for name, s in scores.items()}})
    table(f"Adjusted Rand index, 4 × 20 points of Gr(16, 256), {seeds} seeds", rows)

if __name__ == "__main__":
    machine("scikit-learn")
    sections = {"joint": joint, "groups": groups, "weak": weak}
    for name in sys.argv[1:] or sections: sections[name]()
