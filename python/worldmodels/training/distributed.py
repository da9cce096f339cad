"""Distributed training: the processes of a torchrun launch, their shards of a batch and their collectives.

PyTorch is imported only in a launch with several processes, because every command imports this module.
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
    """Rank of this process in its launch. With one process, every method is a no-op.

    Attributes:
        rank: Global rank; rank 0 writes the files.
        size: World size, the number of processes.
        local: Local rank, the index of this process's GPU on its machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0, which writes the files."""
        return self.rank == 0

    def shard(self, batch: int) -> slice:
        """Return this process's rows of a batch.

        Raises:
            ValueError: The batch has fewer rows than the launch has processes.
        """
        if batch < self.size:
            raise ValueError(f"batch: expected at least one row for each of {self.size} processes, got {batch}")
        return slice(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)

    def init(self) -> None:
        """Initialize the process group (NCCL with CUDA, else gloo), unless it is initialized."""
        if self.size == 1:
            return
        import torch

        # Its functions have the default process group of import time as a default argument. Imported later, by an
        # optimizer say, they keep gloo's threads alive through shutdown() until one aborts the process at its exit.
        import torch.distributed.nn
        from torch import distributed

        if not distributed.is_initialized():
            cuda = torch.cuda.is_available()
            if cuda:
                torch.cuda.set_device(self.local)
            distributed.init_process_group("nccl" if cuda else "gloo")

    def shutdown(self) -> None:
        """Destroy the process group."""
        if self.size == 1:
            return
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()

    def barrier(self) -> None:
        """Block until every process has reached this call."""
        if self.size == 1:
            return
        from torch import distributed

        distributed.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap a model in DistributedDataParallel, which averages its gradients over the processes."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.local] if next(model.parameters()).is_cuda else None
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum the gradients of a model over the processes, in place."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes."""
        if self.size == 1:
            return tensor
        from torch import distributed

        tensor = tensor.detach().clone()
        distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value in every process."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]


def gradient_sync(model: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """Create the context of one micro-batch's backward pass.

    Args:
        model: Model, or its DistributedDataParallel.
        enabled: Whether the backward pass averages the gradients over the processes: True for the last micro-batch.
    """
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, DistributedDataParallel) and not enabled:
        return model.no_sync()
    return contextlib.nullcontext()


def ranks_from_env() -> Ranks:
    """Read torchrun's environment variables. Without ``MASTER_ADDR``, the launch has one process."""
    if "MASTER_ADDR" not in os.environ:
        return Ranks()
    rank, size, local = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return Ranks(rank, size, local) if size > 1 else Ranks()
