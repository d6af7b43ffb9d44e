"""The image data sets, each in three parts: MNIST, FashionMNIST, and scikit-learn's 8x8 digits."""

import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowlib.cli import Parser
from flowlib.files import ROOT, UserError

DATASETS = ("auto", "mnist", "fashion", "digits")
TITLES = {"mnist": "MNIST", "fashion": "FashionMNIST", "digits": "scikit-learn's 8x8 digits"}
DOWNLOAD_TIMEOUT = 10  # seconds that a server may stay silent; torchvision asks two of them


def add_dataset_flags(parser: Parser) -> None:
    """Adds --dataset and --data-dir, which `load_images` takes."""
    auto = "auto: mnist if present or downloadable, otherwise digits (default auto)"
    parser.add_argument("--dataset", choices=DATASETS, default="auto", help=auto)
    folder = "where MNIST or FashionMNIST is read from or downloaded to (default data/)"
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help=folder)


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

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.train.shape[1:])


def load_images(
    dataset: str = "auto", data_dir: str | Path = ROOT / "data", download: bool = True
) -> Images:
    """A data set, in three parts.

    Args:
        dataset: "mnist", "fashion", "digits", or "auto": MNIST if it is present or can be
            downloaded, otherwise the digits, and a printed line says so.
        data_dir: the folder that torchvision's data sets call `root`.
    Raises:
        UserError: if "mnist" or "fashion" is asked for and cannot be had.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {DATASETS}, not {dataset!r}")
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

    kind = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[dataset]
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
    # The last 5,000 training images are held out.
    return _split(dataset, 256, images, labels, (5000, len(test.data)))


def _split(name: str, levels: int, images: Tensor, labels: Tensor, last: tuple[int, int]) -> Images:
    """The three parts; `last` says how many images at the end are held out and to test on."""
    sizes = [len(images) - sum(last), *last]
    return Images(name, levels, *images[:, None].split(sizes), *labels.split(sizes))
