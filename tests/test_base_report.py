"How adapters sit on their base: against dense oracles and PEFT, at odd shapes, and where they do not fit"
import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from loragrass.base_report import VERDICTS, OnBase, subspace_report
from loragrass.lora_io import LoRA, LoRAUpdate


def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
def update(m, n, r, scale=0.3, seed=0): return LoRAUpdate(randn(m, r, seed=seed), randn(r, n, seed=seed + 1), scale, (m, n))
def lora(**updates): return LoRA({m.replace("_", "."): u for m, u in updates.items()}, name="one")

def dense_intruders(W, dW, top_k, epsilon):
    "The definition, with two dense decompositions"
    U0, U = (torch.linalg.svd(M, full_matrices=False)[0] for M in (W, W + dW))
    return int(((U.T @ U0).abs().max(1).values[:top_k] < epsilon).sum())

@pytest.mark.parametrize("m, n, r", [(40, 40, 3), (60, 20, 4), (20, 60, 4), (300, 20, 1), (400, 300, 6), (300, 400, 6), (3, 2, 1), (1, 1, 1), (30, 30, 30)])
@pytest.mark.parametrize("scale", [0.01, 0.5, 20.])
def test_against_the_dense_definitions(m, n, r, scale):
    W, u = randn(m, n, seed=7), update(m, n, r, scale)
    report = subspace_report(lora(a=u), {"a.weight": W})
    on, row, dW = report["a"], report.table.loc["a"], u.dense()
    assert torch.allclose(on.U * on.S @ on.Vh, dW)
    assert on.base_spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(W, 2)))
    f = (on.U.T @ W @ on.Vh.T).diagonal()
    assert torch.allclose(on.base_subspace_factors, f, atol=1e-10) and f.abs().max() <= on.base_spectral_norm * (1 + 1e-12)
    assert torch.allclose(on.sval_ratios, on.S / on.base_spectral_norm) and torch.allclose(on.subspace_ratios, on.S / f.abs(), rtol=1e-6)
    assert row.chance == pytest.approx(float(W.norm()) / (m * n) ** 0.5) and row.amplification == pytest.approx(float(dW.norm() / (on.U.T @ W @ on.Vh.T).norm()))
    for k, epsilon in ((10, 0.5), (3, 0.9), (1000, 0.7)):
        assert subspace_report(lora(a=u), {"a.weight": W}, k, epsilon).table.intruders["a"] == dense_intruders(W, dW, k, epsilon)

def test_the_order_of_ranks():
    for seed in range(5):
        row = subspace_report(lora(a=update(30, 40, 6, seed=seed)), {"a.weight": randn(30, 40, seed=99)}).table.loc["a"]
        assert 1 <= row.stable_rank <= row.effective_rank <= row["rank"] == 6

def test_an_update_outside_of_the_base_and_a_base_of_zeros():
    W = torch.zeros(6, 5, dtype=torch.float64)
    W[0, 0] = 2.
    u = LoRAUpdate(torch.eye(6)[:, 3:4].double(), torch.eye(5)[2:3].double(), 1., (6, 5))
    for base in (W, 0 * W):
        report = subspace_report(lora(a=u), {"a.weight": base})
        assert not report.table.drop(columns="verdict").isna().any().any() and (report["a"].base_subspace_factors == 0).all()
        assert not report["a"].subspace_ratios.isnan().any()
    assert subspace_report(lora(a=u), {"a.weight": W})["a"].subspace_ratios.isfinite().all()

@pytest.mark.parametrize("zero", [LoRAUpdate(torch.zeros(6, 2), torch.ones(2, 5), 1., (6, 5)), LoRAUpdate(torch.zeros(6, 0), torch.zeros(0, 5), 1., (6, 5))])
def test_no_update(zero):
    report = subspace_report(lora(a=zero), {"a.weight": randn(6, 5)})
    assert report.table.verdict["a"] == "no update" and report.table.intruders["a"] == 0 and len(report["a"].S) == 0
    assert not report.table.drop(columns="verdict").isna().any().any() and report.summary()["no update"] == 1 and len(report.directions()) == 0

def test_verdicts_by_the_angle_to_the_base():
    W = randn(50, 50, seed=3)
    U, S, Vh = torch.linalg.svd(W)
    def verdict(dW):
        u, s, vh = torch.linalg.svd(dW)
        return subspace_report(lora(a=LoRAUpdate(u[:, :4] * s[:4], vh[:4], 1., (50, 50))), {"a.weight": W}).table.verdict["a"]
    weak = U[:, :4] * 0.01 @ Vh[:4]
    turned = U[:, :4] * 0.01 @ torch.tensor([[0., 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]]).double() @ Vh[:4]
    assert [verdict(M) for M in (weak, -weak, turned, 5e4 * weak)] == ["amplifies the base", "cancels the base", "mixes the base", "over-scaled"]
    assert set(VERDICTS) >= {verdict(weak)}

def test_several_adapters_take_one_svd_a_module(monkeypatch):
    whole, calls = torch.linalg.svd, []
    monkeypatch.setattr(torch.linalg, "svd", lambda A, **kwargs: (calls.append(tuple(A.shape)), whole(A, **kwargs))[1])
    base = {"a.weight": randn(40, 30), "b.weight": randn(30, 20)}
    loras = [LoRA({"a": update(40, 30, 2, seed=i), "b": update(30, 20, 2, seed=i)}, name=str(i)) for i in range(5)]
    reports = subspace_report(loras, base)
    assert calls.count((40, 30)) == 1 and calls.count((30, 20)) == 1
    for one, report in zip(loras, reports):
        alone = subspace_report(one, base)
        assert alone.table.equals(report.table) and report.name == one.name and list(report) == ["a", "b"]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.conv, self.proj = nn.Embedding(20, 8), nn.Conv2d(4, 6, 3), nn.Linear(5, 7)

def test_convolutions_embeddings_and_names_on_either_side():
    torch.manual_seed(0)
    net = Net()
    updates = {"conv": LoRAUpdate(randn(6, 2), randn(2, 36), 1., (6, 4, 3, 3)), "embed": LoRAUpdate(randn(8, 2), randn(2, 20), 1., (20, 8), transposed=True),
               "proj": update(7, 5, 2)}
    report = subspace_report(LoRA(updates), net)
    for m, u in updates.items():
        W, dW = getattr(net, m).weight.detach().double().flatten(1), u.dense().flatten(1)
        if u.transposed: W, dW = W.T, dW.T
        on = report[m]
        assert torch.allclose(on.U * on.S @ on.Vh, dW) and torch.allclose(on.base_subspace_factors, (on.U.T @ W @ on.Vh.T).diagonal(), atol=1e-5)
        assert report.table.intruders[m] == dense_intruders(W, dW, 10, 0.5)
    for names in ({f"unet.{m}": u for m, u in updates.items()}, updates):
        for base in (net, {f"base_model.model.{k}": v for k, v in net.state_dict().items()}):
            if list(names)[0].startswith("unet") and not isinstance(base, nn.Module): continue
            assert list(subspace_report(LoRA(names), base).table.verdict) == list(report.table.verdict)

def test_intruders_are_those_of_peft():
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.intruders import reduce_intruder_dimension
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48))
    for alpha in (1, 8, 64):
        model = get_peft_model(copy.deepcopy(net), LoraConfig(r=4, lora_alpha=alpha, target_modules=["0", "2", "4"], init_lora_weights=False))
        loras = LoRA({m: LoRAUpdate(layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data, layer.scaling["default"], tuple(layer.base_layer.weight.shape))
                      for m, layer in ((m, model.base_model.model[int(m)]) for m in "024")})
        lines = []
        reduce_intruder_dimension(model, logging_sink=lines.append)
        theirs = {line.split(":")[0].rsplit(".", 1)[1]: int(re.sub(r"\D", "", line.split(": ", 1)[1]) or 0) for line in lines if ": " in line}
        assert subspace_report(loras, net).table.intruders.to_dict() == theirs
        wrapped = get_peft_model(copy.deepcopy(net), LoraConfig(target_modules=["0", "2", "4"])) # a base that PEFT has wrapped
        assert subspace_report(loras, wrapped).table.intruders.to_dict() == theirs

@pytest.mark.parametrize("base, message", [
    ({}, "one: a: the base has no weight for it"), ({"b.weight": randn(6, 5)}, "one: a: the base has no weight for it; it has b"),
    ({"x.a.weight": randn(6, 5), "y.a.weight": randn(6, 5)}, "one: a: the base has 2 weights of that name"),
    ({"a.weight": randn(5, 6)}, r"one: a: the base's weight is \(5, 6\) and the update is for \(6, 5\); this adapter is for another base model"),
    ({"a.weight": randn(6, 5) * torch.nan}, "a: NaN or infinite numbers in the base's weight"),
    ({"a.weight": torch.ones(6, 5, dtype=torch.int8)}, "one: a: the base's weight is torch.int8"),
    ({"a.weight": torch.ones(6, 5, device="meta")}, "on meta; pass a base that is loaded"),
    (3, "base is 3; expected a Module or a dict")])
def test_bases_that_do_not_fit(base, message):
    with pytest.raises(ValueError, match=message): subspace_report(lora(a=update(6, 5, 2)), base)

def test_adapters_that_hold_no_numbers():
    u = update(6, 5, 2)
    with pytest.raises(ValueError, match="one: NaN or infinite numbers in a; leave it out"):
        subspace_report(lora(a=LoRAUpdate(u.up * torch.nan, u.down, 1., (6, 5))), {"a.weight": randn(6, 5)})
    for empty in ([], LoRA({})):
        with pytest.raises(ValueError, match="nothing to report"): subspace_report(empty, {})
    with pytest.raises(ValueError, match="top_k=0"): subspace_report(lora(a=u), {"a.weight": randn(6, 5)}, top_k=0)

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_bases_in_half_precision(dtype):
    W, u = randn(30, 20).to(dtype), update(30, 20, 3)
    low, high = (subspace_report(lora(a=u), {"a.weight": w}) for w in (W, W.double()))
    assert np.allclose(low.table.drop(columns="verdict"), high.table.drop(columns="verdict"), rtol=1e-4, atol=1e-5)

def test_exactly_the_seven_attributes():
    assert list(OnBase.__dataclass_fields__) == ["U", "S", "Vh", "base_spectral_norm", "sval_ratios", "base_subspace_factors", "subspace_ratios"]
