"""The batch scripts of SLURM, with stand-ins for srun, scontrol, ray and torchrun that write down their arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "slurm"
STANDINS = {
    "srun": "echo \"srun $*\" >>log; while [[ $1 == --* ]]; do shift; done; trap 'kill -TERM $task' TERM; "
    '"$@" & task=$!; wait $task; wait $task',
    "scontrol": 'echo "scontrol $*" >>log; if [[ $1 == show ]]; then echo node1; echo node2; fi',
    "ray": 'echo "ray $*" >>log; while [[ $1 != -- ]]; do shift; done; shift; "$@"',
    "torchrun": 'echo "torchrun $*" >>log; exec worldmodels',
    "worldmodels": 'echo "worldmodels $*" >>log; if [[ -e quick ]]; then exit 0; fi; trap "exit 143" TERM; touch up; '
    "for ((k = 0; k < 600; ++k)); do sleep 0.05; done",
}
JOB = {
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_NNODES": "2",
    "SLURM_CPUS_PER_TASK": "16",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_ARRAY_JOB_ID": "777",
    "SLURM_ARRAY_TASK_ID": "3",
}
ARGUMENTS = {
    "run": ["takecover", "--out", "runs/a b"],
    "train": ["train-vae", "--out", "runs/a"],
    "sweep": ["takecover", "--out", "runs/a"],
}


@pytest.fixture
def job(tmp_path):
    """A folder with the stand-ins; starts a script there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STANDINS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    env = {**os.environ, **JOB, "PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}

    def begin(name, *arguments):
        line = ["bash", str(SCRIPTS / f"{name}.sbatch"), *arguments]
        with (tmp_path / "errors").open("w") as errors:
            return subprocess.Popen(line, cwd=tmp_path, env=env, stderr=errors)

    return begin


@pytest.mark.parametrize("name", ARGUMENTS)
def test_scripts_are_bash(name):
    subprocess.run(["bash", "-n", str(SCRIPTS / f"{name}.sbatch")], check=True)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_job_that_ends_by_itself_is_not_queued_again(name, job, tmp_path):
    (tmp_path / "quick").touch()
    assert job(name, *ARGUMENTS[name]).wait(30) == 0
    said = (tmp_path / "log").read_text()
    assert "requeue" not in said
    if name == "run":
        ours = "worldmodels run takecover --out runs/a b --cluster node1:32345"
        assert "srun --ntasks=2 --ntasks-per-node=1 ray symmetric-run --address node1:32345 --min-nodes 2" in said
    elif name == "train":
        ours = "-m -- worldmodels train-vae --out runs/a"
        assert "torchrun --nnodes=2 --nproc-per-node=4 --rdzv-id=12345" in said
        assert "--rdzv-endpoint=node1:32345" in said
    else:
        ours = "worldmodels sweep takecover --out runs/a --only 3"
    assert ours in said
    assert not list(tmp_path.glob("*.pid"))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_sigterm_reaches_the_command_and_queues_the_job_again(name, job, tmp_path):
    process = job(name, *ARGUMENTS[name])
    until = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143, (tmp_path / "errors").read_text()
    assert f"scontrol requeue {'777_3' if name == 'sweep' else '12345'}" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_scripts_say_how_they_are_used(name, job, tmp_path):
    assert job(name).wait(10) == 2
    assert f"{name}.sbatch" in (tmp_path / "errors").read_text()
