"""check-dream: open-loop policies play in the dream and in the real environment."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from worldmodels.pipeline.stage import INITIAL_STATES, M, Stage

if TYPE_CHECKING:
    from worldmodels.pipeline.config import Config
    from worldmodels.pipeline.run import Run


def check_dream(run: Run) -> dict[str, Any]:
    """Compare the scores of open-loop policies in the dream and in the real environment."""
    from worldmodels.pipeline.dream_check import check

    return check(run)


def _dream(config: Config) -> dict[str, Any]:
    evolve = config.evolve
    return {
        "environment": asdict(config.environment),
        "temperature": evolve.temperature,
        "termination": evolve.termination,
        "max_steps": evolve.max_steps,
    }


STAGE = Stage(
    name="check_dream",
    help="compare open-loop policies in the dream and in the game",
    run=check_dream,
    folder="check_dream",
    clustered=True,
    inputs=(M, INITIAL_STATES),
    outputs=("check_dream/check_dream.json", "check_dream/{policies}.jsonl"),
    packages=("gymnasium",),
    leaf=True,
    invalidates=("report",),
    other_settings=_dream,
)
