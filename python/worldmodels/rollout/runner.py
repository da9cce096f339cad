"""Rollouts in the real environment: concurrent episodes of an agent or of an open-loop policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from worldmodels.data.records import EpisodeTrace
from worldmodels.envs import GameLostError
from worldmodels.envs import envpool as pool
from worldmodels.envs.base import Bools, VectorEnv
from worldmodels.envs.policies import Action, Policy
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.vector import ThreadVectorEnv, backend, make_vector_env
from worldmodels.rollout.needs import ENVS_PER_THREAD, environment_needs, resolved
from worldmodels.support.cluster import Needs, Piece, Queue, WorkerLostError
from worldmodels.support.profile import phase
from worldmodels.support.validation import check_integer, check_seed

if TYPE_CHECKING:
    from worldmodels.support.ray_cluster import RayCluster

_EPISODES_PER_PIECE = 16  # on a cluster: V encodes the frames of the episodes together


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
        starved: (n,) bool, whether too many steps without a positive reward end it.
        cut: (n,) bool, whether the maximum number of steps alone ends it.
        over: (n,) bool, whether the episode ends with this step.
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


def describe_environment(environment: EnvSpec) -> str:
    """Describe an environment by its id, variant, resolution, back end and action repeat."""
    chosen = [environment.variant, environment.resolution]
    if environment.id in pool.TASKS:
        chosen.append("EnvPool" if backend(environment) == "envpool" else "Gymnasium")
    if environment.action_repeat > 1:
        chosen.append(f"action repeat {environment.action_repeat}")
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
        with phase("policy"):
            for env_id, episode in zip(env_ids[restart].tolist(), episodes[restart].tolist(), strict=True):
                rng = np.random.default_rng(episode_seed(self._seed, self._purpose, episode))
                self._actions[env_id] = self._policy(rng)
            return np.stack([next(self._actions[env_id]) for env_id in env_ids.tolist()])


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


class _Players:
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
        jobs = [(owner, episode) for owner, one in enumerate(assignments) for episode in one.episodes]
        if not jobs:
            return
        if self._cluster is not None:
            self._play_on_cluster(self._cluster, assignments, jobs, seed, purpose)
            return
        if not self._vector_envs:
            sizes = self.num_envs - self.num_envs // 2, self.num_envs // 2
            for size in filter(None, sizes):
                self._vector_envs.append(make_vector_env(self.environment, size, **self._options))
        queue = [Episode(job, episode_seed(seed, purpose, episode)) for job, (_, episode) in enumerate(jobs)]
        count = len(self._vector_envs)
        queues = [deque(queue[group::count]) for group in range(count)]
        player = _Players([one.player for one in assignments], *np.array(jobs, np.int64).T)
        used = [min(envs.num_envs, len(own)) for envs, own in zip(self._vector_envs, queues, strict=True)]
        player.reset(sum(used), seed=seed)
        scores = [0.0] * len(jobs)
        try:
            for step in run_episodes(self._vector_envs, queues, player, max_steps=self._limit):
                for job, reward, over in zip(step.episodes.tolist(), step.rewards.tolist(), step.over, strict=True):
                    scores[job] += reward
                    if over:
                        owner, episode = jobs[job]
                        assignments[owner].finished(episode, scores[job])
        except GameLostError:
            self.close()
            raise

    def _play_on_cluster(
        self,
        cluster: RayCluster,
        assignments: Sequence[Assignment],
        jobs: Sequence[tuple[int, int]],
        seed: int,
        purpose: str,
    ) -> None:
        """Play the episodes in the workers of a cluster, which finish them in another order."""
        environment = resolved(self.environment)
        players = tuple(one.player for one in assignments)
        needs = environment_needs(environment, self._modules)
        work = _PlayWork(needs, players, environment, self.num_envs, self.max_steps, self._rules, seed, purpose)
        size = max(1, min(_EPISODES_PER_PIECE, len(jobs) // (4 * cluster.num_workers)))
        pieces = [Piece(size, jobs[first : first + size]) for first in range(0, len(jobs), size)]
        for _, scores in cluster.run(cluster.prepare(work), Queue(pieces)):
            for owner, episode, score in scores:
                assignments[owner].finished(episode, score)


_Score = tuple[int, int, float]  # index of the player, index of the episode, score


@dataclass(frozen=True)
class _PlayWork:
    """:class:`worldmodels.support.cluster.Work` of :meth:`Environments.play_all`; a piece is a list of episodes."""

    needs: Needs
    players: tuple[Player, ...]
    environment: EnvSpec
    num_envs: int
    max_steps: int | None
    rules: Rules | None
    seed: int
    purpose: str

    def open(self, num_threads: int) -> _PlayHandler:
        """See :meth:`worldmodels.support.cluster.Work.open`."""
        num_envs = min(self.num_envs, ENVS_PER_THREAD * num_threads)
        return _PlayHandler(
            self,
            Environments(self.environment, num_envs, self.max_steps, rules=self.rules, num_workers=num_threads),
        )


class _PlayHandler:
    def __init__(self, work: _PlayWork, environments: Environments) -> None:
        self._work, self._environments = work, environments

    def __call__(self, jobs: Sequence[tuple[int, int]]) -> list[_Score]:
        work = self._work
        scores: list[_Score] = []
        assignments = []
        for owner in dict.fromkeys(owner for owner, _ in jobs):

            def finished(episode: int, score: float, owner: int = owner) -> None:
                scores.append((owner, episode, score))

            episodes = [episode for one, episode in jobs if one == owner]
            assignments.append(Assignment(work.players[owner], episodes, finished))
        try:
            self._environments.play_all(assignments, seed=work.seed, purpose=work.purpose)
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
