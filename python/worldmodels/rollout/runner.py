"""Playing the real environment: many episodes side by side, with policies that look at nothing or with an agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from worldmodels.envs import envpool as pool
from worldmodels.envs.base import Batch
from worldmodels.envs.policies import Action, Policy
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvironmentConfig
from worldmodels.envs.vector import backend, make, make_batch


class Player(Protocol):
    """Whoever turns a batch of frames into a batch of actions, with one memory per slot of the batch."""

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """Forgets everything; ``batch`` episodes begin."""

    def act(
        self,
        frames: Frame,
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        slots: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """(B, 64, 64, 3) uint8 frames to (B, A) actions, in the slots that act; ``restart``: an episode begins."""


def describe_environment(environment: EnvironmentConfig) -> str:
    """The environment in a few words: its id and what was chosen."""
    chosen = [environment.variant, environment.resolution]
    if environment.id in pool.TASKS:
        chosen.append("EnvPool" if backend(environment) == "envpool" else "Gymnasium")
    text = ", ".join(part for part in chosen if part)
    return f"{environment.id} ({text})" if text else environment.id


def episode_seed(seed: int, purpose: str, episode: int, attempt: int = 0) -> int:
    """The seed of one real episode, 31 bits, different for every purpose."""
    words = np.random.SeedSequence([seed, *purpose.encode(), episode, attempt]).generate_state(1)
    return int(words[0]) >> 1


class Blind:
    """A :class:`Player` that looks at nothing: a policy makes the actions of every episode.

    Args:
        policy: of random numbers that are the episode's own.
        purpose: of the episodes, as :meth:`Environments.play` is told.
    """

    def __init__(self, policy: Policy, purpose: str) -> None:
        self._policy = policy
        self._purpose = purpose
        self._actions: dict[int, Iterator[Action]] = {}  # of every slot

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """As :class:`Player` says; ``seed`` is the one that :meth:`Environments.play` is told."""
        self._seed = seed
        self._actions.clear()

    def act(
        self,
        frames: Frame,
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        slots: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """As :class:`Player` says; everything but the frames is needed."""
        assert restart is not None and episodes is not None and slots is not None
        for slot, episode in zip(slots[restart].tolist(), episodes[restart].tolist(), strict=True):
            rng = np.random.default_rng(episode_seed(self._seed, self._purpose, episode))
            self._actions[slot] = self._policy(rng)
        return np.stack([next(self._actions[slot]) for slot in slots.tolist()])


class Environments:
    """Real environments side by side, in which one player plays after the other.

    They are opened for the first episode and kept until :meth:`close`, or the end of a ``with`` block: a game's engine
    takes longer to start than a short episode to play.

    Args:
        environment: the real environment.
        slots: how many are played at once, at most.
        max_steps: after which an episode is over; None for the environment's own end.
        rules: Rules of the task: its longest episode and its actions; None for those of the environment.
    """

    def __init__(
        self,
        environment: EnvironmentConfig,
        slots: int,
        max_steps: int | None = None,
        *,
        rules: Rules | None = None,
    ) -> None:
        self.environment = environment
        self.slots = slots
        self.max_steps = max_steps
        self._limit = rules.limit(max_steps) if rules else max_steps
        self._options: dict[str, Any] = {"rules": rules} if rules else {}
        self._batch: Batch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the environments; the next episode opens new ones."""
        if self._batch is not None:
            self._batch.close()
            self._batch = None

    def play(
        self,
        player: Player,
        episodes: Sequence[int],
        *,
        seed: int,
        purpose: str,
        finished: Callable[[int, float], None],
    ) -> None:
        """Plays episodes, as many at a time as there are slots; a slot that is done takes the next episode.

        Every episode has random numbers of its own, so that a score does not depend on what was played beside it, nor
        before.

        Args:
            player: plays them.
            episodes: numbers of the episodes; each has its own seed.
            seed: of the experiment.
            purpose: keeps these episodes apart from others of the same seed.
            finished: called with an episode's number and its score.
        """
        if not episodes:
            return
        if self._batch is None:
            self._batch = make_batch(self.environment, self.slots, **self._options)
        batch, count = self._batch, min(self.slots, len(episodes))
        seeds = {episode: episode_seed(seed, purpose, episode) for episode in episodes}
        batch.expect(seeds.values())
        waiting = list(reversed(episodes))
        current = np.full(count, -1, np.int64)
        scores = np.zeros(count)
        ages = np.zeros(count, np.int64)
        frames = np.zeros((count, 64, 64, 3), np.uint8)
        restart = np.zeros(count, np.bool_)
        player.reset(count, seed=seed)

        def begin(slots: npt.NDArray[np.int64]) -> None:
            scores[slots], ages[slots], restart[slots] = 0, 0, True
            for slot in slots:
                current[slot] = waiting.pop() if waiting else -1
            fresh = slots[current[slots] >= 0]
            if len(fresh):
                frames[fresh] = batch.reset(fresh, [seeds[int(episode)] for episode in current[fresh]])

        begin(np.arange(count))
        while (current >= 0).any():
            busy = np.flatnonzero(current >= 0)
            actions = player.act(frames[busy], restart[busy], current[busy], slots=busy)
            restart[:] = False
            frames[busy], rewards, terminated, truncated = batch.step(busy, actions)
            scores[busy] += rewards
            ages[busy] += 1
            ended = busy[terminated | truncated | (ages[busy] == self._limit)]
            for slot in ended:
                finished(int(current[slot]), float(scores[slot]))
            begin(ended)


def play_policy(
    environment: EnvironmentConfig,
    policy: Policy,
    episodes: int,
    *,
    seed: int,
    purpose: str,
    slots: int,
    rules: Rules | None = None,
) -> list[float]:
    """Plays episodes with a policy that looks at nothing.

    Args:
        environment: the real environment.
        policy: makes every episode's actions.
        episodes: how many.
        seed: of the experiment.
        purpose: keeps these episodes apart from others of the same seed.
        slots: environments that are played side by side.
        rules: Rules of the task.

    Returns:
        Return of every episode.
    """
    returns: dict[int, float] = {}
    with Environments(environment, min(slots, episodes), rules=rules) as environments:
        environments.play(
            Blind(policy, purpose), range(episodes), seed=seed, purpose=purpose, finished=returns.__setitem__
        )
    return [returns[episode] for episode in range(episodes)]


def record(
    environment: EnvironmentConfig, player: Player, *, seed: int, episode_seed: int, rules: Rules | None = None
) -> dict[str, Any]:
    """Plays one episode alone, in Gymnasium's environment whoever steps the others.

    Args:
        environment: the real environment.
        player: the agent.
        seed: of the experiment.
        episode_seed: of the environment.
        rules: Rules of the task.

    Returns:
        ``rewards``: of every step; and from an environment that says where the player is (``"track"`` in the info of
        ``reset``, ``"position"`` in that of every step) also ``track`` and ``positions``, lists of [x, y].
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
            seen = np.array(frame[None])  # a copy: a frame may be read-only
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
