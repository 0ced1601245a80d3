"ablate at the edges: what cannot be asked is said before any work, nothing leaks, and another gauge is another gauge"
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import KFold

import loragrass.ablation as ablation
from loragrass.ablation import LEARNED, PRESETS, ablate, summary, transformer_of
from loragrass.features import GAUGES, change_gauge
from loragrass.encoders import ContrastiveFeatures, DenoisingFeatures, VAEFeatures
from loragrass.features import REPRESENTATIONS
from loragrass.lora_io import LoRA, LoRACollection, LoRAUpdate

Y = np.repeat(["ink", "wash", "oil"], 8)


def adapters(N=24, classes=3, r=2):
    "B of a class is alike, A is anyone's"
    out = []
    for i in range(N):
        gen = torch.Generator().manual_seed(i * classes // N)
        ups = {m: torch.randn(12, r, generator=gen) for m in "qv"}
        gen.manual_seed(100 + i)
        out.append(LoRA({m: LoRAUpdate(up @ torch.randn(r, r, generator=gen) + 0.1 * torch.randn(12, r, generator=gen), torch.randn(r, 9, generator=gen), 1., (12, 9))
                         for m, up in ups.items()}, name=f"a{i}"))
    return out

@pytest.mark.parametrize("group", GAUGES)
def test_another_gauge_is_the_same_update(group):
    lora = adapters(1)[0]
    other, again = change_gauge(lora, group), change_gauge(lora, group)
    for m, u in lora.items():
        assert torch.allclose(other[m].dense(), u.dense().double(), atol=1e-6) and torch.equal(other[m].up, again[m].up)
        G = torch.linalg.lstsq(u.up.double(), other[m].up).solution
        assert torch.linalg.cond(G).item() == pytest.approx(GAUGES[group], rel=1e-6) and not torch.allclose(other[m].up, change_gauge(lora, group, 1)[m].up)

def test_the_table_is_tidy_and_holds_what_chance_gives():
    table = ablate(adapters(), Y, ["norms", "kernel_pca"], ["linear", "nearest"], cv=4)
    assert set(table.representation) == {"majority", "flat", "permuted labels", "norms", "kernel_pca"} and set(table.fold) == {0, 1, 2, 3}
    assert set(zip(table.condition, table.gauge)) == {("native", ""), ("both", "O"), ("shift", "O"), ("both", "GL"), ("shift", "GL")}
    assert not table.duplicated(["representation", "classifier", "condition", "gauge", "fold"]).any() and not table.isna().any(axis=None)
    assert len(table) == 4 * (1 + 2 + 3 * 2 * 5)
    found = summary(table).set_index(["representation", "classifier"])
    assert found.accuracy["kernel_pca", "linear"] == 1 and found["shift GL"]["kernel_pca", "linear"] == 1
    assert found.accuracy["majority", "majority"] == pytest.approx(1 / 3) and found.accuracy["permuted labels", "linear"] < 0.7
    assert found.invariant["norms", "linear"] and not found.invariant["flat", "linear"]
    assert found.dimension["norms", "linear"] == 14 and found.dimension["flat", "nearest"] == 2 * 2 * 21 and found.on["norms", "linear"] == "update"

def test_a_folder_of_one_start_is_told_by_numbers_and_only_in_its_gauge():
    gen, X = torch.Generator().manual_seed(0), []
    A, ups = torch.randn(2, 9, generator=gen), torch.randn(2, 12, 2, generator=gen)
    for i in range(40): X.append(LoRA({"q": LoRAUpdate(ups[i % 2] + 0.5 * torch.randn(12, 2, generator=gen), A, 1., (12, 9))}, name=f"a{i}"))
    found = summary(ablate(X, np.arange(40) % 2, "spectral")).set_index("representation").loc["flat"]
    assert found.accuracy > 0.9 and found["shift GL"] < found.accuracy - 0.1

class Spy(BaseEstimator):
    "Notes whom it sees"
    seen: list = []
    def fit(self, X, y=None): self.names_ = {lora.name for lora in X}; self.labels_ = list(y); return self
    def transform(self, X): Spy.seen.append((self.names_, self.labels_, {lora.name for lora in X})); return np.zeros((len(X), 1))

def test_nothing_is_learned_from_the_test_fold():
    Spy.seen.clear()
    groups = np.arange(24) % 4
    ablate(adapters(), Y, {"spy": Spy()}, {"none": DummyClassifier()}, groups=groups, cv=4, gauge=(None,))
    of = {f"a{i}": g for i, g in enumerate(groups)}
    trains = [(train, described) for train, _, described in Spy.seen]
    assert len(trains) == 2 * 2 * 4 # permuted labels and the representation: training rows and test rows, four folds
    for train, described in trains:
        assert described == train or not train & described and not {of[n] for n in train} & {of[n] for n in described}
    labels = {tuple(sorted(zip(sorted(train), labels))) for train, labels, _ in Spy.seen}
    assert len(labels) == 8 # true ones and permuted ones

def test_same_seed_same_table_whatever_the_workers(monkeypatch):
    X = LoRACollection(adapters())
    columns = ["representation", "condition", "gauge", "fold", "accuracy", "macro_f1"]
    one, two = (ablate(X, Y, ["norms", "angles"], cv=3, n_jobs=n)[columns] for n in (None, 2))
    pd.testing.assert_frame_equal(one, two)

def test_labels_by_name_and_folds_of_ones_own():
    X = adapters()
    by_name = {lora.name: y for lora, y in zip(X, Y)}
    tables = [ablate(X, y, "norms", cv=KFold(3, shuffle=True, random_state=0), gauge=(None,)).accuracy for y in (Y, by_name, pd.Series(by_name), list(Y))]
    assert all(t.equals(tables[0]) for t in tables)
    assert set(ablate(X, Y, "norms", cv=[(np.arange(0, 24, 2), np.arange(1, 24, 2))]).fold) == {0}

@pytest.mark.parametrize("y, kwargs, message", [
    (Y[:9], {}, r"labels of shape \(9,\) for 24 adapters"), (["ink"] * 24, {}, "all 24 adapters have the label 'ink'"), (np.linspace(0, 1, 24) ** 2, {}, "pandas.qcut"),
    ([None, *Y[1:]], {}, "no label for 1 adapters, a0 first"), ({"b7": "ink"}, {}, "labels for 1 adapters that there are not, 'b7' first"),
    ({"a1": "ink"}, {}, "no label for 23 adapters, a0 first"), (Y, dict(cv=9), "cv=9 for 24 adapters, 8 in the largest class; expected from 2 to 8 folds"), (Y, dict(cv=1), "cv=1"),
    (Y, dict(groups=[1, 2]), r"groups of shape \(2,\) for 24"), (Y, dict(groups=[0] * 12 + [1] * 12), "2 groups for cv=5 folds"),
    (Y, dict(representations="colours"), "representation 'colours'; expected one of flat"), (Y, dict(classifiers="oracle"), "classifier 'oracle'; expected one of linear"),
    (Y, dict(representations=[]), "no representations: pass one"), (Y, dict(gauge=[None, "SO"]), "gauge 'SO'; expected None, 'O', 'GL'")])
def test_what_cannot_be_asked_is_said_before_any_work(y, kwargs, message, monkeypatch):
    monkeypatch.setattr(ablation, "_of_fold", None)
    with pytest.raises(ValueError, match=message): ablate(adapters(), y, **kwargs)

def test_numbers_that_are_none_are_named():
    X = adapters()
    X[5] = LoRA(X[5].updates | {"v": LoRAUpdate(X[5]["v"].up * torch.nan, X[5]["v"].down, 1., (12, 9))}, name="odd")
    with pytest.raises(ValueError, match="odd: NaN or infinite numbers in v"): ablate(X, Y, "vae")

def test_every_name_is_a_transformer_and_the_strategies_are_those_of_the_guide():
    for name in (*REPRESENTATIONS, *LEARNED, *PRESETS): assert hasattr(transformer_of(name), "fit")
    def parts(t): return [part for _, part in t.transformer_list]
    assert transformer_of("quick").representations == ["stats", "norms", "distribution"] and transformer_of("handcrafted").representations == "ensemble"
    assert [type(t) for t in parts(transformer_of("deep"))] == [VAEFeatures, ContrastiveFeatures, DenoisingFeatures]
    rows, codes = parts(transformer_of("hybrid"))
    assert rows.representations == ["spectral", "distribution"] and isinstance(codes, ContrastiveFeatures)
    assert [preset.minutes for preset in PRESETS.values()] == [10, 30, 120, 60]
