"""Worker process of a cluster: runs work units and describes its node."""

from __future__ import annotations

import importlib
import pickle
import time
from pathlib import Path
from typing import Any

from worldmodels.support.cluster import Handler, Job, WorkerLostError
from worldmodels.support.profile import take_profile
from worldmodels.support.simd import set_simd_level, simd_level, simd_levels
from worldmodels.support.versions import versions


def describe_node(modules: tuple[str, ...], files: tuple[str, ...]) -> dict[str, Any]:
    """Describe this node for :func:`worldmodels.support.cluster.validate_node`.

    Args:
        modules: Names of the modules that a job imports.
        files: Absolute paths of the files that a job reads.

    Returns:
        ``"versions"`` by package, ``"simd_levels"`` (slowest first), ``"simd_level"``, ``"missing"`` (error by module
        that cannot be imported) and ``"files"`` (size in bytes by path of an existing file).
    """
    missing = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            missing[module] = f"{type(error).__name__}: {error}"
    sizes = {name: Path(name).stat().st_size for name in files if Path(name).is_file()}
    levels = {"simd_levels": simd_levels(), "simd_level": simd_level()}
    return {"versions": versions(), **levels, "missing": missing, "files": sizes}


class JobRunner:
    """Runner of the work units of one job at a time in this process.

    Args:
        level: SIMD level.
    """

    def __init__(self, level: str) -> None:
        set_simd_level(level)
        self._number = self._threads = 0
        self._handler: Handler | None = None

    def run(self, number: int, job: bytes, data: Any, threads: int) -> tuple[str, Any, float, dict[str, float]]:
        """Run a work unit; open its job first if another one is open.

        Args:
            number: Number of the job, counted from 1.
            job: Pickle of the :class:`worldmodels.support.cluster.Job`; read only if the job is not open.
            data: Data of the work unit.
            threads: Number of threads.

        Returns:
            Outcome (``"done"``, ``"lost"`` or ``"failed"``), its value (the result, a reason or an exception), the
            duration in seconds without the opening of the job, and the seconds of each phase of the profile.
        """
        began = time.perf_counter()
        outcome, value = "done", None
        try:
            if (number, threads) != (self._number, self._threads) or self._handler is None:
                self._close()
                opened: Job = pickle.loads(job)
                for module in opened.needs.modules:  # one of them may register the environment
                    importlib.import_module(module)
                self._handler, self._number, self._threads = opened.open(threads), number, threads
                began = time.perf_counter()
            value = self._handler(data)
        except WorkerLostError as error:
            outcome, value = "lost", str(error)
        except Exception as error:
            outcome, value = "failed", _portable(error)
        return outcome, value, time.perf_counter() - began, take_profile()

    def _close(self) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.close()


def _portable(error: Exception) -> Exception:
    """Return the exception if it can be pickled, else a RuntimeError with its type and message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
