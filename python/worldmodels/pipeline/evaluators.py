"""Dreams and evaluators of a run, with the settings of its evolve stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from worldmodels.dream.gpu import TorchDream
from worldmodels.dream.native import Dream
from worldmodels.dream.world_model import WorldModel, load_burned_in_states, load_world_model
from worldmodels.models.controller import Controller
from worldmodels.models.device import device
from worldmodels.models.encoder import encodes_in_bfloat16
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.native_model import Termination
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model
from worldmodels.pipeline import tasks
from worldmodels.pipeline.run import Run
from worldmodels.rollout.evaluators import Evaluator
from worldmodels.rollout.evaluators.distributed import DistributedEvaluator
from worldmodels.rollout.evaluators.dream import DREAMS_PER_THREAD, DreamEvaluator
from worldmodels.rollout.evaluators.environment import EnvironmentEvaluator
from worldmodels.rollout.needs import ENVS_PER_THREAD, check_no_gpu, environment_needs, resolved
from worldmodels.support.cluster import Needs, active_cluster
from worldmodels.support.cpu import available_cpus, default_threads
from worldmodels.support.simd import Precision, precisions


def make_evaluator(run: Run) -> Evaluator:
    """Create the evaluator of ``evolve.evaluate_in``."""
    dream = run.config.evolve.evaluate_in == "dream"
    return dream_evaluator(run) if dream else environment_evaluator(run)


def dream_evaluator(run: Run) -> Evaluator:
    """Create the evaluator that plays in the dream of a run, on the cluster if there is one.

    Raises:
        ValueError: The settings require a CUDA device and there is none, or a cluster; or M predicts no reward.
    """
    config = run.config.evolve
    if not run.task.dream_has_reward(load_world_model(run.folder).mdnrnn):
        raise ValueError(f"evolve.evaluate_in: expected environment, as M predicts no reward, got {config.evaluate_in}")
    threads = config.num_threads or default_threads()
    if config.device == "cpu":
        dream = make_dream(run, config.initial_states, termination=config.termination)
        cluster = active_cluster()
        if cluster is None:
            return DreamEvaluator(dream, threads)
        needs = Needs(bfloat16=dream.precision == "bfloat16")
        make = partial(DreamEvaluator, dream)
        return DistributedEvaluator(cluster, make, needs, batch=DREAMS_PER_THREAD, threaded=True)
    world, lstm_states = _initial_states(run, config.initial_states)
    on_gpu = TorchDream(
        *world,
        make_controller(run, world.mdnrnn),
        device=gpu(),
        temperature=config.temperature,
        max_steps=config.max_steps,
        termination=config.termination,
        **lstm_states,
    )
    return DreamEvaluator(on_gpu, threads)


def environment_evaluator(run: Run) -> Evaluator:
    """Create the evaluator that plays in the real environment of a run, on the cluster if there is one."""
    config = run.config
    model = load_model(run.path("rnn", "rnn.safetensors"), MDNRNN)
    cluster = active_cluster()
    precision: str = config.encode.precision
    if cluster is not None:
        check_no_gpu()
        precision = "bfloat16" if encodes_in_bfloat16(device(), precision) else "float32"
    make = partial(
        EnvironmentEvaluator,
        load_model(run.path("vae", "vae.safetensors"), ConvVAE),
        model,
        make_controller(run, model),
        config.environment if cluster is None else resolved(config.environment),
        max_steps=config.evolve.max_steps,
        precision=precision,
        max_steps_without_reward=config.evolve.max_steps_without_reward,
        rules=run.task.rules,
    )
    if cluster is None:
        return make(num_envs=config.evolve.num_envs, num_workers=config.evolve.num_threads or available_cpus())
    modules = tasks.modules(config)
    needs = environment_needs(config.environment, modules, bfloat16=precision == "bfloat16")
    return DistributedEvaluator(cluster, partial(_in_worker, make, config.evolve.num_envs), needs)


def _in_worker(make: Callable[..., EnvironmentEvaluator], num_envs: int, num_threads: int) -> EnvironmentEvaluator:
    """Make the evaluator of one worker of a cluster."""
    return make(num_envs=min(num_envs, ENVS_PER_THREAD * num_threads), num_workers=num_threads)


def make_controller(run: Run, model: MDNRNN) -> Controller:
    """Create the controller of a run's settings, for its M."""
    config = run.config.evolve
    return Controller(
        model.latent_size,
        model.hidden_size,
        model.action_size,
        features=config.features,
        bias=config.bias,
        hidden_units=config.hidden_units,
        squash=run.task.squash,
        choices=run.task.choices,
    )


def gpu() -> torch.device:
    """Return the CUDA device of the dream.

    Raises:
        ValueError: There is no CUDA device, or the stage runs on a cluster.
    """
    if active_cluster() is not None:
        raise ValueError("evolve.device: expected cpu, as workers of --cluster use no GPU, got cuda")
    if not torch.cuda.is_available():
        raise ValueError("evolve.device: expected cpu, as there is no CUDA device here, got cuda")
    return torch.device("cuda", torch.cuda.current_device())


def make_dream(
    run: Run,
    initial_states: str = "first",
    *,
    termination: Termination | None = None,
    precision: Precision | None = None,
) -> Dream:
    """Create the native dream of a run.

    Args:
        run: Run folder.
        initial_states: Initial states, ``"first"`` or ``"random"``.
        termination: Termination of the episodes; None for that of the settings, with ``"sample"`` for ``"expected"``.
        precision: Precision; None for that of the settings.

    Raises:
        ValueError: The run folder has no burned-in states for ``"random"``.
    """
    config = run.config.evolve
    world, lstm_states = _initial_states(run, initial_states)
    return Dream(
        *world,
        make_controller(run, world.mdnrnn),
        temperature=config.temperature,
        max_steps=config.max_steps,
        precision=precision or resolve_precision(config.precision),
        termination=termination or sampled(config.termination),
        **lstm_states,
    )


def playback_precision(run: Run) -> Precision:
    """Resolve the precision of playback: that of the evolution, or float32 if this CPU does not support it."""
    wanted = resolve_precision(run.config.evolve.precision)
    return wanted if wanted in precisions() else "float32"


def sampled(termination: Termination) -> Termination:
    """Return the termination of dreams played step by step: ``"sample"`` for ``"expected"``, which weights returns."""
    return "sample" if termination == "expected" else termination


def resolve_precision(precision: Literal["auto", "float32", "bfloat16"]) -> Precision:
    """Resolve ``"auto"``: bfloat16 if this CPU supports it, else float32."""
    if precision == "auto":
        return "bfloat16" if "bfloat16" in precisions() else "float32"
    return precision


def _initial_states(run: Run, kind: str) -> tuple[WorldModel, dict[str, Any]]:
    """Load a run's world model with the initial states of a kind, and their LSTM states (none for ``"first"``)."""
    world = load_world_model(run.folder)
    if kind == "first":
        return world, {}
    burned_in = load_burned_in_states(run.folder, world.mdnrnn)
    if burned_in is None:
        raise ValueError(f"evolve.initial_states: expected first, as {run.folder} has no burned-in states, got random")
    zeros = np.zeros((len(world.initial_mu), world.mdnrnn.hidden_size), np.float32)
    both = world._replace(
        initial_mu=np.concatenate([world.initial_mu, burned_in["mu"]]),
        initial_logvar=np.concatenate([world.initial_logvar, burned_in["logvar"]]),
    )
    return both, {f"initial_{key}": np.concatenate([zeros, burned_in[key]]) for key in "hc"}
