"""Training of V: the ConvVAE on shuffled frames of the episode store."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worldmodels.analysis import image_grid, quality
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.frames import FrameReader, ShuffledBatches
from worldmodels.data.latents import are_held_out
from worldmodels.models.device import autocast, device, limit_threads, on_device, seed_step, uses_bfloat16
from worldmodels.models.vae import ConvVAE, decode, vae_loss
from worldmodels.support.profile import phase, phase_of
from worldmodels.support.progress import Progress
from worldmodels.support.simd import precisions
from worldmodels.training.distributed import Ranks, gradient_sync
from worldmodels.training.native_vae import NativeVAE
from worldmodels.training.optim import ChannelsLastAdam, MicroBatches, cosine
from worldmodels.training.settings import TrainVAEConfig
from worldmodels.training.trainer import LOG_EVERY, Trainer, TrainingRun, gate

_COLOUR_FRAMES = 1_000
_GRID = 12  # frames in an image grid
_ACTIVE_NATS = 0.05  # KL divergence above which a latent dimension is active


def train_vae(run: TrainingRun, config: TrainVAEConfig, seed: int) -> dict[str, Any]:
    """Train V on the episodes of a run for ``config.steps`` steps, from the last checkpoint if there is one.

    Args:
        run: Run whose ``episodes/`` are read and whose ``vae/`` is written.
        config: Settings.
        seed: Seed of the run.

    Returns:
        Summary: losses, quality and, if V failed its quality check, ``failure``.
    """
    ranks = run.ranks
    store = EpisodeStore(run.path("episodes"))
    train, held_out = split_frames(store, config.validation_frames)
    limit_threads()
    where = device()
    seed_step(seed, "vae-init", 0)
    model = ConvVAE(config.latent_size)
    if config.mean_output:
        model.init_output(mean_colour(store, train))
    model.to(where)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = ChannelsLastAdam(model.parameters(), config.lr)
    trainer = Trainer(run, "train-vae", "vae", model, optimizer, config)
    network = torch.compile(model) if config.compile else training_network(model, config.precision)
    network = ranks.wrap(network)  # type: ignore[arg-type]

    order = ShuffledBatches(train, config.batch_size, seed)
    rows = ranks.shard(config.batch_size)
    micro_batch_size = config.micro_batch_size or rows.stop - rows.start
    micro_batches = MicroBatches("train-vae", "frames", micro_batch_size, "--micro-batch-size", retry=ranks.size == 1)
    first = trainer.step
    progress = Progress("train-vae", config.steps, "batches", start=first, shown=ranks.is_main)
    with FrameReader(store, order, first, config.steps, rows, config.num_workers) as batches:
        for frames in phase_of("data", batches):
            if trainer.finished:
                break
            lr = learning_rate(config, trainer.step)
            losses = _step(network, optimizer, frames, lr, config, seed, trainer.step, micro_batches, ranks)
            trainer.step += 1
            if trainer.is_due(LOG_EVERY):
                loss, squared_error, kl = ranks.all_reduce_sum(losses).tolist()
                trainer.guard.check(loss, trainer.step, lr)
                trainer.log(loss=loss, squared_error=squared_error, kl=kl, lr=lr, seconds=round(run.seconds, 2))
                speed = (trainer.step - first) * config.batch_size / progress.seconds
                note = f"{speed:,.0f} frames/s, squared error {squared_error:.1f}, KL {kl:.1f}"
                progress.update(trainer.step, note)
            checkpoint_due = trainer.is_due(config.checkpoint_every)
            if checkpoint_due:
                with phase("validation"):
                    metrics = _validate_on_main(model, store, held_out, config, ranks)
                trainer.guard.check(metrics["loss"], trainer.step, lr)
            epoch = order.epoch(trainer.step - 1) + 1
            epoch_ended = order.epoch(trainer.step) >= epoch
            if checkpoint_due or (epoch_ended and trainer.epoch_has_grid):
                trainer.grid_step = trainer.step
                if ranks.is_main:
                    with phase("validation"):
                        _save_image_grid(run, model, store, held_out, epoch, trainer.step)
            if checkpoint_due:  # after the image grid, which a run resumed from this checkpoint does not save
                trainer.checkpoint(metrics, metrics["loss"], {})
    if not trainer.metrics:
        trainer.metrics = _validate_on_main(model, store, held_out, config, ranks)
    summary = trainer.load_selected()
    progress.close(trainer.step, f"validation squared error {summary['squared_error']:.2f}")
    if ranks.is_main:
        with phase("validation"):
            measured = quality.reconstruction(model, store, held_out)
        measured.write(run.path("vae", "quality.json"))
        summary["quality"] = measured.to_json()
        failure = quality.vae_failure(measured) if config.steps > 0 else None
        summary |= gate("train-vae", failure, trainer.step * config.batch_size, "frames")
        trainer.export(summary)
    store.close()
    return {"frames": len(train), "parameters": sum(p.numel() for p in model.parameters()), **summary}


def training_network(model: ConvVAE, precision: str) -> nn.Module:
    """Return V on a GPU, and V with native convolutions on a CPU.

    Raises:
        ValueError: ``precision`` is ``"bfloat16"``, which this CPU does not have.
    """
    where = next(model.parameters()).device
    if where.type != "cpu":
        return model
    # an explicit bfloat16 is checked here, so that the error names the setting
    bfloat16 = uses_bfloat16(where, precision) and (precision != "auto" or "bfloat16" in precisions())
    return NativeVAE(model, "bfloat16" if bfloat16 else "float32")


def learning_rate(config: TrainVAEConfig, step: int) -> float:
    """Compute the learning rate of a step."""
    if config.schedule == "cosine":
        return cosine(step, config.steps, 0.02 * config.lr, config.lr)
    return config.lr


def split_frames(store: EpisodeStore, validation: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hold out the frames of every twentieth episode, or of the last one of fewer than twenty.

    Args:
        store: Episode store.
        validation: Maximum number of held-out frames.

    Returns:
        int64 indices of the training frames, and of evenly spaced held-out frames.

    Raises:
        ValueError: The store has fewer than two episodes.
    """
    lengths = store.lengths
    if len(lengths) < 2:
        raise ValueError(f"collect.episodes: expected at least 2 to hold one out for validation, got {len(lengths)}")
    of_held_out = are_held_out(len(lengths), 0.05).repeat(lengths)
    held_out = np.flatnonzero(of_held_out)
    spaced = np.linspace(0, len(held_out) - 1, min(validation, len(held_out))).astype(np.int64)
    return np.flatnonzero(~of_held_out), held_out[spaced]


def mean_colour(store: EpisodeStore, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute the mean colour of evenly spaced frames.

    Args:
        store: Episode store.
        frames: Indices of the frames, of which at most 1,000 are read.

    Returns:
        (3,) mean red, green and blue, from 0 to 1.
    """
    chosen = frames[np.linspace(0, len(frames) - 1, min(_COLOUR_FRAMES, len(frames))).astype(np.int64)]
    mean: npt.NDArray[np.float64] = store.read(chosen).mean(axis=(0, 1, 2)) / 255
    return mean


def to_input(frames: npt.NDArray[np.uint8], where: torch.device) -> Tensor:
    """Convert (B, 64, 64, 3) uint8 frames to V's input: (B, 3, 64, 64) float32 in [0, 1], channels last."""
    return on_device(frames, where).permute(0, 3, 1, 2).float().div_(255)


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    frames: npt.NDArray[np.uint8],
    lr: float,
    config: TrainVAEConfig,
    seed: int,
    step: int,
    micro_batches: MicroBatches,
    ranks: Ranks,
) -> Tensor:
    """Take one step of Adam; return this process's contribution to (loss, squared error, KL)."""
    where = next(network.parameters()).device
    optimizer.param_groups[0]["lr"] = lr
    seed_step(seed, "train-vae", step)
    # sampled for the whole batch, so that it does not depend on the micro-batches and the number of processes
    noise = torch.randn(config.batch_size, config.latent_size, device=where)[ranks.shard(config.batch_size)]
    losses = micro_batches.run(lambda rows: accumulate_gradient(network, frames, noise, config, rows, ranks))
    with phase("optimizer"):
        optimizer.step()
    return losses


def accumulate_gradient(
    network: nn.Module,
    frames: npt.NDArray[np.uint8],
    noise: Tensor,
    config: TrainVAEConfig,
    micro_batch_size: int,
    ranks: Ranks,
) -> Tensor:
    """Accumulate the gradient of the whole batch's loss in the parameters, one micro-batch at a time.

    Args:
        network: V, or its DistributedDataParallel.
        frames: (B, 64, 64, 3) uint8 frames, this process's shard of the batch.
        noise: (B, Z) noise of the sampled latents.
        config: Settings of the loss; ``batch_size`` counts the rows of all processes.
        micro_batch_size: Frames of a micro-batch.
        ranks: Processes of the launch.

    Returns:
        (3,) this process's contribution to the batch's loss, squared error and KL.
    """
    network.zero_grad()
    x = to_input(frames, noise.device)
    sums = torch.zeros(3, device=noise.device)
    for start in range(0, len(frames), micro_batch_size):
        part = slice(start, min(start + micro_batch_size, len(frames)))
        with gradient_sync(network, enabled=part.stop == len(frames)), phase("forward"):
            with autocast(noise.device, config.precision):
                recon, mu, logvar = network(x[part], noise[part])
            losses = vae_loss(recon, x[part], mu, logvar, **_weights(config))
            fraction = (part.stop - part.start) / config.batch_size
            # times the number of processes, because DistributedDataParallel averages over them
            with phase("backward"):
                (losses[0] * (fraction * ranks.size)).backward()  # type: ignore[no-untyped-call]
        sums += fraction * torch.stack(losses).detach()
    return sums


def _weights(config: TrainVAEConfig) -> dict[str, float]:
    return {name: getattr(config, name) for name in ("kl_tolerance", "kl_weight", "quartic_weight")}


def _validate_on_main(
    model: ConvVAE, store: EpisodeStore, held_out: npt.NDArray[np.int64], config: TrainVAEConfig, ranks: Ranks
) -> dict[str, float]:
    """Run :func:`validate` in rank 0 and broadcast its result."""
    found: dict[str, float] = ranks.broadcast(validate(model, store.read(held_out), config) if ranks.is_main else {})
    return found


@torch.no_grad()
def validate(model: ConvVAE, frames: npt.NDArray[np.uint8], config: TrainVAEConfig) -> dict[str, float]:
    """Compute the losses on held-out frames.

    Args:
        model: V.
        frames: (N, 64, 64, 3) uint8 frames.
        config: Settings of the loss.

    Returns:
        ``loss``, ``squared_error`` and ``kl`` with sampled latents, and ``active_latents``, the number of latent
        dimensions with a KL divergence above 0.05 nats.
    """
    where = next(model.parameters()).device
    seed_step(0, "validate-vae", 0)
    noise = torch.randn(len(frames), model.latent_size, device=where)
    micro_batches = MicroBatches("train-vae", "frames", 250, "--validation-frames")

    def measure(micro_batch_size: int) -> tuple[Tensor, Tensor]:
        losses, kls = [], []
        for start in range(0, len(frames), micro_batch_size):
            x = to_input(frames[start : start + micro_batch_size], where)
            with autocast(where, config.precision):
                recon, mu, logvar = model(x, noise[start : start + micro_batch_size])
            mu, logvar = mu.float(), logvar.float()
            losses.append(len(x) * torch.stack(vae_loss(recon, x, mu, logvar, **_weights(config))))
            kls.append(0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=0))  # (Z,)
        return torch.stack(losses).sum(dim=0) / len(frames), torch.stack(kls).sum(dim=0) / len(frames)

    losses, kl = micro_batches.run(measure)
    names = ("loss", "squared_error", "kl")
    return {**dict(zip(names, losses.tolist(), strict=True)), "active_latents": int((kl > _ACTIVE_NATS).sum())}


@torch.no_grad()
def _save_image_grid(
    run: TrainingRun, model: ConvVAE, store: EpisodeStore, held_out: npt.NDArray[np.int64], epoch: int, step: int
) -> None:
    """Save an epoch's image grid: held-out frames above V's reconstructions."""
    real = store.read(held_out[np.linspace(0, len(held_out) - 1, min(_GRID, len(held_out))).astype(int)])
    mu, _ = model.encode(to_input(real, next(model.parameters()).device))
    path = run.path("vae", "sheets", f"epoch_{epoch:04d}.png")
    image_grid.save(path, [real, decode(model, mu.cpu().numpy())])
    run.log_image("train-vae", "reconstructions", path, step)
