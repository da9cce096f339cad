"""Several processes of one torchrun launch train what one process trains: V and M, with gloo on the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import test_training

from conftest import environment, metrics
from worldmodels.models.weights import load_tensors
from worldmodels.pipeline.run import Run
from worldmodels.training.distributed import Ranks, ranks_from_env

#: float32, so that only the order of sums differs; batches that do not divide evenly; micro-batches in every process.
SETTINGS = {
    "train_vae": {"steps": 4, "batch_size": 5, "micro_batch_size": 2, "checkpoint_every": 2, "precision": "float32"},
    "train_rnn": {
        "steps": 6,
        "batch_size": 3,
        "sequence_length": 4,
        "micro_batch_steps": 4,
        "checkpoint_every": 3,
        "precision": "float32",
    },
}


def torchrun(folder, stage, *flags, processes=2):
    port = 20_000 + os.getpid() % 20_000
    line = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    line += ["-m", "worldmodels", stage.replace("_", "-"), "--out", str(folder), *flags]
    return subprocess.run(line, env=environment(), text=True, capture_output=True, timeout=200)


def check_close(folder, other, stage):
    """All files of a run say what those of another do, up to rounding."""
    for name in (f"{test_training.FILES[stage][0]}.safetensors", "checkpoint.safetensors", "best.safetensors"):
        paths = [run / test_training.FILES[stage][0] / name for run in (folder, other)]
        (tensors, about), (others, about_others) = map(load_tensors, paths)
        assert about.get("step") == about_others.get("step")
        assert about.get("place") == about_others.get("place")
        for key in tensors:
            if not key.startswith("optimizer"):
                difference = (tensors[key] - others[key]).abs()
                # Adam's steps are of one size: where a gradient is about zero, rounding chooses the direction
                assert (difference > 2e-5).double().mean() < 1e-4, key
    with Run(folder) as one:
        lines = metrics(one, stage.replace("_", "-"))
    with Run(other) as two:
        expected = metrics(two, stage.replace("_", "-"))
        assert two.is_done(stage)
    assert [line.keys() for line in lines] == [line.keys() for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        for key, value in line.items():
            assert value == (pytest.approx(wanted[key], rel=1e-3, abs=1e-5) if key != "stage" else wanted[key])


def test_shutdown_ends_the_threads_of_the_process_group(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib\n"
        "from worldmodels.training.distributed import ranks_from_env\n"
        "threads = lambda: [path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "ranks = ranks_from_env()\n"
        "ranks.init()\n"
        "import torch.distributed.nn.functional, torch.optim\n"
        "ranks.broadcast({'a': 1.0})\n"
        "assert any('gloo' in name for name in threads()), threads()\n"
        "ranks.shutdown()\n"
        "assert not any('gloo' in name for name in threads()), threads()\n"
    )
    port = 20_000 + os.getpid() % 20_000
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", str(script)]
    done = subprocess.run(line, env=environment(), text=True, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(SETTINGS))
def test_two_processes_give_what_one_gives_and_go_on_where_one_stopped(tmp_path, stage):
    with test_training.prepare(tmp_path / "one", stage, **SETTINGS[stage]) as experiment:
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        experiment.run_stage(stage)
    done = torchrun(tmp_path / "two", stage)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("validation") == 1  # rank 0 alone says how it goes
    check_close(tmp_path / "two", tmp_path / "one", stage)

    # half by one process, the rest by two
    every = SETTINGS[stage]["checkpoint_every"]
    with test_training.prepare(tmp_path / "three", stage, **SETTINGS[stage]) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            test_training.interrupt(patch, test_training.trainer, "save_tensors", 1, after=True)
            experiment.run_stage(stage)
    _, about = load_tensors(tmp_path / "three" / test_training.FILES[stage][0] / "checkpoint.safetensors")
    assert about["step"] == every
    done = torchrun(tmp_path / "three", stage)
    assert done.returncode == 0, done.stderr
    check_close(tmp_path / "three", tmp_path / "one", stage)

    again = torchrun(tmp_path / "three", stage)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already complete") == 1


def test_the_lock_keeps_another_launch_out(tmp_path):
    with test_training.prepare(tmp_path, "train_rnn") as experiment:
        done = torchrun(tmp_path, "train_rnn")
        assert done.returncode != 0
        assert "another worldmodels process has locked this folder" in done.stderr
        assert not experiment.is_done("train_rnn")


def test_stages_of_one_process_say_so(tmp_path, monkeypatch):
    with test_training.prepare(tmp_path, "train_vae") as experiment:
        experiment.ranks = Ranks(0, 2, 0)
        with pytest.raises(ValueError, match="expected train-vae and train-rnn, which share their batches, got encode"):
            experiment.run_stage("encode")
        experiment.ranks = Ranks()


@pytest.mark.parametrize(("batch", "size"), [(5, 2), (7, 3), (4, 4), (100, 7)])
def test_every_row_is_of_one_rank(batch, size):
    shares = [Ranks(rank, size).shard(batch) for rank in range(size)]
    rows = [row for share in shares for row in range(batch)[share]]
    assert rows == list(range(batch))
    assert max(len(range(batch)[share]) for share in shares) - min(len(range(batch)[share]) for share in shares) <= 1
    with pytest.raises(ValueError, match=f"batch: expected at least one row for each of {size} processes, got"):
        Ranks(0, size).shard(size - 1)


def test_what_torchrun_says_is_read(monkeypatch):
    assert ranks_from_env() == Ranks()
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert ranks_from_env() == Ranks()  # a number alone may be anyone's
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert ranks_from_env() == Ranks(3, 4, 1)
    assert not ranks_from_env().is_main
