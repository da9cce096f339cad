"""Checks of what callers hand to the front doors of the native core."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldmodels.support.cpu import affinity, default_threads

MOST_SEED = 2**64 - 1


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


def check_real(name: str, value: Any, low: float = -math.inf, *, finite: bool = True) -> float:
    """Takes a real number of at least ``low``, never NaN; infinities only where not ``finite``."""
    above = "" if low == -math.inf else f" >= {low:g}"
    try:
        if isinstance(value, str | bytes):  # float would read them
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


def check_seed(seed: Any) -> int:
    """Takes a seed from 0 to ``MOST_SEED``."""
    return check_integer("seed", seed, 0, MOST_SEED)


def check_threads(num_threads: int | None) -> int:
    """Takes a number of threads, or None for the default; at most 64, or as many as there are cores.

    The default is one for each core this process may use (affinity, quota of its control groups), at most
    ``OMP_NUM_THREADS``. More than 64 would gain nothing, and OpenMP ends the process where the system refuses it a
    thread.
    """
    if num_threads is None:
        return default_threads()
    return min(check_integer("num_threads", num_threads, 1, 4096), max(64, affinity()))


def any_array(name: str, given: ArrayLike) -> NDArray[Any]:
    """What NumPy takes for an array, or an error that names the argument."""
    try:
        return np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array, got rows of different lengths") from error
    except (TypeError, RuntimeError) as error:  # tensors NumPy cannot take
        raise TypeError(f"{name}: expected an array, {error}") from error


def exact_array(name: str, given: ArrayLike, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """C-contiguous where the processor wants it, of this shape and this dtype, or an error that names the argument."""
    array = any_array(name, given)
    if array.shape != shape or array.dtype != dtype:
        wanted = f"{shape} {np.dtype(dtype)}"
        raise ValueError(f"{name}: expected {wanted}, got {array.shape} {array.dtype}")
    return np.require(array, dtype, ["C", "A"])


def different_slots(given: ArrayLike, total: int) -> NDArray[np.int64]:
    """(n,) slots, each another one of ``total``; n > 0."""
    slots = any_array("slots", given)
    numbers = slots.ndim == 1 and 0 < slots.size <= total and slots.dtype.kind in "iu"
    if not numbers or not ((slots >= 0) & (slots < total)).all() or len(np.unique(slots)) != len(slots):
        got = f"{slots!r:.200}" if numbers else f"{slots.shape} {slots.dtype}"
        raise ValueError(f"slots: expected different numbers from 0 to {total - 1}, got {got}")
    return slots.astype(np.int64)


def float64_array(name: str, given: ArrayLike) -> NDArray[np.float64]:
    """C-contiguous float64 where the processor wants it, or an error that names the argument."""
    array = any_array(name, given)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float64 becomes inf; any NaN is one
        return np.require(array, np.float64, ["C", "A"])


def single_flag(state: Mapping[str, Any], name: str) -> bool:
    """A bool, plain or as an array of no dimension."""
    value = np.asarray(state[name])
    if value.shape != () or value.dtype != np.bool_:
        raise TypeError(f"{name}: expected a bool, got {state[name]!r:.100}")
    return bool(value)


def single_number(state: Mapping[str, Any], name: str) -> float:
    """The number of an array of shape (1,)."""
    array = float64_array(name, state[name])
    if array.shape != (1,):
        raise ValueError(f"{name}: expected (1,), got {array.shape}")
    return float(array[0])


def float_array(name: str, value: ArrayLike, shape: Sequence[int | str]) -> NDArray[np.float32]:
    """Converts floats to contiguous float32 of a shape; a letter in it stands for any size of at least one.

    Raises:
        ValueError: the value is no array, its shape or kind of number is another one, or a number is too large for
            float32.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths, tensors NumPy cannot take
        raise ValueError(f"{name}: expected an array, {error}") from error
    fits = array.ndim == len(shape) and all(
        got > 0 if isinstance(want, str) else got == want for got, want in zip(array.shape, shape, strict=False)
    )
    if not fits or not np.issubdtype(array.dtype, np.floating):
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected ({wanted}) float32, got {array.shape} {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN are refused by the core, by name
        return np.require(array, np.float32, ["C", "A"])
