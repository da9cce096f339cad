"""Candidates are tried in M's dream, by the native core or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.dream import Dream, DreamResult, World, done_weight, load_midway, load_world, precisions
from worldmodels.evaluators import Played, Told, make_controller
from worldmodels.experiment import Experiment
from worldmodels.threads import default_threads
from worldmodels.torch_dream import TorchDream


class DreamEvaluator:
    """An :class:`worldmodels.evaluators.Evaluator` that dreams.

    Args:
        dream: M, the starts and the shape of C; native, or on a GPU.
        threads: of the native core; the results do not depend on it.
    """

    unit = "dream steps"

    def __init__(self, dream: Dream | TorchDream, threads: int) -> None:
        self.dream = dream
        self.controller = dream.controller
        self.about: dict[str, Any] = {"inside": "dream", "temperature": dream.temperature}
        if dream.done_weight is not None:
            self.about["ends"] = "expected" if dream.expected_returns else "chance"
        if isinstance(dream, TorchDream):
            on_gpu = dream.device.type == "cuda"  # the draws are those of the kind of device
            self.about["device"] = torch.cuda.get_device_name(dream.device) if on_gpu else "cpu"
        self._threads = threads

    @classmethod
    def of(cls, experiment: Experiment) -> DreamEvaluator:
        """The one of a run folder, at the settings of its evolve stage.

        Raises:
            ValueError: there is no CUDA device, and the settings ask for one; or M does not say what a step is worth.
        """
        config = experiment.config.evolve
        if not experiment.task.dreams_are_scored(load_world(experiment.folder).mdnrnn):
            raise ValueError(f"evolve.inside: expected environment, as M predicts no reward, got {config.inside}")
        threads, expected = config.threads or default_threads(), config.ends == "expected"
        if config.device == "cpu":
            return cls(make_dream(experiment, config.starts, expected_returns=expected), threads)
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
        return cls(dream, threads)

    def play(
        self, params: npt.NDArray[np.floating], episodes: int, *, seed: int, common_seeds: bool, told: Told
    ) -> Played:
        """As :class:`worldmodels.evaluators.Evaluator` says."""
        played: DreamResult
        if isinstance(self.dream, Dream):
            played = self.dream.rollout(
                params, episodes, seed=seed, num_threads=self._threads, common_seeds=common_seeds
            )
        else:
            played = self.dream.rollout(params, episodes, seed=seed, common_seeds=common_seeds)
        told(played.lengths.size, played.lengths.size, int(played.lengths.sum()))
        return Played(played.returns, played.lengths, {})

    def close(self) -> None:
        """As :class:`worldmodels.evaluators.Evaluator` says."""
        if isinstance(self.dream, TorchDream):
            self.dream.close()


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
