"The layer of 06: no dense update in memory, the base untouched, errors"
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loragrass.topic_lora import TopicLinear


class Largest(TorchDispatchMode):
    "The most numbers that any operation wrote into memory of its own"
    numel = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in inputs: self.numel = max(self.numel, t.numel())
        return out

@pytest.mark.parametrize("A", ["random", "learned"])
def test_no_dense_update_forward_or_backward(A):
    layer = TopicLinear(torch.nn.Linear(300, 200), 4, A=A)
    h, x = torch.randn(16, 300), torch.zeros(16, 4, requires_grad=True)
    with Largest() as seen: layer(h, x).sum().backward()
    assert 16 * 200 <= seen.numel < 200 * 300 / 10

@pytest.mark.parametrize("A, trained", [("random", {"U", "V"}), ("learned", {"U", "V", "A"})])
def test_only_the_factors_train_and_the_base_stays(A, trained):
    base = torch.nn.Linear(5, 7)
    before = [p.clone() for p in base.parameters()]
    layer = TopicLinear(base, 3, A=A)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == trained
    start, x = {name: p.clone() for name, p in layer.named_parameters()}, torch.zeros(4, 3, requires_grad=True)
    optimizer = torch.optim.SGD([x, *(p for p in layer.parameters() if p.requires_grad)], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad(); (layer(torch.randn(4, 5), x) - 1).square().sum().backward(); optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters()))
    assert {name for name, p in layer.named_parameters() if not torch.equal(p, start[name])} == trained and x.abs().min() > 0

def test_x_has_a_gradient_in_the_first_step_and_the_function_is_the_base():
    layer, x, h = TopicLinear(torch.nn.Linear(5, 7), 3), torch.zeros(4, 3, requires_grad=True), torch.randn(4, 5)
    out = layer(h, x)
    out.square().sum().backward()
    assert torch.equal(out, layer.base(h)) and (x.grad.abs() > 1e-6).all()

def test_same_seed_same_layer_and_a_state_dict_round_trip():
    one, two, three = (TopicLinear(torch.nn.Linear(5, 7), 3, random_state=seed) for seed in (1, 1, 2))
    assert torch.equal(one.A, two.A) and not torch.equal(one.A, three.A)
    three.load_state_dict(one.state_dict())
    h, x = torch.randn(4, 5), torch.randn(4, 3)
    assert torch.equal(three(h, x), one(h, x))

@pytest.mark.parametrize("kwargs, message", [
    (dict(rank=0), "rank=0 .* expected 1 … 5"), (dict(rank=6), "rank=6"), (dict(rank=3, A="fixed"), "A='fixed'; expected")])
def test_constructor_errors(kwargs, message):
    with pytest.raises(ValueError, match=message): TopicLinear(torch.nn.Linear(5, 7), **kwargs)

@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (3,), (4, 1, 3)])
def test_x_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="expected .4, 3."): TopicLinear(torch.nn.Linear(5, 7), 3)(torch.randn(4, 5), torch.zeros(shape))
