"""Dreams and evaluators of a run, at the settings of its evolve stage."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from worldmodels.dream.gpu import TorchDream
from worldmodels.dream.native import Dream
from worldmodels.dream.world_model import WorldModel, load_burned_in_states, load_world_model
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.native_model import Termination
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model
from worldmodels.pipeline.run import Run
from worldmodels.rollout.evaluators import Evaluator
from worldmodels.rollout.evaluators.dream import DreamEvaluator
from worldmodels.rollout.evaluators.environment import EnvironmentEvaluator
from worldmodels.support.cpu import available_cpus, default_threads
from worldmodels.support.simd import Precision, precisions


def make_evaluator(run: Run) -> Evaluator:
    """The evaluator that a run's settings choose: ``evolve.evaluate_in``."""
    dream = run.config.evolve.evaluate_in == "dream"
    return dream_evaluator(run) if dream else environment_evaluator(run)


def dream_evaluator(run: Run) -> DreamEvaluator:
    """The evaluator of a run in its dream, at the settings of its evolve stage.

    Raises:
        ValueError: there is no CUDA device, and the settings ask for one; or M predicts no reward.
    """
    config = run.config.evolve
    if not run.task.dream_has_reward(load_world_model(run.folder).mdnrnn):
        raise ValueError(f"evolve.evaluate_in: expected environment, as M predicts no reward, got {config.evaluate_in}")
    threads = config.num_threads or default_threads()
    if config.device == "cpu":
        dream = make_dream(run, config.initial_states, termination=config.termination)
        return DreamEvaluator(dream, threads)
    world, memory = _starts(run, config.initial_states)
    on_gpu = TorchDream(
        *world,
        make_controller(run, world.mdnrnn),
        device=gpu(),
        temperature=config.temperature,
        max_steps=config.max_steps,
        termination=config.termination,
        **memory,
    )
    return DreamEvaluator(on_gpu, threads)


def environment_evaluator(run: Run) -> EnvironmentEvaluator:
    """The evaluator of a run in the real environment, at the settings of its evolve stage."""
    config = run.config
    model = load_model(run.path("rnn", "rnn.safetensors"), MDNRNN)
    return EnvironmentEvaluator(
        load_model(run.path("vae", "vae.safetensors"), ConvVAE),
        model,
        make_controller(run, model),
        config.environment,
        num_envs=config.evolve.num_envs,
        num_workers=config.evolve.num_threads or available_cpus(),
        max_steps=config.evolve.max_steps,
        precision=config.encode.precision,
        max_steps_without_reward=config.evolve.max_steps_without_reward,
        rules=run.task.rules,
    )


def make_controller(run: Run, model: MDNRNN) -> Controller:
    """The shape of C that a run's settings choose, for its M."""
    config = run.config.evolve
    return Controller(
        model.latent_size,
        model.hidden_size,
        model.action_size,
        features=config.features,
        bias=config.bias,
        hidden_units=config.hidden_units,
        squash=run.task.squash,
    )


def gpu() -> torch.device:
    """The CUDA device to dream on.

    Raises:
        ValueError: there is none.
    """
    if not torch.cuda.is_available():
        raise ValueError("evolve.device: expected cpu, as there is no CUDA device here, got cuda")
    return torch.device("cuda", torch.cuda.current_device())


def make_dream(
    run: Run,
    starts: str = "first",
    *,
    termination: Termination | None = None,
    precision: Precision | None = None,
) -> Dream:
    """The native dream of a run folder's M, at its evolve stage's settings but for what is said here.

    Args:
        run: the run folder.
        starts: ``"first"`` or ``"random"``: initial states.
        termination: Termination of its episodes; None for that of the settings, sampled rather than expected.
        precision: Precision; None for that of the settings.

    Raises:
        ValueError: The settings ask for burned-in initial states, and the run folder has none.
    """
    config = run.config.evolve
    world, memory = _starts(run, starts)
    return Dream(
        *world,
        make_controller(run, world.mdnrnn),
        temperature=config.temperature,
        max_steps=config.max_steps,
        precision=precision or resolve_precision(config.precision),
        termination=termination or sampled(config.termination),
        **memory,
    )


def playback_precision(run: Run) -> Precision:
    """The precision to play a run's dreams in: that of its evolution, or float32 where this machine lacks it."""
    wanted = resolve_precision(run.config.evolve.precision)
    return wanted if wanted in precisions() else "float32"


def sampled(termination: Termination) -> Termination:
    """The termination of dreams that are played step by step: survival weights belong to returns alone."""
    return "sample" if termination == "expected" else termination


def resolve_precision(precision: Literal["auto", "float32", "bfloat16"]) -> Precision:
    """The precision of the dream that a setting stands for."""
    if precision == "auto":
        return "bfloat16" if "bfloat16" in precisions() else "float32"
    return precision


def _starts(run: Run, starts: str) -> tuple[WorldModel, dict[str, Any]]:
    """A run folder's M with where its dreams start, and M's memory there, if it has one."""
    world = load_world_model(run.folder)
    if starts == "first":
        return world, {}
    burned_in = load_burned_in_states(run.folder, world.mdnrnn)
    if burned_in is None:
        raise ValueError(f"evolve.initial_states: expected first, as {run.folder} has no burned-in states, got random")
    first = np.zeros((len(world.initial_mu), world.mdnrnn.hidden_size), np.float32)
    both = world._replace(
        initial_mu=np.concatenate([world.initial_mu, burned_in["mu"]]),
        initial_logvar=np.concatenate([world.initial_logvar, burned_in["logvar"]]),
    )
    return both, {f"initial_{key}": np.concatenate([first, burned_in[key]]) for key in "hc"}
