"""The user's points: from a .npy file, or a table as other programs write it.

pandas cuts a table into cells. What they say is decided here, and strictly: each column
by its own cells alone. Where two readings are possible an error names the flag that
decides.
"""

import io
import re
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowlib.files import UserError, reason
from flowlib.tables.checks import LEAST, check_density, why_not_continuous

TABLES = (".csv", ".tsv", ".txt")
MISSING = {"", "?", "NA", "na", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN"}
MISSING |= {"null", "NULL", "None", "none"}
SPACES = r"\s+"
# What groups thousands, beside the one of "." and "," that is no decimal mark.
GROUP_MARKS = "'’ \u00a0\u202f"


def _numbers(decimal: str, other: str) -> re.Pattern:
    """Matches each number with this decimal mark, its thousands grouped or not."""
    grouped = rf"[1-9]\d{{0,2}}([{other}{GROUP_MARKS}])\d{{3}}(?:\1\d{{3}})*"
    plain = rf"(?:\d+(?:[{decimal}]\d*)?|[{decimal}]\d+)(?:e[-+−]?\d+)?"
    number = rf"[-+−]?(?:{grouped}(?:[{decimal}]\d*)?|{plain}|inf(?:inity)?)"
    return re.compile(number, re.IGNORECASE | re.ASCII)


NUMBERS = {".": _numbers(".", ","), ",": _numbers(",", ".")}


class Format(NamedTuple):
    """How a table is written; what is None is decided from its cells."""

    separator: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    header: bool | None = None


AS_FOUND = Format()


class Table(NamedTuple):
    """A file's points, their columns' names, and what was noticed, a sentence each."""

    points: np.ndarray  # (N, D), float64
    names: list[str]
    notes: list[str]


class Cells(NamedTuple):
    """A file's columns: of text as it stands there, or of float64 from an array."""

    columns: list
    names: list[str]
    notes: list[str]
    row_numbers: bool = False  # whether the first column has no name
    # If a column's cells leave two readings: the decimal mark, for each mark in them.
    decimals: dict[str, str] = {}


def read_points(
    path: Path,
    columns: Sequence[str] = (),
    format: Format = AS_FOUND,
    to_fit: bool = True,
    gaps: bool = False,
) -> Table:
    """The points in a file, and what was noticed.

    Args:
        path: a .npy file; or a table as spreadsheets, R, numpy and pandas write it.
        columns: the names of the columns to take; to fit also their numbers, from 1.
            By default every column of continuous numbers is taken, and the notes say
            which ones are left out.
        format: what the table's cells cannot decide.
        to_fit: leave rows with missing cells out, and test that the points can be
            fitted: there are enough, and they have a density.
        gaps: keep missing cells, as NaN, where the points are not to be fitted.
    Raises:
        UserError: if the file does not hold such points, or can be read in two ways.
    """
    is_array = path.suffix.lower() == ".npy"
    try:
        cells = _read_array(path) if is_array else _read_table(path, format)
        if columns:
            points, names, note = _take(cells, columns, to_fit)
        else:
            points, names, note = _take_continuous(cells)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read points from {path}: {reason(error)}") from None

    notes = cells.notes + [note] * bool(note)
    for name in names:
        if cells.names.count(name) > 1 or names.count(name) > 1:
            raise UserError(f"{path}: two columns are called {name!r}: rename one")

    missing = np.isnan(points)
    refused = np.isinf(points)
    if not (to_fit or gaps):
        refused |= missing
    for row, column in np.argwhere(refused)[:1]:
        raise UserError(
            f"{path}: row {row + 1} of the data has no finite {names[column]}: "
            "correct it, or remove the row"
        )

    if to_fit:
        complete = points[~missing.any(1)]
        less = len(points) - len(complete)
        if less:
            notes.append(f"{less} of {len(points)} rows left out: a cell is missing")
        points = complete
        notes += check_density(points, names, path, note)
    return Table(points, names, notes)


def describe(table: Table) -> list[str]:
    """What will be fitted, in lines: rows, columns, each column's mean and range."""
    lines = ["rows: {}, columns: {}".format(*table.points.shape)]
    for name, column in zip(table.names, table.points.T):
        # Rounded to what the range makes visible.
        digits = 4 - int(np.log10(np.ptp(column)))
        numbers = (column.mean(), column.min(), column.max())
        texts = [f"{round(float(number), digits):.15g}" for number in numbers]
        lines.append("{}: mean {}, from {} to {}".format(name, *texts))
    return lines


# ---------------------------------------------------------------- files into cells


def _read_array(path: Path) -> Cells:
    try:
        array = np.load(path, allow_pickle=False)
    # a damaged header can fail anywhere inside Python's own parser
    except Exception as error:
        raise ValueError(reason(error)) from None
    is_table = isinstance(array, np.ndarray) and array.ndim == 2 and array.size > 0
    if not is_table or array.dtype.kind not in "fiu":
        raise ValueError("it must hold one array of numbers, one point a row")

    columns = list(array.astype(np.float64).T)
    return Cells(columns, numbered(columns), [])


def _read_table(path: Path, format: Format) -> Cells:
    if path.suffix.lower() not in TABLES:
        raise ValueError("--data takes a .npy or .csv file")
    # a byte-order mark, as Excel writes it
    wide = path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff")
    # Numbers are the same in older encodings; letters of names may become "�".
    text = path.read_text("utf-16" if wide else "utf-8-sig", errors="replace")

    # Comments, empty lines and Excel's "sep=;" may stand before the table.
    start = re.match(r'((?:#.*\n|\n)*)(?:"?sep=(.)"?\n)?', text)
    text = text[start.end() :].strip(" \n")
    lines = re.split(r"\n+", text, maxsplit=2)[:2]

    given = format.separator or start[2]
    separator = given or _find_separator(lines[-1], format)
    separator = {" ": SPACES, r"\t": "\t"}.get(separator, separator)

    names = [column[0] for column in _cut_cells(text, separator, nrows=1)]
    columns = [[] for _ in names]
    if len(lines) > 1:
        columns = _cut_cells(text, separator, skiprows=1)

    # R does not name the row names. But a bare comma may also be a decimal one.
    one_more = len(columns) == len(names) + 1
    unique = len(set(columns[0])) == len(columns[0])
    if one_more and unique and (separator != "," or lines[-1].startswith('"')):
        names.insert(0, "")
    if len(names) != len(columns):
        raise ValueError(
            f"{len(names)} cells in the first row, {len(columns)} in the next: "
            "name each column, or give --separator"
        )

    header = format.header
    if header is None:
        header = _has_header(names, columns)
    if not header:
        columns = [[name, *column] for name, column in zip(names, columns)]
        names = numbered(names)
        if not given and separator in (",", SPACES):
            _refuse_pairs(columns, "," if separator == "," else " ")
    if separator == SPACES and any("" in column for column in columns):
        raise ValueError("a row is too short: write NaN where a number is missing")

    comments = start[1].count("#")
    notes = [f"lines before the table left out: {comments}"] if comments else []
    decimals = {}
    # Where commas separate the columns, and are in no number, a point is a decimal one.
    if separator == "," and names[1:] and not re.search(r'"[-+]?[\d.]+,\d+"', text):
        decimals = {".": "."}
    if decimal := format.decimal or {".": ",", ",": "."}.get(format.thousands):
        decimals = dict.fromkeys(".,", decimal)
    row_numbers = len(names) > 1 and names[0] in ("", "Unnamed: 0")
    names = [name or number for name, number in zip(names, numbered(names))]
    return Cells(columns, names, notes, row_numbers, decimals)


def _cut_cells(text: str, separator: str, **rows: int) -> list[list[str]]:
    """The cells of each column, from some rows of a table."""
    import pandas  # here, for it takes half a second to import

    table = pandas.read_csv(
        io.StringIO(text),
        sep=separator,
        header=None,
        dtype=str,
        na_filter=False,
        **rows,
    )
    return [table[i].str.strip().tolist() for i in table]


def numbered(columns: Sized) -> list[str]:
    """The names of columns that have none: column 1, column 2, ..."""
    return [f"column {i}" for i in range(1, len(columns) + 1)]


def _refuse_pairs(columns: list[list[str]], mark: str) -> None:
    """ValueError if each two cells of a row can be one number, with `mark` inside."""
    if len(columns) % 2:
        return
    pairs = []
    for left, right in zip(columns[::2], columns[1::2]):
        pairs += [pair for pair in zip(left, right) if not MISSING & {*pair}]
    for pattern in NUMBERS.values():
        if all(pattern.fullmatch(mark.join(pair)) for pair in pairs):
            raise ValueError(
                f"is {columns[0][0]}{mark}{columns[1][0]} one number or two? "
                f"Give --separator '{mark}' for two, --separator ';' for one"
            )


def _find_separator(line: str, format: Format) -> str:
    """What separates the columns, by the second line of a table."""
    # In quotation marks stands what is no separator.
    bare = re.sub(" *, *", ",", re.sub('"[^"]*"', "0", line))
    taken = () if '"' in line else (format.decimal, format.thousands)
    marks = [mark for mark in "\t;|," if mark in bare and mark not in taken]
    commas = [cell for cell in bare.split() if "," in cell and _is_number(cell)]
    if marks == [","] and " " in bare and commas:
        raise ValueError(f"do commas or spaces separate {line}? Give --separator")
    return [*marks, SPACES][0]


def _has_header(names: list[str], columns: list[list[str]]) -> bool:
    """Whether the first row has names: words, where the column has numbers."""
    rows = len(columns[0])
    pairs = [
        (name, column[:1000])
        for name, column in zip(names, columns)
        if name and not _is_text(column)
    ]
    kinds = {_is_number(name) for name, _ in pairs if name not in MISSING}
    if kinds == {False}:
        return True

    # Names can be numbers too: wavelengths, years, the 0, 1, ... that pandas writes.
    # Few other rows look like them, or they count. (NA and Infinity are no names.)
    unlike = [
        name
        for name, column in pairs
        if not name.isalpha() and _shape(name) not in map(_shape, column)
    ]

    # Names 0, 1, ... that look like no other row are a header. Where it is not clear,
    # the user must say.
    start = int(names[0]) if names[0].isdecimal() else 0
    counted = names == [str(start + i) for i in range(len(names))]
    if counted and start == 0 and len(unlike) == len(pairs):
        return rows > 0

    odd = rows >= LEAST and 2 * len(unlike) > len(pairs)
    if odd or len(kinds) == 2 or counted and len(names) > 1:
        raise ValueError(
            f"is the first row, {', '.join(names)[:99]}, a header? "
            "Give --header or --no-header"
        )
    return False


def _shape(number: str) -> str:
    """The places of a number before and after its mark: 00.000 for -12.345."""
    return re.sub(r"\d", "0", number.lstrip("+-−"))


# ---------------------------------------------------------------- cells into numbers


def _is_number(cell: str) -> bool:
    return any(pattern.fullmatch(cell) for pattern in NUMBERS.values())


def _is_text(column: Sequence[str]) -> bool:
    """Whether a column starts with more words than numbers."""
    present = [cell for cell in column if cell not in MISSING][:1000]
    return 2 * sum(map(_is_number, present)) < len(present)


def _to_numbers(cells: Cells, place: int) -> np.ndarray:
    """A column as float64, NaN where a cell is missing.

    ValueError names a cell that is no number, or that can be read in two ways.
    """
    column = cells.columns[place]
    if isinstance(column, np.ndarray):
        return column

    name = cells.names[place]
    present = [cell for cell in column if cell not in MISSING]

    strange = {}  # for each mark the cells that are no numbers with it
    for mark, pattern in NUMBERS.items():
        strange[mark] = [cell for cell in present if not pattern.fullmatch(cell)]

    fits = [mark for mark in strange if not strange[mark]]
    if not fits:
        cell = min(strange.values(), key=len)[0]
        raise ValueError(
            f"row {column.index(cell) + 1} of the data, {name}: "
            f"{cell!r} is no number: correct it"
        )

    # Where both readings fit all cells, as they do 1,234 and 10.026, nobody knows.
    mark = fits[0]
    marks = {*".,"} & {*"".join(present)}
    if marks and len(fits) == 2:
        chosen = {cells.decimals.get(mark) for mark in marks}
        if None in chosen:
            cell = next(cell for cell in present if marks & {*cell})
            mark = min(marks & {*cell})
            raise ValueError(
                f"{name}: is {cell} {cell.replace(mark, '.')} or "
                f"{cell.replace(mark, '')}? "
                f"Give --decimal {mark} or --thousands {mark}"
            )
        mark = chosen.pop()

    ignored = GROUP_MARKS + ".,".replace(mark, "")
    as_python = str.maketrans(mark + "−", ".-", ignored)
    texts = ["nan" if cell in MISSING else cell.translate(as_python) for cell in column]
    return np.array([float(text) for text in texts])


# ---------------------------------------------------------------- which columns


def _take(
    cells: Cells, columns: Sequence[str], to_fit: bool
) -> tuple[np.ndarray, list[str], str]:
    """The columns that are asked for, their names, and a note."""
    names = cells.names
    note = ""
    if not to_fit and names == numbered(columns) and not set(columns) <= set(names):
        # Points to score are found by name; without a header by place.
        names = list(columns)
        note = f"no header: the columns are taken as {', '.join(columns)}"
    known = list(names)
    if to_fit:
        known += [str(i) for i in range(1, len(names) + 1)]
    for name in columns:
        if name not in known:
            raise ValueError(f"it has no column {name!r}, only {', '.join(names)}")

    places = [known.index(name) % len(names) for name in columns]
    points = np.column_stack([_to_numbers(cells, place) for place in places])
    return points, [names[place] for place in places], note


def _take_continuous(cells: Cells) -> tuple[np.ndarray, list[str], str]:
    """The columns of continuous numbers, their names, and what is left out."""
    taken = {}
    left_out = []
    for i, name in enumerate(cells.names):
        if i == 0 and cells.row_numbers:
            why = "no name: row numbers"
        elif isinstance(cells.columns[i], list) and _is_text(cells.columns[i]):
            why = "no numbers"
        else:
            column = _to_numbers(cells, i)
            why = why_not_continuous(column)

        if why:
            left_out.append(f"{name} ({why})")
        else:
            taken[name] = column

    note = f"left out: {', '.join(left_out)}" if left_out else ""
    if not taken:
        raise ValueError(f"it has 0 columns to fit; {note}")
    return np.column_stack(list(taken.values())), list(taken), note
