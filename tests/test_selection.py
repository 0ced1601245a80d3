"What is no lesson about choosing and combining: state files, ties, missing modules, zero updates"
import itertools, json, os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from loragrass.comparing import similarity
from loragrass.lora_io import LoRA, LoRAUpdate
from loragrass.merging import layer_means, mean_lora
from loragrass.selection import STRATEGIES, kernel_penalty, representatives, search_combinations

def adapter(seed, modules=("a", "b", "c"), shape=(9, 7), r=2):
    g = torch.Generator().manual_seed(seed)
    return LoRA({m: LoRAUpdate(torch.randn(shape[0], r, generator=g), torch.randn(r, shape[1], generator=g), 0.5, shape) for m in modules}, name=f"a{seed}")

MEANS = [adapter(i) for i in range(3)]
VALUES = dict(zip(itertools.product(range(3), repeat=3), np.random.default_rng(0).permutation(27).tolist()))

class Score:
    "A table of scores that counts its calls, and may stop the search"
    def __init__(self, stop=None): self.calls, self.stop = 0, stop
    def __call__(self, lora):
        if self.calls == self.stop: raise KeyboardInterrupt
        self.calls += 1
        return VALUES[tuple(map(int, lora.name.split("-")))]

@pytest.mark.parametrize("strategy", STRATEGIES)
class TestSearch:
    def test_ends_where_no_module_can_be_improved(self, strategy):
        best = search_combinations(MEANS, Score(), strategy).choices[0]
        near = [best[:m] + (c,) + best[m+1:] for m in range(3) for c in range(3)]
        assert VALUES[best] == max(VALUES[b] for b in near)

    @pytest.mark.parametrize("stop", [0, 1, 5, 8])
    def test_killed_and_resumed(self, strategy, stop, tmp_path):
        whole, first, second = Score(), Score(stop), Score()
        expected = search_combinations(MEANS, whole, strategy)
        with pytest.raises(KeyboardInterrupt): search_combinations(MEANS, first, strategy, state=tmp_path / "s")
        found = search_combinations(MEANS, second, strategy, state=tmp_path / "s")
        assert (found.choices, found.scores) == (expected.choices, expected.scores) and second.calls == whole.calls - stop

    def test_ties_end(self, strategy): assert search_combinations(MEANS, lambda lora: 1.0, strategy).complete

def test_exhaustive_finds_the_best(): assert search_combinations(MEANS, Score(), "exhaustive").scores == list(range(26, -1, -1))

def other_score(lora): return 1.0

def test_state_of_another_score_or_strategy(tmp_path):
    search_combinations(MEANS, Score(), state=tmp_path / "s")
    before = (tmp_path / "s").read_text()
    for score, strategy in ((other_score, "coordinate"), (MEANS, "coordinate"), (Score(), "beam")):
        with pytest.raises(ValueError, match="not the state of this search"): search_combinations(MEANS, score, strategy, state=tmp_path / "s")
    search_combinations(MEANS, MEANS, state=tmp_path / "k")
    with pytest.raises(ValueError, match="not the state of this search"): search_combinations(MEANS, MEANS[:2], state=tmp_path / "k")
    assert (tmp_path / "s").read_text() == before

@pytest.mark.parametrize("line", ["garbage", "3", "[[0, 1, 2]]", '[[0, 1, 2], "good"]', "[0, 1]", "[[0, 1], 1.0]", "[[0, 1, 3], 1.0]", "[[0, 1, -1], 1.0]", "[[0, 1, true], 1.0]",
    "[[0, 1, 2.0], 1.0]", "[[0, 1, 2], NaN]", "[[0, 1, 2], Infinity]", "[[0, 1, 2], 1e999]", f"[[0, 1, 2], {10**400}]", '[[0, 1, 2], "1.0"]', "[[0, 1, 2], true]",
    '{"a": 1, "b": 2}', '["abc", 1.0]', "[" * 100_000, "\udcff\udcfe"])
def test_a_line_that_is_no_score(line, tmp_path):
    search_combinations(MEANS, Score(), state=tmp_path / "s")
    with (tmp_path / "s").open("a", encoding="utf8", errors="surrogateescape") as f: f.write(line + "\n")
    with pytest.raises(ValueError, match=r"line \d+: .* no combination and its score"): search_combinations(MEANS, Score(), state=tmp_path / "s")

def test_two_scores_of_one_combination_are_not_believed(tmp_path):
    search_combinations(MEANS, Score(), state=tmp_path / "s")
    *_, last = (tmp_path / "s").read_text().splitlines()
    choice, score = json.loads(last)
    with (tmp_path / "s").open("a") as f: f.write(last + "\n") # once more the same is no harm
    search_combinations(MEANS, Score(), state=tmp_path / "s")
    with (tmp_path / "s").open("a") as f: f.write(json.dumps([choice, score + 1]) + "\n")
    with pytest.raises(ValueError, match="has the score .* above; expected one"): search_combinations(MEANS, Score(), state=tmp_path / "s")

def test_a_state_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="expected a file"): search_combinations(MEANS, Score(), state=path)

def test_a_state_file_needs_its_folder(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"): search_combinations(MEANS, Score(), state=tmp_path / "none/s")

def test_torn_line(tmp_path):
    search_combinations(MEANS, Score(), state=tmp_path / "s")
    text = (tmp_path / "s").read_text()
    (tmp_path / "s").write_text(text[:-4])
    score = Score()
    search_combinations(MEANS, score, state=tmp_path / "s")
    assert score.calls == 1 and (tmp_path / "s").read_text() == text

def test_state_of_other_means(tmp_path):
    search_combinations(MEANS, Score(), state=tmp_path / "s")
    changed = [LoRA({m: replace(u, scale=0.6) for m, u in MEANS[0].items()}), *MEANS[1:]]
    with pytest.raises(ValueError, match="not the state of this search"): search_combinations(changed, Score(), state=tmp_path / "s")

def test_budget():
    score = Score()
    assert not search_combinations(MEANS, score, budget=4).complete and score.calls == 4
    with pytest.raises(ValueError, match="27 combinations, budget=26"): search_combinations(MEANS, score, "exhaustive", budget=26)

def test_nan_score():
    with pytest.raises(ValueError, match="finite"): search_combinations(MEANS, lambda lora: float("nan"))

def test_the_built_in_score_is_similarity():
    means, originals = [*MEANS[:2], adapter(2, ("a", "c"))], [adapter(i) for i in range(7, 10)] + [adapter(11, ("b",))]
    found = search_combinations(means, originals, "exhaustive")
    for i in range(0, 27, 5):
        assert found.scores[i] == pytest.approx(float(similarity([found.lora(i), *originals]).joint[0, 1:].max()), abs=1e-9)

def test_a_mean_that_lacks_a_module_leaves_it_out():
    found = search_combinations([MEANS[0], adapter(5, ("a",))], lambda lora: -len(lora))
    assert list(found.lora()) == ["a"]

def test_layer_means():
    labels = pd.DataFrame([[0, 0, 1], [1, 0, 0], [0, -1, 1]], index=["a", "b", "c"])
    zero, one = layer_means(MEANS, labels)
    for got, members, m in ((zero, [0, 1], "a"), (one, [2], "a"), (zero, [1, 2], "b"), (one, [0], "b"), (zero, [0], "c"), (one, [2], "c")):
        torch.testing.assert_close(got.lora[m].dense(), mean_lora([MEANS[i] for i in members]).lora[m].dense(), rtol=1e-4, atol=1e-5)

class TestRepresentatives:
    def test_all_and_none_twice(self):
        K = similarity([adapter(i) for i in range(6)])
        assert sorted(representatives(K, 6)) == list(range(6))
    def test_copies_are_not_chosen_twice(self):
        K = torch.block_diag(*[torch.ones(3, 3)] * 3)
        assert sorted(i // 3 for i in representatives(K, 3, np.linspace(1, 0.5, 9))) == [0, 1, 2]
    def test_quality(self): assert representatives(torch.eye(4), 2, [1, 3, 2, 0], 0) == [1, 2]
    @pytest.mark.parametrize("args", [(0,), (5,), (2, [1, 1]), (2, [1, 1, 1, -1]), (2, None, 1.5)])
    def test_refuses(self, args):
        with pytest.raises(ValueError): representatives(torch.eye(4), *args)

class TestPenalty:
    def test_zero_at_the_reference_in_any_gauge(self):
        u = MEANS[0]
        assert float(kernel_penalty(u)(u)) < 1e-12
        G = torch.tensor([[2.0, 1], [0, 3]])
        assert float(kernel_penalty(u, side="both")({m: replace(v, up=v.up @ G, down=torch.linalg.solve(G, v.down)) for m, v in u.items()})) < 1e-9
    def test_start_at_zero_has_a_gradient_of_zero(self):
        B = {m: SimpleNamespace(up=torch.zeros(9, 2, requires_grad=True), down=u.down) for m, u in MEANS[0].items()}
        loss = kernel_penalty(MEANS[0], 2.0)(B)
        loss.backward()
        assert float(loss.detach()) == 2 and all((b.up.grad == 0).all() for b in B.values())
    def test_batches(self):
        batch = {m: SimpleNamespace(up=torch.stack([a[m].up for a in MEANS]), down=torch.stack([a[m].down for a in MEANS])) for m in "abc"}
        for side in ("left", "right", "both"):
            p = kernel_penalty(MEANS[1], side=side)
            torch.testing.assert_close(p(batch), torch.stack([p(a) for a in MEANS]))
    def test_refuses(self):
        with pytest.raises(ValueError, match="no update for c"): kernel_penalty(MEANS[0])(adapter(1, ("a", "b")))
        with pytest.raises(ValueError, match="zero"): kernel_penalty(LoRA({m: replace(u, scale=0.0) for m, u in MEANS[0].items()}, name="nil"))
