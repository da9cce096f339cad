"""Whoever plays while episodes are collected: policies that look at nothing, agents, agents that are noise."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.data.episodes import Episode, shard_path
from worldmodels.envs import ContractError
from worldmodels.envs.any_gymnasium import one_line
from worldmodels.envs.base import Batch
from worldmodels.envs.policies import RANDOM_AGENT, Action, parse_policies
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.controller import Controller
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import CollectConfig, Config
from worldmodels.rollout.runner import episode_seed

if TYPE_CHECKING:
    from worldmodels.models.agent import Agent

_MAX_ATTEMPTS = 1000
_PERTURBATION = 0.5  # largest noise on a perturbed agent's parameters, in standard deviations of theirs


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; sent to it once."""

    config: Config
    folder: Path
    first: int  # number of the first shard that is played

    @property
    def collect(self) -> CollectConfig:
        """The stage's settings."""
        return self.config.collect

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.config.seed

    @cached_property
    def task(self) -> tasks.Task:
        """What is played."""
        return tasks.get(self.config.task)

    @cached_property
    def shares(self) -> list[tuple[str, float]]:
        """Who plays, and how often."""
        return parse_policies(self.collect.policies, self.task.policies)

    @property
    def options(self) -> dict[str, Any]:
        """Of the environment, beside those that its settings are."""
        return {"ignore_done": True} if self.collect.ignore_done else {}

    @property
    def environment(self) -> EnvSpec:
        """The settings of now; EnvPool cannot ignore an end."""
        environment = self.config.environment
        if self.collect.ignore_done and not environment.backend:
            return replace(environment, backend="gymnasium")
        return environment

    def controller(self, action_size: int) -> Controller:
        """The shape of C that the settings give for actions of a length."""
        c = self.config.evolve
        return Controller(
            self.config.train_vae.latent_size,
            self.config.train_rnn.hidden_size,
            action_size,
            features=c.features,
            bias=c.bias,
            hidden_units=c.hidden_units,
            squash=self.task.squash,
        )

    def path(self, shard: int) -> Path:
        """The file of a shard that is played."""
        return shard_path(self.folder, self.first + shard)

    def episodes(self, shard: int) -> range:
        """Numbers of the episodes in a shard that is played."""
        start = shard * self.collect.shard_episodes
        return range(start, min(start + self.collect.shard_episodes, self.collect.episodes))


class _Turn(NamedTuple):
    """What a policy knows before its action.

    Attributes:
        frame: (64, 64, 3) uint8.
        overrule: (A,) float32, NaN where the agent decides.
        params: (N,) float32, the agent's controller in this episode; None for its own.
        seed: of the episode.
        first: whether the episode begins.
    """

    frame: Frame
    overrule: Action
    params: npt.NDArray[np.float32] | None
    seed: int
    first: bool


def check_policies(job: Job, space: gymnasium.spaces.Box) -> None:
    """Refuses a policy of the task whose actions do not fit, before anything is played.

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
    return np.clip(action.astype(np.float32), space.low, space.high)


def play(batch: Batch, job: Job, numbers: range, agent: Agent | None) -> Iterator[Episode]:
    """Plays episodes, one in every slot at a time, and yields them in their order."""
    batch.expect([episode_seed(job.seed, "collect", number) for number in numbers])
    waiting = list(reversed(numbers))
    running: dict[int, tuple[int, _Player]] = {}  # slot: episode, player
    turns: dict[int, _Turn] = {}
    done: dict[int, Episode] = {}
    following = numbers.start
    if agent is not None:
        agent.reset(batch.slots)

    def start(slot: int) -> None:
        """The episode that the slot's player asks for."""
        seed = next(running[slot][1])
        assert isinstance(seed, int)
        turn = running[slot][1].send(batch.reset([slot], [seed])[0])
        assert isinstance(turn, _Turn)
        turns[slot] = turn

    def begin(slot: int) -> None:
        running.pop(slot, None)
        turns.pop(slot, None)
        if waiting:
            number = waiting.pop()
            running[slot] = number, _play_one(job, number, batch.action_space, agent)
            start(slot)

    for slot in range(batch.slots):
        begin(slot)
    while running:
        actions = _decide(turns, agent)
        busy = list(running)
        outcomes = batch.step(busy, np.stack([actions[slot] for slot in busy]))
        for slot, *outcome in zip(busy, *outcomes, strict=True):
            number, player = running[slot]
            try:
                turn = player.send((actions[slot], *outcome))
            except StopIteration as end:
                done[number] = end.value
                begin(slot)
            else:
                if isinstance(turn, _Turn):
                    turns[slot] = turn
                else:  # an attempt that was too short
                    start(slot)
        while following in done:
            yield done.pop(following)
            following += 1


def _decide(turns: dict[int, _Turn], agent: Agent | None) -> dict[int, Action]:
    """The action of every slot that has a turn."""
    if agent is None:
        return {slot: turn.overrule for slot, turn in turns.items()}
    for slot, turn in turns.items():
        agent.assign(slot, turn.params)
    frames, overrule, _, seeds, first = zip(*turns.values(), strict=True)
    actions = agent.act(np.stack(frames), np.array(first), np.array(seeds), np.stack(overrule), np.array([*turns]))
    return dict(zip(turns, actions, strict=True))


#: Yields the seed of an episode and is sent its first frame; then yields turns and is sent what came of each (action,
#: frame, reward, terminated, truncated), or None instead of a turn where another attempt is needed.
_Player = Generator[Any, Any, Episode]


def _play_one(job: Job, number: int, space: gymnasium.spaces.Box, agent: Agent | None) -> _Player:
    """Plays episode ``number``: what comes out depends on nothing but the seed, the number and the agent."""
    config, task = job.collect, job.task
    overrule: Iterator[Action]
    names, weights = zip(*job.shares, strict=True)
    for attempt in range(_MAX_ATTEMPTS):
        seed = episode_seed(job.seed, "collect", number, attempt)
        rng = np.random.default_rng(seed)
        name = str(rng.choice(names, p=np.array(weights) / sum(weights)))
        params, chance = None, None
        if name in task.policies:
            policy = task.policies[name](rng)
            overrule = (_action(job, name, action, space) for action in policy)
        elif name == RANDOM_AGENT:
            from worldmodels.models.random_agent import RandomAgent

            rnn = job.config.train_rnn
            chance = RandomAgent(job.controller(len(space.low)), restart_input=rnn.restart_input)
            chance.draw(rng)
            overrule = itertools.repeat(np.zeros(len(space.low), np.float32))
        else:
            overrule, params = _agent_policy(name, rng, agent, space)
        frames: list[Frame] = []
        taken, rewards = [], []
        frame = yield seed
        over, cut, barren = False, False, 0
        while not over:
            wanted = next(overrule) if chance is None else chance.act(frame)
            frames.append(frame)
            action, frame, reward, terminated, truncated = yield _Turn(
                frames[-1], wanted, params, seed, len(frames) == 1
            )
            taken.append(action)
            rewards.append(reward)
            barren = 0 if reward > 0 else barren + 1
            over = terminated or truncated or 0 < config.max_steps_without_reward <= barren
            cut = not over and len(taken) >= task.max_steps
            over = over or cut
        if len(frames) >= config.min_length:
            rewarded = np.array(rewards, np.float32)
            return Episode(np.stack(frames), np.stack(taken), rewarded, bool(terminated), name, seed, cut)
        yield None
    raise RuntimeError(f"collect.min_length: no episode of {config.min_length} frames in {_MAX_ATTEMPTS} attempts")


def _agent_policy(
    name: str, rng: np.random.Generator, agent: Agent | None, space: gymnasium.spaces.Box
) -> tuple[Iterator[Action], npt.NDArray[np.float32] | None]:
    """The actions of one episode, NaN where the agent decides, and the agent's controller if it is not its own."""
    assert agent is not None
    size, params = agent.controller.action_size, None
    if name == "agent with parameter noise":
        noise = rng.standard_normal(len(agent.params)) * agent.params.std() * rng.uniform(0, _PERTURBATION)
        params = agent.params + noise.astype(np.float32)
    if name == "agent with action bursts":
        return interruptions(rng, space.low, space.high), None
    return itertools.repeat(np.full(size, np.nan, np.float32)), params


def interruptions(rng: np.random.Generator, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> Iterator[Action]:
    """Endless (A,) float32: NaN for 1 to 60 steps, an action uniform in its space held for 1 to 20 steps, and again."""
    while True:
        for _ in range(rng.integers(1, 61)):
            yield np.full(len(low), np.nan, np.float32)
        push = rng.uniform(low, high).astype(np.float32)
        for _ in range(rng.integers(1, 21)):
            yield push
