"""Batches of shuffled frames in a reproducible order, prefetched during training."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from worldmodels.data.episodes import EpisodeStore
from worldmodels.support.processes import Owned, describe_exit, spawn

_PREFETCHED = 4  # batches that a reading thread prefetches


class ShuffledBatches:
    """Order of the frames: a new permutation every epoch, a function of the seed and the step alone.

    Args:
        indices: (N,) indices of the frames to shuffle.
        batch: Batch size; a batch at the end of an epoch continues in the next epoch.
        seed: Seed of the permutations.
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
        """Return the number of epochs completed before a step."""
        return step * self._batch // len(self._indices)

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return the (B,) frame indices of a step's batch."""
        parts: list[npt.NDArray[np.int64]] = []
        position, missing = step * self._batch, self._batch
        while missing:
            permutation, offset = self._at(position)
            parts.append(permutation[offset : offset + missing])
            position += len(parts[-1])
            missing -= len(parts[-1])
        return np.concatenate(parts)


class FrameReader(Owned):
    """Iterate over the batches of steps ``first`` to ``last`` - 1, in order, each (B, 64, 64, 3) uint8.

    Args:
        store: Open episode store.
        order: Order of the frames.
        first: First step.
        last: Step after the last one.
        rows: Rows of every batch to read.
        num_workers: Number of processes that prefetch one batch each; 0 for one thread of this process.
    """

    def __init__(
        self,
        store: EpisodeStore,
        order: ShuffledBatches,
        first: int,
        last: int,
        rows: slice = slice(None),
        num_workers: int = 0,
    ) -> None:
        super().__init__("FrameReader")
        self._store, self._order, self._rows = store, order, rows
        self._steps = range(first, last)
        self._thread = ThreadPoolExecutor(1) if num_workers == 0 else None
        self._processes: list[tuple[SpawnProcess, Connection]] = []
        context = multiprocessing.get_context("spawn")
        for worker in range(num_workers):
            ours, theirs = context.Pipe(duplex=False)
            job = (theirs, store.folder, order, self._steps[worker::num_workers], rows)
            process = context.Process(target=_read_ahead, args=job, daemon=True)
            spawn(process)
            theirs.close()  # only the process holds this end, so that the pipe closes when it dies
            self._processes.append((process, ours))

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.owned:
            return
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        for process, pipe in self._processes:
            pipe.close()
            process.kill()
            process.join()

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        self.check_owner()
        return self._of_processes() if self._thread is None else self._of_thread(self._thread)

    def _of_thread(self, thread: ThreadPoolExecutor) -> Iterator[npt.NDArray[np.uint8]]:
        batches = (self._order.batch(step)[self._rows] for step in self._steps)
        pending = deque(thread.submit(self._store.read, batch) for batch in itertools.islice(batches, _PREFETCHED))
        while pending:
            self.check_owner()  # also between two batches
            frames = pending.popleft().result()
            pending.extend(thread.submit(self._store.read, batch) for batch in itertools.islice(batches, 1))
            yield frames

    def _of_processes(self) -> Iterator[npt.NDArray[np.uint8]]:
        for _, (process, pipe) in zip(self._steps, itertools.cycle(self._processes), strict=False):
            self.check_owner()
            try:
                frames = pipe.recv()
            except (EOFError, OSError) as error:
                process.join(10)
                raise RuntimeError(
                    f"num_workers: a process that reads frames died ({describe_exit(process.exitcode)}); "
                    "fewer need less memory"
                ) from error
            if isinstance(frames, Exception):
                raise frames
            yield frames


def _read_ahead(pipe: Connection, folder: Path, order: ShuffledBatches, steps: range, rows: slice) -> None:
    """Worker process: send the batches in turn until the pipe is closed."""
    store = EpisodeStore(folder)
    try:
        for step in steps:
            try:
                frames: npt.NDArray[np.uint8] | Exception = store.read(order.batch(step)[rows])
            except Exception as error:
                frames = error
            pipe.send(frames)
    except OSError:  # the reader has closed the pipe
        pass
