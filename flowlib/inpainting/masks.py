"""Masks by name: bool (n, 1, height, width), True where a pixel is missing."""

import torch
from torch import Tensor

from flowlib.files import UserError
from flowlib.rng import rng

HALVES = ("top", "bottom", "left", "right")
KINDS = f"square:SIDE, noise:FRACTION, {', '.join(HALVES)}"


def draw_masks(kind: str, n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """n masks of a kind for images of this shape, always the same ones for a seed.

    Raises UserError if the kind is not understood or does not fit, or a mask has no
    missing pixel.

    Example:
        >>> draw_masks("square:14", 2, (1, 28, 28), seed=0).sum().item()
        392
    """
    try:
        masks = make_masks(kind, n, *shape[1:], rng(seed, f"mask {kind}"))
    except ValueError as error:
        raise UserError(str(error)) from None
    if not masks.flatten(1).any(1).all():
        raise UserError(
            f"--mask {kind}: no pixel is missing, so there is nothing to fill"
        )
    return masks


def make_masks(
    kind: str,
    n: int,
    height: int,
    width: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """n masks of the kind "square:14" or "noise:0.5", or a missing half, say "left".

    A square's place is random. Noise is exactly round(fraction · height · width) random
    pixels.

    Raises:
        ValueError: if the kind is not understood, or does not fit into the image.
    """
    name, _, size = kind.partition(":")
    try:
        if name == "square":
            return _square_masks(n, height, width, int(size), generator)
        if name == "noise":
            return _noise_masks(n, height, width, float(size), generator)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from None
    if kind not in HALVES:
        raise ValueError(f"a mask is {KINDS} or a file, not {kind!r}")

    upper = torch.arange(height)[:, None] < height // 2
    left = torch.arange(width) < width // 2
    half = {"top": upper, "bottom": ~upper, "left": left, "right": ~left}[kind]
    return half.expand(n, 1, height, width).clone()


def _square_masks(
    n: int,
    height: int,
    width: int,
    side: int,
    generator: torch.Generator | None,
) -> Tensor:
    largest = min(height, width)
    if not 1 <= side <= largest:
        raise ValueError(f"side must be 1 ... {largest} for images {height}x{width}")

    top = torch.randint(height - side + 1, (n, 1, 1, 1), generator=generator)
    left = torch.randint(width - side + 1, (n, 1, 1, 1), generator=generator)
    row = torch.arange(height)[:, None]
    column = torch.arange(width)
    return (row >= top) & (row < top + side) & (column >= left) & (column < left + side)


def _noise_masks(
    n: int,
    height: int,
    width: int,
    share: float,
    generator: torch.Generator | None,
) -> Tensor:
    if not 0 <= share <= 1:
        raise ValueError("the fraction must be in [0, 1]")
    # Each pixel's place in a random order: (n, height · width).
    rank = torch.rand(n, height * width, generator=generator).argsort(1).argsort(1)
    return (rank < round(share * height * width)).reshape(n, 1, height, width)


def describe_mask(kind: str) -> str:
    """A kind in words."""
    name, _, size = kind.partition(":")
    if name == "noise":
        return f"{float(size):.0%} of the pixels missing at random"
    if name == "square":
        return f"square holes of {size} x {size} pixels"
    return f"{kind} half missing" if kind in HALVES else f"the mask {kind}"
