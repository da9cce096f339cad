"""The worlds that come with the package: V, M, C and the dream's starts, laid out like a run folder, in float16."""

from __future__ import annotations

import hashlib
from pathlib import Path

from worldmodels.support.files import read_json

_HERE = Path(__file__).parent
HASHES = "sha256.json"


def names() -> list[str]:
    """The worlds that are here."""
    return sorted(file.parent.name for file in _HERE.glob(f"*/{HASHES}"))


def path(name: str) -> Path:
    """Folder of a pretrained world model, its files unchecked."""
    return _HERE / name


def folder(name: str) -> Path:
    """Where a world's files lie, every one of them compared with the hash it was shipped with.

    Raises:
        ValueError: there is no such world, or a file is damaged.
        FileNotFoundError: a file is missing.
    """
    if name not in names():
        raise ValueError(f"name: expected one of {', '.join(names()) or '(none)'}, got {name!r}")
    where = path(name)
    for file, expected in read_json(where / HASHES).items():
        found = sha256(where / file)
        if found != expected:
            raise ValueError(f"{where / file}: expected SHA-256 {expected}, got {found}: install the package again")
    return where


def resolve(agent: str | Path) -> Path:
    """The folder of a world of the package, given by its name, or a run folder as it is."""
    return folder(str(agent)) if str(agent) in names() else Path(agent)


def sha256(path: Path) -> str:
    """A file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
