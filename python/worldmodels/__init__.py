"""World Models (Ha & Schmidhuber, 2018): learn a dream of a game, evolve a controller inside it, play for real.

Names are loaded when first used, so that `import worldmodels` is quick and needs neither PyTorch nor a game. The
environments are registered with Gymnasium as soon as it is imported, before this package or after it.
"""

from __future__ import annotations

import importlib
import os
from importlib import metadata
from typing import TYPE_CHECKING, Any

from worldmodels import _openmp
from worldmodels import forks as forks  # knows the process that has imported it
from worldmodels.envs import register_with_gymnasium

# Idle OpenMP threads that spin slow every other process of a busy machine, and torch's own threads most of all.
# Only takes effect where no OpenMP runtime is loaded yet.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
_openmp.share()
register_with_gymnasium()

__version__ = metadata.version("worldmodels")

if TYPE_CHECKING:
    from worldmodels.cmaes import CMAES
    from worldmodels.dream import Dream, DreamResult, DreamTrace, World, load_world, set_simd_level, simd_levels
    from worldmodels.models.agent import Agent
    from worldmodels.models.controller import Controller
    from worldmodels.models.mdnrnn import MDNRNN
    from worldmodels.models.vae import ConvVAE

_HOME = {
    "Agent": "worldmodels.models.agent",
    "CMAES": "worldmodels.cmaes",
    "Controller": "worldmodels.models.controller",
    "ConvVAE": "worldmodels.models.vae",
    "Dream": "worldmodels.dream",
    "DreamResult": "worldmodels.dream",
    "DreamTrace": "worldmodels.dream",
    "World": "worldmodels.dream",
    "load_world": "worldmodels.dream",
    "MDNRNN": "worldmodels.models.mdnrnn",
    "set_simd_level": "worldmodels.dream",
    "simd_levels": "worldmodels.dream",
}

__all__ = [
    "CMAES",
    "MDNRNN",
    "Agent",
    "Controller",
    "ConvVAE",
    "Dream",
    "DreamResult",
    "DreamTrace",
    "World",
    "__version__",
    "load_world",
    "set_simd_level",
    "simd_levels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'worldmodels' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME[name]), name)
    except ImportError as error:
        if error.name != "worldmodels._core":
            raise
        if not isinstance(error, ModuleNotFoundError):  # it is there, but something that it needs is not
            raise ImportError(
                f"the native core worldmodels._core cannot be loaded: {error}. For libgomp.so.1, install the system's "
                "OpenMP runtime (Debian: libgomp1) or a PyTorch that brings it under this name (2.7 or newer)",
                name="worldmodels._core",
            ) from error
        raise ImportError(
            "the native core worldmodels._core is missing: install the package with `pip install .` "
            "(in the source folder, Python finds the sources first: run from elsewhere, or install editable with "
            "`pip install --no-build-isolation -e .`)",
            name="worldmodels._core",
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
