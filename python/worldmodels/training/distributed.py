"""The processes of one torchrun launch: whose part of a batch is whose, and what the parts add up to.

PyTorch is loaded where a launch has several processes: every command reads this module, and most need no PyTorch.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process among those of its launch.

    Attributes:
        rank: its number; rank 0 writes the files.
        size: how many there are.
        local: its number on this machine: that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """The rows of a batch that are this process's.

        Raises:
            ValueError: there are fewer rows than processes.
        """
        if batch < self.size:
            raise ValueError(f"batch: expected at least one row for each of {self.size} processes, got {batch}")
        return slice(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)

    def join(self) -> None:
        """Opens the process group (NCCL with CUDA, else gloo), unless it is open or there is one process."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        if not distributed.is_initialized():
            cuda = torch.cuda.is_available()
            if cuda:
                torch.cuda.set_device(self.local)
            distributed.init_process_group("nccl" if cuda else "gloo")

    def leave(self) -> None:
        """Closes the process group."""
        if self.size == 1:
            return
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.size == 1:
            return
        from torch import distributed

        distributed.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are averaged over the processes (DistributedDataParallel)."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.local] if next(model.parameters()).is_cuda else None
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.size == 1:
            return tensor
        from torch import distributed

        tensor = tensor.detach().clone()
        distributed.all_reduce(tensor)
        return tensor

    def told(self, value: Any) -> Any:
        """What rank 0 says."""
        if self.size == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]


def synchronised(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Around a piece of a batch: unless ``now`` (the last piece), its gradient stays in this process."""
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return contextlib.nullcontext()


def launched() -> Ranks:
    """What torchrun says in the environment; one process if it says nothing (or not where to meet)."""
    if "MASTER_ADDR" not in os.environ:
        return Ranks()
    rank, size, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return Ranks(rank, size, local) if size > 1 else Ranks()
