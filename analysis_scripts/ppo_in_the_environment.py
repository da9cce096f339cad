"""What does PPO score with as many real frames as a run's agent?

    python analysis_scripts/ppo_in_the_environment.py runs/boxing --seed 0 --out ppo.json

Trains PPO of Stable-Baselines3, with the settings of its zoo for Atari, in the environment of a run folder: the same
frames, action repeat and length of an episode. The number of steps is that of the frames the run collected, all rounds
included. Then it plays episodes that the training has not seen.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import stable_baselines3
import torch
from results import write_results
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecMonitor

from worldmodels.analysis.stats import describe, format_interval
from worldmodels.envs.making import make
from worldmodels.pipeline import tasks
from worldmodels.pipeline.run import Run
from worldmodels.rollout.players import episode_seed

ENVS, STEPS, FRAMES = 8, 128, 4


class Game(gymnasium.Env):
    """The environment of a run with its own action space, frames first in channels, truncated at the task's length."""

    def __init__(self, folder):
        config = Run.stored_config(folder)
        self._task = tasks.of(config)
        self._env = make(config.environment, rules=self._task.rules)
        self.observation_space = gymnasium.spaces.Box(0, 255, (3, 64, 64), np.uint8)
        choices = self._task.choices
        self.action_space = self._env.action_space if not choices else gymnasium.spaces.MultiDiscrete(choices)
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        self._steps = 0
        frame, info = self._env.reset(seed=seed)
        return frame.transpose(2, 0, 1), info

    def step(self, action):
        choices = self._task.choices
        given = np.concatenate([np.eye(n, dtype=np.float32)[a] for n, a in zip(choices, action, strict=True)])
        frame, reward, terminated, truncated, info = self._env.step(given if choices else action)
        self._steps += 1
        truncated = truncated or self._steps >= self._task.max_steps
        return frame.transpose(2, 0, 1), reward, terminated, truncated, info

    def close(self):
        self._env.close()


def collected(folder):
    """Number of frames that a run collected."""
    total = 0
    for path in folder.rglob("episodes/*.h5"):
        with h5py.File(path) as shard:
            total += int(shard["lengths"][:].sum())
    return total


def vector(folder, count):
    """A vector of games, each with the last frames stacked."""
    games = SubprocVecEnv([lambda: Game(folder) for _ in range(count)], start_method="spawn")
    return VecFrameStack(VecMonitor(games), FRAMES, channels_order="first")


def play(model, folder, seeds):
    """Scores of episodes, with sampled actions as in training."""
    games, scores = vector(folder, 1), []
    for number in seeds:
        games.seed(number)
        observation, total, done = games.reset(), 0.0, [False]
        while not done[0]:
            observation, reward, done, _ = games.step(model.predict(observation)[0])
            total += float(reward[0])
        scores.append(total)
    games.close()
    return np.array(scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=0, help="steps of the training; 0 for those of the run")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    frames = options.frames or collected(options.folder)
    torch.manual_seed(options.seed)
    games = vector(options.folder, ENVS)
    model = PPO(
        "CnnPolicy",
        games,
        n_steps=STEPS,
        n_epochs=4,
        batch_size=256,
        learning_rate=lambda left: 2.5e-4 * left,
        clip_range=lambda left: 0.1 * left,
        vf_coef=0.5,
        ent_coef=0.01,
        seed=options.seed,
        device="cpu",
    )
    began = time.perf_counter()
    model.learn(frames, progress_bar=False, log_interval=20)
    seconds = time.perf_counter() - began
    games.close()
    seeds = [episode_seed(options.seed, "ppo", episode) for episode in range(options.episodes)]
    scores = describe(play(model, options.folder, seeds))
    print(
        f"PPO, {frames:,} frames, {seconds:,.0f} s: {scores.mean:.1f} +- {scores.std:.1f} ({format_interval(scores)})"
    )
    environment = Run.stored_config(options.folder).environment
    about = {"id": environment.id, "source": environment.source, "action_repeat": environment.action_repeat}
    note = f"PPO of Stable-Baselines3 {stable_baselines3.__version__}, trained on {frames:,} frames"
    write_results(options.out, scores, options.seed, seeds, time.perf_counter() - began, note, about)


if __name__ == "__main__":
    main()
