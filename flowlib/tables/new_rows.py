"""What fitted flows say of other rows: their log p, and what their gaps may hold."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowlib.files import UserError, write_atomically
from flowlib.grids import evaluate
from flowlib.inpainting.scores import crps, inside, ranks
from flowlib.points import Points
from flowlib.rng import rng
from flowlib.tables.gaps import POPULATION, Filled, fill_gaps
from flowlib.tables.mixture import fit_mixture
from flowlib.tables.reader import Format, read_points
from flows2d import Flow, MixtureBase

if TYPE_CHECKING:
    from pandas import DataFrame

SAMPLES = 12  # of each row whose gaps are filled
CHECKED = 200  # test rows, at most, in which cells are hidden
HIDDEN = 0.2  # of their cells
CHECK = (
    "checked on {cells} cells of test rows that were hidden: 90 % intervals hold "
    "{coverage_90:.0%} ± {coverage_90_se:.0%} of them; "
    "RMSE {rmse:.2f}, CRPS {crps:.2f} standard deviations of the column"
)


def score_file(
    path: Path, flows: dict[str, Flow], points: Points, format: Format, folder: Path
) -> None:
    """Writes the log p of a file's rows under each flow, the least likely first.

    The flows were fitted to these points; the scores go to the folder.
    """
    table = read_points(path, points.columns, format, to_fit=False)
    scores = score_rows(flows, torch.from_numpy(table.points))
    print(scores.head(10).to_string(index=False, float_format="{:,.3f}".format))
    what = "log p in nats, and the share of held-out rows with less"
    write_table(folder / f"{path.stem}_scores.csv", scores, what)


def score_rows(flows: dict[str, Flow], rows: Tensor) -> "DataFrame":
    """log p of rows (N, D) in nats under each flow, the least likely first.

    `less_likely` is the share of the rows that were held out in cross-validation, by
    flows that had not seen them, with a lower log p.
    """
    import pandas  # here, for it takes half a second to import

    table = pandas.DataFrame({"row": range(1, len(rows) + 1)})
    for name, flow in flows.items():
        held_out = torch.tensor(flow.metrics["held_out_log_p"], dtype=torch.float64)
        log_p = evaluate(flow.log_prob, rows, flow)
        table[f"log_p_{name}"] = log_p.numpy()
        share = torch.searchsorted(held_out, log_p) / len(held_out)
        table[f"less_likely_{name}"] = share.numpy()
    return table.sort_values(f"log_p_{next(iter(flows))}")


def fill_file(
    path: Path,
    flows: dict[str, Flow],
    points: Points,
    format: Format,
    folder: Path,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Writes a file's rows with their gaps filled: means, and samples.

    The flow with the lower held-out NLL fills them. First it fills cells of test rows
    that are hidden from it, and prints how good that is. Returns all samples (N, S, D),
    and which cells were missing (N, D).
    """
    table = read_points(path, points.columns, format, to_fit=False, gaps=True)
    rows = torch.from_numpy(table.points)
    gaps = rows.isnan()
    with_gaps = gaps.any(1)
    name = min(flows, key=lambda name: flows[name].metrics["held_out_nll"])
    flow = flows[name]
    print(f"{gaps.sum()} gaps in {with_gaps.sum()} of {len(rows)} rows, by {name}")
    if not gaps.any():
        raise UserError(f"{path} has no missing cells in its columns to fill")

    proposal = fit_proposal(flow, points.train)
    check = check_fills(flow, proposal, points.test[:CHECKED], seed)
    print(CHECK.format(**check))
    filled = fill_rows(flow, proposal, rows, seed, draws=POPULATION)

    means = as_table(filled.mean, table.names, range(1, len(rows) + 1))
    write_table(folder / f"{path.stem}_filled.csv", means, "the means of the fills")
    numbers = (1 + with_gaps.nonzero()[:, 0]).tolist()
    samples = as_table(filled.samples[with_gaps, :SAMPLES], table.names, numbers)
    what = f"{SAMPLES} samples of each row with gaps"
    write_table(folder / f"{path.stem}_samples.csv", samples, what)
    return filled.samples, gaps


def fit_proposal(flow: Flow, train: Tensor) -> MixtureBase:
    """The mixture of standardized columns that a flow of `fit_table` started as.

    `train` are the rows (N, D) that it was fitted to.
    """
    standardized = flow.transforms[0](train.double())[0]
    return fit_mixture(standardized, flow.metrics["modes"], flow.metrics["added"])


def fill_rows(
    flow: Flow, proposal: MixtureBase, rows: Tensor, seed: int, draws: int
) -> Filled:
    """Rows (N, D) with their gaps, NaN, filled: what `fill_gaps` returns, in any units.

    Args:
        flow: its first transform is `Standardize`.
        proposal: of the standardized columns; see `fit_proposal`.
    """
    scale = flow.transforms[0]
    inner = Flow(flow.transforms[1:], flow.dim, flow.base)
    filled = fill_gaps(inner, proposal, scale(rows.double())[0], seed, draws)

    # Back and forth can cost a cell its last digit: the observed ones are copied.
    mean = torch.where(rows.isnan(), scale.inverse(filled.mean)[0], rows)
    samples = scale.inverse(filled.samples)[0]
    samples = torch.where(rows[:, None].isnan(), samples, rows[:, None])
    return Filled(mean, samples, filled.effective)


def check_fills(
    flow: Flow, proposal: MixtureBase, rows: Tensor, seed: int
) -> dict[str, float]:
    """How good the fills of cells are that are hidden here, a share of rows (N, D).

    `coverage_90` is how often a central 90 % interval has the truth in it, with the
    standard error over rows; `rmse` of the means and `crps` of the fills are in
    standard deviations of the columns.
    """
    rows = rows.double()
    generator = rng(seed, "hidden cells")
    hidden = torch.rand(rows.shape, generator=generator) < HIDDEN
    holes = torch.where(hidden, math.nan, rows)
    filled = fill_rows(flow, proposal, holes, seed, draws=POPULATION)

    cells = hidden.sum(1)
    total = int(cells.sum())

    covered = inside(ranks(filled.samples, rows, generator), 0.9) & hidden
    coverage = covered.sum() / total

    std = flow.transforms[0].std.double()
    error = ((filled.mean - rows) / std)[hidden]
    scores = crps(filled.samples / std, rows / std, hidden)  # NaN without cells
    return {
        "cells": total,
        "coverage_90": coverage.item(),
        "coverage_90_se": (covered.sum(1) - coverage * cells).norm().item() / total,
        "rmse": error.square().mean().sqrt().item(),
        "crps": (scores * cells).nansum().item() / total,
    }


def as_table(rows: Tensor, names: list[str], numbers: Sequence[int]) -> "DataFrame":
    """A table of rows (N, D), or of S samples of each, (N, S, D), one below the other.

    `numbers` are those of the rows in the user's file, from 1.
    """
    import pandas

    index = pandas.Index(numbers, name="row")
    if rows.ndim == 3:
        samples = range(1, rows.shape[1] + 1)
        index = pandas.MultiIndex.from_product(
            [numbers, samples], names=["row", "sample"]
        )
        rows = rows.flatten(0, 1)
    table = pandas.DataFrame(rows.numpy(), index, names)
    return table.reset_index(allow_duplicates=True)


def write_table(path: Path, table: "DataFrame", what: str) -> None:
    """Writes a table as a .csv file and says so."""
    write_atomically(path, lambda part: table.to_csv(part, index=False))
    print(f"wrote {path}: {what}")
