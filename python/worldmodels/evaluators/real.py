"""Candidates are tried in the real environment: their episodes are one stream through a batch of environments."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.config import EnvironmentConfig
from worldmodels.data.weights import load_model
from worldmodels.envs.batch import Batch, backend, make_batch
from worldmodels.envs.play import episode_seed
from worldmodels.evaluators import Played, Told, make_controller
from worldmodels.experiment import Experiment
from worldmodels.models.controller import Controller
from worldmodels.models.encoder import Encoder
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.memory import Memory
from worldmodels.models.training import device
from worldmodels.models.vae import ConvVAE
from worldmodels.threads import cores

_TELL = 50  # steps after which progress is told, if no episode has ended before
_NOISE = 64  # steps whose noise is drawn at once

Floats = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int64]


class RealEvaluator:
    """An :class:`worldmodels.evaluators.Evaluator` that plays the real environment.

    Every step, V encodes the frames of all slots in one batch, z is sampled, every slot's own candidate acts, and M's
    LSTM moves the slots' memories on (not at all where C sees z alone; M's head is never asked). A slot whose episode
    is over takes the next one, whoever's it is. An episode is what its seed and its candidate make of it: the noise
    of its latents comes from its seed, and a row of V, C or M is computed as if alone, so that neither the number of
    slots nor what else is played changes a bit. Other back ends, precisions, devices and machines do.

    Args:
        vae: V.
        mdnrnn: M.
        controller: the shape of C.
        environment: the real environment.
        slots: environments side by side.
        workers: threads or processes that step them.
        max_steps: the longest episode.
        precision: of V: ``"bfloat16"`` (autocast) or ``"float32"``.
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
    ) -> None:
        self.vae, self.mdnrnn, self.controller = vae, mdnrnn, controller
        self.encode = Encoder(vae, device(), precision, num_threads=workers)
        self.memory = Memory(mdnrnn, slots, workers)
        self.about: dict[str, Any] = {"inside": "environment", "backend": backend(environment)}
        self._environment, self._slots, self._workers = environment, slots, workers
        self._max_steps = max_steps
        self._batch: Batch | None = None
        self._remembers = controller.features != "z"

    @classmethod
    def of(cls, experiment: Experiment) -> RealEvaluator:
        """The one of a run folder, at the settings of its evolve stage."""
        config = experiment.config
        model = load_model(experiment.path("rnn", "rnn.safetensors"), MDNRNN)
        return cls(
            load_model(experiment.path("vae", "vae.safetensors"), ConvVAE),
            model,
            make_controller(experiment, model),
            config.environment,
            slots=config.evolve.environments,
            workers=config.evolve.threads or cores(),
            max_steps=config.evolve.max_steps,
            precision=config.encode.precision,
        )

    def play(
        self, params: npt.NDArray[np.floating], episodes: int, *, seed: int, common_seeds: bool, told: Told
    ) -> Played:
        """As :class:`worldmodels.evaluators.Evaluator` says.

        Raises:
            ValueError: a shape or a number does not fit.
        """
        params = np.asarray(params, np.float32)
        if params.ndim != 2 or params.shape[1] != self.controller.size or len(params) == 0:
            raise ValueError(f"params: expected (P, {self.controller.size}), got {params.shape}")
        if episodes < 1:
            raise ValueError(f"episodes: expected at least 1, got {episodes}")
        if self._batch is None:
            self._batch = make_batch(self._environment, self._slots, workers=self._workers)
        stream = _Stream(self, self._batch, params, episodes, seed, common_seeds)
        for number in itertools.count(1):
            if stream.step() or number % _TELL == 0:
                told(stream.ended, stream.total, stream.steps)
            if not stream.running:
                break
        return Played(stream.returns.astype(np.float32), stream.lengths, stream.profile)

    def close(self) -> None:
        """Ends the environments."""
        if self._batch is not None:
            self._batch.close()
            self._batch = None


class _Stream:
    """The episodes of one population on their way through the slots."""

    def __init__(
        self, evaluator: RealEvaluator, batch: Batch, params: Floats, episodes: int, seed: int, common_seeds: bool
    ) -> None:
        self._evaluator, self._batch, self._params = evaluator, batch, params
        self._population, self.total = len(params), len(params) * episodes
        # Job j is episode j // P of candidate j % P.
        numbers = np.arange(self.total) // self._population
        if not common_seeds:
            numbers += episodes * (np.arange(self.total) % self._population)
        self._seeds = [episode_seed(seed, "evolve", int(number)) for number in numbers]
        batch.expect(self._seeds)
        model = evaluator.mdnrnn
        slots = batch.slots
        self._next = 0
        self._job = np.full(slots, -1, np.int64)
        self._age = np.zeros(slots, np.int64)
        self._score = np.zeros(slots)
        self._frames = np.zeros((slots, 64, 64, 3), np.uint8)
        self._own = np.zeros((slots, params.shape[1]), np.float32)
        self._noise = np.zeros((slots, _NOISE, model.latent_size), np.float32)
        self._random: list[np.random.Generator] = [np.random.default_rng(0)] * slots
        self._memory = evaluator.memory
        self._memory.forget(slots)
        self.returns = np.zeros((self._population, episodes))
        self.lengths = np.zeros((self._population, episodes), np.int32)
        self.profile = dict.fromkeys(("environment", "V", "C", "M"), 0.0)
        self.ended = self.steps = 0
        self._begin(np.arange(slots))

    @property
    def running(self) -> bool:
        return self.ended < self.total

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.profile[what] += time.perf_counter() - began

    def _begin(self, slots: Slots) -> None:
        """Gives free slots the next episodes, as long as there are any."""
        fresh = slots[: self.total - self._next]
        self._job[slots] = -1
        if len(fresh) == 0:
            return
        self._job[fresh] = np.arange(self._next, self._next + len(fresh))
        self._next += len(fresh)
        self._age[fresh], self._score[fresh] = 0, 0
        self._own[fresh] = self._params[self._job[fresh] % self._population]
        self._memory.h[fresh] = self._memory.c[fresh] = 0
        seeds = [self._seeds[job] for job in self._job[fresh]]
        for slot, seed in zip(fresh, seeds, strict=True):
            self._random[slot] = np.random.default_rng([seed, 1])
        with self._timed("environment"):
            self._frames[fresh] = self._batch.reset(fresh, seeds)

    def _latents(self, busy: Slots) -> Floats:
        for slot in busy[self._age[busy] % _NOISE == 0]:
            self._noise[slot] = self._random[slot].standard_normal(self._noise.shape[1:], np.float32)
        mu, logvar = self._evaluator.encode(self._frames[busy])
        noise = self._noise[busy, self._age[busy] % _NOISE]
        z: Floats = mu + np.exp(0.5 * logvar) * noise
        return z

    def step(self) -> bool:
        """Plays one step in every slot that has an episode; whether one of them has ended."""
        evaluator, controller = self._evaluator, self._evaluator.controller
        busy = np.flatnonzero(self._job >= 0)
        with self._timed("V"):
            z = self._latents(busy)
        with self._timed("C"):
            features = controller.join(z, self._memory.c[busy], self._memory.h[busy])
            actions = controller.act_each(self._own[busy], features)
        with self._timed("M"):
            if evaluator._remembers:
                self._memory.step(busy, z, actions, self._age[busy] == 0)
        with self._timed("environment"):
            self._frames[busy], rewards, terminated, truncated = self._batch.step(busy, actions)
        self._score[busy] += rewards
        self._age[busy] += 1
        self.steps += len(busy)
        over = busy[terminated | truncated | (self._age[busy] >= evaluator._max_steps)]
        if len(over) == 0:
            return False
        episode, candidate = np.divmod(self._job[over], self._population)
        self.returns[candidate, episode] = self._score[over]
        self.lengths[candidate, episode] = self._age[over]
        self.ended += len(over)
        self._begin(over)
        return True
