"""Contract between a task and a Gymnasium environment: frames, actions, rewards, termination."""

from __future__ import annotations

from typing import Any, NoReturn

import gymnasium
import numpy as np

from worldmodels.envs import ContractError, GameLostError
from worldmodels.envs.actions import Action, ActionMap
from worldmodels.envs.frames import FRAME, FrameMap
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.controller import Squash
from worldmodels.support.validation import one_line

_BEYOND_FLOAT32 = 2.0**128 - 2.0**103  # rounds to infinity in float32, the precision of stored rewards
_DEFAULT = EnvSpec()


class AdaptedEnv(gymnasium.Wrapper[Frame, Any, Frame, Any]):
    """Wrapper that applies the rules of a task and checks the contract at every call.

    Args:
        env: Environment with Gymnasium's wrappers.
        env_id: Name of the environment in error messages.
        squash: Output squashing of the task's controller; None: derived from the action space.
        choices: Number of values of each discrete action of the task; empty for those of the environment.
        spec: Source and crop of the frames, and action repeat.

    Attributes:
        actions: Map from the actions of policies and of C to those of the environment.

    Raises:
        ContractError: In the constructor, a space is wrong. In :meth:`reset` and :meth:`step`, the environment raised
            an error, an image does not have the shape or the dtype of its space, a reward is not a finite number, or a
            flag is not a boolean.
        ModuleNotFoundError: In :meth:`reset` and :meth:`step`, a package of the environment is not installed.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        env_id: str,
        squash: Squash | None = None,
        choices: tuple[int, ...] = (),
        spec: EnvSpec = _DEFAULT,
    ) -> None:
        super().__init__(env)
        self._id, self._steps = env_id, 0
        self._seed: int | None = None
        self._repeat = spec.action_repeat
        self._frames = FrameMap(env, env_id, spec)
        self.observation_space = gymnasium.spaces.Box(0, 255, FRAME, np.uint8)
        self.actions = ActionMap(env_id, getattr(env, "action_space", None), squash, choices)
        self.action_space = self.actions.space

    def _where(self) -> str:
        step = f"step {self._steps}" if self._steps else "the reset"
        return f"at {step} of " + (
            "an unseeded episode" if self._seed is None else f"the episode with seed {self._seed}"
        )

    def _refuse(self, wanted: str, came: Any) -> ContractError:
        return ContractError(f"{self._id}: expected {wanted}, got {one_line(came)} {self._where()}")

    def _frame(self, given: Any) -> Frame:
        try:
            return self._frames(given)
        except ContractError as error:
            named = str(error) if str(error).startswith("environment.") else f"{self._id}: {error}"
            raise ContractError(f"{named} {self._where()}") from error
        except (Exception, SystemExit) as error:  # of render
            raise_failure(error, self._id, self._where())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode."""
        self._seed, self._steps = seed, 0
        wanted = "(observation, info) from reset"
        try:
            found: Any = self.env.reset(seed=seed, options=options)
        except (ValueError, TypeError) as error:
            if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
                wanted = "a reset that takes seed and options"
            elif not _unpacked(error, 2):
                raise_failure(error, self._id, self._where())
            raise ContractError(f"{self._id}: expected {wanted}: {error} {self._where()}") from error
        except (Exception, SystemExit) as error:
            raise_failure(error, self._id, self._where())
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
            raise self._refuse(wanted, found)
        return self._frame(found[0]), found[1]

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Step the environment, as often as the action is repeated, and add the rewards."""
        if np.ndim(action) != 1:
            raise self._refuse(f"one action of shape {self.actions.space.shape}", action)
        given = self.actions(action)
        total = 0.0
        for _ in range(self._repeat):
            observation, reward, terminated, truncated, info = self._advance(given)
            total += reward
            if terminated or truncated:
                break
        if not abs(total) < _BEYOND_FLOAT32:
            raise self._refuse("a finite reward", total)
        return self._frame(observation), total, terminated, truncated, info

    def _advance(self, given: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment once."""
        self._steps += 1
        wanted = "(observation, reward, terminated, truncated, info) from step"
        try:
            found: Any = self.env.step(given)
        except (ValueError, TypeError) as error:
            if not _unpacked(error, 5):
                raise_failure(error, self._id, self._where())
            raise ContractError(f"{self._id}: expected {wanted}: {error} {self._where()}") from error
        except (Exception, SystemExit) as error:
            raise_failure(error, self._id, self._where())
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
        return observation, reward, bool(terminated), bool(truncated), info


def raise_failure(error: BaseException, env_id: str, where: str) -> NoReturn:
    """Re-raise an environment's exception, by default as a ContractError that names the environment.

    Args:
        error: Error of the environment.
        env_id: Id of the environment.
        where: Step and seed, or the call that failed, for the message.

    Raises:
        ContractError, GameLostError, MemoryError: The error itself, or a ContractError that describes it.
        ModuleNotFoundError: A package of the environment is not installed.
    """
    if isinstance(error, ContractError | GameLostError | MemoryError):
        raise error
    if isinstance(error, ModuleNotFoundError | gymnasium.error.DependencyNotInstalled):
        name = getattr(error, "name", None) or "gymnasium"
        raise ModuleNotFoundError(f"{env_id}: {error}", name=name) from error
    raise ContractError(f"{env_id}: the environment failed: {describe_error(error)} {where}") from error


def describe_error(error: BaseException) -> str:
    """Describe an error by its type and message, and a SystemExit by its call."""
    return f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"


def _unpacked(error: Exception, count: int) -> bool:
    """Check whether an error is a failed unpacking into ``count`` values, as by a wrapper."""
    return f"values to unpack (expected {count}" in str(error) or "cannot unpack non-iterable" in str(error)
