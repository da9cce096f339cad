"""Checks of the real environment and of the settings of collect."""

from __future__ import annotations

from dataclasses import replace

from worldmodels.data.episodes import EpisodeShard
from worldmodels.envs.policies import AGENT, parse_policies
from worldmodels.envs.spec import EnvSpec
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.preflight.files import folder_of, header
from worldmodels.pipeline.preflight.limits import MAX_EPISODES, MAX_PARALLEL, at_most
from worldmodels.pipeline.stage import C, M, V


def check_environment(environment: EnvSpec, section: str, *, ignore_done: bool = False, records: bool = False) -> None:
    """Check that the real environment is registered, installed and accepts its options.

    Args:
        environment: Specification of the real environment.
        section: Section of the settings with its options.
        ignore_done: Whether episodes continue past termination.
        records: Whether an episode is recorded, which uses Gymnasium's environment with any back end.
    """
    from worldmodels.envs.making import backend, check_options, entry_point, import_packages

    import_packages(environment)
    check_options(environment, section)
    if backend(environment) == "gymnasium" or records:
        entry_point(environment.id)
    if ignore_done and environment.backend == "envpool":
        raise ValueError("collect.ignore_done: expected environment.backend gymnasium, got envpool")
    if ignore_done:
        check_options(replace(environment, variant="", resolution=""), "collect", ignore_done=True)


def check_collect(config: Config, task: tasks.Task) -> None:
    """Check the settings of collect, and the run folders that they name."""
    collect = config.collect
    check_environment(config.environment, "environment", ignore_done=collect.ignore_done)
    at_most("collect.episodes", collect.episodes, MAX_EPISODES)
    at_most("collect.num_workers", collect.num_workers, MAX_PARALLEL)
    agent_policies = [name for name, _ in parse_policies(collect.policies, task.policies) if name in AGENT]
    if agent_policies and not collect.agent:
        raise ValueError(f"collect.agent: expected the agent of policy '{agent_policies[0]}', got none")
    if collect.agent:
        for file in (V, M, C):
            header("collect.agent", collect.agent, file)
        size = (header("collect.agent", collect.agent, M).get("config") or {}).get("action_size")
        if size != len(task.actions):
            raise ValueError(
                f"collect.agent: expected an agent of {len(task.actions)} actions ({', '.join(task.actions)}), got one "
                f"of {size} in {collect.agent}"
            )
    if collect.include:
        _check_included(config, task)
    if collect.episodes < 2 and not collect.include:
        raise ValueError("collect.episodes: expected at least 2, to hold one out for validation, got 1")
    if collect.min_length > task.max_steps:
        raise ValueError(
            f"collect.min_length: expected at most Task.max_steps = {task.max_steps}, the longest episode of "
            f"{task.name}, got {collect.min_length}"
        )


def _check_included(config: Config, task: tasks.Task) -> None:
    """Check that a run has complete episodes of the same environment."""
    name, folder = config.collect.include, folder_of(config.collect.include)
    shards = sorted((folder / "episodes").glob("*.h5"))
    if not shards:
        raise FileNotFoundError(f"collect.include: expected a run folder with episodes, got {name}")
    if (folder / "stages" / "collect.begun.json").is_file():
        raise ValueError(f"collect.include: expected a run whose collect is complete, got {name}")
    shard = EpisodeShard(shards[0])
    size = shard.actions.shape[1]
    shard.close()
    if size != len(task.actions):
        raise ValueError(f"collect.include: expected episodes of {len(task.actions)} actions, got {size} in {name}")
    other = RunFolder.stored_config(folder)
    if other is not None and not tasks.is_recordings(other.task) and other.environment.id != config.environment.id:
        raise ValueError(
            f"collect.include: expected episodes of {config.environment.id}, got those of {other.environment.id} in "
            f"{name}"
        )
