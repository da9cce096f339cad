"""Files that are either complete or not there."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; flushed to disk and renamed to ``path`` if the block ends well.

    The temporary file is there and empty. The mode of ``path`` is the one that it has then, which the umask or the
    folder's default ACL gives, whoever replaces it in the block (safetensors does, with mode 0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        with temporary.open("rb+") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say where
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def link(path: Path, to: Path) -> None:
    """Gives a file that will not change a second name: a hard link, or a copy on another disk."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        to.hardlink_to(path)
    except OSError:
        with atomic_path(to) as temporary:
            shutil.copyfile(path, temporary)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON; an unreadable file is an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; without lines that were cut off by a crash or are damaged."""
    found = (parse_line(line) for line in path.read_bytes().splitlines())
    return [value for value in found if value]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object of a line of JSON; None if it is damaged."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
