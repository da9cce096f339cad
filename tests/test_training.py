"""Training V and M: it resumes bit for bit, stops when it diverges, and learns what there is to learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from conftest import interrupt, make_episode, make_latents, mark_done, metrics, toy_config, write_store
from worldmodels.config import TrainRNNConfig
from worldmodels.data.episodes import Episode, EpisodeStore
from worldmodels.data.latents import Latents
from worldmodels.data.streams import Streams
from worldmodels.data.weights import load_model, load_tensors
from worldmodels.experiment import Experiment
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.training import DivergedError, LossGuard, cosine, seed_step
from worldmodels.models.vae import ConvVAE
from worldmodels.stages import train_rnn, train_vae
from worldmodels.stages.train_rnn import learning_rate

LENGTHS = [7, 12, 9, 14, 8, 11]
MODULES = {"train_vae": train_vae, "train_rnn": train_rnn}
FILES = {"train_vae": ("vae", "vae.safetensors"), "train_rnn": ("rnn", "rnn.safetensors")}
EARLIER = {"train_vae": ("collect",), "train_rnn": ("collect", "train_vae", "encode")}
SETTINGS = {
    "train_vae": {"steps": 7, "batch": 4, "checkpoint_every": 2, "schedule": "cosine"},
    "train_rnn": {"steps": 11, "batch": 2, "sequence": 4, "checkpoint_every": 4, "validation": 0.2},
}


def prepare(folder, stage, **changes):
    """A run folder in which ``stage`` is next."""
    experiment = Experiment(folder, toy_config(**{stage: {**SETTINGS[stage], **changes}}))
    if not experiment.is_done(EARLIER[stage][-1]):
        mark_done(experiment, *EARLIER[stage])
        if stage == "train_vae":
            write_store(experiment.path("episodes"), [make_episode(length, length) for length in LENGTHS])
        else:
            make_latents(LENGTHS[:4], latent_size=4).save(experiment.path("latents", "00000.safetensors"))
            make_latents(LENGTHS[4:], latent_size=4).save(experiment.path("latents", "00001.safetensors"))
    return experiment


def outcome(experiment, stage):
    """Everything that training leaves behind."""
    files = [FILES[stage], (FILES[stage][0], "checkpoint.safetensors")]
    if stage == "train_rnn":
        files.append(("rnn", "initial.safetensors"))
    tensors = [load_tensors(experiment.path(*file)) for file in files]
    return tensors, metrics(experiment, stage.replace("_", "-")), experiment.summary(stage)


def check_same(one, other):
    for (tensors, about), (others, about_others) in zip(one[0], other[0], strict=True):
        assert about == about_others
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert one[1:] == other[1:]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def precision(request):
    return request.param


@pytest.fixture(scope="module", params=list(MODULES))
def uninterrupted(request, precision, tmp_path_factory):
    stage = request.param
    with prepare(tmp_path_factory.mktemp("whole"), stage, precision=precision) as experiment:
        experiment.run(stage)
        return stage, outcome(experiment, stage)


@pytest.mark.parametrize(
    ("name", "call", "after"),
    [
        ("_step", 1, False),
        ("_step", 6, False),
        ("save_tensors", 1, True),
        ("save_tensors", 2, False),
        ("save_model", 1, False),
    ],
)
def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, uninterrupted, precision, name, call, after):
    stage, expected = uninterrupted
    with prepare(tmp_path, stage, precision=precision) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, MODULES[stage], name, call, after=after)
            experiment.run(stage)
        assert not experiment.path(*FILES[stage]).exists()
    torch.manual_seed(12345)  # a new process knows nothing of the old one's generator
    with prepare(tmp_path, stage, precision=precision) as experiment:
        experiment.run(stage)
        check_same(outcome(experiment, stage), expected)


def test_training_changed_the_weights(uninterrupted):
    """Otherwise the tests above would mean nothing."""
    stage, (tensors, lines, summary) = uninterrupted
    seed_step(0, "vae-init" if stage == "train_vae" else "rnn-init", 0)
    untrained = ConvVAE(4) if stage == "train_vae" else MDNRNN(4, 1, 16, 2, restart_input=True, done_head=True)
    for name, parameter in untrained.named_parameters():
        assert torch.equal(tensors[0][0][name], parameter.data) != parameter.requires_grad
    assert lines[-1]["step"] == SETTINGS[stage]["steps"]
    assert summary["parameters"] == sum(p.numel() for p in untrained.parameters() if p.requires_grad)


@pytest.mark.parametrize("stage", list(MODULES))
def test_a_diverging_loss_stops_and_the_checkpoint_is_kept(tmp_path, stage):
    """A learning rate that is far too large comes in after the first checkpoint; then the right one comes back."""
    checkpoint = FILES[stage][0], "checkpoint.safetensors"
    with prepare(tmp_path / "whole", stage) as experiment:
        experiment.run(stage)
        expected = outcome(experiment, stage)
    with prepare(tmp_path / "bad", stage) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, MODULES[stage], "save_tensors", 1, after=True)
            experiment.run(stage)
        kept = experiment.path(*checkpoint).read_bytes()
    with prepare(tmp_path / "bad", stage, lr=1e30) as experiment:
        with pytest.raises(
            DivergedError, match=rf"{stage.replace('_', '-')}: the loss is .* last good checkpoint is kept"
        ):
            experiment.run(stage)
        assert experiment.path(*checkpoint).read_bytes() == kept
        assert not experiment.path(*FILES[stage]).exists()
        assert not experiment.is_done(stage)
    with prepare(tmp_path / "bad", stage) as experiment:
        experiment.run(stage)
        check_same(outcome(experiment, stage), expected)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf"), 201.0])
def test_guard_stops_what_is_no_loss(loss):
    guard = LossGuard("train-x")
    guard.check(10.0, 1, 0.1)
    guard.check(199.0, 2, 0.1)
    guard.check(-3.0, 3, 0.1)
    with pytest.raises(DivergedError, match=r"train-x: the loss is \S+ at step 4 .*began at 10.* below 0\.1"):
        guard.check(loss, 4, 0.1)
    with pytest.raises(DivergedError):
        LossGuard("train-x").check(float("nan"), 1, 0.1)


def test_learning_rates_are_those_of_the_paper():
    config = TrainRNNConfig()
    for step in (0, 1, 1000, 24_399):
        assert learning_rate(config, step) == pytest.approx((1e-3 - 1e-5) * 0.99999**step + 1e-5)
    rates = [cosine(step, 1000, 0.1, 5.0) for step in range(1000)]
    assert rates[:20] == pytest.approx([5.0 * (step + 1) / 20 for step in range(20)])  # a fiftieth to warm up
    assert rates[20] == 5.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[510] == pytest.approx((0.1 + 5.0) / 2)
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)


def test_every_step_draws_its_own_numbers():
    def draw(*key):
        seed_step(*key)
        return tuple(torch.randn(3).tolist())

    assert draw(1, "a", 2) == draw(1, "a", 2)
    assert len({draw(1, "a", 2), draw(1, "a", 3), draw(2, "a", 2), draw(1, "b", 2)}) == 4


def test_frames_are_held_out_by_episode_and_read_once_an_epoch(tmp_path):
    write_store(tmp_path, [make_episode(length, length) for length in LENGTHS])
    store = EpisodeStore(tmp_path)
    train, held_out = train_vae.split_frames(store, 5)
    store.close()
    assert train.tolist() == list(range(sum(LENGTHS[:-1])))
    assert len(held_out) == 5
    assert (held_out.min(), held_out.max()) == (sum(LENGTHS[:-1]), sum(LENGTHS) - 1)
    order = train_vae._Order(train, 8, seed=0)
    rows = np.concatenate([order.batch(step) for step in range(25)])  # four epochs of 50
    for epoch in range(4):
        assert sorted(rows[50 * epoch : 50 * (epoch + 1)]) == train.tolist()
    assert (rows[:50] != rows[50:100]).any()
    for step in (24, 3, 6):  # and any batch can be found again
        np.testing.assert_array_equal(train_vae._Order(train, 8, seed=0).batch(step), rows[8 * step : 8 * step + 8])


def test_gradients_are_clipped_by_value():
    latents = make_latents(LENGTHS, latent_size=4)
    for clip in (1e-3, 1e-2):
        config = TrainRNNConfig(hidden_size=8, mixtures=2, clip=clip, precision="float32")
        model = train_rnn.build(config, latents)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        chunk = next(Streams(latents, np.arange(6), 2, 8, 0).epoch(0))
        train_rnn._step(model, optimizer, chunk, model.initial_state(2), 1e-3, config)
        largest = max(p.grad.abs().max().item() for p in model.parameters() if p.requires_grad)
        assert largest == pytest.approx(clip)


def test_a_batch_in_small_pieces_gives_the_same_gradient():
    """Latents without spread, as every piece draws numbers of its own; recordings that were cut off are among them."""
    latents = make_latents(LENGTHS, [True, False, True, True, False, True], latent_size=4)
    latents = Latents(**{**vars(latents), "logvar": np.full_like(latents.logvar, -80)})
    chunk = next(Streams(latents, np.arange(6), 5, 7, 0).epoch(0))
    found = []
    for micro_steps in (1000, 14, 1):  # all five streams at once, two, one
        config = TrainRNNConfig(
            hidden_size=8, mixtures=2, clip=1e9, precision="float32", reward_head=True, micro_steps=micro_steps
        )
        torch.manual_seed(0)
        model = train_rnn.build(config, latents)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        losses, state = train_rnn._step(model, optimizer, chunk, model.initial_state(5), 1e-3, config)
        found.append([*losses, *state, *(p.grad for p in model.parameters() if p.requires_grad)])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def picture(channel):
    """One bright half on black; which half and which colour is all there is to know."""
    frame = np.full((64, 64, 3), 20, np.uint8)
    frame[(slice(32), slice(32, 64))[channel % 2], :, channel] = 230
    return frame


def test_v_learns_a_few_pictures(tmp_path):
    pictures = np.stack([picture(channel) for channel in range(3)])
    episode = Episode(**{**vars(make_episode(9)), "frames": np.tile(pictures, (3, 1, 1, 1))})
    settings = {"steps": 50, "batch": 6, "lr": 1e-3, "checkpoint_every": 50, "latent_size": 4, "precision": "float32"}
    with Experiment(tmp_path, toy_config(train_vae=settings)) as experiment:
        write_store(experiment.path("episodes"), [episode] * 2)
        mark_done(experiment, "collect")
        experiment.run("train_vae")
        lines = experiment.metrics("train-vae")
        vae = load_model(experiment.path("vae", "vae.safetensors"), ConvVAE)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    variance = (x - x.mean(dim=0)).square().sum(dim=(1, 2, 3)).mean().item()  # all that the mean picture leaves
    with torch.inference_mode():
        error = (vae.decode(vae.encode(x)[0]) - x).square().sum(dim=(1, 2, 3)).mean().item()
    assert error < 0.3 * variance
    assert [line["step"] for line in lines] == [25, 50, 50]
    assert lines[1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["validation_squared_error"] < 0.3 * variance


def test_m_learns_the_entropy_of_its_data_and_when_episodes_end(tmp_path):
    """A clock that runs to 12 and noise of known width: no prediction is better than the noise's entropy."""
    sigma, length, episodes = 0.1, 12, 40
    clock = np.tile(np.arange(length) / 6 - 1, episodes)
    mu = np.stack([clock, np.full(len(clock), 2.0)], axis=1).astype(np.float16)
    latents = Latents(
        mu,
        np.full_like(mu, 2 * np.log(sigma)),
        np.zeros((len(mu), 1), np.float32),
        np.ones(len(mu), np.float32),
        np.full(episodes, length),
        np.ones(episodes, np.bool_),
    )
    settings = {"steps": 300, "batch": 16, "sequence": 24, "hidden_size": 16, "lr": 1e-2, "checkpoint_every": 300}
    with Experiment(tmp_path, toy_config(train_rnn={**settings, "validation": 0.25})) as experiment:
        latents.save(experiment.path("latents", "00000.safetensors"))
        mark_done(experiment, "collect", "train_vae", "encode")
        experiment.run("train_rnn")
        lines = experiment.metrics("train-rnn")
        figures = experiment.summary("train_rnn")
        starts, _ = load_tensors(experiment.path("rnn", "initial.safetensors"))
    entropy = 0.5 * math.log(2 * math.pi * math.e * sigma**2)  # nats per dimension
    assert lines[0]["z"] > entropy + 0.5
    assert entropy - 0.15 < figures["z"] < entropy + 0.25
    assert figures["done_recall"] == 1
    assert figures["done_false_alarms"] < 0.03
    assert lines[-1]["validation_z"] == figures["z"]
    np.testing.assert_allclose(starts["mu"], np.tile([[-1.0, 2.0]], (episodes, 1)))
    np.testing.assert_allclose(starts["logvar"].exp().sqrt(), sigma, rtol=2e-3)


@pytest.mark.parametrize("stage", list(MODULES))
def test_one_episode_is_not_enough(tmp_path, stage):
    with Experiment(tmp_path, toy_config()) as experiment:
        write_store(experiment.path("episodes"), [make_episode(5)])
        make_latents([5]).save(experiment.path("latents", "00000.safetensors"))
        mark_done(experiment, *EARLIER[stage])
        with pytest.raises(ValueError, match=r"collect\.episodes: expected at least 2 to hold one out"):
            experiment.run(stage)
