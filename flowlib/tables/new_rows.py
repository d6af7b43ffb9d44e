"""What fitted flows say of other rows: their log p, and what their gaps may hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from flowlib.files import write_atomically
from flowlib.grids import evaluate
from flowlib.tables.gaps import check_gaps, fill_gaps
from flowlib.tables.mixture import fit_mixture
from flows2d import Flow

if TYPE_CHECKING:
    from pandas import DataFrame

CHECKED = 200  # test rows, at most, some of whose cells are hidden to be filled


def score_rows(flows: dict[str, Flow], rows: Tensor) -> "DataFrame":
    """log p of rows (N, D) in nats under each flow, the least likely first.

    `less_likely` is the share of the rows that were held out in cross-validation, by
    flows that had not seen them, with a lower log p.
    """
    import pandas  # here, for it takes half a second to import

    columns: dict[str, Any] = {"row": range(1, len(rows) + 1)}
    for name, flow in flows.items():
        held_out = torch.tensor(flow.metrics["held_out_log_p"], dtype=torch.float64)
        log_p = evaluate(flow.log_prob, rows, flow)
        columns[f"log_p_{name}"] = log_p.numpy()
        share = torch.searchsorted(held_out, log_p) / len(held_out)
        columns[f"less_likely_{name}"] = share.numpy()
    return pandas.DataFrame(columns).sort_values(f"log_p_{next(iter(flows))}")


class Filling(NamedTuple):
    """Rows whose gaps are filled; observed cells are as given."""

    mean: Tensor  # (N, D), float64
    samples: Tensor  # (N, S, D)
    check: dict[str, float]  # of cells that were hidden, as `check_gaps` returns it


def fill_rows(
    flow: Flow, train: Tensor, test: Tensor, rows: Tensor, seed: int
) -> Filling:
    """Rows (N, D) with their gaps filled, and how good that is in the test rows.

    `flow` was fitted to the rows `train`, by `fit_table`.
    """
    # The gaps are filled in standardized columns, where units do not matter.
    scale = flow.transforms[0]
    inner = Flow(flow.transforms[1:], flow.dim, flow.base)
    choice = (flow.metrics["modes"], flow.metrics["added"])
    mixture = fit_mixture(scale(train.double())[0], *choice)
    tested = scale(test[:CHECKED].double())[0]
    check = check_gaps(inner, mixture, tested, seed)

    filled = fill_gaps(inner, mixture, scale(rows.double())[0], seed)
    # Back and forth can cost a cell its last digit: the observed ones are copied.
    mean = torch.where(rows.isnan(), scale.inverse(filled.mean)[0], rows)
    samples = scale.inverse(filled.samples.flatten(0, 1))[0].view_as(filled.samples)
    samples = torch.where(rows[:, None].isnan(), samples, rows[:, None])
    return Filling(mean, samples, check)


def table_of_means(mean: Tensor, names: Sequence[str]) -> "DataFrame":
    """A table of the rows (N, D)."""
    import pandas

    table = pandas.DataFrame(mean.numpy(), columns=names)
    table.insert(0, "row", range(1, len(mean) + 1))
    return table


def table_of_samples(samples: Tensor, names: Sequence[str]) -> "DataFrame":
    """A table of the samples (N, S, D) of each row, one below the other."""
    import pandas

    count, draws, dim = samples.shape
    table = pandas.DataFrame(samples.reshape(-1, dim).numpy(), columns=names)
    table.insert(0, "sample", list(range(1, draws + 1)) * count)
    table.insert(0, "row", [row for row in range(1, count + 1) for _ in range(draws)])
    return table


def write_table(path: Path, table: "DataFrame", what: str) -> None:
    """Writes a table as a .csv file and says so."""
    write_atomically(path, lambda part: table.to_csv(part, index=False))
    print(f"wrote {path}: {what}")
