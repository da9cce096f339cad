"""Studies at toy size: every variant is a run folder of its own, and what they share is there once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from conftest import copy_linked, make_latents, mark_done, toy_config, write_world
from worldmodels import Controller, load_world_model, pretrained
from worldmodels.analysis.stats import describe
from worldmodels.cli import main
from worldmodels.data.records import SweepResult
from worldmodels.models.agent import Agent, load_controller
from worldmodels.pipeline import evaluation, studies, tasks
from worldmodels.pipeline.config import override
from worldmodels.pipeline.run import Run
from worldmodels.rollout import environments as play
from worldmodels.support.files import read_json


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run folder with V and M."""
    folder = tmp_path_factory.mktemp("base")
    with Run(folder, toy_config()) as experiment:
        write_world(experiment)
    sheet = folder / "vae" / "sheets" / "epoch_0001.png"  # training draws one every epoch
    sheet.parent.mkdir()
    sheet.write_bytes(b"drawn")
    return folder


@pytest.fixture
def unrecorded(monkeypatch):
    """No recording of the agent: a study does not read it."""
    monkeypatch.setattr(evaluation, "_record", lambda _: None)


def with_two_baselines(task, **changes):
    """A task with the baselines that no study can do without."""
    baselines = {name: task.baselines[name] for name in ("random", "collecting")}
    policies = {name: task.policies[name] for name in baselines.values()}
    return dataclasses.replace(task, baselines=baselines, policies=policies, **changes)


@pytest.mark.slow
def test_rows_of_a_sweep_run_apart(tmp_path, base, unrecorded, capsys):
    """By several processes, none of which holds the lock of the run folder; the last call makes the table of them."""
    folder = copy_linked(base, tmp_path / "run")
    with pytest.raises(ValueError, match=r"^--only: expected an integer from 0 to 2, got 3"):
        studies.sweep(folder, toy_config(), [0.1, 1.3], only=3)
    assert studies.sweep(folder, toy_config(), [0.1, 1.3], only=0) == []
    assert not (folder / "temperatures").exists()
    with Run(folder):  # another process
        assert studies.sweep(folder, toy_config(), [0.1, 1.3], only=2) == []
    assert [path.name for path in (folder / "temperatures").iterdir()] == ["1.3"]
    studies.sweep(folder, toy_config(), [0.1, 1.3], only=1)
    results = {name: (folder / "temperatures" / name / "results.json").read_bytes() for name in ("0.1", "1.3")}
    capsys.readouterr()
    gathered = studies.sweep(folder, toy_config(), [0.1, 1.3])
    assert [result.temperature for result in gathered] == [0.1, 1.3]
    assert capsys.readouterr().err.count("already complete") > 8
    for name, before in results.items():
        assert (folder / "temperatures" / name / "results.json").read_bytes() == before
    assert (folder / "temperatures" / "sweep.json").is_file()


def test_variants_of_other_settings_are_found_before_anything_is_trained(tmp_path, base, monkeypatch):
    folder = copy_linked(base, tmp_path / "run")
    for name in ("0.1", "1.3"):
        settings = override(toy_config(collect={"episodes": 7}), {"evolve": {"temperature": float(name)}})
        with Run(folder / "temperatures" / name, settings) as experiment:
            mark_done(experiment, "collect")
    monkeypatch.setattr(studies, "_run_shared", None)
    expected = (
        r"temperatures/0\.1, .*temperatures/1\.3: made with other settings: .*collect is complete with other settings"
    )
    with pytest.raises(ValueError, match=expected):
        studies.sweep(folder, toy_config(), [0.1, 1.3])


def test_a_row_needs_v_and_m(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--only 1 needs the outputs of `worldmodels collect`; .*--only 0"):
        studies.sweep(tmp_path / "none", toy_config(), [0.1, 1.3], only=1)
    assert not (tmp_path / "none").exists()


def test_sweep(base, capsys, monkeypatch, unrecorded):
    open_loop, controllers = [], []

    def spy(environments, assignments, **options):
        for player, episodes, _ in assignments:
            if episodes and isinstance(player, play.OpenLoopPlayer):
                open_loop.append((options["purpose"], player._policy))
            elif episodes:
                controllers.append(options["purpose"])
        really(environments, assignments, **options)

    really = play.Environments.play_all
    monkeypatch.setattr(play.Environments, "play_all", spy)
    results = studies.sweep(base, toy_config(), [0.1, 1.3])
    # Open-loop policies play once, whatever the temperature; the agent and its first generation once for each.
    task = tasks.get("takecover")
    wanted = {("evaluate", task.policies[name]) for name in task.baselines.values()}
    assert wanted <= set(open_loop) and len(open_loop) == len(set(open_loop))
    assert {purpose for purpose, _ in set(open_loop) - wanted} == {"check-dream"}
    assert controllers == ["evaluate"] * 4
    assert (
        [result.temperature for result in results]
        == [0.1, 1.3]
        == [result["temperature"] for result in read_json(base / "temperatures" / "sweep.json")]
    )
    for result in results:
        child = base / "temperatures" / f"{result.temperature:g}"
        assert (child / "vae" / "sheets" / "epoch_0001.png").read_bytes() == b"drawn"
        assert (child / "rnn" / "rnn.safetensors").stat().st_ino == (base / "rnn" / "rnn.safetensors").stat().st_ino
        with Run(child) as experiment:
            assert experiment.config.evolve.temperature == result.temperature
        assert len(result.game.scores) == 2 and len(result.dream.scores) == 4
        assert Agent.load(child).params.shape == (result.parameters,)
    with Image.open(base / "temperatures" / "sweep.png") as image:
        assert min(image.size) > 200
    out = capsys.readouterr().out
    assert "2086 +- 140" in out and "753 +- 139" in out
    studies.sweep(base, toy_config(), [0.1])
    assert "already complete" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^--temperatures: expected distinct numbers"):
        studies.sweep(base, toy_config(), [1.0, 1.0])


def test_ablate(base, capsys, monkeypatch, unrecorded):
    """An untrained M is in its variant's own folder; evolution in the environment checks no dream."""
    ablations = {
        "z": {"evolve": {"features": "z"}},
        "z, c, h": {"evolve": {"features": "zch"}},
        "M untrained, in the game": {
            "train_rnn": {"steps": 0},
            "evolve": {"evaluate_in": "environment", "max_steps": 3},
        },
    }
    task = with_two_baselines(tasks.get("takecover"), ablations=ablations)
    monkeypatch.setattr(tasks, "get", lambda _: task)
    with Run(base, toy_config()) as experiment:
        save_latents(experiment)
    results = studies.ablate(base, toy_config(evaluate={"episodes": 1}))
    assert [result.variant for result in results] == list(ablations)
    assert [result.parameters for result in results] == [4, 20, 4 + 2 * 8]
    assert [result.evaluate_in for result in results] == ["dream", "dream", "environment"]
    assert "M untrained, in the game" in capsys.readouterr().out
    trained, own = (base / place / "rnn" / "rnn.safetensors" for place in (".", "ablations/M-untrained_in-the-game"))
    assert (base / "ablations" / "z_c_h" / "rnn" / "rnn.safetensors").stat().st_ino == trained.stat().st_ino
    assert own.stat().st_ino != trained.stat().st_ino
    assert not (own.parents[1] / "check_dream" / "check_dream.json").exists()
    with Run(own.parents[1]) as experiment:
        assert experiment.summary("train_rnn")["steps"] == 0 and experiment.metrics("train-rnn") == []


def test_the_ablations_compare_what_the_paper_does():
    """The paper's parameter counts, of CarRacing's controllers."""
    sizes = {}
    for name, changes in tasks.get("carracing").ablations.items():
        evolve = override(tasks.preset("carracing", "paper"), changes).evolve
        sizes[name] = Controller(32, 256, 3, evolve.features, evolve.bias, evolve.hidden_units, "carracing").size
    assert sizes == {"z": 99, "z, 40 hidden": 1443, "z, h": 867, "z, h, M untrained": 867}
    for name, changes in tasks.get("takecover").ablations.items():
        assert override(tasks.preset("takecover", "paper"), changes).evolve.features == name.split(", M")[0].split(
            ", in"
        )[0].replace(", ", "")


def save_latents(experiment):
    """What encode would have made, so that an M can be made there."""
    make_latents([12, 9, 15, 8], latent_size=4).save(experiment.path("latents", "00000.safetensors"))


def test_a_sweep_evolves_in_dreams(tmp_path):
    with pytest.raises(
        ValueError, match=r"^evolve\.evaluate_in: expected dream for sweep \(.*--preset dream\), got environment"
    ):
        studies.sweep(tmp_path / "run", tasks.preset("carracing", "quick"), [1.0])
    assert not (tmp_path / "run").exists()


def test_only_the_papers_task_has_its_table():
    scores = describe([-300.0] * 25)
    results = [SweepResult(temperature=1.0, dream=scores, game=scores, generation=1, parameters=20)]
    assert "paper" not in studies.sweep_table(results, tasks.get("pendulum").paper_scores)
    assert "1145 +- 690" in studies.sweep_table(results, tasks.get("takecover").paper_scores)


def test_a_study_does_not_need_the_world_model_that_was_copied(base):
    config = dataclasses.replace(toy_config(), world_model=str(base / "moved"))
    changes = {"0.5": {"evolve": {"temperature": 0.5}}}
    with pytest.raises(FileNotFoundError, match=r"^world_model: expected a run folder with vae"):
        studies._settings(base / "new", config, changes)
    _, variants = studies._settings(base, config, changes)
    assert variants["0.5"].world_model == config.world_model


def test_evolution_starts_from_init_from(base, tmp_path):
    with Run(base, toy_config()) as experiment:
        experiment.run_stage("evolve")
    changed = toy_config(evolve={"init_from": str(base), "sigma0": 1e-9, "generations": 1})
    studies.branch(base, tmp_path, ("collect", "train_vae", "encode", "train_rnn"))
    with Run(tmp_path, changed) as experiment:
        experiment.run_stage("evolve")
    _, first, _ = load_controller(base / "evolve" / "controller.safetensors")
    _, second, _ = load_controller(tmp_path / "evolve" / "controller.safetensors")
    np.testing.assert_allclose(second, first, atol=1e-6)
    with pytest.raises(ValueError, match=r"^evolve\.init_from: expected Controller.*'z'.*got Controller.*'zch'"):
        Run(tmp_path / "other", toy_config(evolve={"init_from": str(base), "features": "z"}))


def test_command_line(base, capsys):
    with Run(base, toy_config()):
        pass
    arguments = ["sweep", "takecover", "--out", str(base), "--temperatures", "0.1"]
    assert main(arguments) == 0
    assert "paper: dream" in capsys.readouterr().out
    assert main([*arguments, "0.1"]) == 1
    assert "--temperatures: " in capsys.readouterr().err
    assert main([*arguments[:-1], "-1"]) == 1
    assert "--temperatures: expected a number >= 0, got -1.0" in capsys.readouterr().err


@pytest.mark.parametrize("study", ["sweep", "ablate"])
def test_a_refined_run_is_no_study(tmp_path, capsys, study):
    """Its settings are not stored without the refinement."""
    assert (
        main([study, "takecover", "--from-scratch", "--refine.generations", "3", "--out", str(tmp_path / "run")]) == 1
    )
    assert "refine.generations: expected 0, as variants are not refined" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_untrained_model_replaces_that_of_the_given_world_model(tmp_path):
    config = dataclasses.replace(toy_config(train_rnn={"steps": 0}), world_model="takecover")
    with Run(tmp_path, config) as experiment:
        for stage in ("collect", "train_vae", "encode", "train_rnn"):
            experiment.run_stage(stage)
    given, made = load_world_model(pretrained.folder("takecover")), load_world_model(tmp_path)
    assert made.mdnrnn.config == given.mdnrnn.config
    assert (made.mdnrnn.head.weight != given.mdnrnn.head.weight).any()
    np.testing.assert_array_equal(made.initial_mu, given.initial_mu)
