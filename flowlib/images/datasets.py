"""The data sets, each in three parts: MNIST and its like, 8x8 digits, and folders."""

import argparse
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowlib.distributed import Processes
from flowlib.files import ROOT, UserError, reason
from flowlib.images.pictures import pictures_in, read_alike

TITLES = {
    "mnist": "MNIST",
    "fashion": "FashionMNIST",
    "kmnist": "KMNIST",
    "letters": "EMNIST's letters",
    "balanced": "EMNIST, balanced",
    "digits": "scikit-learn's 8x8 digits",
}
DATASETS = ("auto", *TITLES)
LEAST = 100  # pictures in a folder
PARTS = ("train", "held-out", "test")
# The folders that a user may have split the pictures into, lower-cased.
OWN_PARTS = {
    "train": "train",
    "test": "test",
    "held_out": "held-out",
    "val": "held-out",
    "valid": "held-out",
    "validation": "held-out",
}
DOWNLOAD_TIMEOUT = 10  # seconds that a server may stay silent; there are two


def add_dataset_flags(parser: argparse._ActionsContainer) -> None:
    """Adds --dataset and --data-dir, to a parser or a group; see `load_images`."""
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        default="auto",
        help=f"{', '.join(TITLES)}, or a folder of pictures; "
        "auto: mnist if present or downloadable, otherwise digits",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=ROOT / "data",
        help="where MNIST and its like are read from or downloaded to",
    )


def data_name(dataset: str) -> str:
    """What the files of a data set are called after; a folder never as a known one."""
    if dataset in DATASETS:
        return "mnist" if dataset == "auto" else dataset
    name = Path(dataset).resolve().name
    return f"folder_{name}" if name.lower() in DATASETS else name


def figure_name(file: str, name: str) -> str:
    """The name of a figure of the data `name`: MNIST's figures are the README's."""
    return file if name == "mnist" else f"{name}_{file}"


@dataclass(frozen=True)
class Images:
    """Images, uint8 (N, 1, H, W), 0 ... levels - 1, and their classes, int64 (N,)."""

    name: str
    levels: int
    source: str  # what `load_images` takes to load them again
    made_from: dict  # plain types, by which it is known whether the data changed
    train: Tensor
    held_out: Tensor  # choices are made on these, never on `test`
    test: Tensor
    train_labels: Tensor
    held_out_labels: Tensor
    test_labels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.train.shape
        return channels, height, width


def load_together(group: Processes, dataset: str, data_dir: Path) -> Images:
    """`load_images` for several processes: the first downloads, the others wait."""
    images = load_images(dataset, data_dir) if group.first else None
    chosen = group.gather(images.source if images else None)[0]
    return images or load_images(chosen, data_dir, download=False)


def load_images(
    dataset: str = "auto",
    data_dir: str | Path = ROOT / "data",
    download: bool = True,
) -> Images:
    """A data set, in three parts.

    Example:
        >>> images = load_images("digits")
        >>> images.train.shape
        torch.Size([1257, 1, 8, 8])

    Args:
        dataset: one of DATASETS, or a folder of pictures. "auto": MNIST if it is there
            or can be downloaded, otherwise the digits, and a printed line says so.
        data_dir: the folder that torchvision's data sets call `root`.
    Raises:
        UserError: if the images cannot be had.
    """
    if dataset not in DATASETS:
        if not Path(dataset).is_dir():
            raise UserError(
                f"no data set {dataset!r}: "
                f"--dataset takes {', '.join(DATASETS)} or a folder"
            )
        return _load_folder(Path(dataset))

    if dataset != "digits":
        try:
            return _load_torchvision(data_name(dataset), Path(data_dir), download)
        except UserError as error:
            if dataset != "auto":
                raise UserError(
                    f"{error}: --data-dir says where it lies, "
                    "--dataset digits does without it"
                ) from None
            print(f"{error}: using scikit-learn's bundled 8x8 digits instead")

    from sklearn.datasets import load_digits  # here, for it takes a second to import

    bundled = load_digits()
    images = torch.from_numpy(bundled.images).byte()
    labels = torch.from_numpy(bundled.target).long()
    return _cut(images, labels, [1257, 180, 360], "digits", levels=17)


def _load_torchvision(dataset: str, data_dir: Path, download: bool) -> Images:
    from torchvision import datasets  # here, for it takes a second and a half to import

    emnist = dataset in ("letters", "balanced")
    kind = getattr(datasets, "EMNIST" if emnist else TITLES[dataset])
    options = {"root": data_dir, "download": download}
    if emnist:
        options["split"] = dataset

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        train = kind(train=True, **options)
        test = kind(train=False, **options)
    except Exception as error:  # torchvision checks a damaged file in many ways
        raise UserError(
            f"{TITLES[dataset]} cannot be read from {data_dir} "
            f"nor downloaded ({reason(error)})"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)

    images = torch.cat([train.data, test.data])
    labels = torch.cat([train.targets, test.targets])
    if len(images) != len(labels):
        raise UserError(
            f"{TITLES[dataset]} in {data_dir} has not one label for each image"
        )
    if emnist:
        images = images.mT  # its files hold them column by column
    # The last 5,000 training images are held out.
    sizes = [len(train.data) - 5000, 5000, len(test.data)]
    return _cut(images, labels, sizes, dataset)


def _load_folder(folder: Path) -> Images:
    """All pictures below a folder, in three parts; a class for each folder of pictures.

    See `_find_parts` for the parts. Printed lines say what was found.
    """
    paths = sorted(pictures_in(folder, deep=True), key=Path.as_posix)
    if len(paths) < LEAST:
        raise UserError(
            f"{folder} holds {len(paths)} pictures; at least {LEAST} are needed"
        )
    names = [path.relative_to(folder).as_posix() for path in paths]
    pixels = read_alike(folder, paths)  # (N, height, width)
    height, width = pixels.shape[1:]
    if any(side % 4 or side > 512 for side in (height, width)):
        raise UserError(
            f"{folder}: sides must be multiples of 4, at most 512, not {height}x{width}"
        )

    parts, kinds = _find_parts(folder, names)
    order = np.argsort([_chance(name) for name in names])
    rows = [[i for i in order if parts[i] == part] for part in PARTS]
    sizes = [f"{len(chosen)} {part}" for part, chosen in zip(PARTS, rows)]
    classes, labels = np.unique(kinds, return_inverse=True)
    print(
        f"{folder}: {len(names)} pictures, classes: {len(classes)}, "
        f"mean grey level {pixels.mean():.1f}, {', '.join(sizes)}"
    )
    if not all(rows):
        raise UserError(f"{folder}: each part needs pictures, not {', '.join(sizes)}")

    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.data)
    made_from = {"files": names, "pixels": digest.hexdigest()[:16]}
    source = str(folder.resolve())
    parted = [
        torch.from_numpy(values[chosen])
        for values in (pixels[:, None], labels)
        for chosen in rows
    ]
    return Images(data_name(source), 256, source, made_from, *parted)


def _chance(name: str) -> float:
    """A number in [0, 1) that looks random and belongs to this name."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _find_parts(folder: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """The part and the class of each picture in a folder, by their paths in it.

    A tenth is to test on and a tenth is held out. Which ones depends on nothing but
    each picture's own path, so that test images stay test images when a folder grows.
    Folders train/ and test/ at the top, perhaps val/ too, are the user's own split.
    """
    tenths = {0: "test", 1: "held-out"}
    parts = [tenths.get(int(10 * _chance(name)), "train") for name in names]
    kinds = [name.rpartition("/")[0] for name in names]
    tops = [name.partition("/")[0].lower() for name in names]
    given = set(tops) & OWN_PARTS.keys()
    if not given > {"train"}:
        return parts, kinds

    folders = ", ".join(f"{top}/" for top in sorted(given))
    if "test" not in given or set(tops) != given:
        problem = "no test/" if "test" not in given else "pictures outside of these"
        raise UserError(f"{folder} is split into {folders} but has {problem}")

    own = [OWN_PARTS[top] for top in tops]
    if "held-out" not in own:
        folders += "; a tenth of train/ is held out"
        # By the same rule as in folders without parts.
        own = [
            "held-out" if pair == ("train", "held-out") else pair[0]
            for pair in zip(own, parts)
        ]
    print(f"{folder}: its own folders are the parts: {folders}")
    return own, [kind.partition("/")[2] for kind in kinds]


def _cut(
    images: Tensor, labels: Tensor, sizes: list[int], name: str, levels: int = 256
) -> Images:
    """The parts of a known data set, (N, H, W), which lie one after the other."""
    parted = [*images[:, None].split(sizes), *labels.split(sizes)]
    return Images(name, levels, name, {"name": name}, *parted)
