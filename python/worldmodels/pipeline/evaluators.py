"""Dreams and evaluators of a run, at the settings of its evolve stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from worldmodels.dream.gpu import TorchDream
from worldmodels.dream.native import Dream
from worldmodels.dream.world_model import World, done_weight, load_midway, load_world
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model
from worldmodels.pipeline.run import Experiment
from worldmodels.rollout.evaluators import Evaluator
from worldmodels.rollout.evaluators.dream import DreamEvaluator
from worldmodels.rollout.evaluators.environment import EnvironmentEvaluator
from worldmodels.support.cpu import cores, default_threads
from worldmodels.support.simd import precisions


def make_evaluator(experiment: Experiment) -> Evaluator:
    """The evaluator that a run's settings choose: ``evolve.inside``."""
    dream = experiment.config.evolve.inside == "dream"
    return dream_evaluator(experiment) if dream else environment_evaluator(experiment)


def dream_evaluator(experiment: Experiment) -> DreamEvaluator:
    """The evaluator of a run in its dream, at the settings of its evolve stage.

    Raises:
        ValueError: there is no CUDA device, and the settings ask for one; or M predicts no reward.
    """
    config = experiment.config.evolve
    if not experiment.task.dreams_are_scored(load_world(experiment.folder).mdnrnn):
        raise ValueError(f"evolve.inside: expected environment, as M predicts no reward, got {config.inside}")
    threads, expected = config.threads or default_threads(), config.ends == "expected"
    if config.device == "cpu":
        return DreamEvaluator(make_dream(experiment, config.starts, expected_returns=expected), threads)
    world, memory = _starts(experiment, config.starts)
    dream = TorchDream(
        *world,
        make_controller(experiment, world.mdnrnn),
        device=gpu(),
        temperature=config.temperature,
        max_steps=config.max_steps,
        done_weight=done_weight(experiment.folder, config.ends),
        expected_returns=expected,
        **memory,
    )
    return DreamEvaluator(dream, threads)


def environment_evaluator(experiment: Experiment) -> EnvironmentEvaluator:
    """The evaluator of a run in the real environment, at the settings of its evolve stage."""
    config = experiment.config
    model = load_model(experiment.path("rnn", "rnn.safetensors"), MDNRNN)
    return EnvironmentEvaluator(
        load_model(experiment.path("vae", "vae.safetensors"), ConvVAE),
        model,
        make_controller(experiment, model),
        config.environment,
        slots=config.evolve.environments,
        workers=config.evolve.threads or cores(),
        max_steps=config.evolve.max_steps,
        precision=config.encode.precision,
        patience=config.evolve.patience,
        rules=experiment.task.rules,
    )


def make_controller(experiment: Experiment, model: MDNRNN) -> Controller:
    """The shape of C that a run's settings choose, for its M."""
    config = experiment.config.evolve
    return Controller(
        model.latent_size,
        model.hidden_size,
        model.action_size,
        features=config.features,  # type: ignore[arg-type]
        bias=config.bias,
        hidden_units=config.hidden_units,
        squash=experiment.task.squash,
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
    experiment: Experiment, starts: str = "first", *, expected_returns: bool = False, precision: str = ""
) -> Dream:
    """The native dream of a run folder's M, at its evolve stage's settings but for what is said here.

    Args:
        experiment: the run folder.
        starts: where dreams start.
        expected_returns: whether rewards count as much as they are likely to come.
        precision: of the products; empty for that of the settings.

    Raises:
        ValueError: dreams are to start anywhere, and the world keeps no starts on the way.
    """
    config = experiment.config.evolve
    world, memory = _starts(experiment, starts)
    return Dream(
        *world,
        make_controller(experiment, world.mdnrnn),
        temperature=config.temperature,
        max_steps=config.max_steps,
        precision=precision or config.precision,  # type: ignore[arg-type]
        done_weight=done_weight(experiment.folder, config.ends),
        expected_returns=expected_returns,
        **memory,
    )


def looked_at_in(experiment: Experiment) -> str:
    """The precision to look at a run's dreams in: that of its evolution, or float32 where this machine lacks it."""
    wanted = experiment.config.evolve.precision
    return wanted if wanted in precisions() else "float32"


def _starts(experiment: Experiment, starts: str) -> tuple[World, dict[str, Any]]:
    """A run folder's M with where its dreams start, and M's memory there, if it has one."""
    world = load_world(experiment.folder)
    if starts == "first":
        return world, {}
    midway = load_midway(experiment.folder, world.mdnrnn)
    if midway is None:
        raise ValueError(f"evolve.starts: expected first, as {experiment.folder} keeps no starts midway, got anywhere")
    first = np.zeros((len(world.initial_mu), world.mdnrnn.hidden_size), np.float32)
    both = world._replace(
        initial_mu=np.concatenate([world.initial_mu, midway["mu"]]),
        initial_logvar=np.concatenate([world.initial_logvar, midway["logvar"]]),
    )
    return both, {f"initial_{key}": np.concatenate([first, midway[key]]) for key in "hc"}
