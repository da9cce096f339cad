import numpy as np
import pytest
from PIL import Image

from worldmodels.analysis import figures
from worldmodels.analysis import playback as show
from worldmodels.cli import main
from worldmodels.pipeline.run import Experiment


def test_dream_command(tmp_path, capsys):
    gif = tmp_path / "dream.gif"
    assert main(["dream", "takecover", "--episodes", "8", "--temperature", "1.3", "--gif", str(gif)]) == 0
    out = capsys.readouterr().out
    assert "takecover, in its dream at temperature 1.3: " in out and "(8 episodes)" in out
    with Image.open(gif) as image:
        assert image.is_animated and image.size == (256, 276)


def test_the_shipped_worlds_dreams_end_by_chance():
    """Its M says ends ahead of time: a threshold would miss most of them."""
    _, config = Experiment.agent("takecover")
    assert (config.evolve.ends, config.environment.variant) == ("expected", "paper")


def test_play_command(tmp_path, capsys):
    gif = tmp_path / "play.gif"
    short = ["--seed", "1"]  # a life of 142 steps
    assert main(["play", "takecover", "--resolution", "160x120", *short, "--gif", str(gif)]) == 0
    score = float(capsys.readouterr().out.split("160x120): ")[1].split()[0])
    assert 50 <= score <= 2100
    with Image.open(gif) as image:
        assert image.size == (512, 276)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dream", "nowhere"], "nowhere: expected a run folder or one of takecover"),
        (["play", "takecover", "--episodes", "0"], "--episodes: expected an integer from 1 to 1000000, got 0"),
        (["dream", "takecover", "--seed", "-1"], "--seed: expected an integer from 0 to 18446744073709551615, got -1"),
        (["dream", "takecover", "--gif", "/no/such/folder/x.gif"], "--gif: no such folder: /no/such/folder"),
        (["dream", "takecover", "--temperature", "nan"], "temperature: "),
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
    assert capfd.readouterr().err == "worldmodels: --window: no display; use --gif FILE\n"


def test_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    show.check_display()
    show.window(
        [np.zeros((64, 64, 3), np.uint8)] * 3, [np.array([value, 0.2], np.float32) for value in (-1, 0, 0.5)], "a title"
    )


def test_scores_in_words():
    assert show.report_scores("x", {"scores": [7.0], "mean": 7.0, "std": 0.0, "ci95": [7.0, 7.0]}) == "x: 7 (1 episode)"


def test_every_action_has_its_bar(tmp_path):
    """Three actions at 50 frames a second: the bars go right, left and nowhere; every second frame is shown."""
    path = tmp_path / "drive.gif"
    pictures = [np.full((64, 64, 3), 10 * number, np.uint8) for number in range(6)]
    action = np.array([1.0, -0.5, 0.0], np.float32)
    figures.save_animation(path, pictures, [action] * 6, frames_per_second=50, threshold=0.75)
    with Image.open(path) as image:
        assert (image.size, image.n_frames, image.info["duration"]) == ((256, 256 + 3 * 20), 3, 40)
        page = np.asarray(image.convert("RGB")).astype(int)
    lit = np.abs(page[256 + 10 :: 20] - page[256, 0]).sum(axis=2) > 60  # the middle of every bar: (3, 256)
    assert lit[0, 130:].all() and not lit[0, :126].any()
    assert lit[1, 66:126].all() and not lit[1, :62].any() and not lit[1, 130:].any()
    assert lit[2].sum() <= 3
    assert page[256 + 10, 200, 0] > page[256 + 30, 100, 0] + 100  # bright and dim


def test_an_episode_is_drawn_with_and_without_a_track(tmp_path):
    recorded = {"rewards": [1.0, -2.0, 3.0]}
    figures.episode(tmp_path / "plain.png", recorded, "points")
    angles = np.linspace(0, 6, 50)
    way = np.stack([np.cos(angles), np.sin(angles)], axis=1).tolist()
    figures.episode(tmp_path / "driven.png", {**recorded, "track": way, "positions": way[:20]}, "points")
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "driven.png") as driven:
        assert driven.size[0] > 1.5 * plain.size[0]
