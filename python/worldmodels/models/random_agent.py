"""The authors' way to collect in CarRacing: an agent whose V, M and C are noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.config import Config
from worldmodels.models.agent import Agent
from worldmodels.models.controller import Controller, Squash
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE

_LARGEST = 0.01  # scale of the Cauchy distribution


class RandomAgent:
    """V, M and C with weights of a Cauchy distribution, whose scale is uniform in [0, 0.01] and drawn anew by `draw`.

    Such weights have no bound, so numbers may overflow on the way; an action that is none then becomes zero.

    Args:
        config: the sizes of V, M and C are those of its ``train_vae``, ``train_rnn`` and ``evolve``.
        action_size: length of an action.
        squash: how C's outputs become actions.

    Source: Ha & Schmidhuber (2018), the released code's carracing/extract.py.
    """

    def __init__(self, config: Config, action_size: int, squash: Squash) -> None:
        latent_size, rnn, c = config.train_vae.latent_size, config.train_rnn, config.evolve
        self._vae = ConvVAE(latent_size)
        self._mdnrnn = MDNRNN(latent_size, action_size, rnn.hidden_size, 1, restart_input=rnn.restart_input)
        self._controller = Controller(
            latent_size,
            rnn.hidden_size,
            action_size,
            features=c.features,  # type: ignore[arg-type]
            bias=c.bias,
            hidden_units=c.hidden_units,
            squash=squash,
        )

    def draw(self, rng: np.random.Generator) -> None:
        """Draws the weights of an episode."""
        scale = rng.uniform(0, _LARGEST)
        for part in (self._vae.encoder, self._vae.mu, self._vae.logvar, self._mdnrnn.lstm):  # what acting needs
            for weight in part.parameters():
                drawn = scale * rng.standard_cauchy(tuple(weight.shape))
                weight.data.copy_(torch.from_numpy(np.clip(drawn, -1e6, 1e6).astype(np.float32)))
        params = np.clip(scale * rng.standard_cauchy(self._controller.size), -1e6, 1e6)
        self._agent = Agent(self._vae, self._mdnrnn, self._controller, params)
        self._agent.reset(1, seed=int(rng.integers(2**31)))

    def act(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The action (A,) float32 on the next frame (64, 64, 3) uint8 of the episode."""
        with np.errstate(over="ignore", invalid="ignore"):
            action = self._agent.act(frame[None])[0]
        return np.where(np.isfinite(action), action, np.float32(0))
