"""Checks of what callers hand to the front doors of the native core."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldmodels.threads import cores


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    """Takes a Python or NumPy integer from ``low`` to ``high``; TypeError or ValueError otherwise."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {number}")
    return number


def check_seed(seed: Any) -> int:
    """Takes a seed from 0 to 2**64 - 1."""
    return check_integer("seed", seed, 0, 2**64 - 1)


def check_threads(num_threads: int | None) -> int:
    """Takes a number of threads, or None for all cores this process may use."""
    return cores() if num_threads is None else check_integer("num_threads", num_threads, 1, 4096)


def float64_array(name: str, given: ArrayLike) -> NDArray[np.float64]:
    """C-contiguous float64, or an error that names the argument."""
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array, got rows of different lengths") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float64).reshape(array.shape)


def single_number(state: Mapping[str, Any], name: str) -> float:
    """The number of an array of shape (1,)."""
    array = float64_array(name, state[name])
    if array.shape != (1,):
        raise ValueError(f"{name}: expected (1,), got {array.shape}")
    return float(array[0])
