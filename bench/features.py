"Rows of features, and how an adapter sits on its base: adapters a second, beside the per-tensor way of the source and PEFT's way to intruders"
import copy, sys, tempfile, time, types
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import machine, medians, peak_mb, peer, table
from loragrass.base_report import subspace_report
from loragrass.directions import ReferenceAngles
from loragrass.features import Features
from loragrass.lora_datasets import load_lora_dataset
from loragrass.lora_io import LoRA, LoRACollection, LoRAUpdate

QV = [(m, n) for m, blocks in ((320, 5), (640, 5), (1280, 6)) for _ in range(blocks) for n in (m, m, m, 768)] # to_q, to_v of SD 1.5
SHAPES = {"zoo \"concepts\", rank 4": ([(128, 72), (128, 128), (64, 128)], 4), "SD 1.5 q, v, rank 1": (QV, 1), "SD 1.5 q, v, rank 8": (QV, 8),
          "64 × (2048, 2048), rank 16": ([(2048, 2048)] * 64, 16)}

def adapters(shapes, r, N, seed=0):
    g = torch.Generator().manual_seed(seed)
    def one(): return {f"m{i}": LoRAUpdate(torch.randn(m, r, generator=g), torch.randn(r, n, generator=g), 1., (m, n)) for i, (m, n) in enumerate(shapes)}
    return LoRACollection([LoRA(one(), name=str(i)) for i in range(N)])

def rates():
    rows = []
    for name, (shapes, r) in SHAPES.items():
        X = adapters(shapes, r, {4: 400, 1: 40, 8: 20, 16: 4}[r])
        ways = {"spectral": Features("spectral"), "norms of canonical factors": Features("norms", "canonical"), "angles to 32 references": ReferenceAngles(32, random_state=0)}
        fitted = {what: t.fit(X) for what, t in ways.items() if what == "spectral" or r < 16}
        times = medians({what: partial(t.transform, X) for what, t in fitted.items()}, 3)
        aim = {4: 5000, 1: 300, 8: 100, 16: 15}[r]
        rows.append({"adapters": name, "aim": aim} | {what: len(X) / times[what] if what in times else "" for what in ways})
    table("Adapters a CPU second, thin features (spectra of ΔW)", rows)

# ---- the source's way, written from its description: every tensor by itself, every number by itself

def _per_tensor(t):
    out, s = [], torch.linalg.svdvals(t)[:10]
    s = torch.cat([s, torch.zeros(10 - len(s))])
    p = s / (s.sum() + 1e-8)
    out += [s[i].item() for i in range(10)] + [p[i].item() for i in range(10)] + [((s[i] - s[i + 1]) / (s[i] + 1e-8)).item() for i in range(9)]
    out += [-(p * (p + 1e-8).log()).sum().item(), (s[0] / (s[-1] + 1e-8)).item(), s.sum().item()]
    fro, nuc, spec = torch.linalg.matrix_norm(t).item(), torch.linalg.matrix_norm(t, "nuc").item(), torch.linalg.matrix_norm(t, 2).item()
    out += [fro, nuc, spec, torch.linalg.matrix_norm(t, 1).item(), torch.linalg.matrix_norm(t, torch.inf).item(), nuc / (fro + 1e-8), spec / (fro + 1e-8)]
    x = t.flatten()
    q = [torch.quantile(x, q).item() for q in (.05, .1, .25, .5, .75, .9, .95)]
    mean, std = x.mean(), x.std()
    z = (x - mean) / (std + 1e-8)
    out += [*q, q[4] - q[2], (x - mean).abs().mean().item(), (std / (mean.abs() + 1e-8)).item(), (z ** 3).mean().item(), (z ** 4).mean().item()]
    f = torch.fft.fft2(t).abs().flatten()
    top = f.topk(10).values
    out += [top[i].item() for i in range(10)] + [f.mean().item(), f.std().item(), f.max().item(), (top.square().sum() / f.square().sum()).item()]
    h = torch.histogram(x, 50).hist
    h = h[h > 0] / h.sum()
    entropy = -(h * h.log()).sum().item()
    return out + [entropy, entropy / np.log(50)]

def per_tensor(X): return np.array([[n for u in lora.values() for t in (u.down, u.up) for n in _per_tensor(t)] for lora in X], np.float32)

def ensemble():
    rows = []
    for name in list(SHAPES)[:3]:
        shapes, r = SHAPES[name]
        X, few = adapters(shapes, r, 400 if r == 4 else 24), adapters(shapes, r, 10 if r == 4 else 2)
        raw, update = (Features("ensemble", on).fit(X) for on in ("factors", "update"))
        ways = {"ours": partial(raw.transform, X), "source": partial(per_tensor, few)} | ({"ours, ΔW": partial(update.transform, X)} if r == 4 else {})
        times = medians(ways, 3)
        assert raw.transform(few).shape == per_tensor(few).shape
        ours, theirs = len(X) / times["ours"], len(few) / times["source"]
        rows.append({"adapters": name, "tensors": 2 * len(shapes), "ours, A and B": ours, "per tensor, A and B": theirs, "×": ours / theirs,
                     "ours, ΔW": len(X) / times["ours, ΔW"] if r == 4 else ""})
    table("Ensemble, 67 numbers a tensor: adapters a CPU second (≥ 50 × is the aim)", rows)

# ---- intruder dimensions

def intruders(m=768, r=16, layers=1, many=32):
    if not (peft := peer("peft")): return
    from peft.tuners.lora.intruders import reduce_intruder_dimension
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(m, m, bias=False) for _ in range(layers)))
    def of_peft(): return peft.get_peft_model(copy.deepcopy(net), peft.LoraConfig(r=r, target_modules=[str(i) for i in range(layers)], init_lora_weights=False))
    def ours(model): return LoRA({n: LoRAUpdate(l.lora_B["default"].weight.data, l.lora_A["default"].weight.data, l.scaling["default"], (m, m))
                                  for n, l in model.base_model.model.named_children()})
    models = [of_peft() for _ in range(many)]
    loras = [ours(model) for model in models]
    def by_peft(i=iter(models)): reduce_intruder_dimension(next(i), logging_sink=None) # a model can be asked once
    times = medians({"one": lambda: subspace_report(loras[0], net), "PEFT": by_peft}, 3) | medians({"many": lambda: subspace_report(loras, net)}, 1)
    table(f"Intruder dimensions of {layers} layers of {m} × {m}, rank {r}: CPU s",
          [{"adapters": n, "subspace_report": times[key], "PEFT": n * times["PEFT"], "×": n * times["PEFT"] / times[key], "aim": aim} for n, key, aim in ((1, "one", 1.8), (many, "many", 10))])

# ---- rows of a data set with the schema of the hub's

def shard(path, rows=64):
    import pyarrow as pa, pyarrow.parquet as pq
    g, columns = torch.Generator().manual_seed(0), {}
    blocks = [(f"down_blocks.{i}.attentions.{j}", 320 * 2 ** i) for i in range(3) for j in range(2)] + [("mid_block.attentions.0", 1280)]
    blocks += [(f"up_blocks.{i}.attentions.{j}", 1280 // 2 ** (i - 1)) for i in range(1, 4) for j in range(3)]
    for block, m in blocks:
        for attn in ("attn1", "attn2"):
            for to in ("to_q", "to_v"):
                n = 768 if (attn, to) == ("attn2", "to_v") else m
                for role, shape in (("down", (1, n)), ("up", (m, 1))):
                    cells = torch.randn(rows, *shape, generator=g).numpy()
                    columns[f"unet.{block}.transformer_blocks.0.{attn}.{to}.lora.{role}.weight"] = pa.array(list(map(list, cells)), pa.list_(pa.list_(pa.float32())))
    columns |= {"category_label": pa.array(["cat", "dog"] * (rows // 2)), "num_images": pa.array([4] * rows)}
    pq.write_table(pa.table(columns), path, row_group_size=32)

def hub(total=100_000, warm=256):
    with tempfile.TemporaryDirectory() as folder:
        path, state = Path(folder)/"shard.parquet", types.SimpleNamespace(rows=0)
        shard(path)
        def stream():
            while True: yield from load_lora_dataset(path)
        source, t = stream(), None
        def read(n):
            nonlocal t
            while n > 0:
                batch = LoRACollection([next(source) for _ in range(min(256, n))])
                t = t or Features("spectral", k=1).fit(batch)
                assert np.isfinite(t.transform(batch)).all()
                n, state.rows = n - len(batch), state.rows + len(batch)
        read(warm)
        start, half = time.process_time(), peak_mb(lambda: read(total // 2))
        whole = peak_mb(lambda: read(total - total // 2))
        seconds = time.process_time() - start
    table("Rows of a parquet of the hub's schema, 128 columns and 99 648 numbers a row, 64 rows cycled: streamed, spectra of ΔW",
          [{"rows": total, "rows a CPU s": total / seconds, "minutes for 91 700": 91_700 * seconds / total / 60, "MB over the start, first half": half, "second half": whole}])

if __name__ == "__main__":
    machine("scikit-learn", "peft", "datasets")
    parts = {"rates": rates, "ensemble": ensemble, "intruders": intruders, "hub": hub}
    for name in sys.argv[1:] or parts: parts[name]()
