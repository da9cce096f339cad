"""Profiles of a run: seconds per phase of every stage, in ``metrics.jsonl``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldmodels.analysis.stats import table
from worldmodels.data.records import ProfileLine
from worldmodels.pipeline.stages import STAGES
from worldmodels.support.files import read_lines
from worldmodels.support.profile import add_profiles


def is_profile(line: dict[str, Any]) -> bool:
    """Check whether a line of ``metrics.jsonl`` is a profile and nothing else."""
    return "profile" in line and line.keys() <= {"stage", "step", "profile"}


def read_profiles(folder: Path) -> dict[str, dict[str, float]]:
    """Add the seconds per phase of every stage of a run folder.

    Returns:
        Seconds per phase, by the stage's name on the command line, in the order of the stages.
    """
    path = folder / "metrics.jsonl"
    lines = ProfileLine.from_lines(line for line in (read_lines(path) if path.is_file() else []) if "profile" in line)
    by_stage = {name: [line.profile for line in lines if line.stage == name] for name in (s.command for s in STAGES)}
    return {name: add_profiles(profiles) for name, profiles in by_stage.items() if profiles}


def format_profiles(profiles: dict[str, dict[str, float]]) -> str:
    """Format profiles as a table for the terminal, the longest phase of a stage first."""
    rows = []
    for stage, profile in profiles.items():
        total = sum(profile.values())
        rows.append([stage, f"{total:.1f}", ""])
        for name, seconds in sorted(profile.items(), key=lambda item: -item[1]):
            rows.append([f"  {name}", f"{seconds:.1f}", f"{100 * seconds / max(total, 1e-9):.0f} %"])
    return table(["stage and phase", "seconds", "share"], rows)
