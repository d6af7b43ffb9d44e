"""A Glow for small grey images, built of normflows' pieces: data, dequantisation, model, bits/dim, save and load.

Coordinates: an image holds integers 0 ... levels-1; `dequantise` spreads each over its bin, v = (image + u) / levels in (0, 1);
y = logit(alpha + (1 - 2 alpha) v) is unbounded, and normflows' multi-scale flow carries y to Gaussian latents. All densities are
those of v. normflows calls latent -> data `forward` and data -> latent `inverse`, the reverse of this project; only this file knows.

Papers: Kingma and Dhariwal (2018), arXiv:1807.03039 (Glow); Dinh et al. (2017), arXiv:1605.08803 (multi-scale, logit);
Ho et al. (2019), arXiv:1902.00275 (learned dequantisation); Theis et al. (2016), arXiv:1511.01844 (why dequantise).
"""

import math
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path

import normflows as nf
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.datasets import MNIST

from common import ROOT, Parser, UserError, load_checkpoint, load_weights, save_checkpoint

DATASETS = ("auto", "mnist", "digits")
TITLES = {"mnist": "MNIST", "digits": "scikit-learn's 8x8 digits"}
DOWNLOAD_TIMEOUT = 10  # seconds that a server may stay silent; torchvision asks two of them

# ---------------------------------------------------------------- data


def add_dataset_flags(parser: Parser) -> None:
    """Adds --dataset and --data-dir, which `load_images` takes."""
    choice = "auto: mnist if present or downloadable, otherwise digits (default %(default)s)"
    parser.add_argument("--dataset", choices=DATASETS, default="auto", help=choice)
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where MNIST lies or is downloaded to (default data/)")


@dataclass(frozen=True)
class Images:
    """A data set: uint8 tensors (N, 1, height, width), values 0 ... levels-1. Choices are made on `held_out`, never on `test`."""

    name: str
    levels: int
    train: Tensor
    held_out: Tensor
    test: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.train.shape[1:])


def load_images(dataset: str = "auto", data_dir: str | Path = ROOT / "data", download: bool = True) -> Images:
    """MNIST (the last 5,000 training images held out) or scikit-learn's digits (the last 360 to test on, the 180 before them held out).

    Args:
        dataset: "mnist", "digits", or "auto": MNIST where it is present or can be downloaded, digits otherwise, said in one printed line.
        data_dir: the root that `torchvision.datasets.MNIST` reads and downloads to.
        download: whether a missing MNIST may be downloaded.
    Raises:
        UserError: if "mnist" is asked for and cannot be had.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {DATASETS}, not {dataset!r}")
    if dataset != "digits":
        try:
            return _load_mnist(Path(data_dir), download)
        except UserError as error:
            if dataset == "mnist":
                raise UserError(f"{error}: --data-dir says where it lies, --dataset digits does without it") from None
            print(f"{error}: using scikit-learn's bundled 8x8 digits instead")
    digits = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
    return Images("digits", 17, digits[:-540], digits[-540:-360], digits[-360:])


def _load_mnist(data_dir: Path, download: bool) -> Images:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        train, test = (MNIST(data_dir, train=part, download=download).data[:, None] for part in (True, False))
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:  # torchvision checks a damaged file in many ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"MNIST cannot be read from {data_dir} nor downloaded ({reason})") from None
    finally:
        socket.setdefaulttimeout(timeout)
    return Images("mnist", 256, train[:-5000], train[-5000:], test)


def quantise(v: Tensor, levels: int) -> Tensor:
    """The image whose bins v lies in: floor(levels · v), uint8."""
    return (v * levels).floor().clamp(0, levels - 1).to(torch.uint8)


# ---------------------------------------------------------------- model


class Dequantiser(nn.Module):
    """Learned noise within each grey level's bin: u = sigmoid(μ(image) + σ(image) · ε), ε ~ N(0, I), v = (image + u) / levels.

    A small convolutional network gives μ and log σ; it starts at μ = 0 and σ = 1.7, where u is nearly uniform.
    Source: Ho et al. (2019), arXiv:1902.00275, section 3.1.
    """

    def __init__(self, levels: int, hidden: int):
        super().__init__()
        self.levels = levels
        self.net = nn.Sequential(
            nn.Conv2d(1, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, 2, 3, padding=1),
        )
        nn.init.zeros_(self.net[-1].weight)
        self.net[-1].bias.data = torch.tensor([0.0, math.log(1.7)])

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """images (B, 1, H, W), integers -> v in (0, 1), and log q(v | image) in nats, (B,)."""
        images = images.to(self.net[0].weight.dtype)
        mean, log_std = self.net(2 * images / (self.levels - 1) - 1).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        logit = mean + log_std.exp() * noise
        # log N(logit; mean, std) - log du/dlogit, and v is `levels` times as narrow as u
        log_q = (
            -0.5 * (noise.square() + math.log(2 * math.pi))
            - log_std
            - nn.functional.logsigmoid(logit)
            - nn.functional.logsigmoid(-logit)
            + math.log(self.levels)
        )
        u = logit.sigmoid().clamp(max=1 - 2**-14)  # so that rounding never lifts v into the next bin
        return (images + u) / self.levels, log_q.flatten(1).sum(1)


class Glow(nn.Module):
    """A two-level Glow over grey images, with a learned dequantiser: a density over v in (0, 1) and a bound on an image's probability.

    Args:
        shape: (1, height, width), height and width multiples of 4.
        levels: number of grey levels.
        blocks: GlowBlocks per level.
        hidden: channels inside each coupling's network.
        dequantiser: channels inside the dequantiser's network.
        alpha: keeps the logit finite at v = 0 and 1.
    Raises:
        ValueError: names the argument that cannot be used.
    """

    def __init__(self, shape=(1, 28, 28), levels: int = 256, blocks: int = 8, hidden: int = 64, dequantiser: int = 16, alpha: float = 1e-6):
        super().__init__()
        if len(shape) != 3 or shape[0] != 1 or min(shape) < 1 or shape[1] % 4 or shape[2] % 4:
            raise ValueError(f"shape must be (1, height, width) with multiples of 4, not {tuple(shape)}")
        for name, value, least in (("levels", levels, 2), ("blocks", blocks, 1), ("hidden", hidden, 1), ("dequantiser", dequantiser, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        self.config = dict(shape=list(shape), levels=levels, blocks=blocks, hidden=hidden, dequantiser=dequantiser, alpha=alpha)
        self.shape, self.levels = tuple(shape), levels
        self.pixels = math.prod(shape)
        self.dequantiser = Dequantiser(levels, dequantiser)

        def level(channels: int) -> list[nn.Module]:
            return [nf.flows.GlowBlock(channels, hidden) for _ in range(blocks)] + [nf.flows.Squeeze()]

        _, height, width = shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.lu is deprecated", category=UserWarning)
            # coarsest level first, as normflows samples: (8, H/4, W/4) -> (2, H/2, W/2), joined by half of the first squeeze's channels
            self.flow = nf.MultiscaleFlow(
                [nf.distributions.DiagGaussian((8, height // 4, width // 4)), nf.distributions.DiagGaussian((2, height // 2, width // 2))],
                [level(8), level(4)],
                [nf.flows.Merge()],
                transform=nf.transforms.Logit(alpha),
                class_cond=False,
            )
        self._set_actnorm(nf.flows.AffineConstFlow)
        self.to(memory_format=torch.channels_last)  # a sixth faster on a CPU

    def _set_actnorm(self, kind: type) -> None:
        """normflows' ActNorm takes its statistics from whatever it sees first, a sample too; only `initialise` may do that."""
        for module in self.modules():
            if isinstance(module, nf.flows.AffineConstFlow):
                module.__class__ = kind
                module.data_dep_init_done.fill_(0.0)

    @torch.no_grad()
    def initialise(self, images: Tensor) -> None:
        """Sets the ActNorm layers to give zero mean and unit variance on these images, as Glow does before training."""
        self._set_actnorm(nf.flows.ActNorm)
        self.log_prob(self.dequantise(images))
        self._set_actnorm(nf.flows.AffineConstFlow)

    def log_prob(self, v: Tensor) -> Tensor:
        """The log-density of v in (0, 1), nats, differentiable in v: (B, 1, H, W) -> (B,)."""
        self._check(v, "v")
        return self.flow.log_prob(v, None)

    def encode(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """v -> the latents [(B, 8, H/4, W/4), (B, 2, H/2, W/2)] and log|det d latents / d v| (B,)."""
        self._check(v, "v")
        return self.flow.inverse_and_log_det(v)

    def decode(self, latents: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The latents -> v and log|det d v / d latents| (B,)."""
        return self.flow.forward_and_log_det(latents)

    @torch.no_grad()
    def dequantise(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Integers (B, 1, H, W) -> one random v in each pixel's bin, so that floor(levels · v) is the image again."""
        self._check(images, "images")
        return self.dequantiser(images, generator)[0]

    def bits_per_dim(self, images: Tensor, draws: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """An upper bound on each image's -log2 P(image) per pixel: (B, 1, H, W) integers -> (B,).

        P(image) = E_q[p(v) / q(v | image)] over the dequantiser's v; by Jensen's inequality the log of a mean of `draws` such ratios is,
        in expectation, below log P: `draws`=1 is the training bound, more are importance-weighted and tighter.
        """
        self._check(images, "images")
        ratios = []
        for _ in range(draws):
            v, log_q = self.dequantiser(images, generator)
            ratios.append(self.log_prob(v) - log_q)
        log_p = torch.logsumexp(torch.stack(ratios), dim=0) - math.log(draws)
        return -log_p / (self.pixels * math.log(2))

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """n images, uint8 (n, 1, H, W); `temperature` scales the latents' standard deviation. Draws from torch's global generator."""
        if n < 1 or not temperature > 0:
            raise ValueError(f"n must be at least 1 and temperature positive, not {n} and {temperature}")
        try:
            v, _ = self.flow.sample(n, temperature=temperature)
        finally:
            self.flow.reset_temperature()
        return quantise(v, self.levels)

    def _check(self, x: Tensor, name: str) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"{name} must be of shape (B, {', '.join(map(str, self.shape))}), not {tuple(x.shape)}")


# ---------------------------------------------------------------- saving


def default_checkpoint(dataset: str) -> Path:
    """Where the shipped weights for a data set lie."""
    return ROOT / "checkpoints" / f"glow_{dataset}.pt"


def save_glow(glow: Glow, path: Path, *, step: int = 0, seed: int | None = None, metrics: dict | None = None) -> None:
    """Writes the model as one checkpoint that `load_glow` rebuilds; the file appears whole or not at all."""
    save_checkpoint(path, "glow", glow.config, glow.state_dict(), step=step, seed=seed, metrics=metrics)


def load_glow(path: str | Path, device: str | torch.device = "cpu") -> Glow:
    """Rebuilds a Glow that `save_glow` wrote; its `metrics` are those of the training run.

    Raises:
        UserError: if the file is missing, damaged or not a Glow.
    """
    checkpoint = load_checkpoint(Path(path), "glow", "`python train_glow_mnist.py` makes it (--dataset digits: without a download)")
    try:
        glow = Glow(**checkpoint["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: no Glow can be built from its config ({error})") from None
    load_weights(glow, checkpoint, Path(path))
    glow.metrics = checkpoint.get("metrics", {})
    return glow.to(device).eval()
