"""Gymnasium's Pendulum-v1 with image observations."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs.preprocessing import Frame, resize
from worldmodels.envs.screen_env import ScreenEnv

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame

MAX_STEPS = 200
_WINDOW = 500  # side of a rendered picture, Gymnasium's
_SIDE = 250  # of the picture that a frame is cut from: Gymnasium's side of 500 takes twice the time
#: Square of this picture around the pivot that is kept: the rod then covers 4 % of a frame instead of 1 %.
_SQUARE = slice(60, 190)


class PendulumEnv(ScreenEnv):
    """``worldmodels/Pendulum-v0``: the pendulum as an image instead of its angle and velocity.

    Observation: (64, 64, 3) uint8 RGB, the square around the rod, without Gymnasium's arrow of the torque. Action: (1,)
    float32 in [-1, 1], the torque as a fraction of its maximum.
    Reward: Gymnasium's, -(angle^2 + 0.1 velocity^2 + 0.001 torque^2), from -16.3 to 0. Truncated after 200 steps.

    The image is drawn on a surface in memory. No display is opened, and windows of the same process stay open. A copy,
    by pickle or :func:`copy.deepcopy`, is a new environment with the same arguments and must be reset.

    Args:
        render_mode: ``"rgb_array"`` if :meth:`render` is to return the whole image; or None.

    Raises:
        ValueError: The render mode is unknown.

    Source: Ha & Schmidhuber (2018), the online article's iterative training procedure.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, render_mode: str | None = None) -> None:
        space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        super().__init__(space, {"render_mode": render_mode}, render_mode)
        game: Any = gymnasium.make("Pendulum-v1", render_mode="rgb_array", disable_env_checker=True)
        self._game = game.unwrapped
        self._steps = 0

    def _picture(self, side: int) -> Frame:
        self._game.screen_dim = side
        self._game.screen = pygame.Surface((side, side))  # otherwise Gymnasium opens pygame's display
        return np.asarray(self._game.render(), np.uint8)

    def _frame(self) -> Frame:
        torque, self._game.last_u = self._game.last_u, None  # else an arrow as large as the rod shows the last action
        frame = resize(self._picture(_SIDE)[_SQUARE, _SQUARE])
        self._game.last_u = torque
        return frame

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode; the same seed and actions give the same frames."""
        self._check_open("reset")
        super().reset(seed=seed)
        self._phase = "playing"
        self._steps = 0
        self._game.reset(seed=int(self.np_random.integers(2**31)))
        return self._frame(), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Step for a twentieth of a second."""
        self._check_playing("step")
        value = self._check_action(action, np.float32)
        _, reward, *_ = self._game.step(np.clip(value, -1, 1) * self._game.max_torque)
        self._steps += 1
        return self._frame(), float(reward), False, self._steps >= MAX_STEPS, {}

    def render(self) -> Frame | None:
        """Render the whole image, (500, 500, 3) uint8, in mode ``"rgb_array"``."""
        if self.render_mode is None:
            return None
        self._check_playing("render")
        return self._picture(_WINDOW)

    def close(self) -> None:
        """Close the environment."""
        self._phase = "closed"
        self._game.screen = None  # otherwise Gymnasium closes pygame's display
        self._game.close()
