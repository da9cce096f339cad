"""Pretrained world models: V, M, initial states and C in float16, in the layout of a run folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from worldmodels.support.files import read_json
from worldmodels.support.suggestions import suggestion

_HERE = Path(__file__).parent
HASHES = "sha256.json"
DREAM = "dream.json"


def names() -> list[str]:
    """List the pretrained world models."""
    return sorted(file.parent.name for file in _HERE.glob(f"*/{HASHES}"))


def is_name(agent: str | Path) -> bool:
    """Check whether a string names a pretrained world model. A ``Path`` never does: it may be a folder of that name."""
    return isinstance(agent, str) and agent in names()


def path(name: str) -> Path:
    """Return the folder of a pretrained world model without checking its files."""
    return _HERE / name


def folder(name: str) -> Path:
    """Return the folder of a pretrained world model after checking its files against their SHA-256 hashes.

    Raises:
        ValueError: There is no such world model, or a file is damaged.
        FileNotFoundError: A file is missing.
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
    """Return the folder of a pretrained world model by its name; paths of run folders pass unchanged."""
    return folder(str(agent)) if is_name(agent) else Path(agent)


def find(argument: str, agent: str | Path) -> Path:
    """Return the folder of a pretrained world model or of a run.

    Args:
        argument: Name of the argument, for the error.
        agent: Name of a pretrained world model, or run folder.

    Raises:
        FileNotFoundError: There is neither such a world model nor such a folder.
    """
    if not is_name(agent) and not Path(agent).is_dir():
        hint = suggestion(str(agent), names())
        raise FileNotFoundError(
            f"{argument}: expected {', '.join(names())} or a run folder, got {str(agent)!r:.200}{hint}"
        )
    return resolve(agent)


def dream_settings(name: str) -> dict[str, Any]:
    """Read the settings of the dreams of a pretrained agent: ``termination``, and ``max_steps`` if not the default."""
    settings: dict[str, Any] = read_json(path(name) / DREAM)
    return settings


def sha256(path: Path) -> str:
    """Compute a file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
