"""Where do the 2-D flows fail, and what does a MAP estimate leave out? Two figures answer.

    python benchmarks/moons_failures.py

reads the flows that train_moons.py has fitted here, otherwise those that are shipped.
One figure shows the log-ratio of their densities to the true one. The other is
inpainting in 2-D, where the exact answer is known: the distribution of one coordinate
given the other, the flows' own, and the value that maximizes the likelihood.

Writes   figures/density_error.png, figures/moons_conditional.png
Takes    about half a minute on one CPU core
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

# the modules lie one folder up
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from flowlib.cli import Parser, one_line_errors
from flowlib.files import ROOT, find_checkpoint, load_model, save_figure, short
from flowlib.grids import evaluate
from flowlib.inpainting.ascent import find_map
from flowlib.inpainting.density import HoleDensity
from flowlib.plots.moons import COLORS, TITLES, log_density, picture_grid
from flows2d import Flow
from train_moons import NOISE, make_shape

OBSERVED = ((0, -0.8), (0, 0.4), (1, 0.25))  # which coordinate, and its value

# ---------------------------------------------------------------- conditionals


class Conditional(NamedTuple):
    """The distribution of one coordinate given the other, on a grid.

    `flows` holds a dict for each flow: its `density`; `kl`, exact to flow in nats;
    `map`, the value of highest density; `mass`, the flow's share in the exact density's
    mode around that value.
    """

    observed: float
    missing: int  # 0 or 1
    grid: np.ndarray
    exact: np.ndarray  # density
    modes: int
    flows: dict[str, dict]


def find_conditional(flows: dict, truth, index: int, value: float) -> Conditional:
    """p(other coordinate | coordinate `index` is `value`) by the truth and by each flow.

    Args:
        flows: name -> flows2d.Flow in two dimensions.
        truth: a NoisyCurves of toy2d.py.
    """
    missing = 1 - index
    low, high = truth.bounds(8)[2 * missing : 2 * missing + 2]
    places = torch.linspace(low, high, 4001, dtype=torch.float64)
    points = torch.full((len(places), 2), value, dtype=torch.float64)
    points[:, missing] = places
    log_exact = normalize(truth.log_prob(points), places)
    exact, found = log_exact.exp(), {}
    for name, flow in flows.items():
        log_density = normalize(evaluate(flow.log_prob, points, flow.base_mean), places)
        # (1, 11, 2), all over the range
        starts = points[::400].to(flow.base_mean)[None]
        mask = torch.arange(2, device=flow.device)[None] == missing
        density = HoleDensity(flow.log_prob, starts[:, 0], mask, unit_interval=False)
        best = find_map(density, starts, steps=40, lr=0.1, final_lr=1e-3)[
            0, missing
        ].item()
        mode = mode_around(exact, places, best)
        kl = torch.trapezoid(exact * (log_exact - log_density), places).item()
        mass = torch.trapezoid(log_density.exp()[mode], places[mode]).item()
        found[name] = dict(
            density=log_density.exp().numpy(), kl=kl, map=best, mass=mass
        )
    modes = len(find_modes(exact))
    return Conditional(value, missing, places.numpy(), exact.numpy(), modes, found)


def normalize(log_density: Tensor, grid: Tensor) -> Tensor:
    """Shifted so that its exponential integrates to one over the grid, a vector of places."""
    log_density = log_density - log_density.max()  # so that nothing underflows
    return log_density - torch.trapezoid(log_density.exp(), grid).log()


def find_modes(density: Tensor, least: float = 1e-2) -> list[int]:
    """Where a density on a grid has local maxima of at least `least` times its highest value."""
    inner, left, right = density[1:-1], density[:-2], density[2:]
    tops = (inner > left) & (inner >= right) & (inner > least * density.max())
    return (1 + torch.nonzero(tops).flatten()).tolist()


def mode_around(density: Tensor, grid: Tensor, at: float) -> slice:
    """The part of the grid between the two valleys of the density that `at` lies between."""
    tops = find_modes(density)
    valleys = [
        left + int(density[left:right].argmin()) for left, right in zip(tops, tops[1:])
    ]
    edges = [0, *valleys, len(grid) - 1]
    i = sum(bool(grid[valley] < at) for valley in valleys)
    return slice(edges[i], edges[i + 1] + 1)


# ---------------------------------------------------------------- figures


def plot_errors(flows: dict[str, Flow], points) -> Figure:
    """Each flow's density, the true density and the log of their ratio; gray: both negligible."""
    bounds, x, y, where = picture_grid(points)
    truth = log_density(points.truth.log_prob, where)
    top = np.exp(truth.max())
    height = 1.8 + 5.8 * (bounds[3] - bounds[2]) / (bounds[1] - bounds[0])
    figure = Figure(figsize=(10, height), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    style = dict(extent=bounds, origin="lower", aspect="equal", interpolation="nearest")
    for row, (name, flow) in zip(panels, flows.items()):
        model = log_density(flow.log_prob, where, flow.base_mean)
        for panel, log_p, title in (
            (row[0], model, TITLES[name]),
            (row[1], truth, "truth"),
        ):
            density = panel.imshow(
                np.exp(log_p), cmap="viridis", vmin=0, vmax=top, **style
            )
            panel.set_title(title)
        visible = np.maximum(model, truth) > np.log(1e-3 * top)
        ratio = np.where(visible, np.clip(model - truth, -3, 3), np.nan)
        row[2].set_facecolor("0.85")
        error = row[2].imshow(
            ratio, cmap="RdBu_r", norm=TwoSlopeNorm(0, -3, 3), **style
        )
        row[2].set_title("log-ratio (red: flow too high)")
        row[0].set_ylabel("$x_2$")
    for panel in panels[-1]:
        panel.set_xlabel("$x_1$")
    bar = dict(location="bottom", aspect=30)
    figure.colorbar(density, ax=panels[:, :2], label="density", **bar)
    label = "log p_flow - log p_true (nats)"
    figure.colorbar(
        error, ax=panels[:, 2], label=label, extend="both", **bar | dict(aspect=15)
    )
    figure.suptitle(
        f"Where the flows fail on {points.title} (gray: both below 0.1 % of the maximum)"
    )
    return figure


def plot_conditionals(cases: list, points) -> Figure:
    """The missing coordinate given the other, in three inpainting.conditionals.Conditional."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    bounds, x, y, where = picture_grid(points)
    truth = np.exp(log_density(points.truth.log_prob, where))
    panels[0].contourf(x, y, truth, levels=8, cmap="Greys")
    for number, case in enumerate(cases, 1):
        upright = case.missing == 1
        draw_line = panels[0].axvline if upright else panels[0].axhline
        draw_line(case.observed, color="#D55E00", linewidth=1.5)
        at = (case.observed, bounds[3]) if upright else (bounds[1], case.observed)
        place = (
            dict(ha="center", va="bottom") if upright else dict(ha="left", va="center")
        )
        panels[0].annotate(f" {number} ", at, color="#D55E00", fontsize=12, **place)
        _plot_conditional(panels[number], number, case)
    title = "true density, and the observed coordinates (lines)\n"
    panels[0].set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title=title)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(
        "Inpainting in 2-D: the missing coordinate has a distribution, MAP is one value"
    )
    return figure


def _plot_conditional(panel, number: int, case) -> None:
    missing, observed = f"x_{case.missing + 1}", f"x_{2 - case.missing}"
    panel.plot(case.grid, case.exact, "--", color="black", label="exact", zorder=5)
    modes = f"{case.modes} mode{'s' if case.modes > 1 else ''}"
    title = f"{number}: ${observed} = {case.observed:g}$, {modes}"
    for name, found in case.flows.items():
        color, short = COLORS[name], TITLES[name].split()[0]
        height = np.interp(found["map"], case.grid, found["density"])
        panel.plot(case.grid, found["density"], color=color, label=TITLES[name])
        marker = dict(color=color, markersize=9, linestyle="", markeredgecolor="black")
        panel.plot(
            found["map"],
            height,
            "v",
            label=f"its MAP value ({short})",
            zorder=6,
            **marker,
        )
        share = f"the MAP value's mode holds {found['mass']:.0%}"
        title += f"\n{short}: KL {found['kl']:.4f} nats, {share}"
    panel.set(xlabel=f"${missing}$", ylabel=f"$p({missing} \\mid {observed})$")
    panel.set_title(title, fontsize=10)
    panel.set_ylim(0, 1.15 * float(case.exact.max()))


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument(
        "--figures", type=Path, default=ROOT / "figures", help="default figures/"
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    points = make_shape("moons", NOISE, 0)
    flows = {}
    for name in TITLES:
        file = find_checkpoint(f"moons_{name}.pt")
        flow = flows[name] = load_model(
            file, Flow, hint="`python train_moons.py` makes it"
        )
        print(
            f"{short(file)}, KL(truth || flow) {flow.metrics['kl_truth_flow']:.4f} nats"
        )

    save_figure(plot_errors(flows, points), args.figures, "density_error.png")
    cases = [find_conditional(flows, points.truth, *place) for place in OBSERVED]
    save_figure(plot_conditionals(cases, points), args.figures, "moons_conditional.png")


if __name__ == "__main__":
    main()
