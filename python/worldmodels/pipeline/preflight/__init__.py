"""Preflight: checks of all settings together, before the first stage runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from worldmodels.envs.policies import parse_policies
from worldmodels.envs.spec import EnvSpec
from worldmodels.pipeline import stages, tasks
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.preflight.data import check_collect, check_environment
from worldmodels.pipeline.preflight.evolution import check_evolve
from worldmodels.pipeline.preflight.files import check_world_model, folder_of, model_of
from worldmodels.pipeline.preflight.limits import INT32, MAX_EPISODES, MAX_FLOAT32, MAX_PARALLEL, at_most, check_memory
from worldmodels.pipeline.preflight.training import (
    check_precision,
    check_sizes,
    check_train_rnn,
    check_train_vae,
)
from worldmodels.pipeline.stage import C, M, V

_INITIALIZED: tuple[Any, ...] = ("train_vae", "train_rnn", "evolve")  # sections with init_from


def check_config(
    config: Config,
    names: Collection[str],
    folder: Path | None = None,
    *,
    sources_exist: bool = True,
    tried: Collection[str] = (),
) -> None:
    """Check all settings together, for the stages that will run.

    Args:
        config: Settings.
        names: Names of the stages that are not complete.
        folder: Run folder, which no setting may name as its source; None if it is unknown.
        sources_exist: Whether the previous round exists; False before it has run.
        tried: Names of the stages whose environment is made and reset, which shows what its settings alone do not.

    Raises:
        ValueError: A setting is invalid; the message is ``section.setting: expected X, got Y``.
        FileNotFoundError: A run folder or file named by a setting does not exist.
        ModuleNotFoundError: A package required by a stage is not installed.
        ContractError: An environment cannot be made or reset.
    """
    task = tasks.of(config)
    names = [name for name in names if name in stages.names_of(config)]
    if config.collect.source and "collect" in names:
        from worldmodels.pipeline.recordings import check_source

        check_source(config)
        names.remove("collect")
    for package in dict.fromkeys(package for name in names for package in stages.get(name).packages):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    if folder is not None:
        _check_sources(config, names, folder)
        if config.world_model and not any(stages.get(name).world_model for name in names):
            config = replace(config, world_model=str(folder.absolute()))  # its files were copied
    if not sources_exist:
        names = [name for name in names if name != "collect"]
        parts = {section: replace(getattr(config, section), init_from="") for section in _INITIALIZED}
        config = replace(config, **parts)
    if config.world_model:
        check_world_model(config, task)
    else:
        check_sizes(config)
        if "collect" in names:
            check_collect(config, task)
        if "train_vae" in names:
            check_train_vae(config)
        if "encode" in names:
            check_precision("encode.precision", config.encode.precision)
            at_most("encode.batch_size", config.encode.batch_size, 2**24)
            if config.encode.mirror and not task.mirror:
                raise ValueError(
                    f"encode.mirror: expected false, as a mirror image of an episode of {task.name} is not an episode, "
                    "got true"
                )
        if "train_rnn" in names:
            check_train_rnn(config, task)
    if "check_dream" in names:
        model = model_of(config, task)
        bytes_per_env = 4 * (4 * model["hidden_size"] + 4 * model["latent_size"])  # without the heads
        episodes = config.check_dream.dream_episodes
        check_memory("check_dream.dream_episodes", episodes, bytes_per_env * episodes)
        at_most("check_dream.dream_episodes", config.check_dream.dream_episodes, 2**24)
        at_most("check_dream.episodes", config.check_dream.episodes, MAX_EPISODES)
        at_most("check_dream.num_envs", config.check_dream.num_envs, MAX_PARALLEL)
    if "evolve" in names:
        check_evolve(config, task)
    if "evaluate" in names:
        evaluate = config.evaluate
        at_most("evaluate.episodes", evaluate.episodes, MAX_EPISODES)
        at_most("evaluate.curve_episodes", evaluate.curve_episodes, MAX_EPISODES)
        at_most("evaluate.num_envs", evaluate.num_envs, MAX_PARALLEL)
        chosen = {name: value for name in ("variant", "resolution") if (value := getattr(evaluate, name))}
        check_environment(replace(config.environment, **chosen), "evaluate" if chosen else "environment", records=True)
    for environment in dict.fromkeys(_environments(config, [name for name in tried if name in names])):
        from worldmodels.envs.making import try_environment

        try_environment(environment, task.rules)


def check_rounds(config: Config) -> None:
    """Check the settings of a run's rounds of own play and of its refinement.

    Raises:
        ValueError: A setting is invalid.
    """
    rounds = config.rounds
    parse_policies(rounds.policies, tasks.of(config).policies, "rounds.policies")
    for name in ("episodes", "evaluate_episodes"):
        at_most(f"rounds.{name}", getattr(rounds, name), MAX_EPISODES)
    for name in ("vae_steps", "rnn_steps", "generations"):
        at_most(f"rounds.{name}", getattr(rounds, name), INT32)
    for name in ("vae_lr", "rnn_lr"):
        at_most(f"rounds.{name}", getattr(rounds, name), MAX_FLOAT32)
    if rounds.rounds and config.world_model:
        raise ValueError(
            f"rounds.rounds: expected a run that trains V and M, got {rounds.rounds} and the world model "
            f"{config.world_model}"
        )
    if config.last_round and config.evolve.evaluate_in != "dream":
        what = "rounds of own play" if rounds.rounds else "a refinement"
        raise ValueError(evolves_in_dream(what, config, trained=rounds.rounds > 0))


def evolves_in_dream(what: str, config: Config, *, trained: bool = False) -> str:
    """Format the error of what needs a C that is evolved in the dream, and with ``trained`` a V and M of its own."""
    presets = tasks.of(config).dreaming_presets(trained=trained)
    dreaming = " or ".join(f"--preset {name}" for name in presets)
    return (
        f"evolve.evaluate_in: expected dream for {what}{dreaming and f' ({dreaming})'}, got {config.evolve.evaluate_in}"
    )


def _environments(config: Config, names: Collection[str]) -> Iterator[EnvSpec]:
    """Yield the environments that stages make with Gymnasium."""
    from worldmodels.envs.making import backend

    playing = {"collect", "check_dream", *(["evolve"] if config.evolve.evaluate_in == "environment" else [])}
    if playing & set(names) and backend(config.environment) == "gymnasium":
        yield replace(config.environment, backend="gymnasium")
    if "evaluate" in names:  # records an episode with any back end
        chosen = {name: value for name in ("variant", "resolution") if (value := getattr(config.evaluate, name))}
        yield replace(config.environment, backend="gymnasium", **chosen)


def _check_sources(config: Config, names: Collection[str], folder: Path) -> None:
    """Check the settings that name another run: a run cannot read files that it will write itself."""
    sources = {
        "world_model": (config.world_model, (V, M)),
        "collect.agent": (config.collect.agent, (V, M, C)),
        "collect.include": (config.collect.include, ("episodes",)),
        "train_vae.init_from": (config.train_vae.init_from, (V,)),
        "train_rnn.init_from": (config.train_rnn.init_from, (M,)),
        "evolve.init_from": (config.evolve.init_from, (C,)),
    }
    for setting, (name, files) in sources.items():
        section = setting.partition(".")[0]
        if not name or (section != "world_model" and section not in names):
            continue
        if any((folder_of(name) / file).resolve() == (folder / file).resolve() for file in files):
            raise ValueError(f"{setting}: expected a run other than {folder} itself, got {name}")
