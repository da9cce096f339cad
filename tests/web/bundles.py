"""Small world models and their files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from conftest import make_mdnrnn, make_vae
from worldmodels.dream.world_model import WorldModel
from worldmodels.models.controller import Controller
from worldmodels.models.vae import ConvVAE
from worldmodels.web.bundle import BundledAgent, bundle


def small_world(
    latent_size: int = 4, hidden_size: int = 8, *, rows: int = 7, seed: int = 1, **options: Any
) -> WorldModel:
    """A random M of weights that float16 holds, and its initial states."""
    mdnrnn = make_mdnrnn(latent_size, hidden_size, seed=seed, **options)
    with torch.no_grad():
        for parameter in mdnrnn.parameters():
            parameter.copy_(parameter.half().float())
    generator = np.random.default_rng(seed)
    mu, logvar = (generator.standard_normal((rows, latent_size)).astype(np.float16) for _ in range(2))
    return WorldModel(mdnrnn, mu.astype(np.float32), logvar.astype(np.float32))


def small_agent(world: WorldModel, *, seed: int = 3, scale: float = 0.3, **shape: Any) -> BundledAgent:
    """A random controller."""
    of = world.mdnrnn
    controller = Controller(of.latent_size, of.hidden_size, of.action_size, **shape)
    params = scale * np.random.default_rng(seed).standard_normal(controller.size)
    return BundledAgent(controller, params.astype(np.float32), 1.0)


def small_bundle(world: WorldModel, vae: ConvVAE | None = None, **changed: Any) -> bytes:
    """The file of a world model with one agent, "one"."""
    settings = {"task": "toy", "termination": "threshold", "temperature": 1.0, "max_steps": 100}
    agents = {"one": small_agent(world)}
    vae = vae or make_vae(world.mdnrnn.latent_size)
    return bundle(vae, world, **{"agents": agents, **settings, **changed})
