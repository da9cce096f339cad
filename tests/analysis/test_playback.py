from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from worldmodels.analysis import animation, figures
from worldmodels.analysis import playback as show
from worldmodels.analysis.stats import describe
from worldmodels.cli import main
from worldmodels.data.records import EpisodeTrace
from worldmodels.envs import making
from worldmodels.pipeline.run import Run


def test_dream_command(tmp_path, capsys):
    gif = tmp_path / "dream.gif"
    assert main(["dream", "takecover", "--episodes", "8", "--temperature", "1.3", "--gif", str(gif)]) == 0
    out = capsys.readouterr().out
    assert "takecover, in its dream at temperature 1.3: " in out and "(8 episodes)" in out
    with Image.open(gif) as image:
        assert image.is_animated and image.size[0] == 256
    assert gif.stat().st_size <= 4_000_000


def test_the_pretrained_agent_was_evolved_with_expected_termination():
    """Its M predicts termination six steps early, with probabilities that stay below a threshold."""
    _, config = Run.agent("takecover")
    assert (config.evolve.termination, config.environment.variant) == ("expected", "paper")


def test_play_command(tmp_path, capsys):
    gif = tmp_path / "play.gif"
    short = ["--seed", "1", "--seconds", "2", "--scale", "3"]  # an episode of 142 steps
    assert main(["play", "takecover", "--resolution", "160x120", *short, "--gif", str(gif)]) == 0
    score = float(capsys.readouterr().out.split("160x120): ")[1].split()[0])
    assert 50 <= score <= 2100
    with Image.open(gif) as image:
        assert image.size[0] == 2 * 192 + 4  # two panels, a gap of 3, an even width
        assert image.n_frames == 35


@pytest.mark.parametrize(("which", "differs"), [("envpool", True), ("gymnasium", False)])
def test_a_recording_of_another_back_end_is_named(tmp_path, monkeypatch, capsys, which, differs):
    monkeypatch.setattr(making, "backend", lambda environment: which)
    monkeypatch.setattr(show, "play", lambda *given, **settings: describe([800.0]))
    monkeypatch.setattr(show, "record_play", lambda *given, **settings: None)
    monkeypatch.setattr(animation, "save_gif", lambda *given, **settings: None)
    assert main(["play", "carracing", "--gif", str(tmp_path / "lap.gif")]) == 0
    said = "The recording is of Gymnasium's track, the score of EnvPool's.\n"
    assert (said in capsys.readouterr().out) == differs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dream", "nowhere"], "nowhere: expected a run folder or one of carracing, takecover"),
        (["play", "takecover", "--episodes", "0"], "--episodes: expected an integer from 1 to 1000000, got 0"),
        (["dream", "takecover", "--seed", "-1"], "--seed: expected an integer from 0 to 18446744073709551615, got -1"),
        (["dream", "takecover", "--gif", "/no/such/folder/x.gif"], "--gif: no such folder: /no/such/folder"),
        (["dream", "takecover", "--temperature", "nan"], "temperature: "),
        (["dream", "takecover", "--window", "--episodes", "2"], "--window: expected no --gif, --video or --episodes"),
    ],
)
def test_errors(arguments, message, capsys):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_no_display_is_told_before_anything_is_played(capsys, monkeypatch):
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["dream", "takecover", "--window"]) == 1
    captured = capsys.readouterr()
    assert "--window: no display" in captured.err and captured.out == ""


def test_no_display_is_told_in_one_line(capfd, monkeypatch):
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert main(["dream", "takecover", "--window"]) == 1
    assert capfd.readouterr().err == "worldmodels: --window: no display; use --gif FILE or --video FILE\n"


def test_scores_in_words():
    assert show.report_scores("x", describe([7.0])) == "x: 7 (1 episode)"
    assert show.report_scores("x", describe([0.02, 0.03])) == "x: 0.025 +- 0.007 (2 episodes)"


def test_an_episode_is_drawn_with_and_without_a_track(tmp_path):
    trace = EpisodeTrace(rewards=[1.0, -2.0, 3.0])
    figures.episode(tmp_path / "plain.png", trace, "points")
    angles = np.linspace(0, 6, 50)
    way = np.stack([np.cos(angles), np.sin(angles)], axis=1).tolist()
    figures.episode(tmp_path / "driven.png", replace(trace, track=way, positions=way[:20]), "points")
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "driven.png") as driven:
        assert driven.size[1] > 1.5 * plain.size[1]  # one above the other: a phone is narrow
