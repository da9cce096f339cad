"""Streams: whole episodes laid end to end, side by side in a batch, so that M sees every step with its true past."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

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
        valid: (B, T) float32, 0 between episodes and behind a stream's end: nothing counts there.
    """

    mu: npt.NDArray[np.float32]
    logvar: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    restart: npt.NDArray[np.float32]
    reward: npt.NDArray[np.float32]
    done: npt.NDArray[np.float32]
    has_next: npt.NDArray[np.float32]
    knows_end: npt.NDArray[np.float32]
    valid: npt.NDArray[np.float32]

    def rows(self, rows: slice) -> Chunk:
        """Some of the streams."""
        return Chunk(*(getattr(self, field.name)[rows] for field in fields(self)))


class Streams:
    """Deals shuffled episodes to ``batch`` streams and cuts them into chunks.

    Every epoch deals anew, each episode to the stream that is shortest so far, the last ones longest first so that
    the streams end together. Every frame comes once an epoch; what a stream is short of the longest one is masked.
    So are the steps up to the next multiple of ``align`` behind every episode: M runs its LSTM from one column in
    which some stream restarts to the next, and this makes such columns few.

    Args:
        latents: the encoded episodes.
        episodes: (E,) numbers of the episodes to use.
        batch: streams; fewer if there are fewer episodes.
        sequence: steps T of a chunk; the last of an epoch may have fewer.
        seed: of the order.
        align: episodes begin at multiples of this many steps of their stream.
        done_lead: frames that are left out at the end of every episode that ended by itself, at least its first one
            staying: the step before them is the one that is done.
    """

    def __init__(
        self,
        latents: Latents,
        episodes: npt.NDArray[np.int64],
        batch: int,
        sequence: int,
        seed: int,
        align: int = 8,
        done_lead: int = 0,
    ) -> None:
        if len(episodes) == 0:
            raise ValueError("episodes: expected at least one, got none")
        self._latents, self._episodes, self._seed = latents, episodes, seed
        self.batch = min(batch, len(episodes))
        self._sequence, self._align = sequence, align
        self._lengths = np.maximum(latents.lengths - done_lead * latents.terminated, 1)
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

    def epoch(self, epoch: int) -> Iterator[Chunk]:
        """The chunks of one epoch, in order; state goes from each to the next and starts at zero."""
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
        """The chunk at (B, T) frame numbers. Where an episode goes on, its next frame is the next number."""
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
