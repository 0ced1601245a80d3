"""What one adapter in the place of several keeps of them: the rules of `merge`, and the medoid, on families of adapters

    python bench/keeps.py [zoo] [concepts] [text] [shapes] [strong] [questions]      # minutes a family on one core, and the training of what is missing
    python bench/keeps.py --cached                                        # prints again what was measured last

Within a task: three of its four adapters in one, two such triples a task. Across: one adapter of each task in one, two such sets. The score is on test data, over
the mean of the members' own, in percent; for the language model what counts is how much the loss falls below that of the base. λ multiplies the result: 1, and the
best of a grid on validation data. ± is the standard deviation over triples and over sets. The default of `cluster_merge` was chosen on all but the last family.
"""
import json, sys
from dataclasses import replace

import numpy as np
import torch
from common import machine, table
from families import FOLDER, Family, norm

from loragrass.comparing import similarity
from loragrass.lora_io import LoRA
from loragrass.merging import RULES, merge
from loragrass.zoo import load_zoo

GRID = (0.3, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3)

class ShippedZoo:
    "A zoo that comes with the package, as a family: four adapters a task"
    def __init__(self, name="tasks"):
        self.zoo = load_zoo(name)
        self.tasks = self.zoo.tasks
        self.by_task = [[self.zoo.loras[i] for i in np.flatnonzero(self.zoo.labels.task == task)[:4]] for task in self.tasks]

    def score(self, lora, task, split="test", scale=1.0):
        scaled = LoRA({m: replace(u, scale=scale * u.scale) for m, u in lora.items()}) if lora is not None else None
        return self.zoo.evaluate(scaled, task, split)

def medoid(loras): return loras[int(similarity(loras).joint.sum(0).argmax())]

def equal_norms(loras):
    norms = torch.tensor([norm(lora) for lora in loras])
    return merge(loras, (norms.mean() / norms / len(loras)).tolist()).lora

def rule(name, weights=None, **options):
    def way(loras):
        few = loras[:RULES[name].most] # a rule of two gets the first two
        return merge(few, weights or [1 / len(few)] * len(few), name, **options).lora
    return way

LEFT_OUT = {"robust", "karcher_median"} # the one needs equal ranks, the other is slow and near to karcher
WAYS = {"medoid": medoid, "svd, equal norms": equal_norms} \
    | {name if not row.most else f"{name}, of two": rule(name) for name, row in RULES.items() if name not in LEFT_OUT} \
    | {f"{name}, agreement": rule(name, "agreement") for name in ("svd", "median")} \
    | {f"{name}, not cut": rule(name, rank="sum") for name in ("median", "iso", "tsv")} \
    | {f"{name}, norm restored": rule(name, rescale="norm") for name in ("iso", "tsv")}

class Study:
    "Shares of the members' own scores, in percent"
    def __init__(self, family):
        self.family, self.tasks = family, family.tasks
        self.own = np.array([[family.score(lora, t) for lora in loras] for t, loras in zip(self.tasks, family.by_task)])
        self.base = np.array([family.score(None, t) for t in self.tasks])
        self.zero = self.base if self.own.max() < 0 else np.zeros(len(self.base)) # of a loss, what is gained over the base

    def kept(self, lora, t, members, scale=1.0):
        return 100 * (self.family.score(lora, self.tasks[t], "test", scale) - self.zero[t]) / (self.own[t, members].mean() - self.zero[t])

    def best(self, lora, ts): return max(GRID, key=lambda s: np.mean([self.family.score(lora, self.tasks[t], "val", s) for t in ts]))

    def within(self, way):
        "Of triples: at λ = 1 and at the best λ, and that"
        rows = []
        for t, loras in enumerate(self.family.by_task):
            for out in (t % 4, (t + 1) % 4):
                members = [i for i in range(4) if i != out]
                one = way([loras[i] for i in members])
                scale = self.best(one, [t]) if out == t % 4 else None
                rows.append((self.kept(one, t, members), scale and self.kept(one, t, members, scale), scale))
        return rows

    def across(self, way):
        "Of sets of one a task: the same"
        rows, every = [], range(len(self.tasks))
        for i in range(2):
            one = way([loras[i] for loras in self.family.by_task])
            scale = self.best(one, every)
            rows.append((*(np.mean([self.kept(one, t, [i], s) for t in every]) for s in (1.0, scale)), scale))
        return rows

    def measured(self):
        nothing = [[(self.kept(None, t, list(range(4))), None, None)] for t in range(len(self.tasks))]
        found = {"no adapter": {"within": [row for rows in nothing for row in rows], "across": [(np.mean([self.kept(None, t, [i]) for t in range(len(self.tasks))]), None, None) for i in range(2)]}}
        for name, way in WAYS.items():
            found[name] = {"within": self.within(way), "across": self.across(way)}
            print(name, "within %.1f, across %.1f" % tuple(np.mean([row[0] for row in rows]) for rows in found[name].values()), file=sys.stderr, flush=True)
        return found

TABLES = {"Within a task, λ = 1": ("within", 0), "Within a task, λ chosen (its mean)": ("within", 1), "One of each task, λ = 1": ("across", 0), "One of each task, λ chosen (its mean)": ("across", 1)}

def show(found):
    "A column for each family; best first, by the mean over families"
    def values(family, name, where, column): return [row[column] for row in found[family][name][where] if row[column] is not None]
    def cell(family, name, where, column):
        v = values(family, name, where, column)
        return f"{np.mean(v):.1f} ± {np.std(v):.1f}" + (f" ({np.mean(values(family, name, where, 2)):.1f})" if column else "") if v else ""
    def rank(name, where, column): return -np.mean([np.mean(values(f, name, where, column)) for f in found])
    for title, at in TABLES.items():
        names = sorted(WAYS if at[1] else ["no adapter", *WAYS], key=lambda name, at=at: rank(name, *at))
        table(f"{title}: percent of the members' own", [{"": name, **{f: cell(f, name, *at) for f in found}} for name in names])

if __name__ == "__main__":
    machine("peft", "transformers")
    cached, found = "--cached" in sys.argv, {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in [word for word in sys.argv[1:] if word != "--cached"] or ("zoo", "concepts", "text", "shapes", "strong", "questions"):
        path = FOLDER / f"keeps_{name}.json"
        if not cached: path.write_text(json.dumps(Study(ShippedZoo({"zoo": "tasks"}.get(name, name)) if name in ("zoo", "concepts") else Family(name)).measured()))
        found[name] = json.loads(path.read_text())
    show(found)
