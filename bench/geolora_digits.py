"""How well must it be tuned? Learning rates over six decades on a small vision transformer, GeoLoRA beside LoRA, AdaLoRA and Riemannian optimizers

    python bench/geolora_digits.py [--seeds 0 1 2]

The transformer learns the digits 0 to 4. Then 300 images of 5 to 9 and 150 steps teach it the other five: adapters on its attention and MLPs at the learning rate
of the column, its head by AdamW at 2e-3 for every method. Accuracy on the other images of 5 to 9; the cosine schedule and the batches are the same for all.
"""
import argparse, copy, math
from functools import partial

import numpy as np
import torch
from common import machine, table
from geolora import adalora, lora
from sklearn.datasets import load_digits
from torch import nn

from loragrass import GeoLoRAConfig, GeoLoRAModel, GeoLoRAOptimizer
from loragrass.geolora_training import RiemannianOptimizer

RATES, STEPS = [10. ** k for k in range(-4, 2)], 150
TARGETS = ["q", "k", "v", "o", "up", "down"]

class Block(nn.Module):
    def __init__(self, d, heads=4):
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        h = self.norms[0](x)
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))

class ViT(nn.Module):
    "Patches of 2 × 2, width 48, two blocks"
    def __init__(self, d=48, classes=5):
        super().__init__()
        self.embed, self.place = nn.Linear(4, d), nn.Parameter(torch.randn(16, d) * 0.02)
        self.blocks, self.norm, self.head = nn.ModuleList(Block(d) for _ in range(2)), nn.LayerNorm(d), nn.Linear(d, classes)

    def forward(self, x): # (N, 8, 8)
        patches = x.unfold(1, 2, 2).unfold(2, 2, 2).flatten(1, 2).flatten(2)
        h = self.embed(patches) + self.place
        for block in self.blocks: h = block(h)
        return self.head(self.norm(h).mean(1))

def data(digits):
    images, target = (torch.from_numpy(x) for x in load_digits(return_X_y=True))
    rows = torch.isin(target, torch.tensor(digits))
    return images[rows].reshape(-1, 8, 8).float() / 16, target[rows] - digits[0]

def pretrained(seed):
    torch.manual_seed(seed)
    model, (x, y) = ViT(), data(list(range(5)))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(300):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model

def geolora(base, lr, steps, targets, optimizer=GeoLoRAOptimizer, **fields):
    adapted = GeoLoRAModel(base, GeoLoRAConfig(rank_init=4, learning_rate=lr, **(dict(alpha=0.) | fields)), targets)
    return adapted, optimizer(adapted, num_training_steps=steps), lambda step: None, None

METHODS = {
    "LoRA, r 4": partial(lora, rank=4), "PEFT's Riemannian AdamW, r 4": partial(lora, rank=4, riemannian=True),
    "AdaLoRA, 8 → 4": partial(adalora, rank=4, start=8, every=5),
    "Stiefel, RiemannianAdam, r 4": partial(geolora, optimizer=RiemannianOptimizer, alpha=1e-2),
    "GeoLoRA, τ 0.1": partial(geolora, tau=0.1), "GeoLoRA, τ 0.2": partial(geolora, tau=0.2),
    "GeoLoRA, τ 0.2, no cap": partial(geolora, tau=0.2, max_rel_update=None),
}

def run(method, lr, seed, base):
    "Accuracy on held-out images, numbers of the adapter in the end"
    model = copy.deepcopy(base)
    torch.manual_seed(seed)
    model.head = nn.Linear(48, 5)
    head = list(model.head.parameters())
    adapted, optimizer, after, _ = method(model, lr, STEPS, TARGETS)
    for p in head: p.requires_grad_(True)
    optimizers = [optimizer, torch.optim.AdamW(head, 2e-3)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda i: (1 + math.cos(math.pi * i / STEPS)) / 2) for o in optimizers]
    (x, y), order = data(list(range(5, 10))), torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(x), generator=order)
    train, test = rows[:300], rows[300:]
    adapted.train()
    for step in range(STEPS):
        batch = train[torch.randint(300, (64,), generator=order)]
        for o in optimizers: o.zero_grad()
        nn.functional.cross_entropy(adapted(x[batch]), y[batch]).backward()
        for o in optimizers: o.step()
        for s in schedules: s.step()
        after(step)
    adapted.eval()
    with torch.no_grad(): accuracy = (adapted(x[test]).argmax(1) == y[test]).float().mean().item()
    numbers = adapted.n_trainable if hasattr(adapted, "n_trainable") else sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n and p.ndim == 2)
    return accuracy, numbers

def main(seeds):
    machine("peft", "geoopt")
    bases, rows = {seed: pretrained(seed) for seed in seeds}, []
    for name, method in METHODS.items():
        runs = np.array([[run(method, lr, seed, bases[seed]) for seed in seeds] for lr in RATES]) # rates × seeds × 2
        mean, best = runs[..., 0].mean(1), runs[..., 0].mean(1).argmax()
        good = [lr for lr, a in zip(RATES, mean) if a >= mean.max() - 0.02]
        rows.append({"": name} | {f"{lr:g}": f"{a:.3f}" for lr, a in zip(RATES, mean)} | {"best, ± over seeds": f"{mean[best]:.3f} ± {runs[best, :, 0].std(ddof=1):.3f}",
            "decades within 2 points of it": len(good) - 1, "numbers at the best": round(runs[best, :, 1].mean())})
    table(f"Accuracy on 5 … 9 by learning rate, {len(seeds)} seeds", rows)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    main(**vars(parser.parse_args()))
