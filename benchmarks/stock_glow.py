"""The peer in the Glow benchmarks: normflows' own Glow, built as in its examples."""

import warnings

import normflows as nf
import torch
from torch import Tensor, nn

from flowlib.images.glow import ALPHA, to_bits_per_dim
from flowlib.images.glow_layers import Dequantizer


class StockGlow(nn.Module):
    """normflows' GlowBlock and Merge behind our dequantizer and logit.

    So bits/dim can be compared. The blocks have affine couplings and run in float32.
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
        self.shape = shape
        self.dequantizer = Dequantizer(levels, dequantizer)

        flows = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.lu is deprecated")
            for channels in (8, 4):
                level = [nf.flows.GlowBlock(channels, hidden) for _ in range(blocks)]
                flows.append([*level, nf.flows.Squeeze()])

        # The first level sees half of the height and width, the second a quarter.
        _, height, width = shape
        latents = [(8, height // 4, width // 4), (2, height // 2, width // 2)]
        bases = [nf.distributions.DiagGaussian(latent) for latent in latents]
        merges = [nf.flows.Merge()]
        logit = nf.transforms.Logit(ALPHA)
        self.flow = nf.MultiscaleFlow(
            bases, flows, merges, transform=logit, class_cond=False
        )

    @torch.no_grad()
    def initialize(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Shows it the images: normflows' ActNorm is set by what it sees first."""
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
        noise = torch.randn(images.shape, generator=generator)
        return self(images, noise.to(images.device))

    def log_prob(self, v: Tensor) -> Tensor:
        """The log-density of v, nats, (B,)."""
        return self.flow.log_prob(v, None)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n draws of v, (n, 1, H, W)."""
        return self.flow.sample(n)[0]
