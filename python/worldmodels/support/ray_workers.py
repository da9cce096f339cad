"""Worker processes on the nodes of a Ray cluster: start, validation of their nodes, and removal."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from worldmodels.support.cluster import Needs, common_level, validate_node
from worldmodels.support.cluster_scheduling import Worker
from worldmodels.support.profile import phase
from worldmodels.support.ray_actor import worker_class
from worldmodels.support.ray_session import log
from worldmodels.support.simd import simd_level
from worldmodels.support.versions import versions

START_TIMEOUT = 120.0  # seconds for the workers of the nodes to start
REFRESH_INTERVAL = 1.0  # seconds between two refreshes of the list of nodes
_SUPERSEDED_TIMEOUT = 120.0  # seconds after which a worker is removed that still runs a superseded work unit


class WorkerPool:
    """Worker processes of a Ray cluster, one per CPU of every node.

    Args:
        num_threads: Number of threads of a worker.

    Attributes:
        workers: Workers, including those that are starting.
        superseded: Workers that still run a work unit of an earlier run, which another worker has completed; by the
            reference to its result.
        refused: Reason why a node is refused, by id of the node.
        levels: SIMD level of a validated node, by id of the node.
    """

    def __init__(self, num_threads: int) -> None:
        self.workers: list[Worker] = []
        self.superseded: dict[Any, Worker] = {}
        self.refused: dict[str, str] = {}
        self.levels: dict[str, str] = {}
        self._num_threads = num_threads
        self._needs = Needs()
        self._checked: set[str] = set()  # nodes for whose description `validate_nodes` has waited
        self._refreshed_at = -REFRESH_INTERVAL

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return Ray's description of every living node that has a CPU, by id of the node."""
        return {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1}

    def refresh(self) -> None:
        """Start workers on new nodes, and remove those of nodes that have left; at most once per interval."""
        if time.monotonic() - self._refreshed_at < REFRESH_INTERVAL:
            return
        self._refreshed_at = time.monotonic()
        nodes = self.nodes()
        for reference, worker in list(self.superseded.items()):
            if worker.node not in nodes or self._refreshed_at - worker.dispatched_at > _SUPERSEDED_TIMEOUT:
                del self.superseded[reference]
                self.remove(worker)
        self.workers = [worker for worker in self.workers if worker.node in nodes]
        for node, about in nodes.items():
            if node in self.refused:
                continue
            present = sum(worker.node == node for worker in self.workers)
            self.workers += [self._spawn(node) for _ in range(int(about["Resources"]["CPU"]) - present)]

    def request_refresh(self) -> None:
        """Make the next :meth:`refresh` effective, regardless of the interval."""
        self._refreshed_at = -REFRESH_INTERVAL

    def _spawn(self, node: str) -> Worker:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = worker_class().options(num_cpus=1, scheduling_strategy=strategy).remote(self._num_threads)
        return Worker(actor, node, self._request_description(actor))

    def _request_description(self, actor: Any) -> Any:
        """Request the description of a worker's node; return the reference to it."""
        return actor.describe_node.remote(self._needs.modules, tuple(path for path, _ in self._needs.files))

    def name(self, node: str) -> str:
        """Return the name of a node in messages."""
        about = self.nodes().get(node, {})
        host = about.get("NodeManagerHostname", "node")
        return f"{host} ({about.get('NodeManagerAddress', 'gone')}, node {node[:8]})"

    def validate_nodes(self, needs: Needs) -> None:
        """Wait for a worker of every node, and validate the nodes.

        A node that does not answer in time is validated when its workers are ready.

        Args:
            needs: Requirements of a job.

        Raises:
            RuntimeError: A node is refused.
        """
        self.refresh()
        if needs != self._needs:
            self._needs, self.levels = needs, {}
            self._checked.clear()
            self.refused.clear()  # these nodes are validated again when their workers are ready
        order = sorted(self.workers, key=lambda worker: worker.assigned is not None)  # busy workers answer late
        first = {worker.node: worker for worker in reversed(order) if worker.node not in self._checked}
        self._checked.update(first)
        for worker in first.values():
            worker.description = self._request_description(worker.actor)
        problems: dict[str, list[str]] = {}  # by node
        with phase(None):
            pending = [worker.description for worker in first.values()]
            answered, _ = ray.wait(pending, num_returns=len(pending), timeout=START_TIMEOUT) if pending else ([], [])
        for node, worker in first.items():
            try:
                if worker.description in answered:
                    found = self.validate(worker)
                else:
                    found = self._postpone_validation(node)
            except RayError:  # the worker died; a later refresh starts another one
                found = self._postpone_validation(node)
            if found:
                problems[node] = found
        if problems:
            self._checked -= problems.keys()  # the next run validates them again
            raise RuntimeError("\n".join(f"cluster: {problem}" for found in problems.values() for problem in found))

    def _postpone_validation(self, node: str) -> list[str]:
        """Require a new description from every worker of a node before it accepts work units; return no problems."""
        for worker in self.workers:
            if worker.node == node:
                worker.ready, worker.description = False, self._request_description(worker.actor)
        return []

    def validate(self, worker: Worker) -> list[str]:
        """Validate the node of a worker, and choose its SIMD level if it is valid.

        Returns:
            Messages, one per violated requirement; empty for a valid node.

        Raises:
            RayError: The worker died.
        """
        node = worker.node
        description: dict[str, Any] = ray.get(worker.description)
        driver: dict[str, Any] = {"versions": versions(), "simd_level": simd_level()}
        found = validate_node(self.name(node), description, driver, self._needs)
        if not found:
            level, default = common_level(description["simd_levels"], driver["simd_level"]), description["simd_level"]
            assert level is not None
            if level != default:
                log(f"{self.name(node)}: SIMD level {level} instead of {default}, bit-identical to the driver's")
            self.levels[node] = level
        return found

    def refuse(self, node: str, problem: str) -> None:
        """Remove all workers of a node, and start no others until the requirements change."""
        self.refused[node] = problem
        log(f"{problem}; excluded")
        for worker in [worker for worker in self.workers if worker.node == node]:
            self.remove(worker)

    def release(self, reference: Any) -> None:
        """Make a worker idle that has finished a superseded work unit; remove it if it was lost.

        Args:
            reference: Reference to the result of the work unit, a key of :attr:`superseded`.
        """
        worker = self.superseded.pop(reference)
        try:
            if ray.get(reference)[0] == "lost":
                self.remove(worker)
            worker.assigned = None
        except RayError:
            self.remove(worker)

    def remove(self, worker: Worker) -> None:
        """Kill a worker and remove it from the pool."""
        with contextlib.suppress(RayError):
            ray.kill(worker.actor)
        if worker in self.workers:
            self.workers.remove(worker)
