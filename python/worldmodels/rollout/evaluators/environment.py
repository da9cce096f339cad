"""Candidates are tried in the real environment: their episodes are one stream through a batch of environments."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.envs.base import Batch
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvironmentConfig
from worldmodels.envs.vector import backend, make_batch
from worldmodels.models.controller import Controller
from worldmodels.models.device import device
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import Memory
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.rollout.evaluators import Played, Told
from worldmodels.rollout.runner import episode_seed

_TELL = 50  # steps after which progress is told, if no episode has ended before
_NOISE = 64  # steps whose noise is drawn at once

Floats = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int64]


class EnvironmentEvaluator:
    """An :class:`worldmodels.rollout.evaluators.Evaluator` that plays the real environment.

    Every step, V encodes the frames of many slots in one batch, z is sampled, every slot's own candidate acts, and M's
    LSTM moves the slots' memories on (not at all where C sees z alone; M's head is never asked). A slot whose episode
    is over takes the next one, whoever's it is. The slots are in two groups: while the environments of one are
    stepped, the frames of the other are looked at, so that no core waits.

    An episode is what its seed and its candidate make of it: the noise of its latents comes from its seed, and a row
    of V, C or M is computed as if alone, so that neither the number of slots nor what else is played changes a bit.
    Other back ends, precisions, devices and machines do.

    Args:
        vae: V.
        mdnrnn: M.
        controller: the shape of C.
        environment: the real environment.
        slots: environments side by side.
        workers: threads or processes that step them.
        max_steps: the longest episode.
        patience: steps without a reward above zero after which an episode is given up, and what is left of it taken to
            pay what the last step paid; 0 for never.
        precision: of V: ``"bfloat16"`` (autocast) or ``"float32"``.
        rules: Rules of the task: its longest episode and its actions; None for those of the environment.
    """

    unit = "frames"

    def __init__(
        self,
        vae: ConvVAE,
        mdnrnn: MDNRNN,
        controller: Controller,
        environment: EnvironmentConfig,
        *,
        slots: int,
        workers: int,
        max_steps: int,
        precision: str,
        patience: int = 0,
        rules: Rules | None = None,
    ) -> None:
        self.vae, self.mdnrnn, self.controller = vae, mdnrnn, controller
        self.encode = Encoder(vae, device(), precision, num_threads=workers)
        self.about: dict[str, Any] = {"inside": "environment", "backend": backend(environment)}
        self.max_steps, self.patience = rules.limit(max_steps) if rules else max_steps, patience
        self._options: dict[str, Any] = {"rules": rules} if rules else {}
        self.remembers = controller.features != "z"
        self._environment, self._workers = environment, workers
        self._sizes = [size for size in (slots - slots // 2, slots // 2) if size]
        self._memories = [Memory(mdnrnn, size, workers) for size in self._sizes]
        self._batches: list[Batch] = []

    def play(
        self, params: npt.NDArray[np.floating], episodes: int, *, seed: int, common_seeds: bool, told: Told
    ) -> Played:
        """As :class:`worldmodels.rollout.evaluators.Evaluator` says.

        Raises:
            ValueError: a shape or a number does not fit.
        """
        params = np.asarray(params, np.float32)
        if params.ndim != 2 or params.shape[1] != self.controller.size or len(params) == 0:
            raise ValueError(f"params: expected (P, {self.controller.size}), got {params.shape}")
        if episodes < 1:
            raise ValueError(f"episodes: expected at least 1, got {episodes}")
        if not self._batches:
            options = {"workers": self._workers, **self._options}
            self._batches = [make_batch(self._environment, size, **options) for size in self._sizes]
        stream = _Stream(self, params, episodes, seed, common_seeds)
        groups = [
            _Group(stream, batch, memory, range(number, stream.total, len(self._batches)))
            for number, (batch, memory) in enumerate(zip(self._batches, self._memories, strict=True))
        ]
        for group in groups:
            group.act()
        for number in itertools.count(1):
            before = stream.ended
            for group in groups:
                group.observe()
                group.act()
            if stream.ended > before or number % _TELL == 0:
                told(stream.ended, stream.total, stream.steps)
            if stream.ended == stream.total:
                break
        return Played(stream.returns.astype(np.float32), stream.lengths, stream.profile)

    def close(self) -> None:
        """Ends the environments."""
        for batch in self._batches:
            batch.close()
        self._batches = []


class _Stream:
    """The episodes of one population: job j is episode j // P of candidate j % P."""

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

    def end(self, jobs: Slots, scores: npt.NDArray[np.float64], lengths: Slots) -> None:
        """Keeps what became of some episodes."""
        episode, candidate = np.divmod(jobs, self.population)
        self.returns[candidate, episode] = scores
        self.lengths[candidate, episode] = lengths
        self.ended += len(jobs)


class _Group:
    """Some of the jobs on their way through the slots of one batch: :meth:`act` and :meth:`observe` take turns."""

    def __init__(self, stream: _Stream, batch: Batch, memory: Memory, jobs: range) -> None:
        self._stream, self._batch, self._memory = stream, batch, memory
        self._jobs = jobs
        batch.expect([stream.seeds[job] for job in jobs])
        slots = batch.slots
        latent_size = stream.evaluator.mdnrnn.latent_size
        self._job = np.full(slots, -1, np.int64)
        self._age, self._barren = np.zeros((2, slots), np.int64)
        self._score = np.zeros(slots)
        self._frames = np.zeros((slots, 64, 64, 3), np.uint8)
        self._own = np.zeros((slots, stream.params.shape[1]), np.float32)
        self._noise = np.zeros((slots, _NOISE, latent_size), np.float32)
        self._random: list[np.random.Generator] = [np.random.default_rng(0)] * slots
        self._busy = np.arange(0)
        memory.forget(slots)
        self._begin(np.arange(slots))

    def _begin(self, slots: Slots) -> None:
        """Gives free slots the next episodes, as long as there are any."""
        fresh, stream = slots[: len(self._jobs)], self._stream
        self._job[slots] = -1
        if len(fresh) == 0:
            return
        self._job[fresh] = self._jobs[: len(fresh)]
        self._jobs = self._jobs[len(fresh) :]
        self._age[fresh] = self._barren[fresh] = 0
        self._score[fresh] = 0
        self._own[fresh] = stream.params[self._job[fresh] % stream.population]
        self._memory.h[fresh] = self._memory.c[fresh] = 0
        seeds = [stream.seeds[job] for job in self._job[fresh]]
        for slot, seed in zip(fresh, seeds, strict=True):
            self._random[slot] = np.random.default_rng([seed, 1])
        with stream.timed("environment"):
            self._frames[fresh] = self._batch.reset(fresh, seeds)

    def _latents(self, busy: Slots) -> Floats:
        for slot in busy[self._age[busy] % _NOISE == 0]:
            self._noise[slot] = self._random[slot].standard_normal(self._noise.shape[1:], np.float32)
        mu, logvar = self._stream.evaluator.encode(self._frames[busy])
        noise = self._noise[busy, self._age[busy] % _NOISE]
        z: Floats = mu + np.exp(0.5 * logvar) * noise
        return z

    def act(self) -> None:
        """Looks at the frames, acts in every slot that has an episode, and leaves the environments at work."""
        stream, evaluator, controller = self._stream, self._stream.evaluator, self._stream.evaluator.controller
        self._busy = busy = np.flatnonzero(self._job >= 0)
        if len(busy) == 0:
            return
        with stream.timed("V"):
            z = self._latents(busy)
        with stream.timed("C"):
            features = controller.join(z, self._memory.c[busy], self._memory.h[busy])
            actions = controller.act_each(self._own[busy], features)
        with stream.timed("environment"):
            self._batch.send(busy, actions)
        with stream.timed("M"):
            if evaluator.remembers:
                self._memory.step(busy, z, actions, self._age[busy] == 0)

    def observe(self) -> None:
        """Waits for the environments, and gives slots whose episode is over the next one."""
        stream, busy = self._stream, self._busy
        if len(busy) == 0:
            return
        with stream.timed("environment"):
            self._frames[busy], rewards, terminated, truncated = self._batch.receive()
        self._score[busy] += rewards
        self._age[busy] += 1
        self._barren[busy] = np.where(rewards > 0, 0, self._barren[busy] + 1)
        stream.steps += len(busy)
        ended = terminated | truncated | (self._age[busy] >= stream.evaluator.max_steps)
        if stream.evaluator.patience:
            hopeless = ~ended & (self._barren[busy] >= stream.evaluator.patience)
            left = stream.evaluator.max_steps - self._age[busy[hopeless]]
            self._score[busy[hopeless]] += left * rewards[hopeless]
            ended |= hopeless
        over = busy[ended]
        if len(over):
            stream.end(self._job[over], self._score[over], self._age[over])
            self._begin(over)
