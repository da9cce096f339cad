"""SIMD levels and precisions of the native core."""

from __future__ import annotations

from typing import Any, Literal, get_args

from worldmodels import _core
from worldmodels.support.validation import check_threads

Precision = Literal["float32", "bfloat16"]


def simd_levels() -> list[str]:
    """List the SIMD levels of this machine, slowest first. The last one is the default.

    The environment variable ``WORLDMODELS_SIMD`` forces a level at the first use.
    """
    return _core.simd_levels()


def simd_level() -> str:
    """Return the name of the SIMD level in use."""
    return _core.simd_level()


def set_simd_level(name: str) -> None:
    """Set the SIMD level of all later calls in this process.

    Args:
        name: Name of the level, one of :func:`simd_levels`.

    Raises:
        ValueError: This machine does not support ``name``.
    """
    _core.set_simd_level(name)


def precisions() -> list[Precision]:
    """List the precisions available at the SIMD level in use."""
    return ["float32", "bfloat16"] if simd_level() == "avx512_bf16" else ["float32"]


def check_precision(precision: Any) -> None:
    """Check that this build and machine support a precision; ValueError otherwise."""
    if not isinstance(precision, str) or precision not in get_args(Precision):
        raise ValueError(f"precision: expected one of {', '.join(get_args(Precision))}, got {precision!r}")
    if precision == "bfloat16" and "avx512_bf16" not in simd_levels():
        raise ValueError("precision: bfloat16 needs a CPU with AVX-512 BF16, use 'float32'")


def multiply_add_rate(precision: Precision = "float32", num_threads: int | None = None, seconds: float = 0.2) -> float:
    """Measure the peak multiply-add rate at the SIMD level in use.

    Args:
        precision: Precision of the products, ``"float32"`` or ``"bfloat16"``.
        num_threads: Number of threads; None for all available CPUs, at most ``OMP_NUM_THREADS``.
        seconds: Duration of the measurement.

    Returns:
        Floating-point operations per second of independent multiply-adds in registers. A multiply-add counts as two.

    Raises:
        ValueError: An argument is out of range.
    """
    check_precision(precision)
    return _core.multiply_add_rate(precision == "bfloat16", check_threads(num_threads), seconds)
