"""Random-weight agent: the original code's policy for collecting episodes in CarRacing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldmodels.models.agent import Agent
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE

_MAX_SCALE = 0.01  # of the Cauchy distribution
_BOUNDS = 1e6, 20.0  # of weights and mu, and of logvar: unbounded weights overflow to NaN actions


class _BoundedVAE(ConvVAE):
    """V with clamped latents, finite for any weights."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = (part.nan_to_num() for part in super().encode(x))
        return mu.clamp(-_BOUNDS[0], _BOUNDS[0]), logvar.clamp(-_BOUNDS[1], _BOUNDS[1])


class RandomAgent:
    """V, M and C with Cauchy-distributed weights; :meth:`draw` samples a scale in [0, 0.01] and new weights.

    Weights and latents are clipped, so that actions saturate instead of becoming NaN.

    Args:
        controller: Architecture of C, which determines the sizes of V and M.
        restart_input: Whether the restart flag is an input of M.

    Source: Ha & Schmidhuber (2018), the original code's carracing/extract.py.
    """

    def __init__(self, controller: Controller, *, restart_input: bool = True) -> None:
        latent_size, action_size, hidden_size = controller.latent_size, controller.action_size, controller.hidden_size
        self._vae = _BoundedVAE(latent_size)
        self._mdnrnn = MDNRNN(latent_size, action_size, hidden_size, 1, restart_input=restart_input)
        self._controller = controller

    def draw(self, rng: np.random.Generator) -> None:
        """Sample the weights of an episode."""
        scale = rng.uniform(0, _MAX_SCALE)
        for part in (self._vae.encoder, self._vae.mu, self._vae.logvar, self._mdnrnn.lstm):  # the parts used for acting
            for weight in part.parameters():
                weight.data.copy_(torch.from_numpy(_cauchy(rng, scale, tuple(weight.shape))))
        params = _cauchy(rng, scale, (self._controller.size,))
        self._agent = Agent(self._vae, self._mdnrnn, self._controller, params)
        self._agent.reset(1, seed=int(rng.integers(2**31)))

    def act(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Compute the action (A,) float32 for the next frame (64, 64, 3) uint8 of the episode."""
        action: npt.NDArray[np.float32] = self._agent.act(frame[None])[0]
        return action


def _cauchy(rng: np.random.Generator, scale: float, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    weights: npt.NDArray[np.float64] = np.clip(scale * rng.standard_cauchy(shape), -_BOUNDS[0], _BOUNDS[0])
    return weights.astype(np.float32)
