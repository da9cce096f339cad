"""Work for clusters of the tests, whose workers import this module; and clusters of several nodes on this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # simulated nodes listen on the loopback interface
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import pytest

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

from conftest import make_mdnrnn
from worldmodels import Controller, Dream
from worldmodels.rollout.evaluators import EvalResult
from worldmodels.rollout.evaluators.dream import DreamEvaluator
from worldmodels.support.cluster import ClusterAddress, Needs, WorkerLostError, use_cluster

STORE = 80 * 2**20  # bytes of a node's object store, about the least that Ray takes
SHAPE = Controller(4, 8, 1)


@contextmanager
def nodes(*cpus: int) -> Iterator[Cluster]:
    """A Ray cluster of several nodes on this machine."""
    cluster = Cluster(initialize_head=True, head_node_args=node(cpus[0]))
    try:
        for count in cpus[1:]:
            cluster.add_node(**node(count))
        yield cluster
    finally:
        cluster.shutdown()


def node(cpus: int, **env: str) -> dict[str, Any]:
    """Arguments of a node."""
    env = {"PYTHONPATH": os.pathsep.join(sys.path), **env}  # the folders of the tests are there
    quick = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    return {"num_cpus": cpus, "object_store_memory": STORE, "env_vars": env, **quick}


@contextmanager
def joined(cluster: Cluster) -> Iterator[Any]:
    """The package's view of a cluster, and this process one of its drivers."""
    from worldmodels.support.cluster import active_cluster

    with use_cluster(ClusterAddress(None, cluster.address)):
        yield active_cluster()


def make_dream(**options: Any) -> Dream:
    """A dream whose episodes last 1 to 200 steps."""
    rng = np.random.default_rng(0)
    starts = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(7, 4)).astype(np.float32)
    return Dream(make_mdnrnn(), *starts, SHAPE, **{"max_steps": 200, "termination": "sample", **options})


def make_dreams() -> Any:
    """Makes the evaluator of dreams in a worker."""
    return partial(DreamEvaluator, make_dream())


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
