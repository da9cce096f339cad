"""Atomic files: a file is either complete or absent."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path. On success, flush it to disk and rename it to ``path``.

    The temporary file exists and is empty. ``path`` gets the mode that this file has, from the umask or the folder's
    default ACL, also if the block replaces the file (safetensors does, with mode 0600).

    Raises:
        OSError: The file cannot be written; the error names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a random number: processes of two nodes may have the same id
    temporary = path.with_name(f"{path.name}.{secrets.randbelow(10**12)}.tmp")
    try:
        with temporary.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        with temporary.open("rb+") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):  # "no space left" names no file
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def link(path: Path, to: Path) -> None:
    """Create a second name of an immutable file: a hard link, or a copy on another file system."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        to.hardlink_to(path.resolve())  # not a second name of a symbolic link
    except OSError:
        with atomic_path(to) as temporary:
            shutil.copyfile(path, temporary)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not JSON; the error names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines file. Damaged and truncated lines are skipped."""
    found = (parse_line(line) for line in path.read_bytes().splitlines())
    return [value for value in found if value]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Parse an object from a line of JSON; None if the line is damaged."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
