"""The real CarRacing: drive along a track that differs in every episode."""

from __future__ import annotations

import os
import warnings
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs.preprocessing import Frame, resize
from worldmodels.envs.screen_env import ScreenEnv

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Box2D's types raise warnings at import, and crash if warnings are errors
    try:
        from gymnasium.envs.box2d.car_racing import CarRacing
    except gymnasium.error.DependencyNotInstalled as missing:
        raise ModuleNotFoundError("worldmodels/CarRacing-v0: Box2D is not installed (extra carracing)") from missing

MAX_STEPS = 1000
#: Rows kept of the 96 rows of the screen; the others are the dashboard, which the original code removes too.
ROWS = 84
LOW, HIGH = (-1.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class CarRacingEnv(ScreenEnv):
    """``worldmodels/CarRacing-v0``: Gymnasium's CarRacing-v3 with the paper's observations.

    Observation: (64, 64, 3) uint8 RGB, the top 84 of 96 rows, resized. Action: (3,) float32: steering in [-1, 1]
    (right is positive), gas in [0, 1], brake in [0, 1]; other values are clipped. Reward: -0.1 per step, 1000 / N for
    the first visit of each of the N track tiles, -100 for leaving the field. Terminates when the lap is complete
    or the car leaves the field, truncates after 1000 steps.

    The info of ``reset`` has ``"track"``, (N, 2) float32, the center line of the road. The info of every step has
    ``"position"``, (2,) float32, the position of the car. No display is opened.

    A copy, by pickle or :func:`copy.deepcopy`, is a new environment with the same arguments and must be reset.

    Args:
        ignore_done: Whether to play all 1000 steps, as the original code does when collecting episodes.
        render_mode: ``"rgb_array"`` if :meth:`render` is to return an image of 400 x 600; or None.

    Raises:
        ValueError: The render mode is unknown.

    Source: Ha & Schmidhuber (2018), section 3; the original code's carracing/env.py.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, ignore_done: bool = False, render_mode: str | None = None) -> None:
        space = gymnasium.spaces.Box(np.array(LOW, np.float32), np.array(HIGH, np.float32))
        super().__init__(space, {"ignore_done": ignore_done, "render_mode": render_mode}, render_mode)
        self.ignore_done = ignore_done
        self._game: Any = CarRacing(render_mode=render_mode)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode on a new track; the same seed and actions give the same frames."""
        self._check_open("reset")
        super().reset(seed=seed)
        self._steps = 0
        screen, _ = self._game.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        self._phase = "playing"
        track = np.array([[x, y] for _, _, x, y in self._game.track], np.float32)
        return resize(screen[:ROWS]), {"track": track, "position": self._position()}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Advance by one step (1/50 s) with an action (3,) float32."""
        self._check_playing("step")
        value = self._check_action(action, np.float32)
        screen, reward, terminated, _, _ = self._game.step(np.clip(value, LOW, HIGH))
        self._steps += 1
        terminated = bool(terminated) and not self.ignore_done
        truncated = not terminated and self._steps >= MAX_STEPS
        return resize(screen[:ROWS]), float(reward), terminated, truncated, {"position": self._position()}

    def _position(self) -> npt.NDArray[np.float32]:
        return np.array(self._game.car.hull.position, np.float32)

    def render(self) -> Frame | None:
        """Render the whole image, (400, 600, 3) uint8, in mode ``"rgb_array"``."""
        if self.render_mode is None:
            return None
        self._check_playing("render")
        return np.asarray(self._game.render(), np.uint8)

    def close(self) -> None:
        """Close the game."""
        self._phase = "closed"
        self._game.close()
