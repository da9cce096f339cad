"""Clusters: processes on this machine or on several that do the independent pieces of a stage.

Nothing of Ray is imported before a cluster is opened.
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
    """The state of a worker is lost, and its piece is to be done by a new one."""


@dataclass(frozen=True)
class Needs:
    """What a node needs for some work.

    Attributes:
        modules: Modules that it imports.
        packages: Packages whose versions, as of :func:`worldmodels.support.versions.versions`, must be the driver's.
        files: Files that it reads, by absolute path, with their sizes in bytes.
        bfloat16: Whether it needs native support for bfloat16.
    """

    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    files: tuple[tuple[str, int], ...] = ()
    bfloat16: bool = False


def with_sizes(files: Sequence[Path]) -> tuple[tuple[str, int], ...]:
    """Return the :attr:`Needs.files` of some files."""
    return tuple((str(path.absolute()), path.stat().st_size) for path in files)


class Handler(Protocol):
    """Work that is open in a worker."""

    def __call__(self, piece: Any, /) -> Any:
        """Do one piece.

        Raises:
            WorkerLostError: The worker must be replaced.
        """

    def close(self) -> None:
        """Free all resources."""


class Work(Protocol):
    """Work whose pieces can be done anywhere and in any order. It is sent to every node once."""

    @property
    def needs(self) -> Needs:
        """What a node needs."""

    def open(self, num_threads: int) -> Handler:
        """Prepare for pieces, in a worker with so many threads."""


class Piece(NamedTuple):
    """A piece of work.

    Attributes:
        size: Expected cost in units of the work, such as episodes.
        data: What the handler gets.
    """

    size: int
    data: Any


class Pieces(Protocol):
    """Pieces that are not handed out yet."""

    def take(self, workers: int) -> Piece | None:
        """Take the next piece for one of so many workers; None if there are none left."""

    def finished(self, piece: Piece, seconds: float) -> None:
        """Note how long a piece took."""


class Queue:
    """:class:`Pieces` of fixed sizes, handed out in their order."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._left = list(pieces)[::-1]

    def take(self, workers: int) -> Piece | None:
        """See :meth:`Pieces.take`."""
        return self._left.pop() if self._left else None

    def finished(self, piece: Piece, seconds: float) -> None:
        """See :meth:`Pieces.finished`."""


class ClusterAddress(NamedTuple):
    """Where a cluster is.

    Attributes:
        workers: Number of workers of a cluster on this machine, 0 for one per core; None to join a running cluster.
        address: ``HOST:PORT`` of the head of a running cluster, or ``"auto"`` for the one this machine belongs to.
    """

    workers: int | None
    address: str = ""


def cluster_address(text: str) -> ClusterAddress:
    """Parse ``local:N``, ``local:auto``, ``auto`` or ``HOST:PORT``; an argument type of the command line.

    Raises:
        argparse.ArgumentTypeError: The text is none of them.
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
    """Return the cluster of the present :func:`use_cluster` block; None outside of one."""
    return _ACTIVE.get()


@contextmanager
def use_cluster(address: ClusterAddress | None) -> Iterator[None]:
    """Open a cluster for the block, and close it; without an address, do nothing.

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


def refusals(name: str, facts: dict[str, Any], ours: dict[str, Any], needs: Needs) -> list[str]:
    """List why a node cannot do some work, or not with bit-identical results.

    Args:
        name: Name of the node.
        facts: Description of the node by :func:`worldmodels.support.cluster_worker.describe`, or ``{"versions": ...}``
            alone from a node with another version of this package.
        ours: ``"versions"`` and ``"simd_level"`` of the driver.
        needs: What the work needs.
    """
    found = []
    for package in ("worldmodels", "python", "machine", "torch", "numpy", *needs.packages):
        wanted, got = (about["versions"].get(package, "none") for about in (ours, facts))
        if package == "python":  # pickles and results do not depend on the patch level
            wanted, got = wanted.rpartition(".")[0], got.rpartition(".")[0]
        if wanted != got:
            found.append(f"{name}: expected {package} {wanted}, as the driver has, got {got}")
        if found and package == "worldmodels":
            return found
    level, levels = ours["simd_level"], facts["simd_levels"]
    if common_level(levels, level) is None:
        found.append(f"{name}: expected a SIMD level with the bits of {level}, the driver's, got {', '.join(levels)}")
    if needs.bfloat16 and "avx512_bf16" not in levels:
        found.append(f"{name}: expected a CPU with AVX-512 BF16, for precision bfloat16, got one without")
    found += [f"{name}: expected to import {module}, got {error}" for module, error in facts["missing"].items()]
    for path, size in needs.files:
        got = facts["files"].get(path)
        if got != size:
            what = "none" if got is None else f"one of {got:,} bytes"
            found.append(f"{name}: expected {path} of {size:,} bytes (on a file system of all nodes), got {what}")
    return found
