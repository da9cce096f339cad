"""A benchmark: its function, unit and FLOPs per step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worldmodels.support.simd import Precision

Unit = Literal["steps/s", "frames/s", "ms/step"]


@dataclass(frozen=True)
class Case:
    """One benchmark: function, unit and FLOPs per step.

    Attributes:
        name: Name of the benchmark, the label of its row.
        precision: Precision of the matrix products.
        threads: Number of threads or worker processes.
        flops: Floating-point operations per step (or frame); 0 for games.
        unit: Unit of the result.
        play: Function that is timed; returns the number of steps (or frames) played and the number computed.
    """

    name: str
    precision: Precision
    threads: int
    flops: int
    unit: Unit
    play: Callable[[], tuple[int, int]]
