"""Fits a flow to a table: for as many epochs as cross-validation finds useful."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from flowlib.grids import evaluate
from flowlib.points import Points
from flowlib.rng import rng
from flowlib.tables.mixture import Choice, Folds, mixture_flow
from flowlib.tables.points import drawing_from
from flows2d import Flow

# Rows (N, D), modes, added -> the flow that is their mixture.
Start = Callable[[Tensor, int, float], Flow]
# Flow, draw -> a record of each step; an epoch's last one has `train_nll`.
Train = Callable[[Flow, Callable[[int], Tensor]], Iterator]


@dataclass(frozen=True)
class Training:
    """How long and how fast to train."""

    epochs: int = 24
    steps_per_epoch: int = 36
    batch: int = 512
    lr: float = 5e-2  # the highest
    base_share: float = 3.0  # of the rate: the base learns faster than the couplings
    decay: float = 0.0  # of the couplings' weights, in a step of rate 1
    muon: bool = True  # for the hidden matrices; otherwise Adam moves them too
    patience: int = 5  # of a table: epochs without a gain after which training ends


class Epoch(NamedTuple):
    """NLLs after an epoch, in nats: means over the held-out parts."""

    step: int
    epoch: int
    train_nll: float
    held_out_nll: float


class Fit(NamedTuple):
    """A trained flow, a record of each epoch, and its metrics."""

    flow: Flow
    history: list
    metrics: dict


def fit_table(
    start: Start,
    train: Train,
    points: Points,
    choice: Choice,
    modes: int,
    training: Training,
    name: str,
) -> Fit:
    """A flow that starts as a mixture and is trained as long as that is useful.

    The number of epochs is that of the least mean NLL of the held-out rows of
    `points.folds`. Then a flow is fitted to all of `points.train`, as long. Where no
    number is as good as the mixture `choice`, the flow is this mixture, untrained.

    While training the rows get noise, half as wide as what was best to be added to the
    mixture: a flow that tells closer rows apart would have learned them by heart.

    Args:
        start, train: as the types say.
        choice: the best mixture.
        modes: of the mixture that flows start as.
        training: what `train` does; its patience ends the search for the best epoch.
        name: of the progress bars.
    """
    began = time.perf_counter()
    first = choice._replace(modes=modes)
    history, held_out = choose_epochs(start, train, points.folds, first, training, name)
    best = min(history, key=lambda epoch: epoch.held_out_nll)
    if choice.nll <= best.held_out_nll:
        best = Epoch(0, 0, math.nan, choice.nll)
        first = choice
        flows = [start(rows, choice.modes, choice.added) for rows, _ in points.folds]
        held_out = held_out_log_p(flows, points.folds)

    flow = start(points.train, first.modes, first.added)
    draw = drawing_from(points.train, rng(0, "all rows"), first.added / 4)
    steps = islice(train(flow, draw), best.step)
    for _ in tqdm(steps, f"{name}, all rows", best.step, unit="step", disable=None):
        pass

    shares = torch.linspace(0, 1, 501, dtype=torch.float64)
    metrics = {
        "held_out_nll": best.held_out_nll,
        "held_out_log_p": held_out.quantile(shares).tolist(),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "epochs": best.epoch,
        "steps": best.step,
        **choice._asdict(),
        **evaluate_table(flow, points, choice),
        "seconds": time.perf_counter() - began,
    }
    flow.metrics = metrics  # as a reloaded flow has them
    return Fit(flow, history, metrics)


def choose_epochs(
    start: Start,
    train: Train,
    folds: Folds,
    first: Choice,
    training: Training,
    name: str,
) -> tuple[list[Epoch], Tensor]:
    """The epochs from 0 on, and the held-out rows' log p after the best one.

    Flows are fitted to the parts side by side. The patience of `training` ends it.
    """
    flows = []
    runs = []
    for i, (rows, _) in enumerate(folds):
        flows.append(start(rows, first.modes, first.added))
        draw = drawing_from(rows, rng(0, "fold", i), first.added / 4)
        runs.append(train(flows[-1], draw))

    best = held_out_log_p(flows, folds)
    fitted = [(rows, rows) for rows, _ in folds]
    start_nll = -held_out_log_p(flows, fitted).mean().item()
    history = [Epoch(0, 0, start_nll, -best.mean().item())]
    kept = 0
    total = training.epochs * training.steps_per_epoch  # unless it ends before
    for steps in tqdm(zip(*runs), name, total, unit="step", disable=None):
        last = steps[0]
        if last.train_nll is None:
            continue

        log_p = held_out_log_p(flows, folds)
        losses = [step.train_nll for step in steps]
        nll = sum(losses) / len(losses)
        history.append(Epoch(last.step, last.epoch, nll, -log_p.mean().item()))
        if log_p.mean() > best.mean():
            best = log_p
            kept = last.epoch
        elif last.epoch == kept + training.patience:
            break
    return history, best


def held_out_log_p(flows: list[Flow], folds: Folds) -> Tensor:
    """log p of each held-out row under the flow that has not seen it, (N,)."""
    parts = []
    for flow, (_, held_out) in zip(flows, folds):
        parts.append(evaluate(flow.log_prob, held_out, flow))
    return torch.cat(parts)


def evaluate_table(flow: Flow, points: Points, choice: Choice) -> dict[str, float]:
    """Test NLL, and the gains over a Gaussian and the mixture; each with its error."""
    log_p = evaluate(flow.log_prob, points.test, flow)
    found = {"test_nll": -log_p}
    gaussian = mixture_flow(points.train)
    mixture = mixture_flow(points.train, choice.modes, choice.added)
    for name, other in (("gaussian", gaussian), ("mixture", mixture)):
        found[f"gain_over_{name}"] = log_p - evaluate(
            other.log_prob, points.test, other
        )

    metrics = {}
    for name, values in found.items():
        metrics[name] = values.mean().item()
        metrics[f"{name}_se"] = (values.std() / len(values) ** 0.5).item()
    return metrics
