"""World Models (Ha & Schmidhuber, 2018): learn a world model, evolve a controller in its dreams, run it for real.

Names are imported at first use: `import worldmodels` needs neither PyTorch nor a game. It registers the environments
with Gymnasium if that is installed.
"""

from __future__ import annotations

import importlib
import os
from importlib import metadata
from typing import TYPE_CHECKING, Any

from worldmodels.envs.registration import register
from worldmodels.support import forks as forks  # records the process of the import
from worldmodels.support import openmp as _openmp

# Idle OpenMP threads that spin slow down all processes of a busy machine, and torch's own threads most of all.
# The setting takes effect only if no OpenMP runtime is loaded yet.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
_openmp.load_runtime()
register()

__version__ = metadata.version("worldmodels-rl")

if TYPE_CHECKING:
    from worldmodels.cmaes.cmaes import CMAES
    from worldmodels.dream.native import Dream, DreamResult, DreamTrace
    from worldmodels.dream.world_model import WorldModel, load_world_model
    from worldmodels.models.agent import Agent
    from worldmodels.models.controller import Controller
    from worldmodels.models.mdnrnn import MDNRNN
    from worldmodels.models.vae import ConvVAE
    from worldmodels.support.simd import set_simd_level, simd_levels

_HOME = {
    "Agent": "worldmodels.models.agent",
    "CMAES": "worldmodels.cmaes.cmaes",
    "Controller": "worldmodels.models.controller",
    "ConvVAE": "worldmodels.models.vae",
    "Dream": "worldmodels.dream.native",
    "DreamResult": "worldmodels.dream.native",
    "DreamTrace": "worldmodels.dream.native",
    "WorldModel": "worldmodels.dream.world_model",
    "load_world_model": "worldmodels.dream.world_model",
    "MDNRNN": "worldmodels.models.mdnrnn",
    "set_simd_level": "worldmodels.support.simd",
    "simd_levels": "worldmodels.support.simd",
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
    "WorldModel",
    "__version__",
    "load_world_model",
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
        if not isinstance(error, ModuleNotFoundError):  # the core exists, but a library it needs does not
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
