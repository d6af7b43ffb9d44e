"""Masks: True where a pixel is missing."""

import torch
from torch import Tensor

HALVES = ("top", "bottom", "left", "right")


def square_masks(n: int, height: int, width: int, side: int, generator: torch.Generator | None = None) -> Tensor:
    """n masks, bool (n, 1, height, width), each missing (True) in one side x side square at a uniformly random place.

    Raises:
        ValueError: if the square does not fit into the image, or side or n is not positive.
    """
    if n < 1 or not 1 <= side <= min(height, width):
        raise ValueError(f"side must be 1 ... {min(height, width)} for images of {height}x{width}, and n positive; not side={side}, n={n}")
    top = torch.randint(height - side + 1, (n, 1, 1, 1), generator=generator)
    left = torch.randint(width - side + 1, (n, 1, 1, 1), generator=generator)
    row, column = torch.arange(height)[:, None], torch.arange(width)
    return (row >= top) & (row < top + side) & (column >= left) & (column < left + side)


def noise_masks(n: int, height: int, width: int, fraction: float, generator: torch.Generator | None = None) -> Tensor:
    """n masks, bool (n, 1, height, width), each missing (True) in exactly round(fraction · height · width) pixels at random places.

    Raises:
        ValueError: if fraction is not in [0, 1], or n is not positive.
    """
    if n < 1 or not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1] and n positive, not fraction={fraction}, n={n}")
    rank = torch.rand(n, height * width, generator=generator).argsort(dim=1).argsort(dim=1)
    return (rank < round(fraction * height * width)).reshape(n, 1, height, width)


def half_masks(n: int, height: int, width: int, side: str) -> Tensor:
    """n masks, bool (n, 1, height, width), each missing (True) in one half of the image: "top", "bottom", "left" or "right".

    Raises:
        ValueError: if side is none of them.
    """
    if side not in HALVES:
        raise ValueError(f"side must be one of {', '.join(HALVES)}, not {side!r}")
    mask = torch.zeros(n, 1, height, width, dtype=torch.bool)
    rows, columns = slice(0, height // 2), slice(0, width // 2)
    if side in ("bottom", "right"):
        rows, columns = slice(height // 2, None), slice(width // 2, None)
    if side in ("top", "bottom"):
        mask[:, :, rows] = True
    else:
        mask[..., columns] = True
    return mask


def make_masks(spec: str, n: int, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """n masks, bool (n, 1, height, width), by name: "square:14", "noise:0.5", or "top", "bottom", "left" or "right" for that half.

    Raises:
        ValueError: if the name cannot be understood, or such a hole does not fit.
    """
    kind, _, size = spec.partition(":")
    try:
        if kind == "square":
            return square_masks(n, height, width, int(size), generator)
        if kind == "noise":
            return noise_masks(n, height, width, float(size), generator)
        if spec in HALVES:
            return half_masks(n, height, width, spec)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from None
    raise ValueError(f"a mask is square:SIDE, noise:FRACTION, {', '.join(HALVES)} or a file, not {spec!r}")


def describe_mask(spec: str) -> str:
    """A mask's name in words."""
    kind, _, size = spec.partition(":")
    if kind == "noise":
        return f"{float(size):.0%} of the pixels missing at random"
    return f"square holes of {size} x {size} pixels" if kind == "square" else f"the {spec} half missing"
