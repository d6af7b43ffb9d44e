"""The figures of inpaint.py and of the calibration: filled holes side by side, and whether the intervals cover what they promise."""

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from flowlib.inpainting.scores import COVERAGES, inside

HOLE_COLOUR = (1.0, 0.55, 0.1)


def rgb(grey: Tensor) -> Tensor:
    """(1, H, W) in [0, 1] -> (3, H, W)."""
    return grey.float().clamp(0, 1).expand(3, -1, -1)


def heat(values: Tensor) -> Tensor:
    """(1, H, W) in [0, 1] -> (3, H, W), black to bright yellow."""
    return torch.from_numpy(matplotlib.colormaps["inferno"](values[0].clamp(0, 1).numpy())[..., :3]).permute(2, 0, 1).float()


def row_of(result: dict[str, Tensor], i: int, levels: int, samples: int) -> list[tuple[str, Tensor, str]]:
    """What the figure shows of one image: (title, picture (3, H, W), caption) from left to right."""
    top = levels - 1
    hole = torch.tensor(HOLE_COLOUR).reshape(3, 1, 1)
    cells = []
    if "truth" in result:
        cells.append(("truth", rgb(result["truth"][i] / top), ""))
    cells.append(("masked", torch.where(result["mask"][i], hole, rgb(result["masked"][i] / top)), ""))
    above = "map_log_prob" in result and "truth_log_prob" in result
    gap = f"{result['map_log_prob'][i] - result['truth_log_prob'][i]:+,.0f}" if above else f"{result['map_log_prob'][i]:,.0f}"
    cells.append(("MAP", rgb(result["map"][i] / top), gap))
    cells.append(("posterior\nmean", rgb(result["samples"][i].float().mean(0) / top), digits_in_words(result, i)))
    for k in range(samples):
        cells.append(("samples" if k == samples // 2 else "", rgb(result["samples"][i, k] / top), ""))
    cells.append(("uncertainty", heat((result["high"][i] - result["low"][i]) / top), ""))
    return cells


def digits_in_words(result: dict[str, Tensor], i: int, least: float = 0.15) -> str:
    """The digits that the samples are, the likeliest first: "4 62%  9 31%"."""
    if "digits" not in result:
        return ""
    chance, digit = result["digits"][i].sort(descending=True)
    return "  ".join(f"{d}: {p:.0%}" for p, d in zip(chance.tolist(), digit.tolist()) if p >= least)


def inpainting_figure(results: dict[str, dict[str, Tensor]], levels: int, title: str, most: int = 8, samples: int = 5) -> Figure:
    """A panel for each kind of hole, a row for each image: truth, masked, MAP, posterior mean, samples, uncertainty.

    `results` are those of `inpaint.fill`; the samples shown come from different runs.
    """
    rows = min(most, max(len(result["mask"]) for result in results.values()))
    samples = min([samples, *(result["samples"].shape[1] for result in results.values())])
    columns = [row_of(result, 0, levels, samples) for result in results.values()]
    width = sum(len(cells) for cells in columns)
    figure = Figure(figsize=(0.72 * width + 0.4, 0.84 * rows + 1.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for panel, (name, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items()):
        count = min(rows, len(result["mask"]))
        grid = [row_of(result, i, levels, samples) for i in range(count)]
        _, height, cell = grid[0][0][1].shape
        lines, gap = max(2, height // 4), max(1, cell // 9)  # room for the captions, and between two images, in pixels
        canvas = torch.ones(3, count * (height + lines), len(grid[0]) * (cell + gap))
        for i, cells in enumerate(grid):
            for j, (heading, picture, caption) in enumerate(cells):
                top, left = i * (height + lines), j * (cell + gap)
                canvas[:, top : top + height, left : left + cell] = picture
                panel.text(left + cell / 2, top + height - 0.3, caption, ha="center", va="top", fontsize=6)
                if i == 0:
                    panel.text(left + cell / 2, -cell / 20, heading, ha="center", va="bottom", fontsize=8)
        panel.imshow(canvas.permute(1, 2, 0).numpy(), interpolation="nearest")
        panel.set_title(name, fontsize=10, pad=26)
        panel.set_axis_off()
    return figure


def calibration_figure(ranks: dict[str, Tensor]) -> Figure:
    """For each set of ranks of the truth among the samples (in (0, 1)): their histogram, and how much the intervals cover."""
    figure = Figure(figsize=(3.1 * (len(ranks) + 1), 3.2), layout="constrained")
    figure.suptitle("Calibration: where the truth stands among the posterior's samples, missing pixel by missing pixel", fontsize=11)
    *panels, last = figure.subplots(1, len(ranks) + 1)
    promised = torch.linspace(0, 1, 101)
    last.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    for panel, (name, values) in zip(panels, ranks.items()):
        panel.hist(values.numpy(), bins=20, range=(0, 1), density=True, color="tab:blue", alpha=0.8)
        panel.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        panel.set(title=name, xlabel="rank of the truth", yticks=[0, 1], xlim=(0, 1))
        panel.title.set_fontsize(9)
        covered = [inside(values, c).float().mean().item() for c in promised.tolist()]
        (line,) = last.plot(promised.numpy(), covered, linewidth=1.3, label=name.replace("\n", " "))
        marks = [inside(values, c).float().mean().item() for c in COVERAGES]
        last.plot(COVERAGES, marks, "o", markersize=3, color=line.get_color())
    panels[0].set_ylabel("density (dashed: calibrated)")
    highest = max(panel.get_ylim()[1] for panel in panels)
    for panel in panels:
        panel.set_ylim(0, highest)
    last.set(title="intervals", xlabel="promised", ylabel="covered", xlim=(0, 1), ylim=(0, 1))
    last.title.set_fontsize(9)
    last.legend(fontsize=6)
    for panel in (*panels, last):
        panel.spines[["top", "right"]].set_visible(False)
    return figure
