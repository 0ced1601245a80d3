"""Families of small adapters for `groups.py`: a small model is pretrained, all adapters of a rank are trained at once (stacked factors) and written as PEFT folders.

Images come with scikit-learn, letters are drawn, strings are made up; the texts of `gpt-strong` are manual pages and sources of the machine that this runs on."""

import glob, gzip, json, math, sys, zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np, pandas as pd, torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn


def seeded(*key):
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, key)).encode()))


# ---- models: every linear layer is applied by `lin`, which adds the stacked updates of N adapters; x is (N, batch, tokens, width)
class Model(nn.Module):
    updates, heads = None, None

    def lin(self, name, x):
        m = self.get_submodule(name)
        W = m.weight.flatten(1)
        y = x @ W.T + (m.bias if m.bias is not None else 0)
        if self.updates and name in self.updates:
            up, down, s = self.updates[name]
            y = y + s * (x.flatten(1, -2) @ down.mT @ up.mT).view(y.shape)
        return y

    def out(self, x):  # head, own or the base's; x (N, batch, width) or (N, batch, tokens, width)
        if self.heads is None:
            return self.head(x)
        W, b = self.heads
        y = x.flatten(1, -2) @ W.mT + b[:, None]
        return y.view(*x.shape[:-1], -1)

    @property
    def adapted(self):
        return [n for n, m in self.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and n != "head"]


def norm(x):
    return F.layer_norm(x, x.shape[-1:])


class Block(nn.Module):
    def __init__(self, d, wide=2):
        super().__init__()
        self.qkv, self.proj, self.fc1, self.fc2 = (
            nn.Linear(d, 3 * d),
            nn.Linear(d, d),
            nn.Linear(d, wide * d),
            nn.Linear(wide * d, d),
        )


class Transformer(Model):
    def block(self, i, h, causal):
        q, k, v = self.lin(f"blocks.{i}.qkv", norm(h)).unflatten(-1, (3, 4, -1)).permute(3, 0, 1, 4, 2, 5)
        a = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), is_causal=causal)
        h = h + self.lin(f"blocks.{i}.proj", a.view(q.shape).transpose(2, 3).flatten(-2))
        return h + self.lin(f"blocks.{i}.fc2", F.gelu(self.lin(f"blocks.{i}.fc1", norm(h))))


class GPT(Transformer):  # bytes → next bytes
    def __init__(self, d=64, depth=2, ctx=48):
        super().__init__()
        self.ctx = ctx
        self.tok, self.pos, self.blocks, self.head = (
            nn.Embedding(128, d),
            nn.Parameter(torch.randn(ctx, d) * 0.02),
            nn.ModuleList(Block(d) for _ in range(depth)),
            nn.Linear(d, 128),
        )

    def forward(self, x):
        h = self.tok(x) + self.pos
        for i in range(len(self.blocks)):
            h = self.block(i, h, True)
        return self.out(norm(h))


class ViT(Transformer):  # 8 × 8 images, 2 × 2 patches
    def __init__(self, d=48, depth=2, classes=10):
        super().__init__()
        self.embed, self.pos, self.blocks, self.head = (
            nn.Linear(4, d),
            nn.Parameter(torch.randn(16, d) * 0.02),
            nn.ModuleList(Block(d) for _ in range(depth)),
            nn.Linear(d, classes),
        )

    def forward(self, x):  # (N, batch, 8, 8)
        x = x.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).transpose(-2, -3).flatten(-4, -3).flatten(-2)
        h = self.lin("embed", x) + self.pos
        for i in range(len(self.blocks)):
            h = self.block(i, h, False)
        return self.out(norm(h).mean(-2))


class CNN(Model):  # 8 × 8 images; convolutions as products with unfolded patches
    def __init__(self, d=24, classes=10):
        super().__init__()
        self.c1, self.c2, self.c3, self.fc, self.head = (
            nn.Conv2d(1, d, 3, padding=1),
            nn.Conv2d(d, 2 * d, 3, padding=1),
            nn.Conv2d(2 * d, 2 * d, 3, padding=1),
            nn.Linear(8 * d, 96),
            nn.Linear(96, classes),
        )

    def conv(self, name, x):  # (N, batch, c, h, w)
        p = F.unfold(x.flatten(0, 1), 3, padding=1).mT.unflatten(0, x.shape[:2])
        return F.relu(self.lin(name, p)).mT.unflatten(-1, x.shape[-2:])

    def forward(self, x):
        h = self.conv("c1", x[:, :, None])
        h = F.max_pool2d(self.conv("c2", h).flatten(0, 1), 2)
        h = F.max_pool2d(self.conv("c3", h.unflatten(0, x.shape[:2])).flatten(0, 1), 2).unflatten(0, x.shape[:2])
        return self.out(F.relu(self.lin("fc", h.flatten(2))))


class MLP(Model):  # 16 numbers → 4
    def __init__(self, d=96):
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(16, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 4)

    def forward(self, x):
        for n in "abc":
            x = F.silu(self.lin(n, x))
        return self.out(x)


class Mixer(Model):  # 12 × 12 glyphs, 3 × 3 patches
    def __init__(self, d=48, depth=2, classes=26):
        super().__init__()
        self.embed, self.head = nn.Linear(9, d), nn.Linear(d, classes)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"t1": nn.Linear(16, 64), "t2": nn.Linear(64, 16), "c1": nn.Linear(d, 3 * d), "c2": nn.Linear(3 * d, d)}
            )
            for _ in range(depth)
        )

    def forward(self, x):  # (N, batch, 12, 12)
        x = x.unflatten(-1, (4, 3)).unflatten(-3, (4, 3)).transpose(-2, -3).flatten(-4, -3).flatten(-2)
        h = self.lin("embed", x)
        for i in range(len(self.blocks)):
            h = h + self.lin(f"blocks.{i}.t2", F.gelu(self.lin(f"blocks.{i}.t1", norm(h).mT))).mT
            h = h + self.lin(f"blocks.{i}.c2", F.gelu(self.lin(f"blocks.{i}.c1", norm(h))))
        return self.out(norm(h).mean(-2))


class Denoiser(Model):  # 8 × 8 images → 8 × 8 images, down, up and across
    def __init__(self, d=24):
        super().__init__()
        self.c1, self.c2, self.c3, self.c4, self.head = (
            nn.Conv2d(1, d, 3, padding=1),
            nn.Conv2d(d, 2 * d, 3, padding=1),
            nn.Conv2d(2 * d, 2 * d, 3, padding=1),
            nn.Conv2d(3 * d, d, 3, padding=1),
            nn.Linear(d, 1),
        )

    conv = CNN.conv

    def forward(self, x):
        h = self.conv("c1", x[:, :, None])
        low = self.conv("c2", F.avg_pool2d(h.flatten(0, 1), 2).unflatten(0, x.shape[:2]))
        low = low + self.conv("c3", low)
        h = self.conv("c4", torch.cat([h, low.repeat_interleave(2, -1).repeat_interleave(2, -2)], 2))
        return self.out(h.movedim(2, -1).flatten(2, 3)).view(x.shape)


class Recurrent(Model):  # characters → next characters, two gated layers
    def __init__(self, d=64, depth=2):
        super().__init__()
        self.tok, self.head = nn.Embedding(128, d), nn.Linear(d, 128)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"gate": nn.Linear(2 * d, d), "new": nn.Linear(2 * d, d), "mlp": nn.Linear(d, d)})
            for _ in range(depth)
        )

    def forward(self, x):  # (N, batch, length)
        h = self.tok(x)
        for i in range(len(self.layers)):
            states, state = [], torch.zeros_like(h[:, :, 0])
            for now in norm(h).unbind(2):
                both = torch.cat([now, state], -1)
                gate = torch.sigmoid(self.lin(f"layers.{i}.gate", both))
                state = (1 - gate) * state + gate * torch.tanh(self.lin(f"layers.{i}.new", both))
                states.append(state)
            h = h + self.lin(f"layers.{i}.mlp", torch.stack(states, 2))
        return self.out(norm(h))


# ---- data: a task is a function (generator, batch) → x, y
def texts():
    roots = [p for p in sys.path if p.endswith("site-packages")][0]

    def read(files, most=500_000):
        out = b""
        for f in files:
            raw = gzip.open(f).read() if f.endswith(".gz") else open(f, "rb").read()
            out += raw[:60_000]
            if len(out) > most:
                break
        return torch.tensor(np.frombuffer(out, np.uint8).astype(np.int64)) % 128

    g = lambda p: sorted(glob.glob(p, recursive=True))
    return {
        "german": read(g("/usr/share/man/de/**/*.gz")),
        "french": read(g("/usr/share/man/fr/**/*.gz")),
        "python": read(g(roots + "/sklearn/linear_model/*.py")),
        "changelog": read(g("/usr/share/doc/*/changelog.Debian.gz")),
        "header": read(g(roots + "/torch/include/ATen/*.h")),
        "fortran": read(g(roots + "/scipy/**/*.pyi") + g("/usr/share/cmake-3.25/**/*.json")),
        "polish": read(g("/usr/share/man/pl/**/*.gz")),
        "cmake": read(g("/usr/share/cmake-3.25/Modules/*.cmake")),
    }


def text_tasks():
    def task(t):
        def draw(g, n):
            i = torch.randint(len(t) - 49, (n,), generator=g)[:, None] + torch.arange(49)
            return t[i][:, :-1], t[i][:, 1:]

        return draw

    return {k: task(t) for k, t in texts().items()}


_perm = torch.randperm(8, generator=torch.Generator().manual_seed(3))
TURNS = {
    "rot90": lambda x: x.rot90(1, (-2, -1)),
    "rot180": lambda x: x.rot90(2, (-2, -1)),
    "flip": lambda x: x.flip(-1),
    "invert": lambda x: 1 - x,
    "rows": lambda x: x[..., _perm, :],
    "transpose": lambda x: x.mT,
}
MILD = {
    "contrast": lambda x: x * 0.35,
    "top": lambda x: x * (torch.arange(8)[:, None] > 2),
    "left": lambda x: x * (torch.arange(8) < 5),
    "shift": lambda x: x.roll((1, 1), (-2, -1)),
    "gray": lambda x: 0.5 + x * 0.5,
    "thick": lambda x: torch.maximum(x, x.roll(1, -1)),
    "stripes": lambda x: x * (torch.arange(8) % 2),
}


def digit_tasks(turns):
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X / 16, dtype=torch.float32).view(-1, 8, 8), torch.tensor(y)

    def task(f):
        def draw(g, n):
            i = torch.randint(len(y), (n,), generator=g)
            return f(X[i] + 0.05 * torch.randn(n, 8, 8, generator=g)), y[i]

        return draw

    return {k: task(f) for k, f in turns.items()}


def teacher_tasks(k=12):  # regression to teachers that share half of their weights
    def teacher(key):
        g0, g = seeded("teacher"), seeded("teacher", key)
        mix = lambda *s: (
            torch.randn(*s, generator=g0) * (1 if key == "base" else 0.8)
            + (0 if key == "base" else 0.6) * torch.randn(*s, generator=g)
        )
        return mix(16, 32) / 4, mix(32, 4) / 5

    def task(key):
        A, B = teacher(key)

        def draw(g, n):
            x = torch.randn(n, 16, generator=g)
            return x, torch.tanh(x @ A) @ B

        return draw

    return {f"teacher{i}": task(i) for i in range(k)} | {"base": task("base")}


def glyphs():
    from PIL import Image, ImageDraw, ImageFont

    fonts = [f for f in sorted(glob.glob("/usr/share/fonts/truetype/dejavu/*.ttf"))]
    out = []
    for f in fonts:
        font = ImageFont.truetype(f, 13)
        row = []
        for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
            im = Image.new("L", (12, 12))
            d = ImageDraw.Draw(im)
            b = d.textbbox((0, 0), c, font)
            d.text((6 - (b[0] + b[2]) / 2, 6 - (b[1] + b[3]) / 2), c, 255, font)
            row.append(np.asarray(im) / 255)
        out.append(row)
    return torch.tensor(np.array(out), dtype=torch.float32)  # (fonts, 26, 12, 12)


GLYPH = {
    "flip": lambda x: x.flip(-1),
    "invert": lambda x: 1 - x,
    "upside": lambda x: x.flip(-2),
    "quarter": lambda x: x.rot90(1, (-2, -1)),
    "dark": lambda x: x * 0.3,
    "half": lambda x: x * (torch.arange(12) < 7),
    "holes": lambda x: x * ((torch.arange(12)[:, None] + torch.arange(12)) % 3 > 0),
}


def glyph_tasks(turns):
    X = glyphs()

    def task(f):
        def draw(g, n):
            i, c = torch.randint(len(X), (n,), generator=g), torch.randint(26, (n,), generator=g)
            x = X[i, c].roll(tuple(torch.randint(-1, 2, (2,), generator=g).tolist()), (-2, -1))
            return f(x + 0.08 * torch.randn(n, 12, 12, generator=g)), c

        return draw

    return {k: task(f) for k, f in turns.items()}


def repair_tasks():  # digits: what is seen → what is wanted
    X = torch.tensor(load_digits().images / 16, dtype=torch.float32)

    def blurred(x):
        return F.avg_pool2d(x[:, None], 3, 1, 1)[:, 0]

    def task(f):
        def draw(g, n):
            x = X[torch.randint(len(X), (n,), generator=g)]
            return f(x, torch.rand(n, 8, 8, generator=g), 0.1 * torch.randn(n, 8, 8, generator=g))

        return draw

    return {
        k: task(f)
        for k, f in {
            "base": lambda x, u, e: (x + 4 * e, x),
            "blurred": lambda x, u, e: (blurred(x) + e, x),
            "masked": lambda x, u, e: (x * (u > 0.5), x),
            "negative": lambda x, u, e: (1 - x + e, x),
            "edges": lambda x, u, e: (x + e, (x - x.roll(1, -1)).abs()),
            "mirrored": lambda x, u, e: (x + e, x.flip(-1)),
            "faint": lambda x, u, e: (0.25 * x + 0.5 + 0.3 * e, x),
        }.items()
    }


def string_tasks(length=25):  # lines of one kind, one after the other
    def number(g, most):
        return int(torch.randint(most, (1,), generator=g))

    def brackets(g):
        depth, out = 0, ""
        while len(out) < 8 or depth:
            opens = depth == 0 or len(out) < 8 and number(g, 2)
            depth += 1 if opens else -1
            out += "(" if opens else ")"
        return out

    def sums(g):
        a, b = number(g, 30), number(g, 30)
        return f"{a}+{b}={a + b}"

    def twice(g):
        word = "".join(chr(97 + number(g, 26)) for _ in range(4))
        return f"{word} {word}"

    lines = {
        "dates": lambda g: f"{1950 + number(g, 80)}-{1 + number(g, 12):02}-{1 + number(g, 28):02}",
        "sums": sums,
        "brackets": brackets,
        "twice": twice,
        "genes": lambda g: "".join("ACGT"[number(g, 4)] * (1 + number(g, 3)) for _ in range(5)),
        "steps": lambda g: ",".join(str(n) for n in range(number(g, 40), 90, 3 + number(g, 9))),
    }

    def task(line):
        g = seeded("strings", line)
        text = "\n".join(lines[line](g) for _ in range(3000))
        t = torch.tensor(list(text.encode()))

        def draw(g, n):
            i = torch.randint(len(t) - length, (n,), generator=g)[:, None] + torch.arange(length)
            return t[i][:, :-1], t[i][:, 1:]

        return draw

    return {k: task(k) for k in lines}


# ---- recipes
def jobs(tasks, n, ranks, inits, lrs, steps, key):
    rows = []
    for t, task in enumerate(tasks):
        for s in range(n):
            u = torch.rand(2, generator=seeded(key, task, s)).tolist()
            rows.append(
                (
                    f"{task}-{s}",
                    task,
                    s,
                    inits[(s // 2 + t) % len(inits)],
                    ranks[(s + t) % len(ranks)],
                    lrs[0] * (lrs[1] / lrs[0]) ** u[0],
                    int(steps[0] + u[1] * (steps[1] - steps[0])),
                )
            )
    return pd.DataFrame(rows, columns=["name", "task", "seed", "init", "rank", "lr", "steps"])


ident = {"base": lambda x: x}


def mix(tasks):  # what the base model is trained on
    def draw(g, n):
        k = list(tasks)[int(torch.randint(len(tasks), (1,), generator=g))]
        return tasks[k](g, n)

    return draw


class Recipe(NamedTuple):
    model: type
    tasks: dict  # name → (generator, batch) → x, y
    base: Callable  # what the model is pretrained on
    each: int  # adapters a task
    ranks: tuple
    inits: tuple
    lrs: tuple
    steps: tuple
    batch: int = 24
    pretrain: int = 900
    own_heads: bool = False
    saves: tuple = ()  # steps after which a checkpoint is written, too


BOTH = ("independent", "shared")


def recipes():
    digits = {**TURNS, **{k: MILD[k] for k in ("contrast", "top", "stripes")}}
    plain = digit_tasks(ident)["base"]
    long = lambda *a, **kw: Recipe(
        ViT, dict(list(digit_tasks(digits).items())[:6]), plain, 4, (2, 4, 8), BOTH, *a, **kw
    )
    teachers = teacher_tasks()
    average = teachers.pop("base")
    repairs = repair_tasks()
    noisy = repairs.pop("base")
    return {
        "gpt-strong": lambda: (
            lambda T: Recipe(GPT, T, mix(T), 4, (2, 4, 8, 4), BOTH, (2e-3, 6e-3), (60, 160), 8, 1200)
        )(text_tasks()),
        "vit-short": lambda: Recipe(ViT, digit_tasks(digits), plain, 3, (4, 8, 2), BOTH, (8e-3, 2e-2), (20, 40)),
        "vit-long": lambda: long((2e-3, 8e-3), (150, 300)),
        "vit-heads": lambda: long((3e-3, 8e-3), (60, 160), own_heads=True),
        "vit-checkpoints": lambda: long((2e-3, 8e-3), (150, 300), saves=(40, 90)),
        "cnn-mild": lambda: Recipe(
            CNN, digit_tasks(MILD), plain, 4, (2, 4, 8, 1), ("independent",), (1e-3, 4e-3), (60, 200), 24, 500
        ),
        "mlp-strong": lambda: Recipe(MLP, teachers, average, 5, (1, 2, 4, 8), BOTH, (2e-3, 1e-2), (100, 600), 32, 1500),
        "denoiser": lambda: Recipe(Denoiser, repairs, noisy, 4, (4, 2, 8, 4), BOTH, (2e-3, 8e-3), (80, 240), 24, 800),
        "recurrent": lambda: (
            lambda T: Recipe(Recurrent, T, mix(T), 4, (4, 8, 2, 4), BOTH, (2e-3, 8e-3), (60, 180), 8, 500)
        )(string_tasks()),
        "mixer-strong": lambda: Recipe(
            Mixer,
            glyph_tasks(GLYPH),
            glyph_tasks(ident)["base"],
            4,
            (2, 4, 8, 16),
            BOTH,
            (2e-3, 1e-2),
            (40, 250),
            24,
            1500,
        ),
    }


FAMILIES = (
    "gpt-strong",
    "vit-short",
    "vit-long",
    "vit-heads",
    "vit-checkpoints",
    "cnn-mild",
    "mlp-strong",
    "mixer-strong",
    "denoiser",
    "recurrent",
)


def loss_of(logits, y):
    if y.is_floating_point():
        return F.mse_loss(logits, y)
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def pretrain(model, draw, batch, steps, seed):
    g = seeded("base", seed)
    opt = torch.optim.AdamW(model.parameters(), 2e-3)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 4e-3, total_steps=steps)
    for _ in range(steps):
        x, y = draw(g, 2 * batch)
        loss = loss_of(model(x[None]), y[None])
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
    return loss.item()


def tune(model, T, J, batch, own_heads, saves):
    "All adapters of one rank at once: yields name, module → (up, down), head, loss before and after"
    N, rank, mods = len(J), int(J["rank"].iloc[0]), model.adapted
    keys = [("shared",) if r.init == "shared" else ("own", r.name) for r in J.itertuples()]
    ups, downs = {}, {}
    for m in mods:
        W = model.get_submodule(m).weight.flatten(1)
        r = min(rank, *W.shape)
        ups[m] = torch.zeros(N, W.shape[0], r, requires_grad=True)
        downs[m] = torch.stack(
            [(2 * torch.rand(r, W.shape[1], generator=seeded(*k, m, r)) - 1) / math.sqrt(W.shape[1]) for k in keys]
        ).requires_grad_()
    model.updates = {m: (ups[m], downs[m], 2.0) for m in mods}
    params = [*ups.values(), *downs.values()]
    if own_heads:
        W, b = model.head.weight.detach(), model.head.bias.detach()
        model.heads = (W.expand(N, *W.shape).clone().requires_grad_(), b.expand(N, -1).clone().requires_grad_())
        params += model.heads
    opt = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
    streams = [seeded("data", n) for n in J.name]
    lr, last = torch.tensor(J.lr.to_numpy(), dtype=torch.float32), torch.tensor(J.steps.to_numpy())
    for step in range(int(last.max())):
        pairs = [T[t](g, batch) for t, g in zip(J.task, streams)]
        x, y = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
        grads = torch.autograd.grad(loss_of(model(x), y) * N, params)
        rate = lr * (1 - step / last).clamp_min(0)
        with torch.no_grad():
            for p, g, (m, v) in zip(params, grads, opt):
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.01)
                p -= (
                    rate.view(-1, *[1] * (p.ndim - 1))
                    * (m / (1 - 0.9 ** (step + 1)))
                    / ((v / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
                )
        if step + 1 in saves:
            yield from apart(model, J, mods, f"@{step + 1}")
    yield from apart(model, J, mods, "")
    model.updates = model.heads = None


def apart(model, J, mods, suffix):
    for i, name in enumerate(J.name):
        yield (
            name + suffix,
            {m: (model.updates[m][0][i].detach().clone(), model.updates[m][1][i].detach().clone()) for m in mods},
            None if model.heads is None else [h[i].detach().clone() for h in model.heads],
        )


def write(folder, factors, head, model, base, rank):
    folder.mkdir(parents=True, exist_ok=True)
    out = {}
    for m, (up, down) in factors.items():
        if (W := model.get_submodule(m).weight).ndim == 4:
            up, down = up[:, :, None, None], down.view(-1, *W.shape[1:])
        out |= {
            f"base_model.model.{m}.lora_A.weight": down.contiguous(),
            f"base_model.model.{m}.lora_B.weight": up.contiguous(),
        }
    if head:
        out |= {
            "base_model.model.head.weight": head[0].contiguous(),
            "base_model.model.head.bias": head[1].contiguous(),
        }
    save_file(out, folder / "adapter_model.safetensors")
    ranks = {m: f[0].shape[1] for m, f in factors.items() if f[0].shape[1] != rank}
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": None,
                "base_model_name_or_path": base,
                "r": rank,
                "lora_alpha": 2 * rank,
                "rank_pattern": ranks,
                "alpha_pattern": {m: 2 * r for m, r in ranks.items()},
                "target_modules": sorted(factors),
                "modules_to_save": ["head"] if head else None,
            },
            indent=1,
        )
        + "\n"
    )


def train_family(name, path):
    "Write path/base.safetensors, path/labels.csv and path/adapters/<task-seed>"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    r, path = recipes()[name](), Path(path)
    model, J = r.model(), jobs(list(r.tasks), r.each, r.ranks, r.inits, r.lrs, r.steps, name)
    if r.saves:
        J = J[J.seed == 0].head(4).assign(steps=150).reset_index(drop=True)
    pretrain(model, r.base, r.batch, r.pretrain, name.split("-")[0])
    model.requires_grad_(False)
    rows = []
    for rank, group in J.groupby("rank"):
        for adapter, factors, head in tune(model, r.tasks, group.reset_index(drop=True), r.batch, r.own_heads, r.saves):
            write(path / "adapters" / adapter, factors, head, model, f"small {name.split('-')[0]}", rank)
            job = adapter.split("@")[0]
            rows.append(
                (list(J.name).index(job), adapter, job if r.saves else job.split("-")[0])
            )  # of checkpoints the run is the task
    pd.DataFrame(sorted(rows, key=lambda row: row[0]), columns=["job", "name", "task"]).to_csv(
        path / "labels.csv", index=False
    )
    save_file(model.state_dict(), path / "base.safetensors")
