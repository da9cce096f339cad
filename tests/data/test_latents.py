"""Latents and the streams M learns from: every step with its true past, whatever the lengths of the episodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import make_episode, make_latents, make_mdnrnn, make_vae, mark_done, toy_config, write_store
from worldmodels.data import latents as latents_module
from worldmodels.data.episodes import EpisodeShard
from worldmodels.data.latents import Latents, are_held_out, load_latents
from worldmodels.data.sequences import PackedSequences
from worldmodels.models.mdnrnn import done_loss, mdn_loss
from worldmodels.models.weights import save_model
from worldmodels.pipeline import encoding as encode
from worldmodels.pipeline.config import TrainRNNConfig
from worldmodels.pipeline.run import Run
from worldmodels.support.files import link
from worldmodels.training.distributed import Ranks
from worldmodels.training.rnn import _chunks, accumulate_gradient, split_episodes
from worldmodels.training.rnn_loss import LossCounts, chunk_losses, precision, torch_losses

LENGTHS = [5, 12, 1, 7, 9, 2, 16, 3, 8, 11]
TERMINATED = [True, False, True, True, False, True, True, False, True, True]


def test_round_trip_over_several_files(tmp_path):
    parts = [make_latents([3, 4], seed=1), make_latents([2], [False], seed=2)]
    for number, part in enumerate(parts):
        part.save(tmp_path / f"{number:05d}.safetensors")
    read = load_latents(tmp_path)
    for name in ("mu", "logvar", "actions", "rewards", "lengths", "terminated"):
        expected = np.concatenate([getattr(part, name) for part in parts])
        assert getattr(read, name).dtype == expected.dtype
        np.testing.assert_array_equal(getattr(read, name), expected)
    assert read.mu.dtype == np.float16
    assert read.starts.tolist() == [0, 3, 7]


@pytest.mark.parametrize("rows", [1, 4, 5, 100])
def test_files_are_read_in_parts(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(latents_module, "_ROWS", rows)
    test_round_trip_over_several_files(tmp_path)


def test_damaged_latents_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected latents"):
        load_latents(tmp_path)
    path = tmp_path / "00000.safetensors"
    latents = make_latents([3, 4])
    latents.save(path)
    whole = path.read_bytes()
    for size in (0, 5, 50, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"00000\.safetensors: expected latents"):
            load_latents(tmp_path)
    Latents(**{**vars(latents), "lengths": np.array([3, 5])}).save(path)
    with pytest.raises(ValueError, match="expected mu, logvar, actions, rewards, lengths, terminated of consistent"):
        load_latents(tmp_path)


def test_encode_stores_what_v_says_of_every_frame(tmp_path):
    episodes = [make_episode(length, length) for length in (7, 3, 5)]
    config = toy_config(encode={"precision": "float32", "batch_size": 4})
    with Run(tmp_path, config) as experiment:
        write_store(experiment.path("episodes"), episodes)
        vae = make_vae()
        save_model(experiment.path("vae", "vae.safetensors"), vae)
        mark_done(experiment, "collect", "train_vae")
        experiment.run_stage("encode")
        latents = load_latents(experiment.path("latents"))
        written = {path: path.stat().st_mtime_ns for path in experiment.path("latents").iterdir()}

        experiment.marker("encode").unlink()  # cut off before the last shard was there
        last = sorted(written)[-1]
        last.unlink()
        experiment.run_stage("encode")
        assert last.is_file()
        assert all(path.stat().st_mtime_ns == time for path, time in written.items() if path != last)
        np.testing.assert_array_equal(load_latents(experiment.path("latents")).mu, latents.mu)
    frames = torch.from_numpy(np.concatenate([episode.frames for episode in episodes])).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        mu, logvar = vae.encode(frames)
    np.testing.assert_allclose(latents.mu, mu, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(latents.logvar, logvar, rtol=2e-3, atol=1e-4)
    np.testing.assert_array_equal(latents.actions, np.concatenate([episode.actions for episode in episodes]))
    assert latents.lengths.tolist() == [7, 3, 5]


def test_latents_of_included_episodes_are_taken_over_from_the_same_v(tmp_path, monkeypatch):
    encoded = []
    real = encode.encode_shard

    def watched(model, shard, *arguments, **options):
        encoded.append(shard.lengths.tolist())
        return real(model, shard, *arguments, **options)

    monkeypatch.setattr(encode, "encode_shard", watched)

    def run(name, lengths, vae, **changes):
        sections = {"collect": {"include": str(tmp_path / "base") if name != "base" else ""}, "encode": changes}
        with Run(tmp_path / name, toy_config(**sections)) as experiment:
            write_store(tmp_path / "written" / name, [make_episode(length, length) for length in lengths])
            for shard in sorted((tmp_path / "written" / name).iterdir()):
                theirs = tmp_path / "base" / "episodes" / shard.name
                same = name != "base" and EpisodeShard(theirs).lengths.tolist() == EpisodeShard(shard).lengths.tolist()
                link(theirs if same else shard, experiment.path("episodes", shard.name))  # as `collect` includes them
            save_model(experiment.path("vae", "vae.safetensors"), vae)
            mark_done(experiment, "collect", "train_vae")
            encoded.clear()
            experiment.run_stage("encode")
            return experiment.path("latents", "00000.safetensors").stat().st_nlink

    alike = {"precision": "float32"}
    assert (run("base", (7, 3, 5), make_vae(), **alike), encoded) == (1, [[7, 3], [5]])
    assert (run("more", (7, 3, 5, 4), make_vae(), **alike), encoded) == (2, [[5, 4]])
    latents = load_latents(tmp_path / "more" / "latents")
    assert (run("other V", (7, 3, 5), make_vae(seed=2), **alike), encoded) == (1, [[7, 3], [5]])
    assert (run("other episodes", (7, 4), make_vae(), **alike), encoded) == (1, [[7, 4]])
    assert (run("other way", (7, 3), make_vae()), encoded) == (1, [[7, 3]])
    assert (run("mirror", (7, 3), make_vae(), **alike, mirror=True), encoded) == (1, [[7, 3], [7, 3]])
    (tmp_path / "base" / "vae" / "vae.safetensors").unlink()
    assert (run("alone", (7, 3, 5, 4), make_vae(), **alike), encoded) == (1, [[7, 3], [5, 4]])
    for name, array in vars(load_latents(tmp_path / "alone" / "latents")).items():
        np.testing.assert_array_equal(array, getattr(latents, name))


def encoded(folder, episodes, **settings):
    with Run(folder, toy_config(encode={"precision": "float32", "batch_size": 4, **settings})) as experiment:
        write_store(experiment.path("episodes"), episodes)
        save_model(experiment.path("vae", "vae.safetensors"), make_vae())
        mark_done(experiment, "collect", "train_vae")
        experiment.run_stage("encode")
        return load_latents(experiment.path("latents"))


def test_every_episode_is_followed_by_its_mirror_image(tmp_path):
    episodes = [make_episode(length, length, terminated=length != 3) for length in (7, 3, 5)]
    images = [replace(one, frames=one.frames[:, :, ::-1].copy(), actions=-one.actions) for one in episodes]
    pairs = [one for pair in zip(episodes, images, strict=True) for one in pair]
    found, expected = encoded(tmp_path / "mirror", episodes, mirror=True), encoded(tmp_path / "pairs", pairs)
    assert vars(found).keys() == vars(expected).keys()
    for name, value in vars(replace(expected, mirrored=True)).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
    assert not expected.mirrored and found.lengths.tolist() == [7, 7, 3, 3, 5, 5]
    plain = encoded(tmp_path / "plain", episodes)
    assert plain.recorded() is plain
    for name, value in vars(plain).items():
        np.testing.assert_array_equal(getattr(found.recorded(), name), value, err_msg=name)


def test_an_episode_is_held_out_with_its_mirror_image():
    latents = make_latents(6 * [4])
    assert [part.tolist() for part in split_episodes(latents, 0.2)] == [[0, 1, 2, 3, 5], [4]]
    assert [part.tolist() for part in split_episodes(replace(latents, mirrored=True), 0.2)] == [[0, 1, 2, 3], [4, 5]]
    with pytest.raises(ValueError, match="expected at least 2 to hold one out, got 1"):
        split_episodes(replace(make_latents([4, 4]), mirrored=True), 0.2)


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.2, 1 / 3, 0.5, 0.95, 0.999])
def test_a_fraction_of_the_episodes_of_every_round_is_held_out(fraction):
    """400 episodes, 100 in a next round: the first choice stands, and the new episodes have their share of it."""
    before, after = are_held_out(400, fraction), are_held_out(500, fraction)
    if fraction * 400 >= 1:
        assert (before == after[:400]).all()
    assert abs(before.sum() - 400 * fraction) <= 1 and abs(after[400:].sum() - 100 * fraction) <= 1
    assert 1 <= before.sum() < 400
    gaps = np.diff(np.flatnonzero(before))
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    assert are_held_out(1, fraction).tolist() == [True] and are_held_out(2, fraction).sum() == 1


@pytest.mark.parametrize("first", [True, False])
def test_files_with_and_without_mirror_images_are_refused(tmp_path, first):
    for name, mirrored in (("00000", first), ("00001", not first)):
        replace(make_latents([3, 3]), mirrored=mirrored).save(tmp_path / f"{name}.safetensors")
    with pytest.raises(
        ValueError, match=r"00001\.safetensors: expected (a|no) mirror image of every episode as in 00000"
    ):
        load_latents(tmp_path)


def numbers(chunk):
    """Frame numbers of a chunk (B, T + 1), read off its latents."""
    return np.rint(chunk.mu[..., 0] * 64).astype(int)


@pytest.mark.parametrize(("batch", "sequence"), [(1, 4), (3, 5), (4, 100), (30, 1)])
def test_chunks_say_the_truth_about_every_frame(batch, sequence):
    """Each of which comes exactly once an epoch."""
    latents = make_latents(LENGTHS, TERMINATED)
    total = sum(LENGTHS)
    ends = np.cumsum(LENGTHS) - 1
    starts = ends - LENGTHS + 1
    cut = ends[~np.array(TERMINATED)]
    streams = PackedSequences(latents, np.arange(10), batch, sequence, seed=3)
    for epoch in range(3):
        seen = []
        for chunk in streams.epoch(epoch):
            rows = numbers(chunk)
            assert rows.shape == (min(batch, 10), chunk.action.shape[1] + 1)
            assert rows.shape[1] <= sequence + 1
            now, following, valid = rows[:, :-1], rows[:, 1:], chunk.valid > 0
            seen += now[valid].tolist()
            np.testing.assert_array_equal(chunk.restart, np.isin(now, starts) & valid)
            np.testing.assert_array_equal(chunk.has_next, ~np.isin(now, ends) & valid)
            np.testing.assert_array_equal(chunk.done, np.isin(now, np.setdiff1d(ends, cut)) & valid)
            np.testing.assert_array_equal(chunk.termination_known, ~np.isin(now, cut) & valid)
            inside = chunk.has_next > 0
            np.testing.assert_array_equal(following[inside], now[inside] + 1)
            np.testing.assert_array_equal(chunk.action[valid], latents.actions[now[valid]])
            np.testing.assert_array_equal(chunk.reward[valid], latents.rewards[now[valid]])
            np.testing.assert_array_equal(chunk.mu[:, :-1][valid], latents.mu[now[valid]])
            np.testing.assert_array_equal(chunk.logvar[:, 1:][inside], latents.logvar[now[inside] + 1])
        assert sorted(seen) == list(range(total))


def test_streams_are_whole_episodes_end_to_end():
    chunks = list(PackedSequences(make_latents(LENGTHS), np.arange(10), 3, 4, seed=0).epoch(0))
    rows = np.concatenate([numbers(chunk)[:, :-1] for chunk in chunks], axis=1)
    valid = np.concatenate([chunk.valid for chunk in chunks], axis=1) > 0
    starts = np.cumsum([0, *LENGTHS[:-1]])
    for stream, there in zip(rows, valid, strict=True):
        position = 0
        while position < len(stream) and there[position:].any():
            assert position % 8 == 0
            assert stream[position] in starts
            length = LENGTHS[int(np.flatnonzero(starts == stream[position])[0])]
            part = slice(position, position + length)
            np.testing.assert_array_equal(stream[part], np.arange(stream[position], stream[position] + length))
            assert there[part].all()
            position += -(-length // 8) * 8
            assert not there[part.stop : position].any()  # an episode begins at the next multiple of 8
        assert not there[position:].any()


def test_streams_end_together():
    """4 of 100 episodes of 1 to 199 steps each: what is masked is a few steps, not half an episode."""
    lengths = np.random.default_rng(0).integers(1, 200, 400)
    latents = make_latents(lengths.tolist())
    for epoch in range(3):
        chunks = list(PackedSequences(latents, np.arange(400), 100, 64, seed=0).epoch(epoch))
        assert sum(chunk.valid.sum() for chunk in chunks) == lengths.sum()
        assert sum(chunk.valid.size for chunk in chunks) < 1.08 * lengths.sum()


def test_only_the_episodes_asked_for_are_dealt():
    streams = PackedSequences(make_latents(LENGTHS), np.array([1, 3]), 1, 1, seed=0)
    seen = {int(numbers(chunk)[0, 0]) for chunk in streams.epoch(0)}
    assert seen == {*range(5, 17), *range(18, 25)}
    with pytest.raises(ValueError, match="episodes: expected at least one, got none"):
        PackedSequences(make_latents(LENGTHS), np.array([], np.int64), 1, 1, seed=0)


def test_order_follows_the_seed_and_the_epoch():
    latents = make_latents(LENGTHS)

    def order(seed, epoch):
        return np.concatenate(
            [numbers(c)[:, :-1] for c in PackedSequences(latents, np.arange(10), 2, 3, seed).epoch(epoch)], axis=1
        )

    np.testing.assert_array_equal(order(1, 0), order(1, 0))
    for other in (order(2, 0), order(1, 1)):
        assert other.shape != order(1, 0).shape or (other != order(1, 0)).any()


def test_chunks_go_on_from_any_place():
    streams = PackedSequences(make_latents(LENGTHS), np.arange(10), 3, 4, seed=5)

    def take(epoch, chunk, count):
        source = _chunks(streams, epoch, chunk)
        return [(e, c, numbers(value)) for e, c, value in (next(source) for _ in range(count))]

    whole = take(0, 0, 20)
    assert whole[-1][0] >= 2
    for skip in (1, 4, 9, 15):
        epoch, chunk, _ = whole[skip]
        for a, b in zip(take(epoch, chunk, 20 - skip), whole[skip:], strict=True):
            assert a[:2] == b[:2]
            np.testing.assert_array_equal(a[2], b[2])
        before = whole[skip - 1]  # as a checkpoint says it: one behind the last chunk that was trained on
        np.testing.assert_array_equal(take(before[0], before[1] + 1, 1)[0][2], whole[skip][2])


def certain_latents(lengths, terminated):
    """Latents without spread: sampling them gives mu."""
    latents = make_latents(lengths, terminated, latent_size=4)
    return Latents(**{**vars(latents), "logvar": np.full_like(latents.logvar, -80)})


def slow_losses(model, latents, rows, config):
    """Losses of the frames in ``rows``, episode by episode from its first frame, one step at a time."""
    z_terms, done_terms = [], []
    for start, length, terminated in zip(latents.starts, latents.lengths, latents.terminated, strict=True):
        state = None
        for frame in range(start, start + length):
            z = torch.from_numpy(latents.mu[frame : frame + 2].astype(np.float32))
            action = torch.from_numpy(latents.actions[frame])
            flag = torch.tensor([[float(frame == start)]])
            out, state = model(z[None, :1], action[None, None], flag, state)
            last = frame == start + length - 1
            if frame not in rows:
                continue
            if not last:
                z_terms.append(mdn_loss(out, z[None, 1:]))
            if not last or terminated:
                target = torch.tensor([[float(last)]])
                done_terms.append(done_loss(out.done_logit, target, config.done_pos_weight))
    return sum(z_terms) / len(z_terms), sum(done_terms) / len(done_terms)


def frames(chunk):
    """Those that count."""
    return set(numbers(chunk)[:, :-1][chunk.valid > 0].tolist())


@pytest.mark.parametrize("sequence", [1000, 5])
def test_losses_equal_the_slow_loop_over_episodes(sequence):
    """Also where the state is carried from chunk to chunk."""
    latents = certain_latents(LENGTHS, TERMINATED)
    model, config = make_mdnrnn(4, 8), TrainRNNConfig(precision="float32")
    streams = PackedSequences(latents, np.arange(10), 3, sequence, seed=1)
    state = model.initial_state(3)
    with torch.no_grad():
        for chunk in streams.epoch(0):
            losses, state, _ = chunk_losses(model, chunk, state, config)
            z, done = slow_losses(model, latents, frames(chunk), config)
            assert losses.z.item() == pytest.approx(z.item(), rel=1e-4)
            assert losses.done.item() == pytest.approx(done.item(), rel=1e-4)
            assert losses.total.item() == pytest.approx((z + done).item(), rel=1e-4)


def slow_gradients(model, latents, chunk, config):
    """Gradients of a chunk, episode by episode, one step at a time; nothing flows back over the chunk's beginning."""
    z_terms, done_terms = [], []
    for row, stream in enumerate(numbers(chunk)[:, :-1]):
        valid = chunk.valid[row] > 0
        frame = int(stream[0])
        episode = int(np.searchsorted(latents.starts, frame, side="right")) - 1
        state = None
        with torch.no_grad():  # what of the episode was in the chunks before
            for earlier in range(int(latents.starts[episode]), frame):
                z = torch.from_numpy(latents.mu[earlier : earlier + 1].astype(np.float32))
                flag = torch.tensor([[float(earlier == latents.starts[episode])]])
                _, state = model(z[None], torch.from_numpy(latents.actions[earlier])[None, None], flag, state)
        for frame in stream[valid].tolist():
            episode = int(np.searchsorted(latents.starts, frame, side="right")) - 1
            first, length = int(latents.starts[episode]), int(latents.lengths[episode])
            state = None if frame == first else state
            z = torch.from_numpy(latents.mu[frame : frame + 2].astype(np.float32))
            action = torch.from_numpy(latents.actions[frame])[None, None]
            out, state = model(z[None, :1], action, torch.tensor([[float(frame == first)]]), state)
            last = frame == first + length - 1
            if not last:
                z_terms.append(mdn_loss(out, z[None, 1:]))
            if not last or latents.terminated[episode]:
                done_terms.append(done_loss(out.done_logit, torch.tensor([[float(last)]]), config.done_pos_weight))
    model.zero_grad()
    (sum(z_terms) / len(z_terms) + sum(done_terms) / len(done_terms)).backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("at_once", [3, 2])
@pytest.mark.parametrize("sequence", [1000, 5])
def test_gradients_equal_those_of_the_slow_loop(sequence, at_once):
    """With episodes that end, begin and are carried on in the middle of chunks, and streams that end early."""
    latents = certain_latents(LENGTHS, TERMINATED)
    model, config = make_mdnrnn(4, 8), TrainRNNConfig(precision="float32")
    state = model.initial_state(3)
    for chunk in PackedSequences(latents, np.arange(10), 3, sequence, seed=1).epoch(0):
        noise = torch.randn(chunk.mu.shape)
        _, state = accumulate_gradient(model, chunk, noise, state, config, at_once, Ranks())
        fast = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        slow = slow_gradients(model, latents, chunk, config)
        for a, b in zip(fast, slow, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_slow_loop_would_notice():
    """Without the restart, without the weight of the ends, or one frame off, the gradients are others."""
    latents = certain_latents(LENGTHS, TERMINATED)
    model, config = make_mdnrnn(4, 8), TrainRNNConfig(precision="float32")
    (chunk,) = PackedSequences(latents, np.arange(10), 3, 1000, seed=1).epoch(0)
    slow = slow_gradients(model, latents, chunk, config)
    flagless = chunk.restart * (np.arange(chunk.restart.shape[1]) == 0)
    changed = [
        (replace(chunk, restart=flagless.astype(np.float32)), config),
        (chunk, replace(config, done_pos_weight=1.0)),
        (replace(chunk, has_next=chunk.valid), config),
        (replace(chunk, termination_known=chunk.valid), config),
    ]
    for other, settings in changed:
        accumulate_gradient(model, other, torch.randn(chunk.mu.shape), model.initial_state(3), settings, 3, Ranks())
        fast = [p.grad for p in model.parameters() if p.requires_grad]
        assert max(float((a - b).abs().max()) for a, b in zip(fast, slow, strict=True)) > 1e-3


@pytest.mark.parametrize("lead", [1, 2, 8])
def test_an_end_ahead_of_time_is_an_episode_that_ended_earlier(lead):
    """Streams with a lead are those of recordings without the last frames of what ended by itself."""
    latents = make_latents(LENGTHS, TERMINATED)
    lengths = np.where(TERMINATED, np.maximum(np.array(LENGTHS) - lead, 1), LENGTHS)
    kept = np.concatenate([start + np.arange(n) for start, n in zip(latents.starts, lengths, strict=True)])
    frames = {key: getattr(latents, key)[kept] for key in ("mu", "logvar", "actions", "rewards")}
    shorter = replace(latents, **frames, lengths=lengths)
    found = list(PackedSequences(latents, np.arange(10), 3, 4, seed=0, done_lookahead=lead).epoch(1))
    wanted = list(PackedSequences(shorter, np.arange(10), 3, 4, seed=0).epoch(1))
    for one, other in zip(found, wanted, strict=True):
        there, followed = other.valid > 0, other.has_next > 0
        for name in ("restart", "done", "has_next", "termination_known", "valid"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("action", "reward"):
            np.testing.assert_array_equal(getattr(one, name)[there], getattr(other, name)[there])
        for name in ("mu", "logvar"):
            np.testing.assert_array_equal(getattr(one, name)[:, :-1][there], getattr(other, name)[:, :-1][there])
            np.testing.assert_array_equal(getattr(one, name)[:, 1:][followed], getattr(other, name)[:, 1:][followed])


def test_latents_are_sampled_anew_and_once():
    """The input at t + 1 is the very sample that was the target at t."""
    latents = make_latents([40], latent_size=4)
    (chunk,) = PackedSequences(latents, np.arange(1), 1, 40, seed=0).epoch(0)
    taken = []

    class Spy(torch.nn.Module):
        def forward(self, z, action, restart, state):
            taken.append(z)
            return make_mdnrnn(4, 8)(z, action, restart, state)

    state, config = make_mdnrnn(4, 8).initial_state(1), TrainRNNConfig(precision="float32")
    torch.manual_seed(0)
    first, second = (torch_losses(Spy(), chunk, state, config, None, LossCounts.of(chunk))[0].z for _ in range(2))
    assert first.item() != second.item()
    z, mu, sigma = taken[0][0].numpy(), chunk.mu[0, :-1], np.exp(chunk.logvar[0, :-1] / 2)
    assert (z != taken[1][0].numpy()).all()
    assert abs(((z - mu) / sigma).std() - 1) < 0.2
    out, _ = make_mdnrnn(4, 8)(taken[0], torch.from_numpy(chunk.action), torch.from_numpy(chunk.restart), state)
    valid = torch.ones(1, 39)
    valid = torch.cat([valid, torch.zeros(1, 1)], dim=1)
    target = torch.cat([taken[0][:, 1:], torch.zeros(1, 1, 4)], dim=1)
    assert first.item() == pytest.approx(mdn_loss(out, target, valid).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("asked", "device", "wanted"),
    [
        ("auto", "cuda", "float32"),
        ("bfloat16", "cuda", "bfloat16"),
        ("auto", "cpu", "auto"),
        ("float32", "cpu", "float32"),
    ],
)
def test_a_gpu_trains_m_in_float32_unless_told_otherwise(asked, device, wanted):
    assert precision(TrainRNNConfig(precision=asked), torch.device(device)) == wanted
