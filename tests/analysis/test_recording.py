"""Recordings: GIFs within their limits and at the environment's speed, captions, MP4s, M's termination probability."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_mdnrnn
from worldmodels.analysis import recording as rec
from worldmodels.analysis.recording import Film, Recording, save_gif, save_video, schedule, termination_probability
from worldmodels.cli import main
from worldmodels.models.lstm_state import LSTMState

WORST = np.random.default_rng(0).integers(0, 256, (180, 64, 64, 3), dtype=np.uint8)  # noise: nothing compresses it


def of(pictures, panels=1, **about):
    steps = len(pictures)
    actions = np.linspace(-1, 1, steps, dtype=np.float32)[:, None]
    named = {f"panel {number}": pictures for number in range(panels)}
    defaults = {
        "names": ("left / right",),
        "threshold": 1 / 3,
        "termination": np.linspace(0, 1, steps, dtype=np.float32),
    }
    return Recording(named, actions, **{**defaults, **about})


def moving(steps, size=64):
    """A square that goes right on a plain background."""
    pictures = np.full((steps, size, size, 3), 60, np.uint8)
    for step in range(steps):
        pictures[step, 20:30, step % 50 : step % 50 + 10] = (250, 200, 40)
    return pictures


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
    save_gif(tmp_path / "noise.gif", of(WORST, panels), seconds=seconds, scale=scale, max_bytes=most)
    assert 0 < (tmp_path / "noise.gif").stat().st_size <= most
    _, frames, delays = read(tmp_path / "noise.gif")
    assert sum(delays) == 1_000 * seconds
    assert len(frames) < 18 * seconds


def test_a_gif_that_cannot_fit_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"max_bytes: expected at least \d+ for one frame, got 100"):
        save_gif(tmp_path / "noise.gif", of(WORST[:5]), max_bytes=100)
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
    film = Film([of(moving(steps), frames_per_second=rate)], 1)
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
    save_gif(tmp_path / "a.gif", of(pictures), scale=3)
    size, frames, _ = read(tmp_path / "a.gif")
    film = Film([of(pictures)], 3)
    assert size == film.size
    for number, frame in enumerate(frames[:-1]):
        drawn = film.frame(2 * number)
        top = film._header
        difference = np.abs(frame[top : top + 192].astype(int) - drawn[top : top + 192])
        assert difference.max() <= 8
        assert np.abs(frame.astype(int) - drawn).mean() < 3  # captions too


def test_a_film_has_panels_titles_and_bars():
    """The action goes left of the middle or right, bright above the threshold; M's probability from the left, red."""
    recording = Recording(
        {"game": np.zeros((3, 64, 64, 3), np.uint8), "V's reconstruction": np.full((3, 64, 64, 3), 200, np.uint8)},
        np.array([[-1.0], [0.2], [1.0]], np.float32),
        np.array([0.0, 0.5, 1.0], np.float32),
        names=("left / right",),
        threshold=0.5,
    )
    film = Film([recording], 4)
    width, height = film.size
    assert width == 2 * 256 + 4 and height % 2 == 0
    pages = [film.frame(step).astype(int) for step in range(3)]
    assert {page.shape for page in pages} == {(height, width, 3)}
    top = film._header
    assert (pages[0][top : top + 256, :256] == 0).all() and (pages[0][top : top + 256, 260:516] == 200).all()
    action, term = height - 4 - 18, height - 4 - 6  # the middles of the two bars
    bright = [np.flatnonzero(np.abs(page[action] - (251, 191, 36)).max(axis=1) < 5) for page in pages]
    assert bright[0].min() == 0 and 250 < bright[0].max() <= 258
    assert len(bright[1]) == 0
    assert 256 <= bright[2].min() <= 260 and bright[2].max() == 515
    red = [np.count_nonzero(np.abs(page[term] - (239, 68, 68)).max(axis=1) < 5) for page in pages]
    assert red[0] <= 2 and abs(red[1] - 258) < 4 and abs(red[2] - 516) < 4
    lit = [page[:top].max(axis=(0, 2)) > 150 for page in pages]
    assert lit[0][:256].any() and lit[0][260:].any()  # both titles
    assert (pages[0][:top] == pages[2][:top]).all()


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_captions_stay_inside_their_strip_at_every_zoom(scale):
    block = Film([of(moving(3), names=("steering",), frames_per_second=50)], scale)._blocks[0]
    for (x, y), text in zip(block._places, block._texts(2), strict=True):
        assert y + block._line <= block._text_height
        if x > block._margin:
            assert x + block._font.getlength(text) <= block.width
    assert block.header >= block._line * len(block._titles[0])


def test_the_captions_of_a_step():
    recording = of(moving(5), panels=2)
    texts = [Film([recording])._blocks[0]._texts(step) for step in (0, 2, 4)]
    assert texts[0] == ["step 0", "action: left", "M's termination probability 0.00"]
    assert texts[1] == ["step 2", "action: none", "M's termination probability 0.50"]
    assert texts[2] == ["step 4, the last", "action: right", "M's termination probability 1.00"]
    driven = Recording(
        {"game": moving(2)},
        np.array([[-0.5, 1, 0]] * 2, np.float32),
        names=("steering", "gas", "brake"),
        complete=False,
    )
    assert Film([driven])._blocks[0]._texts(1) == ["step 1", "steering -0.50", "gas +1.00", "brake +0.00"]


def test_a_recording_is_cut_and_keeps_its_step_numbers():
    recording = of(moving(10))
    part = recording.cut(4, 3)
    assert (len(part), part.first, part.complete) == (3, 4, False)
    assert Film([part])._blocks[0]._texts(2)[0] == "step 6"
    assert np.array_equal(part.actions, recording.actions[4:7])
    assert recording.cut(4, 6).complete
    chosen = of(moving(10), panels=2).select(**{"panel 1": "only"})
    assert list(chosen.panels) == ["only"]


def test_recordings_side_by_side_and_the_shorter_one_stops(tmp_path):
    film = Film([of(moving(10)), of(moving(30))], 2)
    assert film.steps == 30 and film.size[0] == 2 * 128 + 2
    now, later = film.frame(9)[:, :128], film.frame(25)[:, :128]
    assert np.array_equal(now, later)
    with pytest.raises(ValueError, match="recordings: expected one frame rate"):
        Film([of(moving(3)), of(moving(3), frames_per_second=50)])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"panels": {"game": moving(2)}}, "recording: expected 3 > 0 steps"),
        ({"panels": {}}, "recording: expected 3 > 0 steps"),
        ({"termination": np.zeros(4, np.float32)}, "'termination': 4"),
        ({"names": ("a", "b")}, r"names: expected 1 of them, got \['a', 'b'\]"),
        ({"panels": {"game": moving(0)}, "actions": np.zeros((0, 1), np.float32)}, "expected 0 > 0 steps"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(about, message):
    with pytest.raises(ValueError, match=message):
        Recording(**{"panels": {"game": moving(3)}, "actions": np.zeros((3, 1), np.float32), **about})


def test_the_termination_probability_is_that_of_M_stepped_along():
    """Against the native LSTM, step by step, and the head's first row in NumPy."""
    torch.manual_seed(0)
    model = make_mdnrnn(4, 8, done_pos_weight=10.0)
    rng = np.random.default_rng(1)
    z, actions = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(30, 1)).astype(np.float32)
    memory = LSTMState(model, 1)
    weight, bias = model.head.weight[0].detach().double().numpy(), float(model.head.bias[0].detach())
    for step, found in enumerate(termination_probability(model, z, actions)):
        memory.step(np.zeros(1, np.int64), z[step : step + 1], actions[step : step + 1], np.array([step == 0]))
        weighted = 1 / (1 + np.exp(-(memory.h[0] @ weight + bias)))
        wanted = weighted / (weighted + 10 * (1 - weighted))  # inverts w p / (w p + 1 - p)
        assert found == pytest.approx(wanted, rel=1e-4)
    assert rec.unweighted_probability(np.array([-1e4, 1e4], np.float32), 10.0).tolist() == [0, 1]


def test_no_termination_head_no_probability():
    model = make_mdnrnn(4, 8, done_head=False)
    assert termination_probability(model, np.zeros((3, 4), np.float32), np.zeros((3, 1), np.float32)) is None
    film = Film([of(moving(3), termination=None)])
    assert len(film._blocks[0]._texts(0)) == 2


def test_an_mp4_has_every_step_at_the_environments_speed(tmp_path):
    av = pytest.importorskip("av", reason="wants PyAV: pip install 'worldmodels-rl[video]'")
    save_video(tmp_path / "a.mp4", of(moving(50), panels=2), scale=3, seconds=1)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 35)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    film = Film([of(moving(50), panels=2)], 3)
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
