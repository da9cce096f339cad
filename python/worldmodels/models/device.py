"""Device, precision and per-step seeds of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldmodels.support.cpu import available_cpus
from worldmodels.support.simd import simd_levels


def device() -> torch.device:
    """Return the CUDA device of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def limit_threads() -> None:
    """Limit PyTorch to the CPUs this process may use: PyTorch ignores quotas of control groups."""
    if torch.get_num_threads() > available_cpus():
        torch.set_num_threads(available_cpus())


def autocast(where: torch.device, precision: str) -> torch.autocast:
    """Create an autocast context.

    Args:
        where: Device.
        precision: ``"float32"`` (no autocast), ``"bfloat16"``, or ``"auto"`` for bfloat16 if the device supports it.

    Raises:
        ValueError: The CPU does not support bfloat16.
    """
    return torch.autocast(where.type, torch.bfloat16, enabled=uses_bfloat16(where, precision))


def uses_bfloat16(where: torch.device, precision: str) -> bool:
    """Resolve a precision as :func:`autocast` does, with the same error."""
    has = computes_in_bfloat16(where)
    if precision == "bfloat16" and where.type == "cpu" and not has:
        raise ValueError("precision: expected float32 or auto, as this CPU has no AVX-512 BF16, got bfloat16")
    return has if precision == "auto" else precision == "bfloat16"


def computes_in_bfloat16(where: torch.device) -> bool:
    """Check for bfloat16 arithmetic. A CPU that emulates it trains V ten times slower than in float32."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return where.type == "cpu" and "avx512_bf16" in simd_levels()


def on_device(array: npt.NDArray[Any], where: torch.device) -> Tensor:
    """Move an array to a device; to a GPU asynchronously, from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else tensor


def seed_step(seed: int, stage: str, step: int) -> None:
    """Seed torch for one step, so that a resumed run draws the numbers of an uninterrupted one."""
    word = np.random.SeedSequence([seed, *stage.encode(), step]).generate_state(1, np.uint64)[0]
    value = int(word) >> 1  # NumPy 1 cannot shift a uint64 by an int
    # torch.manual_seed records a stack trace for every GPU backend that is not in use: a millisecond per call
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(value)
