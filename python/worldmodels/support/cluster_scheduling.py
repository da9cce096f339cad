"""Scheduling of work units on the workers of a cluster: state of a run, retries and speculative execution."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from worldmodels.support.cluster import Needs, WorkQueue, WorkUnit

_STRAGGLER_FACTOR = 2.0  # multiple of a work unit's expected duration after which its worker is a straggler
_MIN_STRAGGLER_SECONDS = 1.0  # lower bound of that duration


class PreparedJob(NamedTuple):
    """Job in the object store of a cluster.

    Attributes:
        number: Number of the job, counted from 1.
        pickled: Reference to the pickle of the job.
        needs: Requirements on a node.
        threaded: Whether one worker per node runs the work units, with the threads of all workers of the node.
    """

    number: int
    pickled: Any
    needs: Needs
    threaded: bool


@dataclass(eq=False)
class ScheduledUnit:
    """Work unit that has been dispatched at least once.

    Attributes:
        unit: Work unit.
        attempts: Number of workers that run it; two under speculative execution.
        done: Whether its result has arrived.
    """

    unit: WorkUnit
    attempts: int = 0
    done: bool = False


@dataclass(eq=False)
class Worker:
    """Worker process on a node.

    Attributes:
        actor: Handle of the process.
        node: Id of the node.
        description: Reference to the description of the node.
        ready: Whether the worker accepts work units.
        assigned: Work unit that the worker runs; None if it is idle.
        dispatched_at: Monotonic time in seconds at which that work unit was dispatched.
    """

    actor: Any
    node: str
    description: Any
    ready: bool = False
    assigned: ScheduledUnit | None = None
    dispatched_at: float = 0.0


@dataclass
class Usage:
    """Use of the workers, in worker-seconds; with threaded jobs, one worker counts per node.

    Attributes:
        busy: Time in which workers ran work units.
        available: Time in which workers were ready.
        units: Number of completed work units.
    """

    busy: float = 0.0
    available: float = 0.0
    units: int = 0

    @property
    def utilization(self) -> float:
        """Busy fraction of the available time."""
        return self.busy / max(self.available, 1e-9)


@dataclass
class RunState:
    """State of the work units of one run.

    Attributes:
        queue: Work units that are not dispatched yet.
        in_flight: Busy workers, by the reference to the result of their work unit.
        retries: Work units to resubmit, because their worker was lost.
        unfinished: Number of dispatched work units without a result.
        exhausted: Whether the queue is empty.
        restarts: Number of workers that died.
        max_workers: Largest number of workers so far.
        seconds: Total duration of the completed work units.
        size: Total size of the completed work units.
        last_ready: Monotonic time in seconds at which a worker was last ready.
    """

    queue: WorkQueue
    in_flight: dict[Any, Worker] = field(default_factory=dict)
    retries: list[ScheduledUnit] = field(default_factory=list)
    unfinished: int = 0
    exhausted: bool = False
    restarts: int = 0
    max_workers: int = 0
    seconds: float = 0.0
    size: int = 0
    last_ready: float = field(default_factory=time.monotonic)

    def next_unit(self, num_workers: int) -> ScheduledUnit | None:
        """Choose the work unit of an idle worker: a retry, else one of the queue, else that of a straggler.

        Args:
            num_workers: Number of equally fast workers that share the queue.

        Returns:
            Work unit; None if there is nothing to run.
        """
        if self.retries:
            return self.retries.pop()
        unit = None if self.exhausted else self.queue.take(num_workers)
        if unit is None:
            self.exhausted = True
            return self._straggler()
        self.unfinished += 1
        return ScheduledUnit(unit)

    def _straggler(self) -> ScheduledUnit | None:
        """Choose a work unit for speculative execution: the oldest one that takes much longer than expected."""
        if self.size == 0:
            return None
        now, rate = time.monotonic(), self.seconds / self.size
        for worker in sorted(self.in_flight.values(), key=lambda worker: worker.dispatched_at):
            scheduled = worker.assigned
            assert scheduled is not None
            limit = max(_MIN_STRAGGLER_SECONDS, _STRAGGLER_FACTOR * rate * scheduled.unit.size)
            if now - worker.dispatched_at > limit and scheduled.attempts == 1 and not scheduled.done:
                return scheduled
        return None

    def complete(self, scheduled: ScheduledUnit, seconds: float) -> None:
        """Record the first result of a work unit and its duration."""
        scheduled.done = True
        self.unfinished -= 1
        self.seconds, self.size = self.seconds + seconds, self.size + scheduled.unit.size
        self.queue.record(scheduled.unit, seconds)

    def resubmit(self, scheduled: ScheduledUnit) -> None:
        """Resubmit the work unit of a lost worker, unless it is done or another worker runs it."""
        if not scheduled.done and scheduled.attempts == 0:
            self.retries.append(scheduled)


def eligible_workers(workers: Sequence[Worker], superseded: Collection[Worker], *, threaded: bool) -> Sequence[Worker]:
    """Return the workers to which work units of a job may be dispatched.

    Args:
        workers: All workers.
        superseded: Workers that run a work unit which another worker has completed.
        threaded: Whether one worker per node runs the work units. A busy worker keeps this role on its node.

    Returns:
        All workers, or one per node.
    """
    if not threaded:
        return workers
    avoided = set(superseded)
    order = sorted(workers, key=lambda worker: (worker in avoided or not worker.ready, worker.assigned is None))
    return list({worker.node: worker for worker in reversed(order)}.values())
