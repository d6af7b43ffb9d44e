"""What stands in each results file about the run behind it."""

import shlex
from collections.abc import Sequence
from datetime import date
from typing import Any

import torch

from flowlib.files import hardware, versions


def provenance(command: Sequence[str], device: torch.device) -> dict[str, Any]:
    """What a results file says of its run: when, the command, on what, with which versions."""
    about = {"date": date.today().isoformat(), "command": shlex.join(command)}
    return about | {"hardware": hardware(device), "versions": versions()}
