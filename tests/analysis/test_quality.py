"""The measures of V and M against cases whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import make_episode, make_latents, make_mdnrnn, make_vae, write_store
from worldmodels.analysis import figures, quality
from worldmodels.data.episodes import Episode, EpisodeStore
from worldmodels.data.latents import Latents
from worldmodels.data.records import PixelQuality, VAEQuality
from worldmodels.data.sequences import PackedSequences
from worldmodels.models.mdnrnn import MDNOutput, mdn_nll
from worldmodels.pipeline.report_page import quality_tables


def moving_square(length=6):
    """Black, with a white square of 8x8 that goes 8 pixels a frame, and one grey pixel that changes by one level."""
    frames = np.zeros((length, 64, 64, 3), np.uint8)
    for number in range(length):
        frames[number, 8:16, 8 * number : 8 * number + 8] = 255
        frames[number, 40, 40, 1] = 100 + number % 2
    return Episode(**{**vars(make_episode(length)), "frames": frames})


def test_errors_are_told_apart_by_what_moves(tmp_path):
    write_store(tmp_path, [moving_square(), moving_square(4)])
    store = EpisodeStore(tmp_path)
    vae = make_vae()
    found = quality.reconstruction(vae, store, np.arange(10))
    assert found.frames == 8  # without the two that begin an episode
    assert set(found.pixels) == {"all", "still", "moving", "moving much"}

    rows = np.array([1, 2, 3, 4, 5, 7, 8, 9])
    real, before = store.read(rows), store.read(rows - 1)
    store.close()
    with torch.inference_mode():
        x = torch.from_numpy(real).permute(0, 3, 1, 2) / 255
        drawn = vae.decode(vae.encode(x)[0]).permute(0, 2, 3, 1).numpy()
    error = np.square(drawn - real / 255).sum(axis=3)
    other = np.square(real / 255 - real.mean(axis=0) / 255).sum(axis=3)
    change = np.abs(real.astype(int) - before).max(axis=3)
    masks = {"all": change >= 0, "still": change == 0, "moving": change > 0, "moving much": change >= 32}
    assert masks["moving much"].sum() == 8 * 128
    assert masks["moving"].sum() == 8 * 129
    for name, mask in masks.items():
        row = found.pixels[name]
        assert row.share == pytest.approx(mask.mean())
        assert row.error == pytest.approx(error[mask].mean(), rel=1e-4)
        assert row.mean_picture == pytest.approx(other[mask].mean(), rel=1e-4)
        assert row.explained == pytest.approx(1 - error[mask].sum() / other[mask].sum(), rel=1e-4)


def test_a_class_without_pixels_has_no_error(tmp_path):
    still = Episode(**{**vars(make_episode(3)), "frames": np.full((3, 64, 64, 3), 7, np.uint8)})
    write_store(tmp_path, [still])
    store = EpisodeStore(tmp_path)
    found = quality.reconstruction(make_vae(), store, np.arange(3))
    assert found.pixels["moving"] == PixelQuality(share=0.0, error=None, mean_picture=None, explained=None)
    assert quality.reconstruction(make_vae(), store, np.arange(1)) == VAEQuality(frames=0, pixels={})
    store.close()


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_calibration_of_a_model_that_is_right(weight):
    """It says what the loss asks it to say; ``expected`` is the truth again, and that is what is observed."""
    rng = np.random.default_rng(0)
    truth = rng.choice([0.0005, 0.02, 0.15, 0.45, 0.97], 200_000).astype(np.float64)
    said = weight * truth / (weight * truth + 1 - truth)
    done = rng.uniform(size=len(truth)) < truth
    rows = quality.calibration(said.astype(np.float32), done, weight)
    assert sum(row.count for row in rows) == len(truth)
    assert len(rows) == 5
    for row, probability in zip(rows, [0.0005, 0.02, 0.15, 0.45, 0.97], strict=True):
        assert row.low <= row.predicted < row.high
        assert row.expected == pytest.approx(probability, rel=1e-3)
        assert row.observed == pytest.approx(probability, abs=5 * math.sqrt(probability / row.count))


def test_calibration_counts_every_step_once_also_at_the_ends():
    rows = quality.calibration(np.array([0.0, 1.0, 0.5, 0.4999], np.float32), np.array([False, True, True, False]))
    assert [(row.low, row.count, row.observed) for row in rows] == [
        (0.0, 1, 0.0),
        (0.4, 1, 0.0),
        (0.5, 1, 1.0),
        (0.9, 1, 1.0),
    ]


def certain(lengths, terminated=None, latent_size=4, spread=-80.0):
    latents = make_latents(lengths, terminated, latent_size)
    return Latents(**{**vars(latents), "logvar": np.full_like(latents.logvar, spread)})


@torch.no_grad()
def test_predictions_equal_a_loop_over_episodes():
    lengths, terminated = [9, 4, 13, 6], [True, False, True, True]
    latents, model = certain(lengths, terminated), make_mdnrnn(4, 8, done_pos_weight=10.0)
    found = quality.predictions(model, PackedSequences(latents, np.arange(4), 2, 5, 0))
    terms, probabilities, ends = [], [], []
    for start, length, over in zip(latents.starts, lengths, terminated, strict=True):
        z = torch.from_numpy(latents.mu[start : start + length].astype(np.float32))[None]
        flags = torch.zeros(1, length)
        flags[0, 0] = 1
        out, _ = model(z, torch.from_numpy(latents.actions[start : start + length])[None], flags)
        terms.append(mdn_nll(MDNOutput(*(part[:, :-1] for part in out[:3]), None, None), z[:, 1:])[0])
        known = length if over else length - 1
        probabilities.append(out.done_logit[0, :known].sigmoid())
        ends.append(np.arange(1, known + 1) == length)
    per_dimension = torch.cat(terms).mean(dim=0)
    np.testing.assert_allclose(found.z_dimensions, per_dimension, rtol=1e-4, atol=1e-4)
    assert found.z == pytest.approx(float(per_dimension.mean()), rel=1e-4)
    assert found.z_noise == pytest.approx(0.5 * math.log(2 * math.pi * math.e) - 40)
    expected = quality.calibration(torch.cat(probabilities).numpy(), np.concatenate(ends), 10.0)
    assert [row.count for row in found.done] == [row.count for row in expected]
    assert sum(row.count for row in expected) == 31
    for row, wanted in zip(found.done, expected, strict=True):
        assert vars(row) == pytest.approx(vars(wanted), rel=1e-4)


@torch.no_grad()
def test_running_free_equals_a_loop_of_single_steps():
    lengths = [40, 7, 25]
    latents, model = certain(lengths), make_mdnrnn(4, 8)
    starts = quality.choose_starts(latents, np.arange(3), 10)
    assert (starts.first <= starts.last).all()
    assert (starts.last < starts.end).all()
    free = quality.run_free(model, latents, starts, 12, sample=False)
    assert free.shape == (3, 12, 4)
    for row, (first, last, end) in enumerate(zip(starts.first, starts.last, starts.end, strict=True)):
        state, z = None, None
        for frame in range(first, min(last + 12, end + 1)):
            seen = torch.from_numpy(latents.mu[frame].astype(np.float32))[None, None] if frame <= last else z
            action = torch.from_numpy(latents.actions[frame])[None, None]
            out, state = model(seen, action, torch.tensor([[float(frame == first)]]), state)
            z = (out.logmix.exp() * out.mean).sum(dim=-1)
            if frame >= last:
                np.testing.assert_allclose(free[row, frame - last], z[0, 0], rtol=1e-3, atol=1e-4)


class Clock(torch.nn.Module):
    """An M that knows: z goes up by 1/8 a step, and by the action."""

    latent_size, done_head = 2, False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, action, restart, state=None):
        mean = (z + 0.125 + action).unsqueeze(-1).expand(-1, -1, -1, 2)
        logmix = torch.full_like(mean, math.log(0.5))
        return MDNOutput(logmix, mean, torch.full_like(mean, -7.0), None, None), state


def clock_latents(lengths):
    rng = np.random.default_rng(0)
    total = sum(lengths)
    actions = (rng.integers(-1, 2, (total, 1)) / 8).astype(np.float32)
    mu = np.zeros((total, 2), np.float16)
    starts = np.cumsum([0, *lengths[:-1]])
    for frame in range(total):
        if frame not in starts:
            mu[frame] = mu[frame - 1] + 0.125 + actions[frame - 1]
    return Latents(
        mu,
        np.full_like(mu, -20),
        actions,
        np.ones(total, np.float32),
        np.array(lengths),
        np.ones(len(lengths), np.bool_),
    )


def test_a_model_that_knows_the_world_has_no_error_at_any_horizon():
    latents = clock_latents([150, 130, 30, 2])
    table = quality.rollouts(Clock(), latents, np.arange(4))
    assert [(row.steps, row.count) for row in table] == [(1, 4), (10, 3), (50, 2), (100, 2)]
    for row in table:
        assert row.mean < 1e-6
        assert row.sample < 1e-2
        assert row.stays > 0.005 * row.steps
        assert row.picture_mean is None
    assert table[-1].stays > 20
    assert quality.rollouts(Clock(), clock_latents([1, 1]), np.arange(2)) == []
    assert quality.rollouts(Clock(), clock_latents([5, 5]), np.arange(2), horizons=(10,)) == []


def test_pictures_of_rollouts_are_compared_with_the_frames(tmp_path):
    lengths = [30, 40]
    write_store(tmp_path, [make_episode(length, length) for length in lengths])
    store = EpisodeStore(tmp_path)
    latents, vae = certain(lengths), make_vae(4)
    table = quality.rollouts(make_mdnrnn(4, 8), latents, np.arange(2), vae=vae, store=store, horizons=(1, 10))
    starts = quality.choose_starts(latents, np.arange(2), 64)
    now, before = store.read(starts.last + 10) / 255, store.read(starts.last) / 255
    with torch.inference_mode():
        z = torch.from_numpy(latents.mu[starts.last + 10].astype(np.float32))
        own = vae.decode(z).permute(0, 2, 3, 1).numpy()
    store.close()
    assert [row.steps for row in table] == [1, 10]
    assert table[1].picture_stays == pytest.approx(np.square(now - before).sum(axis=(1, 2, 3)).mean())
    assert table[1].picture_v == pytest.approx(np.square(own - now).sum(axis=(1, 2, 3)).mean(), rel=1e-2)
    assert table[1].picture_mean > 0


def test_measures_go_through_json_into_a_figure_and_a_table(tmp_path):
    lengths = [130, 40, 25]
    write_store(tmp_path / "episodes", [make_episode(length, length) for length in lengths])
    store = EpisodeStore(tmp_path / "episodes")
    latents, model = certain(lengths), make_mdnrnn(4, 8)
    rnn = quality.predictions(model, PackedSequences(latents, np.arange(3), 2, 16, 0))
    rnn = replace(rnn, rollouts=quality.rollouts(model, latents, np.arange(3), vae=make_vae(4), store=store))
    vae = quality.reconstruction(make_vae(4), store, np.arange(195))
    store.close()
    for measured in (vae, rnn):
        measured.write(tmp_path / "quality.json")
        assert type(measured).read(tmp_path / "quality.json") == measured
    figures.quality(tmp_path / "quality.png", vae, rnn)
    assert (tmp_path / "quality.png").stat().st_size > 5000
    text = "".join(quality_tables(vae, rnn))
    for wanted in ("moving by over 32/255", "nats per latent dimension", "observed", "persistence", "error per frame"):
        assert wanted in text
    assert text.count("<table") == 5
