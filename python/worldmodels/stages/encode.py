"""Encode: V's mu and logvar of every frame of the episode store, shard by shard, as float16."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.data.episodes import EpisodeShard, EpisodeStore
from worldmodels.data.latents import Latents
from worldmodels.data.weights import load_model
from worldmodels.experiment import Experiment
from worldmodels.models.training import Pieces, autocast, device
from worldmodels.models.vae import ConvVAE
from worldmodels.progress import Progress
from worldmodels.stages.train_vae import to_input


def run(experiment: Experiment) -> dict[str, Any]:
    """Encodes the shards that are not encoded yet."""
    config = experiment.config.encode
    store = EpisodeStore(experiment.path("episodes"))
    model = load_model(experiment.path("vae", "vae.safetensors"), ConvVAE).to(device())
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pieces = Pieces("encode", "frames", config.batch, "--batch")
    folder = experiment.path("latents")
    targets = [folder / f"{path.stem}.safetensors" for path in store.paths]
    done = sum(int(s.lengths.sum()) for s, target in zip(store.shards, targets, strict=True) if target.is_file())
    progress = Progress("encode", len(store), "frames", start=done)
    for shard, target in zip(store.shards, targets, strict=True):
        if target.is_file():
            continue
        mu, logvar = pieces.run(partial(encode_shard, model, shard, precision=config.precision))
        Latents(mu, logvar, shard.actions, shard.rewards, shard.lengths, shard.terminated).save(target)
        done += len(mu)
        progress.update(done)
    progress.close(done)
    store.close()
    return {"frames": done, "bytes": sum(target.stat().st_size for target in targets)}


@torch.inference_mode()
def encode_shard(
    model: ConvVAE, shard: EpisodeShard, batch: int, precision: str
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """(mu, logvar) of all frames of a shard, each (N, Z) float16."""
    where = next(model.parameters()).device
    total = shard.frames.shape[0]
    mu = np.empty((total, model.latent_size), np.float16)
    logvar = np.empty_like(mu)
    for start in range(0, total, batch):
        rows = slice(start, min(start + batch, total))
        with autocast(where, precision):
            means, logvars = model.encode(to_input(shard.frames[rows], where))
        mu[rows], logvar[rows] = means.float().cpu().numpy(), logvars.float().cpu().numpy()
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        raise ValueError("encode: V gave NaN or infinite latents; its training has failed")
    return mu, logvar
