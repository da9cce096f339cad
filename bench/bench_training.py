"""Training V and M beside the plain PyTorch loops, in the same run; encoding; the loop from disk; peak memory.

    pytest bench/bench_training.py -s                    all, prints the ratio of medians to the peer
    pytest bench/bench_training.py -s -k "vae and 100"   V's training at the paper's batch
    pytest bench/bench_training.py -s -k memory          10,000 synthetic episodes (a minute or two, 2 GB of disk)

The rounds of ours and of the peers alternate, so that a busy neighbour slows all of them. Every case first checks
that both compute the same.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from worldmodels.data.episodes import Episode, EpisodeStore, EpisodeWriter, shard_path
from worldmodels.data.frames import FrameReader, ShuffledBatches
from worldmodels.data.latents import Latents
from worldmodels.data.sequences import PackedSequences
from worldmodels.models.device import autocast, seed_step
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE, vae_loss
from worldmodels.pipeline.config import TrainRNNConfig, TrainVAEConfig
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import get
from worldmodels.pipeline.tasks import preset
from worldmodels.training import rnn as train_rnn
from worldmodels.training import vae as train_vae
from worldmodels.training.distributed import Ranks
from worldmodels.training.optim import ChannelsLastAdam, MicroBatches

ROUNDS = 5
CPU = torch.device("cpu")


def alternate(benchmark, work: dict[str, Callable[[], int]], rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Median units per second, and per second of one core, of every kind of work; their rounds take turns.

    The second is the one to trust where other processes share the cores.
    """
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in work}

    def turn() -> None:
        for name, call in work.items():
            wall, cores = time.perf_counter(), time.process_time()
            count = call()
            rates[name].append((count / (time.perf_counter() - wall), count / (time.process_time() - cores)))

    benchmark.pedantic(turn, rounds=rounds, warmup_rounds=1)
    medians = {}
    for name, pairs in rates.items():
        by_wall, by_core = zip(*pairs[1:], strict=True)
        medians[name] = (statistics.median(by_wall), statistics.median(by_core))
    benchmark.extra_info.update(medians)
    return medians


def say(title: str, medians: dict[str, tuple[float, float]], unit: str, peer: str) -> None:
    print(f"\n{title}; beside: {peer}")
    for name, (wall, core) in medians.items():
        print(
            f"  {name:<28}{wall:>9,.0f} {unit}/s {wall / medians[peer][0]:5.2f} x"
            f"{core:>11,.0f} {unit}/core-second {core / medians[peer][1]:5.2f} x"
        )


class PlainVAE(nn.Module):
    """V as one writes it down, with torch's own layers and layouts."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        widths, layers = (3, 32, 64, 128, 256), []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.mu, self.logvar = nn.Linear(1024, latent_size), nn.Linear(1024, latent_size)
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, 1024),
            nn.Unflatten(1, (1024, 1, 1)),
            nn.ConvTranspose2d(1024, 128, 5, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 5, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 6, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 6, stride=2),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.encoder(x)
        mu, logvar = self.mu(features), self.logvar(features)
        return self.decoder(mu + torch.exp(logvar / 2) * noise), mu, logvar


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Coloured squares on gradients: something to learn, and something that compresses as games do."""
    rng = np.random.default_rng(seed)
    frames = np.empty((count, 64, 64, 3), np.uint8)
    frames[:] = (np.arange(64) * 2)[None, :, None, None] + np.arange(3) * 20
    for frame in frames:
        for _ in range(3):
            top, left = rng.integers(0, 48, 2)
            frame[top : top + 16, left : left + 16] = rng.integers(0, 256, 3)
    return frames


def plain_vae_step(
    model: PlainVAE, optimizer: torch.optim.Optimizer, config: TrainVAEConfig
) -> Callable[[np.ndarray, int], float]:
    def step(frames: np.ndarray, number: int) -> float:
        seed_step(0, "train-vae", number)
        noise = torch.randn(len(frames), config.latent_size)
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        loss, _, _ = vae_loss(*(lambda out: (out[0], x, *out[1:]))(model(x.contiguous(), noise)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_vae_step(
    model: ConvVAE, optimizer: torch.optim.Optimizer, config: TrainVAEConfig
) -> Callable[[np.ndarray, int], float]:
    micro_batches = MicroBatches("bench", "frames", config.batch_size, "")
    network = train_vae.training_network(model, config.precision)

    def step(frames: np.ndarray, number: int) -> float:
        losses = train_vae._step(network, optimizer, frames, config.lr, config, 0, number, micro_batches, Ranks())
        return losses[0].item()

    return step


def vae_steps(
    batch: int, precision: str = "bfloat16", lr: float = 1e-3
) -> tuple[Callable, Callable, nn.Module, ConvVAE]:
    config = TrainVAEConfig(batch_size=batch, lr=lr, precision=precision)
    torch.manual_seed(0)
    ours, plain = ConvVAE(config.latent_size), PlainVAE(config.latent_size)
    plain.load_state_dict(ours.state_dict())
    ours.to(memory_format=torch.channels_last)
    return (
        plain_vae_step(plain, torch.optim.Adam(plain.parameters(), lr=lr), config),
        our_vae_step(ours, ChannelsLastAdam(ours.parameters(), lr), config),
        plain,
        ours,
    )


def test_vae_learns_the_same(benchmark) -> None:
    """The validation error of the tuned loop after 60 batches of 32 beside that of the plain fp32 loop."""
    frames, held_out = pictures(1920), pictures(250, seed=1)
    plain_step, our_step, plain, ours = vae_steps(32)
    _, exact, _, _ = vae_steps(32, "float32")
    assert exact(frames[:32], 0) == pytest.approx(plain_step(frames[:32], 0), rel=1e-4)
    our_step(frames[:32], 0)

    def train() -> None:
        for number in range(1, 60):
            batch = frames[32 * number : 32 * number + 32]
            plain_step(batch, number)
            our_step(batch, number)

    benchmark.pedantic(train, rounds=1)
    x = torch.from_numpy(held_out).permute(0, 3, 1, 2).float() / 255
    errors = {}
    with torch.no_grad():
        for name, model in (("plain fp32", plain), ("ours bf16", ours)):
            recon, _, _ = model(x, torch.zeros(len(x), 64))
            errors[name] = float((recon - x).square().sum(dim=(1, 2, 3)).mean())
    print(f"\nV, validation squared error after 60 batches: {errors}")
    assert errors["ours bf16"] < 1.05 * errors["plain fp32"]
    benchmark.extra_info.update(errors)


@pytest.mark.parametrize("batch", [1, 16, 64, 100, 256])
def test_vae_training(batch: int, benchmark, tmp_path) -> None:
    count = max(batch, 64) * 4
    frames = pictures(count)
    length = count // 8
    with EpisodeWriter(shard_path(tmp_path, 0), 1) as writer:
        for start in range(0, count, length):
            part = frames[start : start + length]
            nothing = np.zeros(len(part), np.float32)
            writer.append(Episode(part, nothing[:, None], nothing, True, "noop", 0))
    store = EpisodeStore(tmp_path)
    order, steps = ShuffledBatches(np.arange(count), batch, 0), max(1, min(8, 128 // batch))
    plain_step, our_step, _, _ = vae_steps(batch)
    first = order.batch(0)
    np.testing.assert_array_equal(store.read(first), frames[first])
    assert our_step(frames[first], 0) == pytest.approx(plain_step(frames[first], 0), rel=0.03)

    def from_ram(step: Callable[[np.ndarray, int], float]) -> int:
        for number in range(steps):
            step(frames[order.batch(number)], number)
        return steps * batch

    def from_disk() -> int:
        for number in range(steps):
            our_step(next(batches), number)
        return steps * batch

    with FrameReader(store, order, 0, 100 * steps) as reader:
        batches = iter(reader)
        work = {
            "plain fp32 from RAM": lambda: from_ram(plain_step),
            "ours from RAM": lambda: from_ram(our_step),
            "ours from disk": from_disk,
        }
        medians = alternate(benchmark, work)
    store.close()
    say(f"V, training, batch {batch}", medians, "frames", "plain fp32 from RAM")
    print(f"  disk / RAM {medians['ours from disk'][0] / medians['ours from RAM'][0]:.3f}")


@pytest.mark.parametrize("batch", [1, 16, 64, 256])
def test_vae_encoding(batch: int, benchmark) -> None:
    torch.manual_seed(0)
    ours, plain = ConvVAE(64).eval(), PlainVAE(64).eval()
    plain.load_state_dict(ours.state_dict())
    ours.to(memory_format=torch.channels_last)
    frames = pictures(max(batch, 64))

    def encode_plain() -> int:
        with torch.inference_mode():
            for start in range(0, len(frames), batch):
                x = torch.from_numpy(frames[start : start + batch]).permute(0, 3, 1, 2).float() / 255
                features = plain.encoder(x.contiguous())
                found["plain"] = plain.mu(features), plain.logvar(features)
        return len(frames)

    def encode_ours() -> int:
        with torch.inference_mode(), autocast(CPU, "bfloat16"):
            for start in range(0, len(frames), batch):
                found["ours"] = ours.encode(train_vae.to_input(frames[start : start + batch], CPU))
        return len(frames)

    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    encode_plain()
    encode_ours()
    for one, other in zip(found["plain"], found["ours"], strict=True):
        assert (one - other.float()).abs().max() < 0.03 * one.abs().max() + 0.02
    medians = alternate(benchmark, {"plain fp32": encode_plain, "ours bf16": encode_ours}, rounds=10)
    say(f"V, encoding, batch {batch}", medians, "frames", "plain fp32")


def synthetic_latents(episodes: int, mean_length: float, seed: int = 0) -> Latents:
    """Random walks with the lengths of random play."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.gamma(3, mean_length / 3, episodes), 20, 2100).astype(np.int64)
    total = int(lengths.sum())
    mu = np.empty((total, 64), np.float16)
    for start in range(0, total, 100_000):
        mu[start : start + 100_000] = rng.normal(0, 0.3, mu[start : start + 100_000].shape)
    return Latents(
        mu,
        np.full_like(mu, -2.0),
        rng.uniform(-1, 1, (total, 1)).astype(np.float32),
        np.ones(total, np.float32),
        lengths,
        np.ones(episodes, np.bool_),
    )


def padded_step(model: MDNRNN, latents: Latents, batch: int, longest: int) -> Callable[[], tuple[int, int]]:
    """Plain fp32 nn.LSTM on whole episodes, padded to the longest: (real, padded) steps of a batch."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    rng = np.random.default_rng(0)

    def step() -> tuple[int, int]:
        chosen = rng.choice(len(latents.lengths), batch, replace=False)
        lengths = np.minimum(latents.lengths[chosen], longest)
        steps = int(lengths.max())
        index = np.minimum(latents.starts[chosen][:, None] + np.arange(steps + 1), len(latents.mu) - 1)
        mu, logvar = (torch.from_numpy(part[index].astype(np.float32)) for part in (latents.mu, latents.logvar))
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        first = torch.zeros(batch, steps, 1)
        first[:, 0] = 1
        hidden, _ = model.lstm(torch.cat([z[:, :-1], torch.from_numpy(latents.actions[index[:, :-1]]), first], dim=-1))
        out = model.head(hidden)
        logits, mean, logstd = out[..., 1:].reshape(batch, steps, 64, 3, 5).unbind(dim=-2)
        scaled = (z[:, 1:].unsqueeze(-1) - mean) * torch.exp(-logstd)
        nll = -torch.logsumexp(logits.log_softmax(-1) - 0.5 * scaled.square() - logstd - 0.919, dim=-1)
        inside = torch.from_numpy((np.arange(steps) < lengths[:, None] - 1).astype(np.float32))
        ends = torch.from_numpy((np.arange(steps) == lengths[:, None] - 1).astype(np.float32))
        done = F.binary_cross_entropy_with_logits(out[..., 0], ends, reduction="none") * (1 + 9 * ends)
        loss = (nll.mean(dim=-1) * inside).sum() / inside.sum() + done.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()
        return int(lengths.sum()), batch * steps

    return step


@pytest.mark.parametrize(("batch", "sequence"), [(64, 64), (100, 500)])
def test_rnn_training(batch: int, sequence: int, benchmark) -> None:
    """Beside the padded batch that is fastest for the plain loop: 16 x 250 (the paper's 100 x 500 is slower)."""
    latents = synthetic_latents(400, 300)
    config = TrainRNNConfig(batch_size=batch, sequence_length=sequence)
    torch.manual_seed(0)
    ours = train_rnn.build(config, latents)
    torch.manual_seed(0)
    plain = train_rnn.build(config, latents)
    chunk = next(PackedSequences(latents, np.arange(400), batch, sequence, 0).epoch(0))
    noise, state = torch.randn(chunk.mu.shape), ours.initial_state(batch)
    exact = TrainRNNConfig(precision="float32")
    with torch.no_grad():  # bf16 against fp32, and the sorted head against the plain one
        losses = [train_rnn.chunk_losses(ours, chunk, state, how, noise)[0].total.item() for how in (config, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    step = padded_step(plain, latents, 16, 250)
    optimizer = torch.optim.Adam([p for p in ours.parameters() if p.requires_grad], lr=1e-3, fused=True)
    micro_batches = MicroBatches("bench", "sequences", train_rnn._micro_batch_size(config), "")
    source = train_rnn._chunks(PackedSequences(latents, np.arange(400), batch, sequence, 0), 0, 0)

    def ours_step() -> int:
        nonlocal state
        _, number, chunk = next(source)
        if number == 0:
            state = ours.initial_state(batch)
        _, state = train_rnn._step(ours, optimizer, chunk, state, 1e-3, config, micro_batches, Ranks())
        return int(chunk.valid.sum())

    work = {
        "padded fp32, with padding": lambda: step()[1],
        "padded fp32, real steps": lambda: step()[0],
        f"ours {batch}x{sequence}": ours_step,
    }
    medians = alternate(benchmark, work)
    say(f"M, training, batch {batch} x {sequence}", medians, "steps", "padded fp32, with padding")


@pytest.mark.timeout(1200)
def test_memory_with_10_000_episodes(benchmark, tmp_path) -> None:
    """Peak resident size of `train-vae` and `train-rnn`: frames that are small on disk, latents of full size."""
    config = preset("takecover", "paper")
    with Run(tmp_path, config) as experiment:
        pool = pictures(2000)
        rng = np.random.default_rng(0)
        for index in range(400):
            with EpisodeWriter(shard_path(experiment.path("episodes"), index), 1) as writer:
                for _ in range(25):
                    start = int(rng.integers(0, 1950))
                    nothing = np.zeros(50, np.float32)
                    writer.append(Episode(pool[start : start + 50], nothing[:, None], nothing, True, "noop", 0))
        synthetic_latents(10_000, 300).save(experiment.path("latents", "00000.safetensors"))
        for stage in ("collect", "train_vae", "encode"):
            with mock.patch.dict(vars(get(stage)), {"run": lambda _: {}}):
                experiment.run_stage(stage)
    peaks = {}

    def train() -> None:
        for stage, steps in (("train-vae", 20), ("train-rnn", 2)):
            flags = ["--steps", str(steps)] + (["--validation", "0.01"] if stage == "train-rnn" else [])
            if stage == "train-vae":
                (tmp_path / "stages" / "train_vae.json").unlink()
            line = [sys.executable, "-m", "worldmodels", stage, "--out", str(tmp_path), *flags]
            done = subprocess.run(line, capture_output=True, text=True, env=os.environ)
            assert done.returncode == 0, done.stderr
            marker = json.loads((tmp_path / "stages" / f"{stage.replace('-', '_')}.json").read_text())
            peaks[stage] = marker["peak_memory_mb"]["process"]

    benchmark.pedantic(train, rounds=1)
    print(f"\npeak resident MB with 10,000 episodes: {peaks}")
    assert max(peaks.values()) < 2048
    benchmark.extra_info.update(peaks)
