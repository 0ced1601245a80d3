"The zoo \"concepts\": its recipe against PEFT and torch.optim, its folds, and the shipped files against new ones"
import shutil
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

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

@pytest.fixture(scope="module")
def small(shipped, tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo")
    lg.train_zoo("concepts", path, n=1, steps=4, base=shipped.base)
    return path

def retold(path, f):
    table = pd.read_csv(path / "labels.csv")
    f(table).to_csv(path / "labels.csv", index=False)
def named(name): return lambda p: retold(p, lambda t: t.assign(name=[name, *t.name[1:]]))
def told(**columns): return lambda p: retold(p, lambda t: t.assign(**columns))
def table(data): return lambda p: (p / "labels.csv").write_bytes(data)
def base(f): return lambda p: save_file(f(load_file(p / "base.safetensors")), p / "base.safetensors")
def wider(p):
    file = p / "adapters/0-0/adapter_model.safetensors"
    save_file({k: torch.cat([t, t]) if k.endswith("enter.lora_B.weight") else t for k, t in load_file(file).items()}, file)

HOSTILE = { # what is done to a zoo, and what the error says
    "absolute": (named("/etc"), "name '/etc'; expected the name of a folder"), "above": (named("../../0-0"), "name '../../0-0'"), "dots": (named(".."), "name '..'"),
    "windows": (named("C:\\x"), "name 'C:"), "empty": (named(""), "name ''"), "control": (named("a\x1b[2J"), "name 'a"), "twice": (named("1-0"), "'1-0' stands there twice"),
    "not there": (named("nobody"), "nobody"),
    "no rows": (lambda p: retold(p, lambda t: t[:0]), "0 rows"), "no name": (lambda p: retold(p, lambda t: t.drop(columns="name")), "without name"),
    "no task": (lambda p: retold(p, lambda t: t.drop(columns="task")), "without task"), "no rank": (lambda p: retold(p, lambda t: t.drop(columns="rank")), "without rank"),
    "another task": (told(task=11), "tasks .11.; expected rot90"), "NaN": (told(task=float("nan")), "tasks"), "mixed": (told(task=["rot90", *range(9)]), "tasks"),
    "another zoo": (told(task="rot90"), "expected .* in a ResidualMLP"), "another rank": (told(rank=5), "has rank 4; expected 5, as labels.csv says"), "NaN rank": (told(rank=float("nan")), "has rank 4"),
    "a pickle": (table(b"\x80\x02}q\x00."), "no table|without"), "nothing": (table(b""), "no table"), "ragged": (table(b"name,task,rank\n1,2,3,4,5\n1\n1,2,3,4,5,6,7\n"), "no table|tasks|expected"),
    "large": (table(b"x" * (17 << 20)), "17,825,792 bytes; expected a table of at most 16 MiB"),
    "base gone": (lambda p: (p / "base.safetensors").unlink(), "No such file"), "base pickle": (lambda p: (p / "base.safetensors").write_bytes(b"\x80\x02}q\x00."), "pickle"),
    "base cut off": (lambda p: (p / "base.safetensors").write_bytes((p / "base.safetensors").read_bytes()[:-4]), "truncated"),
    "base NaN": (base(lambda t: t | {"enter.weight": t["enter.weight"] * float("nan")}), "enter.weight holds NaN or infinity"),
    "base short": (base(lambda t: {k: x for k, x in t.items() if k != "leave.bias"}), "leave.bias is missing"), "base more": (base(lambda t: t | {"x": torch.ones(1)}), "expected no such tensor"),
    "base wider": (base(lambda t: t | {"enter.bias": torch.ones(129)}), r"enter.bias is \(129,\); expected \(128,\) in a Denoiser"), "base half": (base(lambda t: {k: x.half() for k, x in t.items()}), "torch.float16"),
    "an adapter wider": (wider, "256"), "an adapter gone": (lambda p: shutil.rmtree(p / "adapters/3-0"), "3-0"),
}

@pytest.mark.parametrize("what", HOSTILE)
def test_a_zoo_is_not_believed(small, tmp_path, what):
    do, says = HOSTILE[what]
    path = shutil.copytree(small, tmp_path / "zoo")
    assert len(lg.load_zoo(path).loras) == 10
    do(path)
    with pytest.raises(lg.LoRAFormatError, match=says) as e: lg.load_zoo(path)
    assert str(e.value).isprintable() and path in e.value.path.parents

def test_an_adapter_of_the_zoo_has_the_shape_of_its_model(small, tmp_path):
    path = shutil.copytree(small, tmp_path / "zoo")
    for folder in (path / "adapters").iterdir(): # all alike, so that they agree with each other
        file = folder / "adapter_model.safetensors"
        save_file({k: torch.cat([t, t]) if k.endswith("enter.lora_B.weight") else t for k, t in load_file(file).items()}, file)
    with pytest.raises(lg.LoRAFormatError, match=r"enter is \(256, 72\); expected \(128, 72\) in a Denoiser"): lg.load_zoo(path)
