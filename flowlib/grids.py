"""Densities on a grid."""

import math

import torch
from torch import Tensor

Bounds = tuple[float, float, float, float]  # left, right, bottom, top


def grid_axes(bounds: Bounds, spacing: float) -> tuple[Tensor, Tensor]:
    """The x and y coordinates, float64, of the midpoints of a grid whose cells are at most `spacing` wide."""
    left, right, bottom, top = bounds
    axes = []
    for low, high in ((left, right), (bottom, top)):
        cells = max(2, math.ceil((high - low) / spacing))
        axes.append(low + (torch.arange(cells, dtype=torch.float64) + 0.5) * (high - low) / cells)
    return axes[0], axes[1]


def grid(bounds: Bounds, spacing: float) -> tuple[Tensor, float]:
    """The midpoints of that grid, (N, 2), x running fastest, and the area of a cell."""
    x, y = grid_axes(bounds, spacing)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
    return points, float((x[1] - x[0]) * (y[1] - y[0]))


def normalised(log_density: Tensor, grid: Tensor) -> Tensor:
    """Shifted so that its exponential integrates to one over the grid; in logarithms, so that nothing underflows."""
    log_density = log_density - log_density.max()
    return log_density - torch.trapezoid(log_density.exp(), grid).log()


def modes(density: Tensor, least: float = 1e-2) -> list[int]:
    """Where a density on a grid has local maxima of at least `least` times its highest value: indices."""
    inner, left, right = density[1:-1], density[:-2], density[2:]
    return (1 + torch.nonzero((inner > left) & (inner >= right) & (inner > least * density.max())).flatten()).tolist()


def mode_around(density: Tensor, grid: Tensor, at: float) -> slice:
    """The part of the grid between the two valleys of the density that `at` lies between."""
    tops = modes(density)
    valleys = [left + int(density[left:right].argmin()) for left, right in zip(tops, tops[1:])]
    edges = [0, *valleys, len(grid) - 1]
    i = sum(bool(grid[valley] < at) for valley in valleys)
    return slice(edges[i], edges[i + 1] + 1)
