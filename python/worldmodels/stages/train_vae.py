"""Train V: the ConvVAE on shuffled frames of the episode store."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldmodels import pretrained
from worldmodels.config import TrainVAEConfig
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.weights import (
    load_model,
    load_tensors,
    restore_training,
    save_model,
    save_tensors,
    training_state,
)
from worldmodels.experiment import Experiment
from worldmodels.models.training import LossGuard, autocast, cosine, device, seed_step
from worldmodels.models.vae import ConvVAE, sample_latent, vae_loss
from worldmodels.progress import Progress

_LOG_EVERY = 25


def run(experiment: Experiment) -> dict[str, Any]:
    """Trains for ``steps`` batches, from the last checkpoint if there is one."""
    config = experiment.config.train_vae
    store = EpisodeStore(experiment.path("episodes"))
    train, held_out = split_frames(store, config.validation)
    where = device()
    seed_step(experiment.config.seed, "vae-init", 0)
    model = ConvVAE(config.latent_size).to(where)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    checkpoint = experiment.path("vae", "checkpoint.safetensors")
    first = 0
    if checkpoint.is_file():
        tensors, about = load_tensors(checkpoint)
        restore_training(model, optimizer, tensors)
        first = int(about["step"])
    elif config.start:
        start = load_model(pretrained.resolve(config.start) / "vae" / "vae.safetensors", ConvVAE)
        model.load_state_dict(start.state_dict())
    experiment.rewind_metrics("train-vae", first)

    guard = LossGuard("train-vae")
    order = _Order(train, config.batch, experiment.config.seed)
    progress = Progress("train-vae", config.steps, "batches", start=first)
    validation: dict[str, float] = {}
    with ThreadPoolExecutor(1) as reader:
        batch: Future[npt.NDArray[np.uint8]] = reader.submit(lambda: store.read(order.batch(first)))
        for step in range(first, config.steps):
            frames = to_input(batch.result(), where)
            if step + 1 < config.steps:
                batch = reader.submit(lambda indices: store.read(indices), order.batch(step + 1))
            lr = cosine(step, config.steps, 0.02 * config.lr, config.lr) if config.schedule == "cosine" else config.lr
            loss, squared_error, kl = _step(model, optimizer, frames, lr, config, experiment.config.seed, step)
            done = step + 1
            if done % _LOG_EVERY == 0 or done == config.steps:
                guard.check(loss.item(), done, lr)
                values = {"loss": loss.item(), "squared_error": squared_error.item(), "kl": kl.item(), "lr": lr}
                experiment.log("train-vae", step=done, **values, seconds=round(progress.seconds, 2))
                rate = (done - first) * config.batch / progress.seconds
                note = f"{rate:,.0f} frames/s, squared error {values['squared_error']:.1f}, KL {values['kl']:.1f}"
                progress.update(done, note)
            if done % config.checkpoint_every == 0 or done == config.steps:
                validation = validate(model, store.read(held_out), config)
                guard.check(validation["squared_error"] + config.kl_weight * validation["kl"], done, lr)
                experiment.log("train-vae", step=done, **{f"validation_{k}": v for k, v in validation.items()})
                save_tensors(checkpoint, training_state(model, optimizer), {"step": done, **validation})
    progress.close(config.steps, f"validation squared error {validation.get('squared_error', float('nan')):.2f}")
    if not validation:
        validation = validate(model, store.read(held_out), config)
    save_model(experiment.path("vae", "vae.safetensors"), model, steps=config.steps, validation=validation)
    store.close()
    return {"frames": len(train), "parameters": sum(p.numel() for p in model.parameters()), **validation}


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


class _Order:
    """The frames of every batch: a new permutation every epoch, found again from the step alone."""

    def __init__(self, indices: npt.NDArray[np.int64], batch: int, seed: int) -> None:
        self._indices, self._batch, self._seed = indices, batch, seed
        self._epoch, self._permutation = -1, indices

    def _at(self, position: int) -> tuple[npt.NDArray[np.int64], int]:
        epoch, offset = divmod(position, len(self._indices))
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._epoch, self._permutation = epoch, rng.permutation(self._indices)
        return self._permutation, offset

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        parts: list[npt.NDArray[np.int64]] = []
        position, missing = step * self._batch, self._batch
        while missing:
            permutation, offset = self._at(position)
            parts.append(permutation[offset : offset + missing])
            position += len(parts[-1])
            missing -= len(parts[-1])
        return np.concatenate(parts)


def to_input(frames: npt.NDArray[np.uint8], where: torch.device) -> Tensor:
    """(B, 64, 64, 3) uint8 frames to V's (B, 3, 64, 64) float32 in [0, 1] on a device."""
    return torch.from_numpy(frames).to(where).permute(0, 3, 1, 2).float().div_(255)


def _step(
    model: ConvVAE,
    optimizer: torch.optim.Optimizer,
    frames: Tensor,
    lr: float,
    config: TrainVAEConfig,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam; returns (loss, squared error, KL), each ()."""
    optimizer.param_groups[0]["lr"] = lr
    seed_step(seed, "train-vae", step)
    with autocast(frames.device, config.precision):
        recon, mu, logvar = model(frames)
    loss, squared_error, kl = vae_loss(recon, frames, mu, logvar, config.kl_tolerance, config.kl_weight)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach(), squared_error.detach(), kl.detach()


@torch.no_grad()
def validate(model: ConvVAE, frames: npt.NDArray[np.uint8], config: TrainVAEConfig) -> dict[str, float]:
    """Squared error (with a sampled z), KL, and how many latents carry more than 0.05 nats, on held-out frames."""
    where = next(model.parameters()).device
    seed_step(0, "validate-vae", 0)
    errors, means, logvars = [], [], []
    for start in range(0, len(frames), 250):
        x = to_input(frames[start : start + 250], where)
        with autocast(where, config.precision):
            mu, logvar = model.encode(x)
            recon = model.decode(sample_latent(mu, logvar))
        errors.append((recon.float() - x).square().sum(dim=(1, 2, 3)))
        means.append(mu.float())
        logvars.append(logvar.float())
    mu, logvar = torch.cat(means), torch.cat(logvars)
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(dim=0)  # (Z,)
    return {
        "squared_error": float(torch.cat(errors).mean()),
        "kl": float(kl.sum()),
        "active_latents": int((kl > 0.05).sum()),
    }
