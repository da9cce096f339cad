"""Evaluation of candidates in the real environment, with a continuous stream of episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.envs import GameLostError
from worldmodels.envs.base import VectorEnv
from worldmodels.envs.making import backend
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.vector import make_vector_env
from worldmodels.models.controller import Controller
from worldmodels.models.device import device
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import LSTMState
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.rollout.evaluators import EvalResult, OnProgress, check_params
from worldmodels.rollout.players import episode_seed
from worldmodels.rollout.runner import Episode, run_episodes
from worldmodels.support.profile import phase
from worldmodels.support.validation import check_integer, check_seed

_REPORT_EVERY = 50  # steps between two progress reports without a finished episode
_NOISE = 64  # steps per draw of noise

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class EnvironmentEvaluator:
    """:class:`worldmodels.rollout.evaluators.Evaluator` in the real environment.

    At every step V encodes the frames of many environments in one batch, z is sampled, each candidate acts in its own
    environment, and M's LSTM advances (unless C uses z alone; the MDN head is not evaluated). An environment whose
    episode is over takes the next episode of any candidate. There are two groups of environments: one steps while the
    frames of the other are encoded, so that all cores are busy.

    An episode depends on its seed and its candidate alone: the seed determines the noise of the latents, and every row
    of V, C and M is computed independently. The number of environments and the other episodes change no bit. Other
    back ends, precisions, devices and machines do.

    Args:
        vae: V.
        mdnrnn: M.
        controller: Architecture of C.
        environment: Specification of the real environment.
        num_envs: Number of concurrent environments.
        num_workers: Number of threads or processes that step them.
        max_steps: Maximum length of an episode.
        max_steps_without_reward: Number of steps without a positive reward after which an episode is truncated; 0 for
            never. Each remaining step is assumed to earn the last reward.
        precision: Precision of V, ``"bfloat16"`` (autocast) or ``"float32"``.
        rules: Rules of the task: maximum length and actions; None for those of the environment.

    Raises:
        TypeError: A number is not an integer.
        ValueError: A number is out of range.
    """

    unit = "frames"

    def __init__(
        self,
        vae: ConvVAE,
        mdnrnn: MDNRNN,
        controller: Controller,
        environment: EnvSpec,
        *,
        num_envs: int,
        num_workers: int,
        max_steps: int,
        precision: str,
        max_steps_without_reward: int = 0,
        rules: Rules | None = None,
    ) -> None:
        check_integer("num_envs", num_envs, 1, 2**31 - 1)
        check_integer("num_workers", num_workers, 1, 2**31 - 1)
        check_integer("max_steps", max_steps, 1, 2**31 - 1)
        check_integer("max_steps_without_reward", max_steps_without_reward, 0, 2**31 - 1)
        self.vae, self.mdnrnn, self.controller = vae, mdnrnn, controller
        self.encode = Encoder(vae, device(), precision, num_threads=num_workers)
        self.metadata: dict[str, Any] = {"evaluate_in": "environment", "backend": backend(environment)}
        limit = environment.limit(rules.limit(max_steps) if rules else max_steps)
        assert limit is not None
        self.max_steps = limit
        self.max_steps_without_reward = max_steps_without_reward
        self._options: dict[str, Any] = {"rules": rules} if rules else {}
        self.uses_lstm = controller.features != "z"
        self._environment, self._workers = environment, num_workers
        self._sizes = [size for size in (num_envs - num_envs // 2, num_envs // 2) if size]
        self.lstm_state = LSTMState(mdnrnn, num_envs, num_workers)
        self._vector_envs: list[VectorEnv] = []

    def play(
        self,
        params: npt.NDArray[np.floating],
        episodes: int,
        *,
        seed: int,
        common_random_numbers: bool,
        on_progress: OnProgress,
        first_candidate: int = 0,
        first_episode: int = 0,
    ) -> EvalResult:
        """See :meth:`worldmodels.rollout.evaluators.Evaluator.play`.

        Raises:
            TypeError: A number has another type.
            ValueError: A shape or number is invalid.
            GameLostError: A game's process or a worker died; the next call opens new environments.
            RuntimeError: The environment failed in a worker.
        """
        params = check_params(params, self.controller.size)
        episodes, seed = check_integer("episodes", episodes, 1, 2**31 - 1), check_seed(seed)
        first_candidate = check_integer("first_candidate", first_candidate, 0, 2**31 - 1)
        first_episode = check_integer("first_episode", first_episode, 0, 2**31 - 1)
        if not self._vector_envs:
            options = {"num_workers": self._workers, **self._options}
            self._vector_envs = [make_vector_env(self._environment, size, **options) for size in self._sizes]
        population, total = len(params), len(params) * episodes
        jobs = []  # job j is episode j // P of candidate j % P
        for job in range(total):
            candidate = 0 if common_random_numbers else first_candidate + job % population
            number = episode_seed(seed, "evolve", first_episode + job // population, candidate)
            jobs.append(Episode(job, number))
        player = _PopulationPlayer(self, params, [job.seed for job in jobs])
        player.reset(sum(self._sizes))
        groups = len(self._vector_envs)
        queues = [deque(jobs[number::groups]) for number in range(groups)]
        scores, lengths = np.zeros(total), np.zeros(total, np.int32)
        ended = steps = 0
        try:
            for number, step in enumerate(
                run_episodes(
                    self._vector_envs,
                    queues,
                    player,
                    max_steps=self.max_steps,
                    max_steps_without_reward=self.max_steps_without_reward,
                    while_stepping=player.update_state,
                )
            ):
                scores[step.episodes] += step.rewards
                abandoned = step.episodes[step.starved]  # what is left pays as the last step did
                scores[abandoned] += (self.max_steps - step.lengths[step.starved]) * step.rewards[step.starved]
                lengths[step.episodes[step.over]] = step.lengths[step.over]
                ended, steps = ended + int(step.over.sum()), steps + len(step.episodes)
                if step.over.any() or number % (_REPORT_EVERY * groups) == 0:
                    on_progress(ended, total, steps)
        except GameLostError:
            self.close()
            raise
        returns = scores.reshape(episodes, population).T.astype(np.float32)
        return EvalResult(returns, np.ascontiguousarray(lengths.reshape(episodes, population).T))

    def close(self) -> None:
        """Close the environments."""
        with ExitStack() as stack:
            for envs in self._vector_envs:
                stack.callback(envs.close)
            self._vector_envs = []


class _PopulationPlayer:
    """:class:`worldmodels.rollout.players.Player` with a controller of its own in every episode.

    Args:
        evaluator: V, M, the architecture of C and the encoder.
        params: (P, N) parameters; job j is played by candidate j % P.
        seeds: Seed of every job, which its latent noise is derived from.
    """

    def __init__(self, evaluator: EnvironmentEvaluator, params: Floats, seeds: Sequence[int]) -> None:
        self._evaluator, self._all_params, self._seeds = evaluator, params, seeds
        self._state = evaluator.lstm_state
        self._step: tuple[Indices, Floats, Floats, npt.NDArray[np.bool_]] | None = None

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """See :meth:`worldmodels.rollout.players.Player.reset`; random numbers come from the seeds of the jobs."""
        self._ages = np.zeros(batch, np.int64)
        self._params = np.zeros((batch, self._all_params.shape[1]), np.float32)
        self._noise = np.zeros((batch, _NOISE, self._evaluator.mdnrnn.latent_size), np.float32)
        self._generators: list[np.random.Generator] = [np.random.default_rng(0)] * batch
        self._state.reset(batch)

    def act(
        self,
        frames: Frame,
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        env_ids: npt.NDArray[np.int64] | None = None,
    ) -> Floats:
        """See :meth:`worldmodels.rollout.players.Player.act`; all arguments are required."""
        assert restart is not None and episodes is not None and env_ids is not None
        fresh, jobs = env_ids[restart], episodes[restart]
        self._ages[fresh] = 0
        self._params[fresh] = self._all_params[jobs % len(self._all_params)]
        self._state.h[fresh] = self._state.c[fresh] = 0
        for env_id, job in zip(fresh.tolist(), jobs.tolist(), strict=True):
            self._generators[env_id] = np.random.default_rng([self._seeds[job], 1])
        with phase("V"):
            z = self._latents(frames, env_ids)
        with phase("C"):
            controller = self._evaluator.controller
            features = controller.join(z, self._state.c[env_ids], self._state.h[env_ids])
            actions = controller.act_each(self._params[env_ids], features)
        self._ages[env_ids] += 1
        self._step = env_ids, z, actions, restart
        return actions

    def _latents(self, frames: Frame, env_ids: Indices) -> Floats:
        for env_id in env_ids[self._ages[env_ids] % _NOISE == 0]:
            self._noise[env_id] = self._generators[env_id].standard_normal(self._noise.shape[1:], np.float32)
        mu, logvar = self._evaluator.encode(frames)
        z: Floats = mu + np.exp(0.5 * logvar) * self._noise[env_ids, self._ages[env_ids] % _NOISE]
        return z

    def update_state(self) -> None:
        """Advance M's LSTM by the last actions; called while the environments step."""
        assert self._step is not None
        if self._evaluator.uses_lstm:
            with phase("M"):
                self._state.step(*self._step)
