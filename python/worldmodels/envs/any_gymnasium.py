"""Contract between a task and a Gymnasium environment: frames, actions, rewards, termination."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs import ContractError
from worldmodels.envs.preprocessing import Frame
from worldmodels.models.controller import Squash

Action = npt.NDArray[np.floating]
FRAME = (64, 64, 3)
_BEYOND_FLOAT32 = 2.0**128 - 2.0**103  # rounds to infinity in float32, the precision of stored rewards
#: Action space of squash "carracing": steering, gas and brake.
_PEDALS = gymnasium.spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32))


class ActionMap:
    """Map from actions of policies and of C to actions of an environment.

    Args:
        env_id: Name of the environment in error messages.
        given: Action space of the environment.
        squash: Squash of the task; None for the actions of the environment, neither clipped nor scaled.

    Attributes:
        space: Action space of policies and of C, (A,).
        scaling: Description of the scaling; empty without scaling.

    Raises:
        ContractError: The space does not match the squash.
    """

    def __init__(self, env_id: str, given: Any, squash: Squash | None) -> None:
        if not isinstance(given, gymnasium.spaces.Box) or len(given.shape) != 1 or given.shape[0] == 0:
            raise ContractError(f"{env_id}: expected a Box of shape (A,) as its action space, got {one_line(given)}")
        self.space, self.scaling = given, ""
        self._id, self._dtype, self._squash = env_id, given.dtype, squash
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

    def __call__(self, action: npt.ArrayLike) -> Action:
        """Clip actions (..., A) to :attr:`space` and scale them to the bounds of the environment.

        Raises:
            ContractError: The length is wrong, or a number is not finite.
        """
        value = np.asarray(action)
        if value.shape[-1:] != self.space.shape or value.dtype.kind not in "fiub" or not np.isfinite(value).all():
            (size,) = self.space.shape
            raise ContractError(f"{self._id}: expected actions of {size} finite numbers, got {one_line(value)}")
        if self._squash is not None:
            value = np.minimum(np.maximum(value, self.space.low), self.space.high)  # np.clip takes three times as long
        if self.scaling:
            exact = value.astype(np.float64)
            scaled = self._low * (0.5 - 0.5 * exact) + self._high * (0.5 + 0.5 * exact)
            value = np.where(self._same, exact, scaled)
        return value.astype(self._dtype) if self._dtype.kind == "f" else value


class AdaptedEnv(gymnasium.Wrapper[Frame, Action, Frame, Action]):
    """Wrapper that applies the rules of a task and checks the contract at every call.

    Args:
        env: Environment with Gymnasium's wrappers.
        env_id: Name of the environment in error messages.
        squash: Squash of the task; None for the actions of the environment.

    Attributes:
        actions: Map from the actions of policies and of C to those of the environment.

    Raises:
        ContractError: In the constructor, a space is wrong. In :meth:`reset` and :meth:`step`, an observation is not
            (64, 64, 3) uint8, a reward is not a finite number, or a flag is not a boolean.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str, squash: Squash | None = None) -> None:
        super().__init__(env)
        self._id, self._seed, self._steps = env_id, 0, 0
        space = getattr(env, "observation_space", None)
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != FRAME or space.dtype != np.uint8:
            wanted = "a Box of shape (64, 64, 3) and dtype uint8 as its observation space"
            raise ContractError(f"{env_id}: expected {wanted}, got {one_line(space)}")
        self.actions = ActionMap(env_id, getattr(env, "action_space", None), squash)
        self.action_space = self.actions.space

    def _where(self) -> str:
        step = f"step {self._steps}" if self._steps else "the reset"
        return f"at {step} of the episode with seed {self._seed}"

    def _refuse(self, wanted: str, came: Any) -> ContractError:
        return ContractError(f"{self._id}: expected {wanted}, got {one_line(came)} {self._where()}")

    def _frame(self, given: Any) -> Frame:
        if not isinstance(given, np.ndarray) or given.shape != FRAME or given.dtype != np.uint8:
            raise self._refuse("an observation of shape (64, 64, 3) and dtype uint8", given)
        return given

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode."""
        self._seed, self._steps = -1 if seed is None else seed, 0
        wanted = "(observation, info) from reset"
        try:
            found: Any = self.env.reset(seed=seed, options=options)
        except (ValueError, TypeError) as error:
            if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
                wanted = "a reset that takes seed and options"
            elif not _unpacked(error, 2):
                raise
            raise ContractError(f"{self._id}: expected {wanted}: {error} {self._where()}") from error
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
            raise self._refuse(wanted, found)
        return self._frame(found[0]), found[1]

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Step the environment."""
        self._steps += 1
        given = self.actions(action)
        if given.ndim != 1:
            raise self._refuse(f"one action of shape {self.actions.space.shape}", given)
        wanted = "(observation, reward, terminated, truncated, info) from step"
        try:
            found: Any = self.env.step(given)
        except (ValueError, TypeError) as error:
            if not _unpacked(error, 5):
                raise
            raise ContractError(f"{self._id}: expected {wanted}: {error} {self._where()}") from error
        if not isinstance(found, tuple) or len(found) != 5:
            raise self._refuse(wanted, found)
        observation, reward, terminated, truncated, info = found
        if not isinstance(info, dict):
            raise self._refuse("a dictionary as the info of a step", info)
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, bool | np.bool_):
                raise self._refuse(f"a boolean for {name}", flag)
        if type(reward) is not float:
            number = np.asarray(reward)
            if number.shape != () or number.dtype.kind not in "fiub":
                raise self._refuse("a finite reward", reward)
            reward = float(number)
        if not abs(reward) < _BEYOND_FLOAT32:
            raise self._refuse("a finite reward", found[1])
        return self._frame(observation), reward, bool(terminated), bool(truncated), info


def _unpacked(error: Exception, count: int) -> bool:
    """Check whether an error is a failed unpacking into ``count`` values, as by a wrapper."""
    return f"values to unpack (expected {count}" in str(error) or "cannot unpack non-iterable" in str(error)


def one_line(value: Any) -> str:
    """Describe a value in one line: a tuple by its types, an array by its shape and dtype."""
    if isinstance(value, tuple):
        return f"{len(value)} values: {', '.join(type(item).__name__ for item in value)}"[:200]
    text = " ".join(f"{value!r:.2000}".split())
    text = text if len(text) <= 120 else text[:117] + "..."
    if isinstance(value, np.ndarray):
        kind = f"{value.shape} {value.dtype}"
        return kind if value.size > 8 else f"{kind} {text}"
    return text
