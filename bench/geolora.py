"""Adapters whose rank adapts, beside LoRA, AdaLoRA and PEFT's Riemannian optimizer: time and memory of a step, ranks that are found, what is reached

    python bench/geolora.py [speed] [recovery] [teacher]      # everything, or these parts: 4, 10 and 10 minutes on one core
    python bench/geolora.py recovery teacher --seeds 10       # more seeds than 2 for both; ten for the teacher are the claim
"""
import argparse, copy, math, statistics, time, warnings

import peft
import torch
from common import machine, table
from peft.optimizers import create_riemannian_optimizer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from loragrass.geolora_model import GeoLoRAConfig, GeoLoRAModel, GeoLoRAOptimizer

warnings.simplefilter("ignore")

# one interface for all: model, optimizer, what to call after a step, and the rank of each layer

def geolora(base, lr, steps, targets, **config):
    model = GeoLoRAModel(base, GeoLoRAConfig(learning_rate=lr, alpha=0., max_rel_update=None, **config), targets)
    optimizer = GeoLoRAOptimizer(model, num_training_steps=steps)
    return model, optimizer, lambda step: None, lambda: list(model.ranks.values())

def lora(base, lr, steps, targets, rank, riemannian=False):
    model = peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = create_riemannian_optimizer(model, torch.optim.AdamW, lr=lr, weight_decay=0.) if riemannian else torch.optim.AdamW(params, lr=lr, weight_decay=0.)
    return model, optimizer, lambda step: None, lambda: [rank] * sum(hasattr(m, "lora_A") for m in model.modules())

def adalora(base, lr, steps, targets, rank, start=None, every=1): # every: steps between two looks at the ranks
    config = peft.AdaLoraConfig(init_r=start or rank, target_r=rank, tinit=steps // 10, tfinal=steps // 3, deltaT=every, total_step=steps, lora_alpha=start or rank, target_modules=targets)
    model = peft.get_peft_model(base, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.)
    def ranks(): return [int((m.lora_E["default"].abs() > 1e-12).sum()) for m in model.modules() if hasattr(m, "lora_E")]
    return model, optimizer, model.base_model.update_and_allocate, ranks

def descend(optimizer, after, steps, loss): # loss() → the step's
    "Steps along a cosine, with what a method wants done after each"
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        after(step + 1)
        schedule.step()

# time of a step

class Body(nn.Sequential):
    def __init__(self, depth=12, width=768):
        super().__init__(*[x for _ in range(depth) for x in (nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())])

TARGETS = [str(3 * i + 1) for i in range(12)]

def seconds(model, optimizer, after, x, at): # CPU time of one step
    start = time.process_time()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    after(at)
    optimizer.zero_grad()
    return time.process_time() - start

def speed(tokens, rank, rounds):
    torch.manual_seed(0)
    base, x = Body().requires_grad_(False), torch.randn(tokens, 768)
    settings = dict(rank_init=rank, truncation_strategy="fixed_rank")
    runs = {"LoRA": lora(copy.deepcopy(base), 1e-4, 1000, TARGETS, rank), "AdaLoRA": adalora(copy.deepcopy(base), 1e-4, 1000, TARGETS, rank),
            "GeoLoRA": geolora(copy.deepcopy(base), 1e-4, 1000, TARGETS, **settings)}
    times = {name: [] for name in runs}
    for i in range(rounds + 2):
        for name, (model, optimizer, after, _) in runs.items(): times[name].append(seconds(model, optimizer, after, x, i + 1))
    ratios = {name: statistics.median(a / b for a, b in zip(times["GeoLoRA"][2:], times[name][2:])) for name in ("LoRA", "AdaLoRA")}
    model, optimizer, *_ = runs["GeoLoRA"]
    for _ in range(5): model(x[:8]).square().mean().backward()
    start = time.process_time()
    for _ in range(5): optimizer.step()
    update = (time.process_time() - start) / 5
    return {"tokens": tokens, "rank": rank, "LoRA, CPU s": statistics.median(times["LoRA"][2:]), "GeoLoRA / LoRA": ratios["LoRA"], "GeoLoRA / AdaLoRA": ratios["AdaLoRA"],
            "the update, CPU ms": 1e3 * update}

def held(rank): # numbers per layer of 768 × 768: parameters, gradients, moments
    torch.manual_seed(0)
    base, x = Body(2).requires_grad_(False), torch.randn(64, 768)
    sizes, operations = {}, {}
    for name, (model, optimizer, *_) in {"LoRA": lora(copy.deepcopy(base), 1e-4, 100, TARGETS[:2], rank),
                                         "GeoLoRA": geolora(copy.deepcopy(base), 1e-4, 100, TARGETS[:2], rank_init=rank, truncation_strategy="fixed_rank")}.items():
        with FlopCounterMode(display=False) as counter: model(x).square().mean().backward()
        operations[name] = counter.get_total_flops()
        optimizer.step()
        moments = sum(t.numel() for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor) and t.numel() > 1)
        params = [p for p in model.parameters() if p.requires_grad]
        sizes[name] = moments + 2 * sum(p.numel() for p in params)
        if name == "GeoLoRA": sizes["in use"] = moments + 2 * sum(rank * len(p) for p in params) + 2 * rank
    return {"rank": rank, "operations / LoRA's": operations["GeoLoRA"] / operations["LoRA"], "state / LoRA with AdamW": sizes["in use"] / sizes["LoRA"],
            "with all columns that are allocated": sizes["GeoLoRA"] / sizes["LoRA"]}

# a matrix under noise

def task(seed, condition, m=128, n=96, rank=10, noise=3e-4):
    gen = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(d, rank, generator=gen, dtype=torch.float64))[0] for d in (m, n))
    S = torch.logspace(0, -2, rank, dtype=torch.float64)
    X = torch.linalg.qr(torch.randn(n, n, generator=gen, dtype=torch.float64))[0] * torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
    return ((U * S) @ V.mT + noise * torch.randn(m, n, generator=gen, dtype=torch.float64) / m ** 0.5).float(), X.float()

def optimum(W, X, rank=10): # ½ min ‖(W − B) Xᵀ‖² over B of this rank: Eckart & Young for W Xᵀ
    return torch.linalg.svdvals((W @ X.mT).double())[rank:].square().sum().item() / 2

def recover(make, W, X, steps, lr, **settings):
    base = nn.Sequential(nn.Linear(96, 128, bias=False)).requires_grad_(False)
    base[0].weight.zero_()
    torch.manual_seed(0)
    model, optimizer, after, ranks = make(base, lr, steps, ["0"], **settings)
    target = X @ W.mT
    def loss(): return (model(X) - target).square().sum() / 2
    descend(optimizer, after, steps, loss)
    model.eval()
    with torch.no_grad(): return ranks()[0], loss().item() / optimum(W, X)

def tau_of(W): # between the noise and the least signal, their geometric mean
    s = torch.linalg.svdvals(W.double())
    return math.sqrt(s[10:].norm() * s[9:].norm()) / s.norm().item()

LRS = (1e-2, 3e-2, 1e-1, 3e-1)

def recovery(seeds, steps=500):
    rows = []
    for condition in (1, 100):
        tasks = [task(seed, condition) for seed in range(2, 2 + seeds)]
        for start in (1, 2, 10, 40):
            runs = [recover(geolora, W, X, steps, lr, rank_init=start, rank_max=48, tau=tau_of(W)) for W, X in tasks for lr in LRS]
            good = [rank == 10 and ratio <= 1.001 for rank, ratio in runs]
            rows.append({"condition": condition, "by": f"GeoLoRA from rank {start}, every lr", "ranks": spread([rank for rank, _ in runs]), "loss / optimum, median": statistics.median(r for _, r in runs),
                         "worst": max(r for _, r in runs), "exact": f"{sum(good)} of {len(good)}"})
        for name, make, settings in (("LoRA, rank given", lora, dict(rank=10)), ("PEFT's Riemannian, rank given", lora, dict(rank=10, riemannian=True)), ("AdaLoRA 20 → 10", adalora, dict(rank=10, start=20))):
            best = [min((recover(make, W, X, steps, lr, **settings) for lr in LRS), key=lambda run: run[1]) for W, X in tasks]
            rows.append({"condition": condition, "by": f"{name}, best lr", "ranks": spread([rank for rank, _ in best]), "loss / optimum, median": statistics.median(r for _, r in best),
                         "worst": max(r for _, r in best), "exact": f"{sum(rank == 10 and ratio <= 1.001 for rank, ratio in best)} of {len(best)}"})
    table(f"A 128 × 96 matrix of rank 10 under noise, {steps} steps, cosine, seeds 2–{1 + seeds}, lr {', '.join(map(str, LRS))}; exact: rank 10 and loss ≤ 1.001 × Eckart–Young's", rows)

def spread(ranks): return str(min(ranks)) if min(ranks) == max(ranks) else f"{min(ranks)}–{max(ranks)}"

# a teacher that differs by ranks 1, 4, 8

class Residual(nn.Module):
    def __init__(self, width=64, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
    def forward(self, x):
        for layer in self.layers: x = x + nn.functional.gelu(layer(x))
        return x

def teacher(seed, ranks=(1, 4, 8)):
    torch.manual_seed(seed)
    student = Residual().requires_grad_(False)
    truth = copy.deepcopy(student)
    for layer, rank in zip(truth.layers, ranks):
        (U, V), size = (torch.linalg.qr(torch.randn(64, rank))[0] for _ in range(2)), layer.weight.norm()
        layer.weight += U @ V.mT * size / rank ** 0.5 / 2
    return student, truth

def learn(make, seed, lr, steps=800, **settings):
    student, truth = teacher(seed)
    torch.manual_seed(0)
    model, optimizer, after, ranks = make(student, lr, steps, ["layers.0", "layers.1", "layers.2"], **settings)
    gen = torch.Generator().manual_seed(seed)
    def loss():
        x = torch.randn(128, 64, generator=gen)
        return (model(x) - truth(x)).square().mean()
    descend(optimizer, after, steps, loss)
    model.eval()
    x = torch.randn(2000, 64, generator=gen)
    with torch.no_grad(): error = ((model(x) - truth(x)).square().mean() / (truth(x) - x).square().mean()).item()
    return ranks(), error

def teachers(seeds):
    rows = []
    for start in (1, 8):
        runs = [learn(geolora, seed, 3e-2, rank_init=start, tau=0.05) for seed in range(2, 2 + seeds)]
        rows.append({"by": f"GeoLoRA from rank {start}, lr 0.03", "numbers": sum(129 * k for k in runs[0][0]), "ranks 1, 4, 8": f"{sum(ranks == [1, 4, 8] for ranks, _ in runs)} of {len(runs)}",
                     "error, median": statistics.median(e for _, e in runs), "worst": max(e for _, e in runs)})
    few = range(2, 2 + min(seeds, 2))
    for name, make, settings in (("LoRA, rank 5", lora, dict(rank=5)), ("LoRA, rank 8", lora, dict(rank=8)), ("PEFT's Riemannian, rank 8", lora, dict(rank=8, riemannian=True)),
                                 ("AdaLoRA 12 → 5", adalora, dict(rank=5, start=12))):
        best = [min((learn(make, seed, lr, **settings) for lr in (3e-3, 1e-2, 3e-2)), key=lambda run: run[1]) for seed in few]
        rows.append({"by": f"{name}, best of 3 lr, {len(few)} seeds", "numbers": sum((129 if "Ada" in name else 128) * k for k in best[0][0]), "ranks 1, 4, 8": f"{sum(ranks == [1, 4, 8] for ranks, _ in best)} of {len(best)}",
                     "error, median": statistics.median(e for _, e in best), "worst": max(e for _, e in best)})
    table(f"A student learns what a teacher has more, of ranks 1, 4 and 8 in three layers 64 × 64, 800 minibatches of 128, seeds 2–{1 + seeds}; mean squared error over that of the identity", rows)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="of speed, recovery, teacher; all if none is named")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    parts = args.parts or ["speed", "recovery", "teacher"]
    machine("peft")
    if "speed" in parts:
        table("What a layer of 768 × 768 holds and computes, at equal rank", [held(rank) for rank in (8, 16, 32)])
        table(f"One step of 12 × (LayerNorm, Linear 768, GELU), median of {args.rounds} ratios, interleaved",
              [speed(tokens, rank, args.rounds if tokens > 500 else 4 * args.rounds) for tokens in (2048, 128) for rank in (8, 16, 32)])
    if "recovery" in parts: recovery(args.seeds)
    if "teacher" in parts: teachers(args.seeds)
