"""What a long training needs: averaged weights, resume files, batches, stop requests.

A step depends only on the state before it, the seed and its own number: its batch and
its noise come from `rng(seed, purpose, step)`. So a run that was killed and resumed
ends with the same weights, and N processes take the steps of one.
"""

import contextlib
import copy
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from flowlib.cli import handle_signals
from flowlib.files import (
    FORMAT,
    UserError,
    read_checkpoint,
    reason,
    require_same_data,
    write_atomically,
)
from flowlib.rng import rng

# The averaged weights keep this share a step: they remember some 1,000 steps.
AVERAGE = 0.999
PROGRESS = ("step", "skipped", "seconds", "curve")


class TrainingState:
    """A model in training, its averaged copy, its optimizers, and how far it has come.

    The optimizers are made with their peak learning rates. `seconds` are those of
    training, `skipped` are the steps that changed nothing, and `curve` is a list of
    what was measured on the way.
    """

    def __init__(self, model: nn.Module, optimizers: list[Optimizer]):
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False).eval()
        self.optimizers = optimizers
        self.step = 0
        self.skipped = 0
        self.seconds = 0.0
        self.curve = []

    @torch.no_grad()
    def update(self, share: float) -> None:
        """Moves the weights, by this share of the peak learning rates, and the average.

        The average follows faster in the first steps.
        """
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = share * optimizer.defaults["lr"]
            optimizer.step()

        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        averaged = list(self.averaged.parameters())
        torch._foreach_lerp_(averaged, list(self.model.parameters()), 1 - decay)

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": {name: getattr(self, name) for name in PROGRESS},
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name in PROGRESS:
            setattr(self, name, state["progress"][name])


def resume_path(checkpoint: Path) -> Path:
    """Where the state of an unfinished run is: beside its checkpoint."""
    return checkpoint.with_suffix(".resume.pt")


def save_resume(
    state: TrainingState,
    path: Path,
    settings: dict,
    made_from: dict,
) -> None:
    """Writes everything that the rest of the run depends on.

    That is the state, the run's settings, and the fingerprint of its data.
    """
    content = {
        "kind": "resume",
        "format": FORMAT,
        "settings": settings,
        "made_from": made_from,
        "state": state.state_dict(),
    }
    write_atomically(path, lambda temporary: torch.save(content, temporary))


@contextlib.contextmanager
def goes_on() -> Iterator[None]:
    """Turns a UserError into a warning: a disk that is full now may not stay so."""
    try:
        yield
    except UserError as error:
        tqdm.write(f"warning: {error}; training goes on")


def extend_curve(state: TrainingState, point: dict, path: Path | None) -> None:
    """Adds a point to the curve; writes all of it to `path`, a JSON object a line."""
    state.curve.append(point)
    if path:
        lines = "".join(json.dumps(point) + "\n" for point in state.curve)
        write_atomically(path, lambda temporary: temporary.write_text(lines))


def load_resume(
    state: TrainingState,
    path: Path,
    settings: dict,
    made_from: dict,
) -> bool:
    """Continues what `save_resume` wrote; False if there is no such file.

    Raises:
        UserError: if the file is damaged, or was written with other settings or other
            data.
    """
    if not path.exists():
        return False
    content = read_checkpoint(path, "resume")
    saved = content["settings"]
    for name, value in settings.items():
        if saved.get(name) != value:
            raise UserError(
                f"{path} was written with {name} {saved.get(name)}, not {value}: "
                "give the same flags, or leave out --resume"
            )

    # Files from before there were fingerprints say the data's name alone.
    earlier = content.get("made_from", {"name": saved.get("data")})
    require_same_data(path, earlier, made_from, "leave out --resume to start anew")

    try:
        state.load_state_dict(content["state"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}") from None
    return True


def batches(n: int, batch: int, seed: int, step: int) -> Iterator[Tensor]:
    """Indices (batch,) into n examples, endlessly, from step `step` on.

    The first step is 0. Each epoch goes through the examples in a new order, and
    leaves out the last n % batch of it.
    """
    batch = min(batch, n)
    per_epoch = n // batch
    while True:
        epoch, first = divmod(step, per_epoch)
        order = torch.randperm(n, generator=rng(seed, "order", epoch))
        yield from order.split(batch)[first:per_epoch]
        step += per_epoch - first


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, to end a loop.

    A second Ctrl-C interrupts at once. At the end the first signal is raised again, for
    whoever handled it before.
    """
    stop = threading.Event()
    received = []

    def ask(asked: int, *_) -> None:
        if received and asked == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(asked)
        stop.set()

    with handle_signals(ask, signal.SIGINT, signal.SIGTERM):
        yield stop
    if received:
        signal.raise_signal(received[0])
