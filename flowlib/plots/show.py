"""What the sliders of the Glow's notebook show: samples, and lines between images."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from flowlib.images.glow import Glow
from flowlib.plots.glow import draw_images
from flowlib.rng import rng


def show_temperature(glow: Glow, temperature: float = 1.0) -> Figure:
    """Sixteen samples at a temperature; their noise is always the same."""
    v = glow.sample(16, rng(0, "temperature"), temperature)
    return _draw(glow, v.unflatten(0, (2, 8)))


@torch.no_grad()
def show_line(
    glow: Glow,
    images: Tensor,
    first: int = 0,
    last: int = 1,
    place: float = 0.5,
) -> Figure:
    """A point on the line between the latents of two of the images (N, 1, H, W).

    `place` is 0 at the first image and 1 at the last.
    """
    latents, _ = glow.encode(glow.dequantize(images[[first, last]], rng(0, "line")))
    between = [torch.lerp(z[:1], z[1:], place) for z in latents]
    v, _ = glow.decode(between)
    return _draw(glow, v[None])


def _draw(glow: Glow, v: Tensor) -> Figure:
    """Images v (rows, columns, 1, H, W)."""
    rows, columns = v.shape[:2]
    figure = Figure(figsize=(columns, rows), layout="constrained")
    draw_images(figure.subplots(), glow.quantize(v).squeeze(2), glow.levels)
    return figure
