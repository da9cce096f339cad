"""Players of collection: open-loop policies, agents, and agents with random weights."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.data.episodes import Episode, shard_path
from worldmodels.envs import ContractError
from worldmodels.envs.base import VectorEnv
from worldmodels.envs.policies import RANDOM_AGENT, Action, parse_policies
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.controller import Controller, one_hot
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import CollectConfig, Config
from worldmodels.rollout import runner
from worldmodels.rollout.players import episode_seed
from worldmodels.support.profile import phase
from worldmodels.support.validation import one_line

if TYPE_CHECKING:
    from worldmodels.models.agent import Agent

_MAX_ATTEMPTS = 1000
_PERTURBATION = 0.5  # largest noise on a perturbed agent's parameters, in standard deviations of theirs


@dataclass(frozen=True)
class Job:
    """Settings of a worker, sent to it once."""

    config: Config
    folder: Path
    first: int  # number of the first shard that is played

    @property
    def collect(self) -> CollectConfig:
        """The stage's settings."""
        return self.config.collect

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.seed

    @cached_property
    def task(self) -> tasks.Task:
        """Task of the run."""
        return tasks.of(self.config)

    @cached_property
    def policy_weights(self) -> list[tuple[str, float]]:
        """Names of the collecting policies, with their sampling weights."""
        return parse_policies(self.collect.policies, self.task.policies)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the environment that are not settings of it."""
        return {"ignore_done": True} if self.collect.ignore_done else {}

    @property
    def environment(self) -> EnvSpec:
        """Specification of the environment; EnvPool cannot continue past termination."""
        environment = self.config.environment
        if self.collect.ignore_done and not environment.backend:
            return replace(environment, backend="gymnasium")
        return environment

    def controller(self, action_size: int) -> Controller:
        """Return the architecture of C for actions of a length."""
        c = self.config.evolve
        return Controller(
            self.config.train_vae.latent_size,
            self.config.train_rnn.hidden_size,
            action_size,
            features=c.features,
            bias=c.bias,
            hidden_units=c.hidden_units,
            squash=self.task.squash,
            choices=self.task.choices,
        )

    def path(self, shard: int) -> Path:
        """Return the file of a shard that is played."""
        return shard_path(self.folder, self.first + shard)

    def episode_seed(self, number: int, attempt: int = 0) -> int:
        """Return the seed of an attempt at an episode."""
        return episode_seed(self.seed, "collect", number, attempt)

    def episodes(self, shard: int) -> range:
        """Return the numbers of the episodes in a shard that is played; included shards have others."""
        size = self.collect.shard_episodes
        first, start = self.first * size, (self.first + shard) * size
        return range(start, min(start + size, first + self.collect.episodes))


def check_policies(job: Job, space: gymnasium.spaces.Box) -> None:
    """Refuse a policy of the task whose actions do not fit, before anything is played.

    Raises:
        ContractError: actions of another length, or that are not finite numbers.
    """
    for name, policy in job.task.policies.items():
        _action(job, name, next(policy(np.random.default_rng(0))), space)


def _action(job: Job, name: str, given: Any, space: gymnasium.spaces.Box) -> Action:
    """An action of an open-loop policy, (A,) float32, clipped to the action space."""
    action = np.asarray(given)
    if action.shape != space.shape or action.dtype.kind not in "fiub" or not np.isfinite(action).all():
        wanted = f"actions of shape {space.shape} and finite numbers, as {job.environment.id} takes them"
        raise ContractError(f"policies[{name!r}]: expected {wanted}, got {one_line(action)}")
    clipped: Action = np.minimum(np.maximum(action.astype(np.float32), space.low), space.high)
    return clipped


@dataclass
class _Attempt:
    """One attempt at an episode.

    Attributes:
        policy: Name of the policy that plays it.
        seed: Seed of the environment and of the policy.
        forced_actions: Actions (A,) float32, NaN where the agent decides.
        frames: Frames so far, (64, 64, 3) uint8.
        actions: Actions so far, (A,) float32.
        rewards: Rewards so far.
    """

    policy: str
    seed: int
    forced_actions: Callable[[Frame], Action]
    frames: list[Frame] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    rewards: list[np.float32] = field(default_factory=list)


class CollectingPlayer:
    """:class:`worldmodels.rollout.players.Player` of a job: draws a policy for every episode.

    An episode depends on the job's seed, its number, the attempt and the agent alone.

    Args:
        job: Job.
        space: Action space of the environment.
        agent: Agent of the policies that have one.
    """

    def __init__(self, job: Job, space: gymnasium.spaces.Box, agent: Agent | None) -> None:
        self._job, self._space, self._agent = job, space, agent
        self._failed: dict[int, int] = {}  # attempts that were too short, by episode
        self.attempts: dict[int, _Attempt] = {}  # by episode

    def seed(self, number: int) -> int:
        """Seed of the present attempt at an episode."""
        return self._job.episode_seed(number, self._failed.get(number, 0))

    def retry(self, number: int) -> None:
        """Count an attempt at an episode that was too short.

        Raises:
            RuntimeError: There have been too many.
        """
        self._failed[number] = self._failed.get(number, 0) + 1
        if self._failed[number] >= _MAX_ATTEMPTS:
            least = self._job.collect.min_length
            raise RuntimeError(
                f"collect.min_length: expected a length that episodes reach, got {least}, which none of "
                f"{_MAX_ATTEMPTS} attempts did"
            )

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """See :meth:`worldmodels.rollout.players.Player.reset`; random numbers come from the seeds of the episodes."""
        if self._agent is not None:
            self._agent.reset(batch)

    def act(
        self,
        frames: Frame,
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        env_ids: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """See :meth:`worldmodels.rollout.players.Player.act`; all arguments are required."""
        assert restart is not None and episodes is not None and env_ids is not None
        with phase("policy"):
            for env_id, number in zip(env_ids[restart].tolist(), episodes[restart].tolist(), strict=True):
                self.attempts[number], params = self._begin(number)
                if self._agent is not None:
                    self._agent.set_params(env_id, params)
            attempts = [self.attempts[number] for number in episodes.tolist()]
            forced = np.empty((len(attempts), *self._space.shape), np.float32)
            for row, attempt in enumerate(attempts):
                forced[row] = attempt.forced_actions(frames[row])
        if self._agent is None:
            return forced
        seeds = np.array([attempt.seed for attempt in attempts])
        return self._agent.act(frames, restart, seeds, forced, env_ids)

    def _begin(self, number: int) -> tuple[_Attempt, npt.NDArray[np.float32] | None]:
        """Draw the policy of an attempt; also returns the controller (N,) of the agent, None for its own."""
        job, space, seed = self._job, self._space, self.seed(number)
        names, weights = zip(*job.policy_weights, strict=True)
        rng = np.random.default_rng(seed)
        name = str(rng.choice(names, p=np.array(weights) / sum(weights)))
        if name == RANDOM_AGENT:
            from worldmodels.models.random_agent import RandomAgent

            random_agent = RandomAgent(job.controller(len(space.low)), restart_input=job.config.train_rnn.restart_input)
            random_agent.draw(rng)
            return _Attempt(name, seed, random_agent.act), None
        params = None
        actions: Iterator[Action]
        if name in job.task.policies:
            actions = (_action(job, name, action, space) for action in job.task.policies[name](rng))
        else:
            actions, params = _agent_policy(name, rng, self._agent, space, job.task.choices)
        return _Attempt(name, seed, lambda _: next(actions)), params


def play(envs: VectorEnv, job: Job, numbers: range, agent: Agent | None) -> Iterator[Episode]:
    """Play the episodes of a job; yields them in their order.

    Args:
        envs: Real environments.
        job: Job.
        numbers: Numbers of the episodes.
        agent: Agent of the policies that have one.
    """
    player = CollectingPlayer(job, envs.action_space, agent)
    player.reset(envs.num_envs)
    queue = deque(runner.Episode(number, player.seed(number)) for number in numbers)
    done: dict[int, Episode] = {}
    following = numbers.start
    for step in runner.run_episodes(
        [envs],
        [queue],
        player,
        max_steps=job.task.max_steps,
        max_steps_without_reward=job.collect.max_steps_without_reward,
    ):
        alone = len(step.episodes) == 1
        for row, number in enumerate(step.episodes.tolist()):
            attempt = player.attempts[number]
            frame = step.frames[row]
            attempt.frames.append(frame if alone else frame.copy())  # a view would keep the frames of all environments
            attempt.actions.append(step.actions[row])
            attempt.rewards.append(step.rewards[row])
            if not step.over[row]:
                continue
            if len(attempt.frames) < job.collect.min_length:
                player.retry(number)
                queue.appendleft(runner.Episode(number, player.seed(number)))
                continue
            del player.attempts[number]
            frames, actions = np.stack(attempt.frames), np.stack(attempt.actions)
            rewards, terminated = np.array(attempt.rewards, np.float32), bool(step.terminated[row])
            done[number] = Episode(
                frames, actions, rewards, terminated, attempt.policy, attempt.seed, bool(step.cut[row])
            )
        while following in done:
            yield done.pop(following)
            following += 1


def _agent_policy(
    name: str,
    rng: np.random.Generator,
    agent: Agent | None,
    space: gymnasium.spaces.Box,
    choices: tuple[int, ...],
) -> tuple[Iterator[Action], npt.NDArray[np.float32] | None]:
    """The actions of one episode, NaN where the agent decides, and the agent's controller if it is not its own."""
    assert agent is not None
    size, params = agent.controller.action_size, None
    if name == "agent with parameter noise":
        noise = rng.standard_normal(len(agent.params)) * agent.params.std() * rng.uniform(0, _PERTURBATION)
        params = agent.params + noise.astype(np.float32)
    if name == "agent with action bursts":
        return interruptions(rng, space.low, space.high, choices), None
    return itertools.repeat(np.full(size, np.nan, np.float32)), params


def interruptions(
    rng: np.random.Generator, low: npt.NDArray[Any], high: npt.NDArray[Any], choices: tuple[int, ...] = ()
) -> Iterator[Action]:
    """Yield NaN (A,) float32 for 1 to 60 steps, a random action repeated for 1 to 20 steps, and again.

    Args:
        rng: Generator of the durations and of the actions.
        low: (A,) bounds of the actions, which are uniform.
        high: (A,) bounds of the actions.
        choices: Number of values of each discrete action, all of them equally likely; empty for continuous ones.
    """
    while True:
        for _ in range(rng.integers(1, 61)):
            yield np.full(len(low), np.nan, np.float32)
        push = rng.uniform(low, high).astype(np.float32)
        push = one_hot(push, choices) if choices else push
        for _ in range(rng.integers(1, 21)):
            yield push
