"""Versions of the packages that can change a result."""

from __future__ import annotations

import platform
from importlib import metadata

import worldmodels


def versions() -> dict[str, str]:
    """Collect the versions of Python and of the packages that can change a result."""
    found = {"worldmodels": worldmodels.__version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "numpy", "scipy", "gymnasium", "vizdoom", "envpool", "h5py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
