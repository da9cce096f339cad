"""Clusters: processes on one or several machines that run the work units of a job.

Ray is imported only when a cluster is opened.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from worldmodels.support.ray_cluster import RayCluster

#: SIMD levels whose float32 results are bit-identical.
_FUSED = ("avx2", "avx512", "avx512_bf16", "neon")
_MAX_WORKERS = 4_096


class WorkerLostError(RuntimeError):
    """Error of a worker that has lost its state: it is replaced, and its work unit is resubmitted."""


@dataclass(frozen=True)
class Needs:
    """Requirements of a job on a node.

    Attributes:
        modules: Names of the modules that the node imports.
        packages: Names of packages whose versions must be those of the driver; see
            :func:`worldmodels.support.versions.versions`.
        files: Absolute paths of the files that the node reads, with their sizes in bytes.
        bfloat16: Whether the node needs native support for bfloat16.
    """

    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    files: tuple[tuple[str, int], ...] = ()
    bfloat16: bool = False


def with_sizes(files: Sequence[Path]) -> tuple[tuple[str, int], ...]:
    """Return the absolute paths and the sizes in bytes of files, for :attr:`Needs.files`."""
    return tuple((str(path.absolute()), path.stat().st_size) for path in files)


class Handler(Protocol):
    """Job that is open in a worker process."""

    def __call__(self, data: Any, /) -> Any:
        """Run a work unit.

        Args:
            data: :attr:`WorkUnit.data`.

        Returns:
            Result of the work unit, which can be pickled.

        Raises:
            WorkerLostError: The worker has lost its state and must be replaced.
        """

    def close(self) -> None:
        """Release all resources."""


class Job(Protocol):
    """Distributed computation of independent work units, which may run on any worker and in any order.

    A job is pickled and sent to every node once.
    """

    @property
    def needs(self) -> Needs:
        """Requirements on a node."""

    def open(self, num_threads: int) -> Handler:
        """Open the job in a worker process.

        Args:
            num_threads: Number of threads of the worker.
        """


class WorkUnit(NamedTuple):
    """Independent part of a job.

    Attributes:
        size: Expected cost, in a unit of the job such as episodes.
        data: Argument of the :class:`Handler`.
    """

    size: int
    data: Any


class WorkQueue(Protocol):
    """Work units of a job that are not dispatched yet."""

    def take(self, num_workers: int) -> WorkUnit | None:
        """Remove and return the next work unit.

        Args:
            num_workers: Number of equally fast workers that share the queue.

        Returns:
            Work unit; None if the queue is empty.
        """

    def record(self, unit: WorkUnit, seconds: float) -> None:
        """Record the duration of a completed work unit."""


class StaticQueue:
    """:class:`WorkQueue` with a static schedule: the sizes and the order of the work units are fixed.

    Args:
        units: Work units, in the order of dispatch.
    """

    def __init__(self, units: Sequence[WorkUnit]) -> None:
        self._remaining = list(units)[::-1]

    def take(self, num_workers: int) -> WorkUnit | None:
        """See :meth:`WorkQueue.take`."""
        return self._remaining.pop() if self._remaining else None

    def record(self, unit: WorkUnit, seconds: float) -> None:
        """See :meth:`WorkQueue.record`."""


class ClusterAddress(NamedTuple):
    """Address of a cluster.

    Attributes:
        workers: Number of workers of a cluster on this machine, 0 for one per core; None to join a running cluster.
        address: ``HOST:PORT`` of the head of a running cluster, or ``"auto"`` for the one this machine belongs to.
    """

    workers: int | None
    address: str = ""


def cluster_address(text: str) -> ClusterAddress:
    """Parse ``local:N``, ``local:auto``, ``auto`` or ``HOST:PORT``; used as an argument type of the command line.

    Raises:
        argparse.ArgumentTypeError: The text has another form.
    """
    wanted = "expected local:N, local:auto, auto or HOST:PORT"
    host, colon, port = text.rpartition(":")
    if text == "auto":
        return ClusterAddress(None, "auto")
    if host == "local" and port == "auto":
        return ClusterAddress(0)
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", host):
        raise argparse.ArgumentTypeError(f"{wanted}, got {text!r}")
    if host == "local":
        if not 1 <= int(port) <= _MAX_WORKERS:
            raise argparse.ArgumentTypeError(f"{wanted}, with N from 1 to {_MAX_WORKERS}, got {text!r}")
        return ClusterAddress(int(port))
    return ClusterAddress(None, text)


_ACTIVE: ContextVar[RayCluster | None] = ContextVar("cluster", default=None)


def active_cluster() -> RayCluster | None:
    """Return the cluster of the enclosing :func:`use_cluster` block; None outside of such a block."""
    return _ACTIVE.get()


@contextmanager
def use_cluster(address: ClusterAddress | None) -> Iterator[None]:
    """Open a cluster for the duration of the block.

    Args:
        address: Address of the cluster; None for no cluster.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        RuntimeError: The cluster does not start or cannot be reached.
    """
    if address is None:
        yield
        return
    if address.workers is not None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray listens on the loopback interface alone
        if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:  # other users reach that too
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        from worldmodels.support.ray_cluster import RayCluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        text = "--cluster: ray is not installed: pip install 'worldmodels-rl[ray]'"
        raise ModuleNotFoundError(text, name=error.name) from error

    with RayCluster(address) as cluster:
        token = _ACTIVE.set(cluster)
        try:
            yield
        finally:
            _ACTIVE.reset(token)


def common_level(levels: Sequence[str], level: str) -> str | None:
    """Choose the fastest SIMD level of a node whose results are bit-identical to the driver's.

    Args:
        levels: Levels of the node, slowest first.
        level: Level of the driver.

    Returns:
        Name of the level; None if there is none.
    """
    family = _FUSED if level in _FUSED else (level,)
    found = [one for one in levels if one in family]
    return found[-1] if found else None


def validate_node(name: str, description: dict[str, Any], driver: dict[str, Any], needs: Needs) -> list[str]:
    """Check that a node meets the requirements of a job, and that its results are bit-identical to the driver's.

    Args:
        name: Name of the node in the messages.
        description: Description of the node by :func:`worldmodels.support.cluster_worker.describe_node`; only
            ``"versions"`` from a node with another version of this package.
        driver: ``"versions"`` and ``"simd_level"`` of the driver.
        needs: Requirements of the job.

    Returns:
        Messages, one per violated requirement; empty for a valid node.
    """
    found = []
    for package in ("worldmodels", "python", "machine", "torch", "numpy", *needs.packages):
        wanted, got = (about["versions"].get(package, "none") for about in (driver, description))
        if package == "python":  # pickles and results do not depend on the patch level
            wanted, got = wanted.rpartition(".")[0], got.rpartition(".")[0]
        if wanted != got:
            found.append(f"{name}: expected {package} {wanted}, as the driver has, got {got}")
        if found and package == "worldmodels":
            return found
    level, levels = driver["simd_level"], description["simd_levels"]
    if common_level(levels, level) is None:
        found.append(f"{name}: expected a SIMD level bit-identical to the driver's {level}, got {', '.join(levels)}")
    if needs.bfloat16 and "avx512_bf16" not in levels:
        found.append(f"{name}: expected a CPU with AVX-512 BF16, for precision bfloat16, got one without")
    found += [f"{name}: expected to import {module}, got {error}" for module, error in description["missing"].items()]
    for path, size in needs.files:
        got = description["files"].get(path)
        if got != size:
            what = "none" if got is None else f"one of {got:,} bytes"
            found.append(f"{name}: expected {path} of {size:,} bytes (on a file system of all nodes), got {what}")
    return found
