"""Environments without a task for the tests: `image_env:Image/<name>-v0`, of every kind of image and action."""

from __future__ import annotations

import enum

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

RGB = Box(0, 255, (48, 32, 3), np.uint8)


class Actions(enum.IntEnum):
    """Names of the actions of Discrete(3)."""

    noop = 0
    move_left = 1
    move_right = 2


class Image(gymnasium.Env):
    """A bright bar that moves by the sum of the action; a step pays the position of the bar, from 0 to 1.

    The length of an episode is 4 + seed % 5 actions, the last of which terminates it, or truncates it with ``cut``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    actions = Actions

    def __init__(self, action=None, observation=RGB, cut=False, endless=False, render_mode=None):
        self.action_space = Discrete(3) if action is None else action
        self.observation_space = observation
        self.cut, self.endless, self.render_mode = cut, endless, render_mode
        self.given = []

    def picture(self):
        image = np.full((48, 32, 3), 20, np.uint8)
        image[:, self.at : self.at + 4] = (250, 120, 60)
        image[0] = 0  # a row to crop
        return image

    def observe(self):
        space, image = self.observation_space, self.picture()
        if isinstance(space, Dict):
            return {"screen": image, "health": np.zeros(1, np.float32)}
        if isinstance(space, Box) and space.dtype == np.uint8:
            grey = image[:, :, :1]
            return {2: grey[:, :, 0], 1: grey, 3: image}[len(space.shape) if len(space.shape) == 2 else space.shape[2]]
        return space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps, self.length = 14, 0, 4 + (seed or 0) % 5
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.given.append(action)
        self.steps += 1
        self.at = int(np.clip(self.at + np.sum(action) - 1, 0, 28))
        over = self.steps >= self.length and not self.endless
        return self.observe(), self.at / 28, over and not self.cut, over and self.cut, {}

    def render(self):
        return self.picture() if self.render_mode == "rgb_array" else None


class Blind(Image):
    """Renders nothing."""

    metadata = {"render_modes": []}  # noqa: RUF012


class Failing(Image):
    """Raises an error in the first step."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def step(self, action):
        raise self.error


class Unmade(Image):
    """Exits when it is made."""

    def __init__(self):
        raise SystemExit


FLOATS = Box(-1.0, 1.0, (3,))
#: name -> (entry point, constructor's arguments)
KINDS = {
    "Discrete": (Image, {}),
    "Started": (Image, {"action": Discrete(3, start=5), "endless": True}),
    "MultiDiscrete": (Image, {"action": MultiDiscrete([3, 2])}),
    "MultiBinary": (Image, {"action": MultiBinary(2), "observation": Box(0, 255, (48, 32), np.uint8)}),
    "Grey": (Image, {"observation": Box(0, 255, (48, 32, 1), np.uint8), "cut": True}),
    "Dict": (Image, {"observation": Dict({"screen": RGB, "health": FLOATS})}),
    "Rendered": (Image, {"observation": FLOATS, "action": Box(-1.0, 2.0, (1,), np.float32)}),
    "Text": (Blind, {"observation": Text(20)}),
    "Floats": (Blind, {"observation": FLOATS}),
    "Tuple": (Image, {"action": Tuple((Discrete(2), Discrete(2)))}),
    "Single": (Image, {"action": Discrete(1)}),
    "Grid": (Image, {"action": MultiDiscrete([[2, 2], [2, 2]])}),
    "KeyError": (Failing, {"error": KeyError("k")}),
    "Unmade": (Unmade, {}),
    "Exit": (Failing, {"error": SystemExit(3)}),
    "Dependency": (Failing, {"error": gymnasium.error.DependencyNotInstalled("pygame is not installed")}),
    "Boundless": (Image, {"action": Box(-np.inf, np.inf, (1,))}),
}
for name, (entry, options) in KINDS.items():
    gymnasium.register(f"Image/{name}-v0", entry_point=entry, kwargs=options)
gymnasium.register("Image/Limited-v0", entry_point=Image, kwargs={"endless": True}, max_episode_steps=10)
