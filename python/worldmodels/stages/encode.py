"""Encode: V's mu and logvar of every frame of the episode store, shard by shard, as float16."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.data.episodes import EpisodeShard, EpisodeStore
from worldmodels.data.latents import Latents
from worldmodels.data.weights import load_model
from worldmodels.experiment import Experiment
from worldmodels.models.encoder import Encoder
from worldmodels.models.training import Pieces, device
from worldmodels.models.vae import ConvVAE
from worldmodels.progress import Progress


def run(experiment: Experiment) -> dict[str, Any]:
    """Encodes the shards that are not encoded yet."""
    config = experiment.config.encode
    store = EpisodeStore(experiment.path("episodes"))
    model = load_model(experiment.path("vae", "vae.safetensors"), ConvVAE)
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


def encode_shard(
    model: ConvVAE, shard: EpisodeShard, batch: int, precision: str
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """(mu, logvar) of all frames of a shard, each (N, Z) float16, ``batch`` of them at a time."""
    encoder = Encoder(model, device(), precision, block=batch)
    total = shard.frames.shape[0]
    mu = np.empty((total, model.latent_size), np.float16)
    logvar = np.empty_like(mu)
    for start in range(0, total, batch):
        rows = slice(start, min(start + batch, total))
        mu[rows], logvar[rows] = encoder(shard.frames[rows])
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        raise ValueError("encode: V gave NaN or infinite latents; its training has failed")
    return mu, logvar
