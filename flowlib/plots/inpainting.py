"""The figure of inpaint.py."""

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flowlib.inpainting.fill import Fill, Problem

HOLE_COLOR = torch.tensor([1.0, 0.55, 0.1]).reshape(3, 1, 1)
FONT = 9  # points


def plot_fills(
    results: dict[str, tuple[Problem, Fill]],
    title: str = "",
    rows: int = 4,
    samples: int = 5,
) -> Figure:
    """A panel for each kind of hole, one under the other, and in it a row for each image.

    A row shows the truth where it is known, the masked image, the MAP estimate, the
    samples' mean, some samples, and the width of the 90 % intervals. Below the MAP
    estimate is its log p, minus the truth's where that is known. Below the mean is
    which digits the samples are, below the uncertainty how far the chains have
    travelled.
    """
    tables = {}
    for kind, (problem, fill) in results.items():
        shown = range(min(rows, len(problem)))
        tables[kind] = [describe_fill(problem[[i]], fill[[i]], samples) for i in shown]
    columns = max(len(table[0]) for table in tables.values())
    lines = sum(len(table) for table in tables.values())
    heights = [len(table) for table in tables.values()]
    size = (10, 1.17 * 10 / columns * lines + 0.7 * len(tables) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=FONT + 1)
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (kind, table) in zip(panels, tables.items()):
        draw_table(panel, table)
        style = {
            "fontsize": FONT + 2,
            "pad": 22,
            "fontweight": "bold",
            "parse_math": False,
        }
        panel.set_title(kind, **style)  # a picture's name may have a $ in it
    return figure


def describe_fill(
    problem: Problem, fill: Fill, samples: int
) -> list[tuple[str, Tensor, str]]:
    """What the figure shows of a single image: (heading, picture (3, H, W), caption) each."""
    masked = fill.grey(fill.masked)[0].expand(3, -1, -1)
    cells = [("masked", torch.where(fill.mask[0], HOLE_COLOR, masked), "")]
    gap = f"log p {fill.map_log_prob[0]:,.0f}"
    if problem.truth is not None:
        cells.insert(0, ("truth", problem.truth.grey[0].expand(3, -1, -1), ""))
        gap = f"{fill.map_log_prob[0] - problem.truth.log_prob[0]:+,.0f} nats"
    cells.append(("MAP", fill.grey(fill.map)[0].expand(3, -1, -1), gap))
    cells.append(("mean", fill.mean()[0].expand(3, -1, -1), fill.describe_digits(0)))
    for k, sample in enumerate(fill.grey(fill.samples)[0, :samples], 1):
        cells.append((f"sample {k}", sample.expand(3, -1, -1), ""))
    low, high = fill.interval(0.9)
    colors = matplotlib.colormaps["inferno"]((high - low)[0, 0].clamp(0, 1).numpy())[
        ..., :3
    ]
    width, far = torch.from_numpy(colors).permute(2, 0, 1).float(), fill.travelled[0]
    cells.append(("uncertainty", width, f"travelled {far:.3f}"))
    return cells


def draw_table(panel: Axes, table: list[list[tuple[str, Tensor, str]]]) -> None:
    """Draws rows of pictures as one image, with headings above and captions below them."""
    _, height, width = table[0][0][1].shape
    line, gap = max(2, round(0.24 * height)), max(1, width // 10)  # pixels
    canvas = torch.ones(
        3, len(table) * (height + line), len(table[0]) * (width + gap) - gap
    )
    for i, row in enumerate(table):
        for j, (heading, picture, caption) in enumerate(row):
            top, left = i * (height + line), j * (width + gap)
            canvas[:, top : top + height, left : left + width] = picture
            place = {"x": left + width / 2 - 0.5, "ha": "center", "fontsize": FONT}
            panel.text(y=top + height, s=caption, va="top", **place)
            if i == 0:
                panel.text(y=-1, s=heading, va="bottom", **place)
    panel.imshow(canvas.permute(1, 2, 0).numpy(), interpolation="nearest")
    panel.set_axis_off()
