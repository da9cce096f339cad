"""Which real environment is played; imports no Gymnasium."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnvironmentConfig:
    """The real environment."""

    id: str = "worldmodels/TakeCover-v0"
    """Gymnasium id"""
    variant: str = "paper"
    """TakeCover's rule set: paper or modern; empty where there is nothing to choose"""
    resolution: str = "160x120"
    """TakeCover's screen before the resize to 64x64 (the authors': 640x480); empty where there is nothing to choose"""
    backend: str = ""
    """who steps it: gymnasium, envpool, or empty for the fastest that is installed"""
