"""Base class of the real environments: image observations and checks of the call order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.utils import EzPickle

from worldmodels.envs.preprocessing import Frame


class ScreenEnv(EzPickle, gymnasium.Env[Frame, npt.NDArray[np.float32]]):
    """Real environment whose observation is the screen, (64, 64, 3) uint8.

    Pickling and copying follow :class:`gymnasium.utils.EzPickle`: a copy is a new environment with the same constructor
    arguments and its own game, without an episode. It must be reset.

    Args:
        action_space: Action space, (A,).
        arguments: Constructor arguments of the subclass, for copies.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: The render mode is unknown.
    """

    def __init__(
        self, action_space: gymnasium.spaces.Box[np.float32], arguments: Mapping[str, Any], render_mode: str | None
    ) -> None:
        EzPickle.__init__(self, **arguments)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = action_space
        self._phase: Literal["new", "playing", "closed"] = "new"

    def _check_open(self, call: str) -> None:
        """Raise if the environment is closed."""
        if self._phase == "closed":
            name = type(self).__name__
            raise gymnasium.error.ClosedEnvironmentError(
                f"{name}.{call}: expected an open environment, got a closed one"
            )

    def _check_playing(self, call: str) -> None:
        """Raise if no episode was started."""
        self._check_open(call)
        if self._phase == "new":
            name = type(self).__name__
            raise gymnasium.error.ResetNeeded(f"{name}.{call}: expected reset first, in a copy too, got {call}")

    def _check_action(self, action: Any, dtype: type[np.floating]) -> npt.NDArray[np.floating]:
        """Validate an action (A,) of finite numbers."""
        try:
            value = np.asarray(action, dtype=dtype)
        except (TypeError, ValueError):
            value = np.empty(0, dtype)  # no space of actions has this shape
        if value.shape != self.action_space.shape or not np.isfinite(value).all():
            raise ValueError(f"action: expected {self.action_space.shape} finite numbers, got {action!r}")
        return value
