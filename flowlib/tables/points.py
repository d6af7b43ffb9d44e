"""The user's points: split, with parts for cross-validation, and scored by a flow."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flowlib.files import readable
from flowlib.points import Points
from flowlib.rng import rng
from flowlib.tables.mixture import standardize
from flowlib.tables.reader import AS_FOUND, Format, describe, numbered, read_points
from flowlib.toy2d import SHAPES

MANY = 2000  # rows, from which on one held-out part is enough
FOLDS = 5


def make_file_points(
    path: Path, columns: list[str], seed: int, format: Format = AS_FOUND
) -> Points:
    """The points of a user's file; what was read is printed."""
    table = read_points(path, columns, format)
    print(f"{path.name}:", *describe(table), *table.notes, sep="\n  ")
    # Files of a shape's name would otherwise be taken for the shape's.
    name = readable(path.stem)
    name = f"points_{name}" if name.lower() in SHAPES else name
    rows = torch.from_numpy(table.points)
    return make_table_points(rows, seed, name, table.names)


def make_table_points(
    rows: Tensor, seed: int, name: str, columns: list[str] | None = None
) -> Points:
    """Rows (N, D), float64, shuffled: 10 % to test on, the others to fit.

    With few rows each fifth of those to fit is held out once, for what is chosen; from
    MANY on a tenth is.
    """
    columns = columns or numbered(rows.T)
    values = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
    made_from = {"columns": columns, "rows": len(rows), "values": values}
    rows = with_fewer_digits(rows)

    order = torch.randperm(len(rows), generator=rng(seed, "file shuffle"))
    tenth = len(rows) // 10
    test, train = rows[order].split([tenth, len(rows) - tenth])
    few = len(train) < MANY
    parts = train.tensor_split(FOLDS if few else 10)
    folds = []
    for i in range(FOLDS if few else 1):
        others = torch.cat([*parts[:i], *parts[i + 1 :]])
        folds.append((others, parts[i]))

    return Points(
        name=name,
        title=name.replace("$", r"\$"),
        columns=columns,
        draw=drawing_from(train, rng(seed, "file train")),
        test=test,
        train=train,
        folds=folds,
        made_from=made_from,
    )


def with_fewer_digits(rows: Tensor) -> Tensor:
    """Rows in float32, twice as fast, where its rounding and range do no harm."""
    reach = rows.abs().amax(0)
    std = standardize(rows).std
    harmless = (reach < 1000 * std) & (reach < 1e30) & (std > 1e-30)
    return rows.float() if harmless.all() else rows


def drawing_from(
    rows: Tensor, generator: torch.Generator, added: float = 0.0
) -> Callable[[int], Tensor]:
    """n -> n of the rows (N, D), drawn with replacement, each with noise.

    `added` is the noise's variance, as a share of the columns' variances.
    """
    width = standardize(rows).std.to(rows.dtype) * added**0.5

    def draw(n: int) -> Tensor:
        chosen = rows[torch.randint(len(rows), (n,), generator=generator)]
        noise = torch.randn(chosen.shape, generator=generator, dtype=rows.dtype)
        return chosen + width * noise

    return draw
