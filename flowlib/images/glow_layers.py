"""The Glow's layers: networks, couplings, ActNorm, split prior, dequantizer.

Every layer is a normflows `Flow`: `inverse` takes data to latent, `forward` takes
latent to data. Both also return the log-determinant in nats: (B,), or one number if all
examples share it.

The couplings' splines are those of flows2d.py. Papers: Kingma and Dhariwal (2018),
arXiv:1807.03039 (Glow); Ho et al. (2019), arXiv:1902.00275 (learned dequantization).
"""

import math
import warnings

import normflows as nf
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flows2d import spline

LOG_TWO_PI = math.log(2 * math.pi)
RANGE = 3.0  # beyond ±3 a coupling's spline is the identity


class ConvNet(nn.Module):
    """Maps (B, inputs, H, W) to (B, outputs, H, W) by convolutions.

    A 3x3 convolution of x, tanh(3 x - 3/2) and tanh(3 x + 3/2), `depth` residual blocks
    h + conv1x1(relu(conv3x3(relu(h)))), then a 1x1 convolution that starts at zero.
    With `precision` torch.bfloat16 they run in bfloat16, and the output has the input's
    dtype: latents are never rounded. Use it in training only, since decoding must
    repeat the outputs that encoding saw.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int = 1):
        super().__init__()
        self.precision = torch.float32
        self.first = nn.Conv2d(3 * inputs, hidden, 3, padding=1)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            wide = nn.Conv2d(hidden, hidden, 3, padding=1)
            narrow = nn.Conv2d(hidden, hidden, 1)
            layers = [nn.ReLU(), wide, nn.ReLU(inplace=True), narrow]
            self.blocks.append(nn.Sequential(*layers))

        self.last = nn.Conv2d(hidden, outputs, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # faster on CPUs and tensor cores

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        bf16 = self.precision == torch.bfloat16
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            # Smooth steps at ±1/2 tell background, edges and ink apart from the start.
            steps = torch.cat([x, (3 * x - 1.5).tanh(), (3 * x + 1.5).tanh()], 1)
            h = self.first(steps)
            for block in self.blocks:
                h = h + block(h)
            y = self.last(h.relu())
        return y.to(x.dtype, memory_format=torch.contiguous_format)


class Coupling(nf.flows.Flow):
    """Half of the channels transform the other half: y = spline(x ⊙ exp s + t).

    s (bounded by ±2), t and the spline of each entry come from a network that sees the
    first half. An affine map alone keeps a Gaussian a Gaussian. With a spline a pixel
    can be "either background or ink".
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        depth: int,
        bins: int,
    ):
        super().__init__()
        changed = channels // 2
        self.kept = channels - changed
        self.bins = bins
        self.net = ConvNet(self.kept, hidden, (1 + 3 * bins) * changed, depth)

    def _condition(self, z: Tensor) -> tuple[Tensor, ...]:
        """Both halves, log s and t, (B, half, H, W), and the spline's parameters.

        These are (B, ..., half, H, W).
        """
        kept = z[:, : self.kept]
        changed = z[:, self.kept :]
        parameters = self.net(kept).unflatten(1, (1 + 3 * self.bins, -1))
        parts = parameters.split([1, 1, 2 * self.bins, self.bins - 1], dim=1)
        log_scale = 2 * torch.tanh(parts[0].squeeze(1) / 2)
        shift = parts[1].squeeze(1)
        return kept, changed, log_scale, shift, *parts[2:]

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        kept, changed, log_scale, shift, sizes, slopes = self._condition(z)
        changed = torch.addcmul(shift, changed, log_scale.exp())
        changed, log_slope = spline(changed, sizes, slopes, RANGE)
        log_det = (log_scale + log_slope).flatten(1).sum(1)
        return torch.cat([kept, changed], 1), log_det

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        kept, changed, log_scale, shift, sizes, slopes = self._condition(z)
        changed, log_slope = spline(changed, sizes, slopes, RANGE, inverse=True)
        changed = (changed - shift) * (-log_scale).exp()
        log_det = (log_slope - log_scale).flatten(1).sum(1)
        return torch.cat([kept, changed], 1), log_det


class ActNorm(nf.flows.AffineConstFlow):
    """Shifts and scales each channel by learned constants.

    While `initializing` is True, `inverse` first sets them: its output has mean 0 and
    variance 1. normflows' own ActNorm does so at the first call of any kind, even if
    that call samples. Source: Kingma and Dhariwal (2018), section 3.1.
    """

    initializing = False

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        if self.initializing:
            self.t.data.copy_(z.mean((0, 2, 3), keepdim=True))
            self.s.data.copy_((z.std((0, 2, 3), keepdim=True) + 1e-6).log())
        return super().inverse(z)


class Block(nf.flows.GlowBlock):
    """One step of Glow: from data to latent ActNorm, a 1x1 convolution, a coupling."""

    def __init__(self, channels: int, hidden: int, depth: int, bins: int):
        nf.flows.Flow.__init__(self)  # GlowBlock's own would build normflows' layers
        coupling = Coupling(channels, hidden, depth, bins)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.lu is deprecated")
            convolution = nf.flows.Invertible1x1Conv(channels, use_lu=True)
        start_as_permutation(convolution, coupling.kept)

        # In the order of sampling, which GlowBlock's forward and inverse expect.
        norm = ActNorm((channels, 1, 1))
        self.flows = nn.ModuleList([coupling, convolution, norm])


def start_as_permutation(convolution: nf.flows.Invertible1x1Conv, kept: int) -> None:
    """Makes a 1x1 convolution a random permutation, from where it is learned.

    Its usual start, a random rotation, mixes pixels before any coupling has seen them
    one by one. But a pixel is black, or saturated, or in between, and a spline flattens
    that better than it flattens a sum of several. At most half of the `kept` channels
    were kept by the coupling before, so that each channel is soon transformed.
    """
    channels = convolution.num_channels
    order = torch.arange(channels)
    while (order[:kept] < kept).sum() > kept / 2:
        order = torch.randperm(channels)

    # The convolution's matrix is P (L + I) (U + diag(sign_S exp log_S)), L and U
    # triangular.
    convolution.P.copy_(torch.eye(channels)[order])
    convolution.sign_S.fill_(1)
    for parameter in (convolution.L, convolution.U, convolution.log_S):
        nn.init.zeros_(parameter)


class SplitPrior(nf.flows.Flow):
    """Moves half of the channels to the latent space: z₂ = (x₂ - μ(x₁)) / σ(x₁).

    x₁ goes on. If z₂ is standard normal, x₂ has the learned prior N(μ(x₁), σ(x₁)²), as
    in Glow's own code.
    """

    def __init__(self, channels: int, hidden: int, depth: int):
        super().__init__()
        self.net = ConvNet(channels // 2, hidden, channels, depth)

    def _prior(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ (bounded by ±2), each (B, channels / 2, H, W)."""
        mean, log_std = self.net(kept).chunk(2, dim=1)
        return mean, 2 * torch.tanh(log_std / 2)

    def inverse(self, z: Tensor) -> tuple[list[Tensor], Tensor]:
        """Data to latent: x -> [x₁, z₂]."""
        kept, split = z.chunk(2, dim=1)
        mean, log_std = self._prior(kept)
        return [kept, (split - mean) * (-log_std).exp()], -log_std.flatten(1).sum(1)

    def forward(self, z: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Latent to data: [x₁, z₂] -> x."""
        kept, split = z
        mean, log_std = self._prior(kept)
        x = torch.cat([kept, split * log_std.exp() + mean], 1)
        return x, log_std.flatten(1).sum(1)


class Dequantizer(nn.Module):
    """Spreads each grey level over its bin: v = (image + u) / levels with u in (0, 1).

    u = sigmoid(μ(image) + σ(image) · ε), ε ~ N(0, I), with μ and log σ from a ConvNet
    that has `hidden` channels inside. At first u is nearly uniform. Source: Ho et al.
    (2019), section 3.1.
    """

    def __init__(self, levels: int, hidden: int):
        super().__init__()
        self.levels = levels
        self.net = ConvNet(1, hidden, 2)
        self.net.last.bias.data[1] = math.log(1.7)  # log σ where u is nearly uniform

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """v in (0, 1), of the images' shape, and log q(v | image) in nats, (B,).

        `images` (B, 1, H, W) are integers 0 ... levels - 1; `noise` is ε, of that
        shape.
        """
        images = images.to(noise.dtype)
        mean, log_std = self.net(2 * images / (self.levels - 1) - 1).chunk(2, dim=1)
        logit = mean + log_std.exp() * noise

        log_q = -0.5 * (noise.square() + LOG_TWO_PI) - log_std  # log N(logit; μ, σ²)
        log_q = log_q - F.logsigmoid(logit) - F.logsigmoid(-logit)  # - log du/dlogit
        log_q = log_q + math.log(self.levels)  # v is `levels` times narrower than u
        # Clamped, so that rounding never lifts v into the next bin.
        u = logit.sigmoid().clamp(max=1 - 2**-14)
        return (images + u) / self.levels, log_q.flatten(1).sum(1)
