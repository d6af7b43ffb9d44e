import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as datasets_of_torchvision
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
    with pytest.raises(UserError, match="no data set 'cifar': --dataset takes auto, mnist"):
        load_images("cifar")


@pytest.mark.parametrize(
    ("name", "folder", "prefix"),
    [
        ("fashion", "FashionMNIST", ""),
        ("kmnist", "KMNIST", ""),
        ("letters", "EMNIST", "emnist-letters-"),
        ("balanced", "EMNIST", "emnist-balanced-"),
    ],
)
def test_the_like_of_mnist_comes_through_the_same_door(name, folder, prefix, tmp_path):
    """Four files of the MNIST format with made-up images stand for the real ones."""
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    column = np.zeros((28, 28), dtype=np.uint8)
    column[:, 3] = 200  # EMNIST's files hold the images column by column
    column = column.T if folder == "EMNIST" else column
    train, test = ("train", "test" if folder == "EMNIST" else "t10k")
    for part, n in ((train, 5003), (test, 7)):
        for kind, code, shape in (("images-idx3", 3, (n, 28, 28)), ("labels-idx1", 1, (n,))):
            header = bytes([0, 0, 8, code]) + b"".join(size.to_bytes(4, "big") for size in shape)
            content = column.tobytes() * n if code == 3 else bytes(n)
            (raw / f"{prefix}{part}-{kind}-ubyte").write_bytes(header + content)
    images = load_images(name, tmp_path, download=False)
    assert images.name == name
    assert [len(part) for part in (images.train, images.held_out, images.test)] == [3, 5000, 7]
    assert (images.test[:, 0, :, 3] == 200).all()
    assert images.test.float().mean() == pytest.approx(200 / 28)


def test_images_without_a_label_each_are_one_line(tmp_path, monkeypatch):
    class Broken:
        data, targets = torch.zeros(5003, 28, 28), torch.zeros(5000)

    monkeypatch.setattr(datasets_of_torchvision, "MNIST", lambda *_, **__: Broken())
    with pytest.raises(UserError, match="MNIST in .* has not one label for each image"):
        load_images("mnist", tmp_path)


def write_folder(folder, digits, count=120):
    """Digits as PNGs, a sub-folder for each class."""
    for i, (image, label) in enumerate(zip(digits.train[:count, 0], digits.train_labels)):
        path = folder / str(int(label)) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).numpy()).save(path)


def test_a_folder_of_pictures_is_a_data_set(tmp_path, digits):
    write_folder(tmp_path / "mine", digits)
    (tmp_path / "mine" / "0" / "._a.png").write_bytes(b"")
    images = load_images(str(tmp_path / "mine"))
    assert images.name == "mine"
    assert [len(part) for part in (images.train, images.held_out, images.test)] == [96, 12, 12]
    whole = torch.cat([images.train, images.held_out, images.test])
    labels = torch.cat([images.train_labels, images.held_out_labels, images.test_labels])
    expected = {
        (image.numpy().tobytes(), int(label))
        for image, label in zip(digits.train[:120] * 15, digits.train_labels)
    }
    found = {(image.numpy().tobytes(), int(label)) for image, label in zip(whole, labels)}
    assert found == expected
    again = load_images(images.source)
    assert torch.equal(again.train, images.train)


def test_folders_that_cannot_be_used(tmp_path, digits):
    with pytest.raises(UserError, match="holds 0 pictures; at least 100"):
        load_images(str(tmp_path))
    write_folder(tmp_path, digits)
    Image.new("L", (8, 12)).save(tmp_path / "z.png")
    with pytest.raises(UserError, match="z.png: the pictures must be of one size, not 8x8"):
        load_images(str(tmp_path))
    for path in tmp_path.rglob("*.png"):
        Image.new("L", (10, 8)).save(path)
    with pytest.raises(UserError, match="multiples of 4, at most 512, not 8x10"):
        load_images(str(tmp_path))


def test_a_data_set_that_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch):
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
