"""How many groups: the levels of pairs on families of adapters, whole and in small draws, beside a constant on cosines and the silhouette

    python bench/groups.py [--draws N] [--learn] [family or folder …]

A family is judged with the levels of families that have another base model (their mean spread is of all). It is trained when it is asked for and not in `_bench/families` yet; a folder
holds adapters named task-seed. `--learn` writes the experience that comes with the package again: of the families in it that are not at hand (`code`, whose
adapters are not shipped), it keeps what there is."""
import argparse, json, re, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import loragrass.levels as levels
from common import machine, table
from families import FAMILIES as WITH_PEFT
from families import Family
from group_families import FAMILIES, train_family
from loragrass.clustering import cluster_kernel
from loragrass.comparing import similarity
from loragrass.formats import load_all
from loragrass.levels import cluster_levels, learn, witnesses
from loragrass.lora_io import LoRA, LoRAUpdate
from loragrass.zoo import RECIPES, load_zoo, train_zoo
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score

FOLDER = Path("_bench/families")
LEVELS = Path("loragrass/data/levels.json")
LEARNED = ["cnn-mild", "code", "concepts", "concepts-mixed", "concepts-shared", "gpt-strong", "mixer-strong", "mlp-strong", "questions", "shapes", "strong", "tasks", "text",
           "vit-heads", "vit-long", "vit-short"]
EXPERIENCES = levels.experiences()
SIZES = ([1, 1], [2, 1], [2, 2], [3, 1], [3, 2], [2, 2, 2], [4, 1], [4, 4, 1, 1], [4, 1, 1, 1], [1, 1, 1], [4], [3], [2])

def family(name):
    "The matrices of a family, and what each adapter was trained for"
    if name in ("tasks", "concepts"):
        zoo = load_zoo(name)
        return similarity(zoo.loras), zoo.labels.task.to_numpy().astype(str)
    if name in WITH_PEFT:
        made = Family(name)
        return similarity([lora for loras in made.by_task for lora in loras]), np.repeat(made.tasks, [len(loras) for loras in made.by_task])
    folder = Path(name) if Path(name).is_dir() else FOLDER / name
    if not folder.is_dir() and name in RECIPES: train_zoo(name, folder, base=load_zoo("concepts").base, n=10, progress=False)
    if not folder.is_dir() and name in FAMILIES: train_family(name, folder)
    if not folder.is_dir(): raise SystemExit(f"{name}: no such folder, nor a family of {', '.join([*FAMILIES, *WITH_PEFT])}")
    if (folder / "labels.csv").exists():
        labels = pd.read_csv(folder / "labels.csv")
        return similarity(load_all([folder / "adapters" / str(n) for n in labels.name])), labels.task.to_numpy().astype(str)
    loras = load_all(folder)
    return similarity(loras), np.array([re.sub(r"-\d+$", "", re.sub(r"@\d+$", "", lora.name)) for lora in loras])

def base(name):
    "The base model that a family shares with others"
    return "shapes" if name in ("strong", "questions") else re.split("[-_]", name)[0]

def constant(cosine, most=0.08):
    "Average linkage, down to a cosine"
    return fcluster(linkage((1 - cosine[np.triu_indices(len(cosine), 1)]).clip(0), "average"), 1 - most, "distance")

def draws(tasks, n, seed=7):
    "n small draws, compositions in turn"
    rng, by = np.random.default_rng(seed), {t: np.flatnonzero(tasks == t) for t in dict.fromkeys(tasks)}
    sizes, out = [s for s in SIZES if len(s) <= len(by)], []
    for i in range(3 * n):
        s = sizes[i % len(sizes)]
        chosen = rng.permutation(list(by))[:len(s)]
        if any(len(by[t]) < k for t, k in zip(chosen, s)): continue
        out.append(np.concatenate([rng.permutation(by[t])[:k] for t, k in zip(chosen, s)]))
        if len(out) == n: break
    return out

def row(name, n):
    "One family under three rules"
    sim, tasks = family(name)
    W = [M.numpy() for M in sim.witnesses]
    levels.experiences = lambda: {n: e for n, e in EXPERIENCES.items() if base(n) != base(Path(name).name)}
    rules = {"": lambda *W: cluster_levels(*W).labels, "constant 0.08: ": lambda L, R, C, A: constant(C), "silhouette: ": lambda L, R, C, A: cluster_kernel(L).labels}
    found, out = cluster_levels(*W), {"family": Path(name).name, "N": len(tasks), "tasks": len(set(tasks))}
    out |= {"found": int(found.labels.max()) + 1, "confidence": found.confidence, "next": str(found.other)}
    for rule, labels in rules.items():
        some = draws(tasks, n if rule != "silhouette: " else max(13, n // 8)) # a slow rule
        right = [adjusted_rand_score(tasks[i], labels(*(M[np.ix_(i, i)] for M in W))) == 1 for i in some]
        out |= {f"{rule}ARI": float(adjusted_rand_score(tasks, labels(*W))), f"{rule}exact": f"{np.mean(right):.3f} of {len(some)}" if some else "–"}
    return out

def relearn():
    "Levels of the families at hand; of the others, as they are"
    at_hand = [n for n in LEARNED if n in ("tasks", "concepts") or n in (*FAMILIES, *WITH_PEFT, *RECIPES) or (FOLDER / n).is_dir()]
    data = []
    for name in at_hand:
        sim, tasks = family(name)
        i, j = np.triu_indices(len(tasks), 1)
        left, right, _, alignment = (M.numpy() for M in sim.witnesses)
        data.append((witnesses(left, right, alignment), tasks[i] == tasks[j]))
    new = {n: [[np.round(level.mean, 3).tolist(), np.round(level.cov, 4).tolist()] for level in e] for n, e in zip(at_hand, learn(data))}
    old = json.loads(LEVELS.read_text())
    LEVELS.write_text(json.dumps({n: new.get(n, old.get(n)) for n in LEARNED}) + "\n")

def speed(N=2000, modules=48, n=768, r=8):
    "The rule beside the similarities it needs: modules are alike, one is timed"
    g = torch.Generator().manual_seed(0)
    common = torch.randn(N // 20, n, r, generator=g)
    loras = [LoRA({"m": LoRAUpdate(common[i % len(common)] + torch.randn(n, r, generator=g), torch.randn(r, n, generator=g), 1.0, (n, n))}) for i in range(N)]
    start = time.process_time()
    sim = similarity(loras)
    compared = time.process_time() - start
    cluster_levels(*sim.witnesses)
    rule = time.process_time() - start - compared
    table(f"{N} adapters of rank {r}, {modules} modules {n} × {n} (CPU s, similarity from one module)",
          [{"what": "similarity", "CPU s": compared * modules, "share": 1.0}, {"what": "groups and their number", "CPU s": rule, "share": rule / compared / modules}])

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--learn", action="store_true")
    asked = parser.parse_args()
    if asked.learn: relearn()
    else:
        machine("scikit-learn")
        names = asked.families or [n for n in [*LEARNED, "vit-checkpoints"] if n != "code" or (FOLDER / n).is_dir()]
        table("Families, each with the levels of other base models: found whole, and share of small draws (1 to 10 adapters) grouped exactly",
              [row(n, asked.draws) for n in names])
        if not asked.families: speed()
