"""Specification of the real environment; does not import Gymnasium."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worldmodels.support.settings import setting


@dataclass(frozen=True)
class EnvSpec:
    """Specification of the real environment."""

    id: str = setting("worldmodels/TakeCover-v0", "Gymnasium id")
    variant: Literal["", "paper", "modern"] = setting(
        "paper", "rules of TakeCover: paper or modern; empty for environments without variants"
    )
    resolution: str = setting(
        "160x120",
        "TakeCover's screen before it is resized to 64x64 (original code: 640x480); empty for other environments",
    )
    backend: Literal["", "gymnasium", "envpool"] = setting(
        "", "gymnasium, envpool, or empty for the fastest one that is installed"
    )
