"""Progress line of a stage: units done, rate and remaining time."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from worldmodels.support.processes import check_sigint

_CONTEXT = ContextVar("context", default="")


@contextmanager
def context(text: str) -> Iterator[None]:
    """Print ``text`` in front of every label, such as ``"round 1 of 2"``."""
    token = _CONTEXT.set(f"{text}: ")
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def label(name: str) -> str:
    """Format the name of a stage at the beginning of a line."""
    return f"{_CONTEXT.get()}{name:>12}"


class Progress:
    """Print progress to stderr: one rewritten line on a terminal, one line every 30 seconds otherwise.

    Args:
        label: Name of the stage.
        total: Number of units.
        unit: Name of the units, in the plural.
        start: Number of units completed by earlier runs.
        shown: Whether to print (False for all ranks but the first).
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0, *, shown: bool = True) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._first, self._began = start, time.monotonic()
        self._quiet = not shown
        self._live = sys.stderr.isatty() and shown
        self._shown = self._began if not self._live else 0.0
        self._width = 0

    @property
    def seconds(self) -> float:
        """Seconds since construction."""
        return time.monotonic() - self._began

    def update(self, done: int, note: str = "") -> None:
        """Report the number of completed units; ``note`` is appended to the line.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed, and its KeyboardInterrupt was dropped.
        """
        check_sigint()
        now = time.monotonic()
        if now - self._shown < (0.2 if self._live else 30.0):
            return
        self._shown = now
        columns = 0
        with contextlib.suppress(OSError):  # a terminal that is gone, or a stream that is none of the system's
            columns = os.get_terminal_size(sys.stderr.fileno()).columns if self._live else 0
        self._print(done, note, columns - 1 if columns else None)

    def close(self, done: int, note: str = "") -> None:
        """Print the final state and end the line."""
        self._print(done, note)
        if self._live:
            print(file=sys.stderr)

    def _print(self, done: int, note: str, width: int | None = None) -> None:
        """Print the line, cut to a width: a line that wraps cannot be rewritten."""
        if self._quiet:
            return
        seconds = max(self.seconds, 1e-9)
        rate = (done - self._first) / seconds
        text = f"{label(self._label)}  {done:,}/{self._total:,} {self._unit}"
        if done > self._first:
            left = (self._total - done) / rate
            text += f"  {rate:,.{0 if rate >= 10 else 2}f}/s  " + (
                f"{_clock(left)} left" if done < self._total else f"in {_clock(seconds)}"
            )
        if note:
            text += f"  {note}"
        if self._live:
            text = text[:width]
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
