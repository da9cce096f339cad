"""SIMD levels of the native core and the precisions that they compute in."""

from __future__ import annotations

from typing import Any, Literal, get_args

from worldmodels import _core
from worldmodels.support.validation import check_threads

Precision = Literal["float32", "bfloat16"]


def simd_levels() -> list[str]:
    """Names of the SIMD levels this machine can run, plainest first: the last is used unless told otherwise.

    The environment variable ``WORLDMODELS_SIMD`` forces one at the first use.
    """
    return _core.simd_levels()


def simd_level() -> str:
    """Name of the SIMD level in use."""
    return _core.simd_level()


def set_simd_level(name: str) -> None:
    """Chooses the SIMD level of every later call in this process.

    Raises:
        ValueError: this machine cannot run ``name``.
    """
    _core.set_simd_level(name)


def precisions() -> list[Precision]:
    """Those that this build and machine have at the SIMD level in use."""
    return ["float32", "bfloat16"] if simd_level() == "avx512_bf16" else ["float32"]


def check_precision(precision: Any) -> None:
    """Takes a precision that this build and machine have."""
    if not isinstance(precision, str) or precision not in get_args(Precision):
        raise ValueError(f"precision: expected one of {', '.join(get_args(Precision))}, got {precision!r}")
    if precision == "bfloat16" and "avx512_bf16" not in simd_levels():
        raise ValueError("precision: bfloat16 needs a CPU with AVX-512 BF16, use 'float32'")


def multiply_add_rate(precision: Precision = "float32", num_threads: int | None = None, seconds: float = 0.2) -> float:
    """Measures the machine's peak at the SIMD level in use, which a dream's speed is judged by.

    Args:
        precision: ``"float32"`` or ``"bfloat16"`` products.
        num_threads: None for as many as there are cores, or OMP_NUM_THREADS if that is less.
        seconds: how long to measure.

    Returns:
        Floating-point operations a second of independent multiply-adds in registers, each counted as two.

    Raises:
        ValueError: an argument does not fit.
    """
    check_precision(precision)
    return _core.multiply_add_rate(precision == "bfloat16", check_threads(num_threads), seconds)
