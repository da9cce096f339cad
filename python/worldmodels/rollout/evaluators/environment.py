"""Evaluation of candidates in the real environment, with a continuous stream of episodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.envs.base import VectorEnv
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.vector import backend, make_vector_env
from worldmodels.models.controller import Controller
from worldmodels.models.device import device
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import LSTMState
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.rollout.evaluators import EvalResult, OnProgress
from worldmodels.rollout.runner import episode_seed

_REPORT_EVERY = 50  # steps between two progress reports without a finished episode
_NOISE = 64  # steps per draw of noise

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class EnvironmentEvaluator:
    """:class:`worldmodels.rollout.evaluators.Evaluator` in the real environment.

    At every step V encodes the frames of many environments in one envs, z is sampled, each candidate acts in its own
    environment, and M's LSTM advances (unless C uses z alone; the MDN head is not evaluated). An environment whose
    episode is over takes the next episode of any candidate. There are two groups of environments: one steps while the
    frames of the other are encoded, so that all cores are busy.

    An episode depends on its seed and its candidate alone: the seed determines the noise of the latents, and every row
    of V, C and M is computed independently. The number of environments and the other episodes change no bit. Other
    back ends, precisions, devices and machines do.

    Args:
        vae: V.
        mdnrnn: M.
        controller: Shape of C.
        environment: Specification of the real environment.
        num_envs: Number of concurrent environments.
        num_workers: Number of threads or processes that step them.
        max_steps: Maximum length of an episode.
        max_steps_without_reward: Number of steps without a positive reward after which an episode is abandoned; 0 for
            never. Each remaining step is assumed to earn the last reward.
        precision: Precision of V, ``"bfloat16"`` (autocast) or ``"float32"``.
        rules: Rules of the task: maximum length and actions; None for those of the environment.
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
        self.vae, self.mdnrnn, self.controller = vae, mdnrnn, controller
        self.encode = Encoder(vae, device(), precision, num_threads=num_workers)
        self.metadata: dict[str, Any] = {"evaluate_in": "environment", "backend": backend(environment)}
        self.max_steps = rules.limit(max_steps) if rules else max_steps
        self.max_steps_without_reward = max_steps_without_reward
        self._options: dict[str, Any] = {"rules": rules} if rules else {}
        self.uses_lstm = controller.features != "z"
        self._environment, self._workers = environment, num_workers
        self._sizes = [size for size in (num_envs - num_envs // 2, num_envs // 2) if size]
        self._lstm_states = [LSTMState(mdnrnn, size, num_workers) for size in self._sizes]
        self._vector_envs: list[VectorEnv] = []

    def play(
        self, params: npt.NDArray[np.floating], episodes: int, *, seed: int, common_seeds: bool, on_progress: OnProgress
    ) -> EvalResult:
        """See :meth:`worldmodels.rollout.evaluators.Evaluator.play`.

        Raises:
            ValueError: A shape or number is invalid.
        """
        params = np.asarray(params, np.float32)
        if params.ndim != 2 or params.shape[1] != self.controller.size or len(params) == 0:
            raise ValueError(f"params: expected (P, {self.controller.size}), got {params.shape}")
        if episodes < 1:
            raise ValueError(f"episodes: expected at least 1, got {episodes}")
        if not self._vector_envs:
            options = {"num_workers": self._workers, **self._options}
            self._vector_envs = [make_vector_env(self._environment, size, **options) for size in self._sizes]
        stream = _Stream(self, params, episodes, seed, common_seeds)
        groups = [
            _Group(stream, envs, lstm_state, range(number, stream.total, len(self._vector_envs)))
            for number, (envs, lstm_state) in enumerate(zip(self._vector_envs, self._lstm_states, strict=True))
        ]
        for group in groups:
            group.act()
        for number in itertools.count(1):
            before = stream.ended
            for group in groups:
                group.observe()
                group.act()
            if stream.ended > before or number % _REPORT_EVERY == 0:
                on_progress(stream.ended, stream.total, stream.steps)
            if stream.ended == stream.total:
                break
        return EvalResult(stream.returns.astype(np.float32), stream.lengths, stream.profile)

    def close(self) -> None:
        """Close the environments."""
        for envs in self._vector_envs:
            envs.close()
        self._vector_envs = []


class _Stream:
    """Episodes of one population: job j is episode j // P of candidate j % P."""

    def __init__(
        self, evaluator: EnvironmentEvaluator, params: Floats, episodes: int, seed: int, common_seeds: bool
    ) -> None:
        self.evaluator, self.params = evaluator, params
        self.population, self.total = len(params), len(params) * episodes
        numbers = np.arange(self.total) // self.population
        if not common_seeds:
            numbers += episodes * (np.arange(self.total) % self.population)
        self.seeds = [episode_seed(seed, "evolve", int(number)) for number in numbers]
        self.returns = np.zeros((self.population, episodes))
        self.lengths = np.zeros((self.population, episodes), np.int32)
        self.profile = dict.fromkeys(("environment", "V", "C", "M"), 0.0)
        self.ended = self.steps = 0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.profile[what] += time.perf_counter() - began

    def end(self, jobs: Indices, scores: npt.NDArray[np.float64], lengths: Indices) -> None:
        """Store the returns and lengths of finished episodes."""
        episode, candidate = np.divmod(jobs, self.population)
        self.returns[candidate, episode] = scores
        self.lengths[candidate, episode] = lengths
        self.ended += len(jobs)


class _Group:
    """Jobs that share one vector environment; :meth:`act` and :meth:`observe` alternate."""

    def __init__(self, stream: _Stream, envs: VectorEnv, lstm_state: LSTMState, jobs: range) -> None:
        self._stream, self._envs, self._lstm_state = stream, envs, lstm_state
        self._jobs = jobs
        envs.prefetch([stream.seeds[job] for job in jobs])
        num_envs = envs.num_envs
        latent_size = stream.evaluator.mdnrnn.latent_size
        self._job = np.full(num_envs, -1, np.int64)
        self._age, self._steps_without_reward = np.zeros((2, num_envs), np.int64)
        self._score = np.zeros(num_envs)
        self._frames = np.zeros((num_envs, 64, 64, 3), np.uint8)
        self._params = np.zeros((num_envs, stream.params.shape[1]), np.float32)
        self._noise = np.zeros((num_envs, _NOISE, latent_size), np.float32)
        self._random: list[np.random.Generator] = [np.random.default_rng(0)] * num_envs
        self._busy = np.arange(0)
        lstm_state.reset(num_envs)
        self._begin(np.arange(num_envs))

    def _begin(self, env_ids: Indices) -> None:
        """Start the next jobs in free environments."""
        fresh, stream = env_ids[: len(self._jobs)], self._stream
        self._job[env_ids] = -1
        if len(fresh) == 0:
            return
        self._job[fresh] = self._jobs[: len(fresh)]
        self._jobs = self._jobs[len(fresh) :]
        self._age[fresh] = self._steps_without_reward[fresh] = 0
        self._score[fresh] = 0
        self._params[fresh] = stream.params[self._job[fresh] % stream.population]
        self._lstm_state.h[fresh] = self._lstm_state.c[fresh] = 0
        seeds = [stream.seeds[job] for job in self._job[fresh]]
        for env_id, seed in zip(fresh, seeds, strict=True):
            self._random[env_id] = np.random.default_rng([seed, 1])
        with stream.timed("environment"):
            self._frames[fresh] = self._envs.reset(fresh, seeds)

    def _latents(self, busy: Indices) -> Floats:
        for env_id in busy[self._age[busy] % _NOISE == 0]:
            self._noise[env_id] = self._random[env_id].standard_normal(self._noise.shape[1:], np.float32)
        mu, logvar = self._stream.evaluator.encode(self._frames[busy])
        noise = self._noise[busy, self._age[busy] % _NOISE]
        z: Floats = mu + np.exp(0.5 * logvar) * noise
        return z

    def act(self) -> None:
        """Encode the frames, act in every busy environment and send the actions without waiting."""
        stream, evaluator, controller = self._stream, self._stream.evaluator, self._stream.evaluator.controller
        self._busy = busy = np.flatnonzero(self._job >= 0)
        if len(busy) == 0:
            return
        with stream.timed("V"):
            z = self._latents(busy)
        with stream.timed("C"):
            features = controller.join(z, self._lstm_state.c[busy], self._lstm_state.h[busy])
            actions = controller.act_each(self._params[busy], features)
        with stream.timed("environment"):
            self._envs.send(busy, actions)
        with stream.timed("M"):
            if evaluator.uses_lstm:
                self._lstm_state.step(busy, z, actions, self._age[busy] == 0)

    def observe(self) -> None:
        """Receive the step and start new episodes in environments whose episode is over."""
        stream, busy = self._stream, self._busy
        if len(busy) == 0:
            return
        with stream.timed("environment"):
            self._frames[busy], rewards, terminated, truncated = self._envs.recv()
        self._score[busy] += rewards
        self._age[busy] += 1
        self._steps_without_reward[busy] = np.where(rewards > 0, 0, self._steps_without_reward[busy] + 1)
        stream.steps += len(busy)
        ended = terminated | truncated | (self._age[busy] >= stream.evaluator.max_steps)
        if stream.evaluator.max_steps_without_reward:
            abandoned = ~ended & (self._steps_without_reward[busy] >= stream.evaluator.max_steps_without_reward)
            left = stream.evaluator.max_steps - self._age[busy[abandoned]]
            self._score[busy[abandoned]] += left * rewards[abandoned]
            ended |= abandoned
        over = busy[ended]
        if len(over):
            stream.end(self._job[over], self._score[over], self._age[over])
            self._begin(over)
