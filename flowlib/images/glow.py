"""A Glow for small grey images, built of normflows' pieces: dequantisation, couplings, model, bits/dim, save and load.

Coordinates: an image holds integers 0 ... levels-1; `dequantise` spreads each over its bin, v = (image + u) / levels in (0, 1);
y = logit(alpha + (1 - 2 alpha) v) is unbounded, and normflows' multi-scale flow carries y to Gaussian latents. All densities are
those of v. normflows calls latent -> data `forward` and data -> latent `inverse`, the reverse of this project; only this file knows.

Papers: Kingma and Dhariwal (2018), arXiv:1807.03039 (Glow); Dinh et al. (2017), arXiv:1605.08803 (multi-scale, logit);
Ho et al. (2019), arXiv:1902.00275 (learned dequantisation); Theis et al. (2016), arXiv:1511.01844 (why dequantise);
Durkan et al. (2019), arXiv:1906.04032 (spline couplings).
"""

import math
import warnings
from pathlib import Path

import normflows as nf
import torch
from torch import Tensor, nn

from flowlib.files import ROOT, UserError, load_model, save_checkpoint

PRECISIONS = ("auto", "fp32", "bf16")
LOG_TWO_PI = math.log(2 * math.pi)
SMALLEST_BIN = 1e-3  # of a spline, as a share of its range


def quantise(v: Tensor, levels: int) -> Tensor:
    """The image whose bins v lies in: floor(levels · v), uint8."""
    return (v * levels).floor().clamp(0, levels - 1).to(torch.uint8)


# ---------------------------------------------------------------- networks


class ConvNet(nn.Module):
    """Maps (B, inputs, H, W) to (B, outputs, H, W): a 3x3 convolution, `depth` residual blocks, a 1x1 convolution that starts at zero.

    A residual block adds conv1x1(relu(conv3x3(relu(h)))). With `precision` torch.bfloat16 the convolutions run in bfloat16; what
    goes in and comes out has the dtype of the weights. Latents and log-determinants are never rounded. That is for training: an inverse
    needs the very outputs that the network gave before, and rounded ones differ as soon as the input does in its last digit.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int = 1):
        super().__init__()
        self.precision = torch.float32
        self.first = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(hidden, hidden, 1))
            for _ in range(depth)
        )
        self.last = nn.Conv2d(hidden, outputs, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.to(memory_format=torch.channels_last)  # the faster layout on CPUs and on GPUs' tensor cores

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            h = self.first(x)
            for block in self.blocks:
                h = h + block(h)
            return self.last(h.relu()).to(x.dtype, memory_format=torch.contiguous_format)


def precision_for(name: str, device: torch.device) -> torch.dtype:
    """What one of PRECISIONS means on a device; "auto" is bfloat16 where the processor multiplies in it natively, otherwise float32."""
    if name == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        name = "bf16" if native else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


# ---------------------------------------------------------------- couplings


def spline(x: Tensor, sizes: Tensor, slopes: Tensor, bound: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """A monotone rational-quadratic spline on [-bound, bound], the identity outside; its inverse is the root of a quadratic.

    Source: Durkan et al. (2019), arXiv:1906.04032, section 3.1.

    Args:
        x: (B, ...), any shape.
        sizes: (B, 2·bins, ...): unnormalised log-widths and log-heights of the bins.
        slopes: (B, bins - 1, ...): logs of the slopes where two bins meet; with zeros everywhere the spline is the identity.
    Returns:
        y, of x's shape, and log dy/dx entry by entry.
    """
    bins = slopes.shape[1] + 1
    sizes = sizes.unflatten(1, (2, bins)).softmax(2)  # widths and heights, in units of 2·bound
    slopes = nn.functional.pad(slopes, (0, 0) * (x.ndim - 1) + (1, 1))  # log 1 = 0 at both ends
    inside = x.abs() < bound
    t = torch.where(inside, x, 0) / (2 * bound) + 0.5
    rest = 1 - bins * SMALLEST_BIN
    k = torch.arange(bins, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
    with torch.no_grad():  # which bin t falls into
        edges = rest * sizes[:, 1 if inverse else 0, :-1].cumsum(1) + SMALLEST_BIN * k[1:]
        bin = (edges <= t[:, None]).sum(1, keepdim=True)
        before = (k < bin).to(x.dtype)
    left, bottom = (rest * (sizes * before[:, None]).sum(2) + SMALLEST_BIN * bin).unbind(1)
    width, height = (rest * sizes.gather(2, bin[:, None].expand(-1, 2, *bin.shape[1:])).squeeze(2) + SMALLEST_BIN).unbind(1)
    from_slope, to_slope = (4 * torch.tanh(slopes.gather(1, torch.cat([bin, bin + 1], 1)) / 4)).exp().unbind(1)
    slope = height / width
    bend = from_slope + to_slope - 2 * slope
    if inverse:
        y = t - bottom
        a, b, c = y * bend + height * (slope - from_slope), height * from_slope - y * bend, -slope * y
        t = 2 * c / (-b - (b * b - 4 * a * c).clamp(min=0).sqrt())
    else:
        t = (t - left) / width
    curve = t * (1 - t)
    denominator = slope + bend * curve
    y = left + width * t if inverse else bottom + height * (slope * t * t + from_slope * curve) / denominator
    log_slope = (slope**2 * (to_slope * t * t + 2 * slope * curve + from_slope * (1 - t) ** 2) / denominator**2).log()
    y, log_slope = torch.where(inside, (2 * y - 1) * bound, x), torch.where(inside, log_slope, 0)
    return y, -log_slope if inverse else log_slope


class Coupling(nf.flows.Flow):
    """Half of the channels transform the others, entry by entry: an affine map, then a spline.

    y = spline(x ⊙ exp s + t), the parameters of both from a network that sees the first half; s is bounded by ±2. An affine map alone
    keeps a Gaussian a Gaussian; the spline lets a pixel be "either background or ink".
    """

    def __init__(self, channels: int, hidden: int, depth: int, bins: int, bound: float = 5.0):
        super().__init__()
        self.kept, self.bins, self.bound = channels - channels // 2, bins, bound
        self.net = ConvNet(self.kept, hidden, (1 + 3 * bins) * (channels // 2), depth)

    def _conditioned_on(self, kept: Tensor) -> tuple[Tensor, ...]:
        """log s, t, and the spline's sizes and slopes."""
        parameters = self.net(kept).unflatten(1, (1 + 3 * self.bins, -1))
        log_scale, shift, sizes, slopes = parameters.split([1, 1, 2 * self.bins, self.bins - 1], dim=1)
        return 2 * torch.tanh(log_scale.squeeze(1) / 2), shift.squeeze(1), sizes, slopes

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent, as normflows has it."""
        kept, changed = z[:, : self.kept], z[:, self.kept :]
        log_scale, shift, *knots = self._conditioned_on(kept)
        changed, log_slope = spline(torch.addcmul(shift, changed, log_scale.exp()), *knots, self.bound)
        return torch.cat([kept, changed], 1), (log_scale + log_slope).flatten(1).sum(1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        kept, changed = z[:, : self.kept], z[:, self.kept :]
        log_scale, shift, *knots = self._conditioned_on(kept)
        changed, log_slope = spline(changed, *knots, self.bound, inverse=True)
        return torch.cat([kept, (changed - shift) * (-log_scale).exp()], 1), (log_slope - log_scale).flatten(1).sum(1)


class Block(nf.flows.GlowBlock):
    """normflows' GlowBlock (ActNorm, 1x1 convolution, coupling) with this file's coupling."""

    def __init__(self, channels: int, hidden: int, depth: int, bins: int):
        super().__init__(channels, hidden_channels=1)
        self.flows[0] = Coupling(channels, hidden, depth, bins)


class SplitPrior(nf.flows.Flow):
    """Splits half of the channels off to the latent space, seen from the other half: z₂ = (x₂ - μ(x₁)) / σ(x₁).

    With a standard normal base for z₂ that is a learned prior N(x₂; μ(x₁), σ(x₁)²), as in Glow's published code.
    """

    def __init__(self, channels: int, hidden: int, depth: int):
        super().__init__()
        self.net = ConvNet(channels // 2, hidden, channels, depth)

    def _prior(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(kept).chunk(2, dim=1)
        return mean, 2 * torch.tanh(log_std / 2)

    def inverse(self, z: Tensor) -> tuple[list[Tensor], Tensor]:
        kept, split = z.chunk(2, dim=1)
        mean, log_std = self._prior(kept)
        return [kept, (split - mean) * (-log_std).exp()], -log_std.flatten(1).sum(1)

    def forward(self, z: list[Tensor]) -> tuple[Tensor, Tensor]:
        kept, split = z
        mean, log_std = self._prior(kept)
        return torch.cat([kept, split * log_std.exp() + mean], 1), log_std.flatten(1).sum(1)


# ---------------------------------------------------------------- dequantisation


class Dequantiser(nn.Module):
    """Noise within each grey level's bin, v = (image + u) / levels with u in (0, 1): learned, or uniform.

    Learned: u = sigmoid(μ(image) + σ(image) · ε), ε ~ N(0, I), with μ and log σ from a ConvNet that starts at μ = 0 and σ = 1.7, where
    u is nearly uniform. Source: Ho et al. (2019), arXiv:1902.00275, section 3.1.

    Args:
        levels: number of grey levels.
        hidden: channels inside the network; 0 takes uniform noise and no network.
    """

    def __init__(self, levels: int, hidden: int):
        super().__init__()
        self.levels = levels
        self.net = ConvNet(1, hidden, 2) if hidden else None
        if self.net:
            self.net.last.bias.data[1] = math.log(1.7)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 1, H, W), integers, and standard normal noise of that shape -> v in (0, 1), and log q(v | image) in nats, (B,)."""
        images = images.to(noise.dtype)
        if self.net is None:
            u, log_q = torch.special.ndtr(noise), torch.zeros_like(noise)
        else:
            mean, log_std = self.net(2 * images / (self.levels - 1) - 1).chunk(2, dim=1)
            logit = mean + log_std.exp() * noise
            u = logit.sigmoid()
            # log N(logit; mean, std) - log du/dlogit
            log_q = -0.5 * (noise.square() + LOG_TWO_PI) - log_std - nn.functional.logsigmoid(logit) - nn.functional.logsigmoid(-logit)
        log_q = (log_q + math.log(self.levels)).flatten(1).sum(1)  # v is `levels` times as narrow as u
        return (images + u.clamp(max=1 - 2**-14)) / self.levels, log_q  # so that rounding never lifts v into the next bin


# ---------------------------------------------------------------- model


class Glow(nn.Module):
    """A two-level Glow over grey images, with a learned dequantiser: a density over v in (0, 1) and a bound on an image's probability.

    Args:
        shape: (1, height, width), height and width multiples of 4.
        levels: number of grey levels.
        blocks: GlowBlocks per level.
        hidden: channels inside each coupling's network.
        depth: residual blocks in each coupling's network.
        bins: of each coupling's splines.
        dequantiser: channels inside the dequantiser's network; 0 dequantises with uniform noise.
        alpha: keeps the logit finite at v = 0 and 1.
    Raises:
        ValueError: names the argument that cannot be used.
    """

    def __init__(
        self,
        shape=(1, 28, 28),
        levels: int = 256,
        blocks: int = 5,
        hidden: int = 64,
        depth: int = 1,
        bins: int = 8,
        dequantiser: int = 32,
        alpha: float = 1e-6,
    ):
        super().__init__()
        if len(shape) != 3 or shape[0] != 1 or min(shape) < 1 or shape[1] % 4 or shape[2] % 4:
            raise ValueError(f"shape must be (1, height, width) with multiples of 4, not {tuple(shape)}")
        numbers = dict(levels=levels, blocks=blocks, hidden=hidden, depth=depth, bins=bins, dequantiser=dequantiser)
        for name, least in dict(levels=2, blocks=1, hidden=1, depth=0, bins=2, dequantiser=0).items():
            if numbers[name] < least:
                raise ValueError(f"{name} must be at least {least}, not {numbers[name]}")
        self.config = dict(shape=list(shape), **numbers, alpha=alpha)
        self.shape, self.levels = tuple(shape), levels
        self.pixels = math.prod(shape)
        self.dequantiser = Dequantiser(levels, dequantiser)

        def level(channels: int) -> list[nn.Module]:
            return [Block(channels, hidden, depth, bins) for _ in range(blocks)] + [nf.flows.Squeeze()]

        _, height, width = shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.lu is deprecated", category=UserWarning)
            # coarsest level first, as normflows samples: (8, H/4, W/4) -> (2, H/2, W/2), joined by half of the first squeeze's channels
            bases = [(8, height // 4, width // 4), (2, height // 2, width // 2)]
            self.flow = nf.MultiscaleFlow(
                [nf.distributions.DiagGaussian(base) for base in bases],
                [level(8), level(4)],
                [SplitPrior(4, hidden, depth)],
                transform=nf.transforms.Logit(alpha),
                class_cond=False,
            )
        self._set_actnorm(nf.flows.AffineConstFlow)

    def _set_actnorm(self, kind: type) -> None:
        """normflows' ActNorm takes its statistics from whatever it sees first, a sample too; only `initialise` may do that."""
        for module in self.modules():
            if isinstance(module, nf.flows.AffineConstFlow):
                module.__class__ = kind
                module.data_dep_init_done.fill_(0.0)

    @torch.no_grad()
    def initialise(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Sets the ActNorm layers to give zero mean and unit variance on these images, as Glow does before training."""
        self._set_actnorm(nf.flows.ActNorm)
        self.log_prob(self.dequantise(images, generator))
        self._set_actnorm(nf.flows.AffineConstFlow)

    def set_precision(self, precision: torch.dtype) -> "Glow":
        """Runs the networks in torch.bfloat16 or torch.float32; latents, log-determinants and densities keep the weights' dtype."""
        for module in self.modules():
            if isinstance(module, ConvNet):
                module.precision = precision
        return self

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The training objective, an upper bound on each image's -log2 P(image) per pixel: integers (B, 1, H, W), noise alike -> (B,)."""
        self._check(images, "images")
        v, log_q = self.dequantiser(images, noise)
        return self._bits(self.log_prob(v) - log_q)

    def bits_per_dim(self, images: Tensor, draws: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """An upper bound on each image's -log2 P(image) per pixel: (B, 1, H, W) integers -> (B,).

        P(image) = E_q[p(v) / q(v | image)] over the dequantiser's v; by Jensen's inequality the log of a mean of `draws` such ratios is,
        in expectation, below log P: `draws`=1 is the training bound, more are importance-weighted and tighter.
        """
        bits = torch.stack([self(images, self._noise(images, generator)) for _ in range(draws)])
        return self._bits(torch.logsumexp(bits * -self._nats, dim=0) - math.log(draws))

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
        return self.dequantiser(images, self._noise(images, generator))[0]

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

    @property
    def _nats(self) -> float:
        """Nats per image in one bit per pixel."""
        return self.pixels * math.log(2)

    def _bits(self, log_p: Tensor) -> Tensor:
        return -log_p / self._nats

    def _noise(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Standard normal noise of the images' shape, in the weights' dtype and on their device; the generator is a CPU one."""
        weight = next(self.flow.parameters())
        return torch.randn(images.shape, generator=generator, dtype=weight.dtype).to(weight.device)

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


def load_glow(
    path: str | Path, device: str | torch.device = "cpu", shape: tuple[int, ...] | None = None, levels: int | None = None
) -> Glow:
    """Rebuilds a Glow that `save_glow` wrote, for images of this shape and with these levels, if given; its `metrics` are those of its run.

    Raises:
        UserError: if the file is missing, damaged, not a Glow, or one for other images.
    """
    hint = "`python train_glow_mnist.py` makes it (--dataset digits: without a download)"
    glow, checkpoint = load_model(Path(path), "glow", lambda checkpoint: Glow(**checkpoint["config"]), hint)
    if (shape or glow.shape, levels or glow.levels) != (glow.shape, glow.levels):
        raise UserError(
            f"{path} is a model of images of shape {glow.shape} with {glow.levels} levels, these are {shape} with {levels}: "
            "--dataset and --checkpoint must match"
        )
    glow.metrics = checkpoint.get("metrics", {})
    return glow.to(device).eval()
