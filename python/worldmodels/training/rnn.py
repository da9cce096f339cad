"""Train M: the MDN-RNN on streams of whole episodes of latents that are sampled anew in every batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worldmodels.analysis import image_grid as sheets
from worldmodels.analysis import quality
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.latents import Latents, load_latents
from worldmodels.data.sequences import Chunk, PackedSequences
from worldmodels.dream import initial_states as starts
from worldmodels.models.device import autocast, device, limit_threads, on_device, seed_step
from worldmodels.models.mdnrnn import MDNRNN, State, done_loss, mdn_loss
from worldmodels.models.vae import ConvVAE, decode, sample_latent
from worldmodels.models.weights import load_model, load_tensors, save_model, save_tensors
from worldmodels.support.files import write_json
from worldmodels.support.progress import Progress
from worldmodels.training.distributed import Ranks, synchronised
from worldmodels.training.optim import LossGuard, Pieces, cosine
from worldmodels.training.settings import TrainRNNConfig
from worldmodels.training.trainer import LOG_EVERY, Loop, TrainingRun, failed

_MEASURED = 250  # held-out episodes whose every step the measures of quality look at
_MEASURED_STEPS = 5_000  # of them that are in memory at once
_SHEET = (4, 12, 5)  # of a sheet of dreams: episodes, pictures of each, steps between them


class Losses(NamedTuple):
    """Scalars (): the total, z's negative log likelihood per dimension, the done loss and the reward loss."""

    total: Tensor
    z: Tensor
    done: Tensor
    reward: Tensor


def train_rnn(run: TrainingRun, config: TrainRNNConfig, seed: int) -> dict[str, Any]:
    """Train M on the latents of a run for ``config.steps`` steps, from the last checkpoint if there is one.

    Args:
        run: Run whose ``latents/`` are read and whose ``rnn/`` is written.
        config: Settings.
        seed: Seed of the run.

    Returns:
        Summary: losses, quality and, if M failed its quality gate, ``failure``.
    """
    ranks = run.ranks
    latents = load_latents(run.path("latents"))
    training, held_out = split_episodes(latents, config.validation_fraction)
    streams = PackedSequences(
        latents, training, config.batch_size, config.sequence_length, seed, done_lookahead=config.done_lookahead
    )
    validation = PackedSequences(
        latents, held_out, config.batch_size, config.sequence_length, seed, done_lookahead=config.done_lookahead
    )
    limit_threads()
    where = device()
    seed_step(seed, "rnn-init", 0)
    model = build(config, latents).to(where)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=config.lr, fused=True)
    loop = Loop(run, "train-rnn", "rnn", model, optimizer, config)
    network = ranks.wrap(model)

    rows = ranks.share(streams.batch)
    pieces = Pieces("train-rnn", "streams", _at_once(config), "--micro-batch-steps", retry=ranks.size == 1)
    state = _part(model.initial_state(streams.batch), rows)
    if loop.tensors:
        state = _part((loop.tensors["state.h"].to(where), loop.tensors["state.c"].to(where)), rows)
    epoch, chunk_index = loop.place.get("epoch", 0), loop.place.get("chunk", 0)
    guard = LossGuard("train-rnn")
    first = loop.step
    progress = Progress("train-rnn", config.steps, "batches", start=first, shown=ranks.first)
    frames = 0.0
    chunks = _ahead(_from(streams, epoch, chunk_index))
    while not loop.over:
        epoch, chunk_index, chunk = next(chunks)
        if chunk_index == 0:
            state = _part(model.initial_state(streams.batch), rows)
            if ranks.first and loop.step > first:
                _draw(run, model, latents, held_out, epoch)
        lr = learning_rate(config, loop.step)
        seed_step(seed, "train-rnn", loop.step)
        losses, state = _step(network, optimizer, chunk, state, lr, config, pieces, ranks)
        frames += float(chunk.valid.sum())
        loop.step += 1
        if loop.due(LOG_EVERY):
            values = dict(zip(Losses._fields, ranks.total(torch.stack(losses)).tolist(), strict=True))
            guard.check(values["total"], loop.step, lr)
            loop.log(epoch=epoch, lr=lr, **values, seconds=round(progress.seconds, 2))
            speed = frames / progress.seconds
            progress.update(loop.step, f"{speed:,.0f} steps/s, z {values['z']:.3f}, done {values['done']:.4f}")
        if loop.due(config.checkpoint_every):
            figures = ranks.told(validate(model, validation, config) if ranks.first else {})
            guard.check(figures["total"], loop.step, lr)
            hidden, cell = _whole(state, rows, streams.batch, ranks)
            place = {"epoch": epoch, "chunk": chunk_index + 1}
            if ranks.first:  # before the checkpoint: a run that goes on from there does not draw it
                _draw(run, model, latents, held_out, epoch + 1)
            loop.validated(figures, figures["total"], place, **{"state.h": hidden, "state.c": cell})
    if not loop.figures:
        loop.figures = ranks.told(validate(model, validation, config) if ranks.first else {})
    summary = loop.choose()
    note = ", ".join(f"{name} {summary[name]:.3f}" for name in ("z", "done_recall") if name in summary)
    progress.close(loop.step, f"validation {note}")
    if ranks.first:
        summary["quality"] = _quality(run, config, seed, model, latents, held_out)
        write_json(run.path("rnn", "quality.json"), summary["quality"])
        failure = quality.rnn_failure(summary["quality"]) if config.steps > 0 else None
        summary |= failed("train-rnn", failure, loop.step * config.batch_size * config.sequence_length, "steps")
        _save_starts(run, model, latents, seed)
        loop.hand_on(summary)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"epochs": epoch, "parameters": parameters, **summary}


def _at_once(config: TrainRNNConfig) -> int:
    """PackedSequences whose gradient, or loss, is computed at once."""
    return max(1, config.micro_batch_steps // config.sequence_length)


def untrained_rnn(run: TrainingRun, world_model: Path, seed: int) -> None:
    """Write an M of the architecture of a world model before any training, with the initial states of that model.

    Args:
        run: Run whose ``rnn/`` is written.
        world_model: Run folder or pretrained folder.
        seed: Seed of the run.
    """
    source = world_model / "rnn"
    shape: dict[str, Any] = load_model(source / "rnn.safetensors", MDNRNN).config
    seed_step(seed, "rnn-init", 0)
    run.path("rnn").mkdir(exist_ok=True)
    save_model(run.path("rnn", "rnn.safetensors"), MDNRNN(**shape), steps=0)
    save_tensors(run.path("rnn", "initial.safetensors"), *load_tensors(source / "initial.safetensors"))


def split_episodes(latents: Latents, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the episodes to train on and, from the end, of those that are held out."""
    count = len(latents.lengths)
    held_out = max(1, round(share * count))
    if held_out >= count:
        raise ValueError(f"collect.episodes: expected at least 2 to hold one out, got {count}")
    numbers = np.arange(count)
    return numbers[:-held_out], numbers[-held_out:]


def build(config: TrainRNNConfig, latents: Latents) -> MDNRNN:
    """An untrained M that fits the latents."""
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
    """The schedule's rate at a step."""
    if config.schedule == "cosine":
        return cosine(step, config.steps, config.lr_end, config.lr)
    return (config.lr - config.lr_end) * float(config.lr_decay**step) + config.lr_end


def _from(streams: PackedSequences, epoch: int, chunk: int) -> Iterator[tuple[int, int, Chunk]]:
    """Chunks without end, with their epoch and their number in it."""
    while True:
        for index, value in enumerate(streams.epoch(epoch)):
            if index >= chunk:
                yield epoch, index, value
        epoch, chunk = epoch + 1, 0


def _ahead(chunks: Iterator[tuple[int, int, Chunk]]) -> Iterator[tuple[int, int, Chunk]]:
    """The same, the next one gathered by a thread while this one is trained on."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, chunks)
        while True:
            chunk = following.result()
            following = reader.submit(next, chunks)
            yield chunk


def precision(config: TrainRNNConfig, where: torch.device) -> str:
    """What M is trained in: on a GPU, unless told otherwise, in float32, as its TF32 is faster than bfloat16.

    53 beside 45 batches of 64 x 64 a second on an H200, 11 beside 8 of 100 x 500.
    """
    return "float32" if config.precision == "auto" and where.type == "cuda" else config.precision


def chunk_losses(
    network: nn.Module, chunk: Chunk, state: State, config: TrainRNNConfig, noise: Tensor | None = None
) -> tuple[Losses, State, Tensor | None]:
    """Samples the chunk's latents and computes the losses; also returns the state after it and the done logits."""
    where = state[0].device
    mu, logvar, action, restart, reward_seen, done, has_next, knows_end, valid = (
        on_device(part, where) for part in vars(chunk).values()
    )
    z = sample_latent(mu, logvar, noise)
    with autocast(where, precision(config, where)):
        out, state = network(z[:, :-1], action, restart, state)
    state = (state[0].float(), state[1].float())
    z_loss = mdn_loss(out, z[:, 1:], has_next)
    zero = z_loss.new_zeros(())
    ends = reward = zero
    if out.done_logit is not None:
        ends = done_loss(out.done_logit, done, config.done_pos_weight, knows_end)
    if out.reward is not None:
        if config.reward_clip:
            reward_seen = reward_seen.clamp(-config.reward_clip, config.reward_clip)
        reward = ((out.reward - reward_seen).square() * valid).sum() / valid.sum().clamp(min=1)
    return Losses(z_loss + ends + reward, z_loss, ends, reward), state, out.done_logit


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    chunk: Chunk,
    state: State,
    lr: float,
    config: TrainRNNConfig,
    pieces: Pieces,
    ranks: Ranks,
) -> tuple[Losses, State]:
    """One step of Adam on this process's streams; returns its part of the losses, and its state, detached."""
    optimizer.param_groups[0]["lr"] = lr
    # of the whole batch, so that any pieces and any number of processes take the same numbers
    noise = torch.randn(chunk.mu.shape, device=state[0].device)[ranks.share(len(chunk.mu))]
    losses, state = pieces.run(lambda rows: gradient(network, chunk, noise, state, config, rows, ranks))
    torch.nn.utils.clip_grad_value_(network.parameters(), config.grad_clip)
    optimizer.step()
    return losses, state


def gradient(
    network: nn.Module,
    chunk: Chunk,
    noise: Tensor,
    state: State,
    config: TrainRNNConfig,
    at_once: int,
    ranks: Ranks,
) -> tuple[Losses, State]:
    """Leaves the gradient of the whole batch's loss in the parameters, computed ``at_once`` streams at a time.

    Args:
        network: M, or its DistributedDataParallel.
        chunk: of all processes together.
        noise: (B, T + 1, Z) of the sampling, for this process's streams.
        state: of this process's streams.
        config: of the loss.
        at_once: streams in a piece.
        ranks: the processes.

    Returns:
        This process's part of the batch's losses, and its state after the chunk, detached.
    """
    network.zero_grad()
    mine = chunk.rows(ranks.share(len(chunk.mu)))
    batch = len(mine.mu)
    sums = torch.zeros(len(Losses._fields), device=noise.device)
    states = []
    for start in range(0, batch, at_once):
        group = slice(start, min(start + at_once, batch))
        part = mine.rows(group)
        with synchronised(network, group.stop == batch):
            losses, after, _ = chunk_losses(network, part, _part(state, group), config, noise[group])
            # Each mean weighs as much as its group has of what it is a mean over: the sum is the whole batch's.
            z = losses.z * float(part.has_next.sum() / max(chunk.has_next.sum(), 1))
            done = losses.done * float(part.knows_end.sum() / max(chunk.knows_end.sum(), 1))
            reward = losses.reward * float(part.valid.sum() / max(chunk.valid.sum(), 1))
            total = z + done + reward
            # DistributedDataParallel takes the mean over the processes, and the batch's loss is their sum
            (total * ranks.size).backward()  # type: ignore[no-untyped-call]
        sums += torch.stack([total, z, done, reward]).detach()
        states.append((after[0].detach(), after[1].detach()))
    hidden, cell = (torch.cat(parts, dim=1) for parts in zip(*states, strict=True))
    return Losses(*sums), (hidden, cell)


def _part(state: State, rows: slice) -> State:
    """The state of some streams."""
    return state[0][:, rows], state[1][:, rows]


def _whole(state: State, rows: slice, batch: int, ranks: Ranks) -> State:
    """The state of all processes' streams."""
    parts = []
    for part in state:
        whole = part.new_zeros(1, batch, part.shape[2])
        whole[:, rows] = part
        parts.append(ranks.total(whole))
    return parts[0], parts[1]


@torch.no_grad()
def validate(model: MDNRNN, streams: PackedSequences, config: TrainRNNConfig) -> dict[str, float]:
    """Losses on held-out episodes, and how the done decision (logit > 0) fares: recall, and false alarms a step."""
    pieces = Pieces("train-rnn", "streams", min(_at_once(config), streams.batch), "--micro-batch-steps")
    return pieces.run(lambda rows: _validate(model, streams, config, rows))


def _validate(model: MDNRNN, streams: PackedSequences, config: TrainRNNConfig, at_once: int) -> dict[str, float]:
    seed_step(0, "validate-rnn", 0)
    state = model.initial_state(streams.batch)
    sums, counts = dict.fromkeys(("z", "done", "reward"), 0.0), dict.fromkeys(("z", "done", "reward"), 0.0)
    hits = deaths = alarms = steps = 0
    for chunk in streams.epoch(0):
        noise = torch.randn(chunk.mu.shape, device=state[0].device)
        states = []
        for start in range(0, streams.batch, at_once):
            rows = slice(start, start + at_once)
            part = chunk.rows(rows)
            losses, after, logit = chunk_losses(model, part, _part(state, rows), config, noise[rows])
            states.append(after)
            for name, mask in (("z", part.has_next), ("done", part.knows_end), ("reward", part.valid)):
                sums[name] += float(getattr(losses, name)) * float(mask.sum())
                counts[name] += float(mask.sum())
            if logit is not None:
                said, truth, known = logit.cpu().numpy() > 0, part.done > 0, part.knows_end > 0
                hits += int((said & truth).sum())
                deaths += int(truth.sum())
                alarms += int((said & ~truth & known).sum())
                steps += int((~truth & known).sum())
        state = (torch.cat([a for a, _ in states], dim=1), torch.cat([b for _, b in states], dim=1))
    figures = {name: value / max(counts[name], 1) for name, value in sums.items()}
    figures = {"total": sum(figures.values()), **figures}
    if model.done_head:
        figures |= {"done_recall": hits / max(deaths, 1), "done_false_alarms": alarms / max(steps, 1)}
    return figures


def _quality(
    run: TrainingRun,
    config: TrainRNNConfig,
    seed: int,
    model: MDNRNN,
    latents: Latents,
    held_out: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """What :mod:`worldmodels.analysis.quality` measures of M; the pictures too, where V and the frames are there."""
    vae = _vae(run)
    store = EpisodeStore(run.path("episodes")) if any(run.path("episodes").glob("*.h5")) else None
    if store is not None and not np.array_equal(store.lengths, latents.lengths):
        print(f"train-rnn: {store.folder} is not what was encoded: rollouts are compared in z alone", file=sys.stderr)
        store.close()
        store = None
    some = held_out[np.linspace(0, len(held_out) - 1, min(_MEASURED, len(held_out))).astype(int)]
    lead = config.done_lookahead
    count = min(config.batch_size, max(1, _MEASURED_STEPS // config.sequence_length))
    streams = PackedSequences(latents, some, count, config.sequence_length, seed, done_lookahead=lead)
    figures = quality.predictions(model, streams, config.done_pos_weight)
    figures["rollouts"] = quality.rollouts(model, latents, held_out, vae=vae, store=store)
    if store is not None:
        store.close()
    return figures


def _vae(run: TrainingRun) -> ConvVAE | None:
    path = run.path("vae", "vae.safetensors")
    return load_model(path, ConvVAE).to(device()) if path.is_file() else None


def _draw(run: TrainingRun, model: MDNRNN, latents: Latents, held_out: npt.NDArray[np.int64], epoch: int) -> None:
    """The sheet of an epoch: what came, as V draws it, above what M dreams from the same start with the same actions.

    There is none where there is no V to draw.
    """
    vae = _vae(run)
    episodes, count, every = _SHEET
    starts = quality.choose_starts(latents, held_out, episodes)
    if vae is None or len(starts.last) == 0:
        return
    ahead = every * np.arange(count)
    dreamed = quality.run_free(model, latents, starts, int(ahead[-1]) + 1, sample=True)
    rows = []
    for number in range(len(starts.last)):
        shown = ahead[starts.last[number] + 1 + ahead <= starts.end[number]]
        rows.append(decode(vae, latents.mu[starts.last[number] + 1 + shown].astype(np.float32)))
        rows.append(decode(vae, dreamed[number, ahead]))
    sheets.save(run.path("rnn", "sheets", f"epoch_{epoch:04d}.png"), rows)


def _save_starts(run: TrainingRun, model: MDNRNN, latents: Latents, seed: int) -> None:
    """Keeps where dreams may start."""
    found = {
        "initial": starts.first_frames(latents),
        "midway": starts.burned_in_states(model, latents, seed),
    }
    for name, arrays in found.items():
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        save_tensors(run.path("rnn", f"{name}.safetensors"), tensors, {"frames": len(arrays["mu"])})
