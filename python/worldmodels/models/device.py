"""Where and in which precision PyTorch computes, and the seeds of its steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldmodels.support.cpu import cores
from worldmodels.support.simd import simd_levels


def device() -> torch.device:
    """CUDA where there is one (under torchrun this process's own), else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def limit_threads() -> None:
    """Holds PyTorch to the CPUs that this process may use: it knows the affinity, but no quota of a container."""
    if torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


def autocast(where: torch.device, precision: str) -> torch.autocast:
    """bfloat16 autocast, or nothing for float32; ``"auto"`` for what :func:`computes_in_bfloat16` says.

    Raises:
        ValueError: bfloat16 is asked of a CPU that lacks it.
    """
    has = computes_in_bfloat16(where)
    if precision == "bfloat16" and where.type == "cpu" and not has:
        raise ValueError("precision: expected float32 or auto, as this CPU has no AVX-512 BF16, got bfloat16")
    enabled = has if precision == "auto" else precision == "bfloat16"
    return torch.autocast(where.type, torch.bfloat16, enabled=enabled)


def computes_in_bfloat16(where: torch.device) -> bool:
    """Whether a device has bfloat16 arithmetic; a CPU that emulates it trains V ten times slower than in float32."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return where.type == "cpu" and "avx512_bf16" in simd_levels()


def on_device(array: npt.NDArray[Any], where: torch.device) -> Tensor:
    """An array as a tensor on a device; to a GPU from pinned memory, without waiting for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else tensor


def seed_step(seed: int, stage: str, step: int) -> None:
    """Seeds torch for one step, so that a resumed run draws what an uninterrupted one draws."""
    word = np.random.SeedSequence([seed, *stage.encode(), step]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(word) >> 1)  # NumPy 1 shifts no uint64 by an int
