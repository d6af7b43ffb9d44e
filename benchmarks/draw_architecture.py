"""Draws what the Glow consists of, and a hole's way through the inpainter.

    python -m benchmarks.draw_architecture

Writes   figures/architecture.png
Takes    three seconds
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from benchmarks.about import add_figures_flag
from flowlib.cli import Parser, one_line_errors
from flowlib.files import save_figure

# Fills that stay apart for the colour-blind, in black and white too.
DATA = "#FFFFFF"
STEP = "#FBE0B5"
LATENT = "#A9D3EE"
LINE = "#333333"
HEIGHT = 0.95  # of a box, inches

# ---------------------------------------------------------------- pieces


def box(panel, x: float, y: float, width: float, text: str, color: str) -> None:
    """A box around the point (x, y), in inches, with text in it."""
    corner = (x - width / 2, y - HEIGHT / 2)
    style = dict(boxstyle="round,pad=0,rounding_size=0.08", linewidth=1)
    panel.add_patch(
        FancyBboxPatch(corner, width, HEIGHT, facecolor=color, edgecolor=LINE, **style)
    )
    panel.text(x, y, text, ha="center", va="center", fontsize=9, linespacing=1.25)


def arrow(panel, start: tuple, end: tuple) -> None:
    """An arrow from one point to another."""
    style = dict(arrowstyle="-|>", mutation_scale=10, color=LINE, linewidth=1.1)
    panel.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))


def picture(panel, x: float, y: float, image: np.ndarray, side: float = 0.8) -> None:
    """A small picture around (x, y); nan is drawn as a hole."""
    shown = np.ma.masked_invalid(image)
    frame = (x - side / 2, x + side / 2, y - side / 2, y + side / 2)
    colors = dict(cmap="gray", vmin=0, vmax=16)
    drawn = panel.imshow(shown, extent=frame, zorder=2, **colors)
    drawn.cmap.set_bad("#D55E00")


def similar(images: np.ndarray, holed: np.ndarray, count: int) -> np.ndarray:
    """The images that are most similar where the pixels are observed."""
    distance = np.nansum((images - holed) ** 2, axis=(1, 2))
    return images[distance.argsort()[1 : 1 + count]]  # the first one is the truth


# ---------------------------------------------------------------- the two rows


def draw_glow(panel, y: float, image: np.ndarray) -> None:
    """An image's way to its latents."""
    panel.text(
        0.1, y + 0.72, "The Glow: a density of images", fontsize=11, weight="bold"
    )
    picture(panel, 0.55, y, image)
    panel.text(0.55, y - 0.5, "image", ha="center", va="top", fontsize=9)
    box(panel, 1.8, y, 1.05, "dequantizer:\nadds noise\ninside a grey\nlevel", STEP)
    box(panel, 3.0, y, 0.75, "v\nin (0, 1)", DATA)
    box(panel, 4.0, y, 0.65, "logit", STEP)
    box(panel, 5.2, y, 1.15, "level 1:\nblocks on\n4 × 14 × 14", STEP)
    box(panel, 6.45, y, 0.75, "split", STEP)
    box(panel, 7.8, y, 1.15, "level 2:\nblocks on\n8 × 7 × 7", STEP)
    box(panel, 9.3, y, 1.1, "latents z\n8 × 7 × 7,\nnormal", LATENT)
    ends = (0.95, 1.275, 2.325, 2.625, 3.375, 3.675, 4.325, 4.625)
    ends += (5.775, 6.075, 6.825, 7.225, 8.375, 8.75)
    for start, end in zip(ends[::2], ends[1::2]):
        arrow(panel, (start, y), (end, y))

    # Half of the channels leave at the split.
    below = y - 1.25
    arrow(panel, (6.45, y - HEIGHT / 2), (6.45, below + HEIGHT / 2))
    box(
        panel,
        6.45,
        below,
        1.5,
        "latents z\n2 × 14 × 14, normal\ngiven the rest",
        LATENT,
    )
    block = "A block: ActNorm, 1 × 1 convolution, spline coupling."
    way = "Read backwards, from z to the image, it samples. Sizes are MNIST's."
    panel.text(0.1, below, f"{block}\n{way}", va="center", fontsize=9, linespacing=1.4)


def draw_inpainter(panel, y: float, images: np.ndarray, truth: np.ndarray) -> None:
    """A hole's way to the plausible fills and the MAP estimate."""
    title = "A hole's way through the inpainter"
    panel.text(0.1, y + 0.72, title, fontsize=11, weight="bold")
    holed = truth.copy()
    holed[3:7, 2:6] = np.nan
    picture(panel, 0.55, y, holed)
    panel.text(0.55, y - 0.5, "image with\na hole", ha="center", va="top", fontsize=9)

    for i, image in enumerate(similar(images, holed, 4)):
        dx, dy = (i % 2 - 0.5) * 0.5, (0.5 - i // 2) * 0.5
        picture(panel, 2.0 + dx, y + dy, image, side=0.45)
    label = "similar training\nimages"
    panel.text(2.0, y - 0.55, label, ha="center", va="top", fontsize=9)

    box(
        panel,
        4.0,
        y,
        1.55,
        "refine: patches of\none another, short\nascents of log p",
        STEP,
    )
    box(panel, 6.45, y, 1.55, "noise, as wide as\nlog p allows", STEP)
    box(panel, 9.0, y, 1.5, "12 fills: their\nmean, intervals,\nwhich digit", LATENT)
    arrow(panel, (0.95, y), (1.45, y))
    arrow(panel, (2.55, y), (3.225, y))
    arrow(panel, (4.775, y), (5.675, y))
    arrow(panel, (7.225, y), (8.25, y))

    # The MAP estimate beside it.
    below = y - 1.4
    box(panel, 6.45, below, 1.55, "ascent of log p,\nthe likelier of\ntwo starts", STEP)
    box(
        panel,
        9.0,
        below,
        1.5,
        "MAP estimate: one\nfill, the likeliest,\noften black",
        LATENT,
    )
    arrow(panel, (7.225, below), (8.25, below))
    picture(panel, 4.0, below, np.nan_to_num(holed))
    arrow(panel, (4.45, below), (5.675, below))
    label = "start 1:\na black hole"
    panel.text(3.5, below, label, ha="right", va="center", fontsize=9)
    panel.plot(
        [8.6, 8.6, 7.0, 7.0], [y - 0.475, y - 0.7, y - 0.7, y - 0.75], color=LINE
    )
    arrow(panel, (7.0, y - 0.7), (7.0, below + HEIGHT / 2))
    panel.text(
        7.8, y - 0.68, "start 2: the likeliest", va="bottom", ha="center", fontsize=9
    )
    note = "Each step asks the Glow\nfor log p and its gradient."
    panel.text(0.1, below - 0.2, note, va="center", fontsize=9, linespacing=1.4)


def draw_architecture() -> Figure:
    """Both rows."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    truth = images[12]
    figure = Figure(figsize=(10, 5.6))
    panel = figure.add_axes((0, 0, 1, 1))
    draw_glow(panel, 4.55, truth)
    draw_inpainter(panel, 1.95, images, truth)
    panel.set(xlim=(0, 10), ylim=(0, 5.6), aspect="equal")
    panel.set_axis_off()
    return figure


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_figures_flag(parser)
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    save_figure(draw_architecture(), args.figures, "architecture.png")


if __name__ == "__main__":
    main()
