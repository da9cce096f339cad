"""What a worker of a cluster does, and what it reports of its node."""

from __future__ import annotations

import importlib
import pickle
import time
from pathlib import Path
from typing import Any

from worldmodels.support.cluster import Handler, Work, WorkerLostError
from worldmodels.support.profile import take_profile
from worldmodels.support.simd import set_simd_level, simd_level, simd_levels
from worldmodels.support.versions import versions


def describe(modules: tuple[str, ...], files: tuple[str, ...]) -> dict[str, Any]:
    """Describe this node for :func:`worldmodels.support.cluster.refusals`.

    Args:
        modules: Modules that are to be imported.
        files: Files that are to be read.
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


class Station:
    """The work that is open in this process; one at a time.

    Args:
        level: SIMD level.
    """

    def __init__(self, level: str) -> None:
        set_simd_level(level)
        self._number = self._threads = 0
        self._handler: Handler | None = None

    def run(self, number: int, work: bytes, piece: Any, threads: int) -> tuple[str, Any, float, dict[str, float]]:
        """Do one piece.

        Args:
            number: Number of the work, from 1 on.
            work: Pickle of the :class:`Work`.
            piece: Data of the piece.
            threads: Number of threads.

        Returns:
            ``"done"`` and the result, ``"lost"`` and a reason, or ``"failed"`` and an exception; the seconds it took,
            and the profile.
        """
        began = time.perf_counter()
        state, value = "done", None
        try:
            if (number, threads) != (self._number, self._threads) or self._handler is None:
                self._close()
                opened: Work = pickle.loads(work)
                for module in opened.needs.modules:  # one of them may register the environment
                    importlib.import_module(module)
                self._handler, self._number, self._threads = opened.open(threads), number, threads
                began = time.perf_counter()
            value = self._handler(piece)
        except WorkerLostError as error:
            state, value = "lost", str(error)
        except Exception as error:
            state, value = "failed", _portable(error)
        return state, value, time.perf_counter() - began, take_profile()

    def _close(self) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.close()


def _portable(error: Exception) -> Exception:
    """Return an exception that can be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
