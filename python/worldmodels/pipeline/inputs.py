"""Inputs of a stage: the stages and rounds that it requires, and the files that it reads."""

from __future__ import annotations

from pathlib import Path

from worldmodels.pipeline import stages
from worldmodels.pipeline.folder import RunFolder, making
from worldmodels.pipeline.stage import C
from worldmodels.support.files import read_json


def require_earlier(run: RunFolder, name: str) -> None:
    """Check that the required stages of a stage, and the earlier rounds, are complete or taken from a world model.

    Raises:
        FileNotFoundError: A required stage or round is not complete, or the folder is not a run folder.
        ValueError: The run is of recordings, and the stage needs an environment or rewards.
    """
    stage = stages.get(name)
    if name not in stages.names_of(run.config):
        if name == "evolve":
            raise ValueError(
                "evolve: expected recordings with rewards, so that dreams have a score, got recordings without; add "
                "the column reward to every actions.csv and use another --out"
            )
        raise ValueError(f"{stage.command}: expected a run with an environment, got one of recordings")
    for earlier in stages.requirements(stage):
        if earlier.is_taken(run.config):
            continue
        is_there = run.marker(earlier.name).is_file()
        if not is_there or (earlier.leaf and not run.is_done(earlier.name)):  # a leaf may have other settings
            raise FileNotFoundError(
                f"{run.folder}: `worldmodels {stage.command}` needs the outputs of `worldmodels {earlier.command}`"
                + (" with the run's settings, got those of others" if is_there else "")
            )
    for part in run.rounds[:-1]:
        if not part.path(C).is_file():
            raise FileNotFoundError(
                f"{run.folder}: `worldmodels {stage.command}` needs the agent of {part.folder}; "
                f"`{making(run.config, run.folder, name)}` makes it"
            )


def check_inputs(folder: Path, name: str) -> None:
    """Check the inputs of a stage, before its outputs are discarded.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: A file is damaged.
    """
    stage = stages.get(name)
    for pattern in (*stage.inputs, *stage.optional_inputs):
        paths = sorted(folder.glob(pattern))
        if not paths and pattern in stage.inputs:
            raise FileNotFoundError(f"{folder}: `worldmodels {stage.command}` needs {pattern}, which is missing")
        for path in paths:
            _check_input(path)


def _check_input(path: Path) -> None:
    """Read a file of weights or latents, a JSON file, or the header of an episode shard."""
    if path.suffix == ".json":
        read_json(path)
    elif path.suffix == ".h5":
        from worldmodels.data.episodes import EpisodeShard

        EpisodeShard(path).close()
    elif path.parent.name == "latents":
        from worldmodels.data.latents import check_latents

        check_latents(path)
    else:
        from worldmodels.models.weights import load_tensors

        load_tensors(path)
