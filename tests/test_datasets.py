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
    assert [len(part) for part in (digits.train, digits.held_out, digits.test)] == [
        1257,
        180,
        360,
    ]
    assert digits.train.max() == digits.levels - 1


def test_mnist_holds_out_the_last_training_images(mnist):
    assert mnist.shape == (1, 28, 28)
    assert mnist.levels == 256
    sizes = [len(part) for part in (mnist.train, mnist.held_out, mnist.test)]
    assert sizes == [55_000, 5_000, 10_000]


def test_an_unknown_data_set_is_named():
    with pytest.raises(
        UserError, match="no data set 'cifar': --dataset takes auto, mnist"
    ):
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
        for kind, code, shape in (
            ("images-idx3", 3, (n, 28, 28)),
            ("labels-idx1", 1, (n,)),
        ):
            header = bytes([0, 0, 8, code]) + b"".join(
                size.to_bytes(4, "big") for size in shape
            )
            content = column.tobytes() * n if code == 3 else bytes(n)
            (raw / f"{prefix}{part}-{kind}-ubyte").write_bytes(header + content)
    images = load_images(name, tmp_path, download=False)
    assert images.name == name
    assert [len(part) for part in (images.train, images.held_out, images.test)] == [
        3,
        5000,
        7,
    ]
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
    for i, (image, label) in enumerate(
        zip(digits.train[:count, 0], digits.train_labels)
    ):
        path = folder / str(int(label)) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).numpy()).save(path)


def test_a_folder_of_pictures_is_a_data_set(tmp_path, digits):
    write_folder(tmp_path / "mine", digits)
    (tmp_path / "mine" / "0" / "._a.png").write_bytes(b"")
    images = load_images(str(tmp_path / "mine"))
    assert images.name == "mine"
    sizes = [len(part) for part in (images.train, images.held_out, images.test)]
    assert sum(sizes) == 120
    assert min(sizes[1:]) > 5
    whole = torch.cat([images.train, images.held_out, images.test])
    labels = torch.cat(
        [images.train_labels, images.held_out_labels, images.test_labels]
    )
    expected = {
        (image.numpy().tobytes(), int(label))
        for image, label in zip(digits.train[:120] * 15, digits.train_labels)
    }
    found = {
        (image.numpy().tobytes(), int(label)) for image, label in zip(whole, labels)
    }
    assert found == expected
    again = load_images(images.source)
    assert torch.equal(again.train, images.train)


def test_folders_that_cannot_be_used(tmp_path, digits):
    with pytest.raises(UserError, match="holds 0 pictures; at least 100"):
        load_images(str(tmp_path))
    write_folder(tmp_path, digits)
    Image.new("L", (8, 12)).save(tmp_path / "z.png")
    with pytest.raises(
        UserError, match="z.png: the pictures must be of one size, not 8x8"
    ):
        load_images(str(tmp_path))
    for path in tmp_path.rglob("*.png"):
        Image.new("L", (10, 8)).save(path)
    with pytest.raises(UserError, match="multiples of 4, at most 512, not 8x10"):
        load_images(str(tmp_path))


def strokes(count=120) -> np.ndarray:
    """Pictures of a stroke each, no two of which are equal, uint8 (N, 8, 8)."""
    chance = np.random.default_rng(0)
    values = np.zeros((count, 8, 8), np.uint8)
    values[:, 1:7, 3:5] = chance.integers(1, 256, (count, 6, 2))
    values[:, 3, 3] = 255
    return values


def write_pictures(folder, pictures, subs=("",), ending="png"):
    """Pictures, numbered, by turns in some sub-folders."""
    for i, values in enumerate(pictures):
        path = folder / subs[i % len(subs)] / f"{i:03}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return folder


def load(folder):
    """The images of a folder, uint8 (N, 8, 8), in the order of their files' names."""
    images = load_images(str(folder))
    whole = torch.cat([images.train, images.held_out, images.test])[:, 0].numpy()
    order = sorted(range(len(whole)), key=lambda i: whole[i].tobytes())
    return whole[order]


def sorted_rows(pictures: np.ndarray) -> np.ndarray:
    return np.stack(sorted(pictures, key=lambda picture: picture.tobytes()))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (lambda grey: grey.astype(np.uint16) * 257, "up to 65535, read as 16-bit ones"),
        (lambda grey: grey.astype(np.uint16) * 16, "up to 4080, read as 12-bit ones"),
        (lambda grey: grey.astype(np.uint16), "up to 255, read as 8-bit ones"),
        (lambda grey: grey.astype(np.float32) / 255, "up to 1, 1 is taken as white"),
        (lambda grey: grey.astype(np.float32), "up to 255, 255 is taken as white"),
        (
            lambda grey: grey.astype(np.float32) * 0.3,
            "up to 76.5, 76.5 is taken as white",
        ),
    ],
)
def test_pictures_of_any_depth_give_the_grey_levels_of_8_bits(
    values, says, tmp_path, capsys
):
    expected = sorted_rows(strokes())
    write_pictures(tmp_path, values(strokes()), ending="tif")
    assert np.array_equal(load(tmp_path), expected)
    printed = capsys.readouterr().out
    assert "120 of 120 pictures: " in printed
    assert says in printed
    assert f"mean grey level {expected.mean():.1f}" in printed


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0)])
def test_strokes_on_nothing_are_seen_and_all_pictures_lie_on_one_paper(
    ink, paper, tmp_path, capsys
):
    opacity = strokes()
    grey = np.full_like(opacity, ink)
    write_pictures(tmp_path, np.stack([grey, grey, grey, opacity], -1))
    assert np.array_equal(
        load(tmp_path),
        sorted_rows(np.abs(paper - opacity.astype(int)).astype(np.uint8)),
    )
    name = "white" if paper else "black"
    assert (
        f"120 of 120 pictures: transparent, laid over {name}\n"
        in capsys.readouterr().out
    )
    Image.new("LA", (8, 8), (paper, 255)).save(tmp_path / "x.png")  # opaque: has no say
    odd = Image.new("LA", (8, 8), (paper, 200))
    odd.save(tmp_path / "y.png")
    assert len(load(tmp_path)) == 122
    doubt = (
        f"1 of 122 pictures: transparent, laid over {name}, though it may be lost there"
    )
    assert doubt in capsys.readouterr().out


def test_test_images_stay_test_images_when_a_folder_grows(tmp_path):
    write_pictures(tmp_path / "mine", strokes()[:110], "ab")
    before = load_images(str(tmp_path / "mine"))
    write_pictures(tmp_path / "mine", strokes(), "ab")
    after = load_images(str(tmp_path / "mine"))
    for part in ("train", "held_out", "test"):
        old, new = (
            {image.numpy().tobytes() for image in getattr(images, part)}
            for images in (before, after)
        )
        assert old <= new
    assert len(after.train) > len(before.train)


def test_a_folder_knows_what_it_was_made_from(tmp_path):
    for name, order in (("one", range(120)), ("two", reversed(range(120)))):
        (tmp_path / name).mkdir()
        for i in order:  # whatever the file system's order
            Image.fromarray(strokes()[i]).save(tmp_path / name / f"{i:03}.png")
    one, two = (load_images(str(tmp_path / name)) for name in ("one", "two"))
    assert one.made_from == two.made_from
    assert one.made_from["files"] == [f"{i:03}.png" for i in range(120)]
    assert len(one.made_from["pixels"]) == 16
    assert torch.equal(one.train, two.train)
    Image.fromarray(255 - strokes()[5]).save(tmp_path / "two" / "005.png")
    changed = load_images(str(tmp_path / "two")).made_from
    assert changed["files"] == one.made_from["files"]
    assert changed["pixels"] != one.made_from["pixels"]
    assert load_images("digits").made_from == {"name": "digits"}


def test_linked_folders_are_entered_once_and_hidden_ones_never(tmp_path, capsys):
    mine = write_pictures(tmp_path / "mine", strokes()[:60], ["b"])
    write_pictures(tmp_path / "elsewhere", strokes()[60:], ["deep"])
    for hidden in (".ipynb_checkpoints", ".cache/x", "@eaDir", "__MACOSX"):
        write_pictures(mine, strokes()[:2], [f"b/{hidden}"])
    (mine / "a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (mine / "0").symlink_to(
        mine / "b", target_is_directory=True
    )  # real ones come first
    (mine / "b" / "loop").symlink_to(mine, target_is_directory=True)
    (mine / "up").symlink_to(tmp_path, target_is_directory=True)
    images = load_images(str(mine))
    assert np.array_equal(load(mine), sorted_rows(strokes()))
    assert {name.rpartition("/")[0] for name in images.made_from["files"]} == {
        "a/deep",
        "b",
    }
    assert len(images.train_labels.unique()) == 2
    assert (
        f"{mine / '0'} leads to a folder that is read already"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("held_out", [None, "val", "Validation"])
def test_train_and_test_at_the_top_are_the_users_own_split(held_out, tmp_path, capsys):
    write_pictures(tmp_path, strokes()[:30], ["test/a", "test/b"])
    write_pictures(tmp_path, strokes()[30:90], ["train/b", "train/a"])
    write_pictures(tmp_path, strokes()[90:], [f"{held_out or 'train'}/a"])
    images = load_images(str(tmp_path))
    found = {image.numpy().tobytes() for image in images.test}
    assert found == {picture.tobytes() for picture in strokes()[:30]}
    assert images.test_labels.bincount().tolist() == [15, 15]
    assert images.train_labels.max() == 1
    assert len(images.held_out) == 30 if held_out else 0 < len(images.held_out) < 20
    printed = capsys.readouterr().out
    assert "its own folders are the parts: " in printed
    assert ("a tenth of train/ is held out" in printed) == (held_out is None)

    write_pictures(tmp_path, strokes()[:1], ["other"])
    with pytest.raises(
        UserError, match="is split into .* but has pictures outside of these"
    ):
        load_images(str(tmp_path))


def test_a_split_without_test_images_is_not_guessed(tmp_path):
    write_pictures(tmp_path, strokes(), ["train/a", "valid/a"])
    with pytest.raises(
        UserError, match="is split into train/, valid/ but has no test/"
    ):
        load_images(str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "MNIST", "digits", "auto"])
def test_a_folder_is_never_called_as_a_known_data_set(name, tmp_path):
    write_pictures(tmp_path / name, strokes())
    assert load_images(str(tmp_path / name)).name == f"folder_{name}"


def test_pictures_that_teach_nothing_are_said_to(tmp_path, capsys):
    write_pictures(tmp_path / "black", 0 * strokes())
    write_pictures(tmp_path / "two", 255 * (strokes() > 100).astype(np.uint8))
    load_images(str(tmp_path / "black"))
    assert "all pictures are equal" in capsys.readouterr().out
    load_images(str(tmp_path / "two"))
    assert "the pictures have no grey levels but [0, 255]" in capsys.readouterr().out


def test_pictures_that_cannot_be_used_are_named(tmp_path):
    write_pictures(tmp_path, strokes()[:110])
    write_pictures(tmp_path / "jpeg", strokes()[110:], ending="jfif")
    assert len(load(tmp_path)) == 120
    whole = (tmp_path / "077.png").read_bytes()
    (tmp_path / "077.png").write_bytes(whole[:60])
    with pytest.raises(UserError, match="077.png cannot be read as a picture"):
        load_images(str(tmp_path))
    Image.new("L", (12, 12)).save(tmp_path / "000.png")
    (tmp_path / "077.png").write_bytes(whole)
    with pytest.raises(UserError, match="000.png: .* of one size, not 8x8 and 12x12"):
        load_images(str(tmp_path))
    Image.fromarray(np.full((8, 8), -1, np.float32)).save(tmp_path / "000.tif")
    (tmp_path / "000.png").unlink()
    with pytest.raises(UserError, match="floats must not have values below 0"):
        load_images(str(tmp_path))


def test_a_data_set_that_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UserError, match="FashionMNIST cannot be read"):
        load_images("fashion", tmp_path / "elsewhere")


def test_an_unreachable_download_falls_back_or_fails_in_one_line(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        MNIST, "mirrors", ["http://127.0.0.1:9/"]
    )  # nothing listens there
    with pytest.raises(UserError, match="--data-dir says where it lies"):
        load_images("mnist", tmp_path)
    assert load_images("auto", tmp_path).name == "digits"
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "using scikit-learn" in line] == printed[-1:]
    assert datasets.socket.getdefaulttimeout() is None
