"""Tasks of any Gymnasium environment: the probe, its refusals, and whole runs at toy size."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import image_env  # registers the environments
from conftest import TOY
from worldmodels import Agent, pretrained
from worldmodels.cli import main
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.records import Results
from worldmodels.envs import ContractError
from worldmodels.envs.making import backend
from worldmodels.envs.policies import constant
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.controller import one_hot
from worldmodels.pipeline import probing, tasks
from worldmodels.pipeline.config import ProbeConfig, from_dict, override, to_dict
from worldmodels.pipeline.config_file import format_config
from worldmodels.pipeline.gymnasium_task import gymnasium_task
from worldmodels.pipeline.players import interruptions
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES
from worldmodels.pipeline.verdict import format_command
from worldmodels.rollout.environments import play_policy
from worldmodels.support.files import read_json

assert image_env.KINDS
PROBE = ProbeConfig(
    actions="noop, left, fire", choices="3", max_steps=400, episode_length=100, steps_per_second=1_000, terminates=True
)
FLAGS = [
    text
    for section, settings in TOY.items()
    for name, value in settings.items()
    for text in (f"--{section}.{name}".replace("_", "-"), str(value))
]


def image(kind):
    return f"image_env:Image/{kind}-v0"


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    monkeypatch.setattr(probing, "_SECONDS", 0.2)
    monkeypatch.setattr(probing, "_PATIENCE", 0.2)
    monkeypatch.chdir(tmp_path)


# ---- the probe


@pytest.mark.parametrize(
    ("kind", "actions", "choices", "source", "terminates"),
    [
        ("Discrete", "noop, move left, move right", "3", "observation", True),
        ("Grey", "noop, move left, move right", "3", "observation", False),
        ("Dict", "noop, move left, move right", "3", "screen", True),
        ("MultiDiscrete", "0: 0, 0: 1, 0: 2, 1: 0, 1: 1", "3, 2", "observation", True),
        ("MultiBinary", "0: 0, 0: 1, 1: 0, 1: 1", "2, 2", "observation", True),
        ("Rendered", "action", "", "render", True),
    ],
)
def test_the_probe_describes_an_environment(capsys, kind, actions, choices, source, terminates):
    task = tasks.find(image(kind))
    for name, config in task.presets.items():
        probe = config.probe
        assert (probe.actions, probe.choices, probe.source) == (actions, choices, source)
        assert (probe.terminates, probe.frames_per_second, probe.max_steps) == (terminates, 30, 1_000)
        assert probe.episode_length == 6 and probe.steps_per_second > 10  # lengths 4 to 8
        assert config.environment == EnvSpec(id=image(kind), variant="", resolution="", source=source)
        assert 0.1 < probe.reward_scale < 1 and config.train_rnn.reward_clip == 5 * probe.reward_scale
        assert config.train_rnn.reward_head and config.train_rnn.done_head == terminates
        assert (config.task, config.preset) == (image(kind), name)
    assert list(task.presets) == ["quick", "small"]
    assert f"{image(kind)}: frames from " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env_id", "actions", "source"),
    [
        ("ALE/Boxing-v5", "noop, fire, up, right, left, down, upright, ", "observation"),
        ("VizdoomHealthGathering-v1", "noop, move forward, turn right, turn left", "screen"),
    ],
)
def test_games_of_other_packages_are_registered(tmp_path, env_id, actions, source):
    task = tasks.find(env_id, {"action_repeat": 4})
    probe = task.presets["quick"].probe
    assert probe.actions.startswith(actions) and probe.source == source
    assert task.keys["left"].index(1) == list(task.actions).index("left" if "left" in task.actions else "turn left")
    assert list(tmp_path.iterdir()) == []  # VizDoom's engine has a folder of its own


@pytest.mark.parametrize("chosen", [{}, {"action_repeat": 1}])
def test_the_presets_repeat_the_actions_of_vizdooms_ids(capsys, chosen):
    task = tasks.find("VizdoomHealthGathering-v1", chosen)
    config = task.presets["quick"]
    assert config.environment.action_repeat == config.probe.action_repeat == 4
    repeat = chosen.get("action_repeat", 4)
    assert task.frames_per_second == round(35 / repeat)
    assert (", each taken 4 times;" in capsys.readouterr().err) == (repeat == 4)


def test_time_limits_and_episodes_without_an_end():
    limited = tasks.find(image("Limited"))
    assert limited.max_steps == 10 and not limited.presets["quick"].probe.terminates
    assert tasks.find(image("Limited"), {"action_repeat": 4}).max_steps == 3
    endless = tasks.find(image("Started"))
    assert endless.max_steps == 1_000 and endless.presets["quick"].probe.terminates  # unknown
    assert tasks.find(image("Started"), {"max_steps": 7}).presets["quick"].probe.episode_length <= 7
    repeated = tasks.find(image("Discrete"), {"action_repeat": 2, "crop_top": 1})
    assert repeated.presets["quick"].probe.episode_length == 3 and repeated.frames_per_second == 15


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Text", "expected an image as its observation, or the render mode rgb_array, got the observation space Text"),
        ("Floats", "expected an image as its observation, or the render mode rgb_array, got the observation space Box"),
        ("Tuple", "expected a Box, Discrete, MultiDiscrete or MultiBinary as its action space, got Tuple(Discrete(2)"),
        ("Single", "expected discrete actions of one dimension, of two or more values each, got Discrete(1)"),
        ("Grid", "expected discrete actions of one dimension, of two or more values each, got MultiDiscrete("),
        ("Boundless", "expected an action space with finite bounds, got Box(-inf, inf, (1,), float32)"),
        ("Nothing", "expected one that Gymnasium knows, got 'image_env:Image/Nothing-v0'"),
        ("Unmade", "expected gymnasium.make to make it, got sys.exit(None)"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything(tmp_path, capsys, kind, message):
    assert main(["run", image(kind)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("worldmodels: ")]
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--environment.crop-top", "48"], "expected less than the 48 rows of an image of image_env:Image/Discrete-v0"),
        (["--environment.source", "screen"], "as 'screen' in its observation space, got Box(0, 255, (48, 32, 3)"),
        (["--environment.action-repeat", "0"], "environment.action_repeat: expected more than zero, got 0"),
        (["--import", "no_such_package"], "environment.imports: expected an installed package, got 'no_such_package'"),
        (["--preset", "paper"], "preset: expected one of quick, small, got 'paper'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything(tmp_path, capsys, flags, message):
    assert main(["run", image("Discrete"), *flags]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from gymnasium import nothing", "whose import failed: ImportError: cannot import name 'nothing'"),
        ("1 / 0", "whose import failed: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('bye')", "whose import failed: sys.exit('bye')"),
        ("import no_such_module", "worldmodels: broken_zoo: No module named 'no_such_module'"),
    ],
)
def test_an_import_that_fails_is_named(tmp_path, monkeypatch, capsys, code, message):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "broken_zoo.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "zoo"))
    assert main(["run", image("Discrete"), "--import", "broken_zoo"]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "num_envs", "error", "message"),
    [
        ("KeyError", 1, ContractError, "the environment failed: KeyError: 'k' at step 1 of the episode with seed"),
        ("KeyError", 2, ContractError, "the environment failed: KeyError: 'k' at step 1 of the episode with seed"),
        ("Exit", 1, ContractError, "the environment failed: sys.exit(3) at step 1 of the episode with seed"),
        ("Dependency", 1, ModuleNotFoundError, "pygame is not installed"),
    ],
)
def test_errors_of_an_environment_name_it(kind, num_envs, error, message):
    environment = EnvSpec(id=image(kind), variant="", resolution="")
    with pytest.raises(error, match=rf"^image_env:Image/{kind}-v0: {re.escape(message)}"):
        play_policy(
            environment,
            constant(0.0, 0.0, 1.0),
            2,
            seed=0,
            purpose="x",
            num_envs=num_envs,
            rules=Rules("argmax", 10, (3,)),
        )


@pytest.mark.parametrize("flags", [["--environment.crop-top", "48"], ["--environment.source", "screen"]])
def test_force_with_a_wrong_environment_discards_nothing(capsys, flags):
    line = ["collect", "--task", image("Discrete"), "--out", "run", "--episodes", "2"]
    assert main(line) == 0
    before = sorted(path.stat().st_mtime_ns for path in Path("run").rglob("*.h5"))
    assert main([*line, *flags, "--force"]) == 1
    assert sorted(path.stat().st_mtime_ns for path in Path("run").rglob("*.h5")) == before
    with Run("run") as run:
        assert run.is_done("collect")
    assert main(["run", image("Discrete"), "--out", "other", *flags, "--dry-run"]) == 1


def test_the_plan_of_a_dry_run_is_not_mixed_with_what_a_package_prints(tmp_path, monkeypatch, capsys):
    (tmp_path / "loud_zoo.py").write_text("print('welcome to the zoo')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["run", image("Discrete"), "--import", "loud_zoo", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "welcome to the zoo" in err and tomllib.loads(out)["environment"]["imports"] == "loud_zoo"


def test_a_package_registers_its_id_on_import(tmp_path, monkeypatch, capsys):
    (tmp_path / "zoo_of_ids.py").write_text(
        "import gymnasium\ngymnasium.register('Zoo/Image-v0', entry_point='image_env:Image')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("worldmodels.pipeline.run.Run.run_stage", lambda *_: None)
    assert main(["run", "Zoo/Image-v0"]) == 1
    assert "Namespace Zoo not found" in capsys.readouterr().err
    assert main(["run", "Zoo/Image-v0", "--import", "zoo_of_ids"]) == 0
    config = Run.stored_config("runs/Zoo-Image-v0")
    assert config.environment.imports == "zoo_of_ids" and config.task == "Zoo/Image-v0"


# ---- the task


def test_a_run_is_rebuilt_from_its_settings_alone(monkeypatch):
    task = tasks.find(image("MultiDiscrete"), {"action_repeat": 2})
    config = override(task.config("small"), {"environment": {"action_repeat": 2}})
    monkeypatch.setattr(gymnasium, "make", None)
    stored = from_dict(to_dict(config))
    assert stored == config
    again = tasks.of(stored)
    assert again.presets == task.presets and again.rules == task.rules and again.look == task.look
    limited = override(stored, {"environment": {"max_steps": 33}})
    assert tasks.of(limited).max_steps == 33 and tasks.of(stored).max_steps == 1_000
    own = override(tasks.preset("takecover", "quick"), {"environment": {"max_steps": 100}})
    assert tasks.of(own).rules.max_steps == 100
    assert "probe" not in to_dict(own) and "probe" in to_dict(config)


def test_presets_are_sized_by_length_and_speed():
    def collected(**values):
        task = gymnasium_task("X-v0", replace(PROBE, **values))
        return [config.collect.episodes for config in task.presets.values()]

    assert collected() == [1_000, 2_500]
    assert collected(steps_per_second=100) == [240, 600]
    assert collected(episode_length=10_000) == [20, 25]
    assert collected(episode_length=1) == [5_000, 5_000]
    quick = gymnasium_task("X-v0", PROBE).presets["quick"]
    assert quick.evolve.max_steps == 400 and quick.evolve.initial_states == "first"
    long = gymnasium_task("X-v0", replace(PROBE, max_steps=5_000, episode_length=2_000, terminates=False)).presets[
        "quick"
    ]
    assert long.evolve.max_steps == 500 and long.evolve.initial_states == "random"
    assert long.evolve.termination == "threshold" and not long.train_rnn.done_head


def test_policies_and_keys_of_discrete_actions():
    task = gymnasium_task("X-v0", PROBE)
    rng = np.random.default_rng(0)
    assert next(task.policies["noop"](rng)).tolist() == [1, 0, 0]
    assert sorted(next(task.policies["uniform"](rng)).tolist()) == [0, 0, 1]
    assert task.keys == {"left": (0, 1, 0)}
    assert task.rules.squash == "argmax" and task.rules.choices == (3,)
    two = gymnasium_task("X-v0", replace(PROBE, actions="a, b, c, d, e", choices="3, 2"))
    assert next(two.policies["noop"](rng)).tolist() == [1, 0, 0, 1, 0] and two.keys == {}
    box = gymnasium_task("X-v0", replace(PROBE, actions="a, b", choices=""))
    assert next(box.policies["brownian"](rng)).shape == (2,) and box.rules.squash == "tanh"
    with pytest.raises(ValueError, match=r"^choices: expected numbers that add up to the 3 actions"):
        replace(task, choices=(2, 2))
    with pytest.raises(
        ValueError, match=r"^mirror: expected a factor for each of the actions .*, or none, got \(1.0, 1.0\)"
    ):
        replace(tasks.get("takecover"), mirror=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"^choices: expected none for squash='tanh', got \(3,\)"):
        replace(task, squash="tanh")


def test_bursts_of_discrete_actions_are_one_hot():
    stream = interruptions(np.random.default_rng(1), np.zeros(5), np.ones(5), (3, 2))
    taken = np.stack([action for _, action in zip(range(2000), stream, strict=False) if not np.isnan(action).any()])
    np.testing.assert_array_equal(taken, one_hot(taken, (3, 2)))
    assert len(np.unique(taken, axis=0)) == 6


# ---- whole runs


def run(kind, *flags):
    return main(["run", image(kind), "--out", "toy", *FLAGS, "--collect.num-workers", "1", *flags])


def test_a_whole_run_of_discrete_actions(tmp_path, monkeypatch, capsys):
    assert run("Discrete", "--environment.action-repeat", "2", "--environment.crop-top", "1", "--evolve.bias") == 0
    folder = tmp_path / "toy"
    assert sorted(path.stem for path in (folder / "stages").iterdir()) == sorted(NAMES)
    store = EpisodeStore(folder / "episodes")
    for episode in store.episodes():
        np.testing.assert_array_equal(episode.actions, one_hot(episode.actions, (3,)))
        assert len(episode.frames) in (2, 3, 4) and episode.terminated
    store.close()
    assert Agent.load(folder).controller.choices == (3,)
    results = Results.read(folder / "results.json")
    assert results.environment.action_repeat == 2 and results.environment.crop_top == 1
    assert set(results.players) == {"before", "random", "collecting", "noop"}
    page = re.sub("</?span>", "", (folder / "report" / "index.html").read_text(encoding="utf-8"))
    assert "action repeat 2" in page and "--environment.action-repeat 2" in page and "--probe" not in page

    monkeypatch.setattr(probing, "probe_environment", None)  # a run that is resumed is not probed again
    monkeypatch.setattr(pretrained, "names", tuple)
    for marker in ("evaluate", "report"):
        (folder / "stages" / f"{marker}.json").unlink()
    assert run("Discrete") == 0
    assert main(["play", "toy", "--episodes", "2", "--gif", "play.gif"]) == 0
    assert main(["dream", "toy", "--gif", "dream.gif"]) == 0
    assert "toy, in its dream" in capsys.readouterr().out
    assert all(Path(name).stat().st_size > 1_000 for name in ("play.gif", "dream.gif"))
    assert main(["run", image("Dict"), "--out", "toy"]) == 1
    assert re.search(r"task: toy holds a run of task 'image_env:Image/Discrete-v0', got", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sizes"), [("MultiDiscrete", (3, 2)), ("MultiBinary", (2, 2))])
def test_whole_runs_of_several_discrete_actions(tmp_path, kind, sizes):
    rounds = ["--rounds.rounds", "1", "--rounds.episodes", "2", "--rounds.vae-steps", "2", "--rounds.rnn-steps", "2"]
    fewer = ["--rounds.generations", "2", "--rounds.evaluate-episodes", "2"]
    assert run(kind, *(rounds + fewer if kind == "MultiBinary" else [])) == 0
    assert Agent.load(tmp_path / "toy").controller.choices == sizes
    assert read_json(tmp_path / "toy" / "results.json")["environment"]["id"] == image(kind)
    if kind == "MultiBinary":  # bursts and the agent's own actions
        store = EpisodeStore(tmp_path / "toy" / "episodes")
        played = {episode.policy: episode.actions for episode in store.episodes()}
        store.close()
        assert any(name.startswith("agent") for name in played)
        for actions in played.values():
            np.testing.assert_array_equal(actions, one_hot(actions, sizes))


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_whole_runs_of_environments_of_gymnasium(tmp_path, env_id):
    limits = ["--environment.max-steps", "20", "--evolve.max-steps", "20"]
    assert main(["run", env_id, *FLAGS, *limits, "--collect.num-workers", "1", "--check-dream.episodes", "1"]) == 0
    results = read_json(tmp_path / "runs" / env_id / "results.json")
    assert results["environment"]["source"] == "render" and results["environment"]["max_steps"] == 20


def test_the_longest_episode_of_the_settings_is_that_of_the_dream():
    task = tasks.find(image("Discrete"), {"max_steps": 20})
    assert task.max_steps == 20
    assert {config.evolve.max_steps for config in task.presets.values()} == {20}
    with pytest.raises(ContractError, match=r"expected episodes of several steps, got only episodes of one$"):
        tasks.find(image("Discrete"), {"max_steps": 1})


def test_settings_of_a_dry_run_are_a_file_of_settings(capsys):
    assert main(["run", image("Discrete"), "--seed", "3", "--dry-run"]) == 0
    Path("mine.toml").write_text(capsys.readouterr().out)
    assert main(["run", "--config", "mine.toml", "--dry-run"]) == 0
    assert "seed = 3" in capsys.readouterr().out
    Path("mine.toml").write_text('task = "takecover"\n[probe]\nactions = "left"\n')
    assert main(["run", "--config", "mine.toml", "--dry-run"]) == 1
    assert "probe: no such setting or section" in capsys.readouterr().err


def test_the_command_of_a_run_has_the_sizes_that_the_probe_chose():
    task = gymnasium_task("Game-v0", PROBE)
    preset = task.presets["quick"]
    command = format_command(preset, Path("runs", "mine"))
    assert f"--collect.episodes {preset.collect.episodes}" in command and "probe" not in command
    text = format_config(preset, tasks.portable_preset(preset))
    assert f"\n[collect]\nepisodes = {preset.collect.episodes}\n" in text


def test_an_environment_whose_package_is_missing_says_what_to_install(monkeypatch):
    def missing(*_, **__):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed, run `pip install gymnasium[classic]`")

    monkeypatch.setattr(probing.gymnasium, "make", missing)
    with pytest.raises(ModuleNotFoundError, match=r"^image_env:Image/Discrete-v0: pygame is not installed, run `pip"):
        tasks.find(image("Discrete"))


def test_settings_of_frames_and_actions_select_gymnasium():
    spec = EnvSpec(id="worldmodels/CarRacing-v0", variant="", resolution="")
    assert backend(spec) == "envpool"
    assert backend(replace(spec, crop_top=3)) == "gymnasium"
    with pytest.raises(ValueError, match=r"^environment\.action_repeat: expected 1 with EnvPool, got 4; use "):
        backend(replace(spec, action_repeat=4, backend="envpool"))


@pytest.mark.parametrize(("actions", "components"), [(3, 0), (11, 0), (12, 100), (18, 66)])
def test_many_actions_are_searched_along_principal_components(actions, components):
    probe = replace(PROBE, actions=", ".join(map(str, range(actions))), choices=str(actions))
    for name, config in gymnasium_task("Game-v0", probe).presets.items():
        assert config.evolve.pca_components == components and config.evolve.scale_inputs == (components == 0)
        assert config.rounds.pca_components == (components if name == "small" else 0)
        assert actions * (components or 288) <= 3_300
