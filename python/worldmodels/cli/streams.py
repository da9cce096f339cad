"""Standard streams of the command: closed ones, and readers that have left."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Pipe(io.FileIO):
    """Standard stream that discards output after its reader has closed the pipe."""

    failed = False

    def write(self, data: Any) -> int:
        """Write the data, or discard it after a BrokenPipeError. Other errors are raised once."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)
        except OSError:
            if self.failed:  # the interpreter flushes again at exit
                return len(data)
            self.failed = True
            raise


def protect_streams() -> None:
    """Open closed standard streams on the null device, and ignore closed readers of stdout and stderr.

    Otherwise the next opened file would get the descriptor of a closed stream, and printed text would go to that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        opened = io.TextIOWrapper(
            io.BufferedWriter(_Pipe(descriptor, "w", closefd=False)),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=name == "stderr" or os.isatty(descriptor),
        )
        setattr(sys, name, opened)
