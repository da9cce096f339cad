"""What training V and training M have in common: device, precision, schedule, seeds, memory, and when to stop."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


class DivergedError(RuntimeError):
    """The loss became NaN, infinite or far larger than it was at the start."""


def cosine(step: int, steps: int, low: float, high: float) -> float:
    """Learning rate: up to ``high`` over the first fiftieth of the steps, then down to ``low`` along a cosine."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return high * (step + 1) / warmup
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class LossGuard:
    """Stops a training run whose loss is no longer a loss.

    Args:
        stage: named in the message.
        factor: how many times the first loss (or 1, if that is larger) is too much.
    """

    def __init__(self, stage: str, factor: float = 20.0) -> None:
        self._stage, self._factor = stage, factor
        self._first: float | None = None

    def check(self, loss: float, step: int, lr: float) -> None:
        """Raises :class:`DivergedError` if ``loss`` is not finite or has exploded."""
        if self._first is None and math.isfinite(loss):
            self._first = loss
        if not math.isfinite(loss) or loss > self._factor * max(abs(self._first or 0.0), 1.0):
            raise DivergedError(
                f"{self._stage}: the loss is {loss:g} at step {step} (it began at {self._first}); the last good "
                f"checkpoint is kept. Try a learning rate below {lr:g} or precision float32."
            )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class Pieces:
    """How many rows are computed at once: halved whenever memory runs out, with a message.

    Args:
        stage: named in the messages.
        unit: what the rows are, in the plural.
        rows: to begin with.
        setting: what to set to begin with less.
        retry: whether to go on; False where other processes would wait for this one.
    """

    def __init__(self, stage: str, unit: str, rows: int, setting: str, *, retry: bool = True) -> None:
        self.rows = rows
        self._stage, self._unit, self._setting, self._retry = stage, unit, setting, retry

    def run(self, attempt: Callable[[int], Result]) -> Result:
        """Calls ``attempt(rows)`` until it fits; it must start anew every time.

        Raises:
            RuntimeError: it does not fit, and there is nothing to halve.
        """
        while True:
            try:
                return attempt(self.rows)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                text = f"{self._stage}: out of memory with {self.rows} {self._unit} at once"
                if self.rows == 1 or not self._retry:
                    advice = "there is nothing to halve" if self.rows == 1 else f"set {self._setting} below that"
                    raise RuntimeError(f"{text}; {advice}. The last checkpoint is kept.") from None
            self.rows //= 2  # outside the except block: the error holds on to the memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"{text}; going on with {self.rows}, the result stays the same ({self._setting})", file=sys.stderr)
