"""How many threads and processes: affinity, quotas of control groups, OMP_NUM_THREADS."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from worldmodels import CMAES
from worldmodels.models import device as devices
from worldmodels.support import cpu as threads
from worldmodels.support.validation import check_threads


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/cpu,cpuacct/"
CASES = {
    "none": ({}, None),
    "no limit": ({"proc/self/cgroup": "0::/a\n", V2 + "a/cpu.max": "max 100000\n"}, None),
    "two": ({"proc/self/cgroup": "0::/a\n", V2 + "a/cpu.max": "200000 100000\n"}, 2),
    "rounded up": ({"proc/self/cgroup": "0::/a\n", V2 + "a/cpu.max": "150001 100000\n"}, 2),
    "a tenth": ({"proc/self/cgroup": "0::/a\n", V2 + "a/cpu.max": "10000 100000\n"}, 1),
    "another period": ({"proc/self/cgroup": "0::/a\n", V2 + "a/cpu.max": "30000 10000\n"}, 3),
    "a container's root": ({"proc/self/cgroup": "0::/\n", V2 + "cpu.max": "400000 100000\n"}, 4),
    "a path of the host": ({"proc/self/cgroup": "0::/../../x/y\n", V2 + "cpu.max": "400000 100000\n"}, 4),
    "the parent's is smaller": (
        {"proc/self/cgroup": "0::/a/b/c\n", V2 + "a/cpu.max": "200000 100000", V2 + "a/b/c/cpu.max": "500000 100000"},
        2,
    ),
    "the child's is smaller": (
        {"proc/self/cgroup": "0::/a/b\n", V2 + "a/cpu.max": "800000 100000", V2 + "a/b/cpu.max": "300000 100000"},
        3,
    ),
    "an uncle's is nobody's": ({"proc/self/cgroup": "0::/a/b\n", V2 + "c/cpu.max": "100000 100000"}, None),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a\n",
            V1 + "a/cpu.cfs_quota_us": "250000\n",
            V1 + "a/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "version 1 without a limit": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/a\n",
            V1 + "a/cpu.cfs_quota_us": "-1",
            V1 + "a/cpu.cfs_period_us": "100000",
        },
        None,
    ),
    "version 1 in a container": (
        {
            "proc/self/cgroup": "4:cpu:/docker/0123\n0::/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "600000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        6,
    ),
    "both versions": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/a\n0::/b\n",
            V1 + "a/cpu.cfs_quota_us": "500000",
            V1 + "a/cpu.cfs_period_us": "100000",
            V2 + "unified/b/cpu.max": "200000 100000",
        },
        2,
    ),
    "nonsense": ({"proc/self/cgroup": "what\n::\n0::/a\n", V2 + "a/cpu.max": "much 1", V2 + "cpu.max": "1 0"}, None),
}


@pytest.mark.parametrize(("files", "quota"), CASES.values(), ids=CASES)
def test_quotas_of_control_groups(files, quota, tmp_path):
    assert threads.cgroup_quota(write(tmp_path, files)) == quota


@pytest.fixture
def eight(monkeypatch):
    """A machine of eight cores without a limit."""
    monkeypatch.setattr(threads, "affinity", lambda: 8)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("1", 1),
        ("4,2", 4),
        (" 3 ", 3),
        ("+5", 5),
        ("2 , 1", 2),
        ("64", 8),
        *((value, 8) for value in ("", "0", "-2", "two", "4,x", "4,", ",4", "1.5", "3;", "0,4", "²", "9" * 5000)),
    ],
)
def test_omp_num_threads(value, number, eight):
    eight.setenv("OMP_NUM_THREADS", value)
    assert threads.default_threads() == check_threads(None) == number
    assert CMAES(np.zeros(2), 1.0).num_threads == number
    assert threads.available_cpus() == 8  # processes are no threads
    assert check_threads(6) == 6  # who says how many is not overruled


def test_a_quota_limits_threads_and_processes(eight):
    eight.setattr(threads, "cgroup_quota", lambda: 3)
    assert threads.available_cpus() == threads.default_threads() == check_threads(None) == 3
    assert check_threads(50) == 50
    assert threads.describe() == {"cores": "3 (affinity 8, cgroup quota 3)", "threads": "3 (cores)"}
    eight.setenv("OMP_NUM_THREADS", "2")
    assert threads.describe()["threads"] == "2 (OMP_NUM_THREADS)"
    eight.setattr(threads, "cgroup_quota", lambda: 64)
    assert threads.describe() == {"cores": "8 (affinity 8, cgroup quota 64)", "threads": "2 (OMP_NUM_THREADS)"}
    eight.setenv("OMP_NUM_THREADS", "99")
    eight.setattr(threads, "cgroup_quota", lambda: None)
    assert threads.describe() == {"cores": "8 (affinity 8)", "threads": "8 (cores)"}


def test_pytorch_is_held_to_the_quota(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(devices, "available_cpus", lambda: 1)
        devices.limit_threads()
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(devices, "available_cpus", lambda: 4)
        devices.limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    sys.platform != "linux" or threads.affinity() < 2, reason="counts threads of several cores in /proc"
)
@pytest.mark.parametrize(("value", "started"), [("1", 0), ("2", 2)])
def test_omp_num_threads_counts_threads(value, started):
    code = """
import os, numpy as np, worldmodels as wm
dream = wm.Dream.pretrained("takecover")
before = len(os.listdir("/proc/self/task"))
dream.rollout(np.zeros((16, dream.controller.size)), 16, max_steps=5)
es = wm.CMAES(np.zeros(600), 0.1, popsize=64, gap=1e9)
es.tell(es.ask(), np.arange(64))
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": value}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.strip() == str(started), done.stderr
