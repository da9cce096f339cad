"""The native dream: rollouts of many controllers inside M, in C++."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from worldmodels import _core, pretrained
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.agent import load_controller
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.native_model import Termination, native_model
from worldmodels.support.simd import Precision, check_precision
from worldmodels.support.validation import check_integer, check_real, check_seed, check_threads, float_array

FloatArray = npt.NDArray[np.floating]


class DreamResult(NamedTuple):
    """Result of a rollout.

    Attributes:
        returns: (P, E) float32 sum of rewards of each episode.
        lengths: (P, E) int32 number of steps of each episode, including the terminating one.
    """

    returns: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]


class DreamTrace(NamedTuple):
    """One episode of T steps.

    Attributes:
        z: (T + 1, Z) float32 latents; ``z[0]`` is the initial latent, ``z[t + 1]`` follows ``action[t]``.
        action: (T, A) float32 actions.
        done_logit: (T,) float32 logits of termination; None without a termination head.
        reward: (T,) float32 rewards.
    """

    z: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    done_logit: npt.NDArray[np.float32] | None
    reward: npt.NDArray[np.float32]


class Dream:
    """Rollouts of controllers in M's dream.

    At each step, C computes an action from [z, c, h], or those of its features. M's LSTM takes [z, action, restart
    flag]. Its head predicts termination, the reward (1 without a reward head) and the mixture of the next latent, which
    is sampled with one component per dimension.

    Random numbers are Philox4x32-10, keyed by the seed and counted by (candidate, episode, step). The number of threads
    and the other episodes of a call do not change a result. Results are bit-identical on the SIMD levels
    "avx2", "avx512", "avx512_bf16" and "neon"; "baseline" rounds differently, because it has no fused multiply-add.

    Args:
        mdnrnn: M; its weights are copied.
        initial_mu: (K, Z) float32 means of the initial latents. Other float types are converted.
        initial_logvar: (K, Z) float32 log variances of the initial latents.
        controller: Architecture of C.
        temperature: Temperature of the sampling. Component logits are divided by it, noise is multiplied by its square
            root. 0 selects the mean of the most likely component.
        max_steps: Maximum length of an episode, in steps.
        precision: ``"float32"``, or ``"bfloat16"`` for the products of M's weights with its inputs and states. Sums,
            states, activations and C stay float32. It is twice as fast and needs the level "avx512_bf16".
        initial_h: (K, H) float32 hidden states of M at the initial latents; None for zeros. A row of zeros, here and in
            ``initial_c``, is the first frame of an episode, whose restart flag is set.
        initial_c: (K, H) float32 cell states of M at the initial latents.
        termination: ``"threshold"``: an episode terminates where M's termination logit is above 0, as in the paper.
            ``"sample"``: termination is sampled with M's probability, corrected for ``mdnrnn.done_pos_weight``.
            ``"expected"``: termination is not sampled; each reward is weighted by the probability of surviving to its
            step. Returns have the mean of ``"sample"`` and a lower variance. A rollout stops below 1 % survival;
            ``lengths`` counts the steps until then.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape, dtype or number is invalid, or a value is not finite.

    Source: Ha & Schmidhuber (2018), sections 3.3 and 4.2, appendix A.2.
    """

    def __init__(
        self,
        mdnrnn: MDNRNN,
        initial_mu: npt.ArrayLike,
        initial_logvar: npt.ArrayLike,
        controller: Controller,
        *,
        temperature: float = 1.0,
        max_steps: int = 2100,
        precision: Precision = "float32",
        initial_h: npt.ArrayLike | None = None,
        initial_c: npt.ArrayLike | None = None,
        termination: Termination = "threshold",
    ) -> None:
        check_precision(precision)
        self._precision = precision
        self._native = native_model(
            mdnrnn, initial_mu, initial_logvar, precision, initial_h, initial_c, termination=termination
        )
        check_fits(controller, mdnrnn)
        self._controller = controller
        self._termination = termination
        self.temperature = temperature
        self.max_steps = max_steps
        _ = self._shape  # raises if the sizes do not match

    def __repr__(self) -> str:
        of = self.controller
        return (
            f"Dream(latent_size={of.latent_size}, hidden_size={of.hidden_size}, action_size={of.action_size}, "
            f"temperature={self.temperature!r}, max_steps={self.max_steps}, precision={self.precision!r}, "
            f"termination={self.termination!r})"
        )

    @property
    def controller(self) -> Controller:
        """Architecture of C."""
        return self._controller

    @property
    def precision(self) -> Precision:
        """Precision of M."""
        return self._precision

    @property
    def termination(self) -> Termination:
        """Termination of the episodes."""
        return self._termination

    @property
    def temperature(self) -> float:
        """Temperature of the sampling; a new value applies from the next rollout."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        self._temperature = check_temperature(temperature)

    @property
    def max_steps(self) -> int:
        """Maximum length of an episode; a new value applies from the next rollout."""
        return self._max_steps

    @max_steps.setter
    def max_steps(self, max_steps: int) -> None:
        self._max_steps = check_max_steps(max_steps)

    @property
    def _model(self) -> _core.WorldModel:
        return self._native.core

    @property
    def _shape(self) -> _core.ControllerShape:
        of = self.controller
        car = of.squash == "carracing"
        return _core.ControllerShape(self._model, of.features, of.bias, of.hidden_units, car, of.choices)

    @classmethod
    def load(cls, name: str | Path, *, controller: Controller | None = None, **settings: Any) -> Dream:
        """Load the dream of a run folder's M or of a pretrained world model.

        Args:
            name: Run folder in which ``train-rnn`` is complete, or name of a pretrained world model.
            controller: Architecture of C; None for that of the agent in the folder, or without an agent for a linear
                one with inputs [z, c, h].
            **settings: ``temperature``, ``max_steps``, ``precision`` and ``termination`` of the constructor. A
                pretrained world model has its own defaults of ``termination`` and ``max_steps``.

        Raises:
            FileNotFoundError: The run folder has no M yet.
            ValueError: A file is damaged, or an argument is invalid.
        """
        model = load_world_model(name)
        if pretrained.is_name(name):
            settings = {**pretrained.dream_settings(str(name)), **settings}
        if controller is None:
            mdnrnn, path = model.mdnrnn, pretrained.resolve(name) / "evolve" / "controller.safetensors"
            sizes = mdnrnn.latent_size, mdnrnn.hidden_size, mdnrnn.action_size
            controller = load_controller(path)[0] if path.is_file() else Controller(*sizes)
        return cls(*model, controller, **settings)

    @classmethod
    def pretrained(cls, name: str, *, controller: Controller | None = None, **settings: Any) -> Dream:
        """Load the dream of a pretrained world model.

        Args:
            name: Name of the world model, ``"takecover"`` or ``"carracing"``.
            controller: Architecture of C, see :meth:`load`.
            **settings: Settings of the constructor, see :meth:`load`.

        Raises:
            ValueError: There is no such world model, a file is damaged, or an argument is invalid.
        """
        pretrained.folder(name)
        return cls.load(name, controller=controller, **settings)

    def rollout(
        self,
        params: npt.ArrayLike,
        episodes: int = 16,
        *,
        seed: int = 0,
        num_threads: int | None = None,
        max_steps: int | None = None,
        common_random_numbers: bool = False,
        first_candidate: int = 0,
        first_episode: int = 0,
    ) -> DreamResult:
        """Roll out the episodes of every candidate.

        Args:
            params: (P, N) float32 or float64 flat parameters, one candidate per row.
            episodes: Number E of episodes per candidate.
            seed: Seed of all random numbers, from 0 to 2**64 - 1.
            num_threads: Number of threads; None for all available CPUs, at most ``OMP_NUM_THREADS``.
            max_steps: Maximum length of an episode; None for the constructor's.
            common_random_numbers: Whether all candidates use the random numbers of candidate 0.
            first_candidate: Index of the first row in a larger evaluation.
            first_episode: Index of the first column in a larger evaluation.

        Returns:
            :class:`DreamResult`. An episode depends on its candidate's parameters, its indices and the seed alone:
            ``rollout(params[a:b], d - c, first_candidate=a, first_episode=c)`` is ``[a:b, c:d]`` of
            ``rollout(params, episodes)``, bit for bit.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is invalid.
            RuntimeError: Several threads are requested in a process forked from one that had imported this package.
            KeyboardInterrupt: Ctrl-C was pressed; raised within a tenth of a second.
        """
        return self.rollout_with_stats(
            params,
            episodes,
            seed=seed,
            num_threads=num_threads,
            max_steps=max_steps,
            common_random_numbers=common_random_numbers,
            first_candidate=first_candidate,
            first_episode=first_episode,
        )[0]

    def rollout_with_stats(
        self,
        params: npt.ArrayLike,
        episodes: int = 16,
        *,
        seed: int = 0,
        num_threads: int | None = None,
        max_steps: int | None = None,
        common_random_numbers: bool = False,
        first_candidate: int = 0,
        first_episode: int = 0,
    ) -> tuple[DreamResult, int]:
        """Roll out as :meth:`rollout` does and count the computed steps.

        Returns:
            The :class:`DreamResult` and the number of computed steps: ``lengths.sum()`` plus the steps of idle SIMD
            lanes. Episodes occupy the lanes of SIMD vectors, which are computed whole.
        """
        returns, lengths, computed = _core.rollout(
            self._model,
            self._shape,
            float_array("params", params, ("P", self.controller.size)),
            episodes=check_integer("episodes", episodes, 1, 2**31 - 1),
            seed=check_seed(seed),
            common_random_numbers=check_common_random_numbers(common_random_numbers),
            temperature=self.temperature,
            max_steps=self.max_steps if max_steps is None else check_max_steps(max_steps),
            num_threads=check_threads(num_threads),
            first_candidate=check_integer("first_candidate", first_candidate, 0, 2**31 - 1),
            first_episode=check_integer("first_episode", first_episode, 0, 2**31 - 1),
        )
        return DreamResult(returns, lengths), computed

    def trace(
        self,
        params: npt.ArrayLike,
        *,
        candidate: int = 0,
        episode: int = 0,
        seed: int = 0,
        max_steps: int | None = None,
    ) -> DreamTrace:
        """Replay one episode of a rollout, bit for bit, and record its steps.

        ``trace(params[p], candidate=p, episode=e, seed=seed)`` is episode ``[p, e]`` of
        ``rollout(params, episodes, seed=seed)``. With ``common_random_numbers``, all candidates have index 0.

        Args:
            params: (N,) float32 or float64 flat parameters.
            candidate: Row of the rollout.
            episode: Column of the rollout.
            seed: Seed of the rollout.
            max_steps: Maximum length of the episode, at most 2**24; None for the constructor's.

        Returns:
            :class:`DreamTrace` of the episode.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is invalid.
        """
        length, z, action, done_logit, reward = _core.trace(
            self._model,
            self._shape,
            float_array("params", params, (self.controller.size,)),
            candidate=check_integer("candidate", candidate, 0, 2**31 - 1),
            episode=check_integer("episode", episode, 0, 2**31 - 1),
            seed=check_seed(seed),
            temperature=self.temperature,
            max_steps=self.max_steps if max_steps is None else check_max_steps(max_steps),
        )
        done = None if done_logit is None else done_logit[:length].copy()
        return DreamTrace(z[: length + 1].copy(), action[:length].copy(), done, reward[:length].copy())


def check_fits(controller: Controller, mdnrnn: MDNRNN) -> None:
    """Check that a controller has M's sizes; TypeError or ValueError otherwise."""
    if not isinstance(controller, Controller):
        raise TypeError(f"controller: expected a Controller, got {type(controller).__name__}")
    for name in ("latent_size", "hidden_size", "action_size"):
        wanted, got = getattr(mdnrnn, name), getattr(controller, name)
        if wanted != got:
            raise ValueError(f"controller: expected {name} {wanted} as mdnrnn has, got {got}")


def check_max_steps(max_steps: Any) -> int:
    """Validate a maximum length of an episode."""
    return check_integer("max_steps", max_steps, 1, 2**31 - 1)


def check_common_random_numbers(common_random_numbers: Any) -> bool:
    """Validate the bool of common random numbers."""
    if not isinstance(common_random_numbers, bool | np.bool_):
        raise TypeError(f"common_random_numbers: expected a bool, got {type(common_random_numbers).__name__}")
    return bool(common_random_numbers)


def check_temperature(temperature: Any) -> float:
    """Validate a finite temperature >= 0."""
    value = check_real("temperature", temperature, 0)
    if value > float(np.finfo(np.float32).max):
        raise ValueError(f"temperature: expected a finite number of at least 0, got {temperature!r}")
    return value
