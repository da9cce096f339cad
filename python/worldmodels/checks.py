"""Checks of the arguments that several front doors of the native core share."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

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
