"""Checks of the settings of evolve and of C."""

from __future__ import annotations

from typing import Any

from worldmodels.models.controller import Controller
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.preflight.data import check_environment
from worldmodels.pipeline.preflight.files import folder_of, header, model_of
from worldmodels.pipeline.preflight.limits import (
    INT32,
    MAX_FLOAT32,
    MAX_LOSS_WEIGHT,
    MAX_PARALLEL,
    MAX_ROWS,
    at_most,
    check_memory,
)
from worldmodels.pipeline.stage import C

_MAX_SEARCHED = 32_766  # parameters whose covariance CMA-ES decomposes
_MAX_SIGMA0 = 1e6  # C's outputs saturate at far smaller step sizes


def check_evolve(config: Config, task: tasks.Task) -> None:
    """Check the settings of evolve, and that M and the task support them."""
    evolve, model = config.evolve, model_of(config, task)
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
    at_most("evolve.episodes", evolve.episodes, INT32 // evolve.popsize)
    at_most("evolve.evaluate_episodes", evolve.evaluate_episodes, INT32)
    at_most("evolve.generations", evolve.generations, INT32)
    if evolve.temperature > MAX_FLOAT32:
        raise ValueError(f"evolve.temperature: expected a float32 number, got {evolve.temperature:g}")
    at_most("evolve.max_steps", evolve.max_steps, INT32)
    at_most("evolve.num_envs", evolve.num_envs, MAX_PARALLEL)
    at_most("evolve.num_threads", evolve.num_threads, MAX_PARALLEL)
    at_most("evolve.weight_decay", evolve.weight_decay, MAX_LOSS_WEIGHT)
    if evolve.sigma0 > _MAX_SIGMA0:
        raise ValueError(f"evolve.sigma0: expected at most {_MAX_SIGMA0:g}, got {evolve.sigma0:g}")
    if not in_dream:
        check_environment(config.environment, "environment")
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
    at_most("evolve.hidden_units", evolve.hidden_units, MAX_ROWS)
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
    check_memory("evolve.popsize", evolve.popsize, 4 * 8 * evolve.popsize * searched)
    if evolve.init_from:
        found = header("evolve.init_from", evolve.init_from, C).get("config")
        try:
            initial = Controller(**(found or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"evolve.init_from: expected a controller in {evolve.init_from}, got {error!s:.200}"
            ) from error
        if initial != controller:
            raise ValueError(f"evolve.init_from: expected {controller}, got {initial} in {evolve.init_from}")
