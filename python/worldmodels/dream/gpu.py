"""The dream in PyTorch, for a GPU: thousands of :class:`worldmodels.dream.native.Dream`'s episodes at once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldmodels.dream.native import DreamResult, check_fits, check_temperature
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import LOGSTD_RANGE, MDNRNN
from worldmodels.support.forks import Lock, check_threads_usable
from worldmodels.support.validation import check_integer, check_real, check_seed, float_array

_HARDLY_LIKELY = 0.01  # an episode of expected returns is left when this likely to have come so far; as in the core
_UNROLLED = 20  # steps in a CUDA graph
_CHECKED = 100  # steps after which it is asked whether any episode goes on


class TorchDream:
    """Episodes that M dreams, in PyTorch; arguments and returns as for :class:`worldmodels.dream.native.Dream`.

    All episodes of a call make their steps together until the last one has ended, replayed from a CUDA graph. The
    random numbers are PyTorch's: other ones than the native dream's, the same on every call on the same kind of device.
    Products of M's weights are in TF32 on a GPU that has it; C's are in float32. Calls from several threads take turns.

    Args:
        mdnrnn: M; its weights are copied.
        initial_mu: (K, Z), means of the latents an episode may start from.
        initial_logvar: (K, Z), their log variances.
        controller: the shape of C.
        device: where it dreams.
        temperature: of the sampling; 0 takes the likeliest component's mean.
        max_steps: the longest episode, in steps.
        initial_h: (K, H), M's hidden states at the starts; None for zeros.
        initial_c: (K, H), M's cell states at the starts.
        done_weight: None: an episode ends where M's done logit is above 0. A number: by chance, where ends weighed
            that many times in M's training.
        expected_returns: whether no end is drawn, and every reward counts as much as the episode is likely to have
            come so far.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a size or number does not fit.
    """

    def __init__(
        self,
        mdnrnn: MDNRNN,
        initial_mu: npt.ArrayLike,
        initial_logvar: npt.ArrayLike,
        controller: Controller,
        *,
        device: torch.device,
        temperature: float = 1.0,
        max_steps: int = 2100,
        initial_h: npt.ArrayLike | None = None,
        initial_c: npt.ArrayLike | None = None,
        done_weight: float | None = None,
        expected_returns: bool = False,
    ) -> None:
        if expected_returns and done_weight is None:
            raise ValueError("expected_returns: expected a done_weight with them, got none")
        check_fits(controller, mdnrnn)
        check_threads_usable()
        self.controller, self.device = controller, device
        self.max_steps = check_integer("max_steps", max_steps, 1, 2**31 - 1)
        self.temperature = check_temperature(temperature)
        if done_weight is not None and not check_real("done_weight", done_weight) > 0:
            raise ValueError(f"done_weight: expected a finite number above 0, got {done_weight}")
        self.done_weight = done_weight
        self.expected_returns = expected_returns
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

        def kept(array: npt.ArrayLike) -> Tensor:
            return torch.from_numpy(np.array(array, np.float32)).to(device)

        self._start_mu, self._start_std = kept(initial_mu), torch.exp(kept(initial_logvar) / 2)
        blank = np.zeros((len(self._start_mu), self._hidden), np.float32)
        self._start_h, self._start_c = (kept(blank if part is None else part) for part in (initial_h, initial_c))
        self._batches: dict[tuple[int, int, bool], _Batch] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        return (
            f"TorchDream(latent_size={self._latent}, hidden_size={self._hidden}, action_size={self._action}, "
            f"temperature={self.temperature!r}, max_steps={self.max_steps}, device={str(self.device)!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but buffers and CUDA graphs, which the next rollout makes again."""
        return {**self.__dict__, "_batches": {}}

    def rollout(
        self, params: npt.NDArray[np.floating], episodes: int = 16, *, seed: int = 0, common_seeds: bool = False
    ) -> DreamResult:
        """Plays every candidate's episodes.

        Args:
            params: (P, N) float32 or float64, a candidate's flat parameters per row.
            episodes: E, episodes per candidate.
            seed: of every draw, from 0 to 2**64 - 1.
            common_seeds: whether all candidates see the same draws.

        Returns:
            (P, E) float32 returns and (P, E) int32 lengths in steps.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: an argument does not fit; nothing has been played.
        """
        params = float_array("params", params, ("P", self.controller.size))
        if not np.isfinite(params).all():
            raise ValueError("params: expected finite numbers, got one that is not")
        shape = (len(params), check_integer("episodes", episodes, 1, 2**31 - 1), common_seeds)
        seed = check_seed(seed)
        check_threads_usable()
        with self._lock:
            if shape not in self._batches:
                self._batches[shape] = _Batch(self, *shape)
            return self._batches[shape].play(params, seed)

    def close(self) -> None:
        """Frees the device's memory but for M; what is played next takes it again."""
        with self._lock:
            self._batches.clear()


class _Batch:
    """P x E episodes side by side.

    What C and M see of an episode is one row: c, z, h, action, restart flag. Every choice of [z, c, h] is then a
    stretch of it, and so is what M's LSTM takes.
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
        self._weight = torch.zeros(count, device=where)  # what the next reward counts
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
        return DreamResult(returns.copy(), lengths.astype(np.int32))  # on a CPU they are the buffers themselves

    def _take(self, params: npt.NDArray[np.float32]) -> None:
        """Copies the candidates' weights, the first layer's columns in the order of a row."""
        dream = self._dream
        parts = [torch.from_numpy(np.stack(part)) for part in zip(*map(dream.controller.weights, params), strict=True)]
        stride = 2 if dream.controller.bias else 1
        for number, layer in enumerate(self._layers):
            weight = parts[stride * number]  # (P, rows, columns)
            if number == 0 and "c" in dream.controller.features:
                behind = weight.shape[2] - dream._latent - dream._hidden
                z, c, h = torch.split(weight, [dream._latent, dream._hidden, behind], dim=2)
                weight = torch.cat([c, z, h], dim=2)
            layer.copy_(weight.transpose(1, 2))
            if dream.controller.bias:
                self._biases[number].copy_(parts[stride * number + 1].unsqueeze(1))

    def _capture(self) -> Any:
        """A CUDA graph of some steps."""
        self._begin(0)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # the libraries choose and set up their kernels
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph):
            for _ in range(_UNROLLED):
                self._step()
        return graph

    def _begin(self, seed: int) -> None:
        """Puts every episode at its start."""
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
        """What was drawn, (P or 1, E, ...), for each of the episodes: (P E, ...)."""
        return drawn.expand(*self._shape, *drawn.shape[2:]).reshape(-1, *drawn.shape[2:])

    def _step(self) -> None:
        dream, hidden = self._dream, self._dream._hidden
        self._act.copy_(self._actions())
        with _tf32(True):
            gates = torch.addmm(dream._gates_bias, self._row[:, hidden:], dream._gates)
        enter, forget, cell, leave = gates.chunk(4, dim=1)
        self._c.mul_(torch.sigmoid(forget)).add_(torch.sigmoid(enter) * torch.tanh(cell))
        self._h.copy_(torch.sigmoid(leave) * torch.tanh(self._c))
        with _tf32(True):
            out = torch.addmm(dream._head_bias, self._h, dream._head)
        mixture = out[:, : 3 * dream._mixtures * dream._latent].reshape(len(out), 3, dream._mixtures, dream._latent)
        self._z.copy_(self._sampled(*mixture.unbind(dim=1)))
        self._flag.zero_()
        rest = out[:, mixture[0].numel() :]
        self._length += self._weight > 0
        self._total += self._weight * rest[:, -1] if dream._reward else self._weight
        if dream._done:
            self._weight *= self._goes_on(rest[:, 0])

    def _actions(self) -> Tensor:
        """(P E, A): what C does."""
        controller, latent, hidden = self._dream.controller, self._dream._latent, self._dream._hidden
        begin = 0 if "c" in controller.features else hidden
        end = hidden + latent + (hidden if "h" in controller.features else 0)
        out = self._row[:, begin:end].reshape(*self._shape, -1)
        with _tf32(False):
            for layer, bias in zip(self._layers, self._biases, strict=True):
                out = torch.tanh(torch.baddbmm(bias, out, layer))
        if controller.squash == "carracing":
            out = torch.stack([out[..., 0], (out[..., 1] + 1) / 2, out[..., 2].clamp(min=0)], dim=-1)
        return out.reshape(-1, self._dream._action)

    def _sampled(self, logits: Tensor, mean: Tensor, logstd: Tensor) -> Tensor:
        """The next latents (B, Z) of (B, K, Z), every dimension from its own component."""
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

    def _goes_on(self, logit: Tensor) -> Tensor:
        """(B,) how likely every episode is to go on behind this step; 1 or 0 where ends are not expected ones."""
        dream = self._dream
        if dream.done_weight is None:
            return (logit <= 0).float()
        likely = torch.sigmoid(math.log(dream.done_weight) - logit)
        if dream.expected_returns:
            return likely * (self._weight * likely >= _HARDLY_LIKELY)
        return (self._each(torch.rand(self._drawn, device=dream.device, generator=self._generator)) < likely).float()


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether products are in TF32, where the device has it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
