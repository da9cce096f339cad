"""One OpenMP runtime per process: the native core uses PyTorch's copy, without importing PyTorch."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
from pathlib import Path

_NAME = "libgomp.so.1"  # library name that the core and PyTorch request: one loaded copy serves both


def load_runtime() -> None:
    """Load the OpenMP runtime in PyTorch's folder unless one is loaded.

    The wheel of the core contains no OpenMP runtime. Loading PyTorch's copy takes a millisecond, importing PyTorch a
    second. The core then runs on systems without OpenMP. PyTorch, imported before or after, shares its threads with
    the core, because the linker reuses the loaded library.

    Some wheels of PyTorch (older ones, some for aarch64) rename their copy. The linker then falls back to the system's
    runtime, and the process has two, each with its own threads.
    """
    if sys.platform != "linux" or "torch" in sys.modules:
        return
    with contextlib.suppress(OSError):
        ctypes.CDLL(_NAME, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return  # a runtime is loaded
    torch = importlib.util.find_spec("torch")
    for folder in (torch.submodule_search_locations or []) if torch else []:
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(Path(folder, "lib", _NAME)), mode=os.RTLD_LAZY)
            return
