"""What the guide's strategies take on the thousand adapters of its smallest data set (rank 1, 64 modules of Stable Diffusion 1.5), beside what it says: CPU minutes, from a few adapters of those shapes

    python bench/presets.py [--adapters N] [--learned]

`--learned` trains the encoders for one epoch (a net on 99 648 numbers takes 3 GB) and multiplies by a hundred."""
import argparse, time

import numpy as np
import torch
from common import machine, table
from loragrass.ablation import PRESETS
from loragrass.encoders import ContrastiveFeatures, DenoisingFeatures, VAEFeatures
from loragrass.features import Features
from loragrass.lora_io import LoRA, LoRAUpdate

def shapes(): # of to_q and to_v, in 5 + 5 + 6 transformer blocks
    for width, blocks in ((320, 5), (640, 5), (1280, 6)):
        for b in range(blocks):
            for name, n in (("attn1.to_q", width), ("attn1.to_v", width), ("attn2.to_q", width), ("attn2.to_v", 768)): yield f"{width}.{b}.{name}", width, n

def adapter(seed):
    gen = torch.Generator().manual_seed(seed)
    return LoRA({name: LoRAUpdate(1e-3 * torch.randn(m, 1, generator=gen), torch.randn(1, n, generator=gen), 1., (m, n)) for name, m, n in shapes()}, name=str(seed))

def minutes(f, N): # of a thousand, from N
    start = time.process_time()
    f()
    return (time.process_time() - start) / N * 1000 / 60

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--learned", action="store_true")
    options = parser.parse_args()
    machine("scikit-learn")
    X = [adapter(i) for i in range(options.adapters)]
    parts = {name: PRESETS[name].make() for name in ("quick", "handcrafted")} | {"rows": Features(["spectral", "distribution"])}
    parts["quick, on canonical factors"] = Features(["stats", "norms", "distribution"], on="canonical")
    parts["handcrafted, on canonical factors"] = Features("ensemble", on="canonical")
    took = {name: minutes(lambda t=t: t.fit(X).transform(X), len(X)) for name, t in parts.items()}
    if options.learned:
        rows = np.random.default_rng(0).standard_normal((256, sum(m + n for _, m, n in shapes()))).astype(np.float32)
        nets = {kind: 100 * minutes(lambda kind=kind: kind(n_epochs=1).fit(rows), len(rows)) for kind in (VAEFeatures, ContrastiveFeatures, DenoisingFeatures)}
        took |= {"deep": sum(nets.values()), "hybrid": took["rows"] + nets[ContrastiveFeatures]}
    guide = {name: p.minutes for name, p in PRESETS.items()} | {name: PRESETS[name.split(",")[0]].minutes for name in parts if "," in name}
    table("CPU minutes for a thousand adapters, one thread, beside the guide's", [{"strategy": name, "here": took.get(name, "not run"), "guide": m} for name, m in guide.items()])

if __name__ == "__main__": main()
