"""How many threads there is room for, and how processes end."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ending(exit_code: int | None) -> str:
    """In words, how a process of ours ended that nobody had told to."""
    killed = ": killed, perhaps because memory ran out" if exit_code == -9 else ""
    return f"exit code {exit_code}{killed}"
