import math

import pytest
from torchvision.datasets import MNIST, FashionMNIST

from flowlib.files import UserError
from flowlib.images import datasets
from flowlib.images.datasets import load_images


def test_the_digits_are_split_without_overlap(digits):
    assert digits.shape == (1, 8, 8)
    assert [len(part) for part in (digits.train, digits.held_out, digits.test)] == [1257, 180, 360]
    assert digits.train.max() == digits.levels - 1


def test_mnist_holds_out_the_last_training_images(mnist):
    assert mnist.shape == (1, 28, 28)
    assert mnist.levels == 256
    sizes = [len(part) for part in (mnist.train, mnist.held_out, mnist.test)]
    assert sizes == [55_000, 5_000, 10_000]


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="dataset"):
        load_images("cifar")


def test_fashion_comes_through_the_same_door(tmp_path, monkeypatch):
    """Four files of the MNIST format with made-up images stand for the real ones."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", 5003), ("t10k", 7)):
        for kind, code, shape in (("images-idx3", 3, (n, 28, 28)), ("labels-idx1", 1, (n,))):
            header = bytes([0, 0, 8, code]) + b"".join(size.to_bytes(4, "big") for size in shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + bytes(math.prod(shape)))
    fashion = load_images("fashion", tmp_path, download=False)
    assert fashion.name == "fashion"
    assert [len(part) for part in (fashion.train, fashion.held_out, fashion.test)] == [3, 5000, 7]
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UserError, match="FashionMNIST cannot be read"):
        load_images("fashion", tmp_path / "elsewhere")


def test_an_unreachable_download_falls_back_or_fails_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    with pytest.raises(UserError, match="--data-dir says where it lies"):
        load_images("mnist", tmp_path)
    assert load_images("auto", tmp_path).name == "digits"
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "using scikit-learn" in line] == printed[-1:]
    assert datasets.socket.getdefaulttimeout() is None
