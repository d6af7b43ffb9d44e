"""The figures of `train_moons.py`: each takes data and returns a matplotlib Figure."""

import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

from flowlib.grids import Bounds
from flows2d import Flow

TITLES = {"realnvp": "RealNVP + linear layers", "permutation": "Permutation flow"}
COLOURS = {"realnvp": "tab:blue", "permutation": "tab:orange"}


def loss_figure(histories: dict[str, list[dict]], floor: float | None, truth_nll: float | None) -> Figure:
    """NLL over epochs, train and held-out. Where the truth is known, `floor` is its entropy and `truth_nll` its own NLL on the held-out
    points: their distance from a model's, in the second panel, estimates the KL divergence without the sampling error they share."""
    figure = Figure(figsize=(6 if floor is None else 10, 4), layout="constrained")
    panels = figure.subplots(1, 1 if floor is None else 2, squeeze=False)[0]
    for name, history in histories.items():
        epochs = [record["epoch"] for record in history]
        train, held_out = (np.array([record[key] for record in history]) for key in ("train_nll", "held_out_nll"))
        panels[0].plot(epochs, train, color=COLOURS[name], alpha=0.4, linewidth=3, label=f"{TITLES[name]}, train")
        panels[0].plot(epochs, held_out, color=COLOURS[name], linewidth=1, label=f"{TITLES[name]}, held-out")
        if floor is not None:
            panels[1].semilogy(epochs, np.maximum(held_out - truth_nll, 1e-4), color=COLOURS[name], label=TITLES[name])
    panels[0].set(xlabel="epoch", ylabel="negative log-likelihood (nats per point)", title="Training")
    if floor is not None:
        panels[0].axhline(floor, color="black", linestyle="--", linewidth=1, label=f"entropy of the truth, {floor:.4f}")
        panels[1].set(
            xlabel="epoch", ylabel="NLL - the truth's NLL (nats per point)", title="KL divergence to the truth, on held-out points"
        )
        panels[1].grid(alpha=0.3, which="both")
        panels[1].legend(fontsize=8)
    panels[0].grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    return figure


@torch.no_grad()
def density_figure(flows: dict[str, Flow], points, figures: dict[str, dict], seed: int = 0) -> Figure:
    """2x2: each model's density (left) and samples (right), one row a model; where it is known, the true density's contour on top.

    `points` is train_moons.Points, `figures` what train_moons.evaluate returns for each model.
    """
    bounds = _bounds_of(points)
    x, y, where = _picture_grid(bounds)
    truth = None if points.truth is None else points.truth.log_prob(where).exp().reshape(len(y), len(x)).numpy()
    figure = Figure(figsize=(10, 2 + 8 * (bounds[3] - bounds[2]) / (bounds[1] - bounds[0])), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for (left, right), (name, flow) in zip(panels, flows.items()):
        density = _log_prob(flow, where).exp().reshape(len(y), len(x)).numpy()
        top = float((density if truth is None else truth).max())
        filled = left.contourf(x, y, density, levels=np.linspace(0.03, 1.15, 15) * top, cmap="viridis", extend="max")
        figure.colorbar(filled, ax=left, label="density", format="%.2f")
        device = flow.base_mean.device
        drawn = flow.sample(4000, torch.Generator(device).manual_seed(seed)).cpu().numpy()
        right.scatter(*drawn.T, s=2, alpha=0.5, color=COLOURS[name], linewidths=0)
        for panel, colour in ((left, "red"), (right, "black")):
            if truth is not None:
                panel.contour(x, y, truth, levels=[0.1 * top], colors=colour, linewidths=0.7, linestyles="--")
            panel.set_aspect("equal")
        row = figures[name]
        quality = f"KL to the truth {row['kl']:.4f} nats" if "kl" in row else f"test NLL {row['test_nll']:.3f} nats"
        left.set(title=f"{TITLES[name]}: density\n{quality}", ylabel="$x_2$")
        right.set(title=f"{TITLES[name]}: 4,000 samples", xlim=bounds[:2], ylim=bounds[2:])
    for panel in panels[-1]:
        panel.set_xlabel("$x_1$")
    truth_is = "" if truth is None else " (dashed: a tenth of the true density's maximum)"
    figure.suptitle(f"Two flows on {points.title}{truth_is}")
    return figure


@torch.no_grad()
def error_figure(flows: dict[str, Flow], points) -> Figure:
    """Where a flow fails: its density, the true one, and the log of their ratio, a row a model; grey where both are negligible."""
    bounds = _bounds_of(points)
    x, y, where = _picture_grid(bounds)
    truth = points.truth.log_prob(where).reshape(len(y), len(x))
    top = float(truth.exp().max())
    figure = Figure(figsize=(12, 1.4 + 6.8 * (bounds[3] - bounds[2]) / (bounds[1] - bounds[0])), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    extent = dict(extent=bounds, origin="lower", aspect="equal", interpolation="nearest")
    for row, (name, flow) in zip(panels, flows.items()):
        model = _log_prob(flow, where).reshape(len(y), len(x))
        for panel, log_p, title in ((row[0], model, f"{TITLES[name]}: density"), (row[1], truth, "true density")):
            shown = panel.imshow(log_p.exp().numpy(), cmap="viridis", vmin=0, vmax=top, **extent)
            panel.set_title(title, fontsize=10)
        figure.colorbar(shown, ax=row[1], label="density")
        visible = torch.maximum(model, truth) > np.log(1e-3 * top)
        ratio = torch.where(visible, (model - truth).clamp(-3, 3), torch.nan)
        row[2].set_facecolor("0.85")
        shown = row[2].imshow(ratio.numpy(), cmap="RdBu_r", norm=TwoSlopeNorm(0, -3, 3), **extent)
        figure.colorbar(shown, ax=row[2], label="log p_flow - log p_true (nats)", extend="both")
        row[2].set_title("log-ratio: red, the flow puts too much there", fontsize=10)
        row[0].set_ylabel("$x_2$")
    for panel in panels[-1]:
        panel.set_xlabel("$x_1$")
    figure.suptitle(f"Where the flows fail, {points.title} (grey: both densities below a thousandth of the maximum)")
    return figure


def conditional_figure(cases: list[dict], points) -> Figure:
    """The missing coordinate given the other: the exact conditional, each flow's, and the MAP value.

    `cases` is what train_moons.conditionals returns.
    """
    figure = Figure(figsize=(4 * (len(cases) + 1), 3.8), layout="constrained")
    panels = figure.subplots(1, len(cases) + 1)
    bounds = _bounds_of(points)
    x, y, where = _picture_grid(bounds)
    panels[0].contourf(x, y, points.truth.log_prob(where).exp().reshape(len(y), len(x)).numpy(), levels=8, cmap="Greys")
    for number, case in enumerate(cases, 1):
        line, at = (
            (panels[0].axvline, (case["known"], bounds[3])) if case["missing"] == 1 else (panels[0].axhline, (bounds[1], case["known"]))
        )
        line(case["known"], color="tab:red", linewidth=1)
        panels[0].annotate(str(number), at, color="tab:red", ha="center", va="bottom" if case["missing"] == 1 else "center", fontsize=11)
    panels[0].set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title="true density; what is known (red)\n")
    for number, (panel, case) in enumerate(zip(panels[1:], cases), 1):
        missing, known = f"x_{case['missing'] + 1}", f"x_{2 - case['missing']}"
        panel.plot(case["grid"], case["exact"], color="black", linestyle="--", linewidth=1.5, label="exact", zorder=5)
        for name, found in case["flows"].items():
            panel.plot(case["grid"], found["density"], color=COLOURS[name], label=f"{TITLES[name]} (KL {found['kl']:.4f})")
            height = np.interp(found["map"], case["grid"], found["density"])
            panel.plot(
                found["map"],
                height,
                "v",
                color=COLOURS[name],
                markersize=9,
                label=f"its MAP value: {found['mass']:.0%} of the mass is in that mode",
            )
        panel.set(
            xlabel=f"${missing}$",
            ylabel=f"$p({missing} \\mid {known})$",
            title=f"{number}: ${known} = {case['known']:g}$, {case['modes']} mode{'s' * (case['modes'] > 1)}",
        )
        panel.set_ylim(0, 1.55 * float(case["exact"].max()))
        panel.legend(fontsize=7, loc="upper center")
    figure.suptitle("Inpainting in 2-D: the missing coordinate has a distribution; its maximum is one point of it")
    return figure


@torch.no_grad()
def layers_figure(flows: dict[str, Flow], points, columns: int = 7, seed: int = 0) -> Figure:
    """How noise becomes data, a row a model: samples after each few transforms, coloured by where they started."""
    figure = Figure(figsize=(2 * columns, 4.8), layout="constrained")
    for row, (name, flow) in zip(figure.subplots(len(flows), columns), flows.items()):
        x = flow.sample(3000, torch.Generator(flow.base_mean.device).manual_seed(seed))
        states = flow.trajectory(x)[::-1]  # z first, x last
        angle = torch.atan2(states[0][:, 1], states[0][:, 0]).cpu().numpy()
        for panel, i in zip(row, np.linspace(0, len(states) - 1, columns).round().astype(int)):
            panel.scatter(*states[i].cpu().numpy().T, s=1.5, c=angle, cmap="hsv", linewidths=0)
            panel.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
            place = "noise z" if i == 0 else "data x" if i == len(states) - 1 else f"after {i} of {len(states) - 1}"
            panel.set_title(place, fontsize=9)
        row[0].set_ylabel(TITLES[name])
    figure.suptitle(f"From noise to {points.title}, transform by transform (colour: the direction in which a point started)")
    return figure


def _bounds_of(points) -> Bounds:
    """What to draw: 5 noise levels around the truth, or a tenth of their range around the user's points."""
    if points.truth is not None:
        return points.truth.bounds(5)
    low, high = points.test.double().min(0).values, points.test.double().max(0).values
    margin = 0.1 * (high - low)
    left, bottom = (low - margin).tolist()
    right, top = (high + margin).tolist()
    return (left, right, bottom, top)


def _picture_grid(bounds: Bounds) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """300 x 300 places: their x, their y, and all of them, (90,000, 2), x running fastest."""
    left, right, bottom, top = bounds
    x, y = torch.linspace(left, right, 300, dtype=torch.float64), torch.linspace(bottom, top, 300, dtype=torch.float64)
    return x.numpy(), y.numpy(), torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def _log_prob(flow: Flow, points: Tensor) -> Tensor:
    """log p of float64 points on the CPU, wherever the flow lives."""
    return flow.log_prob(points.to(flow.base_mean.device, flow.base_mean.dtype)).double().cpu()
