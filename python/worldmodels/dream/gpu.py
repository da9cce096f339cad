"""The dream in PyTorch for a GPU: thousands of episodes in one batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldmodels.dream.native import (
    DreamResult,
    check_common_random_numbers,
    check_fits,
    check_max_steps,
    check_temperature,
)
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import LOGSTD_RANGE, MDNRNN
from worldmodels.models.native_model import Termination, check_initial_states, check_termination
from worldmodels.models.weights import check_weights
from worldmodels.support.forks import Lock, check_threads_usable
from worldmodels.support.validation import check_integer, check_seed, float_array

_MIN_SURVIVAL = 0.01  # survival probability below which a rollout stops; the same in the native core
_UNROLLED = 20  # steps of a CUDA graph
_CHECKED = 100  # steps between two checks for running episodes
_KEPT = 2  # shapes of rollouts whose buffers are kept


class TorchDream:
    """Rollouts in M's dream, in PyTorch; the same semantics as :class:`worldmodels.dream.native.Dream`.

    All episodes of a call step together until the last one ends, replayed from a CUDA graph. Random numbers are
    PyTorch's: they differ from the native dream's and repeat on the same kind of device. Products of M's weights are in
    TF32 if the GPU supports it; those of C are in float32. Concurrent calls are serialized. The buffers of the last two
    shapes (P, E) are kept.

    Args:
        mdnrnn: M; its weights are copied.
        initial_mu: (K, Z) means of the initial latents.
        initial_logvar: (K, Z) log variances of the initial latents.
        controller: Architecture of C.
        device: CUDA device or CPU of the rollouts, or its name.
        temperature: Temperature of the sampling; 0 selects the mean of the most likely component.
        max_steps: Maximum length of an episode, in steps.
        initial_h: (K, H) hidden states of M at the initial latents; None for zeros.
        initial_c: (K, H) cell states of M at the initial latents.
        termination: ``"threshold"``, ``"sample"`` or ``"expected"``, see :class:`worldmodels.dream.native.Dream`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape or number is invalid, a value is not finite, or there is no such device.
    """

    def __init__(
        self,
        mdnrnn: MDNRNN,
        initial_mu: npt.ArrayLike,
        initial_logvar: npt.ArrayLike,
        controller: Controller,
        *,
        device: torch.device | str,
        temperature: float = 1.0,
        max_steps: int = 2100,
        initial_h: npt.ArrayLike | None = None,
        initial_c: npt.ArrayLike | None = None,
        termination: Termination = "threshold",
    ) -> None:
        states = check_initial_states(mdnrnn, initial_mu, initial_logvar, initial_h, initial_c)
        check_weights(mdnrnn)
        check_fits(controller, mdnrnn)
        check_termination(termination, mdnrnn)
        self._device = device = _checked_device(device)
        self._lock = Lock()
        self._batches: dict[tuple[int, int, bool], _Batch] = {}
        self._controller, self._termination = controller, termination
        self.max_steps = max_steps
        self.temperature = temperature
        self._done_pos_weight = mdnrnn.done_pos_weight
        self._latent, self._hidden, self._action = mdnrnn.latent_size, mdnrnn.hidden_size, mdnrnn.action_size
        self._mixtures, self._restart = mdnrnn.mixtures, mdnrnn.restart_input
        self._done, self._reward = mdnrnn.done_head, mdnrnn.reward_head
        weights = {name: tensor.detach().float().to(device) for name, tensor in mdnrnn.state_dict().items()}
        z, rest = weights["lstm.weight_ih_l0"].split([self._latent, self._action + self._restart], dim=1)
        self._gates = torch.cat([z, weights["lstm.weight_hh_l0"], rest], dim=1).t().contiguous()  # z, h, action, flag
        self._gates_bias = weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]
        # the head's rows: the mixture's, as (logits, means, log stds) x component x dimension, then done and reward
        before = int(self._done) + int(self._reward)
        sizes = (self._latent, 3, self._mixtures)
        head, bias = (
            torch.cat([part[before:].reshape(*sizes, -1).movedim(0, 2).reshape(-1, *part.shape[1:]), part[:before]])
            for part in (weights["head.weight"], weights["head.bias"])
        )
        self._head, self._head_bias = head.t().contiguous(), bias.contiguous()

        mu, logvar, h, c = (None if array is None else torch.from_numpy(array).to(device) for array in states.values())
        assert mu is not None and logvar is not None
        self._start_mu, self._start_std = mu, torch.exp(logvar / 2)
        blank = torch.zeros(len(mu), self._hidden, device=device)
        self._start_h, self._start_c = (blank if part is None else part for part in (h, c))

    def __repr__(self) -> str:
        return (
            f"TorchDream(latent_size={self._latent}, hidden_size={self._hidden}, action_size={self._action}, "
            f"temperature={self.temperature!r}, max_steps={self.max_steps}, device={str(self.device)!r})"
        )

    @property
    def controller(self) -> Controller:
        """Architecture of C."""
        return self._controller

    @property
    def device(self) -> torch.device:
        """Device of the rollouts."""
        return self._device

    @property
    def termination(self) -> Termination:
        """Termination of the episodes."""
        return self._termination

    @property
    def temperature(self) -> float:
        """Temperature of the sampling; a new value applies from the next rollout."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        checked = check_temperature(temperature)
        with self._lock:
            self._temperature = checked
            self._batches.clear()  # it is a constant of the CUDA graphs

    @property
    def max_steps(self) -> int:
        """Maximum length of an episode; a new value applies from the next rollout."""
        return self._max_steps

    @max_steps.setter
    def max_steps(self, max_steps: int) -> None:
        self._max_steps = check_max_steps(max_steps)

    def __getstate__(self) -> dict[str, Any]:
        """Drop buffers and CUDA graphs, which the next rollout recreates."""
        return {**self.__dict__, "_batches": {}}

    def rollout(
        self,
        params: npt.NDArray[np.floating],
        episodes: int = 16,
        *,
        seed: int = 0,
        common_random_numbers: bool = False,
    ) -> DreamResult:
        """Roll out the episodes of every candidate.

        Args:
            params: (P, N) float32 or float64 flat parameters, one candidate per row.
            episodes: Number E of episodes per candidate.
            seed: Seed of all random numbers, from 0 to 2**64 - 1.
            common_random_numbers: Whether all candidates use the random numbers of candidate 0.

        Returns:
            :class:`DreamResult` of (P, E) float32 returns and (P, E) int32 lengths in steps.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is invalid.
        """
        params = float_array("params", params, ("P", self.controller.size))
        if not np.isfinite(params).all():
            raise ValueError("params: expected finite numbers, got one that is not")
        count = check_integer("episodes", episodes, 1, 2**31 - 1)
        shape = (len(params), count, check_common_random_numbers(common_random_numbers))
        seed = check_seed(seed)
        check_threads_usable()
        with self._lock:
            batch = self._batches.pop(shape, None)
            if batch is None:
                for oldest in list(self._batches)[: 1 - _KEPT]:
                    del self._batches[oldest]
                batch = _Batch(self, *shape)
            self._batches[shape] = batch
            return batch.play(params, seed)

    def close(self) -> None:
        """Free the device memory of all buffers; the next rollout allocates it again."""
        with self._lock:
            self._batches.clear()


class _Batch:
    """Buffers of P x E concurrent episodes.

    The inputs of C and M are one row per episode: c, z, h, action, restart flag. Every choice of [z, c, h], and the
    input of M's LSTM, is a contiguous slice of it.
    """

    def __init__(self, dream: TorchDream, candidates: int, episodes: int, common: bool) -> None:
        self._dream, self._shape = dream, (candidates, episodes)
        self._drawn = (1, episodes) if common else (candidates, episodes)
        count, where = candidates * episodes, dream.device
        width = 2 * dream._hidden + dream._latent + dream._action + dream._restart
        self._row = torch.zeros(count, width, device=where)
        sizes = [dream._hidden, dream._latent, dream._hidden, dream._action, int(dream._restart)]
        self._c, self._z, self._h, self._act, self._flag = torch.split(self._row, sizes, dim=1)
        shapes = dream.controller.layer_shapes
        self._layers = [torch.zeros(candidates, columns, rows, device=where) for rows, columns in shapes]
        self._biases = [torch.zeros(candidates, 1, rows, device=where) for rows, _ in shapes]
        self._weight = torch.zeros(count, device=where)  # weight of the next reward
        self._total, self._length = torch.zeros(count, device=where), torch.zeros(count, device=where)
        self._generator = torch.Generator(device=where)
        self._graph: Any = None

    @torch.no_grad()
    def play(self, params: npt.NDArray[np.float32], seed: int) -> DreamResult:
        dream = self._dream
        on_gpu = dream.device.type == "cuda"
        with torch.cuda.device(dream.device) if on_gpu else contextlib.nullcontext():
            self._take(params)
            if on_gpu and self._graph is None:
                self._graph = self._capture()
            self._begin(seed)
            steps = 0
            while steps < dream.max_steps and (steps % _CHECKED or bool((self._weight > 0).any())):
                if self._graph is not None and dream.max_steps - steps >= _UNROLLED:
                    self._graph.replay()
                    steps += _UNROLLED
                else:
                    self._step()
                    steps += 1
        returns, lengths = (part.reshape(self._shape).cpu().numpy() for part in (self._total, self._length))
        return DreamResult(returns.copy(), lengths.astype(np.int32))  # on a CPU they alias the buffers

    def _take(self, params: npt.NDArray[np.float32]) -> None:
        """Copy the candidates' weights, with the first layer's columns in the order of a row."""
        dream = self._dream
        parts = [torch.from_numpy(np.stack(part)) for part in zip(*map(dream.controller.weights, params), strict=True)]
        stride = 2 if dream.controller.bias else 1
        for number, layer in enumerate(self._layers):
            weight = parts[stride * number]  # (P, rows, columns)
            if number == 0 and "c" in dream.controller.features:
                remaining = weight.shape[2] - dream._latent - dream._hidden
                z, c, h = torch.split(weight, [dream._latent, dream._hidden, remaining], dim=2)
                weight = torch.cat([c, z, h], dim=2)
            layer.copy_(weight.transpose(1, 2))
            if dream.controller.bias:
                self._biases[number].copy_(parts[stride * number + 1].unsqueeze(1))

    def _capture(self) -> Any:
        """Capture a CUDA graph of several steps."""
        self._begin(0)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # warm-up: the libraries select and initialize their kernels
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph):
            for _ in range(_UNROLLED):
                self._step()
        return graph

    def _begin(self, seed: int) -> None:
        """Set all episodes to their initial states."""
        dream, drawn = self._dream, self._drawn
        self._generator.manual_seed(seed)
        rows = torch.randint(len(dream._start_mu), drawn, device=dream.device, generator=self._generator)
        noise = torch.randn(*drawn, dream._latent, device=dream.device, generator=self._generator)
        self._row.zero_()
        self._z.copy_(self._each(dream._start_mu[rows] + dream._start_std[rows] * noise))
        self._h.copy_(self._each(dream._start_h[rows]))
        self._c.copy_(self._each(dream._start_c[rows]))
        first = ((self._h == 0) & (self._c == 0)).all(dim=1, keepdim=True)
        self._flag.copy_(first.float().expand_as(self._flag))
        self._weight.fill_(1)
        self._total.zero_()
        self._length.zero_()

    def _each(self, drawn: Tensor) -> Tensor:
        """Expand random draws (P or 1, E, ...) to all episodes: (P E, ...)."""
        return drawn.expand(*self._shape, *drawn.shape[2:]).reshape(-1, *drawn.shape[2:])

    def _step(self) -> None:
        dream, hidden = self._dream, self._dream._hidden
        self._act.copy_(self._actions())
        with _tf32(dream.device, True):
            gates = torch.addmm(dream._gates_bias, self._row[:, hidden:], dream._gates)
        enter, forget, cell, leave = gates.chunk(4, dim=1)
        self._c.mul_(torch.sigmoid(forget)).add_(torch.sigmoid(enter) * torch.tanh(cell))
        self._h.copy_(torch.sigmoid(leave) * torch.tanh(self._c))
        with _tf32(dream.device, True):
            out = torch.addmm(dream._head_bias, self._h, dream._head)
        mixture = out[:, : 3 * dream._mixtures * dream._latent].reshape(len(out), 3, dream._mixtures, dream._latent)
        self._z.copy_(self._sampled(*mixture.unbind(dim=1)))
        self._flag.zero_()
        rest = out[:, mixture[0].numel() :]
        self._length += self._weight > 0
        self._total += self._weight * rest[:, -1] if dream._reward else self._weight
        if dream._done:
            self._weight *= self._survival_factor(rest[:, 0])

    def _actions(self) -> Tensor:
        """Compute the actions of C, (P E, A)."""
        controller, latent, hidden = self._dream.controller, self._dream._latent, self._dream._hidden
        begin = 0 if "c" in controller.features else hidden
        end = hidden + latent + (hidden if "h" in controller.features else 0)
        out = self._row[:, begin:end].reshape(*self._shape, -1)
        discrete = controller.squash == "argmax"
        with _tf32(self._dream.device, False):
            for layer, bias in zip(self._layers, self._biases, strict=True):
                out = torch.baddbmm(bias, out, layer)
                if not (discrete and layer is self._layers[-1]):
                    out = torch.tanh(out)
        if controller.squash == "carracing":
            out = torch.stack([out[..., 0], (out[..., 1] + 1) / 2, out[..., 2].clamp(min=0)], dim=-1)
        elif discrete:
            out = torch.cat([_one_hot(part) for part in torch.split(out, list(controller.choices), dim=-1)], dim=-1)
        return out.reshape(-1, self._dream._action)

    def _sampled(self, logits: Tensor, mean: Tensor, logstd: Tensor) -> Tensor:
        """Sample the next latents (B, Z) from (B, K, Z), with one component per dimension."""
        dream = self._dream
        if dream.temperature == 0:
            return mean.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)
        shape = (*self._drawn, dream._latent)
        uniform = self._each(torch.rand(shape, device=dream.device, generator=self._generator))
        noise = self._each(torch.randn(shape, device=dream.device, generator=self._generator))
        below = torch.softmax(logits / dream.temperature, dim=1).cumsum(dim=1)[:, :-1]
        chosen = (uniform.unsqueeze(1) > below).sum(dim=1, keepdim=True)
        mean, logstd = mean.gather(1, chosen).squeeze(1), logstd.gather(1, chosen).squeeze(1)
        return mean + torch.exp(logstd.clamp(*LOGSTD_RANGE)) * noise * math.sqrt(dream.temperature)

    def _survival_factor(self, logit: Tensor) -> Tensor:
        """Compute the factor of the reward weights, (B,): survival probability, or 1 or 0 if termination is sampled."""
        dream = self._dream
        if dream.termination == "threshold":
            return (logit <= 0).float()
        survival = torch.sigmoid(math.log(dream._done_pos_weight) - logit)
        if dream.termination == "expected":
            return survival * (self._weight * survival >= _MIN_SURVIVAL)
        return (self._each(torch.rand(self._drawn, device=dream.device, generator=self._generator)) < survival).float()


def _one_hot(values: Tensor) -> Tensor:
    """Convert (..., n) to the one-hot vectors of the largest, the first of equal ones."""
    return torch.zeros_like(values).scatter_(-1, values.argmax(dim=-1, keepdim=True), 1.0)


def _checked_device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected a device of PyTorch or its name, got {device!r:.100}") from None
    if found.type != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found.type != "cuda" or (found.index or 0) >= count:
            raise ValueError(f"device: expected cpu or one of {count} CUDA devices, got {str(found)!r}")
    return found


_precision_lock = Lock()  # the precision of products is PyTorch's, for all threads


@contextlib.contextmanager
def _tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Enable or disable TF32 products on a CUDA device in a block."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    with _precision_lock:
        before = matmul.fp32_precision
        matmul.fp32_precision = "tf32" if allowed else "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before
