"""The data sets, each in three parts: MNIST and its like, the 8x8 digits, a folder of pictures."""

import socket
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowlib.cli import Parser
from flowlib.distributed import Processes
from flowlib.files import ROOT, UserError
from flowlib.images.user_images import open_picture, pictures_in
from flowlib.rng import rng

TITLES = {"mnist": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"}
TITLES |= {"letters": "EMNIST's letters", "balanced": "EMNIST, balanced"}
TITLES |= {"digits": "scikit-learn's 8x8 digits"}
DATASETS = ("auto", *TITLES)
LEAST = 100  # pictures in a folder
DOWNLOAD_TIMEOUT = 10  # seconds that a server may stay silent; torchvision asks two of them


def add_dataset_flags(parser: Parser) -> None:
    """Adds --dataset and --data-dir, which `load_images` takes."""
    auto = "auto: mnist if present or downloadable, otherwise digits (default auto)"
    names = f"{', '.join(DATASETS[1:])}, or a folder of pictures; {auto}"
    parser.add_argument("--dataset", metavar="NAME", default="auto", help=names)
    folder = "where MNIST and its like are read from or downloaded to (default data/)"
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help=folder)


def data_name(dataset: str) -> str:
    """What checkpoints and figures of a data set are called after."""
    return Path(dataset.replace("auto", "mnist")).name


def figure_name(file: str, name: str) -> str:
    """The name of a figure of the data `name`: MNIST's figures are the README's."""
    return file if name == "mnist" else f"{name}_{file}"


@dataclass(frozen=True)
class Images:
    """Images, uint8 (N, 1, H, W), values 0 ... levels - 1, and their classes, int64 (N,)."""

    name: str
    levels: int
    train: Tensor
    held_out: Tensor  # choices are made on these, never on `test`
    test: Tensor
    train_labels: Tensor
    held_out_labels: Tensor
    test_labels: Tensor
    source: str  # what `load_images` takes to load them again

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.train.shape[1:])


def load_together(group: Processes, dataset: str, data_dir: Path) -> Images:
    """`load_images` for several processes: the first one chooses and downloads, the others wait."""
    images = load_images(dataset, data_dir) if group.first else None
    chosen = group.gather(images.source if images else None)[0]
    return images or load_images(chosen, data_dir, download=False)


def load_images(
    dataset: str = "auto", data_dir: str | Path = ROOT / "data", download: bool = True
) -> Images:
    """A data set, in three parts.

    Args:
        dataset: one of DATASETS, or a folder of pictures. "auto": MNIST if it is present or can be
            downloaded, otherwise the digits, and a printed line says so.
        data_dir: the folder that torchvision's data sets call `root`.
    Raises:
        UserError: if the images cannot be had.
    """
    if dataset not in DATASETS:
        if not Path(dataset).is_dir():
            names = ", ".join(DATASETS)
            raise UserError(f"no data set {dataset!r}: --dataset takes {names} or a folder")
        return _load_folder(Path(dataset))
    if dataset != "digits":
        try:
            return _load_torchvision(dataset.replace("auto", "mnist"), Path(data_dir), download)
        except UserError as error:
            advice = "--data-dir says where it lies, --dataset digits does without it"
            if dataset != "auto":
                raise UserError(f"{error}: {advice}") from None
            print(f"{error}: using scikit-learn's bundled 8x8 digits instead")
    from sklearn.datasets import load_digits  # here, for it takes a second to import

    bundled = load_digits()
    images, labels = torch.from_numpy(bundled.images), torch.from_numpy(bundled.target)
    # The last 360 digits are the test images, and the 180 before them are held out.
    return _split("digits", 17, images.to(torch.uint8), labels.long(), (180, 360))


def _load_torchvision(dataset: str, data_dir: Path, download: bool) -> Images:
    from torchvision import datasets  # here, for it takes a second and a half to import

    emnist = dataset in ("letters", "balanced")
    kind = partial(datasets.EMNIST, split=dataset) if emnist else getattr(datasets, TITLES[dataset])
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        train, test = (kind(data_dir, train=part, download=download) for part in (True, False))
    except Exception as error:  # torchvision checks a damaged file in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = f"{data_dir} nor downloaded ({reason})"
        raise UserError(f"{TITLES[dataset]} cannot be read from {where}") from None
    finally:
        socket.setdefaulttimeout(timeout)
    images, labels = torch.cat([train.data, test.data]), torch.cat([train.targets, test.targets])
    if len(images) != len(labels):
        raise UserError(f"{TITLES[dataset]} in {data_dir} has not one label for each image")
    images = images.mT if emnist else images  # EMNIST's files hold them column by column
    # The last 5,000 training images are held out.
    return _split(dataset, 256, images, labels, (5000, len(test.data)))


def _load_folder(folder: Path) -> Images:
    """All pictures below a folder; a class for each folder that directly holds some.

    In random order, a tenth of them is held out and a tenth is to test on.
    """
    paths = pictures_in(folder, "**/*")
    if len(paths) < LEAST:
        raise UserError(f"{folder} holds {len(paths)} pictures; at least {LEAST} are needed")
    pictures, shape = [], None
    for path in paths:
        picture = torch.from_numpy(np.array(open_picture(path, []).convert("L")))
        shape = shape or picture.shape
        if picture.shape != shape:
            sizes = " and ".join("x".join(map(str, size)) for size in (shape, picture.shape))
            raise UserError(f"{path}: the pictures must be of one size, not {sizes}")
        pictures.append(picture)
    if any(side % 4 or side > 512 for side in shape):
        sides = "x".join(map(str, shape))
        raise UserError(f"{folder}: sides must be multiples of 4, at most 512, not {sides}")
    classes = sorted({path.parent for path in paths})
    labels = torch.tensor([classes.index(path.parent) for path in paths])
    order, tenth = torch.randperm(len(paths), generator=rng(0, "folder")), len(paths) // 10
    images, labels = torch.stack(pictures)[order], labels[order]
    images = _split(folder.resolve().name, 256, images, labels, (tenth, tenth))
    return replace(images, source=str(folder.resolve()))


def _split(name: str, levels: int, images: Tensor, labels: Tensor, last: tuple[int, int]) -> Images:
    """The three parts; `last` says how many images at the end are held out and to test on."""
    sizes = [len(images) - sum(last), *last]
    return Images(name, levels, *images[:, None].split(sizes), *labels.split(sizes), source=name)
