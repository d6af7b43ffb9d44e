"""The figures of inpaint.py and of its notebook: masks and what fills them."""

from functools import partial

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flowlib.inpainting.fill import Fill, Problem
from flowlib.inpainting.inpainter import Inpainter

MASK_COLOR = torch.tensor([1.0, 0.55, 0.1]).reshape(3, 1, 1)
FONT = 9  # points
ROWS = 4  # images, at most
FILLS = 5  # of each image, at most
Cell = tuple[str, Tensor, str]  # heading, picture (3, H, W) or (1, H, W), caption


def plot_fills(fills: dict[str, Fill], title: str = "") -> Figure:
    """A panel for each entry, one under the other, and in it a row for each image.

    A row shows the truth where it is known, the masked image, the MAP estimate, the
    mean of the plausible fills, some of them, and the width of their 90 % intervals.
    Below the MAP estimate is its log p, minus the truth's where that is known. Below
    the mean is which digits the fills are.
    """
    tables = {}
    for name, fill in fills.items():
        rows = range(len(fill))[:ROWS]
        tables[name] = [describe_fill(fill[[i]]) for i in rows]
    heights = [len(table) for table in tables.values()]
    columns = max(len(table[0]) for table in tables.values())

    height = 11.7 / columns * sum(heights) + 0.7 * len(tables) + 0.4
    figure = Figure(figsize=(10, height), layout="constrained")
    gap = "log p minus the truth's" if fill.problem.truth else "log p in nats"
    legend = f"Orange: missing. Below: {gap}; which digits the fills are."
    figure.suptitle(f"{title}\n{legend}".strip(), fontsize=FONT + 1)

    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)
    for panel, (name, table) in zip(panels[:, 0], tables.items()):
        draw_table(panel, table)
        panel.set_title(
            name,
            fontsize=FONT + 2,
            fontweight="bold",
            pad=22,
            parse_math=False,  # a name may have a $ in it
        )
    return figure


def describe_fill(fill: Fill) -> list[Cell]:
    """What the figure shows of a single image."""
    problem = fill.problem
    truth = problem.truth
    masked = torch.where(problem.mask, MASK_COLOR, fill.grey(problem.masked))
    cells = []
    gap = f"log p {fill.map_log_prob[0]:,.0f}"
    if truth is not None:
        cells.append(("truth", truth.grey[0], ""))
        gap = f"{fill.map_log_prob[0] - truth.log_prob[0]:+,.0f} nats"

    cells += [
        ("masked", masked[0], ""),
        ("MAP", fill.grey(fill.map)[0], gap),
        ("mean", fill.mean()[0], fill.describe_digits(0)),
    ]
    for k, plausible in enumerate(fill.grey(fill.plausible)[0, :FILLS], 1):
        cells.append((f"fill {k}", plausible, ""))

    low, high = fill.interval(0.9)
    colors = matplotlib.colormaps["inferno"]((high - low)[0, 0].clamp(0, 1).numpy())
    width = torch.from_numpy(colors[..., :3]).movedim(2, 0)  # (3, H, W)
    cells.append(("uncertainty", width, ""))
    return cells


def draw_table(panel: Axes, table: list[list[Cell]]) -> None:
    """Draws rows of pictures as one image, headings above and captions below."""
    _, height, width = table[0][0][1].shape
    line = max(2, round(0.24 * height))  # pixels, of a line of text
    gap = max(1, width // 10)
    rows = len(table) * (height + line)
    columns = len(table[0]) * (width + gap) - gap

    canvas = torch.ones(3, rows, columns)
    write = partial(panel.text, ha="center", fontsize=FONT)
    for i, row in enumerate(table):
        for j, (heading, picture, caption) in enumerate(row):
            top = i * (height + line)
            left = j * (width + gap)
            canvas[:, top : top + height, left : left + width] = picture
            middle = left + width / 2 - 0.5
            write(middle, top + height, caption, va="top")
            if i == 0:
                write(middle, -1, heading, va="bottom")

    panel.imshow(canvas.movedim(0, 2).numpy(), interpolation="nearest")
    panel.set_axis_off()


def show_mask(
    inpainter: Inpainter,
    images: Tensor,
    image: int,
    side: int,
    top: int,
    left: int,
) -> Figure:
    """One of the images (N, 1, H, W), with a square of missing pixels."""
    problem = _mask_square(images, image, side, top, left)
    grey = problem.masked / (inpainter.glow.levels - 1)
    masked = torch.where(problem.mask, MASK_COLOR, grey)[0]
    figure = Figure(figsize=(2, 2), layout="constrained")
    panel = figure.subplots()
    panel.imshow(masked.movedim(0, 2).numpy())
    panel.set_axis_off()
    return figure


def show_fill(
    inpainter: Inpainter,
    images: Tensor,
    image: int,
    side: int,
    top: int,
    left: int,
) -> Figure:
    """The same, and what fills it."""
    problem = _mask_square(images, image, side, top, left)
    problem.truth = inpainter.truth(images[[image]], problem.seeds)
    return plot_fills({f"image {image}": inpainter.fill(problem, "filling")})


def _mask_square(images: Tensor, image: int, side: int, top: int, left: int) -> Problem:
    one = images[[image]]
    mask = torch.zeros(one.shape, dtype=torch.bool)
    mask[..., top : top + side, left : left + side] = True
    return Problem.cut(one, mask, [image])
