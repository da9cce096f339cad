"""Clusters of Ray: workers on every node, pieces handed out as workers become free, lost pieces done again."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from worldmodels.support.cluster import ClusterAddress, Needs, Piece, Pieces, Work, common_level, refusals
from worldmodels.support.cpu import available_cpus
from worldmodels.support.profile import add_to_profile, phase
from worldmodels.support.ray_session import RaySession, say
from worldmodels.support.simd import simd_level
from worldmodels.support.versions import versions

_START = 120.0  # seconds for the workers of the nodes to start
_REFRESH = 1.0  # seconds between two looks at the nodes
_MAX_RESTARTS = 20  # in one run
_STRAGGLER = 2.0  # multiple of a piece's expected duration after which an idle worker does it too
_SHORT = 1.0  # seconds that are too short for that
_HUNG = 120.0  # seconds after which a worker is replaced whose piece another one has done


class Prepared(NamedTuple):
    """Work that the nodes can get.

    Attributes:
        number: Number of the work, from 1 on.
        pickled: Reference to its pickle.
        needs: What a node needs.
        threaded: Whether one worker of each node does it, with the threads of all its workers.
    """

    number: int
    pickled: Any
    needs: Needs
    threaded: bool


@dataclass(eq=False)
class _Job:
    """A piece that was handed out.

    Attributes:
        piece: Piece.
        workers: Number of workers that do it: two if the first one is late.
        done: Whether its result is there.
    """

    piece: Piece
    workers: int = 0
    done: bool = False


@dataclass(eq=False)
class _Worker:
    """A process on a node.

    Attributes:
        actor: Handle of the process.
        node: Id of the node.
        facts: Reference to the description of the node, until it is there.
        ready: Whether the worker takes pieces.
        job: What it does.
        since: When it began.
    """

    actor: Any
    node: str
    facts: Any
    ready: bool = False
    job: _Job | None = None
    since: float = 0.0


@dataclass
class Usage:
    """How busy the workers were, in seconds.

    Attributes:
        busy: Sum over the workers, or nodes of threaded work, of the time they worked on pieces.
        available: Sum over them of the time they were there for.
        pieces: Number of finished pieces.
    """

    busy: float = 0.0
    available: float = 0.0
    pieces: int = 0

    @property
    def share(self) -> float:
        """Busy fraction."""
        return self.busy / max(self.available, 1e-9)


@dataclass
class _State:
    """State of one :meth:`RayCluster.run`.

    Attributes:
        outstanding: Workers by the reference to their result.
        again: Jobs whose worker was lost.
        open: Number of jobs that are not done.
        exhausted: Whether all pieces have been handed out.
        restarts: Number of workers that died.
        seconds: Sum of the durations of the finished pieces.
        size: Sum of their sizes.
        idle_since: When a worker was last there.
        most: Largest number of workers.
    """

    outstanding: dict[Any, _Worker] = field(default_factory=dict)
    again: list[_Job] = field(default_factory=list)
    open: int = 0
    exhausted: bool = False
    restarts: int = 0
    most: int = 0
    seconds: float = 0.0
    size: int = 0
    idle_since: float = field(default_factory=time.monotonic)


class RayCluster:
    """Workers on this machine, or on all nodes of a running Ray cluster: one per CPU.

    Results do not depend on the number of workers: pieces are pure functions. A worker or node that is lost gets its
    piece done by another one; nodes may join at any time. The cluster of this machine listens on the loopback interface
    alone and ends with this process.

    Args:
        address: Where the cluster is.

    Attributes:
        num_threads: Number of threads of a worker.
        usage: How busy the workers were.

    Raises:
        RuntimeError: The cluster cannot be reached, or does not start; or this process already has a session of Ray.
    """

    def __init__(self, address: ClusterAddress) -> None:
        began = time.monotonic()
        count = address.workers or available_cpus()
        self.num_threads = max(1, available_cpus() // count) if address.workers is not None else 1
        self._workers: list[_Worker] = []
        self._refused: dict[str, str] = {}  # by node
        self._levels: dict[str, str] = {}  # SIMD level by node that has been checked
        self._needs = Needs()
        self._asked: set[str] = set()  # nodes that were waited for
        self._late: dict[Any, _Worker] = {}  # with a piece of an earlier run, by reference to its result
        self._works = self._checked = 0
        self.usage = Usage()
        self._session = RaySession(address, count)
        try:
            self._looked = -_REFRESH
            self._refresh()
        except BaseException:
            self.close()
            raise
        nodes = len(self._nodes())
        where = self._session.name
        if not self._session.is_local:
            where = f"{nodes} node{'s' if nodes > 1 else ''} of {where}"
        seconds = time.monotonic() - began
        count = len(self._workers)
        say(f"{count} worker{'s' if count > 1 else ''} on {where}, Ray {ray.__version__} ({seconds:.1f} s)")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, and the cluster of this machine."""
        self._workers = []
        self._session.close()

    @property
    def num_workers(self) -> int:
        """Number of workers, those that are starting included."""
        return max(1, len(self._workers))

    def threads_of_a_worker(self, threaded: bool) -> int:
        """Return the number of threads with which a worker of the largest node does its pieces."""
        workers = Counter(worker.node for worker in self._workers)
        return self.num_threads * (max(workers.values(), default=1) if threaded else 1)

    def _nodes(self) -> dict[str, dict[str, Any]]:
        """Return the living nodes with CPUs, by id."""
        return {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1}

    def _refresh(self) -> None:
        """Start workers on new nodes, and forget those of nodes that left."""
        if time.monotonic() - self._looked < _REFRESH:
            return
        self._looked = time.monotonic()
        nodes = self._nodes()
        for reference, worker in list(self._late.items()):
            if worker.node not in nodes or self._looked - worker.since > _HUNG:
                del self._late[reference]
                self._remove(worker)
        self._workers = [worker for worker in self._workers if worker.node in nodes]
        for node, about in nodes.items():
            if node in self._refused:
                continue
            present = sum(worker.node == node for worker in self._workers)
            self._workers += [self._spawn(node) for _ in range(int(about["Resources"]["CPU"]) - present)]

    def _spawn(self, node: str) -> _Worker:
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = _worker_class().options(num_cpus=1, scheduling_strategy=place).remote(self.num_threads)
        return _Worker(actor, node, self._ask(actor))

    def _ask(self, actor: Any) -> Any:
        """Ask a worker to describe its node; return the reference to the answer."""
        return actor.describe.remote(self._needs.modules, tuple(path for path, _ in self._needs.files))

    def _name(self, node: str) -> str:
        """Return the name of a node for messages."""
        about = self._nodes().get(node, {})
        host = about.get("NodeManagerHostname", "node")
        return f"{host} ({about.get('NodeManagerAddress', 'gone')}, node {node[:8]})"

    def prepare(self, work: Work, *, threaded: bool = False) -> Prepared:
        """Put a job into Ray's object store, from which each node fetches it once.

        Args:
            work: Job whose work units :meth:`run` distributes.
            threaded: Whether one worker per node runs the work units, with the threads of all its workers.
        """
        self._works += 1
        return Prepared(self._works, ray.put(cloudpickle.dumps(work)), work.needs, threaded)

    def run(self, work: Prepared, pieces: Pieces) -> Generator[tuple[Piece, Any], None, None]:
        """Do pieces of work on all workers.

        Args:
            work: Work.
            pieces: Pieces.

        Yields:
            Every piece once, with its result, in the order in which they are finished.

        Raises:
            RuntimeError: A node that was there in the beginning is refused, or too many workers died.
            Exception: A piece failed; the exception is that of the handler.
        """
        if work.number != self._checked:  # nodes that join later are judged when their workers are ready
            self._check_nodes(work.needs)
            self._checked = work.number
        state = _State()
        last = time.monotonic()
        try:
            while True:
                self._refresh()
                state.most = max(state.most, len(self._workers))
                self._hand_out(work, pieces, state)
                if state.exhausted and state.open == 0:
                    break
                with phase(None):
                    found = self._wait(state)
                now = time.monotonic()
                self.usage.available += (now - last) * sum(worker.ready for worker in self._takers(work))
                last = now
                for reference in found:
                    finished = self._take(reference, pieces, state)
                    if finished is not None:
                        yield finished
        except BaseException:
            for worker in state.outstanding.values():
                self._remove(worker)
            raise
        self._late.update(state.outstanding)

    def _check_nodes(self, needs: Needs) -> None:
        """Wait for a worker of every node, and check the nodes. A node that does not answer is checked later.

        Raises:
            RuntimeError: A node is refused.
        """
        self._refresh()
        if needs != self._needs:
            self._needs, self._levels = needs, {}
            self._asked.clear()
            self._refused.clear()  # they are judged again when their workers are ready
        order = sorted(self._workers, key=lambda worker: worker.job is not None)  # late workers answer late
        first = {worker.node: worker for worker in reversed(order) if worker.node not in self._asked}
        self._asked.update(first)
        for worker in first.values():
            worker.facts = self._ask(worker.actor)
        problems: dict[str, list[str]] = {}  # by node
        with phase(None):
            answers = [worker.facts for worker in first.values()]
            answered, _ = ray.wait(answers, num_returns=len(answers), timeout=_START) if answers else ([], [])
        for node, worker in first.items():
            try:
                found = self._judge(node, worker.facts) if worker.facts in answered else self._ask_again(node)
            except RayError:  # it died; the loop replaces it
                found = self._ask_again(node)
            if found:
                problems[node] = found
        if problems:
            self._asked -= problems.keys()  # the next run asks them again
            raise RuntimeError("\n".join(f"cluster: {problem}" for found in problems.values() for problem in found))

    def _ask_again(self, node: str) -> list[str]:
        """Let the workers of a node describe it before they take pieces; return no reason to refuse it."""
        for worker in self._workers:
            if worker.node == node:
                worker.ready, worker.facts = False, self._ask(worker.actor)
        return []

    def _judge(self, node: str, answer: Any) -> list[str]:
        """List why a node is refused; choose the SIMD level of one that is not."""
        facts: dict[str, Any] = ray.get(answer)
        ours: dict[str, Any] = {"versions": versions(), "simd_level": simd_level()}
        found = refusals(self._name(node), facts, ours, self._needs)
        if not found:
            level = common_level(facts["simd_levels"], ours["simd_level"])
            assert level is not None
            if level != facts["simd_level"]:
                say(f"{self._name(node)}: SIMD level {level} instead of {facts['simd_level']}, for the driver's bits")
            self._levels[node] = level
        return found

    def _takers(self, work: Prepared) -> list[_Worker]:
        """Return the workers that take pieces of some work: all, or one per node, kept while it has a piece."""
        if not work.threaded:
            return self._workers
        late = set(self._late.values())
        order = sorted(self._workers, key=lambda one: (one in late or not one.ready, one.job is None))
        return list({worker.node: worker for worker in reversed(order)}.values())

    def _hand_out(self, work: Prepared, pieces: Pieces, state: _State) -> None:
        """Give every free worker a piece: a lost one, a new one, or one that another worker is late with."""
        takers = self._takers(work)
        for worker in [worker for worker in takers if worker.ready and worker.job is None]:
            threads = self._threads(worker, work)
            share = math.ceil(sum(self._threads(one, work) for one in takers) / threads)
            job = state.again.pop() if state.again else self._next(pieces, share, state)
            job = job or self._straggling(state)
            if job is None:
                return
            job.workers += 1
            worker.job, worker.since = job, time.monotonic()
            arguments = work.number, [work.pickled], job.piece.data, self._levels[worker.node], threads
            state.outstanding[worker.actor.run.remote(*arguments)] = worker

    def _threads(self, worker: _Worker, work: Prepared) -> int:
        """Return the number of threads with which a worker does its pieces."""
        present = sum(one.node == worker.node for one in self._workers) if work.threaded else 1
        return present * self.num_threads

    def _next(self, pieces: Pieces, workers: int, state: _State) -> _Job | None:
        """Take the next piece for one of so many equal workers."""
        piece = None if state.exhausted else pieces.take(workers)
        if piece is None:
            state.exhausted = True
            return None
        state.open += 1
        return _Job(piece)

    def _straggling(self, state: _State) -> _Job | None:
        """Choose a job that takes much longer than expected."""
        if state.size == 0:
            return None
        now, rate = time.monotonic(), state.seconds / state.size
        for worker in sorted(state.outstanding.values(), key=lambda worker: worker.since):
            job = worker.job
            assert job is not None
            limit = max(_SHORT, _STRAGGLER * rate * job.piece.size)
            if now - worker.since > limit and job.workers == 1 and not job.done:
                return job
        return None

    def _wait(self, state: _State) -> list[Any]:
        """Wait until a piece or a worker is ready; return the references of the pieces.

        Raises:
            RuntimeError: There has been no worker for a long time.
        """
        if any(worker.ready for worker in self._workers):
            state.idle_since = time.monotonic()
        elif time.monotonic() - state.idle_since > _START:
            refused = "".join(f"\ncluster: {problem}" for problem in self._refused.values())
            raise RuntimeError(
                f"cluster: expected a free CPU on a node of {self._session.name}, got none for {_START:g} s{refused}"
            )
        starting = {worker.facts: worker for worker in self._workers if not worker.ready}
        waiting = [*state.outstanding, *starting, *self._late]
        if not waiting:
            time.sleep(_REFRESH / 4)
            return []
        found, _ = ray.wait(waiting, num_returns=1, timeout=_REFRESH)
        if found:
            found, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in found:
            if reference in starting:
                self._admit(starting[reference], state)
            elif reference in self._late:
                self._free(reference)
        return [reference for reference in found if reference in state.outstanding]

    def _free(self, reference: Any) -> None:
        """Let a worker take pieces again that has finished one of an earlier run, which another worker had done."""
        worker = self._late.pop(reference)
        try:
            if ray.get(reference)[0] == "lost":
                self._remove(worker)
            worker.job = None
        except RayError:
            self._remove(worker)

    def _admit(self, worker: _Worker, state: _State) -> None:
        """Let a worker take pieces, unless its node is refused or it has died."""
        try:
            problems = [] if worker.node in self._levels else self._judge(worker.node, worker.facts)
        except RayError as error:
            self._replace(worker, state, _reason(error))
            return
        if problems:
            self._refused[worker.node] = problems[0]
            say(f"{problems[0]}; left out")
            for one in [one for one in self._workers if one.node == worker.node]:
                self._remove(one)
            return
        worker.ready = True

    def _take(self, reference: Any, pieces: Pieces, state: _State) -> tuple[Piece, Any] | None:
        """Take the outcome of a piece; None if it is to be done again, or another worker has done it."""
        worker = state.outstanding.pop(reference)
        job, worker.job = worker.job, None
        assert job is not None
        job.workers -= 1
        try:
            outcome, value, seconds, profile = ray.get(reference)
        except RayError as error:
            outcome, value, seconds, profile = "lost", _reason(error), 0.0, {}
        if outcome == "failed":
            if job.done:  # by another worker
                return None
            raise value
        if outcome == "lost":
            self._replace(worker, state, value)
            if not job.done and job.workers == 0:
                state.again.append(job)
            return None
        self.usage.busy += seconds
        add_to_profile(profile)
        if job.done:
            return None
        job.done = True
        state.open -= 1
        self.usage.pieces += 1
        state.seconds, state.size = state.seconds + seconds, state.size + job.piece.size
        pieces.finished(job.piece, seconds)
        return job.piece, value

    def _replace(self, worker: _Worker, state: _State, reason: str) -> None:
        """Remove a worker that died; :meth:`_refresh` starts another one.

        Raises:
            RuntimeError: Too many have died.
        """
        self._remove(worker)
        state.restarts += 1
        if state.restarts > _MAX_RESTARTS + state.most:
            raise RuntimeError(f"cluster: {state.restarts} workers died, the last one: {reason}")
        say(f"{self._name(worker.node)}: a worker died ({reason}); it is replaced")
        self._looked = -_REFRESH

    def _remove(self, worker: _Worker) -> None:
        with contextlib.suppress(RayError):
            ray.kill(worker.actor)
        if worker in self._workers:
            self._workers.remove(worker)


@functools.cache
def _worker_class() -> Any:
    """Return the actor class. It is pickled by value, so that a node with another version of this package answers."""

    class Worker:
        def __init__(self, num_threads: int) -> None:
            import os

            os.environ["OMP_NUM_THREADS"] = str(num_threads)
            self.opened = 0, 0
            self.station: Any = None

        def describe(self, modules: tuple[str, ...], files: tuple[str, ...]) -> dict[str, Any]:
            try:
                from worldmodels.support.cluster_worker import describe
            except ImportError as error:
                try:
                    from worldmodels import __version__ as version
                except ImportError:
                    version = "none"
                return {"versions": {"worldmodels": f"{version} ({error})"}}
            return describe(modules, files)

        def run(self, number: int, work: list[Any], piece: Any, level: str, threads: int) -> Any:
            import ray

            from worldmodels.support.cluster_worker import Station

            self.station = self.station or Station(level)
            pickled = ray.get(work[0]) if (number, threads) != self.opened else b""
            result = self.station.run(number, pickled, piece, threads)
            self.opened = (number, threads) if result[0] == "done" else (0, 0)
            return result

    return ray.remote(Worker)


def _reason(error: Exception) -> str:
    """Return the kind of an error of Ray, whose text has many lines."""
    return type(error).__name__
