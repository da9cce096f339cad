"""Ray clusters: dynamic dispatch of work units to workers on every node, with resubmission of lost ones."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, Self

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from worldmodels.support.cluster import ClusterAddress, Job, WorkQueue, WorkUnit
from worldmodels.support.cluster_scheduling import PreparedJob, RunState, Usage, Worker, eligible_workers
from worldmodels.support.cpu import available_cpus
from worldmodels.support.profile import add_to_profile, phase
from worldmodels.support.ray_session import RaySession, log
from worldmodels.support.ray_workers import REFRESH_INTERVAL, START_TIMEOUT, WorkerPool

_MAX_RESTARTS = 20  # in one run, in addition to one per worker


class RayCluster:
    """Workers on this machine, or on all nodes of a running Ray cluster: one per CPU.

    Results do not depend on the number of workers, because work units are pure functions. If a worker dies, its work
    unit is resubmitted. If a worker is a straggler, an idle worker runs the same work unit and the first result counts
    (speculative execution). Nodes may join or leave at any time. A cluster on this machine listens on the loopback
    interface only and ends with this process.

    Args:
        address: Address of the cluster.

    Attributes:
        num_threads: Number of threads of a worker.
        usage: Use of the workers.

    Raises:
        RuntimeError: The cluster cannot be reached or does not start, or this process already has a Ray session.
    """

    def __init__(self, address: ClusterAddress) -> None:
        began = time.monotonic()
        count = address.workers or available_cpus()
        self.num_threads = max(1, available_cpus() // count) if address.workers is not None else 1
        self.usage = Usage()
        self._pool = WorkerPool(self.num_threads)
        self._num_jobs = 0
        self._validated = 0  # number of the last job for which the nodes were validated
        self._session = RaySession(address, count)
        try:
            self._pool.refresh()
        except BaseException:
            self.close()
            raise
        nodes = len(self._pool.nodes())
        where = self._session.name
        if not self._session.is_local:
            where = f"{nodes} node{'s' if nodes > 1 else ''} of {where}"
        seconds = time.monotonic() - began
        count = len(self._pool.workers)
        log(f"{count} worker{'s' if count > 1 else ''} on {where}, Ray {ray.__version__} ({seconds:.1f} s)")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, and with them a cluster on this machine."""
        self._pool.workers = []
        self._session.close()

    @property
    def num_workers(self) -> int:
        """Number of workers, including those that are starting; at least 1."""
        return max(1, len(self._pool.workers))

    def threads_per_worker(self, threaded: bool) -> int:
        """Return the number of threads with which a worker of the largest node runs a work unit.

        Args:
            threaded: Whether one worker per node runs the work units, with the threads of all workers of the node.
        """
        workers = Counter(worker.node for worker in self._pool.workers)
        return self.num_threads * (max(workers.values(), default=1) if threaded else 1)

    def prepare(self, job: Job, *, threaded: bool = False) -> PreparedJob:
        """Put a job into Ray's object store, from which each node fetches it once.

        Args:
            job: Job whose work units :meth:`run` distributes.
            threaded: Whether one worker per node runs the work units, with the threads of all workers of the node.
        """
        self._num_jobs += 1
        return PreparedJob(self._num_jobs, ray.put(cloudpickle.dumps(job)), job.needs, threaded)

    def run(self, job: PreparedJob, queue: WorkQueue) -> Generator[tuple[WorkUnit, Any], None, None]:
        """Run work units of a job on all workers.

        Args:
            job: Job.
            queue: Work units of the job.

        Yields:
            Every work unit once, with its result, in the order of completion.

        Raises:
            RuntimeError: A node is refused that belonged to the cluster at the start, or too many workers died.
            Exception: A work unit failed; the exception is that of the handler.
        """
        if job.number != self._validated:  # nodes that join later are validated when their workers are ready
            self._pool.validate_nodes(job.needs)
            self._validated = job.number
        state = RunState(queue)
        last = time.monotonic()
        try:
            while True:
                self._pool.refresh()
                state.max_workers = max(state.max_workers, len(self._pool.workers))
                self._dispatch(job, state)
                if state.exhausted and state.unfinished == 0:
                    break
                with phase(None):
                    references = self._wait(state)
                now = time.monotonic()
                self.usage.available += (now - last) * sum(worker.ready for worker in self._eligible(job))
                last = now
                for reference in references:
                    completed = self._collect(reference, state)
                    if completed is not None:
                        yield completed
        except BaseException:
            for worker in state.in_flight.values():
                self._pool.remove(worker)
            raise
        self._pool.superseded.update(state.in_flight)

    def _eligible(self, job: PreparedJob) -> Sequence[Worker]:
        """Return the workers to which work units of a job may be dispatched."""
        return eligible_workers(self._pool.workers, self._pool.superseded.values(), threaded=job.threaded)

    def _dispatch(self, job: PreparedJob, state: RunState) -> None:
        """Dispatch a work unit to every idle worker, as long as there are any."""
        eligible = self._eligible(job)
        for worker in [worker for worker in eligible if worker.ready and worker.assigned is None]:
            threads = self._threads(worker, job)
            equal_workers = math.ceil(sum(self._threads(one, job) for one in eligible) / threads)
            scheduled = state.next_unit(equal_workers)
            if scheduled is None:
                return
            scheduled.attempts += 1
            worker.assigned, worker.dispatched_at = scheduled, time.monotonic()
            arguments = job.number, [job.pickled], scheduled.unit.data, self._pool.levels[worker.node], threads
            state.in_flight[worker.actor.run.remote(*arguments)] = worker

    def _threads(self, worker: Worker, job: PreparedJob) -> int:
        """Return the number of threads with which a worker runs work units of a job."""
        present = sum(one.node == worker.node for one in self._pool.workers) if job.threaded else 1
        return present * self.num_threads

    def _wait(self, state: RunState) -> list[Any]:
        """Wait until a work unit ends or a worker starts, at most for a refresh interval.

        Returns:
            References to the results of this run's work units that ended.

        Raises:
            RuntimeError: No worker has been ready for a long time.
        """
        if any(worker.ready for worker in self._pool.workers):
            state.last_ready = time.monotonic()
        elif time.monotonic() - state.last_ready > START_TIMEOUT:
            refused = "".join(f"\ncluster: {problem}" for problem in self._pool.refused.values())
            raise RuntimeError(
                f"cluster: expected a free CPU on a node of {self._session.name}, got none for {START_TIMEOUT:g} s"
                f"{refused}"
            )
        starting = {worker.description: worker for worker in self._pool.workers if not worker.ready}
        pending = [*state.in_flight, *starting, *self._pool.superseded]
        if not pending:
            time.sleep(REFRESH_INTERVAL / 4)
            return []
        found, _ = ray.wait(pending, num_returns=1, timeout=REFRESH_INTERVAL)
        if found:
            found, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        for reference in found:
            if reference in starting:
                self._register(starting[reference], state)
            elif reference in self._pool.superseded:
                self._pool.release(reference)
        return [reference for reference in found if reference in state.in_flight]

    def _register(self, worker: Worker, state: RunState) -> None:
        """Register a started worker for dispatch, unless it has died or its node is refused."""
        try:
            problems = [] if worker.node in self._pool.levels else self._pool.validate(worker)
        except RayError as error:
            self._replace(worker, state, _reason(error))
            return
        if problems:
            self._pool.refuse(worker.node, problems[0])
            return
        worker.ready = True

    def _collect(self, reference: Any, state: RunState) -> tuple[WorkUnit, Any] | None:
        """Collect the outcome of a work unit.

        Returns:
            Work unit and its result; None if the worker was lost, or another worker has completed the work unit.

        Raises:
            RuntimeError: Too many workers died.
            Exception: The work unit failed.
        """
        worker = state.in_flight.pop(reference)
        scheduled, worker.assigned = worker.assigned, None
        assert scheduled is not None
        scheduled.attempts -= 1
        try:
            outcome, value, seconds, profile = ray.get(reference)
        except RayError as error:
            outcome, value, seconds, profile = "lost", _reason(error), 0.0, {}
        if outcome == "failed":
            if scheduled.done:
                return None
            raise value
        if outcome == "lost":
            self._replace(worker, state, value)
            state.resubmit(scheduled)
            return None
        self.usage.busy += seconds
        add_to_profile(profile)
        if scheduled.done:
            return None
        self.usage.units += 1
        state.complete(scheduled, seconds)
        return scheduled.unit, value

    def _replace(self, worker: Worker, state: RunState, reason: str) -> None:
        """Remove a worker that died; the next refresh of the pool starts another one.

        Raises:
            RuntimeError: Too many workers died.
        """
        self._pool.remove(worker)
        state.restarts += 1
        if state.restarts > _MAX_RESTARTS + state.max_workers:
            raise RuntimeError(f"cluster: {state.restarts} workers died, the last one: {reason}")
        log(f"{self._pool.name(worker.node)}: a worker died ({reason}); it is replaced")
        self._pool.request_refresh()


def _reason(error: Exception) -> str:
    """Return the type name of a Ray error, whose message has many lines."""
    return type(error).__name__
