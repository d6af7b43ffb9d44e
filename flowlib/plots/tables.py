"""The figure of a table's gaps: what each missing cell may hold."""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from flowlib.tables.mixture import standardize
from flowlib.tables.new_rows import SAMPLES

BLUE = "#0072B2"
ORANGE = "#D55E00"
MOST = 12  # gaps in a figure
INTERVAL = (0.05, 0.95)  # where a central 90 % interval begins and ends


def plot_gaps(
    samples: Tensor,
    gaps: Tensor,
    train: Tensor,
    names: list[str],
    truth: Tensor | None = None,
) -> Figure:
    """Samples and 90 % intervals of the first gaps, over the range of their columns.

    Args:
        samples: (N, S, D), of rows with their gaps filled; SAMPLES of each are shown.
        gaps: (N, D) bool, True where a cell was missing.
        train: (M, D), the rows that were fitted.
        names: the columns'.
        truth: (N, D), what was there, if it is known.
    """
    cells = gaps.nonzero()[:MOST].tolist()
    scale = standardize(train)
    known = scale(train.double())[0].numpy()
    found = scale(samples)[0].numpy()
    if truth is not None:
        truth = scale(truth)[0]
    size = (7, 1.3 + 0.27 * len(cells))
    figure = Figure(figsize=size, layout="constrained")
    panel = figure.subplots()

    labels = []
    for place, (row, column) in enumerate(cells):
        ends = np.quantile(known[:, column], INTERVAL)
        panel.hlines(place, *ends, color="0.85", linewidth=9)
        fills = found[row, :, column]
        ends = np.quantile(fills, INTERVAL)
        panel.hlines(place, *ends, color=BLUE, linewidth=1.2)
        dots = fills[:SAMPLES]
        panel.plot(dots, [place] * len(dots), ".", color=BLUE, markersize=5)
        if truth is not None:
            panel.plot(truth[row, column], place, "x", color=ORANGE, markersize=7)
        labels.append(f"row {row + 1}, {names[column]}".replace("$", r"\$"))

    panel.set_yticks(range(len(cells)), labels, fontsize=9)
    panel.invert_yaxis()
    panel.set_xlabel("standard deviations of the column, from its mean")
    cross = "" if truth is None else "; cross: what was there"
    panel.set_title(
        f"Missing cells: {SAMPLES} samples and the 90 % interval{cross}\n"
        "(gray: 90 % of the column, the rest of the row unknown)",
        fontsize=10,
    )
    panel.grid(axis="x", alpha=0.3)
    return figure
