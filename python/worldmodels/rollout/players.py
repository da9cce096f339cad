"""Players of episodes in real environments: the protocol, open-loop policies, and several players at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from worldmodels.envs.policies import Action, Policy
from worldmodels.envs.preprocessing import Frame
from worldmodels.support.profile import phase


class Player(Protocol):
    """Policy that maps a batch of frames to a batch of actions, with one state per environment."""

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """Reset all states; ``batch`` episodes start."""

    def act(
        self,
        frames: Frame,
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        env_ids: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Compute actions.

        Args:
            frames: (B, 64, 64, 3) uint8 frames.
            restart: (B,) bool flags of the first frame of an episode.
            episodes: (B,) indices of the episodes.
            env_ids: (B,) indices of the environments that act; None for all.

        Returns:
            (B, A) float32 actions.
        """


def episode_seed(seed: int, purpose: str, episode: int, attempt: int = 0) -> int:
    """Derive the seed of one real episode, 31 bits, distinct for every purpose."""
    words = np.random.SeedSequence([seed, *purpose.encode(), episode, attempt]).generate_state(1)
    return int(words[0]) >> 1


class OpenLoopPlayer:
    """:class:`Player` of an open-loop policy: actions do not depend on the frames.

    Args:
        policy: Policy; every episode has its own generator.
        purpose: Purpose of the episodes, as in :meth:`worldmodels.rollout.environments.Environments.play`.
    """

    def __init__(self, policy: Policy, purpose: str) -> None:
        self._policy = policy
        self._purpose = purpose
        self._actions: dict[int, Iterator[Action]] = {}  # by environment

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """See :meth:`Player.reset`; ``seed`` is that of ``Environments.play``."""
        self._seed = seed
        self._actions.clear()

    def act(
        self,
        frames: Frame,
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        env_ids: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """See :meth:`Player.act`; all arguments but the frames are required."""
        assert restart is not None and episodes is not None and env_ids is not None
        with phase("policy"):
            for env_id, episode in zip(env_ids[restart].tolist(), episodes[restart].tolist(), strict=True):
                rng = np.random.default_rng(episode_seed(self._seed, self._purpose, episode))
                self._actions[env_id] = self._policy(rng)
            return np.stack([next(self._actions[env_id]) for env_id in env_ids.tolist()])


class Players:
    """:class:`Player` of the jobs of several players.

    Args:
        players: Players.
        owners: (J,) index of the player of every job.
        episodes: (J,) index of the episode of every job.
    """

    def __init__(
        self, players: Sequence[Player], owners: npt.NDArray[np.int64], episodes: npt.NDArray[np.int64]
    ) -> None:
        self._players, self._owners, self._episodes = players, owners, episodes

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """See :meth:`Player.reset`."""
        for player in self._players:
            player.reset(batch, seed=seed)

    def act(
        self,
        frames: Frame,
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        env_ids: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """See :meth:`Player.act`; ``episodes`` are jobs, and all arguments are required."""
        assert restart is not None and episodes is not None and env_ids is not None
        owners, numbers = self._owners[episodes], self._episodes[episodes]
        order: list[npt.NDArray[np.int64]] = []
        actions: list[npt.NDArray[np.float32]] = []
        for owner in np.unique(owners).tolist():
            rows = np.flatnonzero(owners == owner)
            order.append(rows)
            actions.append(self._players[owner].act(frames[rows], restart[rows], numbers[rows], env_ids=env_ids[rows]))
        return np.concatenate(actions)[np.argsort(np.concatenate(order))]
