"""How many threads and processes there is room for."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path


def affinity() -> int:
    """CPUs that the scheduler lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cgroup_quota(root: Path = Path("/")) -> int | None:
    """CPUs' worth of time that the process's control groups allow, rounded up; None for no limit.

    The smallest quota of the process's group and the groups above it: ``cpu.max`` of version 2,
    ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` of version 1.

    Args:
        root: Folder that holds ``proc`` and ``sys``.
    """
    found = [quota / period for quota, period in _quotas(root) if quota > 0 and period > 0]
    return max(1, math.ceil(min(found))) if found else None


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """(quota, period) in microseconds of every group that has one."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ("unified", "") if not controllers else (controllers, "cpu", "cpu,cpuacct", "cpuacct,cpu")
        # in a container the path may be the host's: the groups that are seen from here are still its ancestors
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in {root / "sys/fs/cgroup" / mount for mount in mounts}:
            for depth in range(len(parts), -1, -1):
                folder = mount.joinpath(*parts[:depth])
                if controllers:
                    pair = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
                else:
                    pair = _read(folder / "cpu.max") or ""
                if match := re.fullmatch(r"\s*([0-9]+)\s+([0-9]+)\s*", pair):
                    yield int(match[1]), int(match[2])


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None


def cores() -> int:
    """CPUs that this process may use: its affinity, or the quota of its control groups if that is lower."""
    return min(affinity(), cgroup_quota() or affinity())


def omp_num_threads() -> int | None:
    """The first number of ``OMP_NUM_THREADS``; None where it is not set or, as for OpenMP, holds something else."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    numbers = [int(number) for number in re.findall(r"[0-9]+", value)]
    is_list = re.fullmatch(r"\s*\+?[0-9]+\s*(,\s*\+?[0-9]+\s*)*", value) is not None
    return numbers[0] if is_list and all(numbers) else None


def default_threads() -> int:
    """Threads where nobody says how many: one for each of :func:`cores`, at most ``OMP_NUM_THREADS``."""
    return min(cores(), omp_num_threads() or cores())


def describe() -> dict[str, str]:
    """:func:`cores` and :func:`default_threads`, and what limits them."""
    quota, wanted = cgroup_quota(), omp_num_threads()
    limits = f"affinity {affinity()}" + ("" if quota is None else f", cgroup quota {quota}")
    source = "OMP_NUM_THREADS" if wanted is not None and wanted <= cores() else "cores"
    return {"cores": f"{cores()} ({limits})", "threads": f"{default_threads()} ({source})"}
