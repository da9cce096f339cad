"""Where dreams start: the first frames of recorded episodes, or midway with M's memory of what came before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from worldmodels.data.latents import Latents
from worldmodels.models.lstm_state import Memory
from worldmodels.models.mdnrnn import MDNRNN

_MOST = 1000  # starts of either kind, as many as the paper's
_HISTORY = 512  # most frames that M has seen at a start
_BEFORE_THE_END = 50  # frames between a start and its episode's end: what is lost already teaches nothing

Starts = dict[str, npt.NDArray[np.float32]]


def first_frames(latents: Latents) -> Starts:
    """The first frames: mu and logvar, each (K, Z)."""
    rows = latents.starts[:_MOST]
    return {"mu": latents.mu[rows].astype(np.float32), "logvar": latents.logvar[rows].astype(np.float32)}


def midway(model: MDNRNN, latents: Latents, seed: int) -> Starts:
    """Frames drawn uniformly from all that have a past and a future.

    Args:
        model: M, on the CPU.
        latents: the encoded episodes.
        seed: of the draws and of the sampled latents.

    Returns:
        mu and logvar, each (K, Z), and the memory M comes with, h and c, each (K, H). K is 0 if no episode is long
        enough.
    """
    rng = np.random.default_rng([seed, *b"midway"])
    choices = latents.lengths - _BEFORE_THE_END - 1  # of an episode's frames, those after the first
    ends = np.cumsum(np.maximum(choices, 0))
    if ends[-1] == 0:
        empty = np.zeros((0, model.latent_size), np.float32), np.zeros((0, model.hidden_size), np.float32)
        return {"mu": empty[0], "logvar": empty[0], "h": empty[1], "c": empty[1]}
    drawn = np.sort(rng.choice(ends[-1], min(_MOST, int(ends[-1])), replace=False))
    episodes = np.searchsorted(ends, drawn, side="right")
    ages = 1 + drawn - np.concatenate([[0], ends])[episodes]
    frames = latents.starts[episodes] + ages
    memory = Memory(model, len(frames))
    for back in range(min(_HISTORY, int(ages.max())), 0, -1):
        slots = np.flatnonzero(ages >= back)
        rows = frames[slots] - back
        noise = rng.standard_normal((len(rows), model.latent_size), np.float32)
        z = latents.mu[rows] + np.exp(0.5 * latents.logvar[rows].astype(np.float32)) * noise
        memory.step(slots, z.astype(np.float32), latents.actions[rows], ages[slots] == back)
    return {
        "mu": latents.mu[frames].astype(np.float32),
        "logvar": latents.logvar[frames].astype(np.float32),
        "h": memory.h,
        "c": memory.c,
    }
