"""C: the controller, a linear map from features of the world model to an action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
Features = Literal["z", "zh", "zc", "zch"]
Squash = Literal["tanh", "carracing", "argmax"]


@dataclass(frozen=True)
class Controller:
    """Architecture of a controller: it maps a flat parameter vector and features to an action.

    ``action = squash(W f + b)``, or the same with one hidden layer of tanh units. ``f`` has the members of [z, c, h]
    selected by ``features``, always in this order: latent, LSTM cell state, LSTM output. The flat order is W row by
    row, then b; with a hidden layer W1, b1, W2, b2.

    Args:
        latent_size: Length of z.
        hidden_size: Length of the LSTM's h and c.
        action_size: Length of the action.
        features: Inputs of the controller.
        bias: Whether the affine maps have a bias.
        hidden_units: Width of the hidden layer; 0 for none.
        squash: Output function. ``"tanh"``: all actions in [-1, 1]. ``"carracing"``: steering ``tanh(a0)``, gas
            ``(tanh(a1) + 1) / 2``, brake ``max(tanh(a2), 0)``. ``"argmax"``: discrete actions, each as the one-hot
            vector of its largest output, the first of equal ones.
        choices: Number of values of each discrete action, with squash ``"argmax"``: ``(n,)`` for Gymnasium's Discrete,
            several numbers for MultiDiscrete. They add up to ``action_size``.

    Raises:
        ValueError: A size is not an integer or out of range, ``bias`` is not a bool, a name is unknown, or ``choices``
            do not match ``squash``.

    Source: Ha & Schmidhuber (2018), section 2.4 and appendix A.3.
    """

    latent_size: int
    hidden_size: int
    action_size: int
    features: Features = "zch"
    bias: bool = False
    hidden_units: int = 0
    squash: Squash = "tanh"
    choices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("latent_size", 1), ("hidden_size", 1), ("action_size", 1), ("hidden_units", 0)):
            object.__setattr__(self, name, check_size(name, getattr(self, name), low))
        object.__setattr__(self, "bias", check_flag("bias", self.bias))
        if self.features not in get_args(Features):
            raise ValueError(f"features: expected one of {', '.join(get_args(Features))}, got {self.features!r}")
        if self.squash not in get_args(Squash):
            raise ValueError(f"squash: expected one of {', '.join(get_args(Squash))}, got {self.squash!r}")
        if self.squash == "carracing" and self.action_size != 3:
            raise ValueError(f"action_size: expected 3 for squash='carracing', got {self.action_size}")
        if self.squash == "argmax":
            object.__setattr__(self, "choices", check_choices(self.choices, self.action_size))
        elif not np.array_equal(self.choices, ()):
            raise ValueError(f"choices: expected none for squash={self.squash!r}, got {self.choices!r}")
        else:
            object.__setattr__(self, "choices", ())

    @property
    def feature_size(self) -> int:
        """Length of the feature vector."""
        return self.latent_size + self.hidden_size * (len(self.features) - 1)

    @property
    def layer_shapes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each affine map, first to last."""
        if self.hidden_units:
            return [(self.hidden_units, self.feature_size), (self.action_size, self.hidden_units)]
        return [(self.action_size, self.feature_size)]

    @property
    def size(self) -> int:
        """Length of the flat parameter vector."""
        return sum(rows * columns + rows * self.bias for rows, columns in self.layer_shapes)

    def weights(self, params: FloatArray) -> list[FloatArray]:
        """Split a flat vector into matrices and biases.

        Args:
            params: (size,) flat parameters.

        Returns:
            [W, b] or [W1, b1, W2, b2], without the biases if ``bias`` is False; views of ``params``.
        """
        params = np.asarray(params)
        if params.shape != (self.size,):
            raise ValueError(f"params: expected ({self.size},), got {params.shape}")
        parts: list[FloatArray] = []
        start = 0
        for rows, columns in self.layer_shapes:
            parts.append(params[start : start + rows * columns].reshape(rows, columns))
            start += rows * columns
            if self.bias:
                parts.append(params[start : start + rows])
                start += rows
        return parts

    def flatten(self, weights: list[FloatArray]) -> FloatArray:
        """Join matrices and biases, in the order of :meth:`weights`, into a flat (size,) vector."""
        shapes: list[tuple[int, ...]] = []
        for rows, columns in self.layer_shapes:
            shapes += [(rows, columns), (rows,)] if self.bias else [(rows, columns)]
        got = [np.shape(w) for w in weights]
        if got != shapes:
            raise ValueError(f"weights: expected shapes {shapes}, got {got}")
        return np.concatenate([np.ravel(w) for w in weights])

    def join(self, z: FloatArray, c: FloatArray, h: FloatArray) -> FloatArray:
        """Concatenate z (..., Z), c (..., H) and h (..., H) into the feature vector."""
        parts = [z]
        if "c" in self.features:
            parts.append(c)
        if "h" in self.features:
            parts.append(h)
        return np.concatenate(parts, axis=-1)

    def act(self, params: FloatArray, features: FloatArray) -> npt.NDArray[np.float32]:
        """Compute actions of one controller.

        Args:
            params: (size,) flat parameters.
            features: (..., feature_size) features, in the order of :meth:`join`.

        Returns:
            (..., action_size) float32 actions.
        """
        features = np.asarray(features)
        if features.shape[-1:] != (self.feature_size,):
            raise ValueError(f"features: expected (..., {self.feature_size}), got {features.shape}")
        parts = self.weights(np.asarray(params, dtype=np.float32))
        out: FloatArray = features.astype(np.float32, copy=False)
        stride = 2 if self.bias else 1
        for layer in range(0, len(parts), stride):
            out = out @ parts[layer].T
            if self.bias:
                out = out + parts[layer + 1]
            out = self._activation(out, last=layer + stride == len(parts))
        return self.squashed(out)

    def act_each(self, params: FloatArray, features: FloatArray) -> npt.NDArray[np.float32]:
        """Compute actions of many controllers, one per row.

        Args:
            params: (B, size) parameters.
            features: (B, feature_size) features.

        Returns:
            (B, action_size) float32 actions.
        """
        params, features = np.asarray(params, np.float32), np.asarray(features, np.float32)
        if params.shape != (len(features), self.size) or features.shape != (len(params), self.feature_size):
            raise ValueError(
                f"params, features: expected (B, {self.size}) and (B, {self.feature_size}), "
                f"got {params.shape} and {features.shape}"
            )
        out: FloatArray = features
        start = 0
        for layer, (rows, columns) in enumerate(self.layer_shapes):
            weight = params[:, start : start + rows * columns].reshape(-1, rows, columns)
            start += rows * columns
            out = np.einsum("brf,bf->br", weight, out)
            if self.bias:
                out = out + params[:, start : start + rows]
                start += rows
            out = self._activation(out, last=layer + 1 == len(self.layer_shapes))
        return self.squashed(out)

    def _activation(self, out: FloatArray, *, last: bool) -> FloatArray:
        """Apply tanh after an affine map, but not before an arg max, as it rounds large outputs to equal ones."""
        return out if last and self.squash == "argmax" else np.tanh(out, dtype=np.float32)

    def squashed(self, out: FloatArray) -> npt.NDArray[np.float32]:
        """Map the last layer's outputs, after tanh unless the squash is ``"argmax"``, to actions (..., action_size)."""
        if self.squash == "argmax":
            return one_hot(out, self.choices)
        if self.squash == "carracing":
            out = np.stack([out[..., 0], (out[..., 1] + 1) / 2, np.maximum(out[..., 2], 0)], axis=-1)
        return out.astype(np.float32, copy=False)


def check_size(name: str, value: Any, low: int = 1) -> int:
    """Validate a Python or NumPy integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name}: expected an integer of at least {low}, got {value!r}")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """Validate a Python or NumPy bool."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: expected a bool, got {value!r}")
    return bool(value)


def check_choices(choices: Any, action_size: int) -> tuple[int, ...]:
    """Validate the numbers of values of discrete actions whose one-hot vectors have ``action_size`` entries in all."""
    many = isinstance(choices, Sequence) or (isinstance(choices, np.ndarray) and choices.ndim == 1)
    valid = many and all(isinstance(n, int | np.integer) and n >= 2 for n in choices)
    if not valid or sum(choices) != action_size:
        wanted = f"integers of at least 2 that add up to action_size, {action_size}"
        raise ValueError(f"choices: expected {wanted}, got {choices!r}")
    return tuple(map(int, choices))


def chosen_values(actions: FloatArray, choices: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Convert one-hot vectors of discrete actions (..., A) to their values (..., k) int64."""
    parts = np.split(actions, np.cumsum(choices)[:-1], axis=-1)
    return np.stack([part.argmax(axis=-1) for part in parts], axis=-1)


def one_hot(values: FloatArray, choices: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Convert outputs (..., A) to the one-hot vectors of the largest output of each discrete action, (..., A) float32.

    Args:
        values: Outputs, one discrete action after another.
        choices: Number of values of each discrete action; they add up to A.
    """
    actions = np.zeros(np.shape(values), np.float32)
    start = 0
    for count in choices:
        largest = np.argmax(values[..., start : start + count], axis=-1, keepdims=True)
        np.put_along_axis(actions[..., start : start + count], largest, 1.0, axis=-1)
        start += count
    return actions
