"""M: the MDN-RNN, an LSTM with a mixture density head that predicts the next latent, termination and reward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodels.models.controller import check_flag, check_size
from worldmodels.models.sharing import Shared
from worldmodels.models.weights import check_weights, load_model, save_model
from worldmodels.support.validation import check_positive

#: Range of the head's log standard deviations, clamped in training and in dreams.
LOGSTD_RANGE = (-8.0, 8.0)

_UNRECORDED_POS_WEIGHT = 10.0
_MANY = 256  # steps from which reordering the head's rows pays off

State = tuple[Tensor, Tensor]


class MDNOutput(NamedTuple):
    """Prediction of the next step.

    Attributes:
        logmix: (B, T, Z, K) log weights of the mixture, normalized over K.
        mean: (B, T, Z, K) means.
        logstd: (B, T, Z, K) log standard deviations, inside ``LOGSTD_RANGE``.
        done_logit: (B, T) logit of termination at this step, or None.
        reward: (B, T) predicted reward of this step, or None.
    """

    logmix: Tensor
    mean: Tensor
    logstd: Tensor
    done_logit: Tensor | None
    reward: Tensor | None


class MDNRNN(Shared, nn.Module):
    """LSTM with a mixture density head: p(z_next, done, reward | z, action, past).

    The mixture is per latent dimension, without correlations. The number of trainable parameters is that of the
    paper's table, with one bias per gate. The forget gate's bias of 1 (TensorFlow's BasicLSTM) is the frozen
    ``lstm.bias_hh_l0``. The rows of the head are the termination logit and the reward, if present, then per latent
    dimension K logits, K means and K log standard deviations.

    Args:
        latent_size: Length Z of z.
        action_size: Length A of the action.
        hidden_size: LSTM size H (256 for CarRacing, 512 for Doom).
        mixtures: Number K of Gaussians per latent dimension.
        restart_input: Whether the restart flag is an input of the LSTM (Doom).
        done_head: Whether the head predicts termination (Doom).
        reward_head: Whether the head predicts the reward.
        done_pos_weight: Positive-class weight w of the termination loss M is trained with. A calibrated M then
            predicts w p / (w p + 1 - p) where termination has probability p; sampled termination inverts this.

    Raises:
        TypeError: ``done_pos_weight`` is not a number.
        ValueError: A size is not a positive integer, or ``done_pos_weight`` is not a positive finite number.

    Source: Ha & Schmidhuber (2018), section 2.3, appendix A.2; the original code's rnn.py.
    """

    _FILES = ("rnn/rnn.safetensors",)

    def __init__(
        self,
        latent_size: int,
        action_size: int,
        hidden_size: int,
        mixtures: int = 5,
        *,
        restart_input: bool = False,
        done_head: bool = False,
        reward_head: bool = False,
        done_pos_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.latent_size = check_size("latent_size", latent_size)
        self.action_size = check_size("action_size", action_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.mixtures = check_size("mixtures", mixtures)
        self.restart_input = check_flag("restart_input", restart_input)
        self.done_head = check_flag("done_head", done_head)
        self.reward_head = check_flag("reward_head", reward_head)
        self.done_pos_weight = check_positive("done_pos_weight", done_pos_weight)
        inputs = self.latent_size + self.action_size + self.restart_input
        outputs = self.done_head + self.reward_head + self.latent_size * self.mixtures * 3
        self.lstm = nn.LSTM(inputs, self.hidden_size, batch_first=True)
        self.head = nn.Linear(self.hidden_size, outputs)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        with torch.no_grad():
            for name, weight in self.lstm.named_parameters():
                if name.startswith("weight"):
                    nn.init.xavier_uniform_(weight)
                else:
                    weight.zero_()
        forget = torch.zeros(4, self.hidden_size)
        forget[1] = 1.0  # torch orders the gates i, f, g, o
        self.lstm.bias_hh_l0 = nn.Parameter(forget.flatten(), requires_grad=False)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def config(self) -> dict[str, int | bool | float]:
        """Constructor arguments, saved next to the weights."""
        return {
            "latent_size": self.latent_size,
            "action_size": self.action_size,
            "hidden_size": self.hidden_size,
            "mixtures": self.mixtures,
            "restart_input": self.restart_input,
            "done_head": self.done_head,
            "reward_head": self.reward_head,
            "done_pos_weight": self.done_pos_weight,
        }

    @staticmethod
    def read_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Read the constructor arguments from the metadata of a weights file.

        Files of format versions without ``done_pos_weight`` in the config have it as ``done_weight``, or were trained
        with the default of 10.
        """
        config = dict(metadata["config"])
        config.setdefault("done_pos_weight", metadata.get("done_weight", _UNRECORDED_POS_WEIGHT))
        return config

    def _check_savable(self) -> None:
        check_weights(self)

    def _save(self, folder: Path) -> None:
        save_model(folder / self._FILES[0], self)

    @classmethod
    def _load(cls, folder: Path) -> Self:
        return load_model(folder / cls._FILES[0], cls)

    def initial_state(self, batch: int) -> State:
        """Return the state at an episode's start: zeros (h, c), each (1, batch, H)."""
        zero = self.head.weight.new_zeros(1, batch, self.hidden_size)
        return zero, zero.clone()

    def forward(
        self, z: Tensor, action: Tensor, restart: Tensor | None = None, state: State | None = None
    ) -> tuple[MDNOutput, State]:
        """Predict the next step after each of T steps.

        Args:
            z: (B, T, Z) latents.
            action: (B, T, A) actions taken at them.
            restart: (B, T), 1 at the first frame of an episode, where the state is zeroed; None for no restarts.
            state: (h, c), each (1, B, H), of the previous call; None for zeros.

        Returns:
            (out, state): :class:`MDNOutput`, and the state (h, c) after the last step.

        Raises:
            ValueError: A shape does not match.
        """
        self._check(z, action, restart, state)
        hidden, state = self._unroll(z, action, restart, state)
        return self._read_head(hidden), state

    def _check(self, z: Tensor, action: Tensor, restart: Tensor | None, state: State | None) -> None:
        if z.ndim != 3 or z.shape[2] != self.latent_size or z.shape[1] == 0:
            raise ValueError(f"z: expected (B, T, {self.latent_size}) with T > 0, got {tuple(z.shape)}")
        batch, steps = z.shape[:2]
        if action.shape != (batch, steps, self.action_size):
            raise ValueError(f"action: expected ({batch}, {steps}, {self.action_size}), got {tuple(action.shape)}")
        if restart is not None and restart.shape != (batch, steps):
            raise ValueError(f"restart: expected ({batch}, {steps}), got {tuple(restart.shape)}")
        if state is not None:
            for name, part in zip("hc", state, strict=True):
                if part.shape != (1, batch, self.hidden_size):
                    raise ValueError(
                        f"state {name}: expected (1, {batch}, {self.hidden_size}), got {tuple(part.shape)}"
                    )

    def _unroll(self, z: Tensor, action: Tensor, restart: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Run the LSTM, one fused call per segment without restarts. Returns (B, T, H) and the state."""
        batch, steps = z.shape[:2]
        flags = z.new_zeros(batch, steps) if restart is None else restart.to(z.dtype)
        inputs = torch.cat([z, action, flags.unsqueeze(-1)] if self.restart_input else [z, action], dim=-1)
        if state is None:
            state = self.initial_state(batch)
        cuts = [0]
        if restart is not None:
            cuts += (flags[:, 1:].any(dim=0).nonzero().flatten() + 1).tolist()
        outputs = []
        for start, stop in zip(cuts, [*cuts[1:], steps], strict=True):
            keep = (1 - flags[:, start]).unsqueeze(-1)  # (B, 1)
            state = (state[0] * keep, state[1] * keep)
            output, state = self.lstm(inputs[:, start:stop], state)
            outputs.append(output)
        return (torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]), state

    def _read_head(self, hidden: Tensor) -> MDNOutput:
        """Evaluate the head on (B, T, H); everything after its product is float32."""
        before = self.done_head + self.reward_head
        sizes = (self.latent_size, 3, self.mixtures)
        weight: Tensor = self.head.weight
        bias: Tensor = self.head.bias
        many = hidden.shape[0] * hidden.shape[1] >= _MANY
        if many:  # Z innermost: sums over the mixture then run over whole vectors
            weight, bias = (
                torch.cat([part[:before], part[before:].reshape(*sizes, -1).movedim(0, 2).reshape(-1, *part.shape[1:])])
                for part in (weight, bias)
            )
        out = F.linear(hidden, weight, bias).float()
        done_logit = out[..., 0] if self.done_head else None
        reward = out[..., int(self.done_head)] if self.reward_head else None
        mixture = out[..., before:]
        mixture = mixture.reshape(*out.shape[:2], *((*sizes[1:], sizes[0]) if many else sizes))
        logits, mean, logstd = mixture.unbind(dim=-3 if many else -2)  # (B, T, K, Z) or (B, T, Z, K)
        logmix, logstd = logits.log_softmax(dim=-2 if many else -1), logstd.clamp(*LOGSTD_RANGE)
        if many:
            logmix, mean, logstd = (part.transpose(-1, -2) for part in (logmix, mean, logstd))
        return MDNOutput(logmix, mean, logstd, done_logit, reward)


def mdn_nll(out: MDNOutput, z_next: Tensor) -> Tensor:
    """Compute the negative log-likelihood of the next latents, (B, T, Z) nats.

    ``-logsumexp_k(logmix_k + log N(z_next; mean_k, exp(logstd_k)))``
    """
    scaled = (z_next.unsqueeze(-1) - out.mean) * torch.exp(-out.logstd)
    log_prob = out.logmix - 0.5 * scaled.square() - out.logstd - 0.5 * math.log(2 * math.pi)
    return -torch.logsumexp(log_prob, dim=-1)


def mdn_loss(out: MDNOutput, z_next: Tensor, valid: Tensor | None = None) -> Tensor:
    """Average :func:`mdn_nll` over dimensions, steps and batch.

    Args:
        out: Prediction of M.
        z_next: (B, T, Z) next latents.
        valid: (B, T), 1 where there is a next frame; None for everywhere.

    Returns:
        () nats per latent dimension.
    """
    loss = mdn_nll(out, z_next)  # (B, T, Z)
    if valid is None:
        return loss.mean()
    weight = valid.unsqueeze(-1).to(loss.dtype)
    return (loss * weight).sum() / (weight.sum().clamp(min=1) * loss.shape[-1])


def done_loss(done_logit: Tensor, done: Tensor, weight: float = 10.0, valid: Tensor | None = None) -> Tensor:
    """Compute the sigmoid cross-entropy of the termination logit with a positive-class weight.

    Args:
        done_logit: (B, T) logits.
        done: (B, T), 1 at steps that terminate an episode.
        weight: Weight of those steps (10 in the original code).
        valid: (B, T), 0 where termination is unknown (truncated episodes); None for everywhere.

    Returns:
        () mean over steps and batch.
    """
    done = done.to(done_logit.dtype)
    loss = F.binary_cross_entropy_with_logits(done_logit, done, reduction="none") * (1 + (weight - 1) * done)
    if valid is None:
        return loss.mean()
    mask = valid.to(loss.dtype)
    return (loss * mask).sum() / mask.sum().clamp(min=1)
