"""Work for the clusters of the tests, whose workers import this module; without PyTorch."""

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
    """Episodes last as long as their index and their candidate's say, from 5 to 95 ms: they are slept."""

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
class Deed:
    """Squares numbers; does something else with one of them, the first time.

    Attributes:
        folder: Where the process leaves a mark, so that the second time is another.
        what: ``die``, ``lose``, ``hang``, ``fail`` or nothing.
        seconds: What a piece takes.
    """

    folder: Path
    what: str = ""
    seconds: float = 0.0
    needs: Needs = field(default_factory=Needs)

    def open(self, num_threads: int) -> Deed:
        return self

    def __call__(self, number: int) -> tuple[int, int]:
        mark = self.folder / "done"
        if number == 3 and self.what and not mark.exists():
            mark.touch()
            if self.what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "lose":
                raise WorkerLostError("the engine is gone")
            if self.what == "hang":
                time.sleep(600)
            if self.what == "fail":
                raise ValueError("number: expected another one, got 3")
        time.sleep(self.seconds)
        return number**2, os.getpid()

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class ThreadedDeed(Deed):
    """The same, which also returns its node and its number of threads."""

    threads: int = 0

    def open(self, num_threads: int) -> ThreadedDeed:
        return replace(self, threads=num_threads)

    def __call__(self, number: int) -> Any:
        import ray

        return *super().__call__(number), ray.get_runtime_context().get_node_id(), self.threads


@dataclass(frozen=True)
class Unopened:
    """Work that cannot be opened."""

    needs: Needs = field(default_factory=Needs)

    def open(self, num_threads: int) -> Deed:
        raise ValueError("folder: expected one, got none")
