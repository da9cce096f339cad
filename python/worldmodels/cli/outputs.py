"""Checks of output files, before any work."""

from __future__ import annotations

import os
from pathlib import Path


def check_output(flag: str, path: str, ending: str) -> None:
    """Check an output file before any work.

    Raises:
        ValueError: The file name has another ending.
        OSError: The folder does not exist or is not writable, or the path is a folder.
    """
    if Path(path).suffix.lower() != ending:
        raise ValueError(f"{flag}: expected a file that ends in {ending}, got {path}")
    parent = Path(path).absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"{flag}: no such folder: {Path(path).parent}")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{flag}: expected a file, got a folder: {path}")
    if not os.access(path if Path(path).exists() else parent, os.W_OK):
        raise PermissionError(f"{flag}: expected a writable file, got {path}")
