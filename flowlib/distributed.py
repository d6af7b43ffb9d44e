"""Several processes that train, or fill, together."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """This process among those that train together: its rank, their number, and this one's device."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch, on its device."""
        return batch.tensor_split(self.count)[self.rank].to(self.device)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.count > 1:
            dist.all_reduce(value)
        return value / self.count

    def gather(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every process's tensors, one after the other along their first dimension."""
        if self.count == 1:
            return parts
        everyone: list = [None] * self.count
        dist.all_gather_object(everyone, parts)
        return {name: torch.cat([part[name] for part in everyone]) for name in parts}

    def any(self, condition: bool) -> bool:
        """Whether it holds for one of the processes: they must leave a loop together."""
        return self.mean(torch.tensor(float(condition), device=self.device)).item() > 0 if self.count > 1 else condition

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over the processes. It must be initialised: here all become equal to the first one's."""
        return DistributedDataParallel(model) if self.count > 1 else model


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun started: over NCCL with a GPU each, over gloo on CPUs. Without torchrun there is just this one."""
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if count == 1:
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()
