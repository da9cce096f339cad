"""Initial states of dreams: first frames of recorded episodes, or later frames with a burned-in LSTM state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from worldmodels.data.latents import Latents
from worldmodels.models.lstm_state import LSTMState
from worldmodels.models.mdnrnn import MDNRNN

_MAX_STATES = 1000  # of either kind, the paper's number
_MAX_BURN_IN = 512  # frames
_MIN_REMAINING = 50  # frames between an initial state and its episode's end: doomed states teach nothing

InitialStates = dict[str, npt.NDArray[np.float32]]


def first_frames(latents: Latents) -> InitialStates:
    """Select the first frames of up to 1000 episodes.

    Returns:
        ``mu`` and ``logvar``, each (K, Z) float32.
    """
    rows = latents.starts[:_MAX_STATES]
    return {"mu": latents.mu[rows].astype(np.float32), "logvar": latents.logvar[rows].astype(np.float32)}


def burned_in_states(model: MDNRNN, latents: Latents, seed: int) -> InitialStates:
    """Sample frames uniformly from the interior of all episodes and compute M's LSTM state at each.

    Args:
        model: M, on the CPU.
        latents: Encoded episodes.
        seed: Seed of the frames and of the sampled latents.

    Returns:
        ``mu`` and ``logvar``, each (K, Z) float32, and the burned-in LSTM states ``h`` and ``c``, each (K, H) float32.
        K is 0 if all episodes are too short.
    """
    rng = np.random.default_rng([seed, *b"midway"])
    choices = latents.lengths - _MIN_REMAINING - 1  # candidate frames of each episode, without the first
    ends = np.cumsum(np.maximum(choices, 0))
    if ends[-1] == 0:
        empty = np.zeros((0, model.latent_size), np.float32), np.zeros((0, model.hidden_size), np.float32)
        return {"mu": empty[0], "logvar": empty[0], "h": empty[1], "c": empty[1]}
    drawn = np.sort(rng.choice(ends[-1], min(_MAX_STATES, int(ends[-1])), replace=False))
    episodes = np.searchsorted(ends, drawn, side="right")
    ages = 1 + drawn - np.concatenate([[0], ends])[episodes]
    frames = latents.starts[episodes] + ages
    lstm_state = LSTMState(model, len(frames))
    for back in range(min(_MAX_BURN_IN, int(ages.max())), 0, -1):
        env_ids = np.flatnonzero(ages >= back)
        rows = frames[env_ids] - back
        noise = rng.standard_normal((len(rows), model.latent_size), np.float32)
        z = latents.mu[rows] + np.exp(0.5 * latents.logvar[rows].astype(np.float32)) * noise
        lstm_state.step(env_ids, z.astype(np.float32), latents.actions[rows], ages[env_ids] == back)
    return {
        "mu": latents.mu[frames].astype(np.float32),
        "logvar": latents.logvar[frames].astype(np.float32),
        "h": lstm_state.h,
        "c": lstm_state.c,
    }
