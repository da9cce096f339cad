"""Optimization shared by V and M: learning rate schedule, divergence check and micro-batches."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class DivergedError(RuntimeError):
    """The loss is NaN, infinite or far above its initial value."""


def cosine(step: int, steps: int, low: float, high: float) -> float:
    """Compute the learning rate: linear warm-up to ``high`` over 2 % of the steps, then a cosine down to ``low``."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return high * (step + 1) / warmup
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class ChannelsLastAdam(torch.optim.Adam):
    """Fused Adam on channels-last parameters in the order of their memory; PyTorch's copies their gradients on a CPU.

    Args:
        parameters: Parameters; those of four axes are channels last.
        lr: Learning rate.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float) -> None:
        self._parameters = list(parameters)
        super().__init__([torch.nn.Parameter(in_memory_order(p.detach())) for p in self._parameters], lr, fused=True)

    def step(self, closure: Any = None) -> Any:
        """See :meth:`torch.optim.Adam.step`."""
        for ordered, parameter in zip(self.param_groups[0]["params"], self._parameters, strict=True):
            ordered.grad = None if parameter.grad is None else in_memory_order(parameter.grad)
        return super().step(closure)


def in_memory_order(x: torch.Tensor) -> torch.Tensor:
    """View a channels-last (A, B, C, D) as (A, C, D, B); tensors of other ranks are returned unchanged."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


class LossGuard:
    """Detect divergence.

    Args:
        stage: Name of the stage in the message.
        factor: Largest allowed multiple of the initial loss, or of 1 if the initial loss is smaller.
        initial: Initial loss; None for that of the first check.

    Attributes:
        initial: Initial loss, None before the first check.
    """

    def __init__(self, stage: str, factor: float = 20.0, initial: float | None = None) -> None:
        self._stage, self._factor = stage, factor
        self.initial = initial

    def check(self, loss: float, step: int, lr: float) -> None:
        """Check the loss of a step.

        Raises:
            DivergedError: The loss is not finite, or above the largest allowed multiple.
        """
        if self.initial is None and math.isfinite(loss):
            self.initial = loss
        if not math.isfinite(loss) or loss > self._factor * max(abs(self.initial or 0.0), 1.0):
            initially = "" if self.initial is None else f" (initially {self.initial:g})"
            advice = f"Try a learning rate below {lr:g}, or precision float32."
            if self.initial is None:
                advice = "It was not finite from the start: check the rewards and frames, or clip the rewards."
            raise DivergedError(
                f"{self._stage}: the loss is {loss:g} at step {step}{initially}; the last checkpoint is kept. {advice}"
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an error means that a GPU or the CPU is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class MicroBatches:
    """Size of micro-batches, halved whenever memory runs out.

    Args:
        stage: Name of the stage in the messages.
        unit: Name of the rows, in the plural.
        rows: Initial number of rows.
        setting: Flag that sets the initial number.
        retry: Whether to retry with half as many rows. False in a launch with several processes, where the others would
            wait for this one.

    Attributes:
        rows: Number of rows of a micro-batch.
    """

    def __init__(self, stage: str, unit: str, rows: int, setting: str, *, retry: bool = True) -> None:
        self.rows = rows
        self._stage, self._unit, self._setting, self._retry = stage, unit, setting, retry

    def run(self, compute: Callable[[int], Result]) -> Result:
        """Call ``compute(rows)``, with fewer rows after every failure, until it fits in memory.

        Args:
            compute: Function of the number of rows; called again from the start after a failure.

        Raises:
            RuntimeError: One row does not fit in memory, or ``retry`` is False.
        """
        while True:
            try:
                return compute(self.rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                text = f"{self._stage}: out of memory with micro-batches of {self.rows} {self._unit}"
                if self.rows == 1 or not self._retry:
                    advice = "one is the minimum" if self.rows == 1 else f"set {self._setting} to a smaller number"
                    raise RuntimeError(f"{text}; {advice}. The last checkpoint is kept.") from None
            self.rows //= 2  # outside the except block, because the error holds references to tensors
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"{text}; retrying with {self.rows}, with the same result ({self._setting})", file=sys.stderr)
