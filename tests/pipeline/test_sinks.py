"""Sinks: the lines of metrics.jsonl in TensorBoard and in Weights & Biases."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from conftest import interrupt, make_latents, mark_done, toy_config, write_world
from worldmodels.cli import main
from worldmodels.pipeline import evolution, rounds, sinks, stages
from worldmodels.pipeline.config import from_dict, to_dict
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.sinks import numbers


class Recorded:
    """A sink that keeps what it gets."""

    def __init__(self, folder, settings):
        self.folder, self.settings, self.lines, self.images, self.closed = folder, settings, [], [], 0
        Recorded.opened.append(self)

    def write(self, stage, values, step):
        self.lines.append((stage, step, values))

    def write_image(self, stage, name, path, step):
        with Image.open(path) as image:
            self.images.append((stage, name, step, image.format))

    def close(self):
        self.closed += 1


@pytest.fixture
def recorded(monkeypatch):
    Recorded.opened = []
    monkeypatch.setitem(sinks.SINKS, "tensorboard", Recorded)
    return Recorded.opened


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ({"step": 25, "loss": 2, "note": "x", "seconds": 0.5}, (25, {"loss": 2.0, "seconds": 0.5})),
        ({"generation": 3, "steps": 70, "evaluation": None}, (3, {"steps": 70.0})),
        ({"episodes": 8, "mean": float("nan"), "worst": float("-inf"), "best": 1.5}, (8, {"best": 1.5})),
        ({"of": "evolve", "profile": {"ask": 1.0}}, None),
    ],
)
def test_numbers_of_a_line(line, found):
    assert numbers(line) == found


def evolving(folder, **options):
    """A run in which evolve is next."""
    run = Run(folder, toy_config(evolve={"generations": 3, "evaluate_every": 1}), **options)
    if not run.is_done("train_rnn"):
        write_world(run)
        mark_done(run, "check_dream")
    return run


def test_every_line_of_evolve_reaches_the_sink_once_and_results_do_not_change(tmp_path, monkeypatch, recorded):
    with evolving(tmp_path / "plain") as plain:
        plain.run_stage("evolve")
    assert recorded == []
    with monkeypatch.context() as patch, evolving(tmp_path / "logged", log_to=["tensorboard"]) as logged:
        interrupt(patch, evolution, "_save", 2, after=True)
        with pytest.raises(KeyboardInterrupt):
            logged.run_stage("evolve")
    with evolving(tmp_path / "logged") as logged:  # --log may differ on resume
        assert logged.log_to == ()
        logged.run_stage("evolve")
        lines = logged.metrics("evolve")
    (sink,) = recorded
    assert sink.folder == tmp_path / "logged" and sink.settings["evolve"]["generations"] == 3 and sink.closed == 1
    assert [(stage, step) for stage, step, _ in sink.lines] == [("evolve", 1), ("evolve", 2)]
    for line, (_, _, values) in zip(lines, sink.lines, strict=False):
        assert values == {name: line[name] for name in line if name not in ("stage", "generation")}
    name = "evolve/controller.safetensors"
    assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "logged" / name).read_bytes()
    assert "log" not in json.loads((tmp_path / "logged" / "config.json").read_text())


def test_a_complete_stage_opens_no_sink(tmp_path, recorded):
    with evolving(tmp_path, log_to=["tensorboard"]) as run:
        recorded.clear()
        run.run_stage("check_dream")
    assert recorded == []


def test_training_logs_steps_and_image_grids(tmp_path, recorded):
    config = toy_config(train_rnn={"validation_fraction": 0.2, "sequence_length": 4})
    with Run(tmp_path, config, log_to=["tensorboard"]) as run:
        write_world(run)
        run.marker("train_rnn").unlink()
        make_latents([7, 12, 9, 14, 8, 11], latent_size=4).save(run.path("latents", "00000.safetensors"))
        recorded.clear()
        run._sinks.clear()
        run.run_stage("train_rnn")
        lines = run.metrics("train-rnn")
    (sink,) = recorded
    assert [step for _, step, _ in sink.lines] == [line["step"] for line in lines]
    assert {step for _, step, _ in sink.lines} >= {2, 4, 6}
    assert ("train-rnn", "rollouts", 2, "PNG") in sink.images


def test_rounds_have_sinks_of_their_own(tmp_path, monkeypatch, recorded):
    monkeypatch.setattr(rounds, "_follow", lambda run, previous: None)  # reads C, which no stage makes here
    for name in stages.NAMES:
        monkeypatch.setitem(vars(stages.get(name)), "run", lambda run, name=name: run.log(name, step=1, x=2.0) or {})
    with Run(tmp_path, toy_config(rounds={"rounds": 1}), log_to=["tensorboard"]) as run:
        rounds.run_earlier_rounds(run)
    assert [(sink.folder, sink.closed) for sink in recorded] == [(tmp_path / "rounds" / "0", 1)]
    assert [stage for stage, _, _ in recorded[0].lines] == list(stages.NAMES)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_refused_before_any_work(tmp_path, monkeypatch, capsys, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(sinks, "find_spec", lambda package: None if package == name else found(package))
    for arguments in (["run", "takecover"], ["collect"], ["sweep", "takecover"]):
        assert main([*arguments, "--log", name, "--out", str(tmp_path / "run")]) == 1
        assert f"--log: {name} requires `pip install 'worldmodels-rl[{name}]'`" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_an_unknown_sink_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["run", "takecover", "--log", "tensorboard,wanb", "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert "--log: expected one of tensorboard, wandb, got 'wanb'; did you mean 'wandb'?" in err
    with pytest.raises(ValueError, match="--log: expected tensorboard or wandb, got 'mlflow'"):
        Run(tmp_path / "run", toy_config(), log_to=["mlflow"])
    assert not (tmp_path / "run").exists()


def test_settings_of_older_runs_are_read():
    values = to_dict(toy_config())
    values["train_vae"]["tensorboard"] = values["train_rnn"]["tensorboard"] = True
    assert from_dict(values) == toy_config()


def grid(folder):
    path = folder / "grid.png"
    Image.fromarray(np.full((8, 6, 3), (250, 0, 0), np.uint8)).save(path)
    return path


@pytest.mark.filterwarnings("ignore")  # of TensorBoard's own imports
def test_tensorboard_files_have_scalars_and_images_by_stage_and_a_resumed_stage_replaces_its_steps(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, offset in ((1, 0.0), (3, 100.0)):  # the second process resumes after step 2
        board = sinks.TensorBoard(tmp_path, {})
        for step in range(first, 5):
            board.write("train-vae", {"loss": step + offset}, step)
        if first == 1:
            board.write("evolve", {"best": 7.0}, 4)
            board.write_image("train-vae", "reconstructions", grid(tmp_path), 1)
        board.close()

    def events(stage):
        found = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / stage))
        found.Reload()
        return found

    training = events("train-vae")
    assert [(one.step, one.value) for one in training.Scalars("train-vae/loss")] == [
        *((1, 1.0), (2, 2.0), (3, 103.0), (4, 104.0)),
    ]
    (image,) = training.Images("train-vae/reconstructions")
    assert (image.step, image.width, image.height) == (1, 6, 8)
    assert [(one.step, one.value) for one in events("evolve").Scalars("evolve/best")] == [(4, 7.0)]


@pytest.mark.filterwarnings("ignore")  # of wandb's own imports
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "ERROR_REPORTING": "false", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    sink = sinks.WandB(tmp_path, {"evolve": {"generations": 3}})
    sink.write("evolve", {"best": 7.0}, 1)
    sink.write_image("train-vae", "reconstructions", grid(tmp_path), 25)
    assert sink._run.summary["evolve/best"] == 7.0 and sink._run.summary["evolve/count"] == 1
    assert sink._run.summary["train-vae/count"] == 25
    assert (sink._run.project, sink._run.name, sink._run.group) == ("worldmodels", tmp_path.name, tmp_path.name)
    sink.close()
    identity = (tmp_path / "wandb" / "id.txt").read_text()
    (stored,) = tmp_path.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb")
    assert stored.stat().st_size > 0
    assert list(tmp_path.glob(f"wandb/offline-run-*-{identity}/files/media/images/train-vae/*.png"))


def test_names_of_wandb_runs(tmp_path):
    assert sinks._name(tmp_path / "boxing") == ("boxing", "boxing")
    assert sinks._name(tmp_path / "boxing" / "rounds" / "0") == ("boxing/rounds/0", "boxing")
