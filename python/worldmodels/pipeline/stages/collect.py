"""collect: policies play the real environment, and every frame goes to the episode store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from worldmodels.pipeline.stage import Stage

if TYPE_CHECKING:
    from worldmodels.pipeline.config import Config
    from worldmodels.pipeline.run import Run


def collect(run: Run) -> dict[str, Any]:
    """Play until the store is complete, or convert recordings."""
    if run.config.collect.source:
        from worldmodels.pipeline.recordings import convert_recordings

        return convert_recordings(run)
    from worldmodels.pipeline.collection import collect_episodes

    return collect_episodes(run)


def _environment(config: Config) -> dict[str, Any]:
    """The environment without its back end, which changes no episode."""
    return {"environment": {name: value for name, value in asdict(config.environment).items() if name != "backend"}}


STAGE = Stage(
    name="collect",
    help="collect episodes of the real environment",
    run=collect,
    folder="episodes",
    clustered=True,
    outputs=("episodes/[0-9][0-9][0-9][0-9][0-9].h5",),
    packages=("gymnasium", "h5py"),
    partial="*.h5",
    resumable=("episodes",),
    other_settings=_environment,
    world_model=True,
)
