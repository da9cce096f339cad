"""The episode loop: a player steps vectors of real environments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worldmodels.envs.base import Bools, VectorEnv
from worldmodels.envs.preprocessing import Frame
from worldmodels.rollout.players import Player
from worldmodels.support.profile import phase
from worldmodels.support.validation import check_integer


class Episode(NamedTuple):
    """An episode to play.

    Attributes:
        number: Index, which players derive their random numbers from.
        seed: Seed of the environment.
    """

    number: int
    seed: int


class Transitions(NamedTuple):
    """One step of n environments.

    Attributes:
        env_ids: (n,) int64 indices of the environments.
        episodes: (n,) int64 indices of their episodes.
        frames: (n, 64, 64, 3) uint8 frames that were acted on.
        actions: (n, A) float32 actions.
        rewards: (n,) float32 rewards.
        lengths: (n,) int64 steps of the episodes so far, this one included.
        terminated: (n,) bool, whether the environment terminated the episode.
        truncated: (n,) bool, whether the environment truncated it.
        starved: (n,) bool, whether ``max_steps_without_reward`` truncates it.
        cut: (n,) bool, whether ``max_steps`` truncates it, and not the environment.
        over: (n,) bool, whether this is its last step.
    """

    env_ids: npt.NDArray[np.int64]
    episodes: npt.NDArray[np.int64]
    frames: Frame
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    starved: npt.NDArray[np.bool_]
    cut: npt.NDArray[np.bool_]
    over: npt.NDArray[np.bool_]


def run_episodes(
    vector_envs: Sequence[VectorEnv],
    queues: Sequence[deque[Episode]],
    player: Player,
    *,
    max_steps: int | None = None,
    max_steps_without_reward: int = 0,
    while_stepping: Callable[[], None] = lambda: None,
) -> Iterator[Transitions]:
    """Play all episodes of the queues and yield every step: the episode loop.

    While one vector of environments steps, the player acts on the frames of the next. When an episode ends, its
    environment takes the next episode from its vector's queue. The caller may append to a queue until it has received
    the last step of the vector's last episode.

    Args:
        vector_envs: Vectors of environments. Env indices passed to the player count through all of them.
        queues: Episodes of each vector.
        player: Player; it has been reset to at least as many environments as are used.
        max_steps: Maximum length of an episode; None for the environment's own limit.
        max_steps_without_reward: End an episode after this many steps without a positive reward; 0 for never.
        while_stepping: Called after every start of a step, for work that can overlap it.

    Yields:
        Every step of every vector. The frames belong to the caller; the other arrays must not be changed.

    Raises:
        TypeError: A limit is not an integer.
        ValueError: A limit is out of range.
        RuntimeError: An episode was appended to the queue of a vector that has finished.
    """
    if max_steps is not None:
        check_integer("max_steps", max_steps, 1, 2**63 - 1)
    check_integer("max_steps_without_reward", max_steps_without_reward, 0, 2**63 - 1)
    limits = np.iinfo(np.int64).max if max_steps is None else max_steps, max_steps_without_reward
    lanes, first = [], 0
    for envs, queue in zip(vector_envs, queues, strict=True):
        lanes.append(_Lane(envs, queue, player, first, *limits))
        first += lanes[-1].size
    for lane in lanes:
        lane.start()
        lane.act(while_stepping)
    while any(lane.is_playing for lane in lanes):
        for lane in lanes:
            if not lane.is_playing:
                continue
            step = lane.observe()
            yield step
            if step.over.any():
                lane.replace(step.over)
            lane.act(while_stepping)
    if any(queues):
        raise RuntimeError("queues: expected no episode to be added to the queue of a vector without one")


class _Lane:
    """The episodes of one vector of environments in :func:`run_episodes`, a row for each that is being played."""

    def __init__(
        self,
        envs: VectorEnv,
        queue: deque[Episode],
        player: Player,
        first: int,
        max_steps: int,
        max_steps_without_reward: int,
    ) -> None:
        self._envs, self._queue, self._player = envs, queue, player
        self._max_steps, self._max_steps_without_reward = max_steps, max_steps_without_reward
        self.size = min(envs.num_envs, len(queue))
        envs.prefetch([episode.seed for episode in queue])
        self._rows = np.arange(self.size)  # environments that play
        self._env_ids = self._rows + first
        self._episodes, self._lengths, self._without_reward = np.zeros((3, self.size), np.int64)
        self._frames = np.empty((self.size, 64, 64, 3), np.uint8)

    @property
    def is_playing(self) -> bool:
        """Whether a step has been started."""
        return len(self._rows) > 0

    def start(self) -> None:
        """Reset the environments to the first episodes."""
        if self.is_playing:
            self._reset(self._rows)

    def replace(self, over: Bools) -> None:
        """Start the next episodes where others are over, and remove the rows for which there is none."""
        free = np.flatnonzero(over)
        fresh, idle = free[: len(self._queue)], free[len(self._queue) :]
        if len(fresh):
            self._reset(fresh)
        if len(idle):
            kept = np.delete(np.arange(len(over)), idle)
            self._rows, self._env_ids, self._episodes = self._rows[kept], self._env_ids[kept], self._episodes[kept]
            self._lengths, self._without_reward = self._lengths[kept], self._without_reward[kept]
            self._frames = self._frames[kept]

    def _reset(self, fresh: npt.NDArray[np.int64]) -> None:
        episodes = [self._queue.popleft() for _ in fresh]
        self._episodes, self._lengths = self._episodes.copy(), self._lengths.copy()  # the arrays were yielded
        self._episodes[fresh] = [episode.number for episode in episodes]
        self._lengths[fresh] = self._without_reward[fresh] = 0
        with phase("engine"):
            self._frames[fresh] = self._envs.reset(self._rows[fresh], [episode.seed for episode in episodes])

    def act(self, while_stepping: Callable[[], None]) -> None:
        """Act in every environment that has an episode, and start the step."""
        if not self.is_playing:
            return
        restart = self._lengths == 0
        self._actions = self._player.act(self._frames, restart, self._episodes, env_ids=self._env_ids)
        with phase("engine"):
            self._envs.send(self._rows, self._actions)
        while_stepping()

    def observe(self) -> Transitions:
        """Wait for the step."""
        seen = self._frames
        with phase("engine"):
            self._frames, rewards, terminated, truncated = self._envs.recv()
        self._lengths = lengths = self._lengths + 1
        over = ended = terminated | truncated
        starved = np.zeros(len(lengths), np.bool_)
        if self._max_steps_without_reward:
            self._without_reward = np.where(rewards > 0, 0, self._without_reward + 1)
            starved = ~ended & (self._without_reward >= self._max_steps_without_reward)
            over = ended | starved
        cut = ~over & (lengths >= self._max_steps)
        return Transitions(
            self._env_ids,
            self._episodes,
            seen,
            self._actions,
            rewards,
            lengths,
            terminated,
            truncated,
            starved,
            cut,
            over | cut,
        )
