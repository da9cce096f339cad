"""A benchmark: what is played, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worldmodels.support.simd import Precision

Unit = Literal["steps/s", "frames/s", "ms/step"]


@dataclass(frozen=True)
class Case:
    """One benchmark. ``play`` returns the number of steps (or frames) played and the number computed."""

    name: str
    precision: Precision
    threads: int
    flops: int
    unit: Unit
    play: Callable[[], tuple[int, int]]
