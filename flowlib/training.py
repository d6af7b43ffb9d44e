"""What a long training run needs: averaged weights, resume files, batches, and requests to stop.

A step depends only on the state before it, the seed and its own number: its batch and
its noise
come from `rng(seed, purpose, number)`. So a run that was killed and resumed ends with
the same weights, and N processes take the steps of one.
"""

import contextlib
import copy
import json
import math
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
    is_finite,
    read_checkpoint,
    require_same_data,
    write_atomically,
)
from flowlib.rng import rng

PROGRESS = ("step", "skipped", "seconds", "curve")


class TrainingState:
    """A model in training, its averaged copy, its optimizers, and how far it has come.

    The optimizers come with their peak learning rates. `average` is the decay per step
    of the moving average of the weights: 0.999 remembers some 1,000 steps.
    """

    def __init__(
        self, model: nn.Module, optimizers: list[Optimizer], average: float = 0.999
    ):
        self.model, self.optimizers, self.average = model, optimizers, average
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.averaged = copy.deepcopy(model).requires_grad_(False).eval()
        self.step, self.skipped, self.seconds = 0, 0, 0.0
        self.curve: list[dict] = []

    @torch.no_grad()
    def update(self, share: float) -> None:
        """Moves the weights, by this share of the peak learning rates, and the averaged weights.

        The average follows faster in the first steps.
        """
        for optimizer, peak in zip(self.optimizers, self.peaks):
            optimizer.param_groups[0]["lr"] = share * peak
            optimizer.step()
        decay = min(self.average, (1 + self.step) / (10 + self.step))
        averaged, present = self.averaged.parameters(), self.model.parameters()
        torch._foreach_lerp_(list(averaged), list(present), 1 - decay)

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": {name: getattr(self, name) for name in PROGRESS},
        }

    def load_state_dict(self, state: dict) -> None:
        for name in ("model", "averaged"):
            getattr(self, name).load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name in PROGRESS:
            setattr(self, name, state["progress"][name])


def resume_path(checkpoint: Path) -> Path:
    """Where the state of an unfinished run is: beside its checkpoint."""
    return checkpoint.with_name(checkpoint.stem + ".resume.pt")


def save_resume(
    state: TrainingState, path: Path, settings: dict, made_from: dict | None = None
) -> None:
    """Writes everything that the rest of the run depends on.

    That is the state, the run's settings, and the fingerprint of its data.
    """
    content = {"kind": "resume", "format": FORMAT, "settings": settings}
    content["made_from"] = made_from or {}
    content["state"] = state.state_dict()
    write_atomically(path, lambda temporary: torch.save(content, temporary))


@contextlib.contextmanager
def goes_on() -> Iterator[None]:
    """Turns a UserError into a warning: if the disk is full now, it may not be the next time."""
    try:
        yield
    except UserError as error:
        tqdm.write(f"warning: {error}; training goes on")


def extend_curve(state: TrainingState, point: dict, path: Path | None) -> None:
    """Adds a point to the held-out curve and writes all of it to `path`, one JSON object a line."""
    state.curve.append(point)
    if path:
        lines = "".join(json.dumps(point) + "\n" for point in state.curve)
        write_atomically(path, lambda temporary: temporary.write_text(lines))


def load_resume(
    state: TrainingState, path: Path, settings: dict, made_from: dict | None = None
) -> bool:
    """Continues what `save_resume` wrote; False if there is no such file.

    Raises UserError if the file is damaged or was written with other settings or other
    data.
    """
    if not path.exists():
        return False
    content = read_checkpoint(path, "resume")
    saved = content["settings"]

    for name, value in settings.items():
        if (earlier := saved.get(name)) != value:
            advice = "give the same flags, or leave out --resume"
            raise UserError(
                f"{path} was written with {name} {earlier}, not {value}: {advice}"
            )
    # Files from before there were fingerprints say the data's name alone.
    earlier = content.get("made_from") or {"name": saved.get("data")}
    if made_from is not None:
        require_same_data(path, earlier, made_from, "leave out --resume to start anew")

    try:
        _check_state(state, content["state"])
        state.load_state_dict(content["state"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    return True


def _check_state(state: TrainingState, saved: dict) -> None:
    """Raises ValueError if what was saved cannot be a later state of the same run."""
    for name in PROGRESS:
        value, kind = saved["progress"][name], type(getattr(state, name))
        if type(value) is not kind or (kind is not list and not 0 <= value < math.inf):
            raise ValueError(f"{name} is {value!r}")
    progress = saved["progress"]
    if progress["skipped"] > progress["step"]:
        raise ValueError("more steps were skipped than taken")
    if not all(isinstance(point, dict) for point in progress["curve"]):
        raise ValueError("the curve holds something else than points")
    for name in ("model", "averaged"):
        if not is_finite(saved[name]):
            raise ValueError(f"the weights of {name} are not finite")
    for optimizer, other in zip(state.optimizers, saved["optimizers"], strict=True):
        for mine, theirs in zip(
            optimizer.state_dict()["param_groups"], other["param_groups"]
        ):
            # the rate changes from step to step
            if mine | {"lr": 0} != theirs | {"lr": 0}:
                raise ValueError("it is of another optimizer")
        parameters = optimizer.param_groups[0]["params"]
        moved = progress["step"] > progress["skipped"]
        if set(other["state"]) != set(range(len(parameters) if moved else 0)):
            raise ValueError("the optimizer's state is of other parameters")
        for i, values in other["state"].items():  # torch itself does not check these
            for value in values.values():
                if (
                    value.shape not in (parameters[i].shape, ())
                    or not value.isfinite().all()
                ):
                    raise ValueError(
                        f"the optimizer's state of parameter {i} does not fit"
                    )


def batches(n: int, batch: int, seed: int, step: int) -> Iterator[Tensor]:
    """Indices (batch,) into n examples, from step `step` on (the first is 0), endlessly.

    Each epoch goes through the examples in a new order and leaves out the last n %
    batch of it.
    """
    batch = min(batch, n)
    per_epoch = n // batch
    while True:
        epoch, first = divmod(step, per_epoch)
        order = torch.randperm(n, generator=rng(seed, "order", epoch))
        for i in range(first, per_epoch):
            yield order[i * batch : (i + 1) * batch]
            step += 1


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, to end a loop; a second Ctrl-C interrupts at once.

    At the end the first signal is raised again, for whoever handled it before.
    """
    stop, received = threading.Event(), []

    def ask(number, _):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        stop.set()

    with handle_signals(ask, signal.SIGINT, signal.SIGTERM):
        yield stop
    if received:
        signal.raise_signal(received[0])
