"""Map from actions of policies and of C to actions of an environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs import ContractError
from worldmodels.models.controller import Squash
from worldmodels.support.validation import one_line

Action = npt.NDArray[np.floating]
#: Action space of squash "carracing": steering, gas and brake.
_PEDALS = gymnasium.spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32))
_DISCRETE = "a Discrete, MultiDiscrete or MultiBinary of one dimension, with at least two values of each action,"


def is_discrete(space: Any) -> bool:
    """Check whether a space is one of discrete actions."""
    kinds = gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete, gymnasium.spaces.MultiBinary
    return isinstance(space, kinds)


def choices_of(space: Any) -> tuple[int, ...]:
    """Return the number of values of each discrete action of a space; empty if the space is not supported."""
    if isinstance(space, gymnasium.spaces.Discrete):
        counts = [int(space.n)]
    elif isinstance(space, gymnasium.spaces.MultiDiscrete) and space.nvec.ndim == 1:
        counts = [int(count) for count in space.nvec]
    elif isinstance(space, gymnasium.spaces.MultiBinary) and len(space.shape) == 1:
        counts = [2] * space.shape[0]
    else:
        return ()
    return tuple(counts) if min(counts, default=0) >= 2 else ()


class ActionMap:
    """Map from actions of policies and of C to actions of an environment.

    Args:
        env_id: Name of the environment in error messages.
        given: Action space of the environment.
        squash: Squash of the task; None for the actions of the environment, neither clipped nor scaled.
        choices: Number of values of each discrete action of the task; empty for those of the environment.

    Attributes:
        space: Action space of policies and of C, (A,). Concatenated one-hot vectors with squash ``"argmax"``.
        scaling: Description of the scaling; empty without scaling.
        choices: Number of values of each discrete action; empty without squash ``"argmax"``.

    Raises:
        ContractError: The space does not match the squash or the choices.
    """

    def __init__(self, env_id: str, given: Any, squash: Squash | None, choices: tuple[int, ...] = ()) -> None:
        self.space: gymnasium.spaces.Box
        self.scaling = ""
        self.choices: tuple[int, ...] = ()
        self._id, self._given, self._squash = env_id, given, squash
        if squash == "argmax":
            self.choices = choices_of(given)
            if not self.choices or (choices and choices != self.choices):
                expected = f"{_DISCRETE} with {list(choices)} values" if choices else _DISCRETE
                raise ContractError(f"{env_id}: expected {expected} as its action space, got {one_line(given)}")
            self.space = gymnasium.spaces.Box(0.0, 1.0, (sum(self.choices),), np.float32)
            return
        if not isinstance(given, gymnasium.spaces.Box) or len(given.shape) != 1 or given.shape[0] == 0:
            raise ContractError(f"{env_id}: expected a Box of shape (A,) as its action space, got {one_line(given)}")
        self.space, self._dtype = given, given.dtype
        if squash is None:
            return
        low, high = given.low.astype(np.float64), given.high.astype(np.float64)
        if given.dtype is None or given.dtype.kind != "f":
            raise ContractError(f"{env_id}: expected an action space of floats, got {one_line(given)}")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
            raise ContractError(f"{env_id}: expected an action space with finite bounds, got {one_line(given)}")
        if squash == "carracing":
            if given.shape != _PEDALS.shape or (low != _PEDALS.low).any() or (high != _PEDALS.high).any():
                wanted = one_line(_PEDALS)
                raise ContractError(f"{env_id}: expected the action space {wanted}, got {one_line(given)}")
            self.space = _PEDALS
            return
        self.space = gymnasium.spaces.Box(-1.0, 1.0, given.shape, np.float32)
        self._low, self._high, self._same = low, high, (low == -1) & (high == 1)
        if not self._same.all():
            bounds = (np.array2string(bound, separator=", ", threshold=8) for bound in (given.low, given.high))
            box = " ".join(f"Box({', '.join(bounds)})".split())
            self.scaling = f"actions in [-1, 1] are scaled to the environment's {box}"

    @property
    def size(self) -> int:
        """Length A of an action."""
        return int(self.space.shape[0])

    def check(self, action: npt.ArrayLike) -> npt.NDArray[Any]:
        """Check actions (..., A).

        Raises:
            ContractError: The length is wrong, or a number is not finite.
        """
        value = np.asarray(action)
        if value.shape[-1:] != self.space.shape or value.dtype.kind not in "fiub" or not np.isfinite(value).all():
            (size,) = self.space.shape
            raise ContractError(f"{self._id}: expected actions of {size} finite numbers, got {one_line(value)}")
        return value

    def __call__(self, action: npt.ArrayLike) -> Any:
        """Convert actions (..., A) to those of the environment.

        Numbers are clipped to :attr:`space` and scaled to the bounds of the environment. Of each one-hot vector, the
        index of the largest number is the discrete action.

        Raises:
            ContractError: The length is wrong, or a number is not finite.
        """
        value = self.check(action)
        if self.choices:
            return self._discrete(value)
        if self._squash is not None:
            value = np.minimum(np.maximum(value, self.space.low), self.space.high)  # np.clip takes three times as long
        if self.scaling:
            exact = value.astype(np.float64)
            scaled = self._low * (0.5 - 0.5 * exact) + self._high * (0.5 + 0.5 * exact)
            value = np.where(self._same, exact, scaled)
        return value.astype(self._dtype) if self._dtype.kind == "f" else value

    def _discrete(self, value: npt.NDArray[Any]) -> Any:
        """Convert one-hot vectors (..., A) to the actions of a discrete space."""
        parts = np.split(value, np.cumsum(self.choices)[:-1], axis=-1)
        chosen = np.stack([part.argmax(axis=-1) for part in parts], axis=-1)
        start = getattr(self._given, "start", 0)
        if isinstance(self._given, gymnasium.spaces.Discrete):
            return chosen[..., 0] + self._given.start
        return (chosen + start).astype(self._given.dtype)
