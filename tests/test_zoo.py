"The zoo \"concepts\": its recipe against PEFT and torch.optim, its folds, and the shipped files against new ones"
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import loragrass as lg
from loragrass.zoo import RECIPES, Denoiser, _concept_jobs, _generator, _seen, _tune_concepts

STEPS = 80

@pytest.fixture(scope="module")
def shipped(): return lg.load_zoo("concepts")

@pytest.fixture(scope="module")
def together(shipped): # adapters 0-0 … 9-4, in full precision
    jobs = _concept_jobs(5, STEPS)
    return jobs, dict(_tune_concepts(shipped.base, jobs, 4, STEPS, False))

def same(a, b, atol):
    for m in a:
        for x, y in zip(a[m][:2], b[m][:2]): torch.testing.assert_close(x, y, rtol=0, atol=atol)

@pytest.mark.parametrize("row", [0, 27])
def test_an_adapter_comes_out_as_if_trained_alone(shipped, together, row):
    jobs, factors = together
    (name, alone), = _tune_concepts(shipped.base, jobs[row:row + 1], 4, STEPS, False)
    same(factors[name], alone, 2e-6)

def test_an_adapter_comes_out_as_from_peft(shipped, together):
    from peft import LoraConfig, get_peft_model
    jobs, factors = together
    job = next(jobs[27:].itertuples())
    client = get_peft_model(deepcopy(shipped.base), LoraConfig(r=4, lora_alpha=8, target_modules=shipped.base.adapted))
    layers = {m: client.base_model.model.get_submodule(m) for m in shipped.base.adapted}
    for m, layer in layers.items():
        A = layer.lora_A["default"].weight
        A.data = torch.randn(A.shape, generator=_generator(job.name, m, 4)) / 4
    optimizer = torch.optim.Adam([p for p in client.parameters() if p.requires_grad], job.lr)
    for x, y in zip(*(part[:job.steps] for part in _seen(job, STEPS))):
        optimizer.zero_grad(); F.mse_loss(client(x), y).backward(); optimizer.step()
    same(factors[job.name], {m: (layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data) for m, layer in layers.items()}, 2e-6)

def test_folds_share_no_image():
    jobs = _concept_jobs(20, STEPS)
    seen = [{tuple(image.tolist()) for image in _seen(job, STEPS)[1].flatten(0, 1)} for job in jobs[jobs.task == 3].itertuples()]
    fold = [set().union(*seen[k::5]) for k in range(5)]
    assert [len(s) for s in seen] == jobs[jobs.task == 3].n_images.tolist()
    assert sum(map(len, fold)) == len(set().union(*fold))

def test_shipped_files_are_what_the_recipe_makes(shipped, together):
    jobs, factors = together
    rows = shipped.labels[shipped.labels.name.isin(jobs.name)].reset_index(drop=True)
    assert rows.equals(jobs)
    for name, new in factors.items():
        old = shipped.loras[shipped.labels.name.tolist().index(name)]
        for m in old: # files hold fp16, and other BLAS builds round otherwise
            a, b = old[m].dense(), new[m].scale * new[m].up @ new[m].down
            assert (a - b).norm() < 0.02 * b.norm()

def test_a_zoo_from_scratch_is_as_good_as_the_shipped_one(shipped, tmp_path):
    new = lg.train_zoo("concepts", tmp_path, n=5, pretrain_steps=400, progress=False)
    kept = shipped.labels.name.isin(new.labels.name).to_numpy(copy=True)
    gains = [[zoo.evaluate(lora, task) for lora, task in zip(loras, new.labels.task)] for zoo, loras in ((shipped, shipped.loras[kept]), (new, new.loras))]
    old, fresh = np.mean(gains, 1)
    assert abs(fresh - old) < 0.1 and np.corrcoef(gains)[0, 1] > 0.5
    assert new.evaluate(None, 3) == 0 and new.loras[0].shapes == shipped.loras[0].shapes

@pytest.mark.parametrize("name, ranks, scale", [("concepts-rank1", {1}, 1), ("concepts-mixed", {1, 2, 4, 8}, 2)])
def test_variants(shipped, tmp_path, name, ranks, scale):
    zoo = lg.train_zoo(name, tmp_path, n=20, steps=4, base=shipped.base, progress=False)
    assert {lora["enter"].rank for lora in zoo.loras} == ranks and zoo.loras[0]["leave"].scale == scale
    assert [lora["enter"].rank for lora in zoo.loras] == zoo.labels["rank"].tolist()
    assert (zoo.labels.groupby("fold")["rank"].value_counts() == 200 / 5 / len(ranks)).all()

def test_two_shared_starts_are_told_apart(shipped, tmp_path):
    zoo = lg.train_zoo("concepts-shared", tmp_path, n=10, steps=4, base=shipped.base, progress=False)
    A = torch.stack([lora["hidden"].down.float().flatten() for lora in zoo.loras])
    alike = torch.corrcoef(A) > 0.9
    first = torch.as_tensor((zoo.labels.init == "shared-0").to_numpy(copy=True))
    assert first.sum() == 50 and torch.equal(alike, first[:, None] == first)

def test_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        lg.train_zoo("concepts", tmp_path, n=1, steps=4, pretrain_steps=2, progress=False)
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)

def test_bad_arguments_name_the_choices(shipped, tmp_path):
    with pytest.raises(ValueError, match=", ".join(RECIPES)): lg.train_zoo("concept", tmp_path)
    with pytest.raises(ValueError, match="base is a Denoiser; the zoo 'tasks' adapts a ResidualMLP"): lg.train_zoo("tasks", tmp_path, base=Denoiser())
    with pytest.raises(ValueError, match="tasks, concepts"): lg.load_zoo("concepts-shared")
    with pytest.raises(ValueError, match="0, 1, 2"): shipped.evaluate(shipped.loras[0], "rot90")
