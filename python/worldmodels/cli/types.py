"""Types of the arguments: what the parser accepts, and one-line errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from worldmodels import pretrained
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config_file import expand_user
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
    """Argument type that accepts the given names; its error suggests the closest one.

    Args:
        names: Accepted names.
        other: What the error names next to them, as the caller accepts it; empty for nothing.
    """

    def __init__(self, names: Iterable[str], other: str = "") -> None:
        self.names = list(names)
        self.other = other

    def __call__(self, text: str) -> str:
        """Check a name."""
        if text not in self.names:
            choices = ", ".join(name or "(empty)" for name in self.names) + (f", or {self.other}" if self.other else "")
            raise argparse.ArgumentTypeError(f"expected one of {choices}, got {text!r}{suggestion(text, self.names)}")
        return text


def parse_task(text: str) -> str:
    """Argument type: name of a task, or what may be a Gymnasium id."""
    return text if tasks.is_id(text) else OneOf(tasks.names(), other="a Gymnasium id such as CartPole-v1")(text)


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
        return expand_user(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}: {error}") from error


def parse_source(text: str) -> str:
    """Argument type: name of a pretrained agent, or a path with ``~`` expanded; warns if it may be both."""
    if pretrained.is_name(text) and Path(text, "config.json").is_file():
        print(f"WARNING: {text}: the pretrained agent, not the run folder, which is ./{text}", file=sys.stderr)
    return parse_path(text)


def parse_source_or_empty(text: str) -> str:
    """Argument type: as :func:`parse_source`, or an empty string."""
    return parse_source(text) if text else text
