"""Dreams of the TakeCover world model in NumPy, PyTorch and JAX, written as their users would write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.benchmarks.worlds import BenchmarkModel

Array = npt.NDArray[np.float32]


class Peer(Protocol):
    """Implementation that steps ``lanes`` dreams at once."""

    lanes: int

    def play(self, steps: int, temperature: float) -> Array:
        """Play ``steps`` steps and return the last latents, (lanes, Z) float32."""


def _weights(world: BenchmarkModel) -> dict[str, Array]:
    lstm, head = world.mdnrnn.lstm, world.mdnrnn.head
    bias = lstm.get_parameter("bias_ih_l0") + lstm.get_parameter("bias_hh_l0")
    tensors = {
        "x": lstm.get_parameter("weight_ih_l0"),
        "h": lstm.get_parameter("weight_hh_l0"),
        "bias": bias,
        "head": head.weight,
        "head_bias": head.bias,
    }
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


class NumPyDream:
    """One environment at a time, as in the original code."""

    lanes = 1

    def __init__(self, world: BenchmarkModel, params: Array) -> None:
        self.world, self.params, self.w = world, params[0], _weights(world)

    def play(self, steps: int, temperature: float) -> Array:
        """See :class:`Peer`."""
        w, model = self.w, self.world.mdnrnn
        rng = np.random.default_rng(1)
        z, hidden = self.world.initial_mu[0], model.hidden_size
        h = c = np.zeros(hidden, dtype=np.float32)
        restart = np.ones(1, dtype=np.float32)
        for _ in range(steps):
            action = np.tanh(self.params @ np.concatenate((z, c, h)))
            i, f, g, o = np.split(w["x"] @ np.concatenate((z, action[None], restart)) + w["h"] @ h + w["bias"], 4)
            c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            h = np.tanh(c) / (1 + np.exp(-o))
            out = w["head"] @ h + w["head_bias"]
            logits, mean, logstd = out[1:].reshape(model.latent_size, 3, model.mixtures).transpose(1, 0, 2)
            if temperature == 0:
                component = logits.argmax(1)
            else:
                mix = np.exp((logits - logits.max(1, keepdims=True)) / temperature).cumsum(1)
                component = (mix < rng.random((model.latent_size, 1)) * mix[:, -1:]).sum(1)
            each = np.arange(model.latent_size)
            noise = rng.standard_normal(model.latent_size, dtype=np.float32) * np.float32(temperature**0.5)
            z = mean[each, component] + np.exp(logstd[each, component]) * noise
            restart = np.zeros(1, dtype=np.float32)
        return np.asarray(z[None], dtype=np.float32)


class TorchDream:
    """All environments in a batch, eager or compiled; ``bfloat16`` applies to the products of M's weights."""

    def __init__(self, world: BenchmarkModel, params: Array, precision: str, *, compiled: bool) -> None:
        self.world, self.lanes = world, len(params)
        self.params = torch.from_numpy(params)
        dtype = getattr(torch, precision)
        w = {name: torch.from_numpy(value) for name, value in _weights(world).items()}
        input_weight, recurrent, head = (w[name].to(dtype).T.contiguous() for name in ("x", "h", "head"))
        sizes = (self.lanes, world.mdnrnn.latent_size, 3, world.mdnrnn.mixtures)

        def step(z: Any, h: Any, c: Any, restart: Any, temperature: float) -> tuple[Any, Any, Any]:
            action = torch.tanh((self.params * torch.cat((z, c, h), 1)).sum(1, keepdim=True))
            x = torch.cat((z, action, restart), 1).to(dtype)
            gates = (x @ input_weight).float() + (h.to(dtype) @ recurrent).float() + w["bias"]
            i, f, g, o = gates.chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            out = (h.to(dtype) @ head).float() + w["head_bias"]
            logits, mean, logstd = out[:, 1:].reshape(sizes).unbind(2)
            if temperature == 0:
                component = logits.argmax(2, keepdim=True)
            else:  # the Gumbel-max trick
                gumbel = -torch.log(-torch.log(torch.rand_like(logits).clamp_min(1e-20)))
                component = (logits / temperature + gumbel).argmax(2, keepdim=True)
            noise = torch.randn_like(z) * temperature**0.5
            z = mean.gather(2, component)[..., 0] + torch.exp(logstd.gather(2, component)[..., 0]) * noise
            return z, h, c

        self.step: Callable[..., tuple[Any, Any, Any]] = torch.compile(step) if compiled else step

    @torch.inference_mode()
    def play(self, steps: int, temperature: float) -> Array:
        """See :class:`Peer`."""
        z = torch.from_numpy(self.world.initial_mu).expand(self.lanes, -1).contiguous()
        h = c = torch.zeros(self.lanes, self.world.mdnrnn.hidden_size)
        restart = torch.ones(self.lanes, 1)
        for _ in range(steps):
            z, h, c = self.step(z, h, c, restart, temperature)
            restart = torch.zeros(self.lanes, 1)
        return np.asarray(z.numpy())


class JAXDream:
    """All environments in a batch, one compiled scan over the steps, compiled for every number of steps."""

    def __init__(self, world: BenchmarkModel, params: Array) -> None:
        import jax
        import jax.numpy as jnp

        self.world, self.lanes = world, len(params)
        w = {name: jnp.asarray(value) for name, value in _weights(world).items()}
        controllers = jnp.asarray(params)
        sizes = (self.lanes, world.mdnrnn.latent_size, 3, world.mdnrnn.mixtures)

        def play(key: Any, z: Any, steps: int, temperature: float) -> Any:
            def step(state: Any, key: Any) -> tuple[Any, None]:
                z, h, c, restart = state
                action = jnp.tanh((controllers * jnp.concatenate((z, c, h), 1)).sum(1, keepdims=True))
                x = jnp.concatenate((z, action, restart), 1)
                i, f, g, o = jnp.split(x @ w["x"].T + h @ w["h"].T + w["bias"], 4, axis=1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                out = (h @ w["head"].T + w["head_bias"])[:, 1:].reshape(sizes)
                logits, mean, logstd = out[:, :, 0], out[:, :, 1], out[:, :, 2]
                choose, shake = jax.random.split(key)
                if temperature == 0:
                    component = logits.argmax(2)[..., None]
                else:
                    component = jax.random.categorical(choose, logits / temperature)[..., None]
                noise = jax.random.normal(shake, z.shape) * temperature**0.5
                mean = jnp.take_along_axis(mean, component, 2)[..., 0]
                z = mean + jnp.exp(jnp.take_along_axis(logstd, component, 2)[..., 0]) * noise
                return (z, h, c, jnp.zeros_like(restart)), None

            zeros = jnp.zeros((self.lanes, world.mdnrnn.hidden_size))
            state = (z, zeros, zeros, jnp.ones((self.lanes, 1)))
            return jax.lax.scan(step, state, jax.random.split(key, steps))[0][0]

        self.key = jax.random.key(1)
        self.scan = jax.jit(play, static_argnums=(2, 3))

    def play(self, steps: int, temperature: float) -> Array:
        """See :class:`Peer`."""
        start = np.broadcast_to(self.world.initial_mu, (self.lanes, self.world.mdnrnn.latent_size))
        return np.asarray(self.scan(self.key, start, steps, temperature))
