"""The whole thing, small but real: one command from the game to the page."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from conftest import command
from worldmodels import Agent
from worldmodels.pipeline.profiles import read_profiles
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES
from worldmodels.support.files import read_json


@pytest.fixture(scope="module")
def ran(whole_run):
    return whole_run


def test_every_stage_is_done(ran):
    folder, done = ran
    run = folder / "toy"
    assert sorted(path.stem for path in (run / "stages").iterdir()) == sorted(NAMES)
    assert [path.name for path in folder.iterdir()] == ["toy"]
    assert not list(run.rglob("*.tmp"))
    for title in (
        "open-loop policy",
        "player",
        "agent",
        "before (first generation)",
        "random (uniform)",
        "collecting (repeat 1-10)",
    ):
        assert title in done.stdout
    for stage in NAMES[:-1]:
        assert stage.replace("_", "-") in done.stderr
    with Run(run) as experiment:
        assert experiment.config.seed == 3
        assert experiment.summary("collect")["episodes"] == 6
        frames = experiment.summary("collect")["frames"]
        assert experiment.summary("encode")["frames"] == frames
        assert experiment.summary("train_rnn")["parameters"] > 0
        stages = {line["stage"] for stage in NAMES for line in experiment.metrics(stage.replace("_", "-"))}
        assert stages == {"collect", "train-vae", "train-rnn", "check-dream", "evolve", "evaluate"}


def test_every_stage_has_a_profile_that_info_prints(ran):
    run = ran[0] / "toy"
    profiles = read_profiles(run)
    assert list(profiles) == [name.replace("_", "-") for name in NAMES]
    expected = {
        "collect": {"start", "engine", "policy", "storing"},
        "train-vae": {"data", "forward", "backward", "optimizer", "validation", "storing"},
        "encode": {"data", "forward", "storing"},
        "train-rnn": {"data", "forward and backward", "optimizer", "validation", "storing"},
        "check-dream": {"dream", "engine", "policy"},
        "evolve": {"ask", "rollout", "tell", "evaluation", "storing"},
        "evaluate": {"engine", "V", "C", "M", "policy", "dream", "recording"},
        "report": {"dream", "figures"},
    }
    for stage, phases in expected.items():
        assert set(profiles[stage]) >= phases | {"other"}
        assert all(seconds >= 0 for seconds in profiles[stage].values())
        seconds = read_json(run / "stages" / f"{stage.replace('-', '_')}.json")["seconds"]
        if stage != "collect":  # which has the seconds of its workers
            assert sum(profiles[stage].values()) == pytest.approx(seconds, abs=0.2)
    done = command("info", str(run), cwd=ran[0])
    assert done.returncode == 0 and "train-rnn " in done.stdout and "  forward and backward " in done.stdout


def test_results_name_the_agent_and_those_beside_it(ran):
    results = read_json(ran[0] / "toy" / "results.json")
    for name in ("agent", "random", "collecting"):
        assert set(results[name]) >= {"scores", "mean", "std", "ci95"}
        assert len(results[name]["scores"]) == 2
    assert results["environment"]["id"] == "worldmodels/TakeCover-v0"
    assert {"versions", "seeds", "preset"} <= set(results)


def test_the_agent_can_be_used(ran):
    agent = Agent.load(ran[0] / "toy")
    agent.reset(2)
    actions = agent.act(np.zeros((2, 64, 64, 3), np.uint8))
    assert actions.shape == (2, 1)
    assert (np.abs(actions) <= 1).all()


def test_the_page_holds_its_pictures(ran):
    """Nothing is fetched from anywhere; the one link leads to the dream beside the page."""
    page = (ran[0] / "toy" / "report" / "index.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/(png|gif);base64,([^"]+)"', page)
    assert page.count("<img") == len(pictures) == 9
    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page) == ["dream.html"]
    assert (ran[0] / "toy" / "report" / "dream.html").is_file()
    frames = {"png": [], "gif": []}
    for kind, data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.format == kind.upper()
            assert min(image.size) > 100
            assert np.asarray(image.convert("RGB")).std() > 1
            frames[kind].append(getattr(image, "n_frames", 1))
    assert frames["png"] == [1] * 7
    assert len(frames["gif"]) == 2
    assert max(frames["gif"]) <= 21
    results = read_json(ran[0] / "toy" / "results.json")
    assert f"The agent scores {results['agent']['mean']:.0f} steps survived in the real environment" in page


def test_running_again_does_nothing(ran):
    folder, _ = ran
    before = {path: path.stat().st_mtime_ns for path in (folder / "toy").rglob("*") if path.is_file()}
    done = command("run", "takecover", "--out", "toy", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stderr.splitlines()] == [
        [stage.replace("_", "-"), "already", "complete"] for stage in NAMES
    ]
    after = {path: path.stat().st_mtime_ns for path in (folder / "toy").rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert after.keys() == before.keys()
    assert changed <= {"config.json", ".lock"}
