"""Batches of shuffled frames in an order that the seed fixes, read ahead of the training that eats them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import connection
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from worldmodels.data.episodes import EpisodeStore

_AHEAD = 3  # batches beyond one per reader


class Order:
    """The frames of every batch: a new permutation every epoch, found again from the step alone.

    Args:
        indices: (N,) frames to shuffle.
        batch: frames in a batch; one that begins at an epoch's end goes on in the next.
        seed: of the permutations.
    """

    def __init__(self, indices: npt.NDArray[np.int64], batch: int, seed: int) -> None:
        self._indices, self._batch, self._seed = indices, batch, seed
        self._epoch, self._permutation = -1, indices

    def _at(self, position: int) -> tuple[npt.NDArray[np.int64], int]:
        epoch, offset = divmod(position, len(self._indices))
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._epoch, self._permutation = epoch, rng.permutation(self._indices)
        return self._permutation, offset

    def epoch(self, step: int) -> int:
        """Whole epochs that are done before a step."""
        return step * self._batch // len(self._indices)

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """(B,) frames of a step's batch."""
        parts: list[npt.NDArray[np.int64]] = []
        position, missing = step * self._batch, self._batch
        while missing:
            permutation, offset = self._at(position)
            parts.append(permutation[offset : offset + missing])
            position += len(parts[-1])
            missing -= len(parts[-1])
        return np.concatenate(parts)


class FrameReader:
    """Iterates over the batches of steps ``first`` to ``last`` - 1, (B, 64, 64, 3) uint8 each, always in order.

    Args:
        store: the open store.
        order: which frames are in which batch.
        first: step to begin with.
        last: step to end before.
        rows: the rows of every batch to read.
        workers: processes that read ahead; 0 for one thread of this process.
    """

    def __init__(
        self,
        store: EpisodeStore,
        order: Order,
        first: int,
        last: int,
        rows: slice = slice(None),
        workers: int = 0,
    ) -> None:
        self._store, self._order, self._rows = store, order, rows
        self._next, self._last = first, last
        self._own = workers == 0
        self._pool: Executor
        if self._own:
            self._pool = ThreadPoolExecutor(1)
        else:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, initializer=_open, initargs=(store.folder,))
        self._pending: deque[Future[npt.NDArray[np.uint8]]] = deque()
        for _ in range(workers + _AHEAD):
            self._submit()

    def _submit(self) -> None:
        if self._next < self._last:
            indices = self._order.batch(self._next)[self._rows]
            self._pending.append(self._pool.submit(self._store.read if self._own else _read, indices))
            self._next += 1

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        try:
            while self._pending:
                frames = self._pending.popleft().result()
                self._submit()
                yield frames
        except BrokenExecutor as error:
            raise RuntimeError(
                "workers: a process that reads frames was killed, perhaps because memory ran out; fewer need less"
            ) from error


_opened: EpisodeStore  # of a reading process


def _open(folder: Path) -> None:
    """Begins a reading process: Ctrl-C is its parent's affair, and it ends when the parent does, however that ends."""
    global _opened
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _opened = EpisodeStore(folder)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _read(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return _opened.read(indices)
