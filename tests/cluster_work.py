"""Jobs and evaluators for the tests of clusters, whose workers import this module; without PyTorch."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldmodels.models.controller import Controller
from worldmodels.rollout.evaluators import EvalResult
from worldmodels.support.cluster import Needs, WorkerLostError

SHAPE = Controller(4, 8, 1)


class SleepingEvaluator:
    """Evaluator that sleeps for 5 to 95 ms per episode, depending on the indices of the candidate and the episode."""

    unit = "naps"
    controller = SHAPE

    def __init__(self, num_threads: int) -> None:
        self.metadata: dict[str, Any] = {}

    def play(
        self, params: Any, episodes: int, *, first_candidate: int = 0, first_episode: int = 0, **_: Any
    ) -> EvalResult:
        rows, columns = np.arange(len(params)) + first_candidate, np.arange(episodes) + first_episode
        lengths = (5 + (37 * rows[:, None] + 61 * columns) % 91).astype(np.int32)
        time.sleep(lengths.sum() / 1000)
        return EvalResult(lengths.astype(np.float32), lengths)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class SquareJob:
    """Job whose work units are numbers to square; the first attempt of number 3 may have a fault.

    Attributes:
        folder: Folder of the mark that the first attempt leaves.
        fault: ``kill`` (the process), ``lose`` (the worker's state), ``hang``, ``fail``, or nothing.
        seconds: Duration of a work unit.
        needs: Requirements on a node.
    """

    folder: Path
    fault: str = ""
    seconds: float = 0.0
    needs: Needs = field(default_factory=Needs)

    def open(self, num_threads: int) -> SquareJob:
        return self

    def __call__(self, number: int) -> tuple[int, int]:
        mark = self.folder / "done"
        if number == 3 and self.fault and not mark.exists():
            mark.touch()
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "lose":
                raise WorkerLostError("the engine is gone")
            if self.fault == "hang":
                time.sleep(600)
            if self.fault == "fail":
                raise ValueError("number: expected another one, got 3")
        time.sleep(self.seconds)
        return number**2, os.getpid()

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class ThreadedSquareJob(SquareJob):
    """The same job, whose results also have the node and the number of threads."""

    threads: int = 0

    def open(self, num_threads: int) -> ThreadedSquareJob:
        return replace(self, threads=num_threads)

    def __call__(self, number: int) -> Any:
        import ray

        return *super().__call__(number), ray.get_runtime_context().get_node_id(), self.threads


@dataclass(frozen=True)
class FailingJob:
    """Job that fails to open."""

    needs: Needs = field(default_factory=Needs)

    def open(self, num_threads: int) -> SquareJob:
        raise ValueError("folder: expected one, got none")
