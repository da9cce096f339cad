"""The dream: whole episodes of many controllers inside M, played by the native core."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from worldmodels import _core, pretrained
from worldmodels.dream.world_model import load_world
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.native_model import native_model
from worldmodels.support.simd import Precision, check_precision
from worldmodels.support.validation import check_integer, check_real, check_seed, check_threads, float_array

FloatArray = npt.NDArray[np.floating]


class DreamResult(NamedTuple):
    """What a rollout gives.

    Attributes:
        returns: (P, E) float32, the sum of rewards of each episode.
        lengths: (P, E) int32, steps of each episode, the one at which it ended included.
    """

    returns: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]


class DreamTrace(NamedTuple):
    """One episode, step by step (T steps).

    Attributes:
        z: (T + 1, Z) float32, the latents; ``z[0]`` is the start, ``z[t + 1]`` what followed ``action[t]``.
        action: (T, A) float32.
        done_logit: (T,) float32, above 0 at the step that ends the episode; None without a done head.
        reward: (T,) float32.
    """

    z: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    done_logit: npt.NDArray[np.float32] | None
    reward: npt.NDArray[np.float32]


class Dream:
    """Episodes that M dreams, from given starts, played by a controller.

    Each step: the controller sees [z, c, h] (those it wants) and acts; the LSTM takes [z, action, restart
    flag]; its head says whether the episode is done (logit > 0, or by chance), the reward (1 without a reward head)
    and the mixture that the next latent is drawn from, every dimension from its own component.

    Every random number comes from Philox4x32-10, keyed by the seed and counted by (candidate, episode, step):
    results do not depend on the number of threads or on what else is played. The levels "avx2", "avx512" and
    "avx512_bf16" give the same bits as each other, "baseline" does not (it has no fused multiply-add).

    Args:
        mdnrnn: M; its weights are copied.
        initial_mu: (K, Z) float32, means of the latents an episode may start from. Other float types
            are converted.
        initial_logvar: (K, Z) float32, their log variances.
        controller: the shape of C.
        temperature: of the sampling: component logits are divided by it, noise is multiplied by its root.
            0 takes the likeliest component's mean.
        max_steps: the longest episode, in steps.
        precision: ``"float32"``, or ``"bfloat16"`` for the products of M's weights with its inputs and states
            (sums, states, activations and C stay float32): twice as fast, needs the level "avx512_bf16".
        initial_h: (K, H) float32, M's hidden states at the starts; a row of zeros, here and in ``initial_c``, is an
            episode's first frame, whose restart flag is set. None for zeros.
        initial_c: (K, H) float32, M's cell states at the starts.
        done_weight: None: an episode ends where M's done logit is above 0, as in the paper. A number: it ends by
            chance, with the probability that M gives to it, where ends weighed that many times in its training
            (``train_rnn.done_weight``; 1 for an M that was trained without a weight). What M thinks possible but
            not likely then costs something.
        expected_returns: whether no end is drawn, and every reward counts as much as the episode is likely to have
            come so far: the mean of the returns by chance over all draws of the ends, with less noise. Needs
            ``done_weight``. An episode is left when it is less than one percent likely to have come so far;
            ``lengths`` counts the steps until then.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a shape, dtype or number does not fit, or is not finite.

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
        done_weight: float | None = None,
        expected_returns: bool = False,
    ) -> None:
        if not isinstance(expected_returns, bool | np.bool_):
            raise TypeError(f"expected_returns: expected a bool, got {type(expected_returns).__name__}")
        if expected_returns and done_weight is None:
            raise ValueError("expected_returns: expected a done_weight with them, got none")
        if not isinstance(controller, Controller):
            raise TypeError(f"controller: expected a Controller, got {type(controller).__name__}")
        check_precision(precision)
        self.precision = precision
        self._native = native_model(
            mdnrnn,
            initial_mu,
            initial_logvar,
            precision,
            initial_h,
            initial_c,
            done_weight=done_weight,
            expected_returns=bool(expected_returns),
        )
        check_fits(controller, mdnrnn)
        self.controller = controller
        self.temperature = check_temperature(temperature)
        self.done_weight = done_weight
        self.expected_returns = bool(expected_returns)
        self.max_steps = check_integer("max_steps", max_steps, 1, 2**31 - 1)
        _ = self._shape  # refuses what does not fit

    def __repr__(self) -> str:
        of = self.controller
        ends = "" if self.done_weight is None else f", done_weight={self.done_weight!r}"
        ends += ", expected_returns=True" if self.expected_returns else ""
        return (
            f"Dream(latent_size={of.latent_size}, hidden_size={of.hidden_size}, action_size={of.action_size}, "
            f"temperature={self.temperature!r}, max_steps={self.max_steps}, precision={self.precision!r}{ends})"
        )

    @property
    def _model(self) -> _core.WorldModel:
        return self._native.core

    @property
    def _shape(self) -> _core.ControllerShape:
        of = self.controller
        return _core.ControllerShape(self._model, of.features, of.bias, of.hidden_units, of.squash == "carracing")

    @classmethod
    def load(cls, run_folder: str | Path, *, controller: Controller | None = None, **settings: Any) -> Dream:
        """The dream of a run folder's M.

        Args:
            run_folder: where ``train-rnn`` has been completed.
            controller: the shape of C; None for a linear one that sees [z, c, h].
            **settings: the constructor's ``temperature``, ``max_steps``, ``precision``, ``done_weight`` and
                ``expected_returns``.

        Raises:
            FileNotFoundError: M has not been trained there yet.
            ValueError: a file is damaged, or an argument does not fit.
        """
        world = load_world(run_folder)
        if controller is None:
            model = world.mdnrnn
            controller = Controller(model.latent_size, model.hidden_size, model.action_size)
        return cls(*world, controller, **settings)

    @classmethod
    def pretrained(cls, name: str, *, controller: Controller | None = None, **settings: Any) -> Dream:
        """The dream that comes with the package, ``"takecover"``; arguments as for :meth:`load`.

        Raises:
            ValueError: there is no such dream, a file is damaged, or an argument does not fit.
        """
        return cls.load(pretrained.folder(name), controller=controller, **settings)

    def rollout(
        self,
        params: npt.ArrayLike,
        episodes: int = 16,
        *,
        seed: int = 0,
        num_threads: int | None = None,
        max_steps: int | None = None,
        common_seeds: bool = False,
    ) -> DreamResult:
        """Plays every candidate's episodes.

        Args:
            params: (P, N) float32 or float64, a candidate's flat parameters per row.
            episodes: E, episodes per candidate.
            seed: of every draw, from 0 to 2**64 - 1.
            num_threads: None for as many as there are cores, or OMP_NUM_THREADS if that is less.
            max_steps: in place of the constructor's.
            common_seeds: whether all candidates see the same draws (those of candidate 0).

        Returns:
            :class:`DreamResult`; row p depends on ``params[p]``, p, the seed and the sizes alone.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: an argument does not fit; nothing has been played.
            RuntimeError: several threads are wanted in a process forked from one that had imported this package.
            KeyboardInterrupt: Ctrl-C, within a tenth of a second.
        """
        return self.counted_rollout(
            params, episodes, seed=seed, num_threads=num_threads, max_steps=max_steps, common_seeds=common_seeds
        )[0]

    def counted_rollout(
        self,
        params: npt.ArrayLike,
        episodes: int = 16,
        *,
        seed: int = 0,
        num_threads: int | None = None,
        max_steps: int | None = None,
        common_seeds: bool = False,
    ) -> tuple[DreamResult, int]:
        """As :meth:`rollout`, and the number of steps that were computed.

        They are ``lengths.sum()`` plus those of lanes that had no episode left to play: episodes lie across the
        lanes of SIMD vectors, and a vector is computed whole.
        """
        if not isinstance(common_seeds, bool | np.bool_):
            raise TypeError(f"common_seeds: expected a bool, got {type(common_seeds).__name__}")
        returns, lengths, computed = _core.rollout(
            self._model,
            self._shape,
            float_array("params", params, ("P", self.controller.size)),
            episodes=check_integer("episodes", episodes, 1, 2**31 - 1),
            seed=check_seed(seed),
            common_random_numbers=bool(common_seeds),
            temperature=self.temperature,
            max_steps=self._max_steps(max_steps),
            num_threads=check_threads(num_threads),
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
        """Plays again one episode of a rollout, bit for bit, and keeps its steps.

        ``trace(params[p], candidate=p, episode=e, seed=seed)`` is episode ``[p, e]`` of
        ``rollout(params, episodes, seed=seed)``; with ``common_seeds``, every episode is one of candidate 0.

        Args:
            params: (N,) float32 or float64, flat parameters.
            candidate: the row of the rollout.
            episode: the column of the rollout.
            seed: as for :meth:`rollout`.
            max_steps: in place of the constructor's; at most 2**24, so that the steps can be kept.

        Returns:
            :class:`DreamTrace`.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: an argument does not fit.
        """
        length, z, action, done_logit, reward = _core.trace(
            self._model,
            self._shape,
            float_array("params", params, (self.controller.size,)),
            candidate=check_integer("candidate", candidate, 0, 2**31 - 1),
            episode=check_integer("episode", episode, 0, 2**31 - 1),
            seed=check_seed(seed),
            temperature=self.temperature,
            max_steps=self._max_steps(max_steps),
        )
        done = None if done_logit is None else done_logit[:length].copy()
        return DreamTrace(z[: length + 1].copy(), action[:length].copy(), done, reward[:length].copy())

    def _max_steps(self, max_steps: int | None) -> int:
        return self.max_steps if max_steps is None else check_integer("max_steps", max_steps, 1, 2**31 - 1)


def check_fits(controller: Controller, mdnrnn: MDNRNN) -> None:
    """Takes a controller of M's sizes; ValueError otherwise."""
    for name in ("latent_size", "hidden_size", "action_size"):
        wanted, got = getattr(mdnrnn, name), getattr(controller, name)
        if wanted != got:
            raise ValueError(f"controller: expected {name} {wanted} as mdnrnn has, got {got}")


def check_temperature(temperature: Any) -> float:
    """Takes a finite temperature of at least 0."""
    value = check_real("temperature", temperature, 0)
    if value > float(np.finfo(np.float32).max):
        raise ValueError(f"temperature: expected a finite number of at least 0, got {temperature!r}")
    return value
