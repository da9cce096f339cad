"""Limits of settings: of the native core, of this machine and of the processes of a launch."""

from __future__ import annotations

import os

from worldmodels.training.distributed import ranks_from_env

INT32 = 2**31 - 1
MAX_ROWS = 2**20  # of any buffer of the native dream
MAX_EPISODES = 10_000_000
MAX_PARALLEL = 4_096  # environments or processes
MAX_FLOAT32 = 3.4e38
MAX_LOSS_WEIGHT = 1e9  # a larger weight may overflow float32


def at_most(name: str, value: float, limit: float) -> None:
    """Check that a setting does not exceed a limit."""
    if value > limit:
        raise ValueError(f"{name}: expected at most {limit}, got {value}")


def memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(name: str, value: int, needed: int) -> None:
    """Check that arrays of ``needed`` bytes fit in the memory of this machine."""
    available = memory()
    if needed > available:
        raise ValueError(
            f"{name}: expected a size that fits in {available / 2**30:.0f} GiB of memory, got {value}, which needs "
            f"{needed / 2**30:,.0f} GiB"
        )


def check_processes(name: str, rows: int, unit: str) -> None:
    """Check that a batch has a row for each process of a torchrun launch."""
    processes = ranks_from_env().size
    if rows < processes:
        raise ValueError(f"{name}: expected at least {processes} {unit}, one per process of torchrun, got {rows}")
