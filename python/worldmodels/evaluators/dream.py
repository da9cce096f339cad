"""Candidates are tried in M's dream, by the native core."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.dream import Dream, done_weight, load_midway, load_world
from worldmodels.evaluators import Played, Told, make_controller
from worldmodels.experiment import Experiment
from worldmodels.threads import cores


class DreamEvaluator:
    """An :class:`worldmodels.evaluators.Evaluator` that dreams.

    Args:
        dream: M, the starts and the shape of C.
        threads: of the native core; the results do not depend on it.
    """

    unit = "dream steps"

    def __init__(self, dream: Dream, threads: int) -> None:
        self.dream = dream
        self.controller = dream.controller
        self.about: dict[str, Any] = {"inside": "dream", "temperature": dream.temperature}
        if dream.done_weight is not None:
            self.about["ends"] = "expected" if dream.expected_returns else "chance"
        self._threads = threads

    @classmethod
    def of(cls, experiment: Experiment) -> DreamEvaluator:
        """The one of a run folder, at the settings of its evolve stage."""
        config = experiment.config.evolve
        dream = make_dream(experiment, config.starts, expected_returns=config.ends == "expected")
        return cls(dream, config.threads or cores())

    def play(
        self, params: npt.NDArray[np.floating], episodes: int, *, seed: int, common_seeds: bool, told: Told
    ) -> Played:
        """As :class:`worldmodels.evaluators.Evaluator` says."""
        played = self.dream.rollout(params, episodes, seed=seed, num_threads=self._threads, common_seeds=common_seeds)
        told(played.lengths.size, played.lengths.size, int(played.lengths.sum()))
        return Played(played.returns, played.lengths, {})

    def close(self) -> None:
        """Nothing is in use."""


def make_dream(experiment: Experiment, starts: str = "first", *, expected_returns: bool = False) -> Dream:
    """The dream of a run folder's M, at the settings of its evolve stage but for the starts and the kind of returns.

    Raises:
        ValueError: dreams are to start anywhere, and the world keeps no starts on the way.
    """
    config = experiment.config.evolve
    world = load_world(experiment.folder)
    memory: dict[str, npt.NDArray[np.float32] | None] = {"h": None, "c": None}
    if starts == "anywhere":
        midway = load_midway(experiment.folder, world.mdnrnn)
        if midway is None:
            raise ValueError(
                f"evolve.starts: expected first, as {experiment.folder} keeps no starts midway, got anywhere"
            )
        first = np.zeros((len(world.initial_mu), world.mdnrnn.hidden_size), np.float32)
        world = world._replace(
            initial_mu=np.concatenate([world.initial_mu, midway["mu"]]),
            initial_logvar=np.concatenate([world.initial_logvar, midway["logvar"]]),
        )
        memory = {key: np.concatenate([first, midway[key]]) for key in "hc"}
    return Dream(
        *world,
        make_controller(experiment, world.mdnrnn),
        temperature=config.temperature,
        max_steps=config.max_steps,
        precision=config.precision,  # type: ignore[arg-type]
        initial_h=memory["h"],
        initial_c=memory["c"],
        done_weight=done_weight(experiment.folder, config.ends),
        expected_returns=expected_returns,
    )
