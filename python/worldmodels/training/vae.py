"""Train V: the ConvVAE on shuffled frames of the episode store."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worldmodels.analysis import image_grid as sheets
from worldmodels.analysis import quality
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.frames import FrameReader, ShuffledBatches
from worldmodels.models.device import autocast, device, limit_threads, on_device, seed_step
from worldmodels.models.vae import ConvVAE, decode, vae_loss
from worldmodels.support.files import write_json
from worldmodels.support.progress import Progress
from worldmodels.training.distributed import Ranks, synchronised
from worldmodels.training.optim import LossGuard, Pieces, cosine
from worldmodels.training.settings import TrainVAEConfig
from worldmodels.training.trainer import LOG_EVERY, Loop, TrainingRun, failed

_SHEET = 12  # frames on a sheet


def train_vae(run: TrainingRun, config: TrainVAEConfig, seed: int) -> dict[str, Any]:
    """Train V on the episodes of a run for ``config.steps`` steps, from the last checkpoint if there is one.

    Args:
        run: Run whose ``episodes/`` are read and whose ``vae/`` is written.
        config: Settings.
        seed: Seed of the run.

    Returns:
        Summary: losses, quality and, if V failed its quality gate, ``failure``.
    """
    ranks = run.ranks
    store = EpisodeStore(run.path("episodes"))
    train, held_out = split_frames(store, config.validation_frames)
    limit_threads()
    where = device()
    seed_step(seed, "vae-init", 0)
    model = ConvVAE(config.latent_size).to(where)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    loop = Loop(run, "train-vae", "vae", model, optimizer, config)
    network = torch.compile(model) if config.compile else model
    network = ranks.wrap(network)  # type: ignore[arg-type]

    guard = LossGuard("train-vae")
    order = ShuffledBatches(train, config.batch_size, seed)
    rows = ranks.share(config.batch_size)
    at_once = config.micro_batch_size or rows.stop - rows.start
    pieces = Pieces("train-vae", "frames", at_once, "--micro-batch-size", retry=ranks.size == 1)
    first = loop.step
    progress = Progress("train-vae", config.steps, "batches", start=first, shown=ranks.first)
    with FrameReader(store, order, first, config.steps, rows, config.num_workers) as batches:
        for frames in batches:
            if loop.over:
                break
            lr = rate(config, loop.step)
            losses = _step(network, optimizer, frames, lr, config, seed, loop.step, pieces, ranks)
            loop.step += 1
            if loop.due(LOG_EVERY):
                loss, squared_error, kl = ranks.total(losses).tolist()
                guard.check(loss, loop.step, lr)
                loop.log(loss=loss, squared_error=squared_error, kl=kl, lr=lr, seconds=round(progress.seconds, 2))
                speed = (loop.step - first) * config.batch_size / progress.seconds
                note = f"{speed:,.0f} frames/s, squared error {squared_error:.1f}, KL {kl:.1f}"
                progress.update(loop.step, note)
            due = loop.due(config.checkpoint_every)
            if due:
                figures = validated(model, store, held_out, config, ranks)
                guard.check(figures["loss"], loop.step, lr)
            epoch = order.epoch(loop.step - 1) + 1
            if ranks.first and (due or order.epoch(loop.step) >= epoch):
                _draw(run, model, store, held_out, epoch)
            if due:  # after the sheet, which a run that goes on from here would not draw
                loop.validated(figures, figures["loss"], {})
    if not loop.figures:
        loop.figures = validated(model, store, held_out, config, ranks)
    summary = loop.choose()
    progress.close(loop.step, f"validation squared error {summary['squared_error']:.2f}")
    if ranks.first:
        summary["quality"] = quality.reconstruction(model, store, held_out)
        write_json(run.path("vae", "quality.json"), summary["quality"])
        failure = quality.vae_failure(summary["quality"]) if config.steps > 0 else None
        summary |= failed("train-vae", failure, loop.step * config.batch_size, "frames")
        loop.hand_on(summary)
    store.close()
    return {"frames": len(train), "parameters": sum(p.numel() for p in model.parameters()), **summary}


def rate(config: TrainVAEConfig, step: int) -> float:
    """The learning rate at a step."""
    if config.schedule == "cosine":
        return cosine(step, config.steps, 0.02 * config.lr, config.lr)
    return config.lr


def split_frames(store: EpisodeStore, validation: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Holds out the last twentieth of the episodes.

    Returns:
        (training frames, at most ``validation`` held-out frames evenly spread), both int64 indices into the store.
    """
    lengths = store.lengths
    if len(lengths) < 2:
        raise ValueError(f"collect.episodes: expected at least 2 to hold one out for validation, got {len(lengths)}")
    first = int(lengths[: -max(1, len(lengths) // 20)].sum())
    held_out = np.linspace(first, len(store) - 1, min(validation, len(store) - first)).astype(np.int64)
    return np.arange(first), held_out


def to_input(frames: npt.NDArray[np.uint8], where: torch.device) -> Tensor:
    """(B, 64, 64, 3) uint8 frames to V's (B, 3, 64, 64) float32 in [0, 1] on a device, channels last."""
    return on_device(frames, where).permute(0, 3, 1, 2).float().div_(255)


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    frames: npt.NDArray[np.uint8],
    lr: float,
    config: TrainVAEConfig,
    seed: int,
    step: int,
    pieces: Pieces,
    ranks: Ranks,
) -> Tensor:
    """One step of Adam on this process's frames; returns its part of (loss, squared error, KL)."""
    where = next(network.parameters()).device
    optimizer.param_groups[0]["lr"] = lr
    seed_step(seed, "train-vae", step)
    # of the whole batch, so that any pieces and any number of processes take the same numbers
    noise = torch.randn(config.batch_size, config.latent_size, device=where)[ranks.share(config.batch_size)]
    losses = pieces.run(lambda rows: gradient(network, frames, noise, config, rows, ranks))
    optimizer.step()
    return losses


def gradient(
    network: nn.Module,
    frames: npt.NDArray[np.uint8],
    noise: Tensor,
    config: TrainVAEConfig,
    at_once: int,
    ranks: Ranks,
) -> Tensor:
    """Leaves the gradient of the whole batch's loss in the parameters, computed ``at_once`` frames at a time.

    Args:
        network: V, or its DistributedDataParallel.
        frames: (B, 64, 64, 3) uint8, this process's part of the batch.
        noise: (B, Z) of the sampling.
        config: of the loss; its ``batch`` is that of all processes together.
        at_once: frames in a piece.
        ranks: the processes.

    Returns:
        (3,) this process's part of the batch's loss, squared error and KL.
    """
    network.zero_grad()
    x = to_input(frames, noise.device)
    sums = torch.zeros(3, device=noise.device)
    for start in range(0, len(frames), at_once):
        part = slice(start, min(start + at_once, len(frames)))
        with synchronised(network, part.stop == len(frames)):
            with autocast(noise.device, config.precision):
                recon, mu, logvar = network(x[part], noise[part])
            losses = vae_loss(recon, x[part], mu, logvar, **_weights(config))
            share = (part.stop - part.start) / config.batch_size
            # DistributedDataParallel takes the mean over the processes, and the batch's loss is their sum
            (losses[0] * (share * ranks.size)).backward()  # type: ignore[no-untyped-call]
        sums += share * torch.stack(losses).detach()
    return sums


def _weights(config: TrainVAEConfig) -> dict[str, float]:
    return {name: getattr(config, name) for name in ("kl_tolerance", "kl_weight", "quartic_weight")}


def validated(
    model: ConvVAE, store: EpisodeStore, held_out: npt.NDArray[np.int64], config: TrainVAEConfig, ranks: Ranks
) -> dict[str, float]:
    """What :func:`validate` finds in the first process, told to all."""
    figures = validate(model, store.read(held_out), config) if ranks.first else {}
    told: dict[str, float] = ranks.told(figures)
    return told


@torch.no_grad()
def validate(model: ConvVAE, frames: npt.NDArray[np.uint8], config: TrainVAEConfig) -> dict[str, float]:
    """Loss, squared error (with a sampled z), KL, and how many latents carry over 0.05 nats, on held-out frames."""
    where = next(model.parameters()).device
    seed_step(0, "validate-vae", 0)
    noise = torch.randn(len(frames), model.latent_size, device=where)
    pieces = Pieces("train-vae", "frames", 250, "--validation-frames")

    def measure(at_once: int) -> tuple[Tensor, Tensor]:
        losses, kls = [], []
        for start in range(0, len(frames), at_once):
            x = to_input(frames[start : start + at_once], where)
            with autocast(where, config.precision):
                recon, mu, logvar = model(x, noise[start : start + at_once])
            mu, logvar = mu.float(), logvar.float()
            losses.append(len(x) * torch.stack(vae_loss(recon, x, mu, logvar, **_weights(config))))
            kls.append(0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=0))  # (Z,)
        return torch.stack(losses).sum(dim=0) / len(frames), torch.stack(kls).sum(dim=0) / len(frames)

    losses, kl = pieces.run(measure)
    names = ("loss", "squared_error", "kl")
    return {**dict(zip(names, losses.tolist(), strict=True)), "active_latents": int((kl > 0.05).sum())}


@torch.no_grad()
def _draw(run: TrainingRun, model: ConvVAE, store: EpisodeStore, held_out: npt.NDArray[np.int64], epoch: int) -> None:
    """The sheet of an epoch: held-out frames above V's reconstructions."""
    real = store.read(held_out[np.linspace(0, len(held_out) - 1, min(_SHEET, len(held_out))).astype(int)])
    mu, _ = model.encode(to_input(real, next(model.parameters()).device))
    path = run.path("vae", "sheets", f"epoch_{epoch:04d}.png")
    sheets.save(path, [real, decode(model, mu.cpu().numpy())])
