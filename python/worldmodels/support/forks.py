"""What a fork leaves behind: threads, and locks that they held."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType

_LOADED_BY = os.getpid()
_known: dict[tuple[int, int], RuntimeError | None] = {}  # by process and thread


def check_threads_usable() -> None:
    """Refuses a forked process whose PyTorch would wait forever for threads of its parent.

    Nothing is refused where PyTorch is held to one thread, nor where the thread that forked had used no OpenMP threads.

    Raises:
        RuntimeError: PyTorch's threads, used before the fork, are missing here.
    """
    if os.getpid() == _LOADED_BY:
        return
    import torch

    from worldmodels import _core

    if torch.get_num_threads() == 1:
        return
    key = os.getpid(), threading.get_ident()
    if key not in _known:
        try:
            _core.check_threads_usable()
            _known[key] = None
        except RuntimeError as error:
            _known[key] = error
    if (lost := _known[key]) is not None:
        raise RuntimeError(*lost.args)


class Lock:
    """A lock for the calls of one object, which refuses to wait for a thread that a fork has left behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost = False
        _locks.add(self)

    def __enter__(self) -> None:
        """Waits for the other threads.

        Raises:
            RuntimeError: this process was forked while another thread held the lock.
        """
        if self._lost:
            raise RuntimeError(
                "this process was forked while another thread was using this object, whose state is therefore unknown "
                "here: create objects in the forked process, or start workers with the 'spawn' method"
            )
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        """A copy is a free lock of its own."""
        return Lock, ()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forked() -> None:
    for lock in _locks:
        lock._lost = lock._lock.locked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
