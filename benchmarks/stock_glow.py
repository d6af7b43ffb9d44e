"""The peer in the Glow benchmarks: normflows' own multi-scale Glow, built as in its examples."""

import warnings

import normflows as nf
import torch
from torch import Tensor, nn

from flowlib.images.glow import ALPHA, to_bits_per_dim
from flowlib.images.glow_layers import Dequantizer


class StockGlow(nn.Module):
    """normflows' GlowBlock and Merge behind our dequantizer and logit, so that bits/dim compare.

    The blocks have affine couplings and run in float32.
    """

    def __init__(
        self,
        shape=(1, 28, 28),
        levels: int = 256,
        blocks: int = 6,
        hidden: int = 64,
        dequantizer: int = 32,
    ):
        super().__init__()
        _, height, width = shape
        self.shape, self.dequantizer = shape, Dequantizer(levels, dequantizer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.lu is deprecated")
            flows = [
                [nf.flows.GlowBlock(c, hidden) for _ in range(blocks)] for c in (8, 4)
            ]
        flows = [[*level, nf.flows.Squeeze()] for level in flows]
        latents = [(8, height // 4, width // 4), (2, height // 2, width // 2)]
        bases = [nf.distributions.DiagGaussian(latent) for latent in latents]
        merges, logit = [nf.flows.Merge()], nf.transforms.Logit(ALPHA)
        self.flow = nf.MultiscaleFlow(
            bases, flows, merges, transform=logit, class_cond=False
        )

    @torch.no_grad()
    def initialize(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Shows it the images: normflows' ActNorm initializes itself on what it sees first."""
        self(images, torch.randn(images.shape, generator=generator))

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The bound on each image's bits/dim, as in `Glow.forward`."""
        v, log_q = self.dequantizer(images, noise)
        return to_bits_per_dim(self.log_prob(v) - log_q, self.shape)

    def bits_per_dim(
        self, images: Tensor, draws: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """The bound of one draw; `draws` must be 1."""
        if draws != 1:
            raise ValueError(f"draws must be 1, not {draws}")
        return self(
            images, torch.randn(images.shape, generator=generator).to(images.device)
        )

    def log_prob(self, v: Tensor) -> Tensor:
        """The log-density of v, nats, (B,)."""
        return self.flow.log_prob(v, None)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n draws of v, (n, 1, H, W)."""
        return self.flow.sample(n)[0]
