"""CPU budget of the process: affinity, control groups, OpenMP."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path


def affinity() -> int:
    """Count the CPUs in the affinity mask of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cgroup_quota(root: Path = Path("/")) -> int | None:
    """Read the CPU quota of the process's control groups, in CPUs, rounded up.

    The smallest quota of the process's group and its ancestors: ``cpu.max`` of version 2, ``cpu.cfs_quota_us`` and
    ``cpu.cfs_period_us`` of version 1.

    Args:
        root: Folder that holds ``proc`` and ``sys``.

    Returns:
        Number of CPUs; None without a quota.
    """
    found = [quota / period for quota, period in _quotas(root) if quota > 0 and period > 0]
    return max(1, math.ceil(min(found))) if found else None


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (quota, period) in microseconds of every group that has a quota."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ("unified", "") if not controllers else (controllers, "cpu", "cpu,cpuacct", "cpuacct,cpu")
        # In a container the path may be the host's. The groups visible from here are still its ancestors.
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


def available_cpus() -> int:
    """Count the CPUs this process may use: the smaller of its affinity and its control groups' quota."""
    return min(affinity(), cgroup_quota() or affinity())


def omp_num_threads() -> int | None:
    """Read the first number of ``OMP_NUM_THREADS``; None if it is unset or invalid."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if not re.fullmatch(r"\s*\+?[0-9]{1,18}\s*(,\s*\+?[0-9]{1,18}\s*)*", value):
        return None
    numbers = [int(number) for number in re.findall(r"[0-9]+", value)]
    return numbers[0] if all(numbers) else None


def default_threads() -> int:
    """Return the default number of threads: :func:`available_cpus`, at most ``OMP_NUM_THREADS``."""
    return min(available_cpus(), omp_num_threads() or available_cpus())


def describe() -> dict[str, str]:
    """Describe :func:`available_cpus` and :func:`default_threads` with the limits behind them."""
    quota, wanted = cgroup_quota(), omp_num_threads()
    limits = f"affinity {affinity()}" + ("" if quota is None else f", cgroup quota {quota}")
    source = "OMP_NUM_THREADS" if wanted is not None and wanted <= available_cpus() else "cores"
    return {"cores": f"{available_cpus()} ({limits})", "threads": f"{default_threads()} ({source})"}
