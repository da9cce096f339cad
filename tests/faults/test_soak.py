"""An evolve run that goes on for long: its memory stays flat and no process is left behind.

A few seconds; ``WORLDMODELS_SOAK=3600 pytest -m slow -s tests/faults/test_soak.py`` for an hour.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import environment, gone, processes, start

SECONDS = float(os.environ.get("WORLDMODELS_SOAK", "10"))
SETTINGS = {
    "check-dream.episodes": 1,
    "check-dream.dream-episodes": 2,
    "evolve.generations": 10**9,
    "evolve.popsize": 4,
    "evolve.episodes": 2,
    "evolve.max-steps": 60,
    "evolve.evaluate-every": 20 if SECONDS < 60 else 200,  # the first allocates; each one keeps its mean: 4 KB
    "evolve.evaluate-episodes": 8,
    "evolve.num-threads": 1,
}
GROWTH = 4.0  # MiB from the second quarter to the last


class Sample(NamedTuple):
    """Of one process: resident memory in MiB, open files and threads."""

    memory: float
    files: int
    threads: int


def sample(pid: int) -> Sample:
    about = Path(f"/proc/{pid}")
    lines = dict(line.split(":", 1) for line in (about / "status").read_text().splitlines())
    return Sample(int(lines["VmRSS"].split()[0]) / 1024, len([*(about / "fd").iterdir()]), int(lines["Threads"]))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.timeout(SECONDS + 400)
def test_memory_stays_flat_and_nothing_is_left_behind(tmp_path):
    flags = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    # glibc may keep a freed block on its heap; a block with a mapping of its own is returned when it is freed.
    env = {**environment(), "WM_TEST": str(tmp_path), "MALLOC_MMAP_THRESHOLD_": "65536"}
    process = start("run", "takecover", "--out", "soak", *flags, cwd=tmp_path, env=env)
    lines = tmp_path / "soak" / "metrics.jsonl"
    while not lines.exists() or b'"generation"' not in lines.read_bytes():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    began, samples = time.monotonic(), []
    while (passed := time.monotonic() - began) < SECONDS:
        samples.append(sample(process.pid))
        if len(samples) % 30 == 1:
            memory, files, threads = samples[-1]
            generations = lines.read_bytes().count(b'"generation"')
            print(f"{passed:7.0f} s  {generations:8,} generations  {memory:.1f} MiB, {files} files, {threads} threads")
        time.sleep(min(1.0, SECONDS / 100))
    assert processes(tmp_path) == [process.pid]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert gone(tmp_path)

    quarters = [samples[len(samples) * part // 4 : len(samples) * (part + 1) // 4] for part in range(4)]
    memory = [min(one.memory for one in quarter) for quarter in quarters]  # checkpoints come and go above it
    print("MiB in the quarters:", ", ".join(f"{value:.1f}" for value in memory))
    assert memory[3] - memory[1] < GROWTH
    for name in ("files", "threads"):
        assert max(getattr(one, name) for one in quarters[3]) <= max(getattr(one, name) for one in quarters[1])
    assert lines.read_bytes().count(b'"generation"') > SECONDS / 5  # it went on, on a busy machine too
