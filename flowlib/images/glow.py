"""A Glow for small grey images: to latents and back, densities and bits/dim.

Coordinates: an image holds integers 0 ... levels - 1. The dequantizer spreads each over
its bin, v = (image + u) / levels in (0, 1). The logit of v is unbounded, and normflows'
multi-scale flow takes it to Gaussian latents. All densities are those of v.

Directions: in normflows `forward` is latent to data and `inverse` data to latent, the
reverse of the rest of this project. Elsewhere they are called `Glow.decode` and
`Glow.encode`. `Glow.forward` is neither: it is `Glow.bits_bound`, the training loss.

Papers: Kingma and Dhariwal (2018), arXiv:1807.03039 (Glow); Dinh et al. (2017),
arXiv:1605.08803 (multi-scale, logit); Theis et al. (2016), arXiv:1511.01844 (why
dequantize).
"""

import math
from pathlib import Path

import normflows as nf
import torch
from torch import Tensor, nn

from flowlib.files import find_checkpoint, load_model, require_same_data, short
from flowlib.images.datasets import Images
from flowlib.images.glow_layers import (
    ActNorm,
    Block,
    ConvNet,
    Coupling,
    Dequantizer,
    SplitPrior,
)

ALPHA = 1e-6  # keeps the logit finite at v = 0 and v = 1
SAMPLES_AT_ONCE = 250  # more would need gigabytes
PRECISIONS = ("auto", "fp32", "bf16")


def precision_for(name: str, device: torch.device) -> torch.dtype:
    """What one of PRECISIONS means on a device.

    "auto" is bfloat16 where the processor computes in it, otherwise float32.
    """
    if name == "auto":
        native = torch.cpu._is_avx512_bf16_supported
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported
        name = "bf16" if native() else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def to_bits_per_dim(log_p: Tensor, shape: tuple[int, ...]) -> Tensor:
    """-log2 P per pixel from log P in nats, for images of this shape."""
    return -log_p / (math.prod(shape) * math.log(2))


class Glow(nn.Module):
    """A two-level Glow over grey images: a density of v in (0, 1).

    With the dequantizer it is also a bound on P(image).

    Args:
        shape: (1, height, width), height and width multiples of 4.
        levels: number of grey levels.
        blocks: Glow blocks per level.
        hidden: channels inside each coupling's network.
        depth: residual blocks in each coupling's network.
        bins: of each coupling's splines.
        dequantizer: channels inside the dequantizer's network.
    Raises:
        ValueError: names the argument that cannot be used.

    Example:
        >>> from flowlib.files import SHIPPED
        >>> glow = load_glow(SHIPPED / "glow_digits.pt")
        >>> v = glow.sample(16, torch.Generator().manual_seed(0))
        >>> v.shape  # in (0, 1)
        torch.Size([16, 1, 8, 8])
        >>> glow.quantize(v).dtype  # images
        torch.uint8
        >>> glow.log_prob(v).shape  # nats
        torch.Size([16])
    """

    # The least and the most of each number. Beyond the most, memory is sure to run out.
    LIMITS = {
        "levels": (2, 256),
        "blocks": (1, 1000),
        "hidden": (1, 16_384),
        "depth": (0, 100),
        "bins": (2, 500),
        "dequantizer": (1, 16_384),
    }

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 28, 28),
        levels: int = 256,
        blocks: int = 6,
        hidden: int = 64,
        depth: int = 1,
        bins: int = 8,
        dequantizer: int = 32,
    ):
        super().__init__()
        sides_fit = all(side % 4 == 0 < side <= 512 for side in shape[1:])
        if len(shape) != 3 or shape[0] != 1 or not sides_fit:
            raise ValueError(
                "shape must be (1, multiple of 4, multiple of 4), at most 512, "
                f"not {tuple(shape)}"
            )

        sizes = {
            "levels": levels,
            "blocks": blocks,
            "hidden": hidden,
            "depth": depth,
            "bins": bins,
            "dequantizer": dequantizer,
        }
        for name, value in sizes.items():
            least, most = self.LIMITS[name]
            if not (isinstance(value, int) and least <= value <= most):
                raise ValueError(
                    f"{name} must be an integer in [{least}, {most}], not {value}"
                )

        self.config = {"shape": list(shape), **sizes}
        _, height, width = shape
        self.shape = (1, height, width)
        self.levels = levels
        self.precision = torch.float32
        self.dequantizer = Dequantizer(levels, dequantizer)

        # The image (1, H, W) is squeezed to (4, H/2, W/2). After that level's blocks
        # two channels are latents, the others are squeezed to (8, H/4, W/4). normflows:
        # coarsest first.
        latents = [(8, height // 4, width // 4), (2, height // 2, width // 2)]
        flows = []
        for channels in (8, 4):
            level = [Block(channels, hidden, depth, bins) for _ in range(blocks)]
            flows.append([*level, nf.flows.Squeeze()])
        self.flow = nf.MultiscaleFlow(
            [nf.distributions.DiagGaussian(latent) for latent in latents],
            flows,
            [SplitPrior(4, hidden, depth)],
            transform=nf.transforms.Logit(ALPHA),
            class_cond=False,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def initialize(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        """Sets the ActNorm layers to mean 0 and variance 1 on these images."""
        v = self.dequantize(images, generator)
        layers = [layer for layer in self.modules() if isinstance(layer, ActNorm)]
        for layer in layers:
            layer.initializing = True
        self.encode(v)
        for layer in layers:
            layer.initializing = False

    def set_precision(self, precision: torch.dtype) -> "Glow":
        """Runs the networks in torch.bfloat16 or float32, and returns the model."""
        self.precision = precision
        for module in self.modules():
            if isinstance(module, ConvNet):
                module.precision = precision
        return self

    def compile_couplings(self) -> None:
        """Makes training faster: the couplings' `inverse` becomes a few large kernels.

        Needs a C compiler, and half a minute at the first use.
        """
        for module in self.modules():
            if isinstance(module, Coupling):
                module.inverse = torch.compile(
                    module.inverse,
                    fullgraph=True,
                    dynamic=False,
                )

    def bits_bound(self, images: Tensor, noise: Tensor) -> Tensor:
        """The training loss: an upper bound on each -log2 P(image) per pixel, (B,).

        `images` (B, 1, H, W) are integers 0 ... levels - 1, `noise` is standard normal.
        """
        return to_bits_per_dim(self._log_weight(images, noise), self.shape)

    forward = bits_bound  # the name that torch's wrappers of models call

    def bits_per_dim(
        self,
        images: Tensor,
        draws: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """An upper bound on each -log2 P(image) per pixel: (B, 1, H, W) -> (B,).

        P(image) = E_q[p(v) / q(v | image)] over the dequantizer's v. In expectation the
        log of a mean of `draws` such ratios is below log P. One draw is the training
        loss, more are tighter. Raises ValueError if the images are not integer grey
        levels, such as image / 255.
        """
        self._check_levels(images)
        noises = (self._noise(images.shape, generator) for _ in range(draws))
        log_weights = torch.stack([self._log_weight(images, noise) for noise in noises])
        return to_bits_per_dim(log_weights.logsumexp(0) - math.log(draws), self.shape)

    @torch.no_grad()
    def dequantize(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One random v in each pixel's bin, (B, 1, H, W); `quantize` undoes it.

        Raises ValueError if the images are not integer grey levels.
        """
        self._check_levels(images)
        return self.dequantizer(images, self._noise(images.shape, generator))[0]

    def quantize(self, v: Tensor) -> Tensor:
        """The images whose bins v lies in: floor(levels · v), uint8."""
        return (v * self.levels).floor().clamp(0, self.levels - 1).to(torch.uint8)

    def _log_weight(self, images: Tensor, noise: Tensor) -> Tensor:
        """log p(v) - log q(v | image), nats, (B,)."""
        self._check(images, "images")
        v, log_q = self.dequantizer(images, noise)
        return self.log_prob(v) - log_q

    def log_prob(self, v: Tensor) -> Tensor:
        """log p(v) in nats, differentiable: (B, 1, H, W) in (0, 1) -> (B,)."""
        self._check(v, "v")
        return self.flow.log_prob(v, None)

    def encode(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """v -> latents (B, 8, H/4, W/4) and (B, 2, H/2, W/2), and log|det dz / dv|."""
        self._check(v, "v")
        return self.flow.inverse_and_log_det(v)

    def decode(self, latents: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The latents -> v (B, 1, H, W), and log|det dv / dz|, (B,)."""
        return self.flow.forward_and_log_det(latents)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """n draws of v, clamped to [1e-6, 1 - 1e-6]: (n, 1, H, W).

        `generator` is one of the CPU. The latents are normal, with the means and scales
        that the model has learned for them. `temperature` multiplies the scales: below
        1 samples are safer and less varied.
        """
        if n < 1 or not temperature > 0:
            raise ValueError(
                f"n must be >= 1 and temperature > 0, not {n} and {temperature}"
            )

        parts = []
        for start in range(0, n, SAMPLES_AT_ONCE):
            size = min(SAMPLES_AT_ONCE, n - start)
            latents = []
            for base in self.flow.q0:
                noise = self._noise((size, *base.shape), generator)
                latents.append(base.loc + temperature * base.log_scale.exp() * noise)
            parts.append(self.decode(latents)[0].clamp(1e-6, 1 - 1e-6))
        return torch.cat(parts)

    def _noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None,
    ) -> Tensor:
        """Standard normal noise like the weights, drawn on the CPU."""
        dtype = next(self.parameters()).dtype
        return torch.randn(shape, generator=generator, dtype=dtype).to(self.device)

    def _check(self, x: Tensor, name: str) -> None:
        if x.shape[1:] != self.shape:
            shape = ", ".join(map(str, self.shape))
            given = tuple(x.shape)
            raise ValueError(f"{name} must be of shape (B, {shape}), not {given}")

    def _check_levels(self, images: Tensor) -> None:
        """Not for `bits_bound`: this waits for the GPU."""
        self._check(images, "images")
        top = self.levels - 1
        if not ((images >= 0) & (images <= top) & (images % 1 == 0)).all():
            raise ValueError(f"images: integer grey levels 0 ... {top} are expected")


def load_glow(path: str | Path, device: str | torch.device = "cpu") -> Glow:
    """The Glow that `save_model` wrote; UserError if the file is missing or damaged."""
    hint = (
        "`python train_glow_mnist.py` makes it (--dataset digits: without a download)"
    )
    glow = load_model(path, Glow, device, hint)
    # Files from before there were fingerprints say the data's name alone.
    if not glow.made_from and "data" in glow.metrics:
        glow.made_from = {"name": glow.metrics["data"]}
    return glow


def choose_glow(
    path: Path | None,
    name: str,
    device: torch.device,
    images: Images | None = None,
) -> Glow:
    """The Glow that a script uses; prints which one it is, and how good.

    Args:
        path: the file, if the user names one. Otherwise checkpoints/glow_NAME.pt if it
            was made here, else the shipped one.
        name: of the data.
        images: if given, the model must have been made from them.
    Raises:
        UserError: if there is no such file, or if it was made from other data.
    """
    path = path or find_checkpoint(f"glow_{name}.pt")
    glow = load_glow(path, device)
    bits = glow.metrics.get("test_bits_per_dim")
    quality = "not evaluated" if bits is None else f"{bits:.3f} bits/dim"
    print(f"{short(path)}, {quality}")

    if images is not None:
        require_same_data(
            path,
            glow.made_from,
            images.made_from,
            "--dataset and --checkpoint must match; "
            "`python train_glow_mnist.py` trains anew",
        )
    return glow
