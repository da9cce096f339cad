"""Forked processes: threads that are missing in the child, and locks that they held."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Any

_IMPORTED_BY = os.getpid()
_checked: dict[tuple[int, int], RuntimeError | None] = {}  # by process and thread


def check_threads_usable() -> None:
    """Check that PyTorch's thread pool works in this process.

    In a forked process PyTorch waits forever for the threads of its parent. The check passes if PyTorch is limited to
    one thread, or if the forking thread had used no OpenMP threads.

    Raises:
        RuntimeError: PyTorch's threads were used before the fork and are missing in this process.
    """
    if os.getpid() == _IMPORTED_BY:
        return
    import torch

    from worldmodels import _core

    if torch.get_num_threads() == 1:
        return
    key = os.getpid(), threading.get_ident()
    if key not in _checked:
        try:
            _core.check_threads_usable()
            _checked[key] = None
        except RuntimeError as error:
            _checked[key] = error
    if (lost := _checked[key]) is not None:
        raise RuntimeError(*lost.args)


class Lock:
    """Mutex for the calls of one object. In a forked process or a signal handler it raises an error, not a deadlock."""

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()  # knows the thread that holds it
        self._lost = False
        _locks.add(self)

    def __enter__(self) -> None:
        """Acquire the lock.

        Raises:
            RuntimeError: This process was forked while another thread held the lock, or this thread holds it.
        """
        if self._lost:
            raise RuntimeError(
                "this process was forked while another thread was using this object, whose state is therefore unknown "
                "here: create objects in the forked process, or start workers with the 'spawn' method"
            )
        if self._lock._is_owned():
            raise RuntimeError(
                "this object is in the middle of another call of this thread: a signal handler interrupted that call "
                "and must not use the object"
            )
        try:
            self._lock.acquire()
        except BaseException:  # of a signal handler, which runs before or after the acquisition
            if self._lock._is_owned():
                self._lock.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        """Pickle and copy as a new, free lock."""
        return Lock, ()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forked() -> None:
    for lock in _locks:
        if lock._lock._is_owned():
            continue
        lock._lost = not lock._lock.acquire(blocking=False)
        if not lock._lost:
            lock._lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
