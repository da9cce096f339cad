"""Preflight: checks of all settings together, before the first stage runs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from worldmodels import pretrained
from worldmodels.data.episodes import EpisodeShard
from worldmodels.data.latents import are_held_out
from worldmodels.envs.policies import AGENT, parse_policies
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.controller import Controller
from worldmodels.pipeline import stages, tasks
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.stage import INITIAL_STATES, C, M, V
from worldmodels.training.distributed import ranks_from_env

_INT32 = 2**31 - 1
_MAX_LATENT_SIZE = 2**14  # of the native encoder
_MAX_ROWS = 2**20  # of any buffer of the native dream
_MAX_SEARCHED = 32_766  # parameters whose covariance CMA-ES decomposes
_MAX_EPISODES = 10_000_000
_MAX_PARALLEL = 4_096  # environments or processes
_MAX_SIGMA0 = 1e6  # C's outputs saturate at far smaller step sizes
_MAX_FLOAT32 = 3.4e38
_MAX_LOSS_WEIGHT = 1e9  # a larger weight may overflow float32
_INITIALIZED: tuple[Any, ...] = ("train_vae", "train_rnn", "evolve")  # sections with init_from
_BYTES_PER_PARAMETER = 16  # in training: weight, gradient and Adam's two moments, in float32


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
        _check_world_model(config, task)
    else:
        _check_sizes(config)
        if "collect" in names:
            _check_collect(config, task)
        if "train_vae" in names:
            _check_train_vae(config)
        if "encode" in names:
            check_precision("encode.precision", config.encode.precision)
            _at_most("encode.batch_size", config.encode.batch_size, 2**24)
            if config.encode.mirror and not task.mirror:
                raise ValueError(
                    f"encode.mirror: expected false, as a mirror image of an episode of {task.name} is not an episode, "
                    "got true"
                )
        if "train_rnn" in names:
            _check_train_rnn(config, task)
    if "check_dream" in names:
        model = _model_of(config, task)
        bytes_per_env = 4 * (4 * model["hidden_size"] + 4 * model["latent_size"])  # without the heads
        episodes = config.check_dream.dream_episodes
        _check_memory("check_dream.dream_episodes", episodes, bytes_per_env * episodes)
        _at_most("check_dream.dream_episodes", config.check_dream.dream_episodes, 2**24)
        _at_most("check_dream.episodes", config.check_dream.episodes, _MAX_EPISODES)
        _at_most("check_dream.num_envs", config.check_dream.num_envs, _MAX_PARALLEL)
    if "evolve" in names:
        _check_evolve(config, task)
    if "evaluate" in names:
        evaluate = config.evaluate
        _at_most("evaluate.episodes", evaluate.episodes, _MAX_EPISODES)
        _at_most("evaluate.curve_episodes", evaluate.curve_episodes, _MAX_EPISODES)
        _at_most("evaluate.num_envs", evaluate.num_envs, _MAX_PARALLEL)
        chosen = {name: value for name in ("variant", "resolution") if (value := getattr(evaluate, name))}
        _check_environment(replace(config.environment, **chosen), "evaluate" if chosen else "environment", records=True)
    for environment in dict.fromkeys(_environments(config, [name for name in tried if name in names])):
        from worldmodels.envs.making import try_environment

        try_environment(environment, task.rules)


def _environments(config: Config, names: Collection[str]) -> Iterator[EnvSpec]:
    """Yield the environments that stages make with Gymnasium."""
    from worldmodels.envs.making import backend

    playing = {"collect", "check_dream", *(["evolve"] if config.evolve.evaluate_in == "environment" else [])}
    if playing & set(names) and backend(config.environment) == "gymnasium":
        yield replace(config.environment, backend="gymnasium")
    if "evaluate" in names:  # records an episode with any back end
        chosen = {name: value for name in ("variant", "resolution") if (value := getattr(config.evaluate, name))}
        yield replace(config.environment, backend="gymnasium", **chosen)


def check_precision(name: str, precision: str) -> None:
    """Check that the device supports a precision.

    Args:
        name: Name of the setting.
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"``.

    Raises:
        ValueError: The precision is bfloat16, and the device does not support it.
    """
    if precision != "bfloat16":
        return
    import torch

    from worldmodels.models.device import autocast, device

    where = device()
    try:
        autocast(where, precision)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).partition(': ')[2]}") from error
    if where.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{name}: expected float32 or auto, as this GPU has no bfloat16, got bfloat16")


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


def check_rounds(config: Config) -> None:
    """Check the settings of a run's rounds of own play and of its refinement.

    Raises:
        ValueError: A setting is invalid.
    """
    rounds = config.rounds
    parse_policies(rounds.policies, tasks.of(config).policies, "rounds.policies")
    for name in ("episodes", "evaluate_episodes"):
        _at_most(f"rounds.{name}", getattr(rounds, name), _MAX_EPISODES)
    for name in ("vae_steps", "rnn_steps", "generations"):
        _at_most(f"rounds.{name}", getattr(rounds, name), _INT32)
    for name in ("vae_lr", "rnn_lr"):
        _at_most(f"rounds.{name}", getattr(rounds, name), _MAX_FLOAT32)
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


def _check_collect(config: Config, task: tasks.Task) -> None:
    collect = config.collect
    _check_environment(config.environment, "environment", ignore_done=collect.ignore_done)
    _at_most("collect.episodes", collect.episodes, _MAX_EPISODES)
    _at_most("collect.num_workers", collect.num_workers, _MAX_PARALLEL)
    agent_policies = [name for name, _ in parse_policies(collect.policies, task.policies) if name in AGENT]
    if agent_policies and not collect.agent:
        raise ValueError(f"collect.agent: expected the agent of policy '{agent_policies[0]}', got none")
    if collect.agent:
        for file in (V, M, C):
            _header("collect.agent", collect.agent, file)
        size = (_header("collect.agent", collect.agent, M).get("config") or {}).get("action_size")
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


def _check_train_vae(config: Config) -> None:
    vae = config.train_vae
    check_precision("train_vae.precision", vae.precision)
    for name in ("batch_size", "micro_batch_size", "validation_frames", "steps"):
        _at_most(f"train_vae.{name}", getattr(vae, name), _INT32)
    _at_most("train_vae.num_workers", vae.num_workers, _MAX_PARALLEL)
    _at_most("train_vae.lr", vae.lr, _MAX_FLOAT32)
    for name in ("kl_tolerance", "kl_weight", "quartic_weight"):
        _at_most(f"train_vae.{name}", getattr(vae, name), _MAX_LOSS_WEIGHT)
    _check_processes("train_vae.batch_size", vae.batch_size, "frames")
    _check_memory("train_vae.batch_size", vae.batch_size, vae.batch_size * (64 * 64 * 3 + 4 * vae.latent_size))
    if vae.init_from:
        found = _header("train_vae.init_from", vae.init_from, V).get("config")
        expected = {"latent_size": vae.latent_size}
        if found != expected:
            raise ValueError(
                f"train_vae.init_from: expected {expected} as in the settings, got {found} in {vae.init_from}"
            )


def _check_train_rnn(config: Config, task: tasks.Task) -> None:
    rnn = config.train_rnn
    check_precision("train_rnn.precision", rnn.precision)
    for name in ("batch_size", "sequence_length", "micro_batch_steps", "steps"):
        _at_most(f"train_rnn.{name}", getattr(rnn, name), _INT32)
    _at_most("train_rnn.lr_decay", rnn.lr_decay, 1)
    for name in ("lr", "lr_end"):
        _at_most(f"train_rnn.{name}", getattr(rnn, name), _MAX_FLOAT32)
    for name in ("done_pos_weight", "grad_clip"):
        _at_most(f"train_rnn.{name}", getattr(rnn, name), _MAX_LOSS_WEIGHT)
    episodes = config.collect.episodes
    training = episodes - int(are_held_out(episodes, rnn.validation_fraction).sum())
    sequences = rnn.batch_size if config.collect.include else min(rnn.batch_size, config.collect.episodes)
    _check_processes("train_rnn.batch_size", rnn.batch_size, "sequences")
    if not config.collect.include:
        _check_processes("collect.episodes", training, "training episodes")
    values = 2 * config.train_vae.latent_size + len(task.actions)
    _check_memory("train_rnn.sequence_length", rnn.sequence_length, 4 * sequences * rnn.sequence_length * values)
    if rnn.done_lookahead >= task.max_steps:
        raise ValueError(
            f"train_rnn.done_lookahead: expected less than {task.max_steps}, the longest episode of {task.name}, "
            f"got {rnn.done_lookahead}"
        )
    if rnn.init_from:
        found = _header("train_rnn.init_from", rnn.init_from, M).get("config")
        if isinstance(found, dict):
            found.pop("done_pos_weight", None)
        expected = {
            "latent_size": config.train_vae.latent_size,
            "action_size": len(task.actions),
            "hidden_size": rnn.hidden_size,
            "mixtures": rnn.num_mixtures,
            "restart_input": rnn.restart_input,
            "done_head": rnn.done_head,
            "reward_head": rnn.reward_head,
        }
        if found != expected:
            raise ValueError(
                f"train_rnn.init_from: expected {expected} as in the settings, got {found} in {rnn.init_from}"
            )


def _check_sizes(config: Config) -> None:
    """Check the sizes of V and M against the limits of the native core and the memory of training."""
    vae, rnn = config.train_vae, config.train_rnn
    _at_most("train_vae.latent_size", vae.latent_size, _MAX_LATENT_SIZE)
    _at_most("train_rnn.hidden_size", rnn.hidden_size, _MAX_ROWS)
    _at_most("train_rnn.num_mixtures", rnn.num_mixtures, (_MAX_ROWS - 2) // (3 * vae.latent_size))
    size, head = rnn.hidden_size, 3 * vae.latent_size * rnn.num_mixtures
    parameters = 4 * size * (vae.latent_size + size + 2) + head * size
    _check_memory("train_rnn.hidden_size", size, parameters * _BYTES_PER_PARAMETER)


def _memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_memory(name: str, value: int, needed: int) -> None:
    """Check that arrays of ``needed`` bytes fit in the memory of this machine."""
    available = _memory()
    if needed > available:
        raise ValueError(
            f"{name}: expected a size that fits in {available / 2**30:.0f} GiB of memory, got {value}, which needs "
            f"{needed / 2**30:,.0f} GiB"
        )


def _check_world_model(config: Config, task: tasks.Task) -> None:
    """Check the files of a given world model, and that it has the actions of the task."""
    for file in (V, M, INITIAL_STATES):
        _header("world_model", config.world_model, file)
    model = _model_of(config, task)
    if model["action_size"] != len(task.actions):
        raise ValueError(
            f"world_model: expected an M of {len(task.actions)} actions ({', '.join(task.actions)}), got one of "
            f"{model['action_size']} in {config.world_model}"
        )


def _model_of(config: Config, task: tasks.Task) -> dict[str, Any]:
    """Return the sizes and heads of M, from the given world model or from the settings."""
    if config.world_model:
        model = _header("world_model", config.world_model, M).get("config")
        names = ("latent_size", "hidden_size", "action_size", "done_head", "reward_head")
        if not isinstance(model, dict) or not all(isinstance(model.get(name), int) for name in names):
            raise ValueError(
                f"world_model: expected the config of an M in {config.world_model}/{M}, got {model!r:.200}"
            )
        return model
    rnn = config.train_rnn
    return {
        "latent_size": config.train_vae.latent_size,
        "hidden_size": rnn.hidden_size,
        "action_size": len(task.actions),
        "done_head": rnn.done_head,
        "reward_head": rnn.reward_head,
    }


def _check_evolve(config: Config, task: tasks.Task) -> None:
    evolve, model = config.evolve, _model_of(config, task)
    in_dream = evolve.evaluate_in == "dream"
    if not (in_dream or task.env_id):
        raise ValueError(
            f"evolve.evaluate_in: expected dream, as recordings have no environment, got {evolve.evaluate_in}"
        )
    if in_dream and not (task.survival or model["reward_head"]):
        raise ValueError(
            f"evolve.evaluate_in: expected environment, or train_rnn.reward_head so that dreams have a score, "
            f"got {evolve.evaluate_in}"
        )
    if evolve.termination != "threshold" and not model["done_head"]:
        raise ValueError(
            "evolve.termination: expected threshold, or train_rnn.done_head so that dreams terminate, got "
            f"{evolve.termination}"
        )
    if evolve.device == "cuda" and (evolve.precision == "bfloat16" or not in_dream):
        raise ValueError(
            f"evolve.device: expected cpu with evolve.precision {evolve.precision} and evolve.evaluate_in "
            f"{evolve.evaluate_in} (cuda supports dreams in float32), got cuda"
        )
    if evolve.precision == "bfloat16":
        from worldmodels import _core

        if "avx512_bf16" not in _core.simd_levels():
            raise ValueError("evolve.precision: expected float32, as this CPU has no AVX-512 BF16, got bfloat16")
    if evolve.popsize < 2:
        raise ValueError(f"evolve.popsize: expected at least 2, got {evolve.popsize}")
    _at_most("evolve.episodes", evolve.episodes, _INT32 // evolve.popsize)
    _at_most("evolve.evaluate_episodes", evolve.evaluate_episodes, _INT32)
    _at_most("evolve.generations", evolve.generations, _INT32)
    if evolve.temperature > _MAX_FLOAT32:
        raise ValueError(f"evolve.temperature: expected a float32 number, got {evolve.temperature:g}")
    _at_most("evolve.max_steps", evolve.max_steps, _INT32)
    _at_most("evolve.num_envs", evolve.num_envs, _MAX_PARALLEL)
    _at_most("evolve.num_threads", evolve.num_threads, _MAX_PARALLEL)
    _at_most("evolve.weight_decay", evolve.weight_decay, _MAX_LOSS_WEIGHT)
    if evolve.sigma0 > _MAX_SIGMA0:
        raise ValueError(f"evolve.sigma0: expected at most {_MAX_SIGMA0:g}, got {evolve.sigma0:g}")
    if not in_dream:
        _check_environment(config.environment, "environment")
        if evolve.max_steps > task.max_steps:
            raise ValueError(
                f"evolve.max_steps: expected at most {task.max_steps}, the longest episode of {task.name}, "
                f"got {evolve.max_steps}"
            )
    midway = folder_of(config.world_model) / "rnn" / "midway.safetensors"
    if evolve.initial_states == "random" and config.world_model and not midway.is_file():
        raise ValueError(
            f"evolve.initial_states: expected first, as {config.world_model} has no burned-in states, got random"
        )
    _check_controller(config, task, model)


def _check_controller(config: Config, task: tasks.Task, model: dict[str, Any]) -> None:
    """Check the architecture of C, the number of parameters for CMA-ES, and the C of ``evolve.init_from``."""
    evolve = config.evolve
    _at_most("evolve.hidden_units", evolve.hidden_units, _MAX_ROWS)
    controller = Controller(
        model["latent_size"],
        model["hidden_size"],
        model["action_size"],
        evolve.features,
        evolve.bias,
        evolve.hidden_units,
        task.squash,
        task.choices,
    )
    size = controller.feature_size
    if evolve.pca_components > size:
        raise ValueError(
            f"evolve.pca_components: expected at most {size}, the features of C, got {evolve.pca_components}"
        )
    if evolve.pca_components and evolve.scale_inputs:
        raise ValueError("evolve.scale_inputs: expected false, as evolve.pca_components are whitened, got true")
    rows, columns = controller.layer_shapes[0]
    searched = controller.size - (rows * (columns - evolve.pca_components) if evolve.pca_components else 0)
    if searched > _MAX_SEARCHED:
        name = "hidden_units" if evolve.hidden_units else "features"
        raise ValueError(
            f"evolve.{name}: expected at most {_MAX_SEARCHED:,} parameters of C for CMA-ES, got {searched:,}; reduce "
            "them with evolve.pca_components"
        )
    _check_memory("evolve.popsize", evolve.popsize, 4 * 8 * evolve.popsize * searched)
    if evolve.init_from:
        found = _header("evolve.init_from", evolve.init_from, C).get("config")
        try:
            initial = Controller(**(found or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"evolve.init_from: expected a controller in {evolve.init_from}, got {error!s:.200}"
            ) from error
        if initial != controller:
            raise ValueError(f"evolve.init_from: expected {controller}, got {initial} in {evolve.init_from}")


def _check_environment(environment: EnvSpec, section: str, *, ignore_done: bool = False, records: bool = False) -> None:
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


def _check_processes(name: str, rows: int, unit: str) -> None:
    """Check that a batch has a row for each process of a torchrun launch."""
    processes = ranks_from_env().size
    if rows < processes:
        raise ValueError(f"{name}: expected at least {processes} {unit}, one per process of torchrun, got {rows}")


def _at_most(name: str, value: float, limit: float) -> None:
    if value > limit:
        raise ValueError(f"{name}: expected at most {limit}, got {value}")


def folder_of(name: str) -> Path:
    """Return the folder of a pretrained world model, without checking its hashes, or the run folder of that name."""
    return pretrained.path(name) if pretrained.is_name(name) else Path(name)


def _header(setting: str, name: str, file: str) -> dict[str, Any]:
    """Read the metadata of a safetensors file of a run folder, without its tensors.

    Args:
        setting: Setting that names the folder, for error messages.
        name: Name of a pretrained world model, or run folder.
        file: Path in the folder.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file was not written by this package.
    """
    path = folder_of(name) / file
    if not path.is_file():
        choices = ", ".join(pretrained.names())
        raise FileNotFoundError(f"{setting}: expected a run folder with {file}, or one of {choices}, got {name}")
    try:
        with safe_open(path, framework="numpy") as opened:
            metadata = json.loads((opened.metadata() or {})["about"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{setting}: expected {path} as worldmodels writes it, got {error!r:.200}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{setting}: expected {path} as worldmodels writes it, got {metadata!r:.200}")
    return metadata
