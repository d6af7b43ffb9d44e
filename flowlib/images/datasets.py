"""The image data sets: MNIST, FashionMNIST and scikit-learn's bundled digits, as integers, each split in train, held-out and test."""

import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import MNIST, FashionMNIST

from flowlib.cli import Parser
from flowlib.files import ROOT, UserError

DATASETS = ("auto", "mnist", "fashion", "digits")
TITLES = {"mnist": "MNIST", "fashion": "FashionMNIST", "digits": "scikit-learn's 8x8 digits"}
DOWNLOAD_TIMEOUT = 10  # seconds that a server may stay silent; torchvision asks two of them


def add_dataset_flags(parser: Parser) -> None:
    """Adds --dataset and --data-dir, which `load_images` takes."""
    choice = "auto: mnist if present or downloadable, otherwise digits (default %(default)s)"
    parser.add_argument("--dataset", choices=DATASETS, default="auto", help=choice)
    parser.add_argument(
        "--data-dir", type=Path, default=ROOT / "data", help="where MNIST or FashionMNIST lies or is downloaded to (default data/)"
    )


@dataclass(frozen=True)
class Images:
    """A data set: uint8 tensors (N, 1, height, width), values 0 ... levels-1, and their classes, int64 (N,).

    Choices are made on `held_out`, never on `test`.
    """

    name: str
    levels: int
    train: Tensor
    held_out: Tensor
    test: Tensor
    train_labels: Tensor
    held_out_labels: Tensor
    test_labels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.train.shape[1:])


def load_images(dataset: str = "auto", data_dir: str | Path = ROOT / "data", download: bool = True) -> Images:
    """MNIST or FashionMNIST (the last 5,000 training images held out) or the digits (the last 360 test, the 180 before held out).

    Args:
        dataset: "mnist", "fashion", "digits", or "auto": MNIST where it is present or can be downloaded, otherwise digits, said in a line.
        data_dir: the root that torchvision's data sets read and download to.
        download: whether missing files may be downloaded.
    Raises:
        UserError: if "mnist" or "fashion" is asked for and cannot be had.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {DATASETS}, not {dataset!r}")
    if dataset != "digits":
        try:
            return _load_torchvision("mnist" if dataset == "auto" else dataset, Path(data_dir), download)
        except UserError as error:
            if dataset != "auto":
                raise UserError(f"{error}: --data-dir says where it lies, --dataset digits does without it") from None
            print(f"{error}: using scikit-learn's bundled 8x8 digits instead")
    bundled = load_digits()
    return _split("digits", 17, torch.from_numpy(bundled.images).to(torch.uint8), torch.from_numpy(bundled.target).long(), 180, 360)


def _split(name: str, levels: int, images: Tensor, labels: Tensor, held_out: int, test: int) -> Images:
    """The last `test` images to test on, the `held_out` before them held out."""
    sizes = [len(images) - held_out - test, held_out, test]
    return Images(name, levels, *images[:, None].split(sizes), *labels.split(sizes))


def _load_torchvision(dataset: str, data_dir: Path, download: bool) -> Images:
    kind = {"mnist": MNIST, "fashion": FashionMNIST}[dataset]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        train, test = (kind(data_dir, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:  # torchvision checks a damaged file in many ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{TITLES[dataset]} cannot be read from {data_dir} nor downloaded ({reason})") from None
    finally:
        socket.setdefaulttimeout(timeout)
    images, labels = torch.cat([train.data, test.data]), torch.cat([train.targets, test.targets])
    return _split(dataset, 256, images, labels, held_out=5000, test=len(test.data))
