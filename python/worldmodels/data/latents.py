"""The latents: mu and logvar of every frame, one safetensors file per shard of episodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from worldmodels.data.atomic import atomic_path

_PER_FRAME = ("mu", "logvar", "actions", "rewards")
_PER_EPISODE = ("lengths", "terminated")
_KEYS = _PER_FRAME + _PER_EPISODE


@dataclass(frozen=True)
class Latents:
    """Encoded episodes, concatenated.

    Attributes:
        mu: (N, Z) float16 means.
        logvar: (N, Z) float16 log variances.
        actions: (N, A) float32.
        rewards: (N,) float32.
        lengths: (E,) int64; they add up to N.
        terminated: (E,) bool: False for recordings cut off by a time limit.
    """

    mu: npt.NDArray[np.float16]
    logvar: npt.NDArray[np.float16]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(E,) index of every episode's first frame."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    def save(self, path: Path) -> None:
        """Writes a safetensors file, atomically."""
        with atomic_path(path) as temporary:
            save_file({key: np.ascontiguousarray(getattr(self, key)) for key in _KEYS}, temporary)


def load_latents(folder: Path) -> Latents:
    """Loads all files of a folder into memory (4 Z bytes a frame: 0.7 GB for the paper's 2.7 million Doom frames).

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is damaged.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder}: expected latents (*.safetensors), got none")
    starts = np.cumsum([0, *map(_frames, paths)])
    whole: dict[str, Any] = {}
    episodes: dict[str, list[Any]] = {key: [] for key in _PER_EPISODE}
    for path, start, stop in zip(paths, starts, starts[1:], strict=False):
        part = _read(path)
        for key in _PER_FRAME:
            if key not in whole:  # filled part by part: it is never twice in memory
                whole[key] = np.empty((starts[-1], *part[key].shape[1:]), part[key].dtype)
            whole[key][start:stop] = part[key]
        for key in _PER_EPISODE:
            episodes[key].append(part[key])
    return Latents(**whole, **{key: np.concatenate(parts) for key, parts in episodes.items()})


def _frames(path: Path) -> int:
    """Frames in a file, from its header alone."""
    try:
        with safe_open(path, framework="np") as file:
            return int(file.get_slice("mu").get_shape()[0])
    except SafetensorError as error:
        raise ValueError(f"{path}: expected latents, got {error}") from error


def _read(path: Path) -> dict[str, Any]:
    """One file, checked."""
    part: dict[str, Any] = load_file(path)
    if set(part) != set(_KEYS) or any(len(part[key]) != part["lengths"].sum() for key in _PER_FRAME):
        raise ValueError(f"{path}: expected {', '.join(_KEYS)} that fit each other, got {sorted(part)}")
    return part
