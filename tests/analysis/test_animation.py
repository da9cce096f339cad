"""GIFs within their limits and at the environment's speed, and MP4s."""

import sys

import numpy as np
import pytest
from PIL import Image

from recordings import moving, recording_of
from worldmodels.analysis.animation import save_gif, save_video, schedule
from worldmodels.analysis.film import Film
from worldmodels.cli import main

WORST = np.random.default_rng(0).integers(0, 256, (180, 64, 64, 3), dtype=np.uint8)  # noise: nothing compresses it


def read(path):
    """Size, frames as RGB and delays of a GIF."""
    with Image.open(path) as image:
        frames, delays = [], []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
            delays.append(image.info["duration"])
        return image.size, frames, delays


@pytest.mark.slow
@pytest.mark.parametrize(
    ("panels", "scale", "seconds", "most"),
    [(1, 2, 1, 40_000), (1, 1, 1, 4_000), (2, 2, 3, 60_000)],
)
def test_a_gif_of_noise_is_made_smaller_until_it_fits(tmp_path, panels, scale, seconds, most):
    """Colours, frames and the zoom go down; the film keeps its duration."""
    save_gif(tmp_path / "noise.gif", recording_of(WORST, panels), seconds=seconds, scale=scale, max_bytes=most)
    assert 0 < (tmp_path / "noise.gif").stat().st_size <= most
    _, frames, delays = read(tmp_path / "noise.gif")
    assert sum(delays) == 1_000 * seconds
    assert len(frames) < 18 * seconds


def test_a_gif_that_cannot_fit_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"max_bytes: expected at least \d+ for one frame, got 100"):
        save_gif(tmp_path / "noise.gif", recording_of(WORST[:5]), max_bytes=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rate", "steps", "seconds", "expected"),
    [
        (35, 2100, 20, 20_000),
        (35, 2100, 7.6, 7_600),
        (50, 1000, 20, 20_000),
        (20, 200, 20, 11_000),  # the whole episode, and its last step for a second
        (35, 1, 20, 1_030),
        (35, 700, 20, 20_000),  # as long as the limit: no time for that second
        (35, 500, 0.01, 20),
        (1000, 5000, 2, 2_000),
    ],
)
@pytest.mark.parametrize("fewer", [1, 2, 64])
def test_a_gif_has_the_environments_speed_and_at_most_the_seconds(rate, steps, seconds, expected, fewer):
    film = Film([recording_of(moving(steps), frames_per_second=rate)], 1)
    shown, delays = schedule(film, seconds, fewer)
    assert sum(delays) == expected
    assert all(delay > 0 and delay % 10 == 0 for delay in delays)
    begins = np.cumsum([0, *delays[:-1]]) / 1000
    assert np.abs(begins - np.array(shown) / rate).max() <= 0.011
    if fewer == 1 and len(delays) > 2:
        assert min(delays[:-2]) >= 30  # browsers slow down what is faster


def test_a_gif_shows_the_pictures_and_every_colour_of_them(tmp_path):
    """A small bright thing that moves has its colour and place; the frame after it is clean."""
    pictures = moving(40)
    save_gif(tmp_path / "a.gif", recording_of(pictures), scale=3)
    size, frames, _ = read(tmp_path / "a.gif")
    film = Film([recording_of(pictures)], 3)
    assert size == film.size
    for number, frame in enumerate(frames[:-1]):
        drawn = film.frame(2 * number)
        top = film._header
        difference = np.abs(frame[top : top + 192].astype(int) - drawn[top : top + 192])
        assert difference.max() <= 8
        assert np.abs(frame.astype(int) - drawn).mean() < 3  # captions too


def test_an_mp4_has_every_step_at_the_environments_speed(tmp_path):
    av = pytest.importorskip("av", reason="wants PyAV: pip install 'worldmodels-rl[video]'")
    save_video(tmp_path / "a.mp4", recording_of(moving(50), panels=2), scale=3, seconds=1)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 35)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    film = Film([recording_of(moving(50), panels=2)], 3)
    assert len(frames) == 35 and frames[0].shape == (*film.size[::-1], 3)
    assert np.abs(frames[20].astype(int) - film.frame(20)).mean() < 6
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gif", "x.mp4"], "--gif: expected a file that ends in .gif, got x.mp4"),
        (["--video", "x.gif"], "--video: expected a file that ends in .mp4, got x.gif"),
        (["--seconds", "0"], "--seconds: expected a finite number above 0, got 0.0"),
        (["--seconds", "nan"], "--seconds: expected a number, got nan"),
        (["--scale", "0"], "--scale: expected an integer from 1 to 8, got 0"),
        (["--scale", "9"], "--scale: expected an integer from 1 to 8, got 9"),
    ],
)
@pytest.mark.parametrize("command", ["play", "dream"])
def test_refusals_come_before_any_work(command, flags, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([command, "takecover", *flags]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "" and list(tmp_path.iterdir()) == []


def test_a_video_without_the_encoder_names_what_installs_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["dream", "takecover", "--video", str(tmp_path / "x.mp4")]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "worldmodels: --video: no module named 'av' (PyAV); `pip install 'worldmodels-rl[video]'` installs it\n"
    )
    assert captured.out == ""
