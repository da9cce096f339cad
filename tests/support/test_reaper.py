"""What a process started is ended with it, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import subprocess, sys, time
from pathlib import Path
from worldmodels.support.reaper import Reaper
reaper = Reaper(Path(sys.argv[1]))
with reaper.marked():
    marked = subprocess.Popen(["sleep", "300"], start_new_session=True)
print(marked.pid, flush=True)
sys.stdin.readline()
reaper.close()
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", ["closed", "killed"])
def test_marked_processes_end_and_the_folder_goes(tmp_path, how):
    folder = tmp_path / "of the process"
    folder.mkdir()
    line = [sys.executable, "-c", CODE, str(folder)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        marked = Path("/proc", owner.stdout.readline().strip(), "stat")
        assert marked.exists() and folder.exists()
        if how == "closed":
            owner.communicate("\n")
        else:
            owner.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not folder.exists()
    assert not marked.exists() or marked.read_text().rpartition(") ")[2].startswith("Z")
