"""The peer of the Glow benchmarks: normflows' own multi-scale Glow, put together as in its examples."""

import warnings

import normflows as nf
import torch
from torch import Tensor, nn

from flowlib.images.glow import Dequantiser


class StockGlow(nn.Module):
    """normflows' GlowBlocks and Merge as they come (affine couplings, float32), behind our dequantiser and logit: bits/dim alike."""

    def __init__(self, shape=(1, 28, 28), levels: int = 256, blocks: int = 6, hidden: int = 64, dequantiser: int = 32):
        super().__init__()
        _, height, width = shape
        self.shape, self.dequantiser = shape, Dequantiser(levels, dequantiser)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.lu is deprecated", category=UserWarning)
            levels = [[nf.flows.GlowBlock(channels, hidden) for _ in range(blocks)] + [nf.flows.Squeeze()] for channels in (8, 4)]
        bases = [nf.distributions.DiagGaussian(base) for base in ((8, height // 4, width // 4), (2, height // 2, width // 2))]
        self.flow = nf.MultiscaleFlow(bases, levels, [nf.flows.Merge()], transform=nf.transforms.Logit(1e-6), class_cond=False)

    @torch.no_grad()
    def initialise(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """ActNorm initialises itself on what it sees first."""
        self(images, torch.randn(images.shape, generator=generator))

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The bound on each image's bits/dim, as in `Glow.forward`."""
        v, log_q = self.dequantiser(images, noise)
        return -(self.flow.log_prob(v, None) - log_q) / (images[0].numel() * torch.log(torch.tensor(2.0)))

    def bits_per_dim(self, images: Tensor, draws: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """One draw of the bound; `draws` must be 1."""
        return self(images, torch.randn(images.shape, generator=generator))

    def log_prob(self, v: Tensor) -> Tensor:
        return self.flow.log_prob(v, None)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.flow.sample(n)[0]
