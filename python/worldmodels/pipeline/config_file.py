"""Settings in a TOML file: sections and names like the flags, for ``--config`` and ``--dry-run``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import PROBE, SECTIONS, TOP, Config
from worldmodels.pipeline.stage import command
from worldmodels.support import settings
from worldmodels.support.suggestions import suggestion
from worldmodels.support.validation import MAX_SEED, check_integer

_SECTIONS = tuple(section for section in SECTIONS if section != PROBE)


@dataclass(frozen=True)
class ConfigFile:
    """Content of a file of settings: ``task``, ``preset``, ``seed`` and ``world_model``, and settings by section."""

    top: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_config_file(path: Path) -> ConfigFile:
    """Read a TOML file of settings. Names may be spelled with hyphens, like the flags, or with underscores.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not TOML, a name is unknown, or a value has another type or is out of range; the error
            names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config: no such file: {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte order mark
    except ValueError as error:
        raise ValueError(f"{path}: expected TOML, got: {error}") from error
    try:
        return _parse(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _parse(values: dict[str, Any]) -> ConfigFile:
    found = ConfigFile()
    for name, value in _by_name(values, (*TOP, *_SECTIONS), "", "setting or section").items():
        if name in TOP:
            found.top[name] = _check_top(name, value)
        elif not isinstance(value, dict):
            raise ValueError(f"{command(name)}: expected a section, [{command(name)}], got {value!r:.100}")
        else:
            found.changes[name] = _section(name, value)
    return found


def _section(section: str, values: dict[str, Any]) -> dict[str, Any]:
    kind = type(getattr(Config(), section))
    known = settings.declared(kind)
    changes = _by_name(values, known, f"{command(section)}.", "setting")
    for name, value in changes.items():
        settings.check(kind, name, value, f"{command(section)}.{command(name)}")
        if known[name].location and value:
            changes[name] = expand_user(value)
    return changes


def _by_name(values: dict[str, Any], known: Iterable[str], prefix: str, kind: str) -> dict[str, Any]:
    """Map names as in the file to those of fields.

    Raises:
        ValueError: A name is unknown, or is there twice in two spellings.
    """
    fields = list(known)
    found: dict[str, Any] = {}
    for name, value in values.items():
        target = name.replace("-", "_")
        if target not in fields:
            names = [command(one) for one in fields]
            hint = suggestion(command(name), names) or f"; expected one of {', '.join(names)}"
            raise ValueError(f"{prefix}{name}: no such {kind}{hint}")
        if target in found:
            raise ValueError(f"{prefix}{name}: expected one value, got two")
        found[target] = value
    return found


def _check_top(name: str, value: Any) -> Any:
    if name == "seed":
        return check_integer("seed", value, 0, MAX_SEED)
    if not isinstance(value, str) or (not value and name != "world_model"):
        raise ValueError(f"{command(name)}: expected a name, got {value!r:.100}")
    if name == "task" and not tasks.is_id(value) and value not in tasks.names():
        known = tasks.names()
        raise ValueError(f"task: expected one of {', '.join(known)}, got {value!r}{suggestion(value, known)}")
    return expand_user(value) if name == "world_model" else value


def expand_user(path: str) -> str:
    """Expand ``~``. Separators are kept: ``./takecover`` is a folder, ``takecover`` a pretrained agent.

    Raises:
        RuntimeError: The user has no home.
    """
    return str(Path(path).expanduser()) if path.startswith("~") else path


def format_config(config: Config, base: Config) -> str:
    """Format settings as TOML that :func:`read_config_file` reads.

    Args:
        config: Settings.
        base: Settings of the preset; those that are the same are left out.
    """
    lines = [f"{command(name)} = {_toml(getattr(config, name))}" for name in TOP if name != "world_model"]
    if config.world_model != base.world_model:
        lines.append(f"world-model = {_toml(config.world_model)}")
    for section in _SECTIONS:
        now, then = vars(getattr(config, section)), vars(getattr(base, section))
        changed = [f"{command(name)} = {_toml(value)}" for name, value in now.items() if value != then[name]]
        lines += ["", f"[{command(section)}]", *changed] if changed else []
    return "\n".join(lines) + "\n"


def _toml(value: bool | int | float | str) -> str:
    """Format a value; strings of JSON are basic strings of TOML, except for the delete character."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
