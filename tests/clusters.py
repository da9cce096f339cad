"""Clusters of several nodes on this machine, and dreams for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # simulated nodes listen on the loopback interface
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import pytest

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

from cluster_work import SHAPE
from conftest import make_mdnrnn
from worldmodels import Dream
from worldmodels.rollout.evaluators.dream import DreamEvaluator
from worldmodels.support.cluster import ClusterAddress, use_cluster

STORE = 80 * 2**20  # bytes of a node's object store, about the least that Ray takes


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
