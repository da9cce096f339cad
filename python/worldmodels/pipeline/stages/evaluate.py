"""evaluate: the agent and the baselines play the real environment."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from worldmodels.pipeline.stage import INITIAL_STATES, C, M, Stage, V

if TYPE_CHECKING:
    from worldmodels.pipeline.config import Config
    from worldmodels.pipeline.run import Run


def evaluate(run: Run) -> dict[str, Any]:
    """Play the episodes that have not been played yet and write ``results.json``."""
    from worldmodels.pipeline.evaluation import evaluate_agent

    return evaluate_agent(run)


def _environment(config: Config) -> dict[str, Any]:
    return {"environment": asdict(config.environment)}


STAGE = Stage(
    name="evaluate",
    help="play the real environment with the agent and the baselines",
    run=evaluate,
    folder="evaluate",
    clustered=True,
    inputs=(V, M, INITIAL_STATES, C),
    outputs=(
        "results.json",
        "evaluate/{episodes,before,curve}.jsonl",
        "evaluate/{baselines}.jsonl",
        "evaluate/episode.{json,gif}",
        "evaluate/film.{webp,json}",
        "evaluate/frames.png",
    ),
    packages=("gymnasium", "matplotlib", "PIL"),
    leaf=True,
    invalidates=("report",),
    other_settings=_environment,
)
