"""Streams: whole episodes laid end to end, side by side in a batch, so that M sees every step with its true past."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldmodels.data.latents import Latents


@dataclass(frozen=True)
class Chunk:
    """T steps of B streams.

    Attributes:
        mu: (B, T + 1, Z) float32; the last column is only a target.
        logvar: (B, T + 1, Z) float32.
        action: (B, T, A) float32.
        restart: (B, T) float32, 1 at an episode's first frame.
        reward: (B, T) float32.
        done: (B, T) float32, 1 where the episode ended with this step.
        has_next: (B, T) float32, 0 at an episode's last frame: nothing follows there.
        knows_end: (B, T) float32, 0 where a recording was cut off: whether it would have ended is unknown.
    """

    mu: npt.NDArray[np.float32]
    logvar: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    restart: npt.NDArray[np.float32]
    reward: npt.NDArray[np.float32]
    done: npt.NDArray[np.float32]
    has_next: npt.NDArray[np.float32]
    knows_end: npt.NDArray[np.float32]


class Streams:
    """Deals shuffled episodes to ``batch`` streams and cuts them into chunks.

    Every epoch deals anew (each episode to the stream that is shortest so far). Streams are cut to whole chunks of
    the shortest one, so the ends of the longer ones are left out, others in every epoch.

    Args:
        latents: the encoded episodes.
        episodes: (E,) numbers of the episodes to use.
        batch: streams; fewer if there are fewer episodes.
        sequence: steps T of a chunk; fewer if the streams are shorter.
        seed: of the order.
    """

    def __init__(self, latents: Latents, episodes: npt.NDArray[np.int64], batch: int, sequence: int, seed: int) -> None:
        if len(episodes) == 0:
            raise ValueError("episodes: expected at least one, got none")
        self._latents, self._episodes, self._seed = latents, episodes, seed
        self.batch = min(batch, len(episodes))
        self._sequence = sequence
        ends = latents.starts + latents.lengths - 1
        total = len(latents.mu)
        self._first = np.zeros(total, np.float32)
        self._first[latents.starts] = 1
        self._last = np.zeros(total, np.float32)
        self._last[ends] = 1
        self._done = np.zeros(total, np.float32)
        self._done[ends] = latents.terminated
        self._cut = np.zeros(total, np.float32)
        self._cut[ends] = ~latents.terminated

    def epoch(self, epoch: int) -> Iterator[Chunk]:
        """The chunks of one epoch, in order; state goes from each to the next and starts at zero."""
        rng = np.random.default_rng([self._seed, epoch])
        streams: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(self.batch)]
        filled = np.zeros(self.batch, np.int64)
        for episode in rng.permutation(self._episodes):
            shortest = int(filled.argmin())
            start, length = int(self._latents.starts[episode]), int(self._latents.lengths[episode])
            streams[shortest].append(np.arange(start, start + length))
            filled[shortest] += length
        steps = int(filled.min())
        sequence = min(self._sequence, steps)
        index = np.stack([np.concatenate(parts)[:steps] for parts in streams])  # (B, steps)
        for start in range(0, steps - sequence + 1, sequence):
            yield self._chunk(index[:, start : start + sequence])

    def _chunk(self, rows: npt.NDArray[np.int64]) -> Chunk:
        """The chunk at (B, T) frame numbers. Where an episode goes on, its next frame is the next number."""
        latents = self._latents
        following = np.minimum(rows[:, -1:] + 1, len(latents.mu) - 1)
        wide = np.concatenate([rows, following], axis=1)
        return Chunk(
            latents.mu[wide].astype(np.float32),
            latents.logvar[wide].astype(np.float32),
            latents.actions[rows],
            self._first[rows],
            latents.rewards[rows],
            self._done[rows],
            1 - self._last[rows],
            1 - self._cut[rows],
        )
