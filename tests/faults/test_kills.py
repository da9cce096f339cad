"""kill -9 and Ctrl-C at random moments of a whole run: what was saved stays, the finished run is the undisturbed one.

A few kills; ``WORLDMODELS_KILLS=100 pytest -m slow -s tests/faults/test_kills.py`` for a hundred.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from conftest import WHOLE, command, environment, gone, start
from worldmodels.data.episodes import EpisodeShard
from worldmodels.data.latents import load_latents
from worldmodels.models.weights import load_tensors
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES
from worldmodels.support.files import read_json

KILLS = int(os.environ.get("WORLDMODELS_KILLS", "3"))
AT_MOST = 16  # in one run


def said(log, stage):
    return stage.replace("_", "-") + "  already complete" in log.read_text()


def begun(run, log, stage, since):
    """Whether the process that was started at ``since`` has come to a stage."""
    number = NAMES.index(stage)
    before = run / "stages" / f"{NAMES[number - 1]}.json" if number else run / "config.json"
    return before.is_file() and (before.stat().st_mtime_ns > since or (number > 0 and said(log, NAMES[number - 1])))


def done(run):
    return [stage for stage in NAMES if (run / "stages" / f"{stage}.json").is_file()]


def stop_in(folder, stage, delay, how=signal.SIGKILL, *, alone=False):
    """Runs and stops ``delay`` seconds after the stage has begun; returns the stage that was hit, None if all was done.

    A stage that ends sooner, as on a machine that is busy at one time and idle at another, is stopped at its end.

    Args:
        how: the signal; SIGINT is Ctrl-C, which must be answered at once and without a traceback.
        alone: only the process itself is told, as Linux does when memory runs out; else its whole group, as a
            terminal does.
    """
    run, log = folder / "toy", folder / "log"
    since = time.time_ns()
    env = {**environment(), "WM_TEST": str(folder)}
    with log.open("w") as file:
        options = {"stdout": subprocess.DEVNULL, "stderr": file, "start_new_session": True}
        process = start(*WHOLE, cwd=folder, env=env, **options)
    while process.poll() is None and not begun(run, log, stage, since):
        time.sleep(0.005)
    until = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < until and not (run / "stages" / f"{stage}.json").is_file():
        time.sleep(0.005)
    if process.poll() is not None:
        assert process.returncode == 0, log.read_text()
        return None
    (os.kill if alone else os.killpg)(process.pid, how)
    code = process.wait(60)
    complete = done(run)
    assert complete == list(NAMES[: len(complete)])
    if len(complete) == len(NAMES):
        return "the end"
    if how == signal.SIGINT:
        assert code == 130 and "interrupted; run the same command again" in log.read_text(), log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
    return NAMES[len(complete)]


def saved(run):
    """Reads all that a run has saved: what may never change again, and what may only grow."""
    fixed: dict[str, bytes] = {}
    grows: dict[str, Any] = {}
    for path in sorted(run.glob("episodes/*.h5")):
        shard = EpisodeShard(path)
        assert len(shard.frames[:]) == shard.lengths.sum()
        shard.close()
    if any(run.glob("latents/*.safetensors")):
        load_latents(run / "latents")
    markers = [run / "stages" / f"{stage}.json" for stage in done(run)]
    for path in [*markers, *run.glob("episodes/*.h5"), *run.glob("latents/*.safetensors")]:
        fixed[str(path)] = path.read_bytes()
    for folder in ("vae", "rnn", "evolve"):
        for path in (run / folder).glob("*.safetensors"):
            _, about = load_tensors(path)
            if path.stem == "checkpoint":
                grows[str(path)] = about.get("step", about.get("generation"))
    for path in [*run.glob("evaluate/*.jsonl"), *run.glob("metrics.jsonl")]:
        *lines, _cut = path.read_text().split("\n")
        found = [json.loads(line) for line in lines]
        if path.parent.name == "evaluate":
            grows[str(path)] = {line["episode"]: line["score"] for line in found[1:]}.items()
    with Run(run) as experiment:  # the lock is free, the settings can be read
        for stage in done(run):
            assert experiment.is_done(stage)
    return fixed, grows


def contents(run):
    """Every file of a finished run; without the seconds that things took, with scores in order and frames unpacked.

    LZF packs the same frame in one way or another: its table of what it has seen begins with what lies in memory.
    """
    found: dict[str, Any] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock"):
        name = str(path.relative_to(run))
        if path.parent.name == "stages":
            found[name] = {key: read_json(path)[key] for key in ("stage", "settings", "summary", "versions")}
            found[name]["summary"].pop("bytes", None)
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            lines = [line for line in lines if line.get("stage") != "profile"]
            found[name] = [{key: line[key] for key in line if key != "seconds"} for line in lines]
            if path.parent.name == "evaluate":
                found[name][1:] = sorted(found[name][1:], key=lambda line: line["episode"])
        elif path.suffix == ".h5":
            with h5py.File(path) as file:
                found[name] = {key: (data.dtype.str, data.shape, data[()].tobytes()) for key, data in file.items()}
        elif path.suffix == ".html":
            found[name] = re.sub(r"\b[\d,]+ s(?=<)|Made on [\d-]+", "", path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.timeout(120 + 120 * AT_MOST)
@pytest.mark.parametrize("number", range(-(-KILLS // AT_MOST)))
def test_killed_at_random_moments_a_run_ends_like_one_that_was_not(tmp_path, whole_run, number):
    rng = np.random.default_rng(number)
    undisturbed = whole_run[0] / "toy"
    expected = contents(undisturbed)
    lasts = {stage: read_json(undisturbed / "stages" / f"{stage}.json")["seconds"] for stage in NAMES}
    run = tmp_path / "toy"
    before: tuple[dict[str, bytes], dict[str, Any]] = ({}, {})
    for chosen in np.sort(np.resize(rng.permutation(len(NAMES)), min(KILLS - AT_MOST * number, AT_MOST))):
        complete = done(run)
        stage = NAMES[max(chosen, len(complete))] if len(complete) < len(NAMES) else NAMES[-1]
        delay, alone = rng.uniform(0, lasts[stage]), bool(rng.integers(2))
        hit = stop_in(tmp_path, stage, delay, alone=alone)
        print(f"run {number}: {hit or 'nothing'} hit {delay:.2f} s into {stage}{', alone' * alone}", flush=True)
        assert gone(tmp_path, seconds=30)
        now = saved(run)
        assert before[0].items() <= now[0].items()
        assert all(now[1][name] >= value for name, value in before[1].items())
        before = now
    check_end(tmp_path, expected)


def check_end(folder, expected):
    """The run goes on to its end, and its files are those of a run that was not disturbed."""
    last = command(*WHOLE, cwd=folder, timeout=280)
    assert last.returncode == 0, last.stderr
    found = contents(folder / "toy")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert sorted(path.name for path in folder.iterdir()) == ["log", "toy"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.timeout(900)
def test_ctrl_c_in_every_stage_is_answered_and_a_run_ends_like_one_that_was_not(tmp_path, whole_run):
    rng = np.random.default_rng(0)
    undisturbed = whole_run[0] / "toy"
    hit = []
    for stage in NAMES:
        lasts = read_json(undisturbed / "stages" / f"{stage}.json")["seconds"]
        hit.append(stop_in(tmp_path, stage, rng.uniform(0, 0.8 * lasts), signal.SIGINT))
        print(f"{hit[-1] or 'nothing'} interrupted", flush=True)
        assert gone(tmp_path, seconds=30)
        saved(tmp_path / "toy")
    assert len(set(hit) - {None, "the end"}) >= len(NAMES) // 2, hit  # a busy machine may be late
    check_end(tmp_path, contents(undisturbed))
