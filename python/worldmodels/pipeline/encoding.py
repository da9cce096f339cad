"""Encoding of the episode store: V's mu and logvar of every frame, float16, one file per shard."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.data.episodes import EpisodeShard, EpisodeStore
from worldmodels.data.latents import Latents
from worldmodels.models.device import device, limit_threads
from worldmodels.models.encoder import Encoder, encodes_in_bfloat16
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model, load_tensors
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import EncodeConfig
from worldmodels.pipeline.run import Run
from worldmodels.rollout.needs import check_no_gpu
from worldmodels.support.cluster import Needs, StaticQueue, WorkUnit, active_cluster, with_sizes
from worldmodels.support.files import link
from worldmodels.support.profile import phase, phase_of
from worldmodels.support.progress import Progress
from worldmodels.training.optim import MicroBatches
from worldmodels.training.settings import TorchPrecision


def encode_episodes(run: Run) -> dict[str, Any]:
    """Encode the shards that are not encoded yet; link the latents of an included run with the same V.

    Returns:
        Summary: ``frames`` of the store, and ``bytes`` of the latents.
    """
    limit_threads()
    config = run.config.encode
    store = EpisodeStore(run.path("episodes"))
    model = load_model(run.path("vae", "vae.safetensors"), ConvVAE)
    folder = run.path("latents")
    targets = [folder / f"{path.stem}.safetensors" for path in store.paths]
    for existing, target in _reusable(run, store.paths):
        if not target.is_file():
            link(existing, target)
    units = [
        WorkUnit(int(shard.lengths.sum()), (shard.path.absolute(), target.absolute()))
        for shard, target in zip(store.shards, targets, strict=True)
        if not target.is_file()
    ]
    store.close()
    done = len(store) - sum(unit.size for unit in units)
    progress = Progress("encode", len(store), "frames", start=done)
    mirror = tasks.of(run.config).mirror if config.mirror else ()
    for frames in _encode(model, units, config, mirror):
        run.log_profile("encode")
        done += frames
        progress.update(done)
    progress.close(done)
    return {"frames": done, "bytes": sum(target.stat().st_size for target in targets)}


def _encode(
    model: ConvVAE, units: Sequence[WorkUnit], config: EncodeConfig, mirror: tuple[float, ...]
) -> Iterator[int]:
    """Encode shards, on the cluster if there is one; yield the number of frames of each."""
    cluster = active_cluster()
    if cluster is None or not units:
        encode = _Encoding(model, config, mirror)
        yield from (encode(unit.data) for unit in units)
        return
    check_no_gpu()
    precision: TorchPrecision = "bfloat16" if encodes_in_bfloat16(device(), config.precision) else "float32"
    needs = Needs(bfloat16=precision == "bfloat16", files=with_sizes([units[0].data[0]]))
    job = EncodeJob(model, replace(config, precision=precision), mirror, needs)
    yield from (frames for _, frames in cluster.run(cluster.prepare(job), StaticQueue(units)))


class _Encoding:
    """V, the number of frames that it encodes at once, and the factors of the actions of a mirror image."""

    def __init__(self, model: ConvVAE, config: EncodeConfig, mirror: tuple[float, ...]) -> None:
        self._model, self._precision, self._mirror = model, config.precision, mirror
        self._micro_batches = MicroBatches("encode", "frames", config.batch_size, "--batch-size")

    def __call__(self, paths: tuple[Path, Path]) -> int:
        """Encode a shard; return the number of its frames.

        Args:
            paths: Shard, and file of its latents.
        """
        path, target = paths
        shard = EpisodeShard(path)
        try:
            latents = self._latents(shard)
            if self._mirror:
                latents = followed_by_mirror_images(latents, self._latents(shard, mirrored=True))
            with phase("storing"):
                latents.save(target)
            return int(shard.lengths.sum())
        finally:
            shard.close()

    def _latents(self, shard: EpisodeShard, *, mirrored: bool = False) -> Latents:
        encode = partial(encode_shard, self._model, shard, precision=self._precision, mirrored=mirrored)
        actions = shard.actions * np.array(self._mirror, np.float32) if mirrored else shard.actions
        return Latents(*self._micro_batches.run(encode), actions, shard.rewards, shard.lengths, shard.terminated)

    def close(self) -> None:
        """See :class:`worldmodels.support.cluster.Handler`."""


@dataclass(frozen=True)
class EncodeJob:
    """:class:`worldmodels.support.cluster.Job` of encode.

    A work unit is the paths of a shard and of its latents, on a file system of all nodes.
    """

    model: ConvVAE
    config: EncodeConfig
    mirror: tuple[float, ...]
    needs: Needs

    def open(self, num_threads: int) -> _Encoding:
        """See :meth:`worldmodels.support.cluster.Job.open`."""
        return _Encoding(self.model, self.config, self.mirror)


def followed_by_mirror_images(latents: Latents, mirrored: Latents) -> Latents:
    """Insert the mirror image of every episode after it.

    Args:
        latents: Encoded episodes.
        mirrored: Their mirror images, in the same order.
    """
    pairs = zip(latents.starts, latents.starts + latents.lengths, strict=True)
    order = np.concatenate([np.r_[a:b, len(latents.mu) + a : len(latents.mu) + b] for a, b in pairs])
    frames = {
        key: np.concatenate([getattr(latents, key), getattr(mirrored, key)])[order]
        for key in ("mu", "logvar", "actions", "rewards")
    }
    episodes = {key: np.repeat(getattr(latents, key), 2) for key in ("lengths", "terminated")}
    return Latents(**frames, **episodes, mirrored=True)


def _reusable(run: Run, shards: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield (existing file, target) of the included run's latents, if its V and its precision are the same."""
    include = Path(run.config.collect.include)
    settings = Run.stored_config(include) if run.config.collect.include else None
    path = include / "vae" / "vae.safetensors"
    same = (
        settings is not None and replace(settings.encode, batch_size=run.config.encode.batch_size) == run.config.encode
    )
    if not (same and path.is_file()):
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
    model: ConvVAE, shard: EpisodeShard, batch: int, precision: str, *, mirrored: bool = False
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Encode the frames of a shard.

    Args:
        model: V.
        shard: Shard of the episode store.
        batch: Frames per forward pass.
        precision: Precision of V.
        mirrored: Encode the frames' reflections, left to right.

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
    for rows, frames in phase_of("data", _read_ahead(shard, batch)):
        with phase("forward"):
            mu[rows], logvar[rows] = encoder(np.ascontiguousarray(frames[:, :, ::-1]) if mirrored else frames)
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        raise ValueError("encode: expected finite latents, got NaN or infinity; the training of V failed")
    return mu, logvar


def _read_ahead(shard: EpisodeShard, batch: int) -> Iterator[tuple[slice, npt.NDArray[np.uint8]]]:
    """Yield the rows and the frames of every batch of a shard; a background thread reads one batch ahead."""
    total = shard.frames.shape[0]
    batches = [slice(start, min(start + batch, total)) for start in range(0, total, batch)]

    def read(rows: slice) -> npt.NDArray[np.uint8]:
        try:
            frames: npt.NDArray[np.uint8] = shard.frames[rows]
        except OSError as error:
            raise OSError(f"{shard.path}: a frame in {rows.start} to {rows.stop - 1} is damaged: {error}") from error
        return frames

    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read, batches[0])
        for rows, after in zip(batches, [*batches[1:], None], strict=True):
            frames = following.result()
            if after is not None:
                following = reader.submit(read, after)
            yield rows, frames
