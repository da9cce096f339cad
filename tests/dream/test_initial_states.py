"""Where dreams start: first frames, and frames midway with M's memory of what came before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import make_mdnrnn, toy_config, write_world
from worldmodels.data.latents import Latents
from worldmodels.dream import initial_states as starts
from worldmodels.dream.world_model import load_burned_in_states
from worldmodels.models.weights import save_tensors
from worldmodels.pipeline.evaluators import dream_evaluator
from worldmodels.pipeline.run import Run

LATENT, HIDDEN = 4, 8


def make_latents(*lengths):
    """Latents without noise, each frame its own."""
    total = sum(lengths)
    rng = np.random.default_rng(0)
    return Latents(
        rng.standard_normal((total, LATENT)).astype(np.float16),
        np.full((total, LATENT), -60, np.float16),
        rng.uniform(-1, 1, (total, 1)).astype(np.float32),
        np.ones(total, np.float32),
        np.array(lengths),
        np.ones(len(lengths), np.bool_),
    )


def test_first_frames():
    latents = make_latents(3, 5, 2)
    found = starts.first_frames(latents)
    np.testing.assert_array_equal(found["mu"], latents.mu[[0, 3, 8]].astype(np.float32))
    np.testing.assert_array_equal(found["logvar"], latents.logvar[[0, 3, 8]].astype(np.float32))


@torch.inference_mode()
def remembered(model, latents, first, frame):
    """M's memory before ``frame`` of the episode that begins at ``first``."""
    rows = slice(first, frame)
    z = torch.from_numpy(latents.mu[rows].astype(np.float32))[None]
    restart = torch.zeros(1, frame - first)
    restart[0, 0] = 1
    _, (h, c) = model(z, torch.from_numpy(latents.actions[rows])[None], restart)
    return h[0, 0].numpy(), c[0, 0].numpy()


def test_midway_m_remembers_what_came_before():
    latents, model = make_latents(60, 30, 52, 80), make_mdnrnn(LATENT, HIDDEN)
    found = starts.burned_in_states(model, latents, seed=0)
    episodes = {0: 60, 90: 52, 142: 80}  # first frames of those that are long enough, and their lengths
    frames = [frame for first, length in episodes.items() for frame in range(first + 1, first + length - 50)]
    assert len(found["mu"]) == len(frames) == 9 + 1 + 29
    for row, frame in enumerate(frames):
        first = max(start for start in episodes if start < frame)
        np.testing.assert_array_equal(found["mu"][row], latents.mu[frame].astype(np.float32))
        h, c = remembered(model, latents, first, frame)
        np.testing.assert_allclose(found["h"][row], h, atol=1e-5)
        np.testing.assert_allclose(found["c"][row], c, atol=1e-5)


def test_midway_takes_a_thousand_of_many_and_none_of_short_episodes():
    model = make_mdnrnn(LATENT, HIDDEN)
    many = starts.burned_in_states(model, make_latents(*[700] * 4), seed=1)
    assert many["h"].shape == (1000, HIDDEN)
    assert len(np.unique(many["mu"], axis=0)) == 1000
    other = starts.burned_in_states(model, make_latents(*[700] * 4), seed=2)
    assert (many["mu"] != other["mu"]).any()
    none = starts.burned_in_states(model, make_latents(51, 3), seed=1)
    assert {name: array.shape for name, array in none.items()} == {
        "mu": (0, LATENT),
        "logvar": (0, LATENT),
        "h": (0, HIDDEN),
        "c": (0, HIDDEN),
    }


def test_dreams_from_burned_in_initial_states(tmp_path):
    with Run(tmp_path, toy_config(evolve={"initial_states": "random", "max_steps": 40})) as experiment:
        write_world(experiment, LATENT, HIDDEN)
        with pytest.raises(ValueError, match=r"^evolve.initial_states: expected first, as .* got random"):
            dream_evaluator(experiment)
        found = starts.burned_in_states(make_mdnrnn(LATENT, HIDDEN), make_latents(200), seed=0)
        path = experiment.path("rnn", "midway.safetensors")
        save_tensors(path, {name: torch.from_numpy(array) for name, array in found.items()}, {})
        dream = dream_evaluator(experiment).dream
        params = np.zeros(dream.controller.size)
        seen = {tuple(np.round(dream.trace(params, episode=e, max_steps=1).z[0], 2)) for e in range(300)}
        midway = {tuple(np.round(row, 2)) for row in found["mu"]}
        assert 0.75 < len(seen & midway) / min(len(seen), 149) < 1  # 149 of the 169 rows are midway
        save_tensors(path, {"mu": torch.zeros(3, LATENT), "h": torch.zeros(2, HIDDEN)}, {})
        with pytest.raises(ValueError, match=r"expected mu and logvar, each \(K, 4\), and h and c, each \(K, 8\)"):
            load_burned_in_states(tmp_path, make_mdnrnn(LATENT, HIDDEN))
