"""Encoding of the episode store: V's mu and logvar of every frame, float16, one file per shard."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.data.episodes import EpisodeShard, EpisodeStore
from worldmodels.data.latents import Latents
from worldmodels.models.device import device, limit_threads
from worldmodels.models.encoder import Encoder
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model, load_tensors
from worldmodels.pipeline.run import Run
from worldmodels.support.files import link
from worldmodels.support.profile import phase
from worldmodels.support.progress import Progress
from worldmodels.training.optim import MicroBatches


def encode_episodes(run: Run) -> dict[str, Any]:
    """Encode the shards that are not encoded yet; link the latents of an included run with the same V.

    Returns:
        Summary: ``frames`` and ``bytes`` of the latents.
    """
    limit_threads()
    config = run.config.encode
    store = EpisodeStore(run.path("episodes"))
    model = load_model(run.path("vae", "vae.safetensors"), ConvVAE)
    micro_batches = MicroBatches("encode", "frames", config.batch_size, "--batch-size")
    folder = run.path("latents")
    targets = [folder / f"{path.stem}.safetensors" for path in store.paths]
    for existing, target in _reusable(run, store.paths):
        if not target.is_file():
            link(existing, target)
    done = sum(int(s.lengths.sum()) for s, target in zip(store.shards, targets, strict=True) if target.is_file())
    progress = Progress("encode", len(store), "frames", start=done)
    for shard, target in zip(store.shards, targets, strict=True):
        if target.is_file():
            continue
        mu, logvar = micro_batches.run(partial(encode_shard, model, shard, precision=config.precision))
        with phase("storing"):
            Latents(mu, logvar, shard.actions, shard.rewards, shard.lengths, shard.terminated).save(target)
        run.log_profile("encode")
        done += len(mu)
        progress.update(done)
    progress.close(done)
    store.close()
    return {"frames": done, "bytes": sum(target.stat().st_size for target in targets)}


def _reusable(run: Run, shards: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield (existing file, target) of the included run's latents, if its V and its precision are the same."""
    include = Path(run.config.collect.include)
    settings = Run.stored_config(include) if run.config.collect.include else None
    path = include / "vae" / "vae.safetensors"
    if settings is None or settings.encode.precision != run.config.encode.precision or not path.is_file():
        return
    (own, metadata), (other, other_metadata) = load_tensors(run.path("vae", "vae.safetensors")), load_tensors(path)
    if metadata["config"] != other_metadata["config"] or not all(torch.equal(own[name], other[name]) for name in own):
        return
    for shard in shards:
        episodes, latents = include / "episodes" / shard.name, include / "latents" / f"{shard.stem}.safetensors"
        if not (latents.is_file() and episodes.is_file()):
            continue
        if episodes.samefile(shard) or filecmp.cmp(episodes, shard, shallow=False):
            yield latents, run.path("latents", latents.name)


def encode_shard(
    model: ConvVAE, shard: EpisodeShard, batch: int, precision: str
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Encode the frames of a shard.

    Args:
        model: V.
        shard: Shard of the episode store.
        batch: Frames per forward pass.
        precision: Precision of V.

    Returns:
        mu and logvar, each (N, Z) float16.

    Raises:
        OSError: A frame is damaged.
        ValueError: A latent is not finite.
    """
    encoder = Encoder(model, device(), precision, block=batch)
    total = shard.frames.shape[0]
    mu = np.empty((total, model.latent_size), np.float16)
    logvar = np.empty_like(mu)
    for start in range(0, total, batch):
        rows = slice(start, min(start + batch, total))
        try:
            with phase("data"):
                frames = shard.frames[rows]
        except OSError as error:
            raise OSError(f"{shard.path}: a frame in {rows.start} to {rows.stop - 1} is damaged: {error}") from error
        with phase("forward"):
            mu[rows], logvar[rows] = encoder(frames)
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        raise ValueError("encode: expected finite latents, got NaN or infinity; the training of V failed")
    return mu, logvar
