"""`worldmodels list` and `worldmodels status`: read-only, without PyTorch, of damaged files too."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from conftest import environment, mark_done, toy_config
from worldmodels.cli import main
from worldmodels.data.records import Results
from worldmodels.pipeline import tasks
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES, get
from worldmodels.pipeline.status import is_locked, read_score, stage_statuses

SCORES = {"scores": [float(value) for value in range(90, 110)], "mean": 99.5, "std": 5.9, "ci95": [96.7, 102.3]}


def write_results(folder):
    players = {name: {**SCORES, "policy": name} for name in ("before", "random", "collecting")}
    results = {"agent": SCORES, **players, "environment": {}, "versions": {}}
    Results.from_json(results).write(folder / "results.json")


def interrupted(folder):
    """A run that was interrupted in train-rnn, at step 4 of 6."""
    with Run(folder, toy_config()) as run:
        mark_done(run, "collect", "train_vae", "encode")
        run.log("train-rnn", step=2, z=1.0)
        run.log("train-rnn", step=4, z=0.9)
        run.begun("train_rnn").write_text(run.marker("encode").read_text())
    return run


def printed(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_status_of_an_interrupted_run(tmp_path, capsys):
    interrupted(tmp_path / "run")
    before = content(tmp_path)
    out = printed(capsys, "status", tmp_path / "run")
    lines = out.splitlines()
    assert lines[0] == f"{tmp_path / 'run'}: task takecover, preset paper, seed 0"
    rows = {line.split()[0]: line for line in lines[3:11]}
    assert list(rows) == [get(name).command for name in NAMES]
    assert [rows[name].split()[1] for name in ("collect", "train-vae", "encode")] == ["complete"] * 3
    assert rows["train-rnn"].split() == ["train-rnn", "interrupted", "4/6", "steps"]
    assert rows["evolve"].split() == ["evolve", "to", "do"]
    assert lines[-1] == f"`worldmodels run takecover --out {tmp_path / 'run'}` resumes it"
    assert content(tmp_path) == before


def test_status_of_a_complete_run(tmp_path, capsys):
    with Run(tmp_path, toy_config()) as run:
        mark_done(run, *NAMES)
        write_results(tmp_path)
    lines = printed(capsys, "status", tmp_path).splitlines()
    assert lines[-3] == "score: 100 +- 6 (97 to 102), n 20 (steps survived, 95 % interval in parentheses)"
    assert lines[-1] == f"complete; the report is {tmp_path / 'report' / 'index.html'}"


def test_a_running_stage_and_a_failed_one(tmp_path, capsys):
    interrupted(tmp_path)
    assert not is_locked(tmp_path)
    with Run(tmp_path) as run:
        if sys.platform == "linux":
            assert is_locked(tmp_path)
            assert [one.state for one in stage_statuses(run)][3] == "running"
            assert "another process is running it" in printed(capsys, "status", tmp_path)
    path = run.marker("encode")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "summary": {"failure": "too bad"}}))
    out = printed(capsys, "status", tmp_path)
    assert "a model failed its quality check; `worldmodels run takecover --out" in out and "failed" in out


def test_status_of_rounds(tmp_path, capsys):
    with Run(tmp_path, toy_config(rounds={"rounds": 1})) as run:
        first = run.rounds[0]
    with Run(first.folder, first.config) as earlier:
        mark_done(earlier, "collect")
    out = printed(capsys, "status", tmp_path)
    assert f"round 0 of 1: {tmp_path / 'rounds' / '0'}" in out and f"round 1 of 1: {tmp_path}\n" in out


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"settings": 3}', b"\xff\xfe", b"null"])
def test_damaged_files_are_said(tmp_path, capsys, damage):
    run = interrupted(tmp_path / "run")
    write_results(tmp_path / "run")
    run.marker("train_vae").write_bytes(damage)
    with run.path("metrics.jsonl").open("ab") as file:
        file.write(damage + b'\n{"stage": "train-rnn", "step": "five"}\n')
    run.path("results.json").write_bytes(damage)
    out = printed(capsys, "status", tmp_path / "run")
    assert "damaged" in out.splitlines()[4] and "4/6 steps" in out and "score: damaged" in out
    assert "the marker of a stage is damaged" in out.splitlines()[-1]
    listed = printed(capsys, "list", tmp_path)
    assert listed.splitlines()[-1].split()[-1] == "damaged"
    run.path("config.json").write_bytes(damage)
    assert printed(capsys, "list", tmp_path).splitlines()[-1].split() == [str(tmp_path / "run"), "damaged"]
    assert main(["status", str(tmp_path / "run")]) == 1
    assert str(run.path("config.json")) in capsys.readouterr().err


def test_status_without_a_run(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 1
    assert f"{tmp_path}: expected a run folder with config.json, got none" in capsys.readouterr().err
    assert read_score(tmp_path) == ""


def test_list_shows_world_models_presets_and_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = printed(capsys, "list")
    assert "no runs in runs" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["takecover", "1094", "+-", "631", "1056", "to", "1131", "1,100"] in rows
    assert any(row[:4] == ["pendulum", "quick", "10", "minutes"] and row[-1] == "yes" for row in rows)
    assert any(row[:4] == ["takecover", "quick", "19", "minutes"] for row in rows)
    assert any(row[:3] == ["takecover", "pretrained", "4"] and row[-1] == "yes" for row in rows)
    assert ["pendulum", "paper"] in rows
    interrupted(tmp_path / "runs" / "half")
    with Run(tmp_path / "runs" / "whole", toy_config()) as run:
        mark_done(run, *NAMES)
        write_results(run.folder)
    (tmp_path / "runs" / "notes").mkdir()
    rows = [line.split() for line in printed(capsys, "list").splitlines()[-2:]]
    assert rows[0] == ["runs/half", "takecover", "paper", "3/8,", "train-rnn", "interrupted"]
    assert rows[1] == ["runs/whole", "takecover", "paper", "8/8", "100", "+-", "6", "(97", "to", "102),", "n", "20"]
    assert printed(capsys, "list", "runs/whole").splitlines()[-1].split()[0] == "runs/whole"


def test_neither_loads_pytorch(tmp_path):
    interrupted(tmp_path / "run")
    code = f"""
import sys
from worldmodels.cli import main
assert main(["list", {str(tmp_path)!r}]) == main(["status", {str(tmp_path / "run")!r}]) == 0
assert main(["run", "takecover", "--out", {str(tmp_path / "new")!r}, "--dry-run"]) == 0
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.splitlines()[-1] == "False"


def test_status_of_recordings_names_the_next_stage(tmp_path, capsys):
    with Run(tmp_path / "my run", toy_config()) as run:
        mark_done(run, "collect")
    settings = tmp_path / "my run" / "config.json"
    settings.write_text(settings.read_text().replace('"task": "takecover"', '"task": "recordings-2"'))
    line = printed(capsys, "status", tmp_path / "my run").splitlines()[-1]
    assert line.endswith(f"`worldmodels train-vae --out '{tmp_path / 'my run'}'` runs the next stage")
    for command, stage in (("play", "evolve"), ("web", "train-vae")):
        assert main([command, str(tmp_path / "my run")]) == 1
        assert f"`worldmodels {stage} --out '{tmp_path / 'my run'}'`" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        failed = {"failure": "too bad"}
        patch.setattr("worldmodels.pipeline.run.Run._check_gate", lambda *_: None)
        with Run(tmp_path / "my run") as run:
            mark_done(run, "train_vae", summary=failed)
    line = printed(capsys, "status", tmp_path / "my run").splitlines()[-1]
    assert line.endswith(f"`worldmodels encode --out '{tmp_path / 'my run'}' --force` continues anyway")


def test_status_of_models_without_stages(tmp_path, capsys):
    with Run(tmp_path / "run", toy_config()) as run:
        run.path("vae").mkdir()
        run.path("vae", "vae.safetensors").touch()
    line = printed(capsys, "status", tmp_path / "run").splitlines()[-1]
    assert line == f"models without the stages that made them; use them with --world-model {tmp_path / 'run'}"


def test_a_task_that_cannot_be_imported_disables_no_other(tmp_path, capsys, monkeypatch):
    modules = {**tasks._modules(), "broken": "no_such_module"}
    monkeypatch.setattr(tasks, "_modules", lambda: modules)
    assert main(["list", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "takecover" in out and "WARNING: task broken: left out: ModuleNotFoundError" in err
