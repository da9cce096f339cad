"""The dream in NumPy: slow, obvious, float64 arithmetic on the very draws the native core makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import LOGSTD_RANGE, MDNRNN

Floats = NDArray[np.float64]


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 in Python integers (Salmon et al. 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@dataclass
class Draws:
    """The random numbers of one episode: counter (block, step, episode, candidate), step 0 for the start."""

    seed: int
    candidate: int
    episode: int

    def words(self, block: int, step: int) -> list[int]:
        return philox4x32((block, step, self.episode, self.candidate), (self.seed & 0xFFFFFFFF, self.seed >> 32))

    def start_row(self, rows: int) -> int:
        return self.words(0xFFFFFFFF, 0)[0] * rows >> 32

    def end(self, step: int) -> float:
        """Uniform number that decides a sampled termination at a step."""
        return (self.words(0xFFFFFFFF, step)[0] + 0.5) / 2**32

    def step(self, step: int, latent: int) -> tuple[Floats, Floats]:
        """Normals and uniforms of one step, (Z,) each: block j serves dimensions 2j and 2j + 1."""
        normals, uniforms = [], []
        for block in range((latent + 1) // 2):
            w = [word >> 8 for word in self.words(block, step)]
            radius = np.sqrt(-2 * np.log((w[0] + 1) / 2**24))
            angle = 2 * np.pi * w[1] / 2**24
            normals += [radius * np.cos(angle), radius * np.sin(angle)]
            uniforms += [w[2] / 2**24, w[3] / 2**24]
        return np.array(normals[:latent]), np.array(uniforms[:latent])


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


@dataclass
class Episode:
    z: list[Floats] = field(default_factory=list)  # T + 1 of (Z,)
    action: list[Floats] = field(default_factory=list)
    done_logit: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)


class ReferenceDream:
    """One episode at a time, one number after the other."""

    def __init__(
        self,
        mdnrnn: MDNRNN,
        initial_mu: NDArray[np.float32],
        initial_logvar: NDArray[np.float32],
        controller: Controller,
        temperature: float,
        *,
        bfloat16: bool = False,
        initial_h: NDArray[np.float32] | None = None,
        initial_c: NDArray[np.float32] | None = None,
        termination: Literal["threshold", "sample"] = "threshold",
    ) -> None:
        def array(tensor: torch.Tensor) -> Floats:
            return tensor.detach().numpy().astype(np.float64)

        def rounded(x: Floats) -> Floats:
            return torch.from_numpy(x).bfloat16().double().numpy() if bfloat16 else x

        self.m = mdnrnn
        self.mu, self.logvar = initial_mu.astype(np.float64), initial_logvar.astype(np.float64)
        nothing = np.zeros((len(initial_mu), mdnrnn.hidden_size))
        self.h = nothing if initial_h is None else initial_h.astype(np.float64)
        self.c = nothing if initial_c is None else initial_c.astype(np.float64)
        self.controller = controller
        self.temperature = temperature
        self.termination = termination
        self.rounded = rounded
        self.w_input = rounded(array(mdnrnn.lstm.weight_ih_l0))
        self.w_recurrent = rounded(array(mdnrnn.lstm.weight_hh_l0))
        self.bias = array(mdnrnn.lstm.bias_ih_l0) + array(mdnrnn.lstm.bias_hh_l0)
        self.w_head, self.b_head = rounded(array(mdnrnn.head.weight)), array(mdnrnn.head.bias)

    def act(self, params: Floats, z: Floats, c: Floats, h: Floats) -> Floats:
        parts = self.controller.weights(params.astype(np.float32).astype(np.float64))
        out = np.concatenate(
            [
                z,
                *([c] if "c" in self.controller.features else []),
                *([h] if "h" in self.controller.features else []),
            ]
        )
        stride = 1 + self.controller.bias
        for i in range(0, len(parts), stride):
            out = parts[i] @ out + (parts[i + 1] if self.controller.bias else 0)
            if not (self.controller.squash == "argmax" and i + stride == len(parts)):
                out = np.tanh(out)
        if self.controller.squash == "argmax":
            ends = np.cumsum(self.controller.choices)
            values = np.split(out, ends[:-1])
            return np.concatenate([np.eye(len(part))[int(np.argmax(part))] for part in values])
        if self.controller.squash == "carracing":
            out = np.array([out[0], (out[1] + 1) / 2, max(out[2], 0)])
        return out

    def predict(self, z: Floats, action: Floats, restart: float, h: Floats, c: Floats) -> tuple[Floats, Floats, Floats]:
        """One LSTM step and the head's output: (h, c, out)."""
        x = self.rounded(np.concatenate([z, action, [restart] if self.m.restart_input else []]))
        i, f, g, o = np.split(self.w_input @ x + self.w_recurrent @ self.rounded(h) + self.bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return h, c, self.w_head @ self.rounded(h) + self.b_head

    def sample(self, out: Floats, normal: Floats, uniform: Floats) -> Floats:
        mixture = out[self.m.done_head + self.m.reward_head :].reshape(self.m.latent_size, 3, self.m.mixtures)
        z = np.empty(self.m.latent_size)
        for d, (logits, mean, logstd) in enumerate(mixture):
            if self.temperature == 0:
                k = int(np.argmax(logits))
            else:
                weights = np.exp((logits - logits.max()) / self.temperature)
                k = int(np.sum(uniform[d] * weights.sum() >= np.cumsum(weights)[:-1]))
            std = np.exp(np.clip(logstd[k], *LOGSTD_RANGE))
            z[d] = mean[k] + std * np.sqrt(self.temperature) * normal[d]
        return z

    def terminates(self, logit: float, uniform: float) -> bool:
        if self.termination == "threshold":
            return logit > 0
        odds = np.exp(logit) / self.m.done_pos_weight
        return bool(uniform < odds / (1 + odds))

    def play(self, params: Floats, seed: int, candidate: int, episode: int, max_steps: int) -> Episode:
        draws = Draws(seed, candidate, episode)
        row = draws.start_row(len(self.mu))
        normal, _ = draws.step(0, self.m.latent_size)
        z = self.mu[row] + np.exp(self.logvar[row] / 2) * normal
        h, c = self.h[row], self.c[row]
        begins = not (h.any() or c.any())
        out = Episode(z=[z])
        for step in range(1, max_steps + 1):
            action = self.act(params, z, c, h)
            h, c, head = self.predict(z, action, float(step == 1 and begins), h, c)
            z = self.sample(head, *draws.step(step, self.m.latent_size))
            out.z.append(z)
            out.action.append(action)
            out.reward.append(float(head[int(self.m.done_head)]) if self.m.reward_head else 1.0)
            if self.m.done_head:
                out.done_logit.append(float(head[0]))
                if self.terminates(head[0], draws.end(step)):
                    break
        return out
