"""Outputs of stages in a run folder: which files they are, and how they are discarded."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from worldmodels.pipeline import stages
from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.profiles import is_profile
from worldmodels.pipeline.stage import Stage
from worldmodels.pipeline.stages import STAGES
from worldmodels.support.files import atomic_path, parse_line
from worldmodels.support.progress import label

_TEMPORARY = re.compile(r".+\.\d+\.tmp")  # name of a temporary file of atomic_path


def output_files(run: RunFolder, stage: Stage) -> Iterator[Path]:
    """List the existing output files of a stage."""
    return itertools.chain.from_iterable(map(run.folder.glob, _patterns(run, stage)))


def _patterns(run: RunFolder, stage: Stage) -> Iterator[str]:
    """Expand the patterns of a stage's outputs, relative to the run folder."""
    names = {
        "policies": [escape(name.replace(" ", "_")) for name in run.task.policies],
        "baselines": [escape(name) for name in run.task.baselines],
    }
    for pattern in stage.outputs:
        before, brace, rest = pattern.partition("{")
        choice, _, after = rest.partition("}")
        choices = names.get(choice) or choice.split(",")
        yield from (f"{before}{name}{after}" for name in choices) if brace else (pattern,)


def check_discardable(run: RunFolder, discarded: Sequence[Stage]) -> None:
    """Check that the outputs of stages can be removed, before any is.

    Raises:
        IsADirectoryError: A folder has the name of an output file.
        PermissionError: A folder is not writable.
    """
    outputs = [path for stage in discarded if run.has_run(stage) for path in output_files(run, stage)]
    if any(map(run.has_run, discarded)):
        outputs += [run.path("metrics.jsonl"), run.path("stages", "*.json")]
    for path in outputs:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: expected a file, got a folder; nothing was discarded")
        if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{path.parent}: expected a writable folder; nothing was discarded")


def discard(run: RunFolder, discarded: Sequence[Stage]) -> None:
    """Remove the outputs of stages that have a marker, in reverse order.

    An interruption leaves incomplete stages: none is complete whose inputs are not. Other files in their folders are
    kept and printed. A folder may be a symbolic link.
    """
    present = [stage for stage in reversed(discarded) if run.has_run(stage)]
    for stage in present:
        if run.marker(stage.name).is_file():
            run.marker(stage.name).replace(run.begun(stage.name))
    for stage in present:
        removed = list(output_files(run, stage))
        for path in removed:
            path.unlink()
        filter_metrics(run, partial(_is_of_others, stage.command))
        run.begun(stage.name).unlink()
        folder = run.path(stage.folder)
        for inner in {path.parent for path in removed} - {folder, run.folder}:
            if not inner.is_symlink() and not any(inner.iterdir()):
                inner.rmdir()
        others = sorted(path.relative_to(run.folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            names = f"{', '.join(others[:3])}{more}"
            print(f"{label(stage.command)}  kept {names}: not outputs of this stage", file=sys.stderr)
        elif folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def _is_of_others(stage: str, line: dict[str, Any]) -> bool:
    return stage not in (line.get("stage"), line.get("of") if is_profile(line) else None)


def invalidate(run: RunFolder, stage: Stage) -> None:
    """Remove the marker and the outputs of a stage. Cached scores are kept, as they name their player."""
    run.marker(stage.name).unlink(missing_ok=True)
    for path in output_files(run, stage):
        if path.is_file() and path.suffix != ".jsonl":
            path.unlink()


def remove_temporary_files(run: RunFolder) -> None:
    """Remove temporary files of killed processes, and markers of incomplete stages that are complete."""
    for name in stages.NAMES:
        if run.marker(name).is_file():
            run.begun(name).unlink(missing_ok=True)
    patterns = [pattern for stage in STAGES for pattern in _patterns(run, stage)]
    for pattern in ["config.json", "metrics.jsonl", "stages/*.json", *patterns]:
        for stray in run.folder.glob(f"{pattern}.*.tmp"):
            if _TEMPORARY.fullmatch(stray.name):
                stray.unlink(missing_ok=True)


def filter_metrics(run: RunFolder, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Remove lines of ``metrics.jsonl``, and damaged ones."""
    path = run.path("metrics.jsonl")
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines()
    kept = [line + b"\n" for line in lines if (value := parse_line(line)) and is_kept(value)]
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(kept))
