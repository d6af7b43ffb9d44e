"""What a long training run needs: averaged weights, resume files that survive a crash, and several processes.

A step depends on nothing but the state before it, the seed and its own number: the batch and its noise are drawn from generators
seeded by (seed, step). So a run that was killed and resumed ends with the same weights, and N processes take the steps of one.
"""

import contextlib
import copy
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from flowlib.files import UserError, load_checkpoint, versions, write_atomically

# ---------------------------------------------------------------- state


class TrainingState:
    """A model in training, its averaged copy, its optimiser, and how far it has come.

    Args:
        model: what is trained; a parameter's gradient must come from `model.forward`.
        lr: peak learning rate of Adam.
        average: decay per step of the exponential moving average of the weights: 0.999 remembers about 1,000 steps.
    """

    def __init__(self, model: nn.Module, lr: float, average: float = 0.999):
        self.model, self.lr, self.average = model, lr, average
        self.averaged = copy.deepcopy(model).requires_grad_(False).eval()
        self.optimiser = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
        self.step, self.skipped, self.seconds = 0, 0, 0.0
        self.curve: list[dict] = []

    @torch.no_grad()
    def update_average(self) -> None:
        """Moves the averaged weights towards the present ones; the average is short at first, so that it forgets the beginning."""
        decay = min(self.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": {name: getattr(self, name) for name in ("step", "skipped", "seconds", "curve")},
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name, value in state["progress"].items():
            setattr(self, name, value)


def resume_path(checkpoint: Path) -> Path:
    """Where the state of an unfinished run lies: beside its checkpoint."""
    return checkpoint.with_name(checkpoint.stem + ".resume.pt")


def save_resume(state: TrainingState, path: Path, settings: dict) -> None:
    """Writes everything that the rest of the run depends on; `settings` are what must be the same. A crash leaves the old file."""
    content = dict(kind="resume", settings=settings, state=state.state_dict(), versions=versions())
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_resume(state: TrainingState, path: Path, settings: dict) -> bool:
    """Continues what `save_resume` wrote; False if there is no such file.

    Raises:
        UserError: if the file is damaged, or was written with other settings: then the run would be neither the one nor the other.
    """
    if not path.is_file():
        return False
    content = load_checkpoint(path, "resume")
    earlier = content["settings"]
    other = [f"{name} {earlier.get(name)}, not {value}" for name, value in settings.items() if earlier.get(name) != value]
    if other:
        raise UserError(f"{path} was written with {'; '.join(other)}: give the same flags, or leave out --resume")
    try:
        state.load_state_dict(content["state"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    return True


# ---------------------------------------------------------------- randomness


def generator_for(seed: int, step: int) -> torch.Generator:
    """A CPU generator that belongs to this step of this seed alone."""
    return torch.Generator().manual_seed((1_000_003 * (seed + 1) + step) % 2**32)


def batches(n: int, batch: int, seed: int, step: int) -> Iterator[Tensor]:
    """Indices (batch,) into n examples from step `step` (the first is 0) on, endlessly; each epoch sees every example in a new order.

    The last n % batch examples of an epoch's order are left out.
    """
    batch = min(batch, n)
    per_epoch = n // batch
    while True:
        order = torch.randperm(n, generator=generator_for(seed, -1 - step // per_epoch))
        for i in range(step % per_epoch, per_epoch):
            yield order[i * batch : (i + 1) * batch]
            step += 1


class StopRequest:
    """Whether somebody has asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns Ctrl-C and SIGTERM (which batch systems send before they kill) into a request that the loop sees after a step; a second
    Ctrl-C interrupts at once."""
    stop = StopRequest()

    def ask(number, _):
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
