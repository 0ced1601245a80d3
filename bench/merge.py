"""Merging eight rank-16 adapters of 52 modules, against the tools people use

    python bench/merge.py [mean] [ties] [tsv] [karcher] [rules] [mergekit] [files]      # minutes on one core
    KNOTS=… CORE_SPACE=… SD_SCRIPTS=… python bench/merge.py      # and with clones of gstoica27/KnOTS, apanariello4/core-space-merging, kohya-ss/sd-scripts
    MERGEKIT=… python bench/merge.py mergekit      # a folder from which mergekit is imported; it wants versions of its own: pip install --target … mergekit
    BEFORE=… python bench/merge.py rules      # another checkout, whose seconds go beside
"""
import gzip, importlib, json, os, subprocess, sys, tempfile, time, types, warnings
from pathlib import Path
from unittest import mock

import torch
from common import machine, medians, peak_mb, table
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from loragrass.cluster_merge import cluster_merge
from loragrass.formats import load_all
from loragrass.karcher import karcher_mean
from loragrass.lora_io import LoRA, LoRAUpdate
from loragrass.merging import RULES, merge
from loragrass.writers import save

N, RANK, ALPHA = 8, 16, 16
SHAPES = {f"layer_{i}": (768, 768) if i < 48 else (3072, 768) for i in range(52)}
warnings.simplefilter("ignore")

def adapters():
    "Half of each adapter is common to all, half its own"
    g = torch.Generator().manual_seed(0)
    def rand(*shape): return torch.randn(*shape, generator=g) / shape[-1] ** 0.5
    common = {name: (rand(m, RANK), rand(RANK, n)) for name, (m, n) in SHAPES.items()}
    return [LoRA({name: LoRAUpdate(B + rand(m, RANK), A + rand(RANK, n), ALPHA / RANK, (m, n)) for (name, (m, n)), (B, A) in zip(SHAPES.items(), common.values())}, name=f"a{i}")
            for i in range(N)]

def peft_model(loras):
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            for name, (m, n) in SHAPES.items(): self.add_module(name, nn.Linear(n, m, bias=False, device="meta"))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(SHAPES))
    model = get_peft_model(Layers().to_empty(device="cpu"), config, adapter_name="a0")
    for i, lora in enumerate(loras):
        if i: model.add_adapter(f"a{i}", config)
        for name, u in lora.items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A[f"a{i}"].weight.data, layer.lora_B[f"a{i}"].weight.data = u.down.clone(), u.up.clone()
    return model

def by_peft(model, kind, weight=1 / N, **kwargs):
    def run():
        model.base_model.add_weighted_adapter([f"a{i}" for i in range(N)], [weight] * N, "merged", kind, svd_rank=RANK, **kwargs)
        layers = {name: model.base_model.model.get_submodule(name) for name in SHAPES}
        out = {name: (layer.lora_B["merged"].weight.data, layer.lora_A["merged"].weight.data) for name, layer in layers.items()}
        model.delete_adapter("merged")
        return out
    return run

def by_lowrank(loras):
    def one(name):
        W = sum(lora[name].scale * (lora[name].up @ lora[name].down) for lora in loras) / N
        U, S, V = torch.svd_lowrank(W, q=RANK)
        return U * S, V.mT
    return lambda: {name: one(name) for name in SHAPES}

def ours(method, rank=RANK, weight=1 / N, **kwargs):
    return lambda: {name: (u.up, u.down) for name, u in merge(LORAS, [weight] * N, method, rank, **kwargs).lora.items()}

def distance(x, y):
    "Over all modules, relative, from the factors"
    square = lambda B, A: ((B.double().mT @ B.double()) * (A.double() @ A.double().mT)).sum()
    off = sum(square(torch.cat([x[m][0].double(), -y[m][0].double()], 1), torch.cat([x[m][1].double(), y[m][1].double()])) for m in y)
    return float(off.clamp_min(0) / sum(square(*y[m]) for m in y)) ** 0.5

def textbook_karcher(points, tol=1e-8, max_iter=200):
    "X ← Exp_X(mean of Log_X(Yᵢ)), on n × k matrices (Absil, Mahony & Sepulchre 2004)"
    X = points[0]
    for _ in range(max_iter):
        step = 0
        for Y in points:
            T = Y @ torch.linalg.inv(X.mT @ Y)
            U, S, Vh = torch.linalg.svd(T - X @ (X.mT @ T), full_matrices=False)
            step = step + U * S.atan() @ Vh / len(points)
        if step.norm() < tol: break
        U, S, Vh = torch.linalg.svd(step, full_matrices=False)
        X = torch.linalg.qr((X @ Vh.mT * S.cos() + U * S.sin()) @ Vh).Q
    return X, step.norm()

def compare(title, fns, reference, repeats=0):
    "One line a competitor: seconds (one run, or the median of several), times slower than the first, peak memory, distance from the reference"
    def once(fn):
        start = time.process_time()
        peak = peak_mb(lambda: results.append(fn()))
        return time.process_time() - start, peak
    results: list = []
    runs = {name: once(fn) for name, fn in fns.items()}
    seconds = medians(fns, repeats) if repeats else {name: t for name, (t, _) in runs.items()}
    first = seconds[next(iter(fns))]
    table(title, [{"": name, "CPU s": seconds[name], "× ours": seconds[name] / first, "peak MB": round(runs[name][1]), "from the reference": f"{max(reference(x), 1e-8):.0e}"}
                  for name, x in zip(fns, results)])

def from_clone(variable, module, *stubs):
    "A module of a clone; what it imports beside the functions that run here is stubbed"
    folder = os.path.join(os.environ[variable], *module.split(".")[:-1])
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in stubs}), mock.patch.object(sys, "path", [folder, *sys.path]):
        for name in ("masking_ops", "merging_functions"): sys.modules.pop(name, None)
        return importlib.import_module(module.split(".")[-1])

def by_knots(density, dtype=torch.float32):
    "Official KnOTS-TIES, a module at a time, trimmed to as many entries as ours (its threshold keeps one more); in float32, as it works, entries at the threshold and sums next to zero fall to the other side"
    ops = from_clone("KNOTS", "masking_ops")
    def one(name):
        W = torch.cat([lora[name].scale * (lora[name].up.to(dtype) @ lora[name].down.to(dtype)) for lora in LORAS], 1)
        U, s, V = torch.linalg.svd(W.double(), full_matrices=False) # task_merger.SVDMerger.apply_svd
        U, V, s = U[:, s > 1e-5].to(dtype), V[s > 1e-5].to(dtype), s[s > 1e-5].to(dtype)
        blocks = [(s[:, None] * v).flatten() for v in V.split(W.shape[1] // N, 1)]
        masks = ops.ties_masking(blocks, topK=(int(density * len(blocks[0])) - 0.5) / len(blocks[0]))
        return U, ops.masked_merge(torch.vstack(blocks) * masks, "mean").view(len(s), -1)
    return lambda: {name: one(name) for name in SHAPES}

def by_core_space():
    "Official Core Space, TSV + Iso"
    core = from_clone("CORE_SPACE", "task_merger", "einops", "utils")
    def one(name):
        pairs = [{name: (lora[name].down, lora[name].scale * lora[name].up)} for lora in LORAS]
        M, U, Vh = core.MatrixPerLayerMerger.get_core_matrices(types.SimpleNamespace(cache={}), pairs, name, {})
        return U @ core.isotropize_matrix(core.MatrixPerLayerMerger.get_tsv_delta_w(None, M)), Vh
    return lambda: {name: one(name) for name in SHAPES}

def by_kohya(folder):
    "svd_merge_lora.py, from files as it wants them"
    kohya = from_clone("SD_SCRIPTS", "networks.svd_merge_lora", "library", "library.utils", "library.model_util", "lora")
    paths = [os.path.join(folder, f"{lora.name}.safetensors") for lora in LORAS]
    for lora, path in zip(LORAS, paths):
        save_file({f"{m}.{k}": t for m, u in lora.items() for k, t in (("lora_up.weight", u.up), ("lora_down.weight", u.down), ("alpha", torch.tensor(float(ALPHA))))}, path)
    def run():
        state = kohya.merge_lora_models(paths, [1 / N] * N, [], RANK, RANK, None, torch.float)[0]
        return {m: (state[f"{m}.lora_up.weight"], state[f"{m}.lora_down.weight"]) for m in SHAPES}
    return run

def optional(variable, make):
    "A peer, or a line that says that it is missing"
    if variable not in os.environ: print(f"{variable} is not set: its peer is left out"); return {}
    return {{"KNOTS": "KnOTS-TIES, official", "CORE_SPACE": "Core Space, official", "SD_SCRIPTS": "kohya svd_merge_lora"}[variable]: make()}

def best():
    "Rank-16 approximation of the mean, by a dense SVD in float64"
    out = {}
    for name in SHAPES:
        U, S, Vh = torch.linalg.svd(sum(lora[name].scale * lora[name].up.double() @ lora[name].down.double() for lora in LORAS) / N, full_matrices=False)
        out[name] = (U[:, :RANK] * S[:RANK], Vh[:RANK])
    return out

def mean():
    exact, model = best(), peft_model(LORAS)
    with tempfile.TemporaryDirectory() as folder:
        compare("The mean at rank 16 (reference: dense SVD in float64; medians of 3)", {
            "loragrass svd": ours("svd"), "PEFT svd": by_peft(model, "svd"), "PEFT svd, full_matrices=False": by_peft(model, "svd", svd_full_matrices=False),
            "torch.svd_lowrank of the dense mean": by_lowrank(LORAS), **optional("SD_SCRIPTS", lambda: by_kohya(folder))}, lambda x: distance(x, exact), repeats=3)
    few, every = {name: SHAPES[name] for name in list(SHAPES)[:24]}, dict(SHAPES)
    with mock.patch.dict(SHAPES, few, clear=True), mock.patch.object(sys.modules[__name__], "LORAS", [LoRA({m: lora[m] for m in few}, name=lora.name) for lora in LORAS]):
        exact, model = best(), peft_model(LORAS)
        compare("The same of 24 modules 768 × 768", {"loragrass svd": ours("svd"), "PEFT svd": by_peft(model, "svd"), "PEFT svd, full_matrices=False": by_peft(model, "svd", svd_full_matrices=False)},
                lambda x: distance(x, exact), repeats=3)
    assert SHAPES == every

def ties(density=0.2):
    whole, model = ours("ties", rank="sum", density=density), peft_model(LORAS)
    reference = whole()
    compare(f"TIES, density {density} (reference: KnOTS-TIES of loragrass, not cut)", {
        "loragrass KnOTS-TIES": whole, "loragrass Core-TIES": ours("ties", rank="sum", density=density, coordinates="core"),
        "PEFT ties_svd (dense coordinates, cut to 16)": by_peft(model, "ties_svd", weight=1.0, density=density), **optional("KNOTS", lambda: by_knots(density)),
        **{f"{name}, in float64": fn for name, fn in optional("KNOTS", lambda: by_knots(density, torch.float64)).items()}}, lambda x: distance(x, reference))

def tsv():
    whole = ours("tsv_iso", rank="sum", weight=1.0)
    reference = whole()
    compare("TSV + Iso (reference: loragrass, not cut)", {"loragrass": whole, **optional("CORE_SPACE", by_core_space)}, lambda x: distance(x, reference))

def karcher():
    bases = [[getattr(lora[name], side) for lora in LORAS] for name in SHAPES for side in ("left", "right")]
    fns = {"loragrass karcher": ours("karcher"), "its karcher_mean alone, n × k": lambda: [karcher_mean(torch.stack(b)) for b in bases], "textbook fixed point, n × k": lambda: [textbook_karcher(b) for b in bases]}
    seconds = medians(fns, 1)
    _, ours_alone, textbook = (fn() for fn in fns.values())
    gradients = ["–", f"{max(m.grad_norm for m in ours_alone):.0e}", f"{max(float(g) for _, g in textbook):.0e}"]
    table("Karcher means of 104 subspaces (the first line with cores, lift and measures)",
          [{"": name, "CPU s": t, "× ours": t / seconds["loragrass karcher"], "largest gradient": g} for (name, t), g in zip(seconds.items(), gradients)])

def seconds_of(names): return medians({name: ours(name) for name in names}, 1)

def rules():
    names, there = [name for name in RULES if name not in ("cat", "karcher_median") and not RULES[name].most], {}
    if "BEFORE" in os.environ:
        ran = subprocess.run([sys.executable, __file__, "--seconds", *names], env=os.environ | {"PYTHONPATH": os.environ["BEFORE"]}, capture_output=True, text=True, check=True)
        there = json.loads(ran.stdout.splitlines()[-1])
    else: print("BEFORE is not set: seconds of another checkout are left out")
    here = seconds_of(names)
    table("Rules at rank 16, 52 modules", [{"rule": name, **({"before": there.get(name, "–")} if there else {}), "CPU s": t, **({"×": there[name] / t if name in there else "–"} if there else {})} for name, t in here.items()])

def by_mergekit(method, names, **parameters):
    "A rule of mergekit, on dense updates and a base model of zeros; dense matrices come out"
    sys.path[:0] = [p for p in os.environ["MERGEKIT"].split(os.pathsep) if p not in sys.path]
    task = importlib.import_module("mergekit.merge_methods.generalized_task_arithmetic").GTATask
    rule = importlib.import_module("mergekit.merge_methods.registry").REGISTERED_MERGE_METHODS[method]
    norm = importlib.import_module("mergekit.sparsify").RescaleNorm.l1 if rule.default_rescale else None
    given = types.SimpleNamespace(data={lora.name: {"weight": 1 / N, **parameters} for lora in LORAS})
    asked = types.SimpleNamespace(weight_info=types.SimpleNamespace(name="", is_embed=False), base_model="", tensor_parameters=given, method=rule, rescale_norm=norm, int8_mask=False,
                                  normalize=rule.default_normalize, lambda_=1.0)
    def one(name):
        out = task.execute(asked, {"": torch.zeros(SHAPES[name]), **{lora.name: lora[name].dense() for lora in LORAS}})
        return out, torch.eye(out.shape[1])
    return lambda: {name: one(name) for name in names}

def mergekit():
    if "MERGEKIT" not in os.environ: print("MERGEKIT is not set: mergekit is left out"); return
    names, rows = list(SHAPES)[:4], []
    few = [LoRA({name: lora[name] for name in names}, name=lora.name) for lora in LORAS]
    for rule, method, kw in (("svd", "task_arithmetic", {}), ("ties", "ties", {"density": 0.2}), ("dare", "dare_linear", {"density": 0.5}), ("dare_ties", "dare_ties", {"density": 0.5}),
                             ("breadcrumbs", "breadcrumbs", {"density": 0.9, "gamma": 0.01}), ("della", "della", {"density": 0.5, "epsilon": 0.15})):
        t = medians({"ours": lambda rule=rule, kw=kw: merge(few, 1 / N, rule, RANK, **kw), "theirs": by_mergekit(method, names, **kw)}, 1)
        rows.append({"loragrass": rule, "CPU s": t["ours"], "mergekit": method, "CPU s, dense": t["theirs"], "×": t["theirs"] / t["ours"]})
    table("Beside mergekit, 4 modules 768 × 768: ours an adapter of rank 16, theirs dense matrices, not cut", rows)

def files(N=32, groups=4):
    "SDXL-sized files of four groups, half of each adapter common to its group: read, grouped, averaged, written"
    lists = json.loads(gzip.decompress((Path(__file__).parent.parent / "tests/data/key_lists.json.gz").read_bytes()))["lists"]
    keys = {k: [RANK if d == "r" else d for d in shape] for k, shape in lists["sdxl_kohya"].items()}
    def tensors(seed):
        g = torch.Generator().manual_seed(seed)
        return {k: torch.randn(shape, generator=g) / 10 for k, shape in keys.items() if not k.endswith("alpha")}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(N):
            if i % (N // groups) == 0: common = tensors(i)
            own = tensors(1000 + i)
            save_file({k: torch.tensor(8.0) if k.endswith("alpha") else (common[k] + own[k]).half() for k in keys}, f"{folder}/{i:02d}.safetensors")
        size = sum(p.stat().st_size for p in Path(folder).iterdir()) / 1e6
        del common, own
        found, first = [], load_all(folder)[0]
        def run():
            loras = load_all(folder)
            found.append(cluster_merge(loras, groups))
            for j, mean in enumerate(found[0].means): save(mean, f"{folder}/mean_{j}.safetensors", dtype=torch.float16)
        start = time.process_time()
        peak, modules, dense = peak_mb(run), found[0].merged[0].per_module, {}
        ours = time.process_time() - start
        for name, shape in modules["shape"].items():
            if shape in dense: continue
            W = first[name].dense().flatten(1)
            start = time.process_time(); torch.linalg.svd(W); dense[shape] = time.process_time() - start
    right = all(len(set(found[0].labels[i:i + N // groups])) == 1 for i in range(0, N, N // groups))
    svds = groups * sum(dense[shape] for shape in modules["shape"])
    table(f"{N} SDXL files, {size:.0f} MB, {len(modules)} modules: read, grouped{'' if right else ' (wrongly)'}, {groups} means written (CPU s, one run)", [
        {"": "loragrass cluster_merge, from disk to disk", "CPU s": ours, "× ours": 1.0, "peak MB": round(peak)},
        {"": "the SVDs of PEFT svd alone, extrapolated from one of each shape", "CPU s": svds, "× ours": svds / ours, "peak MB": "–"}])

if __name__ == "__main__":
    LORAS = adapters()
    if "--seconds" in sys.argv:
        torch.set_num_threads(1)
        print(json.dumps(seconds_of([name for name in sys.argv[2:] if name in RULES])))
        sys.exit()
    machine("peft")
    print(f"\n{N} adapters of rank {RANK}, 48 modules 768 × 768 and 4 of 3072 × 768; distances over all modules, relative, 1e-08 and below as 1e-08")
    sections = {"mean": mean, "ties": ties, "tsv": tsv, "karcher": karcher, "rules": rules, "mergekit": mergekit, "files": files}
    for name in sys.argv[1:] or sections: sections[name]()
