"""SIGINT and SIGTERM, in child processes and native calls too; process ownership, exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from types import FrameType


@contextlib.contextmanager
def block_sigint() -> Iterator[None]:
    """Block SIGINT in child processes started inside the block; the parent shuts them down."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spawn(process: SpawnProcess) -> None:
    """Start a process in which SIGINT is blocked; the parent shuts it down."""
    resource_tracker.ensure_running()  # starting it, as the first spawned process does, would unblock SIGINT
    with block_sigint():
        process.start()


@contextlib.contextmanager
def defer_sigint() -> Iterator[None]:
    """Deliver SIGINT after the block: for C++ calls that turn a KeyboardInterrupt into an error of their own."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield  # no Python handler runs in this thread
        return
    heard: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if heard:
            handler(*heard[0])


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it before it takes the machine away. The command resumes as after Ctrl-C."""


class _Received:
    """Error of the signal that arrived in the present :func:`keep_sigint` block."""

    error: type[KeyboardInterrupt] | None = None


@contextlib.contextmanager
def keep_sigint() -> Iterator[None]:
    """Remember that SIGINT raised KeyboardInterrupt, or SIGTERM :class:`Terminated`, for :func:`check_sigint`.

    Python drops a KeyboardInterrupt that a destructor, a weak reference's callback or an import lock's raises.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupt, terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupted(number: int, frame: FrameType | None) -> None:
        _Received.error = KeyboardInterrupt
        assert callable(interrupt)
        interrupt(number, frame)

    def terminated(number: int, frame: FrameType | None) -> None:
        _Received.error = Terminated
        raise Terminated

    def unraisable(error: sys.UnraisableHookArgs) -> None:
        if not (isinstance(error.exc_value, KeyboardInterrupt) and _Received.error is not None):
            report(error)  # the others are raised by check_sigint

    report, sys.unraisablehook = sys.unraisablehook, unraisable
    before, _Received.error = _Received.error, None
    if callable(interrupt):
        signal.signal(signal.SIGINT, interrupted)
    if terminate == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
        sys.unraisablehook = report
        _Received.error = before


def check_sigint() -> None:
    """Raise the error of a signal that was dropped.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed in the present :func:`keep_sigint` block.
        Terminated: SIGTERM arrived in it.
    """
    if _Received.error is not None:
        raise _Received.error


class Owned:
    """Base class of objects with threads, locks or child processes, which are unusable in a forked process.

    Args:
        name: Name of the object in error messages.
    """

    def __init__(self, name: str) -> None:
        self.__owner, self.__name = os.getpid(), name

    @property
    def owned(self) -> bool:
        """Whether this process created the object."""
        return os.getpid() == self.__owner

    def check_owner(self) -> None:
        """Check that this process created the object.

        Raises:
            RuntimeError: This process was forked from the one that did.
        """
        if not self.owned:
            raise RuntimeError(
                f"{self.__name}: expected the process that created it, got a process forked from it; create a new one "
                "here, or start processes with the 'spawn' method"
            )


def describe_exit(exit_code: int | None) -> str:
    """Describe an unexpected process exit."""
    killed = ": killed, perhaps because memory ran out" if exit_code == -9 else ""
    return f"exit code {exit_code}{killed}"
