"""Environments of another package for the tests: `odd_env:Odd/<name>-v0`, each right or wrong in one way."""

from __future__ import annotations

import gymnasium
import numpy as np

from worldmodels.envs.policies import constant, repeated
from worldmodels.envs.spec import EnvSpec
from worldmodels.pipeline.config import CollectConfig, Config, EvolveConfig, TrainRNNConfig
from worldmodels.pipeline.tasks import Task

FRAMES = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)


class Odd(gymnasium.Env):
    """Shows the step; pays what the action is; never ends. Attributes of a subclass or of an instance make it odd."""

    metadata = {"render_modes": []}  # noqa: RUF012
    END = None
    observation_space = FRAMES

    def __init__(self, low=-1.0, high=1.0, size=1, dtype=np.float32, space=None, end=None, at=0, **odd):
        self.action_space = gymnasium.spaces.Box(low, high, (size,), dtype) if space is None else space
        self.at, self.end, self.given = at, end, []
        self.__dict__.update(odd)  # answers that take the place of the right ones, from step `at` on

    def answer(self, name, right):
        return getattr(self, name) if name in self.__dict__ and self.steps >= self.at else right

    def frame(self):
        return self.answer("frame_", np.full((64, 64, 3), self.steps % 256, np.uint8))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.answer("reset_", (self.frame(), {}))

    def step(self, action):
        self.steps += 1
        self.given.append(action)
        over = self.end is not None and self.steps >= self.end
        right = (
            self.frame(),
            self.answer("reward", float(np.sum(action))),
            self.answer("terminated", over),
            self.answer("truncated", False),
            self.answer("info", {}),
        )
        return self.answer("step_", right)


class Black(gymnasium.ObservationWrapper):
    """Blacks out the frame."""

    def observation(self, observation):
        return np.zeros_like(observation)


class Dim(gymnasium.ObservationWrapper, gymnasium.utils.RecordConstructorArgs):
    """Adds to the frame; registered as an additional wrapper."""

    def __init__(self, env, by=0):
        gymnasium.utils.RecordConstructorArgs.__init__(self, by=by)
        gymnasium.ObservationWrapper.__init__(self, env)
        self.by = by

    def observation(self, observation):
        return observation + np.uint8(self.by)


def black(**options):
    return Black(Odd(**options))


class Maker:
    """An entry point that is neither a class nor a function."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __call__(self, **options):
        return Odd(end=4)


#: name -> (entry point, constructor's arguments, arguments of the registration)
KINDS = {
    "Endless": (Odd, {}, {}),
    "Limited": (Odd, {}, {"max_episode_steps": 7}),
    "LimitedAt20": (Odd, {}, {"max_episode_steps": 20}),
    "AtOnce": (Odd, {"truncated": True}, {}),
    "Black": (black, {}, {"max_episode_steps": 7}),
    "Dim": (
        Odd,
        {},
        {
            "max_episode_steps": 7,
            "additional_wrappers": (gymnasium.envs.registration.WrapperSpec("Dim", "odd_env:Dim", {"by": 100}),),
        },
    ),
    "Maker": (Maker(), {}, {}),
    "Wide": (Odd, {"low": -5.0, "high": 5.0, "end": 10}, {}),
    "Skewed": (Odd, {"low": -1.0, "high": 3.0, "dtype": np.float64, "end": 10}, {}),
    "Whole": (Odd, {"low": 0, "high": 5, "dtype": np.int64}, {}),
    "Boundless": (Odd, {"low": -np.inf, "high": np.inf}, {}),
    "Two": (Odd, {"size": 2}, {}),
    "Nan": (Odd, {"reward": np.nan, "at": 3, "end": 8}, {}),
    "OldApi": (Odd, {"step_": (np.zeros((64, 64, 3), np.uint8), 0.0, False, {})}, {}),
}
for name, (entry, options, more) in KINDS.items():
    gymnasium.register(f"Odd/{name}-v0", entry_point=entry, kwargs=options, **more)
gymnasium.register("Odd/VectorOnly-v0", vector_entry_point="odd_env:Odd")


def task(kind, **collect):
    """A task whose episodes have 20 steps at most: four episodes in two shards."""
    name, env_id = f"odd_{kind.lower()}", f"odd_env:Odd/{kind}-v0"
    settings = {"episodes": 4, "policies": "uniform", "min_length": 1, "workers": 1, "shard_episodes": 2, **collect}
    quick = Config(
        task=name,
        preset="quick",
        environment=EnvSpec(id=env_id, variant="", resolution=""),
        collect=CollectConfig(**settings),
        train_rnn=TrainRNNConfig(done_head=False, reward_head=True),
        evolve=EvolveConfig(max_steps=50, generations=1),
    )
    return Task(
        name=name,
        env_id=env_id,
        actions=("a",),
        max_steps=20,
        policies={"uniform": repeated(1, 1), "beyond": constant(7.0)},
        baselines={"random": "uniform", "collecting": "uniform"},
        presets={"quick": quick},
        score="points",
        frames_per_second=20,
    )
