"""Pieces of the Markdown tables, which the benchmarks make of their results files."""

import json
from collections.abc import Sequence
from statistics import median

from benchmarks.about import RESULTS
from flowlib.files import UserError


def load(name: str) -> dict:
    """The results file of this name. Raises UserError if it cannot be read."""
    path = RESULTS / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def measured_on(about: dict, *more: str) -> str:
    """The line below a table: on what it was measured, and when."""
    where = [about["hardware"]]
    if not about["hardware"].startswith(about.get("flow_hardware", "")):
        where.append(f"the flow's fills on {about['flow_hardware']}")

    torch_version = f"torch {about['versions']['torch']}"
    return f"\n{'; '.join([*where, *more, torch_version, about['date']])}.\n"


def duration(seconds: float) -> str:
    """A duration in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def run_on(row: dict) -> str:
    """The hardware of a run, and its processes if there were several."""
    count = row.get("processes", 1)
    return row["hardware"] + (f", {count} processes" if count > 1 else "")


def middle(values: list) -> float:
    """The median of what is there; nan if nothing is."""
    return median([value for value in values if value is not None] or [float("nan")])
