"""Processes of ours: deaf to Ctrl-C, which their parent answers for them, and how they ended."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """What is started meanwhile does not hear Ctrl-C, which the terminal sends to it too: its parent ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ending(exit_code: int | None) -> str:
    """In words, how a process ended that nobody had told to."""
    killed = ": killed, perhaps because memory ran out" if exit_code == -9 else ""
    return f"exit code {exit_code}{killed}"
