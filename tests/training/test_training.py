"""Training V and M: it resumes bit for bit, stops when it diverges, and learns what there is to learn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import interrupt, make_episode, make_latents, make_vae, mark_done, metrics, toy_config, write_store
from worldmodels.data.episodes import Episode, EpisodeStore
from worldmodels.data.frames import ShuffledBatches
from worldmodels.data.latents import Latents
from worldmodels.data.records import RNNQuality
from worldmodels.data.sequences import PackedSequences
from worldmodels.dream.world_model import load_world_model
from worldmodels.models import device as devices
from worldmodels.models.device import seed_step
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE, vae_loss
from worldmodels.models.weights import load_model, load_tensors, save_model
from worldmodels.pipeline.config import TrainRNNConfig, TrainVAEConfig
from worldmodels.pipeline.run import Run
from worldmodels.training import rnn as train_rnn
from worldmodels.training import trainer
from worldmodels.training import vae as train_vae
from worldmodels.training.distributed import Ranks
from worldmodels.training.optim import DivergedError, LossGuard, MicroBatches, cosine
from worldmodels.training.rnn import learning_rate, split_episodes

LENGTHS = [7, 12, 9, 14, 8, 11]
MODULES = {"train_vae": train_vae, "train_rnn": train_rnn}
OWNERS = {"save_tensors": trainer, "save_model": trainer, "export": trainer.Trainer}
CPU_ALLOCATION = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
FILES = {"train_vae": ("vae", "vae.safetensors"), "train_rnn": ("rnn", "rnn.safetensors")}
EARLIER = {"train_vae": ("collect",), "train_rnn": ("collect", "train_vae", "encode")}
#: Steps of image grids where 3 steps are enough between two, the first of them at the end of the first epoch.
STEPS_OF_GRIDS = {"train_vae": [3, 4, 8, 9], "train_rnn": [3, 4, 8, 9]}
SETTINGS = {
    "train_vae": {"steps": 7, "batch_size": 4, "checkpoint_every": 2, "schedule": "cosine"},
    "train_rnn": {
        "steps": 11,
        "batch_size": 2,
        "sequence_length": 4,
        "checkpoint_every": 4,
        "validation_fraction": 0.2,
    },
}


def prepare(folder, stage, **changes):
    """A run folder in which ``stage`` is next."""
    experiment = Run(folder, toy_config(**{stage: {**SETTINGS[stage], **changes}}))
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


NEEDS_BFLOAT16 = pytest.mark.skipif(
    not devices.computes_in_bfloat16(torch.device("cpu")), reason="no AVX-512 BF16 here"
)


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=NEEDS_BFLOAT16)])
def precision(request):
    return request.param


@pytest.fixture(scope="module", params=list(MODULES))
def uninterrupted(request, precision, tmp_path_factory):
    stage = request.param
    with prepare(tmp_path_factory.mktemp("whole"), stage, precision=precision) as experiment:
        experiment.run_stage(stage)
        return stage, outcome(experiment, stage)


@pytest.mark.parametrize(
    ("name", "call", "after"),
    [
        ("_step", 1, False),
        ("_step", 6, False),
        ("save_tensors", 1, True),
        ("save_tensors", 2, False),
        ("save_model", 1, False),
        ("export", 1, False),
    ],
)
def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, uninterrupted, precision, name, call, after):
    stage, expected = uninterrupted
    with prepare(tmp_path, stage, precision=precision) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, OWNERS.get(name, MODULES[stage]), name, call, after=after)
            experiment.run_stage(stage)
        assert not experiment.path(*FILES[stage]).exists()
    torch.manual_seed(12345)  # a new process knows nothing of the old one's generator
    with prepare(tmp_path, stage, precision=precision) as experiment:
        experiment.run_stage(stage)
        check_same(outcome(experiment, stage), expected)


def test_training_changed_the_weights(uninterrupted):
    """Otherwise the tests above would mean nothing."""
    stage, (tensors, lines, summary) = uninterrupted
    seed_step(0, "vae-init" if stage == "train_vae" else "rnn-init", 0)
    untrained = ConvVAE(4) if stage == "train_vae" else MDNRNN(4, 1, 8, 2, restart_input=True, done_head=True)
    for name, parameter in untrained.named_parameters():
        assert torch.equal(tensors[0][0][name], parameter.data) != parameter.requires_grad
    assert lines[-1]["step"] == SETTINGS[stage]["steps"]
    assert summary["parameters"] == sum(p.numel() for p in untrained.parameters() if p.requires_grad)


@pytest.mark.parametrize("stage", list(MODULES))
def test_a_diverging_loss_stops_and_the_checkpoint_is_kept(tmp_path, stage):
    """A learning rate that is far too large comes in after the first checkpoint; then the right one comes back."""
    checkpoint = FILES[stage][0], "checkpoint.safetensors"
    with prepare(tmp_path / "whole", stage) as experiment:
        experiment.run_stage(stage)
        expected = outcome(experiment, stage)
    with prepare(tmp_path / "bad", stage) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, trainer, "save_tensors", 1, after=True)
            experiment.run_stage(stage)
        kept = experiment.path(*checkpoint).read_bytes()
    with prepare(tmp_path / "bad", stage, lr=1e30) as experiment:
        with pytest.raises(DivergedError, match=rf"{stage.replace('_', '-')}: the loss is .* last checkpoint is kept"):
            experiment.run_stage(stage)
        assert experiment.path(*checkpoint).read_bytes() == kept
        assert not experiment.path(*FILES[stage]).exists()
        assert not experiment.is_done(stage)
    with prepare(tmp_path / "bad", stage) as experiment:
        experiment.run_stage(stage)
        check_same(outcome(experiment, stage), expected)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf"), 201.0])
def test_guard_stops_what_is_no_loss(loss):
    guard = LossGuard("train-x")
    guard.check(10.0, 1, 0.1)
    guard.check(199.0, 2, 0.1)
    guard.check(-3.0, 3, 0.1)
    with pytest.raises(DivergedError, match=r"train-x: the loss is \S+ at step 4 .*initially 10.* below 0\.1"):
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

    queued = len(torch.cuda._queued_calls)  # torch.manual_seed adds a call with its stack trace where there is no GPU
    assert draw(1, "a", 2) == draw(1, "a", 2)
    assert len(torch.cuda._queued_calls) == queued
    assert len({draw(1, "a", 2), draw(1, "a", 3), draw(2, "a", 2), draw(1, "b", 2)}) == 4


def test_frames_are_held_out_by_episode_and_read_once_an_epoch(tmp_path):
    write_store(tmp_path, [make_episode(length, length) for length in LENGTHS])
    store = EpisodeStore(tmp_path)
    train, held_out = train_vae.split_frames(store, 5)
    store.close()
    assert train.tolist() == list(range(sum(LENGTHS[:-1])))
    assert len(held_out) == 5
    assert (held_out.min(), held_out.max()) == (sum(LENGTHS[:-1]), sum(LENGTHS) - 1)
    order = ShuffledBatches(train, 8, seed=0)
    rows = np.concatenate([order.batch(step) for step in range(25)])  # four epochs of 50
    for epoch in range(4):
        assert sorted(rows[50 * epoch : 50 * (epoch + 1)]) == train.tolist()
    assert (rows[:50] != rows[50:100]).any()
    for step in (24, 3, 6):  # and any batch can be found again
        np.testing.assert_array_equal(ShuffledBatches(train, 8, seed=0).batch(step), rows[8 * step : 8 * step + 8])


def test_every_twentieth_episode_is_held_out_from_v(tmp_path):
    """A next round's too, whose episodes come last."""
    write_store(tmp_path, [make_episode(1 + number % 3, number) for number in range(45)])
    store = EpisodeStore(tmp_path)
    first = np.concatenate([[0], store.lengths.cumsum()])
    train, held_out = train_vae.split_frames(store, 100)
    store.close()
    assert held_out.tolist() == [*range(first[19], first[20]), *range(first[39], first[40])]
    assert sorted([*train, *held_out]) == list(range(first[-1]))


def test_v_begins_at_the_mean_colour(tmp_path):
    """Of the training frames; a rod on white would otherwise saturate every output."""
    episode = make_episode(6)
    shown = np.broadcast_to(np.array([240, 128, 20], np.uint8), (6, 64, 64, 3))
    write_store(tmp_path / "episodes", [replace(episode, frames=shown), replace(episode, frames=shown), episode])
    store = EpisodeStore(tmp_path / "episodes")
    train, _ = train_vae.split_frames(store, 4)
    np.testing.assert_allclose(train_vae.mean_colour(store, train), np.array([240, 128, 20]) / 255)
    store.close()
    biases = {}
    for chosen in (True, False):
        config = toy_config(train_vae={"steps": 0, "mean_output": chosen})
        with Run(tmp_path / str(chosen), config) as experiment:
            mark_done(experiment, "collect")
            (experiment.folder / "episodes").symlink_to(tmp_path / "episodes")
            train_vae.train_vae(experiment, config.train_vae, 0)
            path = experiment.path("vae", "vae.safetensors")
        biases[chosen] = load_model(path, ConvVAE).decoder[-2].bias.detach().numpy()
    colour = np.array([240, 128, 20]) / 255
    np.testing.assert_allclose(1 / (1 + np.exp(-biases[True])), colour.clip(0.05, 0.95), rtol=1e-5)
    assert (biases[False] == 0).all()


def test_gradients_are_clipped_by_value():
    latents = make_latents(LENGTHS, latent_size=4)
    for clip in (1e-3, 1e-2):
        config = TrainRNNConfig(hidden_size=8, num_mixtures=2, grad_clip=clip, precision="float32")
        model = train_rnn.build(config, latents)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        chunk = next(PackedSequences(latents, np.arange(6), 2, 8, 0).epoch(0))
        micro_batches = MicroBatches("train-rnn", "sequences", 2, "--micro-batch-steps")
        train_rnn._step(model, optimizer, chunk, model.initial_state(2), 1e-3, config, micro_batches, Ranks())
        largest = max(p.grad.abs().max().item() for p in model.parameters() if p.requires_grad)
        assert largest == pytest.approx(clip)


def check_gradients(found):
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 + 1e-5 * one.abs().max())


def test_a_batch_of_m_in_micro_batches_gives_the_same_gradient():
    """Recordings that were cut off and streams that end early are among them; every micro-batch takes its own noise."""
    latents = make_latents(LENGTHS, [True, False, True, True, False, True], latent_size=4)
    chunk = list(PackedSequences(latents, np.arange(6), 5, 7, 0).epoch(0))[1]
    assert 0 < chunk.valid.sum() < chunk.valid.size
    config = TrainRNNConfig(hidden_size=8, num_mixtures=2, precision="float32", reward_head=True)
    torch.manual_seed(0)
    model, noise = train_rnn.build(config, latents), torch.randn(chunk.mu.shape)
    state = (torch.randn(1, 5, 8), torch.randn(1, 5, 8))
    found = []
    for at_once in (5, 2, 1):
        losses, after = train_rnn.accumulate_gradient(model, chunk, noise, state, config, at_once, Ranks())
        found.append([*losses, *after, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    check_gradients(found)
    whole, _, _ = train_rnn.chunk_losses(model, chunk, state, config, noise)
    np.testing.assert_allclose(torch.stack(whole).detach(), torch.stack([*found[0][:4]]), rtol=1e-5)


def test_m_learns_rewards_within_the_limit():
    """The loss is that of rewards which were cut beforehand; without a limit they count as they are."""
    latents = make_latents([12], [False], latent_size=4)
    chunk = next(PackedSequences(latents, np.arange(1), 1, 11, 0).epoch(0))
    model = train_rnn.build(config := TrainRNNConfig(hidden_size=8, num_mixtures=2, reward_head=True), latents)
    noise, state = torch.zeros(chunk.mu.shape), model.initial_state(1)

    def loss(rewards, limit):
        chunk.reward[:] = rewards
        return train_rnn.chunk_losses(model, chunk, state, replace(config, reward_clip=limit), noise)[0].reward

    seen = np.tile(np.float32([-100, 3, 0, 25]), 3)[: chunk.reward.shape[1]]
    assert loss(seen, 10.0) == loss(np.clip(seen, -10, 10), 0.0)
    assert loss(seen, 0.0) > 10 * loss(seen, 10.0)


def test_a_batch_of_v_in_micro_batches_gives_the_same_gradient():
    config = TrainVAEConfig(batch_size=5, latent_size=4, precision="float32")
    model, noise = make_vae(4), torch.randn(5, 4)
    frames = make_episode(5).frames
    found = []
    for at_once in (5, 2, 1):
        losses = train_vae.accumulate_gradient(model, frames, noise, config, at_once, Ranks())
        found.append([losses, *(p.grad.clone() for p in model.parameters())])
    check_gradients(found)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    expected = vae_loss(*(lambda out: (out[0], x, *out[1:]))(model(x, noise)))
    np.testing.assert_allclose(torch.stack(expected).detach(), found[0][0], rtol=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), CPU_ALLOCATION])
@pytest.mark.parametrize("stage", list(MODULES))
def test_out_of_memory_halves_the_micro_batches_and_the_result_is_the_same(tmp_path, capsys, monkeypatch, stage, error):
    """At first there is memory for a micro-batch of one only; float32, so that only the order of sums differs."""
    steps = {"steps": 2, "precision": "float32", "checkpoint_every": 2}
    steps |= {"batch_size": 4} if stage == "train_vae" else {"micro_batch_steps": 8}
    with prepare(tmp_path / "roomy", stage, **steps) as experiment:
        experiment.run_stage(stage)
        expected = outcome(experiment, stage)
    name = "vae_loss" if stage == "train_vae" else "chunk_losses"
    real = getattr(MODULES[stage], name)

    def full(*arguments, **options):
        if len(arguments[0 if stage == "train_vae" else 1].mu if stage == "train_rnn" else arguments[0]) > 1:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(MODULES[stage], name, full)
    with prepare(tmp_path / "full", stage, **steps) as experiment:
        experiment.run_stage(stage)
        found = outcome(experiment, stage)
    said = capsys.readouterr().err
    unit = "frames" if stage == "train_vae" else "sequences"
    assert f"{stage.replace('_', '-')}: out of memory with micro-batches of 2 {unit}; retrying with 1" in said
    assert "Traceback" not in said
    for (tensors, _), (others, _) in zip(found[0], expected[0], strict=True):
        for key in tensors:
            if key.startswith("model.") or "." not in key:
                np.testing.assert_allclose(tensors[key], others[key], rtol=1e-3, atol=2e-4)


def test_out_of_memory_with_nothing_to_halve_is_explained():
    def never(rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(rows):
        raise RuntimeError("something else")

    micro_batches = MicroBatches("train-vae", "frames", 4, "--micro-batch-size")
    with pytest.raises(RuntimeError, match=r"out of memory with micro-batches of 1 frames; one is the minimum"):
        micro_batches.run(never)
    assert micro_batches.rows == 1
    with pytest.raises(RuntimeError, match="something else"):
        micro_batches.run(broken)
    with pytest.raises(
        RuntimeError, match=r"out of memory with micro-batches of 4 frames; set --micro-batch-size to a smaller number"
    ):
        MicroBatches("train-vae", "frames", 4, "--micro-batch-size", retry=False).run(never)


@pytest.mark.parametrize("stage", list(MODULES))
def test_no_steps_hand_on_what_training_starts_from(tmp_path, stage):
    file = FILES[stage]
    with prepare(tmp_path / "before", stage) as experiment:
        experiment.run_stage(stage)
    with prepare(tmp_path / "kept", stage, steps=0, init_from=str(tmp_path / "before")) as experiment:
        experiment.run_stage(stage)
        summary = experiment.summary(stage)
    (before, _), (kept, about) = (load_tensors((tmp_path / name).joinpath(*file)) for name in ("before", "kept"))
    assert all(torch.equal(before[name], kept[name]) for name in before)
    assert about["steps"] == summary["steps"] == summary["kept_step"] == 0
    assert summary["loss" if stage == "train_vae" else "total"] > 0 and summary["quality"]


def test_an_exported_m_keeps_the_positive_class_weight_it_was_trained_with(tmp_path):
    with prepare(tmp_path / "before", "train_rnn", done_pos_weight=3.0) as experiment:
        experiment.run_stage("train_rnn")
    with prepare(tmp_path / "kept", "train_rnn", steps=0, init_from=str(tmp_path / "before")) as experiment:
        experiment.run_stage("train_rnn")
    for name in ("before", "kept"):
        assert load_world_model(tmp_path / name).mdnrnn.done_pos_weight == 3.0


@pytest.mark.parametrize(("stage", "setting"), [("train_vae", "latent_size"), ("train_rnn", "hidden_size")])
def test_a_start_of_another_shape_is_named(tmp_path, stage, setting):
    with prepare(tmp_path / "before", stage) as experiment:
        experiment.run_stage(stage)
    size = getattr(getattr(experiment.config, stage), setting) + 1
    said = rf"^{stage}\.init_from: expected .*'{setting}': {size}.* got .*'{setting}': {size - 1}.*before"
    with pytest.raises(ValueError, match=said):
        prepare(tmp_path / "after", stage, init_from=str(tmp_path / "before"), **{setting: size})


def test_micro_batches_change_no_validation():
    latents = make_latents(LENGTHS, latent_size=4)
    config = TrainRNNConfig(hidden_size=8, batch_size=5, sequence_length=4)
    streams = PackedSequences(latents, np.arange(len(LENGTHS)), config.batch_size, config.sequence_length, 0)
    model = MDNRNN(4, 1, 8)
    whole, divided = (train_rnn.validate(model, streams, replace(config, micro_batch_steps=steps)) for steps in (99, 8))
    assert divided == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("stage", list(MODULES))
def test_the_best_weights_are_handed_on_and_patience_ends_the_training(tmp_path, monkeypatch, stage):
    """Validation says 500, 300, 400, 400: the second is the best, and after two that are worse it stops."""
    criterion = "loss" if stage == "train_vae" else "total"
    settings = {"steps": 12, "checkpoint_every": 2}

    def run(name, **changes):
        values = iter([500.0, 300.0, 400.0, 400.0, 600.0, 600.0, 600.0])
        real = MODULES[stage].validate
        with monkeypatch.context() as patch:
            patch.setattr(MODULES[stage], "validate", lambda *arguments: {**real(*arguments), criterion: next(values)})
            with prepare(tmp_path / name, stage, **{**settings, **changes}) as experiment:
                experiment.run_stage(stage)
                return outcome(experiment, stage)

    (kept, checkpoint, *_), lines, summary = run("best", patience=2)
    assert (summary["steps"], summary["kept_step"], summary[criterion]) == (8, 4, 300.0)
    assert kept[1]["steps"] == 4
    assert checkpoint[1]["step"] == 8
    assert [line["step"] for line in lines if f"validation_{criterion}" in line] == [2, 4, 6, 8]
    assert any((kept[0][name] != checkpoint[0][f"model.{name}"]).any() for name in kept[0])
    best, about = load_tensors(tmp_path / "best" / FILES[stage][0] / "best.safetensors")
    assert about["steps"] == 4
    assert all(torch.equal(best[name], kept[0][name]) for name in best)

    (kept, checkpoint, *_), _, summary = run("last", keep="last")
    assert (summary["steps"], summary["kept_step"], summary[criterion]) == (12, 12, 600.0)
    assert all(torch.equal(kept[0][name], checkpoint[0][f"model.{name}"]) for name in kept[0])


def sheets(experiment, stage):
    return {path.name: path.read_bytes() for path in experiment.path(FILES[stage][0], "sheets").iterdir()}


@pytest.mark.parametrize(
    ("gap", "steps"), [(200, {"train_vae": [4, 8, 9], "train_rnn": [4, 8, 9]}), (3, STEPS_OF_GRIDS)]
)
@pytest.mark.parametrize("stage", list(MODULES))
def test_a_sheet_is_drawn_at_checkpoints_and_after_epochs_far_apart(tmp_path, monkeypatch, stage, gap, steps):
    """An epoch of V is 50 frames, one of M's three chunks of 14 steps. A resumed run has the same sheets."""
    settings = {"steps": 9, "checkpoint_every": 4} | (
        {"batch_size": 20} if stage == "train_vae" else {"sequence_length": 14}
    )
    monkeypatch.setattr(trainer, "_GRID_EVERY", gap)
    loaded, saved = [], []
    monkeypatch.setattr(train_rnn, "load_model", lambda *given: loaded.append(given) or load_model(*given))
    for name in ("whole", "resumed"):
        with prepare(tmp_path / name, stage, **settings) as experiment:
            experiment.log_image = lambda stage, name, path, step: saved.append(step)
            if stage == "train_rnn":
                save_model(experiment.path("vae", "vae.safetensors"), make_vae(4))
            if name == "resumed":
                with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    interrupt(patch, trainer, "save_tensors", 1, after=True)
                    experiment.run_stage(stage)
            experiment.run_stage(stage)
            found = sheets(experiment, stage)
        if name == "whole":
            whole = found
            assert saved == steps[stage]
            assert len(loaded) == (stage == "train_rnn")
    assert found == whole
    assert saved == 2 * steps[stage]
    for path in experiment.path(FILES[stage][0], "sheets").iterdir():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[0] >= 2 * 64 * 2
        assert pixels.std() > 10


@pytest.mark.parametrize("stage", list(MODULES))
def test_fewer_steps_than_are_complete_are_refused(tmp_path, stage):
    with (
        prepare(tmp_path, stage, steps=9, checkpoint_every=4) as run,
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
    ):
        interrupt(patch, trainer, "save_tensors", 2, after=True)
        run.run_stage(stage)
    with prepare(tmp_path, stage, steps=7, checkpoint_every=4) as run:
        said = rf"^{stage}\.steps: expected at least 8, as that many are complete, got 7; `worldmodels .* --force`"
        with pytest.raises(ValueError, match=said):
            run.run_stage(stage)


def test_the_gate_of_m_counts_the_steps_in_the_data(tmp_path, monkeypatch):
    """Chunks are shorter than a sequence at the end of an epoch, and padded; also over two sessions."""
    counted = []
    monkeypatch.setattr(train_rnn, "gate", lambda stage, failure, trained, unit: counted.append(trained) or {})
    with prepare(tmp_path, "train_rnn", sequence_length=10) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, trainer, "save_tensors", 1, after=True)
            experiment.run_stage("train_rnn")
        experiment.run_stage("train_rnn")
    latents = make_latents(LENGTHS, latent_size=4)
    packed = PackedSequences(latents, split_episodes(latents, 0.2)[0], 2, 10, 0)
    chunks = [chunk for epoch in range(11) for chunk in packed.epoch(epoch)][:11]
    assert counted == [sum(int(chunk.valid.sum()) for chunk in chunks)]
    assert counted[0] < 11 * 2 * 10


@pytest.mark.parametrize("stage", list(MODULES))
def test_divergence_is_measured_from_the_first_loss_of_all_sessions(tmp_path, monkeypatch, stage):
    initial = []
    monkeypatch.setattr(
        trainer, "LossGuard", lambda stage, **options: initial.append(options) or LossGuard(stage, **options)
    )
    with prepare(tmp_path, stage) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, trainer, "save_tensors", 1, after=True)
            experiment.run_stage(stage)
        first = next(
            line
            for line in experiment.metrics(stage.replace("_", "-"))
            if "validation_z" in line or "validation_kl" in line
        )
        initial.clear()
        experiment.run_stage(stage)
    loss = first["validation_loss" if stage == "train_vae" else "validation_total"]
    assert initial[-1] == {"initial": loss}
    LossGuard("train-x", initial=1000.0).check(5000.0, 1, 0.1)


def test_recall_needs_a_termination_and_a_loss_a_next_latent(tmp_path):
    with prepare(tmp_path / "run", "train_rnn") as experiment:
        for path in experiment.path("latents").iterdir():
            path.unlink()
        make_latents(LENGTHS, [True] * 4 + [False, True], latent_size=4).save(
            experiment.path("latents", "00000.safetensors")
        )
        experiment.run_stage("train_rnn")
        summary, lines = experiment.summary("train_rnn"), experiment.metrics("train-rnn")
    assert "done_recall" not in summary and "done_false_alarms" in summary
    assert not any("validation_done_recall" in line for line in lines)
    for name, lengths, options, said in (
        ("training", [1, 1, 5], {}, "training episodes with two frames or more, got"),
        ("held-out", [5, 5, 1], {}, "held-out episodes with two frames or more, got"),
        (
            "both",
            [5, 5, 5],
            {"done_lookahead": 4},
            "training episodes with two frames or more without the last 4 frames",
        ),
    ):
        with Run(tmp_path / name, toy_config(train_rnn=options)) as experiment:
            mark_done(experiment, *EARLIER["train_rnn"])
            make_latents(lengths, latent_size=4).save(experiment.path("latents", "00000.safetensors"))
            with pytest.raises(ValueError, match=rf"^train-rnn: expected {said}"):
                experiment.run_stage("train_rnn")


def test_v_is_compiled_only_when_asked(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    for wanted in (False, True):
        with prepare(tmp_path / str(wanted), "train_vae", compile=wanted, steps=1) as experiment:
            experiment.run_stage("train_vae")
        assert len(compiled) == wanted


def picture(channel):
    """One bright half on black; which half and which colour is all there is to know."""
    frame = np.full((64, 64, 3), 20, np.uint8)
    frame[(slice(32), slice(32, 64))[channel % 2], :, channel] = 230
    return frame


def test_v_learns_a_few_pictures(tmp_path):
    pictures = np.stack([picture(channel) for channel in range(3)])
    episode = Episode(**{**vars(make_episode(9)), "frames": np.tile(pictures, (3, 1, 1, 1))})
    settings = {"steps": 50, "batch_size": 6, "lr": 1e-3, "checkpoint_every": 50, "latent_size": 4}
    with Run(tmp_path, toy_config(train_vae={**settings, "precision": "float32"})) as experiment:
        write_store(experiment.path("episodes"), [episode] * 2)
        mark_done(experiment, "collect")
        experiment.run_stage("train_vae")
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
    settings = {
        "steps": 300,
        "batch_size": 16,
        "sequence_length": 24,
        "hidden_size": 16,
        "lr": 1e-2,
        "checkpoint_every": 300,
    }
    with Run(tmp_path, toy_config(train_rnn={**settings, "validation_fraction": 0.25})) as experiment:
        latents.save(experiment.path("latents", "00000.safetensors"))
        mark_done(experiment, "collect", "train_vae", "encode")
        experiment.run_stage("train_rnn")
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


def test_m_is_measured_on_recorded_episodes_where_it_is_trained_on_mirror_images_too(tmp_path, capsys):
    measured = []
    for mirror in (False, True):
        config = toy_config(encode={"mirror": mirror}, train_rnn={"steps": 0})
        with Run(tmp_path / str(mirror), config) as experiment:
            write_store(experiment.path("episodes"), [make_episode(length, length) for length in (40, 30, 50)])
            save_model(experiment.path("vae", "vae.safetensors"), make_vae())
            mark_done(experiment, "collect", "train_vae")
            experiment.run_stage("encode")
            experiment.run_stage("train_rnn")
            measured.append(RNNQuality.read(experiment.path("rnn", "quality.json")))
            starts, _ = load_tensors(experiment.path("rnn", "initial.safetensors"))
            assert len(starts["mu"]) == (6 if mirror else 3)
    assert "does not match" not in capsys.readouterr().err
    assert measured[0] == measured[1] and measured[0].rollouts[0].picture_mean is not None


@pytest.mark.parametrize("stage", list(MODULES))
def test_one_episode_is_not_enough(tmp_path, stage):
    with Run(tmp_path, toy_config()) as experiment:
        write_store(experiment.path("episodes"), [make_episode(5)])
        make_latents([5]).save(experiment.path("latents", "00000.safetensors"))
        mark_done(experiment, *EARLIER[stage])
        with pytest.raises(ValueError, match=r"collect\.episodes: expected at least 2 to hold one out"):
            experiment.run_stage(stage)


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_used_where_the_device_has_it(monkeypatch, has):
    monkeypatch.setattr(devices, "computes_in_bfloat16", lambda _: has)
    if not has:
        with pytest.raises(ValueError, match=r"^precision: expected float32 or auto"):
            devices.autocast(torch.device("cpu"), "bfloat16")
    for precision, expected in (("auto", has), ("float32", False)):
        with devices.autocast(torch.device("cpu"), precision):
            assert torch.is_autocast_enabled("cpu") == expected
