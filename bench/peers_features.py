"""What other packages read from the weights of adapters, beside this one: the digit, the learning rate, and a digit never seen, on the zoo "concepts"

    python bench/peers_features.py

Peers are optional, and what is not there is said: `pip install --no-deps vlora-dev weightwatcher powerlaw adaptersentry` (into a folder on PYTHONPATH, say)."""
import contextlib, io, logging, time, warnings
from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from common import machine, peer, table
from loragrass.directions import ProjectionKernelPCA
from loragrass.features import Features
from loragrass.zoo import load_zoo
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

zoo = load_zoo("concepts")
X, labels = zoo.loras, zoo.labels
digit, fold = labels.task.to_numpy(), labels.fold.to_numpy()
thirds = pd.qcut(labels.lr.rank(method="first"), 3, labels=False).to_numpy()

def linear(rows, y, *steps):
    model = make_pipeline(*steps, StandardScaler(), LogisticRegression(max_iter=2000))
    return cross_val_score(model, rows if steps else np.nan_to_num(rows), y, cv=PredefinedSplit(fold)).mean()

def nearest(K): # accuracy for the digit of the nearest adapter of other folds
    return float(np.mean([digit[fold != k][K[i, fold != k].argmax()] == digit[i] for i, k in enumerate(fold)]))

def novelty(score): # score(known places, tried places) → the larger the stranger
    auc = []
    for d in range(10):
        for k in range(5):
            known, tried = np.flatnonzero((digit != d) & (fold != k)), np.flatnonzero(fold == k)
            auc.append(roc_auc_score(digit[tried] == d, score(known, tried)))
    return float(np.mean(auc))

def by_rows(rows): # distance to the nearest known row, standardised
    def score(known, tried):
        scaler = StandardScaler().fit(np.nan_to_num(rows[known]))
        a, b = (scaler.transform(np.nan_to_num(rows[at])) for at in (tried, known))
        return ((a[:, None] - b[None]) ** 2).sum(2).min(1)
    return score

def row(name, numbers, rows=None, K=None, score=None, seconds=np.nan):
    if rows is not None: K = -((rows[:, None] - rows[None]) ** 2).sum(2) if K is None else K
    return {"": name, "numbers": numbers, "digit, nearest": nearest(K) if K is not None else np.nan, "digit, linear": linear(rows, digit) if rows is not None else np.nan,
            "learning rate, linear": linear(rows, thirds) if rows is not None else np.nan, "unseen digit, AUC": novelty(score or by_rows(rows)), "CPU ms an adapter": 1000 * seconds / len(X)}

def timed(f):
    start = time.process_time()
    return f(), time.process_time() - start

def ours():
    (pca, K), seconds = timed(lambda: (p := ProjectionKernelPCA().fit(X), p.kernel(X)))
    found = row("loragrass, kernel of left subspaces", 64, pca.transform(X), K, lambda known, tried: -K[tried][:, known].max(1), seconds)
    yield found | {"digit, linear": linear(X, digit, ProjectionKernelPCA()), "learning rate, linear": linear(X, thirds, ProjectionKernelPCA())} # fitted in each fold
    for name in ("spectral", "norms", "ensemble", "flat"):
        rows, seconds = timed(lambda name=name: Features(name).fit_transform(X))
        yield row(f"loragrass, {name}", rows.shape[1], rows, seconds=seconds)

def vlora():
    if not (lib := peer("vlora.analysis")): return
    from vlora.io import LoRAWeights
    adapters = [LoRAWeights(sorted(lora), {m: lora[m].down.float() for m in lora}, {m: lora[m].up.float() for m in lora}, 4) for lora in X]
    K, seconds = timed(lambda: lib.compute_similarity_matrix(adapters).numpy())
    def strange(known, tried): # its outliers: distance from the mean of all
        some = np.r_[known, tried]
        found = {o["index"]: o["z_score"] for o in lib.find_outliers([adapters[i] for i in some], threshold=-1e9)}
        return [found[len(known) + i] for i in range(len(tried))]
    yield row("vlora-dev, cosine of A and B; its outliers", 2592, K=K, score=strange, seconds=seconds)

def adaptersentry():
    if not peer("adaptersentry"): return
    from adaptersentry import scan
    logging.disable(logging.CRITICAL)
    results, seconds = timed(lambda: [scan(lora.path / "adapter_model.safetensors", include_modules=True) for lora in X])
    print(f"\nadaptersentry says {pd.Series([r.verdict.action for r in results]).value_counts().to_dict()} of the 200, {pd.Series([r.status for r in results]).value_counts().to_dict()}")
    if any(not r.modules for r in results): print(f"adaptersentry gives no features for {sum(not r.modules for r in results)} of them"); return
    numbers = [[list(m.features.model_dump().values()) if m.features else [] for m in sorted(r.modules, key=lambda m: m.module)] for r in results]
    rows = np.array([np.concatenate(n) for n in numbers], dtype=float)
    yield row("adaptersentry, its features", rows.shape[1], rows, seconds=seconds)
    if not any(r.anomaly and r.anomaly.intra for r in results): print("\nadaptersentry's anomaly score compares the modules of an adapter, and gives none for three"); return
    intra = np.array([r.anomaly.intra.max_robust_z if r.anomaly and r.anomaly.intra else 0. for r in results])
    yield row("adaptersentry, its anomaly score", 1, K=-abs(intra[:, None] - intra[None]), score=lambda known, tried: intra[tried], seconds=seconds)

def weightwatcher():
    "The base with the adapter in it, as it wants whole weights"
    if not (lib := peer("weightwatcher")): return
    logging.disable(logging.CRITICAL)
    def details(lora):
        model = deepcopy(zoo.base)
        with torch.no_grad():
            for m, u in lora.items(): model.get_submodule(m).weight += u.dense()
        with contextlib.redirect_stdout(io.StringIO()): return lib.WeightWatcher(model=model).analyze(min_evals=10).select_dtypes("number")
    start, frames = time.process_time(), [details(lora) for lora in X]
    seconds, columns = time.process_time() - start, [c for c in frames[0] if all(c in f and len(f) == len(frames[0]) for f in frames)]
    rows = np.stack([np.nan_to_num(f[columns].to_numpy(float).ravel(), posinf=0, neginf=0) for f in frames])
    yield row("weightwatcher, its details of base + adapter", rows.shape[1], rows, seconds=seconds)

def main():
    warnings.simplefilter("ignore")
    machine("scikit-learn", "vlora-dev", "adaptersentry", "weightwatcher")
    rows = []
    for side in (ours, vlora, adaptersentry, weightwatcher):
        try: rows += side()
        except Exception as e: print(f"\n{side.__name__} stopped: {type(e).__name__}: {str(e)[:200]}")
    print("\nNot run: W2T's encoder and the source's own features, whose code is in no registry")
    table("What weights tell: 200 adapters, ten digits (chance 0.1), thirds of the learning rate (0.33), a digit never seen (0.5); folds of disjoint images", rows)
    print("\nWho wins where. What an adapter was trained on, and whether it is of a kind never seen: the kernel of left subspaces alone. How it was trained: adaptersentry's twelve robust numbers "
          "a module, norms, weightwatcher's details and spectra, all about alike. In time: vlora-dev's cosine, which on adapters of independent starts tells nothing. adaptersentry also judges "
          "files as such (formats, configs, what lies beside them), and weightwatcher whole models; both are no part of this comparison.")

if __name__ == "__main__": main()
