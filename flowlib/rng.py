"""Random numbers by purpose: no two parts of a run ever draw the same ones."""

import copy
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def rng(seed: int, purpose: str, *more: int) -> torch.Generator:
    """A CPU generator that belongs to this seed, this purpose and `more`, say a step.

    Its own seed is a hash of all of them (32 bits; torch does not use more). Sums such
    as seed + 1000 collide: one run's test points are then another run's training
    points.

    Example:
        >>> numbers = torch.rand(2, generator=rng(0, "noise", 5))
        >>> torch.equal(numbers, torch.rand(2, generator=rng(0, "noise", 5)))
        True
    """
    text = repr((seed, purpose, *more))
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class Streams:
    """Random numbers for a batch, each example's from a generator of its own.

    So what an example gets does not depend on the batch that it is in. `seeds` has one
    for each of the B examples. The numbers have the dtype and the device of `like`.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, like: Tensor):
        self.generators = [rng(seed, purpose) for seed in seeds]
        self.like = like

    def __getitem__(self, rows: Sequence[int]) -> "Streams":
        """The streams of some examples, which go on where they are."""
        part = copy.copy(self)
        part.generators = [self.generators[row] for row in rows]
        return part

    def rand(self, *size: int) -> Tensor:
        """Uniform in [0, 1), (B, *size)."""
        return self._draw(torch.rand, size)

    def randn(self, *size: int) -> Tensor:
        """Standard normal, (B, *size)."""
        return self._draw(torch.randn, size)

    def _draw(self, draw: Callable[..., Tensor], size: tuple[int, ...]) -> Tensor:
        rows = [
            draw(size, generator=one, dtype=self.like.dtype) for one in self.generators
        ]
        return torch.stack(rows).to(self.like.device)
