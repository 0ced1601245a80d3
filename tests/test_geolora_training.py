"Data for small runs, and the loop that trains on it"
import gzip, io, pickle, tarfile

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from loragrass import get_dataloaders

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
    with pytest.raises(FileNotFoundError, match=r"ylecun/mnist could not be read.*root=.*train-images-idx3-ubyte"): get_dataloaders("mnist")

def test_the_order_of_training_is_fixed_by_the_seed():
    first = [next(iter(get_dataloaders("digits", random_state=s)[0]))[1].tolist() for s in (0, 0, 1)]
    assert first[0] == first[1] != first[2]
