"Adapters in models: gradients against the dense ones, everything that trains models, files, and what must not be asked"
import copy
import itertools
import math
import warnings

import peft
import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import loragrass as lg
from loragrass import geolora, geolora_model
from loragrass.geolora_model import GeoLoRAConfig, GeoLoRALinear, GeoLoRAModel, GeoLoRAOptimizer
from loragrass.lora_io import LoRA, LoRAUpdate

def config(**changes): return GeoLoRAConfig(**(dict(rank_init=4, tau=0.05, alpha=0.1, learning_rate=1e-2, max_rel_update=None) | changes))

def net(*widths, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [x for a, b in zip(widths, widths[1:]) for x in (nn.Linear(a, b), nn.GELU())][:-1]
    return nn.Sequential(*layers).to(dtype)

def data(n, m, rows=64, seed=1, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(rows, n, generator=gen, dtype=dtype), torch.randn(rows, m, generator=gen, dtype=dtype)

def train(model, x, y, steps, opt=None, **settings):
    opt = opt or GeoLoRAOptimizer(model, **settings)
    for _ in range(steps):
        loss = (model(x) - y).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    return opt

def dense(layer):
    U, s, V = layer.factors()
    W = (U * s) @ V.mT
    return (W.mT if layer.transposed else W).reshape(layer.base_layer.weight.shape)

def conv1d(n, m):
    layer = transformers.pytorch_utils.Conv1D(m, n)
    return layer

LAYERS = {
    "linear": (lambda: nn.Linear(7, 9), (5, 3, 7)),
    "Conv1D of GPT-2": (lambda: conv1d(7, 9), (5, 3, 7)),
    "1 × 1": (lambda: nn.Conv2d(6, 9, 1), (2, 6, 5, 4)),
    "3 × 3, stride 2": (lambda: nn.Conv2d(3, 9, 3, stride=2, padding=1), (2, 3, 7, 6)),
    "same, dilated": (lambda: nn.Conv2d(3, 9, (3, 2), padding="same", dilation=2), (2, 3, 7, 6)),
    "reflected": (lambda: nn.Conv2d(3, 9, 3, padding=1, padding_mode="reflect"), (2, 3, 7, 6)),
    "one dimension": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 8)),
}

@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_its_dense_update_and_so_are_its_gradients(kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = GeoLoRALinear(make().double().requires_grad_(False), config(rank_init=3))
    layer.s[:3] = torch.tensor([0.5, 0.1, 0.])
    plain, x = copy.deepcopy(layer.base_layer).requires_grad_(True), torch.randn(shape, dtype=torch.float64)
    plain.weight.data += dense(layer)
    xs, g = [x.clone().requires_grad_() for _ in range(2)], None
    for module, x in zip((layer, plain), xs):
        y = module(x)
        g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1)) if g is None else g
        y.backward(g)
        if module is layer: out = y
    torch.testing.assert_close(out, y, rtol=0, atol=1e-12)
    torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=0, atol=1e-12)
    G = plain.weight.grad.mT if layer.transposed else plain.weight.grad.flatten(1)
    torch.testing.assert_close(layer.U.grad, G @ layer.V.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.V.grad, G.mT @ layer.U.detach(), rtol=0, atol=1e-12)

def tangent(G, U, V): return U @ U.mT @ G + G @ V @ V.mT - U @ U.mT @ G @ V @ V.mT

def check_step_in_a_model():
    "Plain descent on layers of one shape at unequal ranks, and of another, is W − λ P(W) G"
    model = GeoLoRAModel(net(12, 12, 12, 7), config(tau=0., use_small_matrix_optimizer=False, slack=0))
    torch.manual_seed(3)
    model.layers["2"].set_factors(*(torch.linalg.qr(torch.randn(12, 2, dtype=torch.float64))[0] if i != 1 else torch.tensor([3., 1.]) for i in range(3)), 2)
    x, y = data(12, 7)
    opt = GeoLoRAOptimizer(model)
    (model(x) - y).square().mean().backward()
    truth = copy.deepcopy(model.base)
    for name, layer in model.layers.items():
        plain = copy.deepcopy(layer.base_layer).requires_grad_(True)
        plain.weight.data += dense(layer)
        truth.set_submodule(name, plain)
    (truth(x) - y).square().mean().backward()
    before = {name: (dense(layer), layer.factors()) for name, layer in model.layers.items()}
    before = {name: (W, U.clone(), V.clone()) for name, (W, (U, _, V)) in before.items()}
    opt.step()
    for name, layer in model.layers.items():
        W, U, V = before[name]
        expected = W - 1e-2 * tangent(truth.get_submodule(name).weight.grad, U, V)
        assert (dense(layer) - expected).abs().max() < 1e-12, name
    assert model.ranks["2"] == 4 and model.ranks["0"] == 8

def test_step_in_a_model(): check_step_in_a_model()

def run(optimizer_settings=None, steps=20, gauge=None, **changes):
    model = GeoLoRAModel(net(12, 12, 7), config(alpha=1., **changes))
    x, y = data(12, 7)
    if gauge:
        for i, layer in enumerate(model.layers.values()):
            Q = [torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * i + j)))[0] for j in range(1)][0]
            layer.set_factors(layer.U[:, :4] @ Q, layer.s[:4], layer.V[:, :4] @ Q, 4) # S = I: the same matrix in other bases
    train(model, x, y, steps)
    return [dense(layer) for layer in model.layers.values()]

@pytest.mark.parametrize("adam", [True, False])
def test_twenty_steps_do_not_depend_on_the_bases(adam):
    changes = dict(use_small_matrix_optimizer=adam, slack=0)
    for one, other in zip(run(**changes), run(gauge=True, **changes)): torch.testing.assert_close(one, other, rtol=0, atol=1e-9)

# recovery: a matrix of rank 10 under noise, from below and above

def recovered(rank, tau=6e-3, lr=0.1, steps=250, until=0.7, seed=3):
    gen = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(d, 6, generator=gen, dtype=torch.float64))[0] for d in (48, 40))
    W = (U * torch.logspace(0, -1, 6, dtype=torch.float64)) @ V.mT + 1e-3 * torch.randn(48, 40, generator=gen, dtype=torch.float64) / 48 ** 0.5
    layer = nn.Linear(40, 48, bias=False)
    layer.weight.data.zero_()
    model = GeoLoRAModel(nn.Sequential(layer), config(rank_init=rank, tau=tau, alpha=0., learning_rate=lr, adapt_until=until, rank_max=40))
    opt, x = GeoLoRAOptimizer(model, num_training_steps=steps), torch.eye(40)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in range(steps):
        loss = (model(x).T - W.float()).square().sum() / 2
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
    layer = model.layers["0"]
    return layer.rank, layer.width, ((dense(layer) - W).square().sum() / torch.linalg.svdvals(W)[6:].square().sum()).item()

def check_recovery(rank):
    k, width, ratio = recovered(rank)
    assert (k, width) == (6, 6) and ratio < 1.001, (k, width, ratio)

@pytest.mark.parametrize("rank", [1, 6, 24])
def test_the_rank_is_found_from_below_and_above(rank): check_recovery(rank)

def test_without_slack_a_rank_too_small_stays_so():
    "What slack is for: plain descent from rank 1 stalls where one direction more does not"
    def end(slack):
        W = torch.diag(torch.tensor([1., .5, .25]))
        layer = nn.Linear(3, 3, bias=False)
        layer.weight.data.zero_()
        model = GeoLoRAModel(nn.Sequential(layer), config(rank_init=1, alpha=0., use_small_matrix_optimizer=False, slack=slack, learning_rate=0.3, tau=0.01))
        e = torch.eye(3)[:, :1]
        model.layers["0"].set_factors(e, torch.tensor([1.]), e, 1) # a stationary point: G V = 0 and Gᵀ U = 0
        opt = GeoLoRAOptimizer(model, num_training_steps=100)
        for _ in range(100):
            opt.zero_grad()
            ((model(torch.eye(3)).T - W).square().sum() / 2).backward()
            opt.step()
        return model.ranks["0"]
    assert end(0) == 1 and end(1) == 3

MUTANTS = {
    "P and Q swapped": (geolora.Stepped, "cut", lambda new, k: (new.U @ new.Qh[..., :k, :].mT.to(new.U), new.s[..., :k].to(new.U), new.V @ new.P[..., :k].to(new.U))),
    "zero K block": (geolora_model, "stepped", lambda U, S, V, D_K, D_L, *rest: geolora.stepped(U, S, V, U @ (U.mT @ D_K), D_L, *rest)),
    "stale moments": (geolora_model, "transport", lambda m, V, new: F.pad(m, (0, max(0, new.shape[-1] - m.shape[-1])))[..., :new.shape[-1]]),
    "slack never ends": (GeoLoRAOptimizer, "slack", property(lambda self: self.config.slack)),
}

@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_fail(mutant, monkeypatch):
    owner, name, change = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, change)
    with pytest.raises((AssertionError, RuntimeError)): # swapped factors do not fit where a layer is not square
        check_step_in_a_model()
        check_recovery(1)

# cost

def adapted_pair(tokens, width=64, rank=8):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
    lora = peft.inject_adapter_in_model(peft.LoraConfig(r=rank, target_modules=["0", "2"]), copy.deepcopy(base))
    return GeoLoRAModel(base, config(rank_init=rank)), lora, torch.randn(tokens, width)

def test_operations_are_those_of_lora():
    model, lora, x = adapted_pair(256)
    counts = []
    for m in (model, lora):
        with FlopCounterMode(display=False) as counter: m(x).square().mean().backward()
        counts.append(counter.get_total_flops())
    assert abs(counts[0] / counts[1] - 1) < 0.01

class NoLarge(torch.utils._python_dispatch.TorchDispatchMode):
    "Fails where an operation makes a tensor with as many numbers as a weight"
    def __init__(self, most): super().__init__(); self.most = most
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        views = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in made:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in views: assert t.numel() < self.most, (func, t.shape)
        return out

def test_no_temporary_is_as_large_as_a_weight():
    model, _, _ = adapted_pair(0, width=200, rank=4)
    x = torch.randn(8, 200)
    opt = train(model, x, x, 1)
    with NoLarge(200 * 200): train(model, x, x, 2, opt)

def test_state_is_at_most_four_fifths_of_lora_with_adamw():
    model, lora, x = adapted_pair(64, width=256, rank=8)
    opt = train(model, x, x, 3)
    k = sum(model.ranks.values())
    held = sum(t.numel() for state in opt.state.values() for t in state.values() if isinstance(t, torch.Tensor))
    held += sum(2 * (len(layer.U) + len(layer.V)) * layer.width for layer in model.layers.values()) # factors and gradients as far as they are in use
    assert held <= 0.80 * 4 * 2 * 256 * k * (1 + model.config.slack * 2 / k) # slack counted for LoRA too

# what trains models

def pieces(model): return {name: t.clone() for name, t in model.state_dict().items()}

def same(a, b): return all(torch.equal(a[name], b[name]) for name in a)

def test_accumulated_gradients_are_those_of_one_batch():
    ends = []
    for parts in (1, 4):
        model = GeoLoRAModel(net(12, 16, 7), config())
        opt, (x, y) = GeoLoRAOptimizer(model), data(12, 7)
        for _ in range(10):
            opt.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts)): ((model(a) - b).square().mean() / parts).backward()
            opt.step()
        ends.append([dense(layer) for layer in model.layers.values()])
    for a, b in zip(*ends): torch.testing.assert_close(a, b, rtol=0, atol=1e-9)

def test_clipping_scales_all_gradients_and_turns_none():
    model, (x, y) = GeoLoRAModel(net(12, 7), config()), data(12, 7)
    (model(x) - y).square().mean().backward()
    layer = model.layers["0"]
    before = layer.U.grad.clone()
    total = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    torch.testing.assert_close(layer.U.grad, before * 1e-3 / total, rtol=1e-2, atol=0)

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_gradient_scaling(dtype):
    model, (x, y) = GeoLoRAModel(net(16, 32, 8, dtype=torch.float32), config(alpha=0., tau=0.02)), data(16, 8, dtype=torch.float32)
    opt, losses = GeoLoRAOptimizer(model), []
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    for _ in range(40):
        with torch.autocast("cpu", dtype): loss = (model(x) - y).float().square().mean()
        opt.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        scaler.step(opt)
        scaler.update()
        losses.append(loss.item())
    layer = model.layers["0"]
    assert losses[-1] < 0.8 * losses[0] and layer.U.dtype == torch.float32
    for Q in (layer.U[:, :layer.width], layer.V[:, :layer.width]): assert (Q.mT @ Q - torch.eye(layer.width)).abs().max() < 1e-5

def test_an_overflow_is_skipped_by_the_scaler_and_the_ranks_stay():
    model, (x, y) = GeoLoRAModel(net(16, 8, dtype=torch.float32), config()), data(16, 8, dtype=torch.float32)
    opt, scaler = GeoLoRAOptimizer(model), torch.amp.GradScaler("cpu", init_scale=2. ** 40)
    before = pieces(model)
    with torch.autocast("cpu", torch.float16): loss = (model(x) - y).square().mean()
    scaler.scale(loss).backward()
    scaler.step(opt)
    scaler.update()
    assert same(before, pieces(model)) and scaler.get_scale() < 2. ** 40 and opt.n_steps == 0

class Checkpointed(nn.Module):
    def __init__(self, body, reentrant): super().__init__(); self.body, self.reentrant = body, reentrant
    def forward(self, x): return checkpoint(self.body, x, use_reentrant=self.reentrant)

@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    x, y = data(12, 7)
    grads = []
    for wrap in (False, True):
        body = net(12, 16, 7)
        model = GeoLoRAModel(nn.Sequential(Checkpointed(body, reentrant) if wrap else body), config())
        (model(x.clone().requires_grad_(wrap and reentrant)) - y).square().mean().backward()
        grads.append([layer.U.grad for layer in model.layers.values()])
    for a, b in zip(*grads): assert torch.equal(a, b)

def test_resumed_is_uninterrupted_to_the_bit_in_any_order(tmp_path):
    x, y = data(12, 7, dtype=torch.float32)
    settings = dict(tau=0.1, alpha=0., rank_init=2)
    def fresh():
        model = GeoLoRAModel(net(12, 16, 16, 7, dtype=torch.float32), config(**settings), target_modules=["0", "2"], modules_to_save=["4"])
        return model, GeoLoRAOptimizer(model, num_training_steps=40)
    model, opt = fresh()
    train(model, x, y, 12, opt)
    seen = model.ranks
    torch.save((model.state_dict(), opt.state_dict()), tmp_path/"at12.pt")
    train(model, x, y, 25, opt)
    assert model.ranks != seen
    for optimizer_first in (False, True):
        other, other_opt = fresh()
        if optimizer_first: train(other, x, y, 3, other_opt)
        state, opt_state = torch.load(tmp_path/"at12.pt", weights_only=True)
        for load in ((other_opt.load_state_dict, opt_state), (other.load_state_dict, state))[::1 if optimizer_first else -1]: load[0](load[1])
        assert other.ranks == seen
        train(other, x, y, 25, other_opt)
        assert same(pieces(model), pieces(other))

def test_moments_do_not_outlive_their_factors():
    "The best of a run is loaded and training goes on: moments of other bases are dropped, those of other layers kept"
    x, y = data(12, 7)
    model = GeoLoRAModel(net(12, 16, 7), config())
    opt = train(model, x, y, 5)
    best = pieces(model)
    train(model, x, y, 5, opt)
    model.load_state_dict(best)
    fresh = copy.deepcopy(model)
    train(model, x, y, 1, opt)
    train(fresh, x, y, 1)
    assert same(pieces(model), pieces(fresh)) and opt.state[model.layers["0"].U]["step"] == 1

def test_a_head_trains_by_adamw():
    x, y = data(12, 7)
    ends = []
    for mine in (True, False):
        base = net(12, 16, 7)
        model = GeoLoRAModel(base, config(learning_rate=0., weight_decay=0.1), target_modules=["0"], modules_to_save=["2"])
        opt = GeoLoRAOptimizer(model)
        if mine: opt.param_groups[1]["lr"] = 1e-2
        else: opt = torch.optim.AdamW(base[2].parameters(), lr=1e-2, weight_decay=0.1)
        train(model, x, y, 10, opt)
        ends.append(base[2].weight.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)

def test_eval_is_what_is_exported():
    x, y = data(12, 7)
    model = GeoLoRAModel(net(12, 16, 7), config(tau=0.2, slack=1))
    train(model, x, y, 8)
    assert any(layer.width > layer.rank for layer in model.layers.values())
    trained = model.train()(x)
    out, lora = model.eval()(x), model.to_lora()
    assert {name: len(u.svd().S) for name, u in lora.items()} == model.ranks
    assert (trained - out).abs().max() > 1e-6
    torch.testing.assert_close(model.merge()(x), out, rtol=0, atol=1e-12)
    assert not geolora_model.layers_of(model.base)

def test_a_direction_that_is_there_is_drawn_again():
    g = torch.Generator().manual_seed(1)
    first = torch.randn(9, 1, dtype=torch.float64, generator=g)
    Q = F.pad(first / first.norm(), (0, 2))
    geolora_model._refill(Q, 1, 3, torch.Generator().manual_seed(1))
    assert (Q.mT @ Q - torch.eye(3)).abs().max() < 1e-12
    Q = F.pad(first / first.norm(), (0, 1))
    geolora_model._refill(Q, 1, 2, torch.Generator().manual_seed(1)) # draws `first` itself, then another
    assert (Q.mT @ Q - torch.eye(2)).abs().max() < 1e-12

def test_base_weights_stay_as_they_were():
    base = net(12, 16, 7, dtype=torch.float32)
    weights = list(base.parameters())
    before = [w.clone() for w in weights]
    model = GeoLoRAModel(base, config())
    train(model, *data(12, 7, dtype=torch.float32), 10)
    assert all(torch.equal(a, b) for a, b in zip(before, weights)) and not any(w.requires_grad for w in weights)

def test_alpha_zero_is_the_base_to_the_bit():
    base = net(12, 16, 7, dtype=torch.float32)
    x, _ = data(12, 7, dtype=torch.float32)
    before = base(x)
    GeoLoRAModel(base, config(alpha=0.))
    assert torch.equal(base(x), before)

def test_bases_stay_orthonormal():
    model, (x, y) = GeoLoRAModel(net(10, 12, dtype=torch.float32), config(rank_init=3, learning_rate=3e-2)), data(10, 12, rows=16, dtype=torch.float32)
    opt, gen = GeoLoRAOptimizer(model), torch.Generator().manual_seed(0)
    for _ in range(1000):
        opt.zero_grad()
        (model(x) - y + torch.randn(y.shape, generator=gen)).square().mean().backward()
        opt.step()
    layer = model.layers["0"]
    for Q in (layer.U[:, :layer.width], layer.V[:, :layer.width]): assert (Q.mT @ Q - torch.eye(layer.width)).abs().max() < 1e-5

def test_compiled_once_over_changing_ranks():
    counter = torch._dynamo.testing.CompileCounter()
    base = net(16, 16, dtype=torch.float32)
    model = GeoLoRAModel(base, config(rank_init=2, rank_max=12, truncation_strategy="fixed_rank", alpha=1.))
    x, _ = data(16, 16, dtype=torch.float32)
    compiled, layer = torch.compile(model, backend=counter), model.layers["0"]
    for k in range(1, 12):
        Q = torch.linalg.qr(torch.randn(16, k))[0]
        layer.set_factors(Q, torch.ones(k), Q, k)
        layer.U.grad = None
        out = compiled(x)
        out.sum().backward()
        grad = layer.U.grad.clone()
        torch.testing.assert_close(out, model(x))
        layer.U.grad = None
        model(x).sum().backward()
        torch.testing.assert_close(grad, layer.U.grad)
    assert counter.frame_count == 1

# truncations

def kept(spectra, ranks): return sum(float(s[:k].square().sum()) for s, k in zip(spectra, ranks))

def test_a_budget_is_the_best_choice_and_never_exceeded():
    gen, choices = torch.Generator().manual_seed(0), list(itertools.product(range(1, 5), repeat=3))
    for _ in range(30):
        spectra = [torch.rand(4, generator=gen, dtype=torch.float64).sort(descending=True).values for _ in range(3)]
        for budget in (3, 5, 8, 12):
            ranks = geolora.budget_ranks(spectra, [1] * 3, budget, [1] * 3, [4] * 3)
            assert sum(ranks) <= budget
            assert kept(spectra, ranks) == pytest.approx(max(kept(spectra, ks) for ks in choices if sum(ks) <= budget))

@pytest.mark.parametrize("unit, budget", [("ranks", 7), ("params", 300)])
def test_a_budget_holds_through_training(unit, budget):
    model = GeoLoRAModel(net(12, 16, 16, 7), config(rank_init=2, truncation_strategy="global_budget", global_budget=budget, budget_unit=unit))
    opt, (x, y) = GeoLoRAOptimizer(model), data(12, 7)
    for _ in range(15):
        train(model, x, y, 1, opt)
        spent = model.n_trainable if unit == "params" else sum(layer.width for layer in model.layers.values())
        assert spent <= budget
    assert len(set(model.ranks.values())) > 1

def test_a_fixed_rank_stays():
    model = GeoLoRAModel(net(12, 16, 2), config(rank_init=5, truncation_strategy="fixed_rank"))
    train(model, *data(12, 2), 10)
    assert model.ranks == {"0": 5, "2": 2}

def test_ranks_change_every_so_many_steps():
    model = GeoLoRAModel(net(12, 16, 7), config(adapt_every=4, tau=0.3))
    opt, (x, y), seen = GeoLoRAOptimizer(model), data(12, 7), []
    for _ in range(8):
        train(model, x, y, 1, opt)
        seen.append(tuple(layer.width for layer in model.layers.values()))
    assert seen[:3] == [(4, 4)] * 3 and seen[3] != (4, 4) and len(set(seen[3:7])) == 1

def test_no_step_is_longer_than_the_cap():
    model = GeoLoRAModel(net(12, 16, 7), config(learning_rate=10., max_rel_update=0.02, alpha=0.))
    opt, (x, y) = GeoLoRAOptimizer(model), data(12, 7)
    for _ in range(5):
        before = {name: (layer.U * layer.s) @ layer.V.mT for name, layer in model.layers.items()}
        train(model, x, y, 1, opt)
        for name, layer in model.layers.items():
            moved = ((layer.U * layer.s) @ layer.V.mT - before[name]).norm()
            assert moved <= (0.02 + 0.05) * layer.base_norm # and what tau cuts off

def test_weight_decay_is_of_s():
    model = GeoLoRAModel(net(12, 7), config(weight_decay=0.5, learning_rate=0.1, use_small_matrix_optimizer=False, slack=0, tau=0.))
    layer = model.layers["0"]
    layer.U.grad, layer.V.grad = torch.zeros_like(layer.U), torch.zeros_like(layer.V)
    GeoLoRAOptimizer(model).step()
    torch.testing.assert_close(layer.s[:4], torch.full((4,), 0.1 * 0.95, dtype=torch.float64))

# files

def test_peft_computes_the_same_logits_with_a_rank_a_layer(tmp_path):
    cfg = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=12, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.)
    torch.manual_seed(0)
    gpt = transformers.GPT2LMHeadModel(cfg)
    plain, ids = copy.deepcopy(gpt), torch.randint(0, 30, (4, 8))
    model = GeoLoRAModel(gpt, config(alpha=0., tau=0.3), target_modules=["c_attn", "c_fc"])
    opt = GeoLoRAOptimizer(model)
    for _ in range(5):
        opt.zero_grad()
        gpt(ids, labels=ids).loss.backward()
        opt.step()
    gpt.eval()
    model.truncate(budget=9)
    assert len(set(model.ranks.values())) > 1
    for ragged in (False, True):
        lg.save(model.to_lora(), tmp_path/str(ragged), format="peft", ragged=ragged)
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path/str(ragged))).eval()
        assert (theirs(ids).logits - gpt(ids).logits).abs().max() < 1e-5
    assert (plain.eval()(ids).logits - gpt(ids).logits).abs().max() > 1e-2
    again = GeoLoRAModel.from_lora(copy.deepcopy(plain), lg.load(tmp_path/"True"), model.config)
    assert again.ranks == model.ranks and (again.eval()(ids).logits - gpt(ids).logits).abs().max() < 1e-5

def test_a_head_goes_to_peft_and_back(tmp_path):
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.body, self.classifier = nn.Linear(8, 8), nn.Linear(8, 3)
        def forward(self, x): return self.classifier(self.body(x))
    torch.manual_seed(0)
    base = Net()
    plain = copy.deepcopy(base)
    model = GeoLoRAModel(base, config(alpha=0.), target_modules=["body"], modules_to_save=["classifier"])
    x, y = data(8, 3, dtype=torch.float32)
    train(model, x, y, 5)
    lg.save(model.to_lora(), tmp_path/"a", format="peft")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path/"a")).eval()
    torch.testing.assert_close(theirs(x), model.eval()(x), rtol=0, atol=1e-5)
    again = GeoLoRAModel.from_lora(copy.deepcopy(plain), lg.load(tmp_path/"a"), model.config)
    torch.testing.assert_close(again.eval()(x), model(x), rtol=0, atol=1e-5)
    assert again.modules_to_save == ["classifier"] and plain.classifier.weight.ne(base.classifier.weight).any()

def test_convolutions_go_to_peft(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    plain, x = copy.deepcopy(base), torch.randn(4, 3, 6, 6)
    model = GeoLoRAModel(base, config(), target_modules="Conv2d")
    train(model, x, torch.randn(4, 4, 6, 6), 5)
    lg.save(model.to_lora(), tmp_path/"a", format="peft")
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path/"a")).eval()
    torch.testing.assert_close(theirs(x), model.eval()(x), rtol=0, atol=1e-5)

def test_a_state_of_another_capacity():
    x, y = data(12, 7)
    small, large = (GeoLoRAModel(net(12, 16, 7), config(rank_max=k, tau=0.3)) for k in (7, 12))
    train(small, x, y, 5)
    large.load_state_dict(small.state_dict())
    assert large.ranks == small.ranks and torch.equal(large.eval()(x), small.eval()(x))

def test_truncation_after_training():
    model, (x, y) = GeoLoRAModel(net(12, 16, 7), config(tau=0.01)), data(12, 7)
    opt = train(model, x, y, 20)
    before = pieces(model)
    loss = lambda: (model(x) - y).square().mean()
    table = model.truncate(rank=[1, 2, 3], loss=loss)
    assert same(before, pieces(model)) and table["rank"].tolist()[1:] == [2, 4, 6] and table.loss.notna().all()
    assert model.truncate(tau=[0., 0.5]).rel_error.tolist()[:2] == [0., 0.]
    table = model.truncate(budget=5, loss=loss)
    assert sum(model.ranks.values()) == 5 and loss().item() == pytest.approx(table.loss.iloc[-1])
    train(model, x, y, 3, opt) # and training goes on
    with pytest.raises(ValueError, match="took tau, rank"): model.truncate(tau=0.1, rank=3)

# transformers.Trainer, which gets the base itself

SIZES = dict(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
IDS = torch.randint(5, 30, (64, 6), generator=torch.Generator().manual_seed(3))
ROWS = [{"input_ids": i, "labels": int(i[0] > 17)} for i in IDS]

def by_trainer(folder, resume=None, **changes):
    torch.manual_seed(1)
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=2))
    model = GeoLoRAModel(bert, config(alpha=0., tau=0.2), ["query", "value", "dense"], ["classifier"])
    settings = dict(max_steps=8, per_device_train_batch_size=8, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", use_cpu=True)
    args = transformers.TrainingArguments(str(folder), **settings | changes)
    trainer = transformers.Trainer(bert, args, train_dataset=ROWS, eval_dataset=ROWS[:16], optimizers=(GeoLoRAOptimizer(model), None))
    trainer.train(resume_from_checkpoint=resume)
    return model, trainer

def test_trainer_resumes_to_the_bit_at_ranks_that_change(tmp_path):
    model, _ = by_trainer(tmp_path, save_strategy="steps", save_steps=3)
    other, _ = by_trainer(tmp_path/"other", resume=str(tmp_path/"checkpoint-3"))
    assert same(pieces(model), pieces(other)) and len(set(model.ranks.values())) > 1

def test_trainer_loads_the_best_model(tmp_path):
    model, trainer = by_trainer(tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss", learning_rate=1.)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=1e-6)
    assert {name: layer.sizes.tolist() for name, layer in model.layers.items()} == {name: [layer.rank, layer.width] for name, layer in model.layers.items()}

def test_trainer_accumulates_to_one_batch(tmp_path):
    "With a language model, whose loss Trainer tells how many tokens a step has; a classifier's mean it adds up, for any adapter"
    ends = []
    for parts in (1, 4):
        torch.manual_seed(1)
        gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=6, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.))
        model = GeoLoRAModel(gpt, config(alpha=0., tau=0.2), ["c_attn", "c_fc"])
        args = transformers.TrainingArguments(str(tmp_path), max_steps=5, per_device_train_batch_size=32 // parts, gradient_accumulation_steps=parts, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", use_cpu=True)
        rows = [{"input_ids": i, "labels": i} for i in IDS[:32]] # a step is all of them, in whatever order
        transformers.Trainer(gpt, args, train_dataset=rows, optimizers=(GeoLoRAOptimizer(model), None)).train()
        ends.append(model)
    assert ends[0].ranks == ends[1].ranks
    for a, b in zip(*(model.layers.values() for model in ends)): torch.testing.assert_close(dense(a), dense(b), rtol=0, atol=1e-5)

@pytest.mark.parametrize("reentrant", [True, False])
def test_trainer_with_gradient_checkpointing(tmp_path, reentrant):
    plain, _ = by_trainer(tmp_path/"a", max_steps=2)
    other, _ = by_trainer(tmp_path/"b", max_steps=2, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for a, b in zip(plain.layers.values(), other.layers.values()): torch.testing.assert_close(dense(a), dense(b), rtol=0, atol=1e-6)

# several processes

def worker(rank, path, parts):
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=parts)
    model = GeoLoRAModel(net(12, 16, 16, 7, dtype=torch.float32), config(alpha=0., tau=0.1), target_modules=["0", "2"], modules_to_save=["4"])
    wrapped = nn.parallel.DistributedDataParallel(model)
    opt, (x, y) = GeoLoRAOptimizer(model, num_training_steps=40), data(12, 7, dtype=torch.float32)
    x, y = x.chunk(parts)[rank], y.chunk(parts)[rank]
    ranks = []
    for _ in range(40):
        opt.zero_grad()
        (wrapped(x) - y).square().mean().backward()
        opt.step()
        ranks.append(tuple(model.ranks.values()))
    torch.save((model.state_dict(), ranks), f"{path}/{parts}-{rank}.pt")
    dist.destroy_process_group()

def test_two_processes_are_one(tmp_path):
    for parts in (1, 2):
        (tmp_path/"meet").unlink(missing_ok=True)
        torch.multiprocessing.spawn(worker, (str(tmp_path), parts), parts)
    one, two, twin = (torch.load(tmp_path/f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert same(two[0], twin[0]) and two[1] == twin[1] == one[1] and len(set(one[1])) > 2
    for name, t in one[0].items(): torch.testing.assert_close(two[0][name], t, rtol=0, atol=1e-5) if name.endswith(("s", "weight", "bias")) else None

# what must not be asked

def wrapped(): return GeoLoRAModel(net(12, 16, 7), config())

def test_nan_gradients_are_skipped_counted_and_said_once():
    model, (x, y) = wrapped(), data(12, 7)
    opt, before = GeoLoRAOptimizer(model), pieces(model)
    with pytest.warns(UserWarning, match="NaN or infinite: this step is skipped") as said:
        for _ in range(3): train(model, x * math.nan, y, 1, opt)
    assert opt.skipped == 3 and len(said) == 1 and same(before, pieces(model)) and not opt.state
    train(model, x, y, 1, opt)
    assert opt.n_steps == 1 and not same(before, pieces(model))

def test_a_full_layer_is_said_once():
    model, (x, y) = GeoLoRAModel(net(12, 16), config(tau=0., rank_max=4)), data(12, 16)
    with pytest.warns(UserWarning, match="^0 uses all of its 4 columns") as said: train(model, x, y, 4)
    assert len(said) == 1

@pytest.mark.parametrize("change, message", [
    (dict(tau=1.), "tau=1.0; expected 0 ≤ tau < 1"), (dict(tau=math.nan), "tau=nan"), (dict(rank_init=0), "rank_init=0"), (dict(rank_init=True), "rank_init=True"),
    (dict(rank_max=3), "rank_max=3; expected a whole number ≥ rank_init"), (dict(rank_min=5), "rank_min=5"), (dict(truncation_strategy="best"), "'local_threshold', 'fixed_rank'"),
    (dict(truncation_strategy="global_budget"), "global_budget=None"), (dict(global_budget=5), "global_budget=5; expected .* None without it"), (dict(budget_unit="bytes"), "'ranks' or 'params'"),
    (dict(adapt_until=1.5), "adapt_until=1.5"), (dict(betas=(0.9, 1.)), "betas"), (dict(max_rel_update=0), "None for no limit"), (dict(learning_rate="1e-3"), "learning_rate='1e-3'"), (dict(alpha=-1.), "alpha"),
])
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message): GeoLoRAConfig(**(dict(rank_init=4) | change))

def tied():
    cfg = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=12)
    return GeoLoRAModel(transformers.GPT2LMHeadModel(cfg), config(), ["lm_head"])

def frozen():
    model = wrapped()
    model.base.requires_grad_(False)
    return GeoLoRAOptimizer(model)

def two_optimizers():
    model = wrapped()
    first = GeoLoRAOptimizer(model)
    return GeoLoRAOptimizer(model), first

def own_group():
    model = wrapped()
    GeoLoRAOptimizer(model).add_param_group(dict(params=[model.layers["0"].U], lr=1.))

def other_state():
    x, y = data(12, 7)
    opt = train(GeoLoRAModel(net(12, 20, 7), config()), x, y, 1)
    GeoLoRAOptimizer(wrapped()).load_state_dict(opt.state_dict())

def replaced():
    model, (x, y) = wrapped(), data(12, 7)
    opt = GeoLoRAOptimizer(model)
    model.layers["0"].U = nn.Parameter(model.layers["0"].U.detach().clone())
    train(model, x, y, 1, opt)

def halved():
    model, (x, y) = wrapped(), data(12, 7)
    opt = GeoLoRAOptimizer(model)
    train(model.bfloat16(), x.bfloat16(), y.bfloat16(), 1, opt)

BAD = {
    "targets that match nothing": (lambda: GeoLoRAModel(net(12, 16, 7), config(), ["q_proj", "0"]), "'q_proj' matches nothing .* by class: Linear \\(2\\); by name: 0 \\(1\\), 2 \\(1\\)"),
    "no target": (lambda: GeoLoRAModel(net(12, 16, 7), config(), []), "names no target"),
    "nothing to adapt": (lambda: GeoLoRAModel(nn.Sequential(nn.ReLU()), config()), "matches nothing"),
    "adapted twice": (lambda: GeoLoRAModel(wrapped().base, config()), "is adapted already"),
    "adapted by PEFT": (lambda: GeoLoRAModel(peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0"]), net(12, 7)), config()), "merge or unload its adapter first"),
    "a layer itself": (lambda: GeoLoRAModel(nn.Linear(3, 3), config()), "wrap it: nn.Sequential"),
    "no module": (lambda: GeoLoRAModel("bert", config()), "expected a torch.nn.Module"),
    "tied weights": (tied, "lm_head shares a weight with transformer.wte"),
    "attention that reads weights": (lambda: GeoLoRAModel(nn.TransformerEncoderLayer(8, 2), config(), ["out_proj"]), "never calls it"),
    "head among the targets": (lambda: GeoLoRAModel(net(12, 16, 7), config(), ["Linear"], ["2"]), "2 is among the target_modules and in modules_to_save"),
    "head that is not there": (lambda: GeoLoRAModel(net(12, 16, 7), config(), ["0"], ["head"]), "'head' names no module"),
    "budget too small": (lambda: GeoLoRAModel(net(12, 16, 7), config(truncation_strategy="global_budget", global_budget=1)), "global_budget=1 ranks is less"),
    "groups of a convolution": (lambda: GeoLoRALinear(nn.Conv2d(4, 4, 3, groups=2)), "groups=1"),
    "two optimizers": (two_optimizers, "has a GeoLoRAOptimizer already"),
    "before wrapping": (lambda: GeoLoRAOptimizer(net(12, 7)), "wrap it first"),
    "parameters for a model": (lambda: GeoLoRAOptimizer(wrapped().parameters()), "takes the model"),
    "frozen adapters": (frozen, "is frozen"),
    "a group of its own": (own_group, "adapters stay in one group"),
    "parameters replaced": (replaced, "are others than when this optimizer was built"),
    "half precision": (halved, "keep adapters in float32"),
    "state of another model": (lambda: wrapped().load_state_dict(GeoLoRAModel(net(12, 20, 7), config()).state_dict()), "not of this model"),
    "moments of another model": (other_state, "of another model: the moments of 0"),
    "state of another optimizer": (lambda: GeoLoRAOptimizer(wrapped()).load_state_dict(torch.optim.AdamW(net(3, 3).parameters()).state_dict()), "of another optimizer"),
    "an adapter of another model": (lambda: GeoLoRAModel.from_lora(net(12, 7), LoRA({"x": LoRAUpdate(torch.ones(7, 1), torch.ones(1, 12), 1., (7, 12))})), "1 of 1 modules .* first x"),
    "an adapter of another size": (lambda: GeoLoRAModel.from_lora(net(12, 7), LoRA({"0": LoRAUpdate(torch.ones(5, 1), torch.ones(1, 12), 1., (5, 12))})), "7 × 12 in this base and 5 × 12"),
}

@pytest.mark.parametrize("case", BAD)
def test_errors_say_what_to_do(case):
    f, message = BAD[case]
    with pytest.raises(ValueError, match=message): f()

def test_an_optimizer_survives_a_move():
    model, (x, y) = GeoLoRAModel(net(12, 16, 7, dtype=torch.float32), config()), data(12, 7)
    opt = GeoLoRAOptimizer(model)
    train(model, x.float(), y.float(), 3, opt)
    model.to(torch.float64)
    before = pieces(model)
    train(model, x, y, 3, opt)
    assert not same(before, pieces(model)) and opt.state[model.layers["0"].U]["m"].dtype == torch.float64

def test_a_second_optimizer_after_the_first_is_gone():
    model = wrapped()
    opt = GeoLoRAOptimizer(model)
    del opt
    GeoLoRAOptimizer(model)

def test_models_are_copied_and_pickled(tmp_path):
    model, (x, y) = wrapped(), data(12, 7)
    train(model, x, y, 2)
    torch.save(model, tmp_path/"model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path/"model.pt", weights_only=False)):
        assert torch.equal(other(x), model(x))
        train(other, x, y, 1)

def test_a_step_without_gradients_is_said():
    model = wrapped()
    with pytest.warns(UserWarning, match="no adapter has a gradient"): GeoLoRAOptimizer(model).step()

def test_the_fast_path_of_torch_does_not_pass_an_adapter_by():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model, x = GeoLoRAModel(layer, config(alpha=1.), ["linear1", "linear2"]), torch.randn(2, 5, 8)
    model.eval()
    with torch.no_grad(): fast = model(x)
    assert (fast - model(x)).abs().max() < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isfinite(float(fast.sum()))
