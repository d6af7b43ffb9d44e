"""What the modules and scripts share: errors in one line, checkpoints, metrics files, and the flags that mean the same everywhere."""

import contextlib
import json
import os
import platform
import shlex
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """A mistake that whoever runs the script can mend; its text says how."""


# ---------------------------------------------------------------- files


def write_atomically(path: Path, write) -> None:
    """Calls write(temporary path) beside `path`, then moves the result into place: a crash leaves the old file whole."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_writable(*folders: Path) -> None:
    """Makes the folders; raises UserError if a file could not be written to one of them: better now than after the training."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None


def save_checkpoint(
    path: Path, kind: str, config: dict, state_dict: dict, *, step: int = 0, seed: int | None = None, metrics: dict | None = None
) -> None:
    """Writes one dict of plain types: what rebuilds the model (`config`, `state_dict`) and what it is (the rest)."""
    state_dict = {name: value.cpu() for name, value in state_dict.items()}
    checkpoint = dict(kind=kind, config=config, state_dict=state_dict, step=step, seed=seed, metrics=metrics or {}, versions=versions())
    write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))


def load_checkpoint(path: Path, kind: str, hint: str = "") -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, onto the CPU.

    Raises UserError if the file is missing (`hint` then says what makes it), unreadable, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}" + (f"; {hint}" if hint else ""))
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        raise UserError(f"{path} is damaged or not a checkpoint ({type(error).__name__})") from None
    found = checkpoint.get("kind") if isinstance(checkpoint, dict) else None
    if found != kind:
        raise UserError(f"{path} holds {f'a checkpoint of kind {found!r}' if found else 'something else'}, not one of kind {kind!r}")
    return checkpoint


def load_model(path: Path, kind: str, build: Callable[[dict], Module], hint: str = "") -> tuple[Module, dict[str, Any]]:
    """The model that a checkpoint of this kind holds, on the CPU, and the checkpoint; `build` makes it, without weights, from that.

    Raises UserError if the file is missing (`hint` then says what makes it) or damaged, or its weights do not fit its config.
    """
    checkpoint = load_checkpoint(path, kind, hint)
    try:
        model = build(checkpoint)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: no {kind} can be built from its config ({error})") from None
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{path} is damaged: its weights do not fit its config ({str(error).splitlines()[0]})") from None
    return model, checkpoint


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    packages = {name: metadata.version(name) for name in ("torch", "torchvision", "normflows", "scikit-learn", "numpy")}
    return {"python": platform.python_version(), **packages}


def hardware(device: torch.device) -> str:
    """The processor in words, as a results table wants it: 'AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def provenance(command: Sequence[str], device: torch.device) -> dict[str, Any]:
    """What a benchmark's results file says of the run behind it: when, the command, on what, with which versions."""
    return {"date": date.today().isoformat(), "command": shlex.join(command), "hardware": hardware(device), "versions": versions()}


def write_metrics(path: Path, metrics: dict, *, seconds: float, device: torch.device, seed: int) -> None:
    """Writes a run's final figures and what they were measured on as one JSON object."""
    record = {
        **metrics,
        "seconds": round(seconds, 1),
        "device": str(device),
        "hardware": hardware(device),
        "seed": seed,
        "versions": versions(),
    }
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(record, indent=2) + "\n"))


def save_figure(figure, folder: Path, name: str) -> None:
    """Writes a matplotlib Figure to folder/name and says so."""
    path = Path(folder) / name
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight"))
    print(f"wrote {path}")
