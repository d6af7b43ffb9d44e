"""Random numbers by purpose, so that no two parts of a run ever draw the same ones."""

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def rng(seed: int, purpose: str, *more: int) -> torch.Generator:
    """A CPU generator that belongs to this seed and this purpose, and to `more`, say a step.

    Its own seed is a hash of all of them (32 bits; torch does not use more). Sums such
    as seed + 1000 collide: one run's test points are then another run's training
    points.

    Example:
        >>> torch.rand(2, generator=rng(0, "noise", 5))  # always the same two numbers
    """
    digest = hashlib.blake2b(
        repr((seed, purpose, *more)).encode(), digest_size=4
    ).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class Streams:
    """Random numbers for a batch, where each example draws from a generator of its own.

    So what an example gets does not depend on the batch that it is in. `seeds` has one
    for each of the B examples; the numbers have the dtype of `like` and are on its
    device.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, like: Tensor):
        self.generators = [rng(seed, purpose) for seed in seeds]
        self.like = like

    def __getitem__(self, rows: Sequence[int]) -> "Streams":
        """The same of some of the examples: they go on drawing from their own generators."""
        part = copy.copy(self)
        part.generators = [self.generators[row] for row in rows]
        return part

    def rand(self, *size: int) -> Tensor:
        """Uniform in [0, 1), (B, *size)."""
        return self._draw(torch.rand, size)

    def randn(self, *size: int) -> Tensor:
        """Standard normal, (B, *size)."""
        return self._draw(torch.randn, size)

    def _draw(self, kind, size: tuple[int, ...]) -> Tensor:
        draws = [
            kind(size, generator=one, dtype=self.like.dtype) for one in self.generators
        ]
        return torch.stack(draws).to(self.like.device)
