"""Settings that cannot work are refused before the first stage runs: nothing is created, deleted or recorded."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import copy_linked, make_episode, make_mdnrnn, make_vae, mark_done, toy_config, write_store
from worldmodels import pretrained
from worldmodels.cli import main
from worldmodels.models.controller import Controller
from worldmodels.models.weights import save_model, save_tensors
from worldmodels.pipeline import preflight
from worldmodels.pipeline.config import override
from worldmodels.pipeline.evolution import save_controller
from worldmodels.pipeline.preflight import files, limits
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES, get
from worldmodels.pipeline.tasks import preset


@pytest.fixture
def ran(monkeypatch):
    """Stages that do nothing but say that they ran."""
    ran = []
    for stage in NAMES:
        monkeypatch.setitem(vars(get(stage)), "run", lambda _, stage=stage: ran.append(stage) or {})
    return ran


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 16 GiB."""
    monkeypatch.setattr(limits, "memory", lambda: 2**34)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The run folder ``other``, and ``run``: a run in which no stage is complete."""
    folder = tmp_path_factory.mktemp("folders")
    other_run(folder / "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "memory", lambda: 2**34)
        for stage in NAMES:
            patch.setitem(vars(get(stage)), "run", lambda _: {})
        assert main(["run", "takecover", "--from-scratch", "--preset", "quick", "--out", str(folder / "run")]) == 0
    for stage in NAMES:
        (folder / "run" / "stages" / f"{stage}.json").unlink()
    return folder


def other_run(folder, latent_size=7, hidden_size=9):
    """A run folder with V, M and C of other sizes than TakeCover's."""
    with Run(folder, toy_config()) as experiment:
        save_model(experiment.path("vae", "vae.safetensors"), make_vae(latent_size))
        save_model(experiment.path("rnn", "rnn.safetensors"), make_mdnrnn(latent_size, hidden_size))
        starts = {"mu": torch.zeros(1, latent_size), "logvar": torch.zeros(1, latent_size)}
        save_tensors(experiment.path("rnn", "initial.safetensors"), starts, {})
        controller = Controller(latent_size, hidden_size, 1)
        save_controller(experiment, controller, np.zeros(controller.size), {})


REFUSED = [
    ("--evaluate.resolution foo", "evaluate.resolution: expected a 4:3 size of VizDoom"),
    ("--evaluate.resolution 1920x1080", "evaluate.resolution: expected a 4:3 size of VizDoom"),
    ("--environment.resolution 63x63", "environment.resolution: expected a 4:3 size of VizDoom"),
    ("--environment.id worldmodels/TakeCover-v7", "environment.id: expected one that Gymnasium knows"),
    ("--environment.id nowhere:Nothing-v0", "environment.id: expected one that Gymnasium knows"),
    ("--environment.backend envpool", "environment.backend: EnvPool has worldmodels/CarRacing-v0"),
    (
        "--collect.min-length 3000",
        "collect.min_length: expected at most Task.max_steps = 2100, the longest episode of takecover",
    ),
    ("--collect.episodes 1", "collect.episodes: expected at least 2"),
    ("--collect.episodes 1000000000000", "collect.episodes: expected at most 10000000"),
    ("--collect.policies hover", "collect.policies: expected '<name>:<weight>, ...'"),
    ("--collect.policies agent", "collect.agent: expected the agent of policy 'agent', got none"),
    (
        "--collect.policies agent --collect.agent /nosuch",
        "collect.agent: expected a run folder with vae/vae.safetensors",
    ),
    ("--collect.include /nosuch", "collect.include: expected a run folder with episodes, got /nosuch"),
    ("--collect.ignore-done", "collect.ignore_done: expected none, as worldmodels/TakeCover-v0 has no such option"),
    ("--train-vae.init-from /nosuch", "train_vae.init_from: expected a run folder with vae/vae.safetensors"),
    (
        "--train-vae.init-from other",
        "train_vae.init_from: expected {'latent_size': 64} as in the settings, got {'latent_size': 7}",
    ),
    ("--train-vae.latent-size 20000", "train_vae.latent_size: expected at most 16384, got 20000"),
    ("--train-rnn.init-from /nosuch", "train_rnn.init_from: expected a run folder with rnn/rnn.safetensors"),
    ("--train-rnn.init-from takecover --train-rnn.hidden-size 256", "train_rnn.init_from: expected {'latent_size': 64"),
    ("--train-rnn.hidden-size 1000000", "train_rnn.hidden_size: expected a size that fits in"),
    ("--train-rnn.num-mixtures 10000", "train_rnn.num_mixtures: expected at most 5461, got 10000"),
    ("--train-rnn.done-lookahead 2100", "train_rnn.done_lookahead: expected less than 2100"),
    ("--evolve.popsize 1", "evolve.popsize: expected at least 2, got 1"),
    ("--evolve.popsize 100000 --evolve.episodes 100000", "evolve.episodes: expected at most 21474, got 100000"),
    ("--evolve.max-steps 5000000000", "evolve.max_steps: expected at most 2147483647, got 5000000000"),
    (
        "--evolve.evaluate-in environment --evolve.max-steps 3000",
        "evolve.max_steps: expected at most 2100, the longest",
    ),
    ("--evolve.init-from /nosuch", "evolve.init_from: expected a run folder with evolve/controller.safetensors"),
    ("--evolve.init-from other", "evolve.init_from: expected Controller(latent_size=64"),
    ("--evolve.pca-components 1089", "evolve.pca_components: expected at most 1088, the features of C, got 1089"),
    (
        "--evolve.pca-components 5 --evolve.scale-inputs",
        "evolve.scale_inputs: expected false, as evolve.pca_components",
    ),
    ("--evolve.hidden-units 500", "evolve.hidden_units: expected at most 32,766 parameters of C"),
    ("--collect.agent /nosuch", "collect.agent: expected a run folder with vae/vae.safetensors"),
    ("--train-vae.batch-size 2000000000", "train_vae.batch_size: expected a size that fits in"),
    ("--train-vae.kl-weight 1e300", "train_vae.kl_weight: expected at most 1000000000.0, got 1e+300"),
    ("--train-rnn.sequence-length 2000000000", "train_rnn.sequence_length: expected a size that fits in"),
    ("--train-rnn.lr-decay 1.5", "train_rnn.lr_decay: expected at most 1, got 1.5"),
    ("--train-rnn.done-pos-weight 1e30", "train_rnn.done_pos_weight: expected at most 1000000000.0, got 1e+30"),
    ("--check-dream.dream-episodes 16000000", "check_dream.dream_episodes: expected a size that fits in"),
    ("--evolve.popsize 20000000 --evolve.episodes 1", "evolve.popsize: expected a size that fits in"),
    ("--collect.policies uniform:1e308,noop:1e308", "collect.policies: expected weights with a finite sum"),
    ("--encode.batch-size 16777217", "encode.batch_size: expected at most 16777216, got 16777217"),
    ("--train-rnn.grad-clip 1e300", "train_rnn.grad_clip: expected at most 1000000000.0, got 1e+300"),
    ("--train-rnn.lr 1e300", "train_rnn.lr: expected at most 3.4e+38, got 1e+300"),
    ("--train-vae.init-from run", "train_vae.init_from: expected a run other than run itself, got run"),
    ("--train-rnn.init-from ./run", "train_rnn.init_from: expected a run other than run itself, got ./run"),
    ("--evolve.init-from run", "evolve.init_from: expected a run other than run itself, got run"),
    ("--collect.include other/../run", "collect.include: expected a run other than run itself"),
    ("--collect.agent run --collect.policies agent", "collect.agent: expected a run other than run itself"),
    ("--evolve.num-threads 5000", "evolve.num_threads: expected at most 4096, got 5000"),
    ("--evolve.sigma0 1e300", "evolve.sigma0: expected at most 1e+06, got 1e+300"),
    ("--evolve.num-envs 5000", "evolve.num_envs: expected at most 4096, got 5000"),
    ("--collect.num-workers 100000", "collect.num_workers: expected at most 4096, got 100000"),
    ("--evolve.temperature 1e39", "evolve.temperature: expected a float32 number, got 1e+39"),
    (
        "--evolve.termination expected --no-train-rnn.done-head",
        "evolve.termination: expected threshold, or train_rnn.done_head",
    ),
    (
        "--world-model /nosuch",
        "world_model: expected a run folder with vae/vae.safetensors, or one of carracing, takecover, got /nosuch",
    ),
]


def test_mirror_images_of_a_car_that_always_turns_left_are_refused():
    changes = {"encode": {"mirror": True}}
    with pytest.raises(ValueError, match=r"^encode\.mirror: expected false, as a mirror image of an episode of carra"):
        preflight.check_config(override(preset("carracing", "paper"), changes), NAMES)
    preflight.check_config(override(preset("takecover", "paper"), changes), NAMES)


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_made(
    tmp_path, folders, monkeypatch, capsys, ran, flags, message
):
    monkeypatch.chdir(tmp_path)
    copy_linked(folders / "other", tmp_path / "other")
    scratch = [] if "--world-model" in flags else ["--from-scratch"]
    before = contents(tmp_path)
    assert main(["run", "takecover", *scratch, *flags.split(), "--out", "run"]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert ran == [] and not Path("run").exists() and contents(tmp_path) == before


@pytest.mark.parametrize(("flags", "message"), [pair for pair in REFUSED if "--world-model" not in pair[0]])
def test_a_run_that_has_begun_keeps_its_settings_where_others_are_refused(
    tmp_path, folders, monkeypatch, capsys, ran, flags, message
):
    monkeypatch.chdir(tmp_path)
    copy_linked(folders / "other", tmp_path / "other")
    shutil.copytree(folders / "run", tmp_path / "run")
    before = contents(tmp_path)
    assert main(["run", "takecover", *flags.split(), "--out", "run"]) == 1
    assert message in capsys.readouterr().err
    assert ran == [] and contents(tmp_path) == before


@pytest.mark.parametrize(
    ("package", "message"),
    [("h5py", "No module named 'h5py'; install it with `pip install"), ("matplotlib", "No module named 'matplotlib'")],
)
def test_a_missing_package_is_missed_at_once(tmp_path, monkeypatch, capsys, ran, package, message):
    found = importlib.util.find_spec
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == package else found(name))
    assert main(["run", "takecover", "--from-scratch", "--out", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err
    assert ran == [] and not (tmp_path / "run").exists()


def test_a_precision_that_this_machine_lacks_is_refused_at_once(tmp_path, monkeypatch, ran):
    monkeypatch.setattr("worldmodels.models.device.computes_in_bfloat16", lambda _: False)
    monkeypatch.setattr("worldmodels.models.device.device", lambda: torch.device("cpu"))
    monkeypatch.setattr("worldmodels._core.simd_levels", lambda: ["baseline", "avx2"])
    for section in ("train_vae", "encode", "train_rnn", "evolve"):
        with pytest.raises(ValueError, match=rf"^{section}\.precision: expected float32.*, got bfloat16"):
            Run(tmp_path / "run", toy_config(**{section: {"precision": "bfloat16"}}))
    assert not (tmp_path / "run").exists()


def test_a_world_model_of_other_actions_is_refused(tmp_path, capsys, ran):
    arguments = ["run", "carracing", "--preset", "quick", "--world-model", "takecover", "--out", str(tmp_path / "run")]
    assert main(arguments) == 1
    assert (
        "world_model: expected an M of 3 actions (steering, gas, brake), got one of 1 in takecover"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_damaged_initial_weights_are_named(tmp_path, ran):
    other_run(tmp_path / "other")
    (tmp_path / "other" / "vae" / "vae.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"train_vae\.init_from: expected .*vae\.safetensors as worldmodels writes it"):
        Run(tmp_path / "run", toy_config(train_vae={"init_from": str(tmp_path / "other")}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--episodes 1000000000000", "rounds.episodes: expected at most 10000000"),
        ("--policies hover", "rounds.policies: expected '<name>:<weight>, ...'"),
    ],
)
def test_settings_of_later_rounds_are_refused_at_once(tmp_path, capsys, ran, flags, message):
    out = tmp_path / "run"
    assert main(["iterate", "takecover", "--from-scratch", *flags.split(), "--out", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert ran == [] and not out.exists()


def test_a_study_refuses_a_variant_before_its_base_runs(tmp_path, monkeypatch, capsys, ran):
    monkeypatch.chdir(tmp_path)
    flags = ["--from-scratch", "--out", "run"]
    assert main(["sweep", "takecover", *flags, "--temperatures", "1", "1e39"]) == 1
    assert "evolve.temperature: expected a float32 number" in capsys.readouterr().err
    assert main(["sweep", "takecover", *flags, "--temperatures", "1", "-1"]) == 1
    assert main(["sweep", "takecover", *flags, "--temperatures", "1", "nan"]) == 1
    assert main(["sweep", "takecover", *flags, "--temperatures", "1", "1.0000001"]) == 1
    assert "--temperatures: expected numbers distinct in six digits" in capsys.readouterr().err
    assert ran == [] and not Path("run").exists()


def test_a_stage_that_is_complete_needs_nothing_any_more(tmp_path, ran):
    """The run that a finished stage went on from may be gone."""
    other_run(tmp_path / "other", latent_size=4)
    config = toy_config(train_vae={"init_from": str(tmp_path / "other")})
    with Run(tmp_path / "run", config) as experiment:
        mark_done(experiment, "collect", "train_vae")
    (tmp_path / "other" / "vae" / "vae.safetensors").unlink()
    with Run(tmp_path / "run", config) as experiment:
        experiment.run_stage("encode")


def test_episodes_and_agents_of_other_environments_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other_run("other")
    write_store(Path("other", "episodes"), [make_episode(3)])
    pendulum = override(preset("pendulum", "quick"), {"collect": {"include": "other"}})
    said = "expected episodes of worldmodels/Pendulum-v0, got those of worldmodels/TakeCover-v0 in other"
    with pytest.raises(ValueError, match=rf"^collect\.include: {said}"):
        Run("run", pendulum)
    for name, said in (
        ("agent", r"expected an agent of 3 actions \(steering, gas, brake\), got one of 1 in other"),
        ("include", "expected episodes of 3 actions, got 1 in other"),
    ):
        with pytest.raises(ValueError, match=rf"^collect\.{name}: {said}"):
            Run("run", override(preset("carracing", "dream"), {"collect": {name: "other"}}))


def test_a_run_does_not_need_its_world_model_once_it_is_copied(tmp_path, monkeypatch, capsys, ran):
    monkeypatch.chdir(tmp_path)
    other_run("other")
    flags = ["--out", "run", "--evolve.max-steps", "9"]
    assert main(["run", "takecover", "--world-model", "other", *flags]) == 0
    Path("other").rename("gone")
    for stage in ("evolve", "check_dream"):
        Path("run", "stages", f"{stage}.json").unlink()
    ran.clear()
    assert main(["run", "takecover", *flags]) == 0
    assert ran == ["check_dream", "evolve", "evaluate", "report"]
    Path("run", "rnn", "rnn.safetensors").unlink()
    Path("run", "stages", "evolve.json").unlink()
    assert main(["run", "takecover", *flags]) == 1
    assert (
        f"world_model: expected a run folder with rnn/rnn.safetensors, or one of carracing, takecover, got {tmp_path}"
        in capsys.readouterr().err
    )


def test_every_preset_passes(tmp_path):
    from worldmodels.pipeline import tasks

    for name in tasks.names():
        for config in tasks.get(name).presets.values():
            preflight.check_config(config, NAMES)


def test_pretrained_world_models_are_found_without_their_hashes():
    for name in pretrained.names():
        assert files.folder_of(name) == pretrained.folder(name)


@pytest.mark.parametrize(
    ("section", "settings", "name"),
    [
        ("train_vae", {"batch_size": 2}, "train_vae.batch_size"),
        ("train_rnn", {"batch_size": 2}, "train_rnn.batch_size"),
        ("collect", {"episodes": 3}, "collect.episodes"),
    ],
)
def test_every_process_of_torchrun_has_a_row_of_a_batch(monkeypatch, section, settings, name):
    enough = {"train_vae": {"batch_size": 3}, "train_rnn": {"batch_size": 3}}
    config = toy_config(**{**enough, section: settings})
    preflight.check_config(config, ["train_vae", "train_rnn"])
    for variable, value in (("MASTER_ADDR", "localhost"), ("RANK", "0"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=rf"^{name}: expected at least 3 \w+.*, one per process of torchrun, got 2"):
        preflight.check_config(config, ["train_vae", "train_rnn"])
    preflight.check_config(toy_config(**enough), ["train_vae", "train_rnn"])
