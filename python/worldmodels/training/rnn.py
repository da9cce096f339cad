"""Training of M: the MDN-RNN on packed sequences of whole episodes, shuffled in every epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldmodels.analysis import image_grid, quality
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.latents import Latents, are_held_out, load_latents
from worldmodels.data.records import RNNQuality
from worldmodels.data.sequences import Chunk, PackedSequences
from worldmodels.dream import initial_states
from worldmodels.models.decoder import Decoder
from worldmodels.models.device import device, limit_threads, seed_step
from worldmodels.models.mdnrnn import MDNRNN, State
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model, load_tensors, save_model, save_tensors
from worldmodels.support.profile import phase, phase_of
from worldmodels.support.progress import Progress
from worldmodels.training.distributed import Ranks
from worldmodels.training.optim import MicroBatches, cosine
from worldmodels.training.rnn_loss import LossCounts, Losses, chunk_losses
from worldmodels.training.settings import TrainRNNConfig
from worldmodels.training.trainer import LOG_EVERY, Trainer, TrainingRun, gate

_MICRO_BATCH_STEPS, _NATIVE_MICRO_BATCH_STEPS = 5_000, 50_000  # 1 GB of activations with 512 units
_QUALITY_EPISODES = 250  # held-out episodes in the measures of quality
_QUALITY_STEPS = 5_000  # steps of them in memory at once
_GRID_EPISODES, _GRID_IMAGES, _GRID_STRIDE = 4, 12, 5  # of an image grid; the stride is in steps


def train_rnn(run: TrainingRun, config: TrainRNNConfig, seed: int) -> dict[str, Any]:
    """Train M on the latents of a run for ``config.steps`` steps, from the last checkpoint if there is one.

    Args:
        run: Run whose ``latents/`` are read and whose ``rnn/`` is written.
        config: Settings.
        seed: Seed of the run.

    Returns:
        Summary: losses, quality and, if M failed its quality check, ``failure``.

    Raises:
        ValueError: There are fewer than two episodes, or no training or no held-out step has a next latent.
    """
    latents = load_latents(run.path("latents"))
    training, held_out = split_episodes(latents, config.validation_fraction)
    sequences = _pack(latents, training, config.batch_size, config, seed)
    validation = _pack(latents, held_out, config.batch_size, config, seed)
    for name, packed in (("training", sequences), ("held-out", validation)):
        if packed.transitions == 0:
            dropped = f" without the last {config.done_lookahead} frames" if config.done_lookahead else ""
            raise ValueError(
                f"train-rnn: expected {name} episodes with two frames or more{dropped}, got one frame each"
            )
    limit_threads()
    seed_step(seed, "rnn-init", 0)
    model = build(config, latents).to(device())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=config.lr, fused=True)
    trainer = Trainer(run, "train-rnn", "rnn", model, optimizer, config)
    progress = Progress("train-rnn", config.steps, "batches", start=trainer.step, shown=run.ranks.is_main)
    vae = _load_vae(run) if run.ranks.is_main else None

    def validate_on_main() -> dict[str, float]:
        with phase("validation"):
            metrics: dict[str, float] = run.ranks.broadcast(
                validate(model, validation, config) if run.ranks.is_main else {}
            )
        return metrics

    def save_grid(epoch: int) -> None:
        trainer.grid_step = trainer.step
        if vae is not None:
            with phase("validation"):
                _save_image_grid(run, model, vae, latents, held_out, epoch, trainer.step)

    epoch, steps = _train(run, trainer, sequences, config, seed, progress, validate_on_main, save_grid)
    if not trainer.metrics:
        trainer.metrics = validate_on_main()
    summary = trainer.load_selected()
    note = ", ".join(f"{name} {summary[name]:.3f}" for name in ("z", "done_recall") if name in summary)
    progress.close(trainer.step, f"validation {note}")
    if run.ranks.is_main:
        with phase("validation"):
            measured = _quality(run, config, seed, model, vae, latents, held_out)
        measured.write(run.path("rnn", "quality.json"))
        summary["quality"] = measured.to_json()
        failure = quality.rnn_failure(measured) if config.steps > 0 else None
        summary |= gate("train-rnn", failure, steps, "steps")
        with phase("storing"):
            _save_initial_states(run, model, latents, seed)
        trainer.export(summary)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"epochs": epoch, "parameters": parameters, **summary}


def _train(
    run: TrainingRun,
    trainer: Trainer[MDNRNN],
    sequences: PackedSequences,
    config: TrainRNNConfig,
    seed: int,
    progress: Progress,
    validate_on_main: Callable[[], dict[str, float]],
    save_grid: Callable[[int], None],
) -> tuple[int, int]:
    """Train until the trainer has finished.

    Args:
        run: Run of the stage.
        trainer: Trainer of M.
        sequences: Training data.
        config: Settings.
        seed: Seed of the run.
        progress: Progress of the stage.
        validate_on_main: Function that computes the validation metrics in rank 0 and returns them in every process.
        save_grid: Function that saves the image grid of an epoch.

    Returns:
        Index of the last epoch, and number of trained time steps.
    """
    model, ranks = trainer.model, trainer.ranks
    rows = ranks.shard(sequences.batch)
    micro_batches = MicroBatches(
        "train-rnn", "sequences", _micro_batch_size(config), "--micro-batch-steps", retry=ranks.size == 1
    )
    state = _state_rows(model.initial_state(sequences.batch), rows)
    if trainer.tensors:
        where = state[0].device
        state = _state_rows((trainer.tensors["state.h"].to(where), trainer.tensors["state.c"].to(where)), rows)
    epoch, chunk_index = trainer.position.get("epoch", 0), trainer.position.get("chunk", 0)
    steps = first = trainer.position.get("steps", 0)
    chunks = phase_of("data", _prefetch(_chunks(sequences, epoch, chunk_index)))
    while not trainer.finished:
        epoch, chunk_index, chunk = next(chunks)
        if chunk_index == 0:
            state = _state_rows(model.initial_state(sequences.batch), rows)
            if trainer.epoch_has_grid:
                save_grid(epoch)
        lr = learning_rate(config, trainer.step)
        seed_step(seed, "train-rnn", trainer.step)
        losses, state = _step(model, trainer.optimizer, chunk, state, lr, config, micro_batches, ranks)
        steps += int(chunk.valid.sum())
        trainer.step += 1
        if trainer.is_due(LOG_EVERY):
            values = dict(zip(Losses._fields, ranks.all_reduce_sum(torch.stack(losses)).tolist(), strict=True))
            trainer.guard.check(values["total"], trainer.step, lr)
            trainer.log(epoch=epoch, lr=lr, **values, seconds=round(run.seconds, 2))
            speed = (steps - first) / progress.seconds
            progress.update(trainer.step, f"{speed:,.0f} steps/s, z {values['z']:.3f}, done {values['done']:.4f}")
        if trainer.is_due(config.checkpoint_every):
            metrics = validate_on_main()
            trainer.guard.check(metrics["total"], trainer.step, lr)
            h, c = _gather_state(state, rows, sequences.batch, ranks)
            position = {"epoch": epoch, "chunk": chunk_index + 1, "steps": steps}
            save_grid(epoch + 1)  # before the checkpoint: a run resumed from it does not save this image grid
            trainer.checkpoint(metrics, metrics["total"], position, **{"state.h": h, "state.c": c})
    return epoch, steps


def _pack(
    latents: Latents, episodes: npt.NDArray[np.int64], batch: int, config: TrainRNNConfig, seed: int
) -> PackedSequences:
    """Pack episodes into ``batch`` rows with the sequence length and the lookahead of the settings."""
    return PackedSequences(latents, episodes, batch, config.sequence_length, seed, done_lookahead=config.done_lookahead)


def _micro_batch_size(config: TrainRNNConfig) -> int:
    """Return the number of sequences of a micro-batch."""
    steps = config.micro_batch_steps or (_MICRO_BATCH_STEPS if device().type == "cuda" else _NATIVE_MICRO_BATCH_STEPS)
    return max(1, steps // config.sequence_length)


def untrained_rnn(run: TrainingRun, world_model: Path, seed: int) -> None:
    """Write an untrained M with the architecture and the initial states of a world model.

    Args:
        run: Run whose ``rnn/`` is written.
        world_model: Run folder or pretrained folder.
        seed: Seed of the run.
    """
    source = world_model / "rnn"
    architecture: dict[str, Any] = load_model(source / "rnn.safetensors", MDNRNN).config
    seed_step(seed, "rnn-init", 0)
    run.path("rnn").mkdir(exist_ok=True)
    save_model(run.path("rnn", "rnn.safetensors"), MDNRNN(**architecture), steps=0)
    save_tensors(run.path("rnn", "initial.safetensors"), *load_tensors(source / "initial.safetensors"))


def split_episodes(latents: Latents, fraction: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hold out episodes at equal distances, together with their mirror images.

    The same fraction of every round's episodes is held out (:func:`worldmodels.data.latents.are_held_out`).

    Args:
        latents: Encoded episodes.
        fraction: Fraction of held-out episodes; at least one is held out.

    Returns:
        int64 indices of the training episodes and of the held-out episodes.

    Raises:
        ValueError: No episode is left to train on.
    """
    copies = 2 if latents.mirrored else 1
    count = len(latents.lengths) // copies
    held_out = are_held_out(count, fraction)
    if held_out.all():
        raise ValueError(f"collect.episodes: expected at least 2 to hold one out, got {count}")
    held_out = held_out.repeat(copies)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def build(config: TrainRNNConfig, latents: Latents) -> MDNRNN:
    """Build an untrained M for the latents."""
    return MDNRNN(
        latents.mu.shape[1],
        latents.actions.shape[1],
        config.hidden_size,
        config.num_mixtures,
        restart_input=config.restart_input,
        done_head=config.done_head,
        reward_head=config.reward_head,
        done_pos_weight=config.done_pos_weight,
    )


def learning_rate(config: TrainRNNConfig, step: int) -> float:
    """Compute the learning rate of a step."""
    if config.schedule == "cosine":
        return cosine(step, config.steps, config.lr_end, config.lr)
    return (config.lr - config.lr_end) * float(config.lr_decay**step) + config.lr_end


def _chunks(sequences: PackedSequences, epoch: int, chunk: int) -> Iterator[tuple[int, int, Chunk]]:
    """Yield (epoch, index, chunk) without end, starting at a position."""
    while True:
        for index, value in enumerate(sequences.epoch(epoch)):
            if index >= chunk:
                yield epoch, index, value
        epoch, chunk = epoch + 1, 0


def _prefetch(chunks: Iterator[tuple[int, int, Chunk]]) -> Iterator[tuple[int, int, Chunk]]:
    """Yield the same chunks, each gathered by a background thread one step ahead."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, chunks)
        while True:
            chunk = following.result()
            following = reader.submit(next, chunks)
            yield chunk


def _step(
    model: MDNRNN,
    optimizer: torch.optim.Optimizer,
    chunk: Chunk,
    state: State,
    lr: float,
    config: TrainRNNConfig,
    micro_batches: MicroBatches,
    ranks: Ranks,
) -> tuple[Losses, State]:
    """Take one step of Adam; return this process's contribution to the losses and its detached LSTM state."""
    optimizer.param_groups[0]["lr"] = lr
    # sampled for the whole batch, so that it does not depend on the micro-batches and the number of processes
    noise = torch.randn(chunk.mu.shape, device=state[0].device)[ranks.shard(len(chunk.mu))]
    losses, state = micro_batches.run(lambda rows: accumulate_gradient(model, chunk, noise, state, config, rows, ranks))
    with phase("optimizer"):
        torch.nn.utils.clip_grad_value_(model.parameters(), config.grad_clip)
        optimizer.step()
    return losses, state


def accumulate_gradient(
    model: MDNRNN,
    chunk: Chunk,
    noise: Tensor,
    state: State,
    config: TrainRNNConfig,
    micro_batch_size: int,
    ranks: Ranks,
) -> tuple[Losses, State]:
    """Compute the gradient of the whole batch's loss in the parameters, one micro-batch at a time.

    Args:
        model: M.
        chunk: Chunk of all processes.
        noise: (B, T + 1, Z) noise of the sampled latents, for this process's B rows.
        state: LSTM state of this process's rows before the chunk.
        config: Settings of the loss.
        micro_batch_size: Sequences of a micro-batch.
        ranks: Processes of the launch.

    Returns:
        This process's contribution to the batch's losses, and the detached LSTM state of its rows after the chunk.
    """
    model.zero_grad()
    shard = chunk.rows(ranks.shard(len(chunk.mu)))
    batch = len(shard.mu)
    counts = LossCounts.of(chunk)
    sums = torch.zeros(len(Losses._fields), device=noise.device)
    states = []
    native = noise.device.type == "cpu"  # computes the gradient in the forward pass
    for start in range(0, batch, micro_batch_size):
        rows = slice(start, min(start + micro_batch_size, batch))
        part, before = shard.rows(rows), _state_rows(state, rows)
        with phase("forward and backward" if native else "forward"):
            losses, after, _ = chunk_losses(model, part, before, config, noise[rows], counts)
        with phase("backward"):
            losses.total.backward()  # type: ignore[no-untyped-call]
        sums += torch.stack(losses).detach()
        states.append((after[0].detach(), after[1].detach()))
    ranks.sum_gradients(model)
    hidden, cell = (torch.cat(parts, dim=1) for parts in zip(*states, strict=True))
    return Losses(*sums), (hidden, cell)


def _state_rows(state: State, rows: slice) -> State:
    """Select rows of an LSTM state."""
    return state[0][:, rows], state[1][:, rows]


def _gather_state(state: State, rows: slice, batch: int, ranks: Ranks) -> State:
    """Gather the LSTM state of all processes' rows, (1, batch, H) each."""
    parts = []
    for part in state:
        whole = part.new_zeros(1, batch, part.shape[2])
        whole[:, rows] = part
        parts.append(ranks.all_reduce_sum(whole))
    return parts[0], parts[1]


@torch.no_grad()
def validate(model: MDNRNN, sequences: PackedSequences, config: TrainRNNConfig) -> dict[str, float]:
    """Compute the losses on held-out episodes.

    Args:
        model: M.
        sequences: Held-out episodes.
        config: Settings of the loss.

    Returns:
        ``total``, ``z``, ``done``, ``reward`` and, for the decision termination logit > 0, ``done_recall`` (if an
        episode terminates) and ``done_false_alarms`` (per step).
    """
    rows = min(_micro_batch_size(config), sequences.batch)
    micro_batches = MicroBatches("train-rnn", "sequences", rows, "--micro-batch-steps")
    return micro_batches.run(lambda rows: _validate(model, sequences, config, rows))


def _validate(
    model: MDNRNN, sequences: PackedSequences, config: TrainRNNConfig, micro_batch_size: int
) -> dict[str, float]:
    seed_step(0, "validate-rnn", 0)
    state = model.initial_state(sequences.batch)
    sums, counts = dict.fromkeys(("z", "done", "reward"), 0.0), dict.fromkeys(("z", "done", "reward"), 0.0)
    hits = terminations = alarms = steps = 0
    for chunk in sequences.epoch(0):
        noise = torch.randn(chunk.mu.shape, device=state[0].device)
        states = []
        for start in range(0, sequences.batch, micro_batch_size):
            rows = slice(start, start + micro_batch_size)
            part = chunk.rows(rows)
            losses, after, logit = chunk_losses(model, part, _state_rows(state, rows), config, noise[rows])
            states.append(after)
            for name, mask in (("z", part.has_next), ("done", part.termination_known), ("reward", part.valid)):
                sums[name] += float(getattr(losses, name)) * float(mask.sum())
                counts[name] += float(mask.sum())
            if logit is not None:
                predicted, actual, known = logit.cpu().numpy() > 0, part.done > 0, part.termination_known > 0
                hits += int((predicted & actual).sum())
                terminations += int(actual.sum())
                alarms += int((predicted & ~actual & known).sum())
                steps += int((~actual & known).sum())
        state = (torch.cat([h for h, _ in states], dim=1), torch.cat([c for _, c in states], dim=1))
    metrics = {name: value / max(counts[name], 1) for name, value in sums.items()}
    metrics = {"total": sum(metrics.values()), **metrics}
    if model.done_head:
        metrics |= {"done_recall": hits / terminations} if terminations else {}
        metrics |= {"done_false_alarms": alarms / max(steps, 1)}
    return metrics


def _quality(
    run: TrainingRun,
    config: TrainRNNConfig,
    seed: int,
    model: MDNRNN,
    vae: ConvVAE | None,
    latents: Latents,
    held_out: npt.NDArray[np.int64],
) -> RNNQuality:
    """Measure the quality of M on held-out episodes; in pixels too if the run has V and the frames."""
    if latents.mirrored:
        latents, held_out = latents.recorded(), held_out[::2] // 2
    store = EpisodeStore(run.path("episodes")) if any(run.path("episodes").glob("*.h5")) else None
    if store is not None and not np.array_equal(store.lengths, latents.lengths):
        print(f"train-rnn: {store.folder} does not match the latents: rollouts are compared in z only", file=sys.stderr)
        store.close()
        store = None
    episodes = held_out[np.linspace(0, len(held_out) - 1, min(_QUALITY_EPISODES, len(held_out))).astype(int)]
    batch = min(config.batch_size, max(1, _QUALITY_STEPS // config.sequence_length))
    found = quality.predictions(model, _pack(latents, episodes, batch, config, seed))
    found = replace(found, rollouts=quality.rollouts(model, latents, held_out, vae=vae, store=store))
    if store is not None:
        store.close()
    return found


def _load_vae(run: TrainingRun) -> ConvVAE | None:
    path = run.path("vae", "vae.safetensors")
    return load_model(path, ConvVAE).to(device()) if path.is_file() else None


def _save_image_grid(
    run: TrainingRun,
    model: MDNRNN,
    vae: ConvVAE,
    latents: Latents,
    held_out: npt.NDArray[np.int64],
    epoch: int,
    step: int,
) -> None:
    """Save an epoch's image grid: reconstructions of episodes above M's rollouts with the same start and actions."""
    starts = quality.choose_starts(latents, held_out, _GRID_EPISODES)
    offsets = _GRID_STRIDE * np.arange(_GRID_IMAGES)
    predicted = quality.run_free(model, latents, starts, int(offsets[-1]) + 1, sample=True)
    rows, decoder = [], Decoder(vae)
    for index in range(len(starts.last)):
        first = starts.last[index] + 1
        shown = offsets[first + offsets <= starts.end[index]]
        rows.append(decoder(latents.mu[first + shown].astype(np.float32)))
        rows.append(decoder(predicted[index, offsets]))
    path = run.path("rnn", "sheets", f"epoch_{epoch:04d}.png")
    image_grid.save(path, rows)
    run.log_image("train-rnn", "rollouts", path, step)


def _save_initial_states(run: TrainingRun, model: MDNRNN, latents: Latents, seed: int) -> None:
    """Save the initial states of dreams: first frames, and burned-in states of later frames."""
    found = {
        "initial": initial_states.first_frames(latents),
        "midway": initial_states.burned_in_states(model, latents, seed),
    }
    for name, arrays in found.items():
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        save_tensors(run.path("rnn", f"{name}.safetensors"), tensors, {"frames": len(arrays["mu"])})
