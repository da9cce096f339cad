"""The run folder: which stages are done, with which settings, what is discarded, and who may write."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import make_episode, make_latents, mark_done, toy_config, write_store
from worldmodels.cli import main
from worldmodels.data.records import StageRecord
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import override
from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.profiles import read_profiles
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stage import command
from worldmodels.pipeline.stages import NAMES, get
from worldmodels.support.files import read_json, write_json
from worldmodels.support.versions import versions

BUILT_ON = ("collect", "train_vae", "encode", "train_rnn", "evolve")


@pytest.fixture
def ran(monkeypatch):
    """Stages that do nothing but say that they ran."""
    ran = []
    for stage in NAMES:
        monkeypatch.setitem(vars(get(stage)), "run", lambda _, stage=stage: ran.append(stage) or {"x": stage})
    return ran


def test_episodes_do_not_depend_on_the_backend_of_the_environment(tmp_path, ran):
    """Another back end discards nothing, and a setting that is younger than a run is no difference."""
    with Run(tmp_path, toy_config()) as experiment:
        experiment.run_stage("collect")
        experiment.run_stage("train_vae")
        marker = experiment.marker("check_dream")
        write_json(marker, {"settings": experiment._settings(get("check_dream")), "summary": {}})
        old = read_json(marker)
        del old["settings"]["environment"]["backend"]
        write_json(marker, old)
        assert experiment.is_done("check_dream")
    with Run(tmp_path, toy_config(environment={"backend": "gymnasium"})) as experiment:
        assert experiment.is_done("collect") and not experiment.is_done("check_dream")


def test_more_components_than_c_sees_are_refused_before_anything_is_made(tmp_path, ran):
    """TOY's C sees [z, c, h] of 4 + 2 x 8 numbers."""
    with pytest.raises(ValueError, match=r"evolve\.pca_components: expected at most 20, the features of C, got 21"):
        Run(tmp_path, toy_config(evolve={"pca_components": 21}))
    assert not (tmp_path / "config.json").exists()
    with pytest.raises(ValueError, match=r"expected at most 4, the features of C, got 5"):
        Run(tmp_path, toy_config(evolve={"pca_components": 5, "features": "z"}))
    with Run(tmp_path, toy_config(evolve={"pca_components": 20})) as experiment:
        experiment.run_stage("collect")
    assert ran == ["collect"]


def test_a_stage_is_done_once_and_says_how(tmp_path, ran, capsys):
    config = toy_config(seed=4)
    with Run(tmp_path / "new" / "run", config) as experiment:
        assert not experiment.is_done("collect")
        assert experiment.summary("collect") == {}
        experiment.run_stage("collect")
        experiment.run_stage("collect")
        assert ran == ["collect"]
        assert experiment.is_done("collect")
        assert experiment.summary("collect") == {"x": "collect"}
        marker = read_json(experiment.marker("collect"))
    assert capsys.readouterr().err == "     collect  already complete\n"
    assert marker["stage"] == "collect"
    assert marker["settings"]["seed"] == 4
    assert marker["settings"]["environment"] == {
        name: value for name, value in vars(config.environment).items() if name != "backend"
    }
    assert marker["settings"]["episodes"] == config.collect.episodes
    assert marker["versions"] == versions()
    assert marker["seconds"] >= 0
    assert read_json(tmp_path / "new" / "run" / "config.json")["seed"] == 4


def test_a_stage_that_fails_is_not_done(tmp_path, monkeypatch):
    def fail(_):
        raise RuntimeError("broken")

    monkeypatch.setitem(vars(get("collect")), "run", fail)
    with Run(tmp_path, toy_config()) as experiment:
        with pytest.raises(RuntimeError, match="broken"):
            experiment.run_stage("collect")
        assert not experiment.marker("collect").exists()


def test_a_stage_needs_those_that_it_builds_on(tmp_path, ran):
    with Run(tmp_path, toy_config()) as experiment:
        for stage in BUILT_ON:
            for later in [later for later in NAMES[NAMES.index(stage) + 1 :] if later != "report"]:
                with pytest.raises(
                    FileNotFoundError, match=rf"needs the outputs of `worldmodels {stage.replace('_', '-')}`"
                ):
                    experiment.run_stage(later)
            experiment.run_stage(stage)
        with pytest.raises(
            FileNotFoundError, match="`worldmodels report` needs the outputs of `worldmodels check-dream`"
        ):
            experiment.run_stage("report")
        experiment.run_stage("evaluate")
        experiment.run_stage("check_dream")
        experiment.run_stage("report")
    assert ran == [*BUILT_ON, "evaluate", "check_dream", "report"]


def test_versions_name_what_can_change_a_result():
    found = versions()
    assert {"worldmodels", "python", "machine", "torch", "numpy", "scipy", "gymnasium", "vizdoom", "h5py"} <= set(found)


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("collect", {"episodes": 7}),
        ("train_vae", {"lr": 0.5}),
        ("encode", {"precision": "float32"}),
        ("train_rnn", {"hidden_size": 9}),
        ("evolve", {"popsize": 5}),
    ],
)
def test_a_finished_stage_keeps_its_settings(tmp_path, ran, stage, change):
    with Run(tmp_path, toy_config()) as experiment:
        for name in NAMES:
            experiment.run_stage(name)
    (field,) = change
    with pytest.raises(ValueError, match=rf"{stage.replace('_', '-')} is complete with other settings \({field}\)"):
        Run(tmp_path, toy_config(**{stage: change}))
    with Run(tmp_path) as experiment:  # neither the folder nor the lock has suffered
        assert experiment.config == toy_config()
        assert all(experiment.is_done(name) for name in NAMES)


def test_the_seed_and_the_game_are_settings_too(tmp_path, ran):
    with Run(tmp_path, toy_config()) as experiment:
        experiment.run_stage("collect")
    with pytest.raises(ValueError, match=r"collect is complete with other settings \(seed\)"):
        Run(tmp_path, toy_config(seed=1))
    with pytest.raises(ValueError, match=r"collect is complete with other settings \(environment\)"):
        Run(tmp_path, toy_config(environment={"variant": "modern"}))


def test_a_stage_that_is_not_done_may_change(tmp_path, ran):
    with Run(tmp_path, toy_config()) as experiment:
        experiment.run_stage("collect")
    changed = toy_config(evolve={"popsize": 5}, collect={"num_workers": 1})  # workers do not change the episodes
    with Run(tmp_path, changed) as experiment:
        assert experiment.is_done("collect")
        assert Run.stored_config(tmp_path) == changed


KEPT = {
    "collect": "episodes/00000.h5",
    "train_vae": "vae/checkpoint.safetensors",
    "encode": "latents/00000.safetensors",
    "train_rnn": "rnn/checkpoint.safetensors",
    "evolve": "evolve/checkpoint.safetensors",
}


def cut_off(folder, stage, *, kept=True):
    """A run whose stage was begun and not completed."""
    with Run(folder, toy_config()) as experiment, pytest.MonkeyPatch.context() as patch:
        mark_done(experiment, *BUILT_ON[: BUILT_ON.index(stage)])
        patch.setitem(vars(get(stage)), "run", lambda _: pytest.fail("cut off"))
        with pytest.raises(pytest.fail.Exception):
            experiment.run_stage(stage)
        if kept:
            path = experiment.path(KEPT[stage])
            path.parent.mkdir()
            path.touch()


@pytest.mark.parametrize(
    ("stage", "fixed", "free"),
    [
        ("collect", {"shard_episodes": 3}, {"episodes": 9, "num_workers": 1}),
        ("collect", {"include": "elsewhere"}, {}),
        ("train_vae", {"quartic_weight": 3.0}, {"lr": 0.5, "steps": 9, "micro_batch_size": 1}),
        ("encode", {"precision": "bfloat16"}, {"batch_size": 7}),
        ("train_rnn", {"sequence_length": 3}, {"lr_end": 0.5, "precision": "float32", "patience": 2}),
        ("train_rnn", {"done_pos_weight": 3.0}, {}),
        ("evolve", {"popsize": 5}, {"generations": 1, "num_threads": 1}),
        ("evolve", {"max_steps": 7}, {"generations": 9}),
    ],
)
def test_a_stage_that_keeps_its_parts_goes_on_with_the_settings_it_began_with(
    tmp_path, ran, monkeypatch, stage, fixed, free
):
    precision = "worldmodels.pipeline.preflight.training.check_precision"  # this CPU may lack bfloat16
    monkeypatch.setattr(precision, lambda *_: None)
    if "include" in fixed:
        write_store(tmp_path / fixed["include"] / "episodes", [make_episode(3)])
        fixed = {"include": str(tmp_path / fixed["include"])}
    cut_off(tmp_path, stage)
    (name,) = fixed
    said = rf"{stage.replace('_', '-')} has partial outputs with other settings \({name}\)"
    with pytest.raises(ValueError, match=said):
        Run(tmp_path, toy_config(**{stage: fixed}))
    with Run(tmp_path, toy_config(**{stage: free})) as experiment:
        experiment.run_stage(stage)
        assert not list(tmp_path.glob("stages/*.begun.json"))
    cut_off(tmp_path / "other", stage)
    with Run(tmp_path / "other", toy_config(**{stage: fixed}), rerun=stage) as experiment:
        experiment.run_stage(stage)


def test_settings_of_a_stage_without_outputs_may_be_fixed(tmp_path, ran):
    cut_off(tmp_path, "evolve", kept=False)
    with Run(tmp_path, toy_config(evolve={"popsize": 5})) as experiment:
        experiment.run_stage("evolve")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"evolve": {"evaluate_in": "dream"}},
            r"^evolve\.evaluate_in: expected environment, or train_rnn\.reward_head",
        ),
        (
            {"evolve": {"termination": "sample"}},
            r"^evolve\.termination: expected threshold, or train_rnn\.done_head .*, got sample",
        ),
    ],
)
def test_dreams_without_rewards_or_termination_are_refused_when_a_run_begins(tmp_path, changes, said):
    """CarRacing's quick has neither a reward head nor a done head."""
    with pytest.raises(ValueError, match=said):
        Run(tmp_path, override(tasks.preset("carracing", "quick"), changes))


def test_a_run_that_was_moved_goes_on(tmp_path, ran):
    """Where the other run lay may be spelled differently."""
    first, moved = tmp_path / "first", tmp_path / "moved"
    write_store(first / "episodes", [make_episode(3)])
    with Run(tmp_path / "run", toy_config(collect={"include": str(first)})) as experiment:
        experiment.run_stage("collect")
    with Run(tmp_path / "run", toy_config(collect={"include": str(first / ".." / "first")})) as experiment:
        assert experiment.is_done("collect")
    with pytest.raises(ValueError, match=r"collect is complete with other settings \(include\)"):
        Run(tmp_path / "run", toy_config(collect={"include": str(moved)}))
    first.rename(moved)
    with Run(tmp_path / "run", toy_config(collect={"include": str(first)})) as experiment:
        assert experiment.is_done("collect")
    for other in ({"include": str(moved)}, {}):  # what lies elsewhere may be another run
        with pytest.raises(ValueError, match=r"collect is complete with other settings \(include\)"):
            Run(tmp_path / "run", toy_config(collect=other))


@pytest.mark.parametrize("child", ["", "rounds/2", "temperatures/1"])
def test_a_round_is_the_same_in_a_run_that_was_moved(tmp_path, child):
    folder = RunFolder(tmp_path / child, toy_config())
    now = str(tmp_path / "rounds" / "1")
    assert folder._is_same("/gone/rounds/1", now, True)
    assert not folder._is_same("/gone/rounds/0", now, True)
    assert not folder._is_same("/gone/rounds/1", str(tmp_path.parent / "other" / "rounds" / "1"), True)


def test_options_that_the_environment_lacks_are_refused_when_a_run_begins(tmp_path):
    toy = {"id": "toy_env:Toy-v0", "variant": "", "resolution": ""}
    with pytest.raises(ValueError, match=r"^evaluate\.variant: expected none, as toy_env:Toy-v0 has no such option"):
        Run(tmp_path, toy_config(environment=toy, evaluate={"variant": "modern"}))
    with Run(tmp_path, toy_config(evaluate={"variant": "modern"})):
        pass


def test_leaves_may_be_repeated_with_other_settings(tmp_path, ran):
    with Run(tmp_path, toy_config()) as experiment:
        for name in NAMES:
            experiment.run_stage(name)
    with Run(tmp_path, toy_config(evaluate={"episodes": 3})) as experiment:
        assert not experiment.is_done("evaluate")
        assert experiment.is_done("evolve")
        experiment.run_stage("evaluate")
    assert ran == [*NAMES, "evaluate"]


def test_more_generations_go_on_where_the_others_stopped(tmp_path, ran):
    with Run(tmp_path, toy_config()) as experiment:
        for stage in BUILT_ON:
            experiment.run_stage(stage)
    with Run(tmp_path, toy_config(evolve={"generations": 5})) as experiment:
        assert not experiment.is_done("evolve")
        experiment.run_stage("evolve")
        assert experiment.is_done("evolve")


#: One of the files that every stage writes.
MADE = {
    "collect": "00000.h5",
    "train_vae": "vae.safetensors",
    "encode": "00000.safetensors",
    "train_rnn": "initial.safetensors",
    "check_dream": "repeat_1-10.jsonl",
    "evolve": "controller.json",
    "evaluate": "random.jsonl",
    "report": "index.html",
}


def test_a_rerun_discards_a_stage_and_all_later_ones(tmp_path, ran):
    folders = {"collect": "episodes", "train_vae": "vae", "encode": "latents", "train_rnn": "rnn"}
    with Run(tmp_path, toy_config()) as experiment:
        for stage in NAMES:
            experiment.run_stage(stage)
            experiment.path(folders.get(stage, stage)).mkdir()
            experiment.path(folders.get(stage, stage), MADE[stage]).touch()
            experiment.log(stage.replace("_", "-"), **{"generation" if stage == "evolve" else "step": 1})
        experiment.path("results.json").touch()
    changed = toy_config(train_rnn={"hidden_size": 9})
    with Run(tmp_path, changed, rerun="train_rnn") as experiment:
        kept = [stage for stage in NAMES if experiment.marker(stage).exists()]
        assert kept == ["collect", "train_vae", "encode"]
        assert [stage for stage in NAMES if experiment.path(folders.get(stage, stage), MADE[stage]).exists()] == kept
        assert [stage for stage in NAMES if experiment.metrics(stage.replace("_", "-"))] == kept
        assert not experiment.path("results.json").exists()
        assert experiment.config == changed


def test_a_folder_has_one_process_at_a_time(tmp_path):
    held = pytest.raises(BlockingIOError, match="another worldmodels process has locked this folder")
    with Run(tmp_path, toy_config()), held:
        Run(tmp_path)
    with Run(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=r"expected a file system with locks, got one without \(.*Lustre.*NFS"):
        Run(tmp_path, toy_config())


def test_a_folder_without_settings_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"with config\.json, got none"):
        Run(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert Run.stored_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"evolve": {"popsize": 0}}')
    with pytest.raises(ValueError, match=r"evolve\.popsize: expected more than zero"):
        Run(tmp_path)
    (tmp_path / "config.json").write_text('{"evolve": ')
    with pytest.raises(ValueError, match=r"config\.json: expected JSON"):
        Run(tmp_path)


def test_metrics_survive_a_line_that_was_cut_off(tmp_path):
    with Run(tmp_path, toy_config()) as experiment:
        assert experiment.metrics("evolve") == []
        experiment.rewind_metrics("evolve", 3)  # nothing there yet
        for generation in (1, 2, 3):
            experiment.log("evolve", generation=generation, best=2.5)
            experiment.log("train-vae", step=generation)
        with experiment.path("metrics.jsonl").open("a") as file:
            file.write('{"stage": "evolve", "generation": 4, "be')
        assert [line["generation"] for line in experiment.metrics("evolve")] == [1, 2, 3]

        experiment.rewind_metrics("evolve", 2, key="generation")
        experiment.log("evolve", generation=3, best=4.0)
        lines = [json.loads(line) for line in experiment.path("metrics.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines if line["stage"] == "evolve"] == [1, 2, 3]
    assert [line["step"] for line in lines if line["stage"] == "train-vae"] == [1, 2, 3]
    assert lines[-1] == {"stage": "evolve", "generation": 3, "best": 4.0}


def test_an_interrupted_stage_keeps_its_profile(tmp_path, monkeypatch):
    def interrupted(run):
        run.log("profile", of="encode", profile={"forward": 2.0})
        raise KeyboardInterrupt

    def resumed(run):
        run.rewind_metrics("encode", 0)
        return {}

    with Run(tmp_path, toy_config()) as experiment:
        mark_done(experiment, *NAMES[: NAMES.index("encode")])
        for function in (interrupted, resumed):
            monkeypatch.setitem(vars(get("encode")), "run", function)
            with pytest.raises(KeyboardInterrupt) if function is interrupted else contextlib.nullcontext():
                experiment.run_stage("encode")
        lines = [json.loads(line) for line in experiment.path("metrics.jsonl").read_text().splitlines()]
        assert [line["of"] for line in lines].count("encode") == 3
        assert read_profiles(tmp_path)["encode"]["forward"] == 2.0
    with Run(tmp_path, rerun="encode"):  # discards it
        assert "encode" not in read_profiles(tmp_path)


def test_markers_by_hand_are_markers(tmp_path):
    """The helper of these tests marks stages as the stages do."""
    with Run(tmp_path, toy_config()) as experiment:
        mark_done(experiment, "collect", "train_vae", summary={"score": 3})
        assert experiment.is_done("train_vae")
        assert experiment.summary("train_vae") == {"score": 3}


def test_a_setting_that_a_marker_lacks_had_its_default(tmp_path, ran):
    with Run(tmp_path, toy_config()) as experiment:
        for stage in BUILT_ON[:2]:
            experiment.run_stage(stage)
        marker = read_json(experiment.marker("train_vae"))
        del marker["settings"]["patience"], marker["settings"]["keep"]
        write_json(experiment.marker("train_vae"), marker)
    with Run(tmp_path, toy_config()) as experiment:
        assert experiment.is_done("train_vae")
    with pytest.raises(ValueError, match=r"train-vae is complete with other settings \(patience\)"):
        Run(tmp_path, toy_config(train_vae={"patience": 3}))


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("train_vae", {"micro_batch_size": 3}),
        ("train_vae", {"num_workers": 2}),
        ("train_vae", {"compile": True}),
        ("check_dream", {"num_envs": 3}),
        ("evaluate", {"num_envs": 3}),
    ],
)
def test_settings_of_the_machine_may_change(tmp_path, ran, stage, change):
    with Run(tmp_path, toy_config()) as experiment:
        mark_done(experiment, *NAMES[: NAMES.index(stage) + 1])
    with Run(tmp_path, toy_config(**{stage: change})) as experiment:
        assert experiment.is_done(stage)


def test_another_report_keeps_the_results(tmp_path):
    """They are what `evaluate` has made."""
    with Run(tmp_path, toy_config()) as experiment:
        mark_done(experiment, *NAMES)
        experiment.path("results.json").write_text("{}")
    for stage, kept in (("report", True), ("evaluate", False)):
        with Run(tmp_path, rerun=stage) as experiment:
            assert experiment.path("results.json").is_file() == kept


OWN = ["report/thesis.tex", "results.json", "evaluate/data.csv", "notes.tmp", "episodes/trip.h5", "vae/vae.safetensors"]


def own_files(folder):
    """Somebody's files under the names that a run uses."""
    for name in OWN:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine\n")


def left(folder):
    return [name for name in OWN if (folder / name).is_file() and (folder / name).read_text() == "mine\n"]


@pytest.mark.parametrize("stage", NAMES)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_that_is_no_run_is_left_as_it_is(tmp_path, capsys, stage, force):
    own_files(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([command(stage), *force, "--out", str(tmp_path)]) == 1
    wanted = (
        "got one without config.json that has" if stage == "collect" else "needs the outputs of `worldmodels collect`"
    )
    assert wanted in capsys.readouterr().err
    assert left(tmp_path) == OWN and sorted(tmp_path.rglob("*")) == before


def test_a_run_begins_beside_other_files_but_not_on_its_own_names(tmp_path, ran):
    (tmp_path / "notes.tmp").touch()
    (tmp_path / "episodes").mkdir()  # an empty one, or a link to another disk, is taken
    with Run(tmp_path, toy_config()) as experiment:
        experiment.run_stage("collect")
    assert (tmp_path / "notes.tmp").exists()


def test_discarding_keeps_what_no_stage_wrote(tmp_path, ran, capsys):
    with Run(tmp_path, toy_config()) as experiment:
        for stage in NAMES:
            experiment.run_stage(stage)
    for name, text in {"report/index.html": "ours", "report/thesis.tex": "mine", "evaluate/data.csv": "mine"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "report/notes.tmp").write_text("mine")
    (tmp_path / "report/index.html.77.tmp").write_text("ours")
    with Run(tmp_path, toy_config(), rerun="evaluate"):
        pass
    assert sorted(path.name for path in tmp_path.glob("report/*")) == ["notes.tmp", "thesis.tex"]
    assert (tmp_path / "evaluate/data.csv").is_file()
    err = capsys.readouterr().err
    assert "evaluate  kept evaluate/data.csv: not outputs of this stage" in err
    assert "report  kept report/notes.tmp, report/thesis.tex: not outputs of this stage" in err


def test_a_stage_that_never_ran_here_is_not_discarded(tmp_path, ran):
    with Run(tmp_path, toy_config()) as experiment:
        experiment.run_stage("collect")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("mine")
    with Run(tmp_path, toy_config(), rerun="collect"):
        pass
    assert (tmp_path / "report" / "index.html").read_text() == "mine"


def test_a_linked_stage_folder_is_emptied_where_it_is(tmp_path, ran):
    """Episodes on the big disk: the link stays, what it points to is discarded."""
    disk, run = tmp_path / "disk", tmp_path / "run"
    with Run(run, toy_config()) as experiment:
        experiment.run_stage("collect")
    disk.mkdir()
    for name in ("00000.h5", "00001.h5", "readme.txt"):
        (disk / name).touch()
    (run / "episodes").symlink_to(disk)
    with Run(run, toy_config(collect={"episodes": 7}), rerun="collect"):
        pass
    assert [path.name for path in disk.iterdir()] == ["readme.txt"]
    assert (run / "episodes").is_symlink()
    assert not (run / "stages" / "collect.json").exists()


@pytest.mark.parametrize(
    ("stage", "change"),
    [("collect", ["--policies", "unifrom"]), ("evolve", ["--popsize", "1"]), ("encode", ["--x", "1"])],
)
def test_force_refuses_settings_before_it_deletes(tmp_path, ran, stage, change):
    out = tmp_path / "run"
    assert main(["run", "takecover", "--from-scratch", "--out", str(out)]) == 0
    for name in NAMES:
        path = out / {"collect": "episodes", "train_vae": "vae", "encode": "latents", "train_rnn": "rnn"}.get(
            name, name
        )
        path.mkdir()
        (path / MADE[name]).touch()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    try:
        status = main([stage, "--force", *change, "--out", str(out)])
    except SystemExit as stopped:
        status = stopped.code
    assert status in (1, 2)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_stage_that_failed_its_quality_gate_stops_the_run_unless_forced(tmp_path, ran, monkeypatch, capsys):
    monkeypatch.setitem(vars(get("train_vae")), "run", lambda _: {"failure": "V draws nothing"})
    out = ["run", "takecover", "--from-scratch", "--out", str(tmp_path / "run")]
    for _ in range(2):  # the same when it is tried again
        assert main(out) == 1
        assert "worldmodels: train-vae: V draws nothing (--force of `worldmodels run` or" in capsys.readouterr().err
        assert ran == ["collect"]
    assert main(["encode", "--out", str(tmp_path / "run")]) == 1
    assert "train-vae: V draws nothing" in capsys.readouterr().err
    assert main([*out, "--force"]) == 0
    assert "WARNING: train-vae: V draws nothing" in capsys.readouterr().err
    assert ran == ["collect", *NAMES[2:]]
    assert main(out) == 0  # accepted once, accepted for good


def test_force_reruns_a_stage_and_accepts_a_failed_quality_gate(tmp_path, ran, monkeypatch, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert main(["run", "takecover", "--from-scratch", *out]) == 0
    ran.clear()
    (tmp_path / "run" / "latents").mkdir()
    make_latents([3]).save(tmp_path / "run" / "latents" / "00000.safetensors")
    monkeypatch.setitem(vars(get("train_rnn")), "run", lambda _: ran.append("train_rnn") or {"failure": "M is random"})
    for _ in range(2):
        assert main(["train-rnn", "--force", *out]) == 0
        assert "WARNING: train-rnn: M is random" in capsys.readouterr().err
        with Run(tmp_path / "run") as experiment:
            assert [name for name in NAMES if experiment.is_done(name)] == [
                "collect",
                "train_vae",
                "encode",
                "train_rnn",
            ]
    assert ran == ["train_rnn"] * 2
    assert main(["evolve", *out]) == 0  # the gate has been accepted
    assert ran == ["train_rnn"] * 2 + ["evolve"]
    assert main(["train-rnn", *out]) == 0
    assert "already complete" in capsys.readouterr().err


@pytest.fixture
def finished(tmp_path, ran):
    """A run all of whose stages are complete, with one file of each."""
    folders = {"collect": "episodes", "train_vae": "vae", "encode": "latents", "train_rnn": "rnn"}
    with Run(tmp_path / "run", toy_config()) as experiment:
        for stage in NAMES:
            experiment.run_stage(stage)
            path = experiment.path(folders.get(stage, stage), MADE[stage])
            path.parent.mkdir()
            path.touch()
    return tmp_path / "run"


def test_more_generations_remove_the_results_of_the_c_before_them(finished):
    """Cached scores name their player and stay."""
    made = [finished / name for name in ("results.json", "evaluate/film.webp", "report/index.html")]
    for path in made:
        path.touch()
    with Run(finished, toy_config(evolve={"generations": 5})) as experiment:
        experiment.run_stage("evolve")
    assert not any(path.exists() for path in made) and (finished / "evaluate" / "random.jsonl").exists()
    assert not (finished / "stages" / "evaluate.json").exists()


def test_a_stage_whose_sinks_cannot_be_opened_keeps_the_stages_that_read_it(finished, monkeypatch):
    (finished / "stages" / "check_dream.json").unlink()
    monkeypatch.setattr("worldmodels.pipeline.run.open_sinks", lambda *_: Path("/nosuch").read_bytes())
    with Run(finished, log_to=["tensorboard"]) as experiment, pytest.raises(FileNotFoundError):
        experiment.run_stage("check_dream")
    assert (finished / "report" / "index.html").exists()


@pytest.mark.parametrize("stage", NAMES)
def test_a_damaged_marker_is_discarded_with_its_stage(finished, stage):
    (finished / "stages" / f"{stage}.json").write_text("{")
    with Run(finished, rerun=stage) as experiment:
        assert not experiment.marker(stage).exists()


@pytest.mark.parametrize("stage", ["check_dream", "evaluate"])
def test_the_rerun_of_a_leaf_keeps_the_stages_after_it(finished, stage):
    with Run(finished, rerun=stage):
        pass
    left = {path.stem for path in (finished / "stages").iterdir()}
    assert left == set(NAMES) - {stage, "report"}
    assert (finished / "evolve" / "controller.json").exists() and not (finished / "report" / "index.html").exists()


def test_a_report_needs_the_check_of_the_dream_that_c_was_evolved_in(finished):
    with Run(finished, toy_config(evolve={"temperature": 2.5}), rerun="evolve") as experiment:
        experiment.run_stage("evolve")
        experiment.run_stage("evaluate")
        with pytest.raises(FileNotFoundError, match=r"needs the outputs of `worldmodels check-dream` with the run's"):
            experiment.run_stage("report")
        experiment.run_stage("check_dream")
        experiment.run_stage("report")


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("stage", "blocked"), [("evolve", "metrics.jsonl"), ("report", "report/losses.png"), ("evaluate", "results.json")]
)
def test_nothing_is_discarded_where_not_all_can_be(finished, stage, blocked):
    (finished / blocked).unlink(missing_ok=True)
    (finished / blocked).mkdir(parents=True)
    before = files(finished)
    with pytest.raises(IsADirectoryError, match="expected a file, got a folder; nothing was discarded"):
        Run(finished, rerun=stage)
    assert files(finished) == before


def test_nothing_is_discarded_in_a_folder_that_may_not_be_written_to(finished, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("evaluate") and real(path, mode))
    before = files(finished)
    with pytest.raises(PermissionError, match=r"evaluate: expected a writable folder"):
        Run(finished, rerun="evolve")
    assert files(finished) == before


def test_a_discarding_that_is_cut_off_leaves_a_stage_that_was_begun(finished, monkeypatch):
    real = Path.unlink

    def unlink(path, missing_ok=False):
        if path.parent.name == "evaluate":
            raise OSError("cut off")
        real(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="cut off"):
        patch.setattr(Path, "unlink", unlink)
        Run(finished, rerun="evaluate")
    with Run(finished) as experiment:
        assert not experiment.is_done("evaluate") and experiment.is_done("evolve")


@pytest.mark.parametrize("last", range(len(MADE) - 1))
def test_a_discarding_that_is_cut_off_completes_nothing_on_discarded_outputs(finished, monkeypatch, last):
    """Cut off at any file, last stage first: new settings are refused, and no complete stage builds on another."""
    (finished / "vae" / "checkpoint.safetensors").touch()
    real, left = Path.unlink, [last]

    def unlink(path, missing_ok=False):
        if path.name in (*MADE.values(), "checkpoint.safetensors"):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        real(path, missing_ok)

    changed = toy_config(train_vae={"latent_size": 5})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", unlink)
        Run(finished, changed, rerun="train_vae")
    with Run(finished) as run:
        assert [name for name in NAMES if run.is_done(name)] == ["collect"]
    with pytest.raises(ValueError, match=r"train-vae has partial outputs with other settings \(latent_size\)"):
        Run(finished, changed)
    with Run(finished, changed, rerun="train_vae"):
        pass
    assert not (finished / "latents").exists() and not (finished / "vae").exists()


def test_a_stage_without_its_world_model_is_not_complete(tmp_path, ran):
    """The command line refuses this before; ``Run`` does too."""
    with Run(tmp_path, toy_config()) as run:
        mark_done(run, "collect", "train_vae")
        record = StageRecord.read(run.marker("train_vae"))
        replace(record, settings={**record.settings, "world_model": "takecover"}).write(run.marker("train_vae"))
    with pytest.raises(ValueError, match=r"train-vae is complete with other settings \(world_model\)"):
        Run(tmp_path, toy_config())


@pytest.mark.parametrize(("stage", "missing"), [("train-vae", "episodes/*.h5"), ("evolve", "rnn/rnn.safetensors")])
def test_inputs_are_missed_before_anything_is_discarded(finished, capsys, stage, missing):
    for path in finished.glob("episodes/*"):
        path.unlink()
    before = files(finished)
    assert main([stage, "--force", "--out", str(finished)]) == 1
    assert f"`worldmodels {stage}` needs {missing}, which is missing" in capsys.readouterr().err
    assert files(finished) == before


def test_several_processes_are_refused_before_anything_is_discarded(finished, monkeypatch):
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    before = files(finished)
    with pytest.raises(ValueError, match=r"^torchrun: expected train-vae and train-rnn"):
        Run(finished, rerun="evaluate")
    assert files(finished) == before


@pytest.mark.parametrize("text", ["{}", '{"seed": 3}'])
def test_a_config_of_something_else_is_no_run(tmp_path, capsys, text):
    own_files(tmp_path)
    (tmp_path / "config.json").write_text(text)
    before = files(tmp_path)
    for force in ([], ["--force"]):
        assert main(["collect", *force, "--out", str(tmp_path)]) == 1
        assert "config.json: expected the settings of a run" in capsys.readouterr().err
        assert files(tmp_path) == before


def test_only_our_own_temporary_files_are_swept(finished):
    (finished / "report" / "x.7.tmp").write_text("mine")
    (finished / "report" / "empty").mkdir()
    (finished / "report" / "index.html.7.tmp").write_text("ours")
    with Run(finished, rerun="report"):
        pass
    assert sorted(path.name for path in (finished / "report").iterdir()) == ["empty", "x.7.tmp"]


def test_the_duration_of_a_stage_is_that_of_all_sessions(tmp_path, monkeypatch):
    """Also of a session that was killed: then up to its last profile."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    seen = []

    def session(seconds, *, ends):
        def work(run):
            seen.append(run.seconds)
            clock[0] += seconds
            run.log_profile("train-vae")
            clock[0] += 1
            if not ends:
                raise KeyboardInterrupt
            return {}

        monkeypatch.setitem(vars(get("train_vae")), "run", work)
        clock[0] += 1000
        with Run(tmp_path, toy_config()) as run:
            if ends:
                run.run_stage("train_vae")
            else:
                with pytest.raises(KeyboardInterrupt):
                    run.run_stage("train_vae")
        return read_json(run.marker("train_vae") if ends else run.begun("train_vae"))

    with Run(tmp_path, toy_config()) as run:
        mark_done(run, "collect")
    first = session(10, ends=False)
    assert first["seconds"] == 11
    write_json(run.begun("train_vae"), {**first, "began": "then", "seconds": 10})  # as a kill leaves it
    assert session(4, ends=False)["seconds"] == 15
    last = session(2, ends=True)
    assert seen == [0, 10, 15]
    assert (last["seconds"], last["began"]) == (18, "then")
    assert not run.begun("train_vae").exists()
