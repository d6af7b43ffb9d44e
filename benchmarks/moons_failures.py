"""Where do the 2-D flows fail, and what does a MAP estimate leave out?

    python -m benchmarks.moons_failures

reads the flows that train_moons.py has fitted here, otherwise those that are shipped.
One figure shows the log-ratio of their densities to the true one. The other is
inpainting in 2-D, where the exact answer is known: the distribution of one coordinate
given the other, the flows' own, and the value that maximizes the likelihood.

Writes   figures/density_error.png, figures/moons_conditional.png
Takes    about half a minute on one CPU core
"""

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.about import add_figures_flag
from flowlib.cli import Parser, one_line_errors
from flowlib.files import find_checkpoint, load_model, save_figure, short
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
    """p(other coordinate | coordinate `index` is `value`), exact and by each flow.

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
    exact = log_exact.exp()
    found = {}
    for name, flow in flows.items():
        log_density = normalize(evaluate(flow.log_prob, points, flow), places)
        top = highest_place(flow, points.to(flow.device, flow.dtype), missing)

        # The mode that the MAP value lies in, and how much of the flow is there.
        mode = mode_around(exact, places, top)
        kl = torch.trapezoid(exact * (log_exact - log_density), places).item()
        mass = torch.trapezoid(log_density.exp()[mode], places[mode]).item()
        density = log_density.exp().numpy()
        found[name] = dict(density=density, kl=kl, map=top, mass=mass)

    modes = len(find_modes(exact))
    return Conditional(value, missing, places.numpy(), exact.numpy(), modes, found)


def highest_place(flow: Flow, points: Tensor, missing: int) -> float:
    """The MAP value of coordinate `missing`; `points` (N, 2) are all over its range."""
    starts = points[::400][None]  # (1, N / 400, 2)
    mask = torch.arange(2, device=points.device)[None] == missing
    density = HoleDensity(flow.log_prob, starts[:, 0], mask, unit_interval=False)
    found = find_map(density, starts, steps=40, lr=0.1, final_lr=1e-3)  # (1, 2)
    return found[0, missing].item()


def normalize(log_density: Tensor, grid: Tensor) -> Tensor:
    """Shifted so that its exponential integrates to one over the grid, (N,) places."""
    # The highest value is 0 now, so that nothing underflows.
    log_density = log_density - log_density.max()
    return log_density - torch.trapezoid(log_density.exp(), grid).log()


def find_modes(density: Tensor, least: float = 1e-2) -> list[int]:
    """Where a density on a grid has maxima of at least `least` times the highest."""
    inner, left, right = density[1:-1], density[:-2], density[2:]
    tops = (inner > left) & (inner >= right) & (inner > least * density.max())
    return (1 + torch.nonzero(tops).flatten()).tolist()


def mode_around(density: Tensor, grid: Tensor, at: float) -> slice:
    """The part of the grid between the two valleys of the density around `at`."""
    tops = find_modes(density)
    valleys = []
    for left, right in zip(tops, tops[1:]):
        valleys.append(left + int(density[left:right].argmin()))

    edges = [0, *valleys, len(grid) - 1]
    i = sum(bool(grid[valley] < at) for valley in valleys)
    return slice(edges[i], edges[i + 1] + 1)


# ---------------------------------------------------------------- figures


def plot_errors(flows: dict[str, Flow], points) -> Figure:
    """Each flow's density, the true one and the log of their ratio.

    `flows` is a flow for each title of a row.
    """
    bounds, _, _, where = picture_grid(points)
    truth = log_density(points.truth.log_prob, where)
    top = np.exp(truth.max())
    ratio = (bounds[3] - bounds[2]) / (bounds[1] - bounds[0])
    height = 1.8 + 2.9 * ratio * len(flows)
    figure = Figure(figsize=(10, height), layout="constrained")
    panels = figure.subplots(len(flows), 3, sharex=True, sharey=True)
    style = dict(extent=bounds, origin="lower", aspect="equal", interpolation="nearest")
    heights = dict(cmap="viridis", vmin=0, vmax=top) | style

    for row, (title, flow) in zip(panels, flows.items()):
        model = log_density(flow.log_prob, where, flow)
        row[0].imshow(np.exp(model), **heights)
        row[0].set_title(title)
        row[0].set_ylabel("$x_2$")
        density = row[1].imshow(np.exp(truth), **heights)
        row[1].set_title("truth")

        # The ratio says nothing where both are negligible.
        visible = np.maximum(model, truth) > np.log(1e-3 * top)
        ratio = np.where(visible, np.clip(model - truth, -3, 3), np.nan)
        norm = TwoSlopeNorm(0, -3, 3)
        row[2].set_facecolor("0.85")
        error = row[2].imshow(ratio, cmap="RdBu_r", norm=norm, **style)
        row[2].set_title("log-ratio (red: flow too high)")

    for panel in panels[-1]:
        panel.set_xlabel("$x_1$")
    bar = dict(location="bottom", aspect=30)
    figure.colorbar(density, ax=panels[:, :2], label="density", **bar)
    bar |= dict(aspect=15, extend="both", label="log p_flow - log p_true (nats)")
    figure.colorbar(error, ax=panels[:, 2], **bar)
    gray = "gray: both below 0.1 % of the maximum"
    figure.suptitle(f"Where the flows fail on {points.title} ({gray})")
    return figure


def plot_conditionals(cases: list[Conditional], points) -> Figure:
    """The missing coordinate given the other, in three cases, beside where they lie."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    bounds, x, y, where = picture_grid(points)
    truth = np.exp(log_density(points.truth.log_prob, where))
    panels[0].contourf(x, y, truth, levels=8, cmap="Greys")

    for i, case in enumerate(cases, 1):
        plot_observed(panels[0], i, case, bounds)
        plot_conditional(panels[i], i, case)

    title = "true density, and the observed coordinates (lines)\n"
    panels[0].set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title=title)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    what = "the missing coordinate has a distribution, MAP is one value"
    figure.suptitle(f"Inpainting in 2-D: {what}")
    return figure


def plot_observed(panel, i: int, case: Conditional, bounds: tuple) -> None:
    """The line of points on which a case's observed coordinate has its value."""
    style = dict(color="#D55E00", fontsize=12)
    if case.missing == 1:
        panel.axvline(case.observed, color="#D55E00", linewidth=1.5)
        at = (case.observed, bounds[3])
        panel.annotate(f" {i} ", at, ha="center", va="bottom", **style)
    else:
        panel.axhline(case.observed, color="#D55E00", linewidth=1.5)
        at = (bounds[1], case.observed)
        panel.annotate(f" {i} ", at, ha="left", va="center", **style)


def plot_conditional(panel, i: int, case: Conditional) -> None:
    """The missing coordinate's exact density, each flow's, and their MAP values."""
    missing = f"x_{case.missing + 1}"
    observed = f"x_{2 - case.missing}"
    panel.plot(case.grid, case.exact, "--", color="black", label="exact", zorder=5)
    modes = f"{case.modes} mode{'s' if case.modes > 1 else ''}"
    title = f"{i}: ${observed} = {case.observed:g}$, {modes}"

    for name, found in case.flows.items():
        color = COLORS[name]
        name_in_short = TITLES[name].split()[0]
        panel.plot(case.grid, found["density"], color=color, label=TITLES[name])

        height = np.interp(found["map"], case.grid, found["density"])
        marker = dict(color=color, markersize=9, markeredgecolor="black", linestyle="")
        label = f"its MAP value ({name_in_short})"
        panel.plot(found["map"], height, "v", label=label, zorder=6, **marker)

        share = f"the MAP value's mode holds {found['mass']:.0%}"
        title += f"\n{name_in_short}: KL {found['kl']:.4f} nats, {share}"

    panel.set(xlabel=f"${missing}$", ylabel=f"$p({missing} \\mid {observed})$")
    panel.set_title(title, fontsize=10)
    panel.set_ylim(0, 1.15 * float(case.exact.max()))


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_figures_flag(parser)
    return parser.parse_args(argv)


def find_flow(name: str) -> Flow:
    """The flow of that name that was fitted here, otherwise the shipped one.

    A printed line says which.
    """
    file = find_checkpoint(f"{name}.pt")
    flow = load_model(file, Flow, hint="`python train_moons.py` makes it")
    kl = flow.metrics["kl_truth_flow"]
    print(f"{short(file)}, KL(truth || flow) {kl:.4f} nats")
    return flow


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    points = make_shape("moons", NOISE, 0)
    flows = {name: find_flow(f"moons_{name}") for name in TITLES}
    rows = {TITLES[name]: flow for name, flow in flows.items()}
    rows["Permutation flow, 2 modes"] = find_flow("moons_2_modes_permutation")

    save_figure(plot_errors(rows, points), args.figures, "density_error.png")
    cases = [find_conditional(flows, points.truth, *place) for place in OBSERVED]
    save_figure(plot_conditionals(cases, points), args.figures, "moons_conditional.png")


if __name__ == "__main__":
    main()
