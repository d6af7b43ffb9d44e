"""The figures of train_moons.py: each function takes data and returns a Figure.

`points` is always a flowlib.points.Points, and `flows` is name -> Flow.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from flowlib.files import write_atomically
from flowlib.grids import Bounds, evaluate
from flowlib.rng import rng
from flows2d import Flow, PermutationTransform

TITLES = {"realnvp": "RealNVP + linear layers", "permutation": "Permutation flow"}
# Okabe and Ito's colors, which color-blind readers can tell apart.
COLORS = {"realnvp": "#0072B2", "permutation": "#E69F00"}
SECTORS = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00"]
SIDE = 300  # of a picture of a density, in places
FRAMES = 56  # of the animation, while the points move


def plot_losses(
    histories: dict[str, list], points, metrics: dict | None = None
) -> Figure:
    """NLL over epochs and, where the truth is known, an estimate of KL(truth || flow).

    The estimate is the flow's NLL minus the truth's NLL on the same held-out points, so
    that the sampling error which both share cancels. `histories` has a record of each
    epoch. `metrics` are those of a flow of a table, with its mixtures' NLLs.
    """
    columns = 1 if points.truth is None else 2
    figure = Figure(figsize=(1 + 4.5 * columns, 4), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]

    seen = []  # the NLLs that the first panel has to show
    for name, history in histories.items():
        epochs = [record.epoch for record in history]
        train = [record.train_nll for record in history]
        held_out = np.array([record.held_out_nll for record in history])

        color = COLORS[name]
        pale = {"color": color, "alpha": 0.4, "linewidth": 3}
        panels[0].plot(epochs, train, label=f"{TITLES[name]}, train", **pale)
        thin = {"color": color, "linewidth": 1}
        panels[0].plot(epochs, held_out, label=f"{TITLES[name]}, held-out", **thin)

        if points.truth is None:
            best = int(held_out.argmin())
            panels[0].plot(epochs[best], held_out[best], "o", color=color, markersize=5)
        else:
            best = len(epochs) - 1
            truth_nll = -points.truth.log_prob(points.held_out).mean().item()
            above = np.maximum(held_out - truth_nll, 1e-4)
            panels[1].semilogy(epochs, above, color=color)
        seen += [*train[: best + 1], *held_out[: best + 1]]

    # Horizontal lines for comparison.
    if points.truth is not None:
        levels = {f"entropy of the truth, {points.floor:.4f}": points.floor}
        title = "Training"
        panels[1].set(xlabel="epoch", ylabel="NLL - NLL of the truth (nats per point)")
        panels[1].set_title("KL(truth || flow), estimated on held-out points")
    else:
        levels = {"a Gaussian, held-out": metrics["gaussian_nll"]}
        levels[f"the best mixture ({metrics['modes']}), held-out"] = metrics["nll"]
        title = "Cross-validation (dot: the best epoch)"
    for (label, level), dashes in zip(levels.items(), ("--", ":")):
        style = {"color": "black", "linestyle": dashes, "linewidth": 1}
        panels[0].axhline(level, label=label, **style)
        seen.append(level)

    panels[0].set(xlabel="epoch", ylabel="negative log-likelihood (nats per point)")
    panels[0].set_title(title)
    # The panel leaves out where points were learned by heart.
    margin = max(0.1 * (max(seen) - min(seen)), 0.1)
    panels[0].set_ylim(min(seen) - margin, max(seen) + margin)

    for panel in panels:
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=9)
    return figure


def plot_densities(
    flows: dict[str, Flow], points, metrics: dict[str, dict], seed=0
) -> Figure:
    """Each flow's density and samples, and a contour of the true density if known.

    `metrics` is for each flow what train_moons.evaluate_flow returns.
    """
    bounds, x, y, where = picture_grid(points)
    truth = None
    if points.truth is not None:
        truth = np.exp(log_density(points.truth.log_prob, where))

    ratio = (bounds[3] - bounds[2]) / (bounds[1] - bounds[0])
    equal = 0.3 < ratio < 2  # years against euros have no scale in common
    height = 2 + 8 * (ratio if equal else 0.8)
    figure = Figure(figsize=(10, height), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)

    for (left, right), (name, flow) in zip(panels, flows.items()):
        density = np.exp(log_density(flow.log_prob, where, flow))
        top = float((density if truth is None else truth).max())
        levels = np.linspace(0.03, 1.15, 15) * top
        style = {"levels": levels, "cmap": "viridis", "extend": "max"}
        filled = left.contourf(x, y, density, **style)
        digits = "%.2f" if top > 0.1 else "%.1e"
        figure.colorbar(filled, ax=left, label="density", format=digits)

        samples = flow.sample(4000, rng(seed, "density figure")).cpu().numpy()
        right.scatter(*samples.T, s=2, alpha=0.5, color=COLORS[name], linewidths=0)

        for panel, color in ((left, "#D55E00"), (right, "black")):
            if truth is not None:
                style = dict(colors=color, linewidths=0.8, linestyles="--")
                panel.contour(x, y, truth, levels=[0.1 * top], **style)
            panel.set_aspect("equal" if equal else "auto")

        row = metrics[name]
        quality = f"test NLL {row['test_nll']:.4f} nats"
        if truth is not None:
            reverse = math.inf if row["kl_flow_truth"] is None else row["kl_flow_truth"]
            quality = f"KL(truth || flow) {row['kl_truth_flow']:.4f} nats"
            quality += f", reverse {reverse:.4f}"
        left.set(title=f"{TITLES[name]}: density\n{quality}", ylabel=points.labels[1])
        right.set(xlim=bounds[:2], ylim=bounds[2:])
        right.set_title(f"{TITLES[name]}: 4,000 samples")

    for panel in panels[-1]:
        panel.set_xlabel(points.labels[0])
    dashed = "" if truth is None else " (dashed: a tenth of the true density's maximum)"
    figure.suptitle(f"Two flows on {points.title}{dashed}")
    return figure


def plot_pairs(flows: dict[str, Flow], points, seed: int = 0) -> Figure:
    """Each pair of the first six columns: the points, and a flow's samples over them.

    Below the diagonal the first flow's samples, above it the second one's, on it the
    histograms. A single column has its histogram alone.
    """
    count = min(6, len(points.columns))
    side = 10 if count > 1 else 6
    figure = Figure(figsize=(side, side), layout="constrained")
    panels: Any = figure.subplots(count, count, sharex="col", squeeze=False)

    data = points.draw(2000).cpu().numpy()
    noise = rng(seed, "pairs figure")
    samples = {}
    for name, flow in flows.items():
        samples[name] = flow.sample(2000, noise).cpu().numpy()

    # The panels leave out the few most extreme points.
    low, high = np.quantile(data, [0.001, 0.999], axis=0)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)

    bins = {"bins": 40, "density": True, "histtype": "step"}
    for i, j in np.ndindex(count, count):
        panel = panels[i, j]
        name = list(flows)[j > i]
        if i == j:
            reach = (low[i], high[i])
            panel.hist(data[:, i], color="0.5", range=reach, **bins)
            for name, found in samples.items():
                panel.hist(found[:, i], color=COLORS[name], range=reach, **bins)
        else:
            panel.scatter(data[:, j], data[:, i], s=3, color="0.6", linewidths=0)
            x, y = samples[name][:, j], samples[name][:, i]
            panel.scatter(x, y, s=2, alpha=0.5, color=COLORS[name], linewidths=0)
            panel.set_ylim(low[i], high[i])

        # Only the outer panels have labels.
        panel.set_xlim(low[j], high[j])
        left = j == 0 < i
        panel.tick_params(labelsize=8, left=left, labelleft=left)
        if i == count - 1:
            panel.set_xlabel(points.labels[j])
        if j == 0:
            panel.set_ylabel(points.labels[i])

    below, above = (TITLES[name] for name in flows)
    more = "" if count == len(points.columns) else f", the first {count} of its columns"
    colors = f"points in gray; samples of {below} below, {above} above"
    if count == 1:
        colors = f"points in gray\nsamples of {below} in blue, {above} in orange"
    figure.suptitle(f"{points.title}{more}: {colors}")
    return figure


def save_animation(flows: dict[str, Flow], points, path: Path, seed: int = 0) -> None:
    """Writes a GIF in which noise becomes data, and says so.

    It shows the same points after each transform, and on straight lines in between. A
    point's color is the direction from the center in which it started.
    """
    figure = Figure(figsize=(8, 3), dpi=80, layout="constrained")
    noise = rng(seed, "animation")
    paths = [_path_to_data(flow, flow.sample(800, noise)) for flow in flows.values()]

    panels = figure.subplots(1, len(flows))
    dots = []
    for panel, name, path_of_points in zip(panels, flows, paths):
        start = path_of_points[0]
        x, y = ((start - start.mean(0)) / start.std(0)).T
        sector = np.floor(np.arctan2(y, x) / (2 * np.pi) * len(SECTORS)).astype(int)
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[], yticks=[])
        panel.set(title=TITLES[name])
        colors = np.array(SECTORS)[sector]
        dots.append(panel.scatter(*start.T, s=3, c=colors, linewidths=0))

    # All frames have one layout: to find it takes as long as to draw a frame.
    caption = figure.supxlabel("data")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")

    # Each frame moves the points a little further.
    canvas = FigureCanvasAgg(figure)
    images = []
    for frame in tqdm(range(FRAMES + 1), desc="animation", leave=False):
        done = frame / FRAMES
        words = {0: "noise", 1: "data"}
        caption.set_text(words.get(done, f"{done:.0%} of the transforms"))
        for scatter, states in zip(dots, paths):
            step, part = divmod(done * (len(states) - 1), 1)
            before = states[int(step)]
            after = states[min(int(step) + 1, len(states) - 1)]
            scatter.set_offsets((1 - part) * before + part * after)
        canvas.draw()
        images.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))

    times = [600, *[70] * (FRAMES - 1), 1500]  # ms a frame
    options: dict[str, Any] = {"format": "GIF", "save_all": True, "loop": 0}
    options |= {"append_images": images[1:], "duration": times}
    write_atomically(path, lambda temporary: images[0].save(temporary, **options))
    print(f"wrote {path}")


@torch.no_grad()
def _path_to_data(flow: Flow, x: Tensor) -> np.ndarray:
    """Where the points are after each transform, noise first: (transforms, n, 2).

    The permutations are undone in each state. Each has its own scale, because couplings
    also stretch and shift the whole: but for a few stray points it lies in [0, 1].
    """
    order = torch.arange(2, device=x.device)
    states = []
    for transform, state in zip(flow.transforms, flow.trajectory(x)[1:]):
        if isinstance(transform, PermutationTransform):
            order = order[transform.permutation]
        else:
            states.append(state[:, order.argsort()].cpu().numpy())
    path = np.stack(states[::-1])
    low, high = np.quantile(path, [0.002, 0.998], axis=1, keepdims=True)
    return (path - low) / (high - low)


def picture_grid(points) -> tuple[Bounds, np.ndarray, np.ndarray, Tensor]:
    """The bounds of a picture; the x, the y and all (N, 2) of SIDE x SIDE places in it.

    It reaches 5 noise levels beyond the truth, or a tenth of their range beyond the
    user's points.
    """
    if points.truth is not None:
        bounds = points.truth.bounds(5)
    else:
        low, high = points.train.double().aminmax(dim=0)
        margin = (high - low) / 10
        sides = torch.stack([low - margin, high + margin], dim=1)
        bounds = tuple(sides.flatten().tolist())
    x = torch.linspace(*bounds[:2], SIDE, dtype=torch.float64)
    y = torch.linspace(*bounds[2:], SIDE, dtype=torch.float64)
    where = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
    return bounds, x.numpy(), y.numpy(), where


def log_density(log_prob, where: Tensor, like: Tensor | None = None) -> np.ndarray:
    """log p at these places, as a picture: (SIDE, SIDE)."""
    log_p = evaluate(log_prob, where, where if like is None else like)
    return log_p.reshape(SIDE, SIDE).numpy()
