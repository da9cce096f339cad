"""Losses of M on a chunk of sequences: by the native training step on the CPU, by PyTorch on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from worldmodels import _core
from worldmodels.data.sequences import Chunk
from worldmodels.models.device import autocast, on_device, uses_bfloat16
from worldmodels.models.mdnrnn import MDNRNN, State, done_loss, mdn_loss
from worldmodels.models.vae import sample_latent
from worldmodels.support.simd import precisions
from worldmodels.training.settings import TrainRNNConfig


class Losses(NamedTuple):
    """Loss terms, each a scalar ().

    Attributes:
        total: Sum of the terms.
        z: Negative log likelihood of the next latent, in nats per dimension.
        done: Termination loss.
        reward: Squared error of the reward.
    """

    total: Tensor
    z: Tensor
    done: Tensor
    reward: Tensor


class LossCounts(NamedTuple):
    """Number of steps that each loss term averages over, at least 1.

    Attributes:
        z: Steps with a next latent.
        done: Steps whose termination is known.
        reward: Steps outside the padding.
    """

    z: float
    done: float
    reward: float

    @classmethod
    def of(cls, chunk: Chunk) -> LossCounts:
        """Count the steps of a chunk."""
        return cls(*(max(float(mask.sum()), 1.0) for mask in (chunk.has_next, chunk.termination_known, chunk.valid)))


def chunk_losses(
    model: MDNRNN,
    chunk: Chunk,
    state: State,
    config: TrainRNNConfig,
    noise: Tensor | None = None,
    counts: LossCounts | None = None,
) -> tuple[Losses, State, Tensor | None]:
    """Sample the latents of a chunk and compute the losses.

    Args:
        model: M.
        chunk: Chunk of B rows and T steps.
        state: LSTM state before the chunk.
        config: Settings of the loss.
        noise: (B, T + 1, Z) noise of the sampled latents; None to draw it.
        counts: Steps to average over; None for those of the chunk. The losses of micro-batches with the counts of the
            whole batch sum to the losses of the whole batch.

    Returns:
        Losses, of which ``total`` can be differentiated; LSTM state after the chunk, (1, B, H) each; and (B, T) done
        logits if M has a termination head.

    Raises:
        ValueError: A shape does not match, or the precision is bfloat16 and the CPU does not support it.
        MemoryError: The activations of the chunk do not fit in memory.
    """
    losses = native_losses if state[0].device.type == "cpu" else torch_losses
    return losses(model, chunk, state, config, noise, counts or LossCounts.of(chunk))


def torch_losses(
    model: MDNRNN, chunk: Chunk, state: State, config: TrainRNNConfig, noise: Tensor | None, counts: LossCounts
) -> tuple[Losses, State, Tensor | None]:
    """Compute :func:`chunk_losses` by PyTorch, on any device."""
    where = state[0].device
    mu, logvar, action, restart, target_reward, done, has_next, termination_known, valid = (
        on_device(part, where) for part in vars(chunk).values()
    )
    z = sample_latent(mu, logvar, noise)
    with autocast(where, precision(config, where)):
        out, state = model(z[:, :-1], action, restart, state)
    state = (state[0].float(), state[1].float())
    own = LossCounts.of(chunk)
    z_loss = mdn_loss(out, z[:, 1:], has_next) * (own.z / counts.z)
    zero = z_loss.new_zeros(())
    termination_loss = reward_loss = zero
    if out.done_logit is not None:
        termination_loss = done_loss(out.done_logit, done, config.done_pos_weight, termination_known) * (
            own.done / counts.done
        )
    if out.reward is not None:
        reward_loss = ((out.reward - _clipped(target_reward, config)).square() * valid).sum() / counts.reward
    losses = Losses(z_loss + termination_loss + reward_loss, z_loss, termination_loss, reward_loss)
    return losses, state, out.done_logit


def native_losses(
    model: MDNRNN, chunk: Chunk, state: State, config: TrainRNNConfig, noise: Tensor | None, counts: LossCounts
) -> tuple[Losses, State, Tensor | None]:
    """Compute :func:`chunk_losses` by the native training step, which computes the gradient at once.

    The result does not depend on the number of threads. Nothing but the parameters of M gets a gradient.
    """
    cpu = torch.device("cpu")
    # an explicit bfloat16 is checked here, so that the error names the setting
    bfloat16 = uses_bfloat16(cpu, config.precision) and (config.precision != "auto" or "bfloat16" in precisions())
    chunk = Chunk(*(np.ascontiguousarray(part) for part in vars(chunk).values()))
    z = sample_latent(torch.from_numpy(chunk.mu), torch.from_numpy(chunk.logvar), noise)
    reward = _clipped(torch.from_numpy(chunk.reward), config)
    scales = [1 / (counts.z * model.latent_size), 1 / counts.done, 1 / counts.reward]
    inputs = {
        "z": z.numpy(),
        "action": chunk.action,
        "restart": chunk.restart,
        "has_next": chunk.has_next,
        "done": chunk.done if model.done_head else None,
        "termination_known": chunk.termination_known if model.done_head else None,
        "reward": reward.numpy() if model.reward_head else None,
        "valid": chunk.valid if model.reward_head else None,
        "h": state[0][0].detach().contiguous().numpy(),
        "c": state[1][0].detach().contiguous().numpy(),
        "scales": scales,
        "done_pos_weight": config.done_pos_weight,
        "precision": "bfloat16" if bfloat16 else "float32",
        "num_threads": torch.get_num_threads(),
    }
    lstm, head = model.lstm, model.head
    parameters = (lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, head.weight, head.bias)
    inputs["gradient"] = torch.is_grad_enabled() and any(part.requires_grad for part in parameters)
    results: dict[str, Any] = {}
    total: Tensor = _NativeTotal.apply(_training(model), inputs, results, lstm.bias_hh_l0, *parameters)  # type: ignore[no-untyped-call]
    terms = (torch.tensor(results[name] * scale) for name, scale in zip(Losses._fields[1:], scales, strict=True))
    logit = None if results["done_logit"] is None else torch.from_numpy(results["done_logit"])
    after = (torch.from_numpy(results["h"])[None], torch.from_numpy(results["c"])[None])
    return Losses(total, *terms), after, logit


class _NativeTotal(torch.autograd.Function):
    """Total loss of the native training step; its gradient is computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, training: _core.RNNTraining, inputs: dict[str, Any], results: dict[str, Any], *parameters: Tensor
    ) -> Tensor:
        forget, w_ih, w_hh, bias, head, head_bias = (p.detach() for p in parameters)
        weights = [p.numpy() for p in (w_ih, w_hh, bias + forget, head, head_bias)]
        results |= training.run(weights=weights, **inputs)
        ctx.gradients = results.pop("gradients")
        return torch.tensor(
            sum(results[name] * scale for name, scale in zip(("z", "done", "reward"), inputs["scales"], strict=True))
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *(torch.from_numpy(part).mul_(gradients[0]) for part in ctx.gradients)


# The buffers of the native training step, as long as the model exists.
_trainings: WeakKeyDictionary[MDNRNN, _core.RNNTraining] = WeakKeyDictionary()


def _training(model: MDNRNN) -> _core.RNNTraining:
    if model not in _trainings:
        _trainings[model] = _core.RNNTraining(
            model.latent_size,
            model.action_size,
            model.hidden_size,
            model.mixtures,
            model.restart_input,
            model.done_head,
            model.reward_head,
        )
    return _trainings[model]


def _clipped(reward: Tensor, config: TrainRNNConfig) -> Tensor:
    return reward.clamp(-config.reward_clip, config.reward_clip) if config.reward_clip else reward


def precision(config: TrainRNNConfig, where: torch.device) -> str:
    """Resolve the precision of M's training: ``"auto"`` is float32 on a GPU, where TF32 is faster than bfloat16.

    On an H200: 53 versus 45 batches of 64 x 64 steps a second, and 11 versus 8 of 100 x 500 steps.
    """
    return "float32" if config.precision == "auto" and where.type == "cuda" else config.precision
