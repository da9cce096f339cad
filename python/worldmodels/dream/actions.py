"""Actions of the dream environments: their space, validation and conversion to M's actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.dream.settings import DreamSettings
from worldmodels.models.controller import check_choices
from worldmodels.support.validation import any_array, float_array

Array = npt.NDArray[Any]


class ContinuousActions:
    """Continuous actions (A,), clipped to their bounds."""

    def __init__(self, action_size: int, low: npt.ArrayLike, high: npt.ArrayLike) -> None:
        bounds = []
        for name, bound in (("action_low", low), ("action_high", high)):
            array = any_array(name, bound)
            numbers = array.shape in ((), (action_size,)) and array.dtype.kind in "fiu"
            if not numbers or np.isnan(array).any():
                raise ValueError(f"{name}: expected a number or ({action_size},) of them, got {bound!r:.200}")
            with np.errstate(over="ignore"):  # numbers beyond float32 are not bounds
                bounds.append(np.broadcast_to(array.astype(np.float32), (action_size,)))
        for name, bound, excluded in (("action_low", bounds[0], np.inf), ("action_high", bounds[1], -np.inf)):
            if (bound == excluded).any():
                raise ValueError(f"{name}: expected a finite number or {-excluded}, got {excluded}")
        if (bounds[0] > bounds[1]).any():
            raise ValueError(f"action_low: expected at most action_high, got {low!r} and {high!r}")
        self.space = gymnasium.spaces.Box(bounds[0], bounds[1], (action_size,), np.float32)

    def convert(self, name: str, actions: Array, batch: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Validate actions (*batch, A), clip them to the action space and convert them to float32."""
        shape = (*batch, *self.space.shape)
        if actions.shape != shape or actions.dtype.kind not in "fiu":
            raise ValueError(f"{name}: expected {shape} float32, got {actions.shape} {actions.dtype}")
        _check_finite(name, actions)
        clipped = np.clip(actions, self.space.low, self.space.high)  # in the wider of the two dtypes
        taken = float_array(name, clipped, shape)
        if clipped.dtype != np.float32:
            _check_finite(name, taken)
        return taken


def _check_finite(name: str, actions: Array) -> None:
    if not (finite := np.isfinite(actions)).all():
        index = int(np.argmin(finite))
        raise ValueError(f"{name}: expected finite numbers, got {actions.flat[index]} at flat index {index}")


class DiscreteActions:
    """Discrete actions, a number or (k,) of them, as the one-hot vectors that M takes."""

    def __init__(self, action_size: int, choices: Sequence[int]) -> None:
        self._choices = np.array(check_choices(choices, action_size))
        single = len(self._choices) == 1
        self.space: gymnasium.Space[Any] = (
            gymnasium.spaces.Discrete(action_size) if single else gymnasium.spaces.MultiDiscrete(self._choices)
        )

    def convert(self, name: str, actions: Array, batch: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Validate actions (*batch) or, if they are k discrete ones, (*batch, k); convert to one-hot vectors (N, A)."""
        shape = (*batch, *(self.space.shape or ()))
        if actions.shape != shape or actions.dtype.kind not in "iu":
            raise ValueError(f"{name}: expected {shape} int64, got {actions.shape} {actions.dtype}")
        values = actions.reshape(-1, len(self._choices))
        if not (known := (values >= 0) & (values < self._choices)).all():
            index = int(np.argmin(known))
            most = self._choices[index % len(self._choices)] - 1
            raise ValueError(f"{name}: expected 0 to {most}, got {values.flat[index]} at flat index {index}")
        vectors = np.zeros((len(values), self._choices.sum()), np.float32)
        first = np.cumsum(self._choices) - self._choices
        np.put_along_axis(vectors, first + values.astype(np.int64), 1.0, axis=1)
        return vectors


def dream_actions(settings: DreamSettings, action_size: int) -> ContinuousActions | DiscreteActions:
    """Return the actions that the settings ask for.

    Raises:
        ValueError: Bounds or choices are invalid, or bounds are given with choices.
    """
    if np.array_equal(settings.choices, ()):
        return ContinuousActions(action_size, settings.action_low, settings.action_high)
    for name in ("action_low", "action_high"):
        bound, default = getattr(settings, name), getattr(DreamSettings, name)
        if not np.array_equal(bound, default):
            raise ValueError(f"{name}: expected its default, {default}, as choices are given, got {bound!r}")
    return DiscreteActions(action_size, settings.choices)
