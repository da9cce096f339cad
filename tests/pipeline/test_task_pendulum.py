"""The recipe of docs/tutorials/own_environment.md, followed to its end at toy size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from conftest import TOY
from worldmodels import Agent
from worldmodels.cli import main
from worldmodels.data.episodes import EpisodeStore
from worldmodels.envs import pendulum
from worldmodels.envs.pendulum import PendulumEnv
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config, RoundsConfig
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES
from worldmodels.support.files import read_json

#: Episodes have 200 steps: few of them.
SMALL = {
    **TOY,
    "collect": {**TOY["collect"], "episodes": 3, "num_workers": 1},
    "check_dream": {**TOY["check_dream"], "episodes": 1},
    "evolve": {**TOY["evolve"], "max_steps": 20},
    "evaluate": {**TOY["evaluate"], "episodes": 1, "num_envs": 1},
    "rounds": {"rounds": 0},
}
FLAGS = [
    text
    for section, settings in SMALL.items()
    for name, value in settings.items()
    for text in (f"--{section}.{name}".replace("_", "-"), str(value))
]


def test_rewards_are_gymnasiums():
    env, truth = PendulumEnv(), gymnasium.make("Pendulum-v1", disable_env_checker=True).unwrapped
    frame, _ = env.reset(seed=3)
    truth.reset(seed=3)
    truth.state = env._game.state.copy()
    assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
    for torque in (0.5, -1.0, 0.25):
        following, reward, *_ = env.step(np.array([torque], np.float32))
        assert reward == pytest.approx(truth.step(np.array([2 * torque]))[1])
    assert (following != frame).any()
    with pytest.raises(ValueError, match=r"^action: expected \(1,\) finite numbers"):
        env.step(np.zeros(2))
    env.close()


def test_the_seed_is_the_episode(monkeypatch):
    monkeypatch.setattr(pendulum, "MAX_STEPS", 2)
    episodes = []
    for seed in (1, 2, 1):
        env = PendulumEnv()
        frames = [env.reset(seed=seed)[0]]
        for truncated in (False, True):
            frame, _, *ends, _ = env.step(np.ones(1, np.float32))
            assert ends == [False, truncated]
            frames.append(frame)
        episodes.append(np.stack(frames))
        env.close()
    np.testing.assert_array_equal(episodes[0], episodes[2])
    assert (episodes[0][0] != episodes[1][0]).any()


@pytest.mark.slow
def test_the_whole_of_it_at_toy_size(tmp_path, capsys):
    assert main(["run", "pendulum", "--preset", "quick", "--out", str(tmp_path / "toy"), *FLAGS]) == 0
    run = tmp_path / "toy"
    assert sorted(path.stem for path in (run / "stages").iterdir()) == sorted(NAMES)
    results = read_json(run / "results.json")
    assert results["environment"]["id"] == tasks.get("pendulum").env_id
    assert all(-200 * 16.3 < score < 0 for score in results["agent"]["scores"])
    store = EpisodeStore(run / "episodes")
    assert set(store.lengths) == {200}
    assert all(episode.rewards.min() > -16.3 and episode.rewards.max() <= 0 for episode in store.episodes())
    store.close()
    with Run(run) as experiment:
        evolved = experiment.summary("evolve")
        assert evolved["evaluate_in"] == "dream" and evolved["score"] != -20  # M's rewards, not one for every step
        assert "no reward head" not in capsys.readouterr().err
    assert Agent.load(run).controller.action_size == 1
    assert (run / "report" / "reality_check.png").stat().st_size > 1000


def test_the_recipe_names_what_is_there():
    """Files, settings and policies of the text exist."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "tutorials" / "own_environment.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:python|tests)/[\w/]+\.py)`", text):
        assert (root / path).is_file(), path
    config = tasks.preset("pendulum", "quick")
    for section, name in re.findall(r"`(train_rnn|evolve)\.(\w+)`", text):
        assert hasattr(getattr(config, section), name)
    assert {"uniform", "repeat 1-20", "noop"} <= set(tasks.get("pendulum").policies)


def test_the_task_of_the_recipe_has_sizes_of_its_own():
    root = Path(__file__).parents[2]
    text = (root / "docs" / "tutorials" / "own_environment.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], found)
    task, paper = found["TASK"], Config()
    quick = task.presets["quick"]
    assert quick.evolve.max_steps == task.max_steps
    assert quick.collect.episodes < paper.collect.episodes
    assert quick.train_vae.steps < paper.train_vae.steps and quick.train_rnn.steps < paper.train_rnn.steps
    assert quick.evolve.generations < paper.evolve.generations


@pytest.mark.parametrize("name", ["quick", "mine"])
def test_a_single_preset_is_used_where_none_is_named(tmp_path, monkeypatch, name):
    task = tasks.get("pendulum")
    preset = replace(task.presets["quick"], preset=name, rounds=RoundsConfig())
    one = replace(task, presets={name: preset})
    monkeypatch.setattr("worldmodels.pipeline.tasks.pendulum.TASK", one)
    monkeypatch.setattr("worldmodels.pipeline.run.Run.run_stage", lambda *_: None)
    for words in (["run", "pendulum"], ["collect", "--task", "pendulum"]):
        folder = tmp_path / words[0]
        assert main([*words, "--out", str(folder)]) == 0
        assert Run.stored_config(folder).preset == name


def test_presets_bear_their_names():
    task = tasks.get("pendulum")
    with pytest.raises(
        ValueError, match=r"^presets\['mine'\]: expected Config\(.*preset='mine'\), got 'pendulum', 'quick'"
    ):
        replace(task, presets={"mine": task.presets["quick"]})
