"""Playing the real environment: one episode at a time for policies that look at nothing, many at once for an agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.config import EnvironmentConfig
from worldmodels.envs import register
from worldmodels.envs.policies import Policy

Frame = npt.NDArray[np.uint8]


class Player(Protocol):
    """Whoever turns a batch of frames into a batch of actions, with one memory per slot of the batch."""

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """Forgets everything; ``batch`` episodes begin."""

    def act(
        self, frames: Frame, restart: npt.NDArray[np.bool_] | None = None, episodes: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """(B, 64, 64, 3) uint8 frames to (B, A) actions; ``restart`` marks the slots where an episode begins."""


def make(environment: EnvironmentConfig, **options: Any) -> gymnasium.Env[Frame, npt.NDArray[np.float32]]:
    """Makes the real environment of an experiment, without Gymnasium's wrappers."""
    register()
    chosen = {"variant": environment.variant, "resolution": environment.resolution}
    options = {**{name: value for name, value in chosen.items() if value}, **options}
    return gymnasium.make(environment.id, disable_env_checker=True, **options).unwrapped


def episode_seed(seed: int, purpose: str, episode: int, attempt: int = 0) -> int:
    """The seed of one real episode, 31 bits, different for every purpose."""
    words = np.random.SeedSequence([seed, *purpose.encode(), episode, attempt]).generate_state(1)
    return int(words[0]) >> 1


def play_policy(
    environment: EnvironmentConfig, policy: Policy, episodes: int, *, seed: int, purpose: str, slots: int
) -> list[float]:
    """Plays episodes with a policy that looks at nothing.

    Args:
        environment: the real environment.
        policy: makes every episode's actions.
        episodes: how many.
        seed: of the experiment.
        purpose: keeps these episodes apart from others of the same seed.
        slots: environments that are played side by side.

    Returns:
        Return of every episode.
    """
    returns = [0.0] * episodes

    def work(slot: int) -> None:
        env = make(environment)
        try:
            for episode in range(slot, episodes, slots):
                number = episode_seed(seed, purpose, episode)
                actions = policy(np.random.default_rng(number))
                env.reset(seed=number)
                over = False
                while not over:
                    _, reward, terminated, truncated, _ = env.step(next(actions))
                    returns[episode] += float(reward)
                    over = terminated or truncated
        finally:
            env.close()

    slots = min(slots, episodes)
    with ThreadPoolExecutor(slots) as pool:  # the game is a process of its own: threads are enough to drive it
        for job in [pool.submit(work, slot) for slot in range(slots)]:
            job.result()
    return returns


def play_agent(
    environment: EnvironmentConfig,
    player: Player,
    episodes: Sequence[int],
    *,
    seed: int,
    purpose: str,
    slots: int,
    finished: Callable[[int, float], None],
) -> None:
    """Plays episodes with an agent, ``slots`` at a time in one batch; a slot that is done takes the next episode.

    The batch keeps its size to the end (idle slots show a black frame), and every episode has random numbers of its
    own, so that a score does not depend on what was played beside it.

    Args:
        environment: the real environment.
        player: the agent.
        episodes: numbers of the episodes to play; each has its own seed.
        seed: of the experiment.
        purpose: keeps these episodes apart from others of the same seed.
        slots: environments in the batch.
        finished: called with an episode's number and its score.
    """
    waiting = list(reversed(episodes))
    envs = [make(environment) for _ in range(slots)]
    current = np.full(slots, -1, np.int64)
    scores = np.zeros(slots)
    frames = np.zeros((slots, 64, 64, 3), np.uint8)
    restart = np.zeros(slots, np.bool_)
    player.reset(slots, seed=seed)

    def begin(slot: int) -> None:
        current[slot] = waiting.pop() if waiting else -1
        scores[slot], restart[slot], frames[slot] = 0, True, 0
        if current[slot] >= 0:
            frames[slot] = envs[slot].reset(seed=episode_seed(seed, purpose, int(current[slot])))[0]

    def step(slot: int) -> bool:
        frame, reward, terminated, truncated, _ = envs[slot].step(actions[slot])
        frames[slot] = frame
        scores[slot] += float(reward)
        return terminated or truncated

    try:
        for slot in range(slots):
            begin(slot)
        with ThreadPoolExecutor(min(slots, 4)) as pool:
            while (current >= 0).any():
                actions = player.act(frames, restart, np.maximum(current, 0))
                restart[:] = False
                busy = [int(slot) for slot in np.flatnonzero(current >= 0)]
                for slot, over in zip(busy, list(pool.map(step, busy)), strict=True):
                    if over:
                        finished(int(current[slot]), float(scores[slot]))
                        begin(slot)
    finally:
        for env in envs:
            env.close()
