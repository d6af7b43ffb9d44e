"""Points of one's own: from a .npy file, or a table as spreadsheets export it."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowlib.files import UserError

TABLES = (".csv", ".tsv", ".txt")
LEAST, FEW = 100, 500  # points to fit; fewer than the second come with a word
MOST_COLUMNS = 64


class Table(NamedTuple):
    """A file's points, their columns' names, and what was noticed, a sentence each."""

    points: np.ndarray  # (N, D), float64
    names: list[str]
    notes: list[str]


def read_points(path: Path, columns: Sequence[str] = (), to_fit: bool = True) -> Table:
    """The points in a file, and what was noticed.

    Args:
        path: a .npy file; or a table, columns separated by commas, semicolons or tabs,
            numbers with a decimal point or comma, with or without a header.
        columns: the names, or numbers from 1, of the columns to take. Without them
            every column of continuous numbers is taken, and the notes say which ones
            are left out.
        to_fit: also test that the points can be fitted: there are enough, and they have
            a density.
    Raises:
        UserError: if the file does not hold such points.
    """
    try:
        points, names = (
            _read_array(path) if path.suffix.lower() == ".npy" else _read_table(path)
        )
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot read points from {path}: {reason}") from None

    # Which columns: those that are asked for, or all that are continuous.
    numbers = [str(i) for i in range(1, len(names) + 1)]
    notes, reasons = [], [_why_not_continuous(column) for column in points.T]
    if columns:
        if unknown := [name for name in columns if name not in [*names, *numbers]]:
            raise UserError(
                f"{path} has no column {unknown[0]!r}, only {', '.join(names)}"
            )
        places = [(names if name in names else numbers).index(name) for name in columns]
    else:
        places = [place for place, reason in enumerate(reasons) if not reason]
        left_out = [
            f"{name} ({reason})" for name, reason in zip(names, reasons) if reason
        ]
        notes += [f"left out: {', '.join(left_out)}"] if left_out else []
    taken = [names[place] for place in places]
    for name in taken:
        if names.count(name) > 1 or taken.count(name) > 1:
            raise UserError(
                f"{path}: two columns are called {name!r}: give each a name of its own"
            )
    points, names = points[:, places], taken

    if len(bad := np.flatnonzero(~np.isfinite(points).all(1))):
        where = f"first in row {bad[0] + 1} of the data"
        raise UserError(
            f"{path} holds missing, NaN or infinite values, {where}: remove them"
        )
    if to_fit:
        for place, name in zip(places, names):
            if reasons[place]:
                raise UserError(
                    f"{path}: {name} cannot be fitted: it has {reasons[place]}"
                )
        notes += _check(points, names, path, "; ".join(notes))
    return Table(points, names, notes)


def _read_array(path: Path) -> tuple[np.ndarray, list[str]]:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    # a damaged header can fail anywhere inside Python's own parser
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from None
    if (
        not isinstance(array, np.ndarray)
        or array.dtype.kind not in "fiu"
        or array.ndim != 2
    ):
        raise ValueError("it must hold one array of numbers, one point a row")
    return array.astype(np.float64), [f"column {i + 1}" for i in range(array.shape[1])]


def _read_table(path: Path) -> tuple[np.ndarray, list[str]]:
    """All columns as float64, and their names; what is no number becomes NaN."""
    import pandas  # here, for it takes half a second to import

    if path.suffix.lower() not in TABLES:
        raise UserError(f"{path}: --data takes a .npy or .csv file")
    content = path.read_bytes()
    # a byte-order mark, as Excel writes it
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    lines = content.decode("utf-16" if wide else "utf-8-sig").strip().splitlines()
    separator = (
        next((mark for mark in "\t;" if mark in lines[0]), ",") if lines else ","
    )
    table = pandas.read_csv(
        io.StringIO("\n".join(lines)),
        sep=separator,
        header=None,
        dtype=str,
        na_filter=False,
    ).apply(lambda column: column.str.strip())
    first = table.iloc[0].tolist()
    # A header is a row with a word in it, or the 0, 1, ... that pandas writes.
    if not all(map(_is_number, first)) or first == [str(i) for i in range(len(first))]:
        table, names = table.iloc[1:], first
    else:
        names = [f"column {i + 1}" for i in range(len(first))]
    if names[0] == "" and len(names) > 2:  # the row numbers that pandas writes
        table, names = table.iloc[:, 1:], names[1:]
    text = "".join(table.to_numpy().ravel())
    whole, last = "." not in text, table.iloc[:, -1]
    same = last.str.len().nunique() == 1 and last.str.fullmatch(r"\d{2,}").all()
    # as if the same number of decimals were written
    if separator == "," and whole and same:
        raise UserError(
            f"{path}: is 1,25 one number or two? Write ; between the columns"
        )
    # A comma is a decimal comma where there is no point; otherwise it groups thousands.
    mark = "." if separator != "," and whole else ""
    table = table.apply(lambda column: column.str.replace(",", mark))
    return table.apply(pandas.to_numeric, errors="coerce").to_numpy(np.float64), names


def _is_number(text: str) -> bool:
    """Whether a cell stands for a number, be it a missing one."""
    missing = {"", "na", "nan", "null", "none", "inf", "infinity", "-inf", "-infinity"}
    return text.lower() in missing or bool(
        re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", text.lower())
    )


def _why_not_continuous(column: np.ndarray) -> str:
    """What speaks against fitting a density to a column (N,), "" if nothing."""
    found = column[~np.isnan(column)]
    count = len(np.unique(found))
    if count == 0:
        return "no numbers"
    # A point mass has no density; so few values are a class or a grade.
    few = count < min(30, len(column) / 10) or count == 1 < len(column)
    return f"only {count} value{'s' if count > 1 else ''}" if few else ""


def _check(points: np.ndarray, names: list[str], path: Path, note: str) -> list[str]:
    """Notes on the points; UserError if they are too few or have no density."""
    count, dim = points.shape
    if count < LEAST:
        raise UserError(f"{path} holds {count} points; at least {LEAST} are needed")
    if not 1 <= dim <= MOST_COLUMNS:
        found = f"{path} has {dim} columns to fit, and 1 to {MOST_COLUMNS} are needed"
        raise UserError(found + (f"; {note}" if note else ""))
    if dim == 1 and note:  # other columns were left out, perhaps against expectation
        meant = f"if only {names[0]} is meant, --columns says so"
        raise UserError(f"{path} has one column to fit; {note}; {meant}")

    # A column that the ones before it determine has no density beside them.
    standard = (points - points.mean(0)) / points.std(0)
    for i in range(1, dim):
        before = standard[:, :i]
        column = standard[:, i]
        weights = np.linalg.lstsq(before, column, rcond=None)[0]
        if (column - before @ weights).std() < 1e-5:
            follows = f"{names[i]} follows from {', '.join(names[:i])}"
            raise UserError(f"{path}: {follows}: leave it out (--columns)")

    notes = []
    repeated = count - len(np.unique(points, axis=0))
    if repeated > count / 100:
        what = f"{repeated} of {count} points are repetitions"
        notes.append(f"{what}: their density has no limit")
    if count < FEW:
        notes.append(
            f"only {count} points: the flows may do no better than the Gaussian"
        )
    if dim == 1:
        notes.append("one column: a flow is a Gaussian, with --modes a mixture of them")
    return notes
