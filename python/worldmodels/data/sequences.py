"""Packed sequences: whole episodes concatenated in the rows of a batch, for stateful training of M."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from worldmodels.data.latents import Latents


@dataclass(frozen=True)
class Chunk:
    """T steps of B rows.

    Attributes:
        mu: (B, T + 1, Z) float32 means; the last column is a target only.
        logvar: (B, T + 1, Z) float32 log variances.
        action: (B, T, A) float32 actions.
        restart: (B, T) float32, 1 at the first frame of an episode.
        reward: (B, T) float32 rewards.
        done: (B, T) float32, 1 at steps that terminate an episode.
        has_next: (B, T) float32, 0 at the last frame of an episode, which has no next latent.
        termination_known: (B, T) float32, 0 at the last step of a truncated episode, whose termination is unknown.
        valid: (B, T) float32, 0 in the padding between episodes and after the last one.
    """

    mu: npt.NDArray[np.float32]
    logvar: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    restart: npt.NDArray[np.float32]
    reward: npt.NDArray[np.float32]
    done: npt.NDArray[np.float32]
    has_next: npt.NDArray[np.float32]
    termination_known: npt.NDArray[np.float32]
    valid: npt.NDArray[np.float32]

    def rows(self, rows: slice) -> Chunk:
        """Select some of the rows."""
        return Chunk(*(getattr(self, field.name)[rows] for field in fields(self)))


class PackedSequences:
    """Pack shuffled episodes into ``batch`` rows and cut the rows into chunks of T steps.

    Every epoch assigns each episode to the row that is shortest so far. The last episodes are assigned longest first,
    so that the rows have similar lengths. An epoch contains every frame once. Padding is masked by ``Chunk.valid``.

    Episodes start at multiples of ``align``. M's LSTM is split at every column in which a row restarts, and alignment
    makes such columns rare.

    Args:
        latents: Encoded episodes.
        episodes: (E,) indices of the episodes to use.
        batch: Number of rows, at most the number of episodes.
        sequence: Steps T of a chunk; the last chunk of an epoch may be shorter.
        seed: Seed of the order.
        align: Steps between possible starts of episodes in a row.
        done_lookahead: Frames dropped from the end of every terminated episode (at least one is kept). The last kept
            step is marked done.
    """

    def __init__(
        self,
        latents: Latents,
        episodes: npt.NDArray[np.int64],
        batch: int,
        sequence: int,
        seed: int,
        align: int = 8,
        done_lookahead: int = 0,
    ) -> None:
        if len(episodes) == 0:
            raise ValueError("episodes: expected at least one, got none")
        self._latents, self._episodes, self._seed = latents, episodes, seed
        self.batch = min(batch, len(episodes))
        self._sequence, self._align = sequence, align
        self._lengths = np.maximum(latents.lengths - done_lookahead * latents.terminated, 1)
        ends = latents.starts + self._lengths - 1
        total = len(latents.mu)
        self._first = np.zeros(total, np.bool_)
        self._first[latents.starts] = True
        self._last = np.zeros(total, np.bool_)
        self._last[ends] = True
        self._done = np.zeros(total, np.bool_)
        self._done[ends] = latents.terminated
        self._cut = np.zeros(total, np.bool_)
        self._cut[ends] = ~latents.terminated

    @property
    def transitions(self) -> int:
        """Number of steps with a next latent."""
        return int((self._lengths[self._episodes] - 1).sum())

    def epoch(self, epoch: int) -> Iterator[Chunk]:
        """Yield the chunks of one epoch in order. The LSTM state is zero at the first and carried to the next."""
        rng = np.random.default_rng([self._seed, epoch])
        streams: list[list[int]] = [[] for _ in range(self.batch)]
        filled = np.zeros(self.batch, np.int64)
        order = rng.permutation(self._episodes)
        last = order[-4 * self.batch :]
        last[:] = last[np.argsort(-self._lengths[last], kind="stable")]
        for episode in order:
            shortest = int(filled.argmin())
            streams[shortest].append(episode)
            filled[shortest] += -(-self._lengths[episode] // self._align) * self._align
        steps = int(filled.max())
        index, valid = np.zeros((self.batch, steps), np.int64), np.zeros((self.batch, steps), np.float32)
        starts = self._latents.starts  # a cumulative sum over all episodes
        for row, episodes in enumerate(streams):
            at = 0
            for episode in rng.permutation(episodes):
                start, length = int(starts[episode]), int(self._lengths[episode])
                index[row, at : at + length], valid[row, at : at + length] = np.arange(start, start + length), 1
                index[row, at + length :] = start + length - 1
                at += -(-length // self._align) * self._align
        used = int(np.flatnonzero(valid.max(axis=0))[-1]) + 1
        for start in range(0, used, self._sequence):
            part = slice(start, min(start + self._sequence, used))
            yield self._chunk(index[:, part], valid[:, part])

    def _chunk(self, rows: npt.NDArray[np.int64], valid: npt.NDArray[np.float32]) -> Chunk:
        """Build the chunk at (B, T) frame indices. The next frame of an episode has the next index."""
        latents = self._latents
        following = np.minimum(rows[:, -1:] + 1, len(latents.mu) - 1)
        wide = np.concatenate([rows, following], axis=1)
        return Chunk(
            latents.mu[wide].astype(np.float32),
            latents.logvar[wide].astype(np.float32),
            latents.actions[rows],
            self._first[rows] * valid,
            latents.rewards[rows],
            self._done[rows] * valid,
            ~self._last[rows] * valid,
            ~self._cut[rows] * valid,
            valid,
        )
