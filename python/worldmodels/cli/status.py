"""`worldmodels list` and `worldmodels status`."""

from __future__ import annotations

import argparse
from pathlib import Path

from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.status import format_list, format_status


def print_list(options: argparse.Namespace) -> None:
    """Print the pretrained world models, tasks and presets, and the runs of a folder."""
    print(format_list(Path(options.folder)))


def print_status(options: argparse.Namespace) -> None:
    """Print the stages, the progress and the score of a run."""
    folder = Path(options.run)
    config = RunFolder.stored_config(folder)
    if config is None:
        raise FileNotFoundError(f"{folder}: expected a run folder with config.json, got none")
    print(format_status(RunFolder(folder, config)))
