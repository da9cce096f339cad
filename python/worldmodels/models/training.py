"""What training V and training M have in common: device, precision, schedule, seeds, and when to stop."""

from __future__ import annotations

import math

import numpy as np
import torch


class DivergedError(RuntimeError):
    """The loss became NaN, infinite or far larger than it was at the start."""


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(where: torch.device, precision: str) -> torch.autocast:
    """bfloat16 autocast, or nothing for float32."""
    return torch.autocast(where.type, torch.bfloat16, enabled=precision == "bfloat16")


def cosine(step: int, steps: int, low: float, high: float) -> float:
    """Learning rate: up to ``high`` over the first fiftieth of the steps, then down to ``low`` along a cosine."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return high * (step + 1) / warmup
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def seed_step(seed: int, stage: str, step: int) -> None:
    """Seeds torch for one step, so that a resumed run draws what an uninterrupted one draws."""
    torch.manual_seed(int(np.random.SeedSequence([seed, *stage.encode(), step]).generate_state(1, np.uint64)[0] >> 1))


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
