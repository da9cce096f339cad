"""The stages of the pipeline in their order; each is declared in its own file."""

from __future__ import annotations

from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.stage import Stage
from worldmodels.pipeline.stages import (
    check_dream,
    collect,
    encode,
    evaluate,
    evolve,
    report,
    train_rnn,
    train_vae,
)

STAGES: tuple[Stage, ...] = (
    collect.STAGE,
    train_vae.STAGE,
    encode.STAGE,
    train_rnn.STAGE,
    check_dream.STAGE,
    evolve.STAGE,
    evaluate.STAGE,
    report.STAGE,
)
NAMES = tuple(stage.name for stage in STAGES)


def names_of(config: Config) -> tuple[str, ...]:
    """Return the names of a run's stages. Recordings have no environment, and no ``evolve`` without rewards."""
    if not tasks.is_recordings(config.task):
        return NAMES
    names = ("collect", "train_vae", "encode", "train_rnn")
    return (*names, "evolve") if config.train_rnn.reward_head else names


def get(name: str) -> Stage:
    """Return the stage of a name."""
    return STAGES[NAMES.index(name)]


def earlier(stage: Stage) -> tuple[Stage, ...]:
    """Return the stages before a stage."""
    return STAGES[: STAGES.index(stage)]


def discarded_with(stage: Stage) -> tuple[Stage, ...]:
    """Return a stage and those invalidated with it: all later ones, or those that a leaf names."""
    return (stage, *map(get, stage.invalidates)) if stage.leaf else STAGES[STAGES.index(stage) :]


def requirements(stage: Stage) -> tuple[Stage, ...]:
    """Return the stages that must be complete before a stage runs."""
    if stage.after is not None:
        return tuple(map(get, stage.after))
    return tuple(other for other in earlier(stage) if not other.leaf)
