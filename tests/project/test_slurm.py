"""The batch scripts of SLURM, with stand-ins for its commands, ray and torchrun that write down their arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "slurm"
STANDINS = {
    # As SLURM's, srun kills its tasks when it is terminated.
    "srun": "echo \"srun $*\" >>log; while [[ $1 == --* ]]; do shift; done; trap 'kill -KILL $task' TERM; "
    '"$@" & task=$!; echo $task >task; wait $task',
    "scancel": 'echo "scancel $*" >>log; kill -TERM "$(cat task)"',
    "scontrol": 'echo "scontrol $*" >>log; case "$*" in "show job"*) cat job;; show*) echo node1; echo node2;; esac',
    "ray": 'echo "ray $*" >>log; while [[ $1 != -- ]]; do shift; done; shift; exec "$@"',
    "torchrun": 'echo "torchrun $*" >>log; exec worldmodels',
    "worldmodels": 'echo "worldmodels $*" >>log; if [[ -e status ]]; then exit $(cat status); fi; '
    "trap 'exit 143' TERM; touch up; for ((k = 0; k < 600; ++k)); do sleep 0.05; done",
}
RUNNING = "JobId=12345 JobState=RUNNING PreemptTime=None\n"
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

    (tmp_path / "job").write_text(RUNNING)

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
    (tmp_path / "status").write_text("0")
    assert job(name, *ARGUMENTS[name]).wait(30) == 0
    said = (tmp_path / "log").read_text()
    assert "requeue" not in said
    if name == "run":
        ours = "worldmodels run takecover --out runs/a b --cluster node1:32345"
        assert "ray symmetric-run --address node1:32345 --min-nodes 2 --num-cpus 16 -- bash" in said
    elif name == "train":
        ours = "-m -- worldmodels train-vae --out runs/a"
        assert "torchrun --nnodes=2 --nproc-per-node=4 --rdzv-id=12345" in said
        assert "--rdzv-endpoint=node1:32345" in said
    else:
        ours = "worldmodels sweep takecover --out runs/a --only 3"
    assert ours in said
    # SLURM 22.05 and later give the tasks one CPU unless srun asks for more.
    tasks = "--ntasks=1" if name == "sweep" else "--ntasks=2 --ntasks-per-node=1"
    assert f"srun {tasks} --cpus-per-task=16 " in said
    assert not list(tmp_path.glob("*.pid"))


def stopped(name, job, tmp_path):
    """Send SIGTERM to a script while its command runs; returns what the stand-ins wrote."""
    process = job(name, *ARGUMENTS[name])
    until = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143, (tmp_path / "errors").read_text()
    return (tmp_path / "log").read_text()


def requeued(name):
    return f"scontrol requeue {'777_3' if name == 'sweep' else '12345'}"


@pytest.mark.parametrize("name", ARGUMENTS)
def test_sigterm_reaches_the_command_and_queues_the_job_again(name, job, tmp_path):
    assert requeued(name) in stopped(name, job, tmp_path)


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_cancelled_job_is_not_queued_again(name, state, job, tmp_path):
    (tmp_path / "job").write_text(RUNNING.replace("RUNNING", state))
    assert "requeue" not in stopped(name, job, tmp_path)


@pytest.mark.parametrize(("preempted", "again"), [("2026-11-30T09:20:13", True), ("None", False)])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_only_a_preempted_job_that_fails_is_queued_again(name, preempted, again, job, tmp_path):
    """On preemption SLURM terminates the tasks, not the script."""
    (tmp_path / "status").write_text("1")
    (tmp_path / "job").write_text(RUNNING.replace("None", preempted))
    assert job(name, *ARGUMENTS[name]).wait(30) == 1
    assert (requeued(name) in (tmp_path / "log").read_text()) is again


@pytest.mark.parametrize("name", ARGUMENTS)
def test_scripts_say_how_they_are_used(name, job, tmp_path):
    assert job(name).wait(10) == 2
    assert f"{name}.sbatch" in (tmp_path / "errors").read_text()
