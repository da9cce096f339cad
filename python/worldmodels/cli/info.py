"""`worldmodels info`: the machine, or the profile of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.run import Run
from worldmodels.support.cpu import describe
from worldmodels.support.versions import versions


def print_info(options: argparse.Namespace) -> None:
    """Print versions, SIMD level, threads and devices, or the seconds per stage and phase of a run."""
    _machine() if options.run is None else _profile(Path(options.run))


def _profile(folder: Path) -> None:
    """Print the seconds per stage and phase of a run, or of each of its rounds."""
    from worldmodels.pipeline.profiles import format_profiles, read_profiles

    config = Run.stored_config(folder)
    if config is None:
        raise FileNotFoundError(f"{folder}: expected a run folder with config.json, got none")
    parts = []
    for number, part in enumerate(RunFolder(folder, config).rounds):
        profiles = read_profiles(part.folder)
        text = format_profiles(profiles) if profiles else f"{part.folder}: no stage has a profile"
        parts.append(f"round {number} of {config.last_round}: {part.folder}\n{text}" if config.last_round else text)
    print("\n\n".join(parts))


def _machine() -> None:
    import torch

    import worldmodels
    from worldmodels.support.simd import simd_level

    lines = {
        **versions(),
        **describe(),
        "torch threads": str(torch.get_num_threads()),
        "SIMD level": f"{simd_level()} (of {', '.join(worldmodels.simd_levels())})",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for name, value in lines.items():
        print(f"{name:>14}  {value}")
