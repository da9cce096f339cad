"""Completion scripts of shells, by shtab (extra `completion`)."""

from __future__ import annotations

import argparse
from typing import Any

from worldmodels.cli.types import OneOf, parse_path, parse_source, parse_source_or_empty, parse_task
from worldmodels.pipeline import tasks


def completion(top: argparse.ArgumentParser, shell: str) -> str:
    """Generate the completion script of a shell: ``"bash"``, ``"zsh"`` or ``"tcsh"``.

    Raises:
        ModuleNotFoundError: shtab is not installed.
    """
    import shtab

    _complete(top, shtab.FILE)
    script: str = shtab.complete(top, shell=shell)
    return script


def _complete(parser: argparse.ArgumentParser, file: Any) -> None:
    """Declare what completes each argument: the names of its type, or files."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete(command, file)
        elif isinstance(action.type, OneOf):
            action.choices = [name for name in action.type.names if name]
        elif action.type is parse_task:
            action.choices = tasks.names()
        elif action.type in (parse_path, parse_source, parse_source_or_empty):
            action.complete = file  # type: ignore[attr-defined]
