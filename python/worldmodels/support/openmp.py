"""One OpenMP runtime in the process: the native core takes PyTorch's, without importing PyTorch."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
from pathlib import Path

_NAME = "libgomp.so.1"  # what the core and PyTorch ask the linker for: a loaded library of this name serves both


def share() -> None:
    """Loads the OpenMP runtime in PyTorch's folder unless one is there already.

    The core's wheel brings no runtime. Loading PyTorch's own copy here (a millisecond, where importing PyTorch takes
    a second) means that the core runs where the system has none, and that PyTorch, imported before or after, uses
    the same threads: whichever comes first, the linker takes the library that is loaded for the one that is wanted.

    Where PyTorch's copy has another name (its older wheels and some for aarch64 rename it) the linker falls back to
    the system's: two runtimes then, each with threads of its own.
    """
    if sys.platform != "linux" or "torch" in sys.modules:
        return
    with contextlib.suppress(OSError):
        ctypes.CDLL(_NAME, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return  # somebody has loaded one
    torch = importlib.util.find_spec("torch")
    for folder in (torch.submodule_search_locations or []) if torch else []:
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(Path(folder, "lib", _NAME)), mode=os.RTLD_LAZY)
            return
