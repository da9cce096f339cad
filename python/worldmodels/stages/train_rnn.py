"""Train M: the MDN-RNN on streams of whole episodes of latents that are sampled anew in every batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodels import pretrained
from worldmodels.config import TrainRNNConfig
from worldmodels.data.latents import Latents, load_latents
from worldmodels.data.streams import Chunk, Streams
from worldmodels.data.weights import (
    load_model,
    load_tensors,
    restore_training,
    save_model,
    save_tensors,
    training_state,
)
from worldmodels.experiment import Experiment
from worldmodels.models.mdnrnn import MDNRNN, State, done_loss, mdn_loss
from worldmodels.models.training import LossGuard, autocast, cosine, device, seed_step
from worldmodels.models.vae import sample_latent
from worldmodels.progress import Progress

_LOG_EVERY = 25
_INITIAL = 1000  # first frames kept for the dream to start from, as many as the paper's


class Losses(NamedTuple):
    """Scalars (): the total, z's negative log likelihood per dimension, the done loss and the reward loss."""

    total: Tensor
    z: Tensor
    done: Tensor
    reward: Tensor


def run(experiment: Experiment) -> dict[str, Any]:
    """Trains for ``steps`` batches, from the last checkpoint if there is one."""
    config, seed = experiment.config.train_rnn, experiment.config.seed
    latents = load_latents(experiment.path("latents"))
    held_out = max(1, round(config.validation * len(latents.lengths)))
    if held_out >= len(latents.lengths):
        raise ValueError(f"collect.episodes: expected at least 2 to hold one out, got {len(latents.lengths)}")
    numbers = np.arange(len(latents.lengths))
    streams = Streams(latents, numbers[:-held_out], config.batch, config.sequence, seed)
    rows = max(1, config.micro_steps // config.sequence)
    validation = Streams(latents, numbers[-held_out:], min(rows, config.batch), config.sequence, seed)
    where = device()
    seed_step(seed, "rnn-init", 0)
    model = build(config, latents).to(where)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=config.lr, fused=True)

    checkpoint = experiment.path("rnn", "checkpoint.safetensors")
    first, epoch, chunk_index, state = 0, 0, 0, model.initial_state(streams.batch)
    if checkpoint.is_file():
        tensors, about = load_tensors(checkpoint)
        state = (tensors.pop("state.h").to(where), tensors.pop("state.c").to(where))
        restore_training(model, optimizer, tensors)
        first, epoch, chunk_index = about["step"], about["epoch"], about["chunk"]
    elif config.start:
        start = load_model(pretrained.resolve(config.start) / "rnn" / "rnn.safetensors", MDNRNN)
        model.load_state_dict(start.state_dict())
    experiment.rewind_metrics("train-rnn", first)

    guard = LossGuard("train-rnn")
    progress = Progress("train-rnn", config.steps, "batches", start=first)
    figures: dict[str, float] = {}
    frames = 0
    step = first
    chunks = _from(streams, epoch, chunk_index)
    while step < config.steps:
        epoch, chunk_index, chunk = next(chunks)
        if chunk_index == 0:
            state = model.initial_state(streams.batch)
        lr = learning_rate(config, step)
        seed_step(seed, "train-rnn", step)
        losses, state = _step(model, optimizer, chunk, state, lr, config)
        frames += chunk.restart.size
        step += 1
        last = step == config.steps
        if step % _LOG_EVERY == 0 or last:
            guard.check(losses.total.item(), step, lr)
            values = {name: value.item() for name, value in losses._asdict().items()}
            rate = frames / progress.seconds
            experiment.log("train-rnn", step=step, epoch=epoch, lr=lr, **values, seconds=round(progress.seconds, 2))
            progress.update(step, f"{rate:,.0f} steps/s, z {values['z']:.3f}, done {values['done']:.4f}")
        if step % config.checkpoint_every == 0 or last:
            figures = validate(model, validation, config)
            guard.check(figures["total"], step, lr)
            experiment.log("train-rnn", step=step, **{f"validation_{k}": v for k, v in figures.items()})
            tensors = {**training_state(model, optimizer), "state.h": state[0], "state.c": state[1]}
            save_tensors(checkpoint, tensors, {"step": step, "epoch": epoch, "chunk": chunk_index + 1, **figures})
    if not figures:
        figures = validate(model, validation, config)
    note = ", ".join(f"{name} {figures[name]:.3f}" for name in ("z", "done_recall") if name in figures)
    progress.close(config.steps, f"validation {note}")
    _save_initial(experiment, latents)
    save_model(experiment.path("rnn", "rnn.safetensors"), model, steps=config.steps, validation=figures)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"epochs": round(epoch, 2), "parameters": parameters, **figures}


def build(config: TrainRNNConfig, latents: Latents) -> MDNRNN:
    """An untrained M that fits the latents."""
    return MDNRNN(
        latents.mu.shape[1],
        latents.actions.shape[1],
        config.hidden_size,
        config.mixtures,
        restart_input=config.restart_input,
        done_head=config.done_head,
        reward_head=config.reward_head,
    )


def learning_rate(config: TrainRNNConfig, step: int) -> float:
    """The schedule's rate at a step."""
    if config.schedule == "cosine":
        return cosine(step, config.steps, config.lr_end, config.lr)
    return (config.lr - config.lr_end) * float(config.lr_decay**step) + config.lr_end


def _from(streams: Streams, epoch: int, chunk: int) -> Iterator[tuple[int, int, Chunk]]:
    """Chunks without end, with their epoch and their number in it."""
    while True:
        for index, value in enumerate(streams.epoch(epoch)):
            if index >= chunk:
                yield epoch, index, value
        epoch, chunk = epoch + 1, 0


def chunk_losses(
    model: MDNRNN, chunk: Chunk, state: State, config: TrainRNNConfig
) -> tuple[Losses, State, Tensor | None]:
    """Samples the chunk's latents and computes the losses; also returns the state after it and the done logits."""
    where = state[0].device
    parts = {field.name: torch.from_numpy(getattr(chunk, field.name)).to(where) for field in fields(chunk)}
    z = sample_latent(parts["mu"], parts["logvar"])
    with autocast(where, config.precision):
        out, state = model(z[:, :-1], parts["action"], parts["restart"], state)
    state = (state[0].float(), state[1].float())
    z_loss = mdn_loss(out, z[:, 1:], parts["has_next"])
    zero = z_loss.new_zeros(())
    ends = zero
    if out.done_logit is not None:
        ends = done_loss(out.done_logit, parts["done"], config.done_weight, parts["knows_end"])
    reward = zero if out.reward is None else F.mse_loss(out.reward, parts["reward"])
    return Losses(z_loss + ends + reward, z_loss, ends, reward), state, out.done_logit


def _step(
    model: MDNRNN, optimizer: torch.optim.Optimizer, chunk: Chunk, state: State, lr: float, config: TrainRNNConfig
) -> tuple[Losses, State]:
    """One step of Adam; the returned state is detached."""
    optimizer.param_groups[0]["lr"] = lr
    optimizer.zero_grad()
    batch, steps = chunk.restart.shape
    rows = max(1, config.micro_steps // steps)
    sums = [torch.zeros((), device=state[0].device) for _ in Losses._fields]
    states = []
    for start in range(0, batch, rows):
        group = slice(start, min(start + rows, batch))
        part = Chunk(*(getattr(chunk, field.name)[group] for field in fields(chunk)))
        losses, after, _ = chunk_losses(model, part, (state[0][:, group], state[1][:, group]), config)
        # Each mean weighs as much as its group has of what it is a mean over: the sum is the whole batch's.
        z = losses.z * float(part.has_next.sum() / max(chunk.has_next.sum(), 1))
        done = losses.done * float(part.knows_end.sum() / max(chunk.knows_end.sum(), 1))
        reward = losses.reward * (len(part.restart) / batch)
        total = z + done + reward
        total.backward()
        sums = [so_far + value.detach() for so_far, value in zip(sums, (total, z, done, reward), strict=True)]
        states.append((after[0].detach(), after[1].detach()))
    torch.nn.utils.clip_grad_value_(model.parameters(), config.clip)
    optimizer.step()
    hidden, cell = (torch.cat(parts, dim=1) for parts in zip(*states, strict=True))
    return Losses(*sums), (hidden, cell)


@torch.no_grad()
def validate(model: MDNRNN, streams: Streams, config: TrainRNNConfig) -> dict[str, float]:
    """Losses on held-out episodes, and how the done decision (logit > 0) fares: recall, and false alarms a step."""
    seed_step(0, "validate-rnn", 0)
    state = model.initial_state(streams.batch)
    sums: dict[str, float] = {}
    chunks = hits = deaths = alarms = steps = 0
    for chunk in streams.epoch(0):
        losses, state, logit = chunk_losses(model, chunk, state, config)
        for name, value in losses._asdict().items():
            sums[name] = sums.get(name, 0.0) + float(value)
        chunks += 1
        if logit is not None:
            said, truth = logit.cpu().numpy() > 0, chunk.done > 0
            hits += int((said & truth).sum())
            deaths += int(truth.sum())
            alarms += int((said & ~truth).sum())
            steps += int((~truth).sum())
    figures = {name: value / chunks for name, value in sums.items()}
    if model.done_head:
        figures |= {"done_recall": hits / max(deaths, 1), "done_false_alarms": alarms / max(steps, 1)}
    return figures


def _save_initial(experiment: Experiment, latents: Latents) -> None:
    """Keeps mu and logvar of first frames for the dream to start from."""
    starts: npt.NDArray[np.int64] = latents.starts[:_INITIAL]
    tensors = {
        "mu": torch.from_numpy(latents.mu[starts].astype(np.float32)),
        "logvar": torch.from_numpy(latents.logvar[starts].astype(np.float32)),
    }
    save_tensors(experiment.path("rnn", "initial.safetensors"), tensors, {"frames": len(starts)})
