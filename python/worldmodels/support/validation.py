"""Validation of arguments; errors read "name: expected X, got Y"."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldmodels.support.cpu import affinity, default_threads

MAX_SEED = 2**64 - 1


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    """Validate a Python or NumPy integer from ``low`` to ``high``; TypeError or ValueError otherwise."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {number}")
    return number


def check_real(name: str, value: Any, low: float = -math.inf, *, finite: bool = True) -> float:
    """Validate a real number >= ``low`` that is not NaN. Infinities pass unless ``finite``."""
    above = "" if low == -math.inf else f" >= {low:g}"
    try:
        if isinstance(value, str | bytes):  # float() would parse them
            raise TypeError
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number{above}, got an integer beyond float64") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r:.100}") from None
    if math.isnan(number) or number < low or (finite and math.isinf(number)):
        kind = "a finite number" if math.isinf(number) else "a number"
        raise ValueError(f"{name}: expected {kind}{above}, got {number}")
    return number


def check_positive(name: str, value: Any) -> float:
    """Validate a finite real number above 0."""
    number = check_real(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a finite number above 0, got {number}")
    return number


def check_seed(seed: Any) -> int:
    """Validate a seed from 0 to ``MAX_SEED``."""
    return check_integer("seed", seed, 0, MAX_SEED)


def check_threads(num_threads: int | None) -> int:
    """Validate a number of threads; None selects the default.

    The default is :func:`worldmodels.support.cpu.default_threads`. The result is at most 64, or the number of CPUs on
    larger machines: OpenMP aborts the process if the system refuses a thread.
    """
    if num_threads is None:
        return default_threads()
    return min(check_integer("num_threads", num_threads, 1, 4096), max(64, affinity()))


def any_array(name: str, given: ArrayLike) -> NDArray[Any]:
    """Convert to an array with ``np.asarray``; errors name the argument."""
    try:
        return np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array, got rows of different lengths") from error
    except (TypeError, RuntimeError) as error:  # tensors that NumPy cannot convert
        raise TypeError(f"{name}: expected an array, {error}") from error


def exact_array(name: str, given: ArrayLike, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Validate shape and dtype; return the array C-contiguous and aligned."""
    array = any_array(name, given)
    if array.shape != shape or array.dtype != dtype:
        wanted = f"{shape} {np.dtype(dtype)}"
        raise ValueError(f"{name}: expected {wanted}, got {array.shape} {array.dtype}")
    return np.require(array, dtype, ["C", "A"])


def distinct_env_ids(given: ArrayLike, total: int) -> NDArray[np.int64]:
    """Validate distinct environment indices in [0, total), (n,) with n > 0."""
    env_ids = any_array("env_ids", given)
    integers = env_ids.ndim == 1 and 0 < env_ids.size <= total and env_ids.dtype.kind in "iu"
    if not integers or not ((env_ids >= 0) & (env_ids < total)).all() or len(np.unique(env_ids)) != len(env_ids):
        got = f"{env_ids!r:.200}" if integers else f"{env_ids.shape} {env_ids.dtype}"
        raise ValueError(f"env_ids: expected distinct integers from 0 to {total - 1}, got {got}")
    return env_ids.astype(np.int64)


def float64_array(name: str, given: ArrayLike) -> NDArray[np.float64]:
    """Convert real numbers to C-contiguous, aligned float64."""
    array = any_array(name, given)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float64 become inf
        return np.require(array, np.float64, ["C", "A"])


def single_flag(state: Mapping[str, Any], name: str) -> bool:
    """Read a bool of a state dictionary, plain or as a 0-d array."""
    value = np.asarray(state[name])
    if value.shape != () or value.dtype != np.bool_:
        raise TypeError(f"{name}: expected a bool, got {state[name]!r:.100}")
    return bool(value)


def single_number(state: Mapping[str, Any], name: str) -> float:
    """Read the number of a state dictionary's array of shape (1,)."""
    array = float64_array(name, state[name])
    if array.shape != (1,):
        raise ValueError(f"{name}: expected (1,), got {array.shape}")
    return float(array[0])


def float_array(name: str, value: ArrayLike, shape: Sequence[int | str]) -> NDArray[np.float32]:
    """Convert floats to contiguous float32 of a given shape.

    Args:
        name: Name of the argument in errors.
        value: Array to convert.
        shape: Expected sizes; a letter stands for any size of at least one.

    Raises:
        ValueError: The value is not an array of floats of this shape.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged rows, tensors that NumPy cannot convert
        raise ValueError(f"{name}: expected an array, {error}") from error
    fits = array.ndim == len(shape) and all(
        got > 0 if isinstance(want, str) else got == want for got, want in zip(array.shape, shape, strict=False)
    )
    if not fits or not np.issubdtype(array.dtype, np.floating):
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected ({wanted}) float32, got {array.shape} {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # the core rejects inf and NaN, with the argument's name
        return np.require(array, np.float32, ["C", "A"])


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
