"""The command on clusters: the results of one process, and nothing left behind by what goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import time

import numpy as np
import pytest

pytest.importorskip("ray")

from test_kills import contents

from conftest import WHOLE, command, environment, gone, metrics, start, toy_config, write_world
from worldmodels.models.weights import load_tensors
from worldmodels.pipeline.run import Run

GENERATIONS = {"generations": 40, "evaluate_every": 5}


def make_run(folder, **evolve):
    """A run folder with random V and M, in which evolve is next."""
    with Run(folder / "toy", toy_config(evolve={**GENERATIONS, **evolve})) as experiment:
        write_world(experiment)
    return folder / "toy"


def evolved(folder):
    """What evolve wrote: its tensors, its metrics."""
    tensors = {
        (name, key): value.numpy()
        for name in ("checkpoint", "means", "controller")
        for key, value in load_tensors(folder / "evolve" / f"{name}.safetensors")[0].items()
    }
    with Run(folder) as experiment:
        return tensors, metrics(experiment, "evolve")


def check_equal(some, other):
    assert some[0].keys() == other[0].keys()
    for key, value in some[0].items():
        np.testing.assert_array_equal(value, other[0][key], err_msg=str(key))
    assert some[1] == other[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run without evolve, and what evolve writes there in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = make_run(folder)
    shutil.copytree(run, folder / "bare")
    done = command("evolve", "--out", "toy", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "bare", evolved(run)


def begin(folder, mark):
    """Starts evolve on two workers of this machine; returns when three generations are complete."""
    env = {**environment(), "WM_TEST": str(mark)}
    with (folder / "log").open("w") as log:
        options = {"env": env, "stdout": log, "stderr": log, "start_new_session": True}
        process = start("evolve", "--out", "toy", "--cluster", "local:2", cwd=folder, **options)
    lines = folder / "toy" / "metrics.jsonl"
    until = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < until:
        if lines.is_file() and lines.read_text().count('"generation"') >= 3:
            return process
        time.sleep(0.02)
    raise AssertionError((folder / "log").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_stopped_leaves_nothing_and_resumes(tmp_path, undisturbed, how):
    """Killed alone, as when memory runs out; Ctrl-C to its group; SIGTERM, as a scheduler sends it."""
    bare, expected = undisturbed
    shutil.copytree(bare, tmp_path / "toy")
    process = begin(tmp_path, tmp_path)
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    code = process.wait(60)
    said = (tmp_path / "log").read_text()
    assert code == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[how], said
    if how != signal.SIGKILL:
        assert "run the same command again to resume" in said and "Traceback" not in said, said
    assert gone(tmp_path, seconds=90)
    arguments = ["--cluster", "local:1"] if how == signal.SIGKILL else []
    done = command("evolve", "--out", "toy", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_equal(evolved(tmp_path / "toy"), expected)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_whole_run_on_a_cluster_is_that_of_one_process(tmp_path, whole_run):
    """Every file: episodes, latents, models, controllers, scores."""
    env = {**environment(), "WM_TEST": str(tmp_path)}
    process = start(*WHOLE, "--cluster", "local:2", cwd=tmp_path, env=env)
    _, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    assert "2 workers on this machine" in err
    assert gone(tmp_path, seconds=90)
    ours, theirs = contents(tmp_path / "toy"), contents(whole_run[0] / "toy")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if name.endswith(".jsonl") and isinstance(value, list):  # of scores, in the order in which episodes end
            assert sorted(map(repr, value)) == sorted(map(repr, theirs[name])), name
        else:
            assert value == theirs[name], name
    again = command(*WHOLE, cwd=tmp_path)  # the cluster is no setting
    assert again.returncode == 0 and "already complete" in again.stderr


def test_a_head_that_is_not_there(tmp_path):
    began = time.monotonic()
    done = command("play", "takecover", "--cluster", "127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 1 and time.monotonic() - began < 60
    assert "--cluster: expected the head of a Ray cluster at 127.0.0.1:1, got none: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flag_that_is_no_cluster(tmp_path):
    done = command("run", "takecover", "--cluster", "everywhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "--cluster: expected local:N, local:auto, auto or HOST:PORT, got 'everywhere'" in done.stderr


def test_the_gpu_is_not_for_clusters(tmp_path):
    make_run(tmp_path, device="cuda", precision="auto")
    done = command("evolve", "--out", "toy", "--cluster", "local:1", cwd=tmp_path)
    assert done.returncode == 1
    assert "evolve.device: expected cpu, as workers of --cluster use no GPU, got cuda" in done.stderr


def test_tasks_of_srun_are_told_what_to_use(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "2")
    done = command("run", "takecover", cwd=tmp_path)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert (
        "srun: expected one task, got 4 that all run this command (task 2 here); use `srun --ntasks=1`" in done.stderr
    )
