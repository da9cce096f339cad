"""Gymnasium's Pendulum-v1 seen as a picture: swing it up and hold it there."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs.screen import Frame, shrink

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

MAX_STEPS = 200


class PendulumEnv(gymnasium.Env[Frame, npt.NDArray[np.float32]]):
    """``worldmodels/Pendulum-v0``: the pendulum's picture instead of its angle and speed.

    Observation: (64, 64, 3) uint8 RGB. Action: (1,) float32 in [-1, 1], the torque as a share of the largest.
    Reward: Gymnasium's, -(angle^2 + 0.1 speed^2 + 0.001 torque^2), from -16.3 to 0. Truncated after 200 steps.

    Args:
        render_mode: ``"rgb_array"``: :meth:`render` returns the whole picture; or None.

    Raises:
        ValueError: an unknown render mode.

    Source: Ha & Schmidhuber (2018), the online article's iterative training procedure.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        game = gymnasium.make("Pendulum-v1", render_mode="rgb_array", disable_env_checker=True)
        self._game: Any = game.unwrapped
        self._steps = 0

    def _picture(self) -> Frame:
        return np.asarray(self._game.render(), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Starts an episode; the same seed and actions give the same frames."""
        super().reset(seed=seed)
        self._steps = 0
        self._game.reset(seed=int(self.np_random.integers(2**31)))
        return shrink(self._picture()), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Plays a twentieth of a second."""
        value = np.asarray(action, dtype=np.float32)
        if value.shape != (1,) or not np.isfinite(value).all():
            raise ValueError(f"action: expected (1,) finite numbers, got {action!r}")
        _, reward, *_ = self._game.step(np.clip(value, -1, 1) * self._game.max_torque)
        self._steps += 1
        return shrink(self._picture()), float(reward), False, self._steps >= MAX_STEPS, {}

    def render(self) -> Frame | None:
        """The whole picture, (500, 500, 3) uint8, in mode ``"rgb_array"``."""
        return self._picture() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Frees the picture."""
        self._game.close()


gymnasium.register("worldmodels/Pendulum-v0", entry_point="worldmodels.envs.pendulum:PendulumEnv")
