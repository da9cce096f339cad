"""Processes of ours and Ctrl-C: who hears it, and when; and how processes ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """What is started meanwhile does not hear Ctrl-C, which the terminal sends to it too: its parent ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C is answered after the block: for calls into C++ that make an error of their own of a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield  # nothing of Python's is called here
        return
    heard: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if heard:
            handler(*heard[0])


class Owned:
    """An object with threads, locks or child processes, which a forked process cannot use.

    Args:
        name: Name of the object, for the error.
    """

    def __init__(self, name: str) -> None:
        self.__owner, self.__name = os.getpid(), name

    @property
    def owned(self) -> bool:
        """Whether this is the process that has made the object."""
        return os.getpid() == self.__owner

    def check_owner(self) -> None:
        """Raises a RuntimeError in a process that was forked from the one that has made the object."""
        if not self.owned:
            raise RuntimeError(
                f"{self.__name}: expected the process that has made it, got one that was forked from it; make another "
                "one here, or start processes by 'spawn'"
            )


def ending(exit_code: int | None) -> str:
    """In words, how a process ended that nobody had told to."""
    killed = ": killed, perhaps because memory ran out" if exit_code == -9 else ""
    return f"exit code {exit_code}{killed}"
