"""Points of one's own: from a .npy file, or a table as spreadsheets and pandas export it."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowlib.files import UserError

TABLES = (".csv", ".tsv", ".txt")
LEAST = 100  # points


def read_points(path: Path, columns: Sequence[str] = ()) -> np.ndarray:
    """The points in a file, (N, 2), float64.

    Args:
        path: a .npy file; or a table, columns separated by commas, semicolons or tabs, numbers
            with a decimal point or comma, with or without a header.
        columns: the names, or numbers from 1, of the two columns to take from a larger table.
    Raises:
        UserError: if the file does not hold at least 100 finite points with a density in the plane.
    """
    try:
        points, names = _read_array(path) if path.suffix.lower() == ".npy" else _read_table(path)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot read points from {path}: {reason}") from None
    if columns:
        numbers = [str(i) for i in range(1, len(names) + 1)]
        unknown = [name for name in columns if name not in [*names, *numbers]]
        if unknown:
            raise UserError(f"{path} has no column {unknown[0]!r}, only {', '.join(names)}")
        places = [(names if name in names else numbers).index(name) for name in columns]
        points, names = points[:, places], [names[place] for place in places]
    if len(names) != 2:
        choice = "--columns A B chooses two" if len(names) > 2 else "two are needed"
        raise UserError(f"{path} has {len(names)} columns ({', '.join(names)}): {choice}")
    _check(points, names, path)
    return points


def _read_array(path: Path) -> tuple[np.ndarray, list[str]]:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header can fail anywhere inside Python's own parser
        raise ValueError(str(error) or type(error).__name__) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim != 2:
        raise ValueError("it must hold one array of numbers, one point a row")
    return array.astype(np.float64), [f"column {i + 1}" for i in range(array.shape[1])]


def _read_table(path: Path) -> tuple[np.ndarray, list[str]]:
    """All columns as float64, and their names; what is no number becomes NaN."""
    import pandas  # here, for it takes half a second to import

    if path.suffix.lower() not in TABLES:
        raise UserError(f"{path}: --data takes a .npy or .csv file")
    content = path.read_bytes()
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")  # a byte-order mark, as Excel writes it
    lines = content.decode("utf-16" if wide else "utf-8-sig").strip().splitlines()
    separator = next((mark for mark in "\t;" if mark in lines[0]), ",") if lines else ","
    table = pandas.read_csv(
        io.StringIO("\n".join(lines)), sep=separator, header=None, dtype=str, na_filter=False
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
    if separator == "," and whole and same:  # as if the same number of decimals were written
        raise UserError(f"{path}: is 1,25 one number or two? Write ; between the columns")
    # A comma is a decimal comma where there is no point; otherwise it groups thousands.
    mark = "." if separator != "," and whole else ""
    table = table.apply(lambda column: column.str.replace(",", mark))
    return table.apply(pandas.to_numeric, errors="coerce").to_numpy(np.float64), names


def _is_number(text: str) -> bool:
    """Whether a cell stands for a number, be it a missing one."""
    missing = {"", "na", "nan", "null", "none", "inf", "infinity", "-inf", "-infinity"}
    return text.lower() in missing or bool(re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", text.lower()))


def _check(points: np.ndarray, names: list[str], path: Path) -> None:
    """Raises UserError if the points have no density in the plane, or are too few to tell."""
    if len(bad := np.flatnonzero(~np.isfinite(points).all(1))):
        where = f"first in row {bad[0] + 1} of the data"
        raise UserError(f"{path} holds missing, NaN or infinite values, {where}: remove them")
    if len(points) < LEAST:
        raise UserError(f"{path} holds {len(points)} points; at least {LEAST} are needed")
    for name, column in zip(names, points.T):
        count = len(np.unique(column))
        if count == 1:
            raise UserError(f"{path}: {name} is constant, so the points have no density")
        if count < min(30, len(points) / 10):
            raise UserError(f"{path}: {name} has only {count} values: it is no continuous quantity")
    correlation = np.corrcoef(points.T)[0, 1]
    if 1 - abs(correlation) < 1e-10:
        both = " and ".join(names)
        raise UserError(f"{path}: {both} lie on a line, so the points have no density in the plane")
