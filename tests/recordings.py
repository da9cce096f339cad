"""Recordings made for tests."""

import numpy as np

from worldmodels.analysis.recording import Recording


def recording_of(pictures, panels=1, **about):
    steps = len(pictures)
    actions = np.linspace(-1, 1, steps, dtype=np.float32)[:, None]
    named = {f"panel {number}": pictures for number in range(panels)}
    defaults = {
        "names": ("left / right",),
        "threshold": 1 / 3,
        "termination": np.linspace(0, 1, steps, dtype=np.float32),
    }
    return Recording(named, actions, **{**defaults, **about})


def moving(steps, size=64):
    """A square that goes right on a plain background."""
    pictures = np.full((steps, size, size, 3), 60, np.uint8)
    for step in range(steps):
        pictures[step, 20:30, step % 50 : step % 50 + 10] = (250, 200, 40)
    return pictures
