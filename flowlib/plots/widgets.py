"""Widgets for the notebooks: move a slider or press a button, and see what the flow makes of it.

Each function returns an ipywidgets box, which a notebook shows. Its picture is the PNG
of a figure.
"""

import io

import ipywidgets
import torch
from ipywidgets import Button, HBox, Image, IntProgress, IntSlider, VBox
from matplotlib.figure import Figure
from torch import Tensor

from flowlib.images.glow import Glow
from flowlib.inpainting.fill import Problem, Truth
from flowlib.inpainting.inpainter import Inpainter
from flowlib.plots.glow import draw_images
from flowlib.plots.inpainting import HOLE_COLOR, plot_fills
from flowlib.rng import rng


def explore_holes(inpainter: Inpainter, images: Tensor) -> VBox:
    """Choose one of the images (N, 1, H, W), move and size the hole, and press the button."""
    height, width = images.shape[2:]
    image = IntSlider(0, 0, len(images) - 1, description="image")
    side = IntSlider(height // 2, 1, height, description="side")
    top = IntSlider(height // 4, 0, height - 1, description="top")
    left = IntSlider(width // 4, 0, width - 1, description="left")
    button, bar = Button(description="fill the hole"), IntProgress()
    picture = Image()

    def problem(truth: Truth | None = None) -> Problem:
        i = image.value
        mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
        mask[
            ...,
            top.value : top.value + side.value,
            left.value : left.value + side.value,
        ] = True
        return Problem.cut(images[[i]], mask, [i], truth)

    def show_hole(_=None) -> None:
        one, figure = problem(), Figure(figsize=(2, 2), layout="constrained")
        grey = one.masked[0] / (inpainter.glow.levels - 1)  # (1, H, W)
        panel = figure.subplots()
        panel.imshow(
            torch.where(one.mask[0], HOLE_COLOR, grey).permute(1, 2, 0).numpy()
        )
        panel.set_axis_off()
        picture.layout.width, picture.value = "200px", to_png(figure)

    def fill(_) -> None:
        button.disabled, bar.value, bar.max = True, 0, inpainter.settings.work()

        def progress(work: int) -> None:
            bar.value += work

        one = problem(inpainter.truth(images[[image.value]], [image.value]))
        figure = plot_fills(
            {f"image {image.value}": (one, inpainter.fill(one, progress))}
        )
        picture.layout.width, picture.value = "900px", to_png(figure)
        button.disabled = False

    for slider in (image, side, top, left):
        slider.observe(show_hole, "value")
    button.on_click(fill)
    show_hole()
    return VBox([HBox([image, side]), HBox([top, left]), HBox([button, bar]), picture])


def explore_line(glow: Glow, images: Tensor) -> VBox:
    """Choose two of the images (N, 1, H, W), and walk from one's latents to the other's."""
    last = len(images) - 1
    ends = [
        IntSlider(i, 0, last, description=word) for i, word in ((0, "from"), (1, "to"))
    ]
    place = ipywidgets.FloatSlider(0.5, min=0, max=1, step=0.05, description="place")
    picture = Image(layout={"width": "200px"})

    @torch.no_grad()
    def show(_=None) -> None:
        pair = images[[end.value for end in ends]]
        latents, _ = glow.encode(glow.dequantize(pair, rng(0, "line")))
        between = [torch.lerp(z[:1], z[1:], place.value) for z in latents]
        picture.value = to_png(draw(glow, glow.decode(between)[0], 1))

    for slider in (*ends, place):
        slider.observe(show, "value")
    show()
    return VBox([HBox(ends), place, picture])


def explore_temperature(glow: Glow) -> VBox:
    """Choose the temperature of sixteen samples; their noise stays the same."""
    slider = ipywidgets.FloatSlider(
        1.0, min=0.1, max=1.5, step=0.05, description="temperature"
    )
    picture = Image(layout={"width": "800px"})

    def show(_=None) -> None:
        picture.value = to_png(
            draw(glow, glow.sample(16, rng(0, "temperature"), slider.value), 8)
        )

    slider.observe(show, "value")
    show()
    return VBox([slider, picture])


def draw(glow: Glow, v: Tensor, columns: int) -> Figure:
    """Images v (N, 1, H, W) in rows of some columns."""
    figure = Figure(figsize=(columns, len(v) / columns), layout="constrained")
    grey = glow.quantize(v)[:, 0].unflatten(0, (-1, columns))  # (rows, columns, H, W)
    draw_images(figure.subplots(), grey, glow.levels)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
