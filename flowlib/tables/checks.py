"""What speaks against fitting a density to points: errors, and notes on the rest."""

from pathlib import Path

import numpy as np
import torch

from flowlib.files import UserError
from flowlib.tables.mixture import standardize

LEAST = 100  # points to fit
FEW = 500  # fewer points come with a word
MOST_COLUMNS = 64
# The least share of the rows, for a value to be a point mass.
POINT_MASS = 0.03


def why_not_continuous(column: np.ndarray) -> str:
    """What speaks against fitting a density to a column (N,), "" if nothing."""
    found = column[~np.isnan(column)]
    count = len(np.unique(found))
    if count == 0:
        return "no numbers"

    # A point mass has no density; so few values are a class or a grade.
    few = count < min(30, len(column) / 10) or count == 1 < len(column)
    return f"only {count} value{'s' if count > 1 else ''}" if few else ""


def check_density(
    points: np.ndarray, names: list[str], path: Path, note: str
) -> list[str]:
    """Notes on points (N, D) without gaps.

    UserError if they are too few or have no density. `note` says which columns were
    left out, "" if none.
    """
    count, dim = points.shape
    if count < LEAST:
        raise UserError(f"{path} holds {count} points; at least {LEAST} are needed")
    if dim > MOST_COLUMNS:
        raise UserError(
            f"{path} has {dim} columns to fit, {MOST_COLUMNS} are the most: "
            "choose some by --columns"
        )

    if dim == 1 and note:  # other columns were left out, perhaps against expectation
        raise UserError(
            f"{path} has one column to fit; {note}; "
            f"if only {names[0]} is meant, --columns says so"
        )

    for name, column in zip(names, points.T):
        if why := why_not_continuous(column):
            raise UserError(f"{path}: {name} cannot be fitted: it has {why}")

    _refuse_dependent(points, names, path)
    notes = []
    for name, column in zip(names, points.T):
        notes += [f"{name} is {mass}" for mass in point_masses(column)]

    repeated = count - len(np.unique(points, axis=0))
    if repeated > count / 100:
        notes.append(
            f"{repeated} of {count} points are repetitions: their density has no limit"
        )
    if count < FEW:
        notes.append(f"only {count} points")
    return notes


def point_masses(column: np.ndarray) -> list[str]:
    """The values that hold many rows of a column (N,) of otherwise continuous ones."""
    values, counts = np.unique(column, return_counts=True)
    # Up to three may be point masses. Of whole or rounded numbers the fourth is as
    # frequent as they are.
    usual = np.sort(counts)[-4:][0]
    masses = []
    for i in np.flatnonzero(counts > max(POINT_MASS * len(column), 4 * usual)):
        masses.append(
            f"{values[i]:g} in {counts[i] / len(column):.0%} of the rows, "
            "a point mass: no density describes it"
        )
    return masses


def _refuse_dependent(points: np.ndarray, names: list[str], path: Path) -> None:
    """UserError if a column follows from those before it: no density beside them."""
    rows = torch.from_numpy(points)
    standard, _ = standardize(rows)(rows)
    # The diagonal has what the columns before leave of each, √N times its deviation.
    left = torch.linalg.qr(standard).R.diagonal() / len(points) ** 0.5
    for i in (left.abs() < 1e-5).nonzero()[:1]:
        raise UserError(
            f"{path}: {names[i]} follows from {', '.join(names[:i])}: "
            "leave it out (--columns)"
        )
