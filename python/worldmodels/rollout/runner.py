"""Rollouts in the real environment: concurrent episodes of an agent or of an open-loop policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from worldmodels.envs import envpool as pool
from worldmodels.envs.base import VectorEnv
from worldmodels.envs.policies import Action, Policy
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.vector import backend, make, make_vector_env


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


def describe_environment(environment: EnvSpec) -> str:
    """Describe an environment by its id, variant, resolution and back end."""
    chosen = [environment.variant, environment.resolution]
    if environment.id in pool.TASKS:
        chosen.append("EnvPool" if backend(environment) == "envpool" else "Gymnasium")
    text = ", ".join(part for part in chosen if part)
    return f"{environment.id} ({text})" if text else environment.id


def episode_seed(seed: int, purpose: str, episode: int, attempt: int = 0) -> int:
    """Derive the seed of one real episode, 31 bits, distinct for every purpose."""
    words = np.random.SeedSequence([seed, *purpose.encode(), episode, attempt]).generate_state(1)
    return int(words[0]) >> 1


class OpenLoopPlayer:
    """:class:`Player` of an open-loop policy: actions do not depend on the frames.

    Args:
        policy: Policy; every episode has its own generator.
        purpose: Purpose of the episodes, as in :meth:`Environments.play`.
    """

    def __init__(self, policy: Policy, purpose: str) -> None:
        self._policy = policy
        self._purpose = purpose
        self._actions: dict[int, Iterator[Action]] = {}  # by environment

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """See :meth:`Player.reset`; ``seed`` is that of :meth:`Environments.play`."""
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
        for env_id, episode in zip(env_ids[restart].tolist(), episodes[restart].tolist(), strict=True):
            rng = np.random.default_rng(episode_seed(self._seed, self._purpose, episode))
            self._actions[env_id] = self._policy(rng)
        return np.stack([next(self._actions[env_id]) for env_id in env_ids.tolist()])


class Environments:
    """Concurrent real environments, reused by all players.

    They open at the first episode and close in :meth:`close` or at the end of a ``with`` block, because the engine of a
    game starts more slowly than a short episode plays.

    Args:
        environment: Specification of the real environment.
        num_envs: Maximum number of concurrent episodes.
        max_steps: Maximum length of an episode; None for the environment's own limit.
        rules: Rules of the task: maximum length and actions; None for those of the environment.
    """

    def __init__(
        self,
        environment: EnvSpec,
        num_envs: int,
        max_steps: int | None = None,
        *,
        rules: Rules | None = None,
    ) -> None:
        self.environment = environment
        self.num_envs = num_envs
        self.max_steps = max_steps
        self._limit = rules.limit(max_steps) if rules else max_steps
        self._options: dict[str, Any] = {"rules": rules} if rules else {}
        self._envs: VectorEnv | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the environments; the next episode opens new ones."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    def play(
        self,
        player: Player,
        episodes: Sequence[int],
        *,
        seed: int,
        purpose: str,
        finished: Callable[[int, float], None],
    ) -> None:
        """Play episodes concurrently. An environment whose episode is over starts the next one.

        Every episode has its own random numbers, so that returns do not depend on concurrent or earlier episodes.

        Args:
            player: Player of the episodes.
            episodes: Indices of the episodes; each index has its own seed.
            seed: Seed of the run.
            purpose: Name that separates the episodes from others of the same seed.
            finished: Callback with the index and the return of a finished episode.
        """
        if not episodes:
            return
        if self._envs is None:
            self._envs = make_vector_env(self.environment, self.num_envs, **self._options)
        envs, count = self._envs, min(self.num_envs, len(episodes))
        seeds = {episode: episode_seed(seed, purpose, episode) for episode in episodes}
        envs.prefetch(seeds.values())
        waiting = list(reversed(episodes))
        current = np.full(count, -1, np.int64)
        scores = np.zeros(count)
        ages = np.zeros(count, np.int64)
        frames = np.zeros((count, 64, 64, 3), np.uint8)
        restart = np.zeros(count, np.bool_)
        player.reset(count, seed=seed)

        def begin(env_ids: npt.NDArray[np.int64]) -> None:
            scores[env_ids], ages[env_ids], restart[env_ids] = 0, 0, True
            for env_id in env_ids:
                current[env_id] = waiting.pop() if waiting else -1
            fresh = env_ids[current[env_ids] >= 0]
            if len(fresh):
                frames[fresh] = envs.reset(fresh, [seeds[int(episode)] for episode in current[fresh]])

        begin(np.arange(count))
        while (current >= 0).any():
            busy = np.flatnonzero(current >= 0)
            actions = player.act(frames[busy], restart[busy], current[busy], env_ids=busy)
            restart[:] = False
            frames[busy], rewards, terminated, truncated = envs.step(busy, actions)
            scores[busy] += rewards
            ages[busy] += 1
            ended = busy[terminated | truncated | (ages[busy] == self._limit)]
            for env_id in ended:
                finished(int(current[env_id]), float(scores[env_id]))
            begin(ended)


def play_policy(
    environment: EnvSpec,
    policy: Policy,
    episodes: int,
    *,
    seed: int,
    purpose: str,
    num_envs: int,
    rules: Rules | None = None,
) -> list[float]:
    """Play episodes with an open-loop policy.

    Args:
        environment: Specification of the real environment.
        policy: Open-loop policy.
        episodes: Number of episodes.
        seed: Seed of the run.
        purpose: Name that separates the episodes from others of the same seed.
        num_envs: Number of concurrent environments.
        rules: Rules of the task.

    Returns:
        Return of every episode.
    """
    returns: dict[int, float] = {}
    with Environments(environment, min(num_envs, episodes), rules=rules) as environments:
        environments.play(
            OpenLoopPlayer(policy, purpose), range(episodes), seed=seed, purpose=purpose, finished=returns.__setitem__
        )
    return [returns[episode] for episode in range(episodes)]


def record(
    environment: EnvSpec, player: Player, *, seed: int, episode_seed: int, rules: Rules | None = None
) -> dict[str, Any]:
    """Record one episode in Gymnasium's environment, whatever the configured back end.

    Args:
        environment: Specification of the real environment.
        player: Player of the episode.
        seed: Seed of the player.
        episode_seed: Seed of the environment.
        rules: Rules of the task.

    Returns:
        ``rewards`` of all steps. If the environment reports positions (``"track"`` in the info of ``reset``,
        ``"position"`` in that of every step), also ``track`` and ``positions``, lists of [x, y].
    """
    env = make(environment, rules=rules)
    try:
        player.reset(1, seed=seed)
        frame, info = env.reset(seed=episode_seed)
        found: dict[str, Any] = {"rewards": []}
        if "track" in info:
            found |= {"track": info["track"].tolist(), "positions": [info["position"].tolist()]}
        restart, over = np.ones(1, np.bool_), False
        while not over:
            seen = np.array(frame[None])  # copied, because a frame may be read-only
            action = player.act(seen, restart, np.zeros(1, np.int64))[0]
            restart = np.zeros(1, np.bool_)
            frame, reward, terminated, truncated, info = env.step(action)
            found["rewards"].append(float(reward))
            if "track" in found:
                found["positions"].append(info["position"].tolist())
            over = terminated or truncated or (rules is not None and len(found["rewards"]) >= rules.max_steps)
    finally:
        env.close()
    return found
