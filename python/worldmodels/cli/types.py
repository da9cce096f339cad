"""Types of the arguments: what the parser accepts, and one-line errors."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from worldmodels.pipeline import tasks
from worldmodels.pipeline.sinks import SINKS
from worldmodels.support.suggestions import suggestion


class Parser(argparse.ArgumentParser):
    """Argument parser with one-line errors, without the usage, which has hundreds of lines."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')} (see `{self.prog} --help`)\n")

    def flags(self) -> list[str]:
        """List all flags."""
        return list(self._option_string_actions)


class OneOf:
    """Argument type that accepts the given names; its error suggests the closest one."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)

    def __call__(self, text: str) -> str:
        """Check a name."""
        if text not in self.names:
            choices = ", ".join(name or "(empty)" for name in self.names)
            raise argparse.ArgumentTypeError(f"expected one of {choices}, got {text!r}{suggestion(text, self.names)}")
        return text


def parse_task(text: str) -> str:
    """Argument type: name of a task, or what may be a Gymnasium id."""
    return text if tasks.is_id(text) else OneOf(tasks.names())(text)


def parse_sinks(text: str) -> tuple[str, ...]:
    """Argument type: names of sinks, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    return tuple(dict.fromkeys(map(OneOf(SINKS), names)))


def braces(names: Iterable[str]) -> str:
    """Format the choices of an argument for its usage."""
    return "{" + ",".join(names) + "}"


def parse_path(text: str) -> str:
    """Argument type: a non-empty path, with ``~`` expanded."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, got an empty string")
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}: {error}") from error


def parse_path_or_empty(text: str) -> str:
    """Argument type: a path with ``~`` expanded, or an empty string."""
    return parse_path(text) if text else text
