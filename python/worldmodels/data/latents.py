"""The latents: mu and logvar of every frame, one safetensors file per shard of episodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from worldmodels.data.atomic import atomic_path

_PER_FRAME = ("mu", "logvar", "actions", "rewards")
_PER_EPISODE = ("lengths", "terminated")
_KEYS = _PER_FRAME + _PER_EPISODE
_ROWS = 1 << 16  # frames read at once


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
        for key, part in _read_episodes(path).items():
            episodes[key].append(part)
        for begin in range(0, stop - start, _ROWS):  # opened anew for each part: what is mapped counts as memory
            with _opened(path) as file:
                for key in _PER_FRAME:
                    part = file.get_slice(key)[begin : min(begin + _ROWS, stop - start)]
                    if key not in whole:
                        whole[key] = np.empty((starts[-1], *part.shape[1:]), part.dtype)
                    whole[key][start + begin : start + begin + len(part)] = part
    return Latents(**whole, **{key: np.concatenate(parts) for key, parts in episodes.items()})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: expected latents, got {error}") from error


def _frames(path: Path) -> int:
    """Frames in a file, from its header alone."""
    with _opened(path) as file:
        return int(file.get_slice("mu").get_shape()[0])


def _read_episodes(path: Path) -> dict[str, Any]:
    """What a file says of its episodes, checked against the rest of it."""
    with _opened(path) as file:
        names = set(file.keys())
        part = {key: file.get_tensor(key) for key in _PER_EPISODE if key in names}
        frames = {key: file.get_slice(key).get_shape()[0] for key in _PER_FRAME if key in names}
    if names != set(_KEYS) or any(size != part["lengths"].sum() for size in frames.values()):
        raise ValueError(f"{path}: expected {', '.join(_KEYS)} that fit each other, got {sorted(names)}")
    return part
