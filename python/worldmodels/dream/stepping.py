"""Dreams that step together: the state of the Gymnasium environments."""

from __future__ import annotations

from typing import Any, get_args

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels import _core
from worldmodels.dream.actions import dream_actions
from worldmodels.dream.native import check_temperature
from worldmodels.dream.settings import DreamSettings, ResolvedWorld
from worldmodels.models.controller import Features
from worldmodels.models.native_model import native_model
from worldmodels.support.forks import Lock
from worldmodels.support.simd import check_precision
from worldmodels.support.validation import any_array, check_integer, check_threads


class DreamBatch:
    """N dreams that step together; each plays episodes 0, 1, 2, ... of a seed and a candidate of ``Dream.rollout``.

    Args:
        world: World model.
        settings: Settings of the dreams.
        num_envs: Number N of dreams; None for one dream, whose actions have no batch axis.
        num_threads: Number of threads; None for all available CPUs, at most ``OMP_NUM_THREADS``.

    Attributes:
        lock: Lock to hold over the calls that make up one call of the environment.
        seeded: Whether :meth:`seed` was called.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is invalid.
    """

    def __init__(
        self, world: ResolvedWorld, settings: DreamSettings, num_envs: int | None, num_threads: int | None
    ) -> None:
        features, mdnrnn = settings.features, world.model.mdnrnn
        if features not in get_args(Features):
            raise ValueError(f"features: expected one of {', '.join(get_args(Features))}, got {features!r}")
        self.num_envs = 1 if num_envs is None else check_integer("num_envs", num_envs, 1, 2**24)
        self._batch = () if num_envs is None else (self.num_envs,)
        self.threads = check_threads(num_threads)
        self.temperature = check_temperature(settings.temperature)
        longest = world.max_steps if settings.max_steps is None else settings.max_steps
        self.max_steps = check_integer("max_steps", longest, 1, 2**31 - 1)
        self.use_c, self.use_h = "c" in features, "h" in features
        check_precision(settings.precision)
        self.precision = settings.precision
        self.lock = Lock()  # one call of the environment makes several calls of the stepper
        self._model = native_model(*world.model, settings.precision, termination=world.termination)
        self._stepper = _core.DreamStepper(self._model.core, self.num_envs)
        self.latent_size, self.hidden_size = mdnrnn.latent_size, mdnrnn.hidden_size
        self.action_size = mdnrnn.action_size
        self.seeded = False
        self._seeds = np.zeros(self.num_envs, np.uint64)
        self._candidates = np.zeros(self.num_envs, np.uint32)
        self._episodes = np.zeros(self.num_envs, np.uint32)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._actions = dream_actions(settings, mdnrnn.action_size)
        self.action_space = self._actions.space
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (mdnrnn.latent_size + mdnrnn.hidden_size * (len(features) - 1),), np.float32
        )

    def __getstate__(self) -> dict[str, Any]:
        arrays = {name: value.copy() for name, value in self.__dict__.items() if isinstance(value, np.ndarray)}
        return {**self.__dict__, **arrays, "_stepper": self._stepper.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=Lock())
        self._stepper = _core.DreamStepper(self._model.core, self.num_envs)
        self._stepper.set_state(state["_stepper"])

    def seed(self, which: npt.NDArray[np.bool_], seeds: Any, candidates: Any) -> None:
        """Set seed and candidate of the masked dreams, (N,) or scalar. Their next reset starts episode 0."""
        self._seeds[which] = np.broadcast_to(np.asarray(seeds, np.uint64), self.num_envs)[which]
        self._candidates[which] = np.broadcast_to(np.asarray(candidates, np.uint32), self.num_envs)[which]
        self._episodes[which] = np.uint32(2**32 - 1)  # one before 0
        self.seeded = True

    def reset(self, which: npt.NDArray[np.bool_]) -> None:
        """Start the next episode of the masked dreams."""
        self._episodes[which] += np.uint32(1)
        self._lengths[which] = 0
        self._stepper.reset(self._seeds, self._candidates, self._episodes, which)

    def step(
        self, actions: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Step all dreams. Returns observations (N, F), rewards, terminations and truncations, each (N,)."""
        name = "actions" if self._batch else "action"
        taken = self._actions.convert(name, any_array(name, actions), self._batch).reshape(self.num_envs, -1)
        self._lengths += 1  # signal handlers run after calls: none runs between this line and the step
        try:
            observations, rewards, done = self._stepper.step(
                self.temperature, taken, self.use_c, self.use_h, self.threads
            )
        except (MemoryError, RuntimeError):  # of the core, before the step
            self._lengths -= 1
            raise
        return observations, rewards, done, ~done & (self._lengths >= self.max_steps)

    def restart(self, which: npt.NDArray[np.bool_], observations: npt.NDArray[np.float32]) -> None:
        """Start the next episode of the masked dreams and write their rows of the observations (N, F)."""
        self.reset(which)
        self._stepper.observe(which, self.use_c, self.use_h, observations)

    def observe(self) -> npt.NDArray[np.float32]:
        """Return the features [z, c, h] of every dream, (N, F) float32."""
        return self._features(self.use_c, self.use_h)

    def latents(self) -> npt.NDArray[np.float32]:
        """Return z of every dream, (N, Z) float32."""
        return self._features(False, False)

    def _features(self, use_c: bool, use_h: bool) -> npt.NDArray[np.float32]:
        features = np.empty((self.num_envs, self.latent_size + (use_c + use_h) * self.hidden_size), np.float32)
        self._stepper.observe(np.ones(self.num_envs, np.bool_), use_c, use_h, features)
        return features
