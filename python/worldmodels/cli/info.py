"""`worldmodels info`: the machine, or the profile of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from worldmodels.pipeline.run import Run
from worldmodels.support.cpu import describe
from worldmodels.support.versions import versions


def print_info(options: argparse.Namespace) -> None:
    """Print versions, SIMD level, threads and devices, or the seconds per stage and phase of a run."""
    _machine() if options.run is None else _profile(Path(options.run))


def _profile(folder: Path) -> None:
    """Print the seconds per stage and phase of a run."""
    from worldmodels.pipeline.profiles import format_profiles, read_profiles

    if Run.stored_config(folder) is None:
        raise FileNotFoundError(f"{folder}: expected a run folder with config.json, got none")
    profiles = read_profiles(folder)
    print(format_profiles(profiles) if profiles else f"{folder}: no stage has a profile")


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
