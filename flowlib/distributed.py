"""Several processes that train together, or fill holes together; torchrun starts them.

A `group` is always such a group of processes.
"""

import copy
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Imported here, before there is a group. The import sets default arguments to the group
# that there is. PyTorch imports it in a training step, and then the group could not be
# destroyed: gloo's threads would run until Python ends, and now and then abort it.
import torch.distributed.nn  # noqa: F401
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowlib.files import UserError

# The longest wait for another process, a download's included.
SILENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """One process's view of its group: its rank, how many they are, its own device."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch, on its device."""
        return batch.tensor_split(self.count)[self.rank].to(self.device)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.count > 1:
            dist.all_reduce(value)
        return value / self.count

    def gather(self, part: Any) -> list:
        """What every process has, in the order of their ranks."""
        parts = [part] * self.count
        if self.count > 1:
            dist.all_gather_object(parts, part)
        return parts

    def any(self, condition: bool) -> bool:
        """Whether the condition holds in some process: all leave a loop together."""
        return bool(self.mean(torch.tensor(float(condition), device=self.device)))

    def wrap(self, model: nn.Module, *inputs: Tensor) -> nn.Module:
        """The model, ready to train on inputs of these shapes.

        Several processes average its gradients, and start with the first one's weights.
        One GPU records the kernels of a loss and its gradient and launches them at once
        (a CUDA graph): the kernels of a small model end sooner than Python starts them
        one by one.
        """
        if self.count > 1:
            return DistributedDataParallel(model)
        if self.device.type == "cuda":  # of a copy, which has the same weights
            return torch.cuda.make_graphed_callables(copy.copy(model), inputs)
        return model


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun started; without torchrun this is the only one.

    They talk over NCCL, each with its own GPU, or over gloo on CPUs. Only the first one
    prints. If one of them ends, or is silent for ten minutes, the others end with a
    UserError.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Processes(0, 1, device)
        return

    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)

    try:
        dist.init_process_group(backend, timeout=SILENCE)
        rank = dist.get_rank()
        with redirect_stdout(io.StringIO() if rank else sys.stdout):
            yield Processes(rank, count, device)

    except RuntimeError as error:  # gloo has no class of its own for its errors
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            "another process ended, or was silent for too long: "
            "start all of them again (--resume goes on)"
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
