"""GeoLoRA on a real language model: the last four layers of SmolLM2-135M, tuned on Python's own library, beside PEFT's LoRA, its Riemannian optimizer and AdaLoRA

    python bench/geolora_lm.py [--steps 150] [--seeds 0 1]        # about two minutes a run on one core, of which there are some forty

Texts are split into training, validation and test documents. Each method takes the learning rate (and τ) with the lowest validation loss, and only then is its test loss read.
"""
import argparse, copy, itertools, math
from functools import partial

import torch
from common import machine, table
from geolora import adalora, lora
from smollm import Text, model_path

from loragrass import GeoLoRAConfig, GeoLoRAModel, GeoLoRAOptimizer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

def geolora(base, lr, steps, targets, tau=0.1):
    model = GeoLoRAModel(base, GeoLoRAConfig(rank_init=8, learning_rate=lr, tau=tau, alpha=0.), targets)
    return model, GeoLoRAOptimizer(model, num_training_steps=steps), lambda step: None, lambda: sorted(model.ranks.values())

def numbers(model):
    "Numbers that the adapter holds in the end"
    if hasattr(model, "to_lora"): return sum(u.rank * (u.up.shape[0] + u.down.shape[1]) for u in model.to_lora().values())
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "lora_" in name)

METHODS = {
    "LoRA, AdamW": (partial(lora, rank=8), [dict(lr=lr) for lr in (3e-4, 1e-3, 3e-3)]),
    "PEFT's Riemannian AdamW": (partial(lora, rank=8, riemannian=True), [dict(lr=lr) for lr in (3e-4, 1e-3, 3e-3)]),
    "PEFT's AdaLoRA": (partial(adalora, rank=8, start=12, every=5), [dict(lr=lr) for lr in (1e-3, 3e-3, 1e-2)]),
    "GeoLoRA": (geolora, [dict(lr=lr, tau=tau) for lr in (1e-3, 3e-3, 1e-2) for tau in (0.1, 0.2)]),
}

class Study:
    "Training, validation and test windows, by documents"
    def __init__(self, text):
        self.text = text
        part = text.document % 5
        self.train, self.val, self.test = (torch.where(rows)[0] for rows in (part < 3, part == 3, part == 4))
        self.base = text.model()

    def batch(self, rows): return dict(inputs_embeds=self.text.hidden[rows], labels=self.text.labels[rows])

    @torch.no_grad()
    def loss(self, model, rows): return sum(model(**self.batch(b)).loss.item() * len(b) for b in rows.split(8)) / len(rows)

    def run(self, method, options, steps, seed):
        "Validation and test loss, numbers held, ranks"
        torch.manual_seed(seed)
        base = copy.deepcopy(self.base)
        model, optimizer, after, ranks = method(base, steps=steps, targets=TARGETS, **options)
        runs, order = base if hasattr(model, "to_lora") else model, torch.Generator().manual_seed(seed)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 10) * (1 + math.cos(math.pi * i / steps)) / 2)
        batches = itertools.chain.from_iterable(self.train[torch.randperm(len(self.train), generator=order)].split(8) for _ in range(steps))
        for step, rows in enumerate(itertools.islice(batches, steps)):
            optimizer.zero_grad()
            runs(**self.batch(rows)).loss.backward()
            optimizer.step()
            schedule.step()
            after(step)
        runs.eval()
        return dict(val=self.loss(runs, self.val), test=self.loss(runs, self.test), numbers=numbers(model), ranks=ranks())

def main(steps, seeds):
    machine("transformers", "peft")
    if model_path() is None: return
    study, rows = Study(Text()), []
    rows.append({"method": "the model as it is", "test loss, nats": study.loss(study.base.eval(), study.test)})
    for name, (method, grid) in METHODS.items():
        runs = {str(options): [study.run(method, options, steps, seed) for seed in seeds] for options in grid}
        best = min(runs, key=lambda options: sum(run["val"] for run in runs[options]))
        test = torch.tensor([run["test"] for run in runs[best]])
        spread = f" ± {test.std():.3f}" if len(test) > 1 else ""
        ranks = runs[best][0]["ranks"]
        rows.append({"method": name, "test loss, nats": f"{test.mean():.3f}{spread}", "numbers": runs[best][0]["numbers"], "ranks": f"{min(ranks)}–{max(ranks)}", "best of the grid": best,
                     "worst of the grid": f"{max(sum(run['test'] for run in at) / len(at) for at in runs.values()):.3f}"})
        table(f"Tuned with {steps} steps of 8 windows of 128 tokens, {len(seeds)} seeds", [{key: row.get(key, "") for key in rows[-1]} for row in rows])

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    main(**vars(parser.parse_args()))
