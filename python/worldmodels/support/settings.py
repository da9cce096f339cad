"""Settings dataclasses: a field carries its default, help text, range and scope."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclasses.dataclass(frozen=True)
class Setting:
    """Metadata of one field.

    Attributes:
        help: Help text, one line.
        zero: Whether the number may be 0; it is positive otherwise.
        below: Upper bound of the number, exclusive.
        machine: Whether the setting says how a stage uses the machine and cannot change its results.
        common: Whether the short help of the command line lists it.
        location: Whether the text is a run folder or the name of a pretrained world model.
    """

    help: str
    zero: bool = False
    below: float = math.inf
    machine: bool = False
    common: bool = False
    location: bool = False


def setting(default: Any, help: str, **properties: Any) -> Any:
    """Declare a field of a settings dataclass; ``properties`` are those of :class:`Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **properties)})


def declared(section: type) -> dict[str, Setting]:
    """Return the :class:`Setting` of every field of a settings dataclass."""
    return {item.name: item.metadata["setting"] for item in dataclasses.fields(section)}


@cache
def _hints(section: type) -> dict[str, Any]:
    return get_type_hints(section)


def choices(section: type, name: str) -> tuple[str, ...]:
    """List the values of a setting whose type is a ``Literal``; empty for other types."""
    hint = _hints(section)[name]
    return get_args(hint) if get_origin(hint) is Literal else ()


def kind(section: type, name: str) -> type:
    """Return the type of a setting: ``int``, ``float``, ``bool`` or ``str``."""
    hint = _hints(section)[name]
    return str if get_origin(hint) is Literal else hint


def check(section: type, name: str, value: Any, label: str) -> None:
    """Check the value of one setting.

    Args:
        section: Settings dataclass.
        name: Name of the field.
        value: Value to check.
        label: Name of the setting in the message.

    Raises:
        ValueError: The field does not exist, or the value has another type or is out of range.
    """
    known = declared(section)
    if name not in known:
        raise ValueError(f"{label}: no such setting; expected one of {', '.join(known)}")
    wanted, own, allowed = kind(section, name), known[name], choices(section, name)
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{label}: expected {wanted.__name__}, got {value!r}")
    if allowed and value not in allowed:
        raise ValueError(f"{label}: expected one of {', '.join(one or '(empty)' for one in allowed)}, got {value!r}")
    if wanted in (int, float) and isinstance(value, int) and abs(value) > 2**1000:
        raise ValueError(f"{label}: expected a finite number, got an integer beyond float64")
    if wanted in (int, float):
        if not (value > 0 or (own.zero and value == 0)):
            raise ValueError(f"{label}: expected {'zero or more' if own.zero else 'more than zero'}, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{label}: expected a finite number, got {value!r}")
        if value >= own.below:
            raise ValueError(f"{label}: expected less than {own.below:g}, got {value!r}")
