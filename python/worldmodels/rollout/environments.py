"""Pools of real environments: the scores of several players, on this machine or on a cluster, and recordings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from worldmodels.data.records import EpisodeTrace
from worldmodels.envs import GameLostError
from worldmodels.envs import envpool as pool
from worldmodels.envs.base import VectorEnv
from worldmodels.envs.making import backend
from worldmodels.envs.policies import Policy
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.thread_vector import ThreadVectorEnv
from worldmodels.envs.vector import make_vector_env
from worldmodels.rollout.needs import ENVS_PER_THREAD, environment_needs, resolved
from worldmodels.rollout.players import OpenLoopPlayer, Player, Players, episode_seed
from worldmodels.rollout.runner import Episode, run_episodes
from worldmodels.support.cluster import Needs, StaticQueue, WorkerLostError, WorkUnit
from worldmodels.support.validation import check_integer, check_seed

if TYPE_CHECKING:
    from worldmodels.support.ray_cluster import RayCluster

_EPISODES_PER_UNIT = 16  # at most, on a cluster; V encodes the frames of these episodes together


class Assignment(NamedTuple):
    """Episodes of one player.

    Attributes:
        player: Player.
        episodes: Indices of the episodes; each has its own seed.
        finished: Callback with the index and the score of every finished episode.
    """

    player: Player
    episodes: Sequence[int]
    finished: Callable[[int, float], None]


class Environments:
    """Concurrent real environments, reused by all players.

    Environments are created at the first episode and kept until :meth:`close` or the end of a ``with`` block, because
    starting a game's engine takes longer than a short episode. They form two groups: one steps while the players
    compute actions for the other.

    Args:
        environment: Specification of the real environment.
        num_envs: Maximum number of concurrent episodes.
        max_steps: Maximum length of an episode; None for the environment's own limit.
        rules: Rules of the task: maximum length and actions; None for those of the environment.
        num_workers: Number of threads or processes that step a group; None for one per CPU.
        cluster: Cluster whose workers play, each with its own environments; None to play in this process.
        modules: Modules that register the environment, for the workers of a cluster.

    Raises:
        TypeError: A number is not an integer.
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        environment: EnvSpec,
        num_envs: int,
        max_steps: int | None = None,
        *,
        rules: Rules | None = None,
        num_workers: int | None = None,
        cluster: RayCluster | None = None,
        modules: tuple[str, ...] = (),
    ) -> None:
        self._cluster, self._rules, self._modules = cluster, rules, modules
        self.environment = environment
        self.num_envs = check_integer("num_envs", num_envs, 1, 2**31 - 1)
        self.max_steps = None if max_steps is None else check_integer("max_steps", max_steps, 1, 2**63 - 1)
        self._limit = environment.limit(rules.limit(max_steps) if rules else max_steps)
        options = {"rules": rules, "num_workers": num_workers}
        self._options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        self._vector_envs: list[VectorEnv] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the environments; the next episode opens new ones."""
        with ExitStack() as stack:
            for envs in self._vector_envs:
                stack.callback(envs.close)
            self._vector_envs = []

    def play(
        self,
        player: Player,
        episodes: Sequence[int],
        *,
        seed: int,
        purpose: str,
        finished: Callable[[int, float], None],
    ) -> None:
        """Play episodes, as many at a time as there are environments.

        Every episode has its own random numbers: a score depends neither on concurrent nor on earlier episodes.

        Args:
            player: Player.
            episodes: Indices of the episodes; each has its own seed.
            seed: Seed of the run.
            purpose: Purpose of the episodes, which separates them from others of the same seed.
            finished: Callback with the index and the score of every finished episode.

        Raises:
            ValueError: The seed is out of range, or the environment is unknown or rejects an option.
            ContractError: The environment violates the contract of docs/tutorials/own_environment.md.
            GameLostError: A game's process or a worker died; the next call opens new environments.
            RuntimeError: The environment failed in a worker; or, on a cluster, a node is refused or too many workers
                died.
        """
        self.play_all([Assignment(player, episodes, finished)], seed=seed, purpose=purpose)

    def play_all(self, assignments: Sequence[Assignment], *, seed: int, purpose: str) -> None:
        """Play the episodes of several players in one pool, so that no environment waits for another player's last one.

        The scores are those of :meth:`play`. Players with the longest episodes should come first.

        Args:
            assignments: Episodes of every player. Players may share V and M only if each of them sets the controller at
                the start of an episode, as :class:`worldmodels.models.agent.Population` does.
            seed: Seed of the run.
            purpose: Purpose of the episodes, which separates them from others of the same seed.

        Raises:
            ValueError: See :meth:`play`, also for the other errors.
        """
        check_seed(seed)
        pairs = [(owner, episode) for owner, one in enumerate(assignments) for episode in one.episodes]
        if not pairs:
            return
        if self._cluster is not None:
            self._play_on_cluster(self._cluster, assignments, pairs, seed, purpose)
            return
        if not self._vector_envs:
            sizes = self.num_envs - self.num_envs // 2, self.num_envs // 2
            for size in filter(None, sizes):
                self._vector_envs.append(make_vector_env(self.environment, size, **self._options))
        queue = [Episode(index, episode_seed(seed, purpose, episode)) for index, (_, episode) in enumerate(pairs)]
        count = len(self._vector_envs)
        queues = [deque(queue[group::count]) for group in range(count)]
        player = Players([one.player for one in assignments], *np.array(pairs, np.int64).T)
        used = [min(envs.num_envs, len(own)) for envs, own in zip(self._vector_envs, queues, strict=True)]
        player.reset(sum(used), seed=seed)
        scores = [0.0] * len(pairs)
        try:
            for step in run_episodes(self._vector_envs, queues, player, max_steps=self._limit):
                for index, reward, over in zip(step.episodes.tolist(), step.rewards.tolist(), step.over, strict=True):
                    scores[index] += reward
                    if over:
                        owner, episode = pairs[index]
                        assignments[owner].finished(episode, scores[index])
        except GameLostError:
            self.close()
            raise

    def _play_on_cluster(
        self,
        cluster: RayCluster,
        assignments: Sequence[Assignment],
        pairs: Sequence[_Pair],
        seed: int,
        purpose: str,
    ) -> None:
        """Play the episodes on the workers of a cluster, which finish them in another order."""
        environment = resolved(self.environment)
        players = tuple(one.player for one in assignments)
        needs = environment_needs(environment, self._modules)
        job = _PlayJob(needs, players, environment, self.num_envs, self.max_steps, self._rules, seed, purpose)
        size = max(1, min(_EPISODES_PER_UNIT, len(pairs) // (4 * cluster.num_workers)))
        units = [WorkUnit(size, pairs[first : first + size]) for first in range(0, len(pairs), size)]
        for _, scores in cluster.run(cluster.prepare(job), StaticQueue(units)):
            for owner, episode, score in scores:
                assignments[owner].finished(episode, score)


_Pair = tuple[int, int]  # index of the player, index of the episode
_Score = tuple[int, int, float]  # index of the player, index of the episode, score


@dataclass(frozen=True)
class _PlayJob:
    """:class:`worldmodels.support.cluster.Job` of :meth:`Environments.play_all`; a work unit is a list of episodes."""

    needs: Needs
    players: tuple[Player, ...]
    environment: EnvSpec
    num_envs: int
    max_steps: int | None
    rules: Rules | None
    seed: int
    purpose: str

    def open(self, num_threads: int) -> _PlayHandler:
        """See :meth:`worldmodels.support.cluster.Job.open`."""
        num_envs = min(self.num_envs, ENVS_PER_THREAD * num_threads)
        return _PlayHandler(
            self,
            Environments(self.environment, num_envs, self.max_steps, rules=self.rules, num_workers=num_threads),
        )


class _PlayHandler:
    def __init__(self, job: _PlayJob, environments: Environments) -> None:
        self._job, self._environments = job, environments

    def __call__(self, pairs: Sequence[_Pair]) -> list[_Score]:
        job = self._job
        scores: list[_Score] = []
        assignments = []
        for owner in dict.fromkeys(owner for owner, _ in pairs):

            def finished(episode: int, score: float, owner: int = owner) -> None:
                scores.append((owner, episode, score))

            episodes = [episode for one, episode in pairs if one == owner]
            assignments.append(Assignment(job.players[owner], episodes, finished))
        try:
            self._environments.play_all(assignments, seed=job.seed, purpose=job.purpose)
        except GameLostError as error:
            raise WorkerLostError(str(error)) from error
        return scores

    def close(self) -> None:
        self._environments.close()


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

    Raises:
        ValueError: A number is out of range; see :meth:`Environments.play`, also for the other errors.
    """
    check_integer("num_envs", num_envs, 1, 2**31 - 1)
    check_integer("episodes", episodes, 1, 2**31 - 1)
    returns: dict[int, float] = {}
    with Environments(environment, min(num_envs, episodes), rules=rules) as environments:
        environments.play(
            OpenLoopPlayer(policy, purpose), range(episodes), seed=seed, purpose=purpose, finished=returns.__setitem__
        )
    return [returns[episode] for episode in range(episodes)]


def record(
    environment: EnvSpec, player: Player, *, seed: int, episode_seed: int, rules: Rules | None = None
) -> EpisodeTrace:
    """Play one episode in Gymnasium's environment, regardless of the back end, and keep its trace.

    Args:
        environment: Specification of the real environment.
        player: Player.
        seed: Seed of the run.
        episode_seed: Seed of the environment.
        rules: Rules of the task.

    Returns:
        Rewards; and the path for an environment that reports ``"track"``, an array (N, 2), in the info of ``reset`` and
        ``"position"``, an array (2,), in all infos.

    Raises:
        ValueError: The environment is unknown or rejects an option.
        ContractError: The environment violates the contract of docs/tutorials/own_environment.md.
        GameLostError: The game's process died.
    """
    options: dict[str, Any] = {"rules": rules} if rules else {}
    envs = ThreadVectorEnv(replace(environment, backend="gymnasium"), 1, 1, options)
    rewards: list[float] = []
    positions: list[Any] = []
    try:
        player.reset(1, seed=seed)
        limit = environment.limit(rules.max_steps if rules else None)
        for _ in run_episodes([envs], [deque([Episode(0, episode_seed)])], player, max_steps=limit):
            if not rewards:
                track = _points(envs.reset_infos[0], "track", 2)
                positions.append(_points(envs.reset_infos[0], "position", 1))
            _, reward, _, _, info = envs.outcomes[0]
            rewards.append(float(reward))
            positions.append(_points(info, "position", 1))
    finally:
        envs.close()
    is_path = track is not None and None not in positions
    return EpisodeTrace(rewards=rewards, **({"track": track, "positions": positions} if is_path else {}))


def _points(info: dict[str, Any], name: str, ndim: int) -> list[Any] | None:
    """Return an array (..., 2) of an info as lists; None if there is none."""
    value = info.get(name)
    return value.tolist() if isinstance(value, np.ndarray) and value.ndim == ndim and value.shape[-1] == 2 else None


def describe_environment(environment: EnvSpec) -> str:
    """Describe an environment by its id, variant, resolution, back end and action repeat."""
    chosen = [environment.variant, environment.resolution]
    if environment.id in pool.TASKS:
        chosen.append("EnvPool" if (environment.backend or backend(environment)) == "envpool" else "Gymnasium")
    if environment.action_repeat > 1:
        chosen.append(f"action repeat {environment.action_repeat}")
    text = ", ".join(part for part in chosen if part)
    return f"{environment.id} ({text})" if text else environment.id
