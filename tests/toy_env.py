"""A toy environment, `toy_env:Toy-v0`: the seed says how long an episode is, the frame shows the step."""

from __future__ import annotations

import os
import resource
import signal

import gymnasium
import numpy as np

from worldmodels.envs import GameLostError


class ToyEnv(gymnasium.Env):
    """Pays the action times the step; lasts 2 + seed % 5 steps, and those of odd seeds are truncated."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, bonus=0.0):
        self.bonus = bonus
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def _frame(self):
        return np.random.default_rng([self.seed, self.steps]).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps = seed, 0
        return self._frame(), {}

    def step(self, action):
        if action[1] == 7:
            raise ValueError("seven")
        if action[1] == 8:
            os._exit(3)
        if action[1] == 9:  # as Linux does with a process for which there is no memory
            os.kill(os.getpid(), signal.SIGKILL)
        if action[1] == 10:
            resource.setrlimit(resource.RLIMIT_AS, (2**20, resource.RLIM_INFINITY))
            np.ones(2**30)
        if action[1] == 11:
            raise GameLostError("the game is gone")
        self.steps += 1
        over = self.steps >= 2 + self.seed % 5
        odd = self.seed % 2 == 1
        return self._frame(), float(action[0]) * self.steps + self.bonus, over and not odd, over and odd, {}


gymnasium.register("Toy-v0", entry_point=ToyEnv)
