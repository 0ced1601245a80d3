"Data for small runs, and the loop that trains on it"
import dataclasses, gzip, inspect, io, pickle, tarfile

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import loragrass as lg
from loragrass import GeoLoRAConfig, GeoLoRAModel, GeoLoRATrainer, cli, get_dataloaders
from loragrass.geolora_training import RiemannianOptimizer

DIGITS = load_digits()

def enlarged(size, n):
    "Digits as bytes of another size"
    return interpolate(torch.from_numpy(DIGITS.images[:n, None]).float(), size, mode="bilinear").mul(255 / 16).byte().numpy()

def idx(values): return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()

@pytest.fixture
def mnist():
    "The published files of a small MNIST, by their names"
    x, y = enlarged(28, 60)[:, 0], DIGITS.target[:60].astype(np.uint8)
    return {f"{part}-{what}-ubyte": idx(values[rows]) for part, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60)))
            for what, values in (("images-idx3", x), ("labels-idx1", y))}

@pytest.fixture
def cifar():
    "Pixels and labels of six batches of ten"
    return enlarged(32, 60).repeat(3, 1).reshape(6, 10, 3072), DIGITS.target[:60].reshape(6, 10)

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]

def as_python(cifar): return {name: pickle.dumps({b"data": x, b"labels": y.tolist()}, protocol=2) for name, x, y in zip(BATCHES, *cifar)}

def as_binary(cifar): return {f"{name}.bin": b"".join(bytes([label]) + row.tobytes() for row, label in zip(x, y)) for name, x, y in zip(BATCHES, *cifar)}

def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items(): (folder/name).write_bytes(data)

def tensors(loader): return loader.dataset.tensors

def test_mnist_plain_packed_and_with_the_other_dot(tmp_path, mnist):
    write(tmp_path/"plain"/"MNIST"/"raw", mnist)
    write(tmp_path/"packed", {f"{name}.gz": gzip.compress(data) for name, data in mnist.items()})
    write(tmp_path/"dots", {name.replace("-idx", ".idx"): data for name, data in mnist.items()})
    for folder in ("plain", "packed", "dots"):
        train, val = get_dataloaders("mnist", root=tmp_path/folder, flatten=False)
        assert tensors(train)[0].shape == (40, 1, 28, 28) and tensors(val)[1].tolist() == DIGITS.target[40:60].tolist()
        assert np.array_equal(tensors(val)[0].mul(255).round().byte().numpy(), enlarged(28, 60)[40:])

@pytest.mark.parametrize("kind", (as_python, as_binary))
def test_cifar_in_both_published_formats_and_in_its_archive(tmp_path, cifar, kind):
    files = kind(cifar)
    write(tmp_path/"files"/"cifar-10-batches", files)
    (tmp_path/"archive").mkdir()
    with tarfile.open(tmp_path/"archive"/"cifar-10.tar.gz", "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for folder in ("files", "archive"):
        train, val = get_dataloaders("cifar10", root=tmp_path/folder)
        pixels, labels = tensors(train)
        assert pixels.shape == (50, 3072) and labels.tolist() == cifar[1][:5].ravel().tolist()
        assert np.array_equal(tensors(val)[0].mul(255).round().byte().numpy(), cifar[0][5])

class Runs:
    def __reduce__(self): return print, ("a pickle ran this",)

def damaged(name):
    "What can lie where a file of this name belongs"
    packed = gzip.compress(b"x" * 1000)
    return {"cut": packed[:20], "page": b"<!DOCTYPE html><html></html>", "empty": b"", "pickle": pickle.dumps(Runs())}[name]

@pytest.mark.parametrize("what", ("cut", "page", "empty", "pickle"))
def test_damaged_files_are_named_and_nothing_runs(tmp_path, mnist, cifar, what, capsys):
    ending = ".gz" if what == "cut" else ""
    write(tmp_path/"mnist", {name: data for name, data in mnist.items() if "t10k-images" not in name} | {f"t10k-images-idx3-ubyte{ending}": damaged(what)})
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.*download it again"): get_dataloaders("mnist", root=tmp_path/"mnist")
    write(tmp_path/"cifar", {name: data for name, data in as_python(cifar).items() if name != "test_batch"} | {f"test_batch{ending}": damaged(what)})
    with pytest.raises(ValueError, match="test_batch.*download it again"): get_dataloaders("cifar10", root=tmp_path/"cifar")
    assert "a pickle ran this" not in capsys.readouterr().out

def test_missing_files_are_listed(tmp_path, mnist):
    write(tmp_path, {name: data for name, data in mnist.items() if "labels" not in name})
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte, t10k-labels-idx1-ubyte not found below"): get_dataloaders("mnist", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="data_batch_1, .*test_batch not found below"): get_dataloaders("cifar10", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"): get_dataloaders("cifar10", root=tmp_path/"nowhere")

def test_labels_that_do_not_fit_the_images(tmp_path, mnist):
    short = {"t10k-labels-idx1-ubyte": idx(np.zeros(7, np.uint8))}
    write(tmp_path/"short", mnist | short)
    with pytest.raises(ValueError, match=r"images \(20, 1, 28, 28\) with labels \(7,\)"): get_dataloaders("mnist", root=tmp_path/"short")
    write(tmp_path/"large", mnist | {"t10k-labels-idx1-ubyte": idx(np.full(20, 77, np.uint8))})
    with pytest.raises(ValueError, match="up to 77"): get_dataloaders("mnist", root=tmp_path/"large")

def test_from_the_hub_by_the_same_schema(monkeypatch):
    datasets, asked = pytest.importorskip("datasets"), []
    def table(column, images): return datasets.Dataset.from_dict({column: list(images), "label": [1, 2]}, features=datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}))
    gray, color = enlarged(28, 2)[:, 0], enlarged(32, 2).repeat(3, 1).transpose(0, 2, 3, 1)
    def load(repo):
        asked.append(repo)
        column, images = ("image", gray) if "mnist" in repo else ("img", color)
        return {part: table(column, images) for part in ("train", "test")}
    monkeypatch.setattr(datasets, "load_dataset", load)
    train, val = get_dataloaders("mnist")
    assert np.array_equal(tensors(val)[0].mul(255).round().byte().numpy().reshape(2, 28, 28), gray) and tensors(train)[1].tolist() == [1, 2]
    assert tensors(get_dataloaders("cifar10", flatten=False)[0])[0].shape == (2, 3, 32, 32)
    assert asked == ["ylecun/mnist", "uoft-cs/cifar10"]

def test_without_a_network_the_error_says_what_to_put_where(monkeypatch):
    datasets = pytest.importorskip("datasets")
    def load(repo): raise ConnectionError("offline")
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(FileNotFoundError, match=r"ylecun/mnist could not be read.*root='folder'.*train-images-idx3-ubyte"): get_dataloaders("mnist")

def test_the_order_of_training_is_fixed_by_the_seed():
    first = [next(iter(get_dataloaders("digits", random_state=s)[0]))[1].tolist() for s in (0, 0, 1)]
    assert first[0] == first[1] != first[2]

# the loop

CONFIG = GeoLoRAConfig(rank_init=4, learning_rate=1e-2, tau=0.1, alpha=0.)

def network(*sizes):
    torch.manual_seed(0)
    sizes = sizes or (64, 32, 10)
    return nn.Sequential(*[layer for m, n in zip(sizes, sizes[1:]) for layer in (nn.Linear(m, n), nn.ReLU())][:-1])

def trainer(config=CONFIG, **kwargs): return GeoLoRATrainer(GeoLoRAModel(network(), config, ["Linear"]), **kwargs)

def loaders(n=256):
    "Shuffled, so that what goes on must know where the order was"
    x, y = torch.from_numpy(DIGITS.data[:n]).float() / 16, torch.from_numpy(DIGITS.target[:n])
    def loader(rows, **order): return DataLoader(TensorDataset(x[rows], y[rows]), 32, **order)
    return loader(slice(0, n // 2), shuffle=True, generator=torch.Generator().manual_seed(3)), loader(slice(n // 2, n))

def test_the_readme_as_it_stands(tmp_path, mnist, cifar):
    write(tmp_path, mnist | as_python(cifar))
    for name, width in (("mnist", 784), ("cifar10", 3072)):
        base_model = nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
        before = [p.clone() for p in base_model.parameters()]
        frozen = list(base_model.parameters())
        config = GeoLoRAConfig(rank_init=16, learning_rate=1e-3, tau=1e-2, alpha=1e-3) # more than the last layer's 10
        model = GeoLoRAModel(base_model, config, target_modules=["Linear"])
        train_loader, val_loader = get_dataloaders(name, batch_size=16, root=tmp_path)
        history = GeoLoRATrainer(model, config).train(train_loader, val_loader, num_epochs=2)
        assert list(history) == ["train_loss", "val_loss", "train_accuracy", "val_accuracy", "ranks", "n_params"]
        assert all(len(entries) == 2 for entries in history.values()) and history["train_loss"][1] < history["train_loss"][0]
        assert history["ranks"][-1] == model.ranks and model.ranks["4"] <= 10
        assert all(torch.equal(p, q) for p, q in zip(before, frozen))

class Stops:
    "A loader that presses Ctrl-C at a step"
    def __init__(self, loader, at): self.loader, self.generator, self.left = loader, loader.generator, at
    def __len__(self): return len(self.loader)
    def __iter__(self):
        for batch in self.loader:
            self.left -= 1
            if self.left < 0: raise KeyboardInterrupt
            yield batch

@pytest.mark.parametrize("at", (0, 5, 11))
def test_what_goes_on_is_what_was_never_stopped(tmp_path, at):
    whole, (train, val) = trainer(), loaders()
    record = whole.train(train, val, 4)
    train, val = loaders()
    with pytest.raises(KeyboardInterrupt): trainer().train(Stops(train, at), val, 4, checkpoint=tmp_path/"run.pt")
    torch.manual_seed(99)
    again, (train, val) = trainer(), loaders()
    assert again.train(train, val, 4, checkpoint=tmp_path/"run.pt", resume=True) == record
    state = whole.model.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in again.model.state_dict().items())
    assert again.train(train, val, 4, checkpoint=tmp_path/"run.pt", resume=True) == record # nothing is left to do

def test_checkpoints_that_are_none_of_this_training(tmp_path):
    path, (train, val) = tmp_path/"run.pt", loaders()
    trainer().train(train, val, 1, checkpoint=path)
    with pytest.raises(FileExistsError, match="resume=True to go on"): trainer().train(train, val, 1, checkpoint=path)
    with pytest.raises(ValueError, match="another config"): trainer(dataclasses.replace(CONFIG, tau=0.2)).train(train, val, 1, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="another steps"): trainer().train(train, val, 2, checkpoint=path, resume=True)
    other = GeoLoRATrainer(GeoLoRAModel(network(64, 32, 32, 10), CONFIG, ["Linear"]))
    with pytest.raises(ValueError, match="another modules"): other.train(train, val, 1, checkpoint=path, resume=True)
    wider = GeoLoRATrainer(GeoLoRAModel(network(64, 40, 10), CONFIG, ["Linear"]))
    with pytest.raises(ValueError, match="another modules"): wider.train(train, val, 1, checkpoint=path, resume=True)
    whole = path.read_bytes()
    for damaged in (whole[:len(whole) // 2], b"", b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cut short"): trainer().train(train, val, 1, checkpoint=path, resume=True)
    path.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ValueError, match="not a checkpoint"): trainer().train(train, val, 1, checkpoint=path, resume=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint here"): trainer().train(train, val, 1, checkpoint=tmp_path/"none.pt", resume=True)

def test_patience_goes_back_to_the_best(tmp_path):
    losses, one = iter([3., 2., 1., 4., 5., 0.]), trainer()
    def evaluate(loader): return next(losses), None
    one.evaluate = evaluate
    kept = []
    def batches(): # what the adapters are after each epoch
        kept.append({name: t.clone() for name, t in one.model.state_dict().items()})
        return loaders()[0]
    class Epochs(list):
        def __iter__(self): return iter(batches())
    history = one.train(Epochs(loaders()[0]), loaders()[1], 6, patience=2)
    assert history["val_loss"] == [3., 2., 1., 4., 5.]
    assert all(torch.equal(t, kept[3][name]) for name, t in one.model.state_dict().items()) # before the fourth epoch
    assert one.model.ranks == history["ranks"][2]

def test_other_losses_have_no_accuracy():
    x = torch.randn(64, 64)
    data = DataLoader(TensorDataset(x, x[:, :10] * 2), 16)
    history = trainer(loss_fn=nn.functional.mse_loss).train(data, num_epochs=2)
    assert history["train_accuracy"] == history["val_accuracy"] == history["val_loss"] == [None, None] and history["train_loss"][1] < history["train_loss"][0]

def test_what_cannot_be_trained_on():
    train, val = loaders()
    with pytest.raises(ValueError, match="train_loader has no batches"): trainer().train([], val)
    with pytest.raises(ValueError, match="val_loader has no batches"): trainer().train(train, (x for x in val))
    with pytest.raises(ValueError, match="num_epochs=0"): trainer().train(train, val, 0)
    with pytest.raises(ValueError, match="give a val_loader"): trainer().train(train, patience=2)
    with pytest.raises(ValueError, match="needs checkpoint="): trainer().train(train, val, resume=True)
    with pytest.raises(ValueError, match="config is not the one"): GeoLoRATrainer(trainer().model, dataclasses.replace(CONFIG, tau=0.3))

def test_a_riemannian_peer_trains_and_keeps_its_rank():
    one = trainer(dataclasses.replace(CONFIG, alpha=0.1, learning_rate=0.1), optimizer=RiemannianOptimizer)
    history = one.train(*loaders(), 12)
    assert history["train_loss"][-1] < 0.7 * history["train_loss"][0] and set(one.model.ranks.values()) == {4}
    U, s, V = one.model.layers["0"].factors()
    assert all((Q.mT @ Q - torch.eye(4)).abs().max() < 1e-5 for Q in (U, V)) and s.diff().max() <= 0

# the command

def test_the_command_has_the_defaults_of_the_config():
    given = {name: p.default for name, p in inspect.signature(cli.train).parameters.items()}
    names = {"rank": "rank_init", "lr": "learning_rate"} | {name: name for name in ("tau", "alpha", "truncation_strategy", "global_budget", "random_state")}
    assert {name: given[name] for name in names} == {name: getattr(GeoLoRAConfig(), field) for name, field in names.items()}
    assert given["epochs"] == inspect.signature(GeoLoRATrainer.train).parameters["num_epochs"].default

def test_the_command_trains_on_files_and_writes_what_peft_opens(tmp_path, mnist, monkeypatch):
    peft, (base, x) = pytest.importorskip("peft"), (network(784, 512, 256, 10), torch.randn(3, 784))
    write(tmp_path/"data", mnist)
    monkeypatch.chdir(tmp_path)
    line = "train --dataset mnist --root data --epochs 2 --rank 4 --lr 1e-2 --tau 0.1 -o out"
    done = CliRunner().invoke(cli.app, line.split())
    assert done.exit_code == 0 and done.stdout.count("\n") == 5 and (tmp_path/"out"/"base.safetensors").exists()
    from safetensors.torch import load_file
    base.load_state_dict(load_file("out/base.safetensors"))
    adapted = base(x)
    for name, update in lg.load("out/adapter").items(): base.get_submodule(name).weight.data += update.dense()
    expected, base = base(x), network(784, 512, 256, 10)
    base.load_state_dict(load_file("out/base.safetensors"))
    assert (peft.PeftModel.from_pretrained(base, "out/adapter")(x) - expected).abs().max() < 1e-5 < (adapted - expected).abs().max()
    again = CliRunner().invoke(cli.app, line.split())
    assert again.exit_code == 1 and "--force" in again.stderr
    missing = CliRunner().invoke(cli.app, ["train", "--dataset", "cifar10", "--root", "data"])
    assert missing.exit_code == 1 and "data_batch_1, " in missing.stderr and "Traceback" not in missing.stderr
