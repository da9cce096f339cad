"""Latents: mu and logvar of every frame, one safetensors file per episode shard."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from worldmodels.support.files import atomic_path

_PER_FRAME = ("mu", "logvar", "actions", "rewards")
_PER_EPISODE = ("lengths", "terminated")
_KEYS = _PER_FRAME + _PER_EPISODE
_CHECKSUMS = "crc32"  # the only key in the header of a file: safetensors writes several in a random order
_MIRRORED = "mirrored"  # key in its value, next to those of the arrays
_ROWS = 1 << 16  # frames per read


@dataclass(frozen=True)
class Latents:
    """Encoded episodes, concatenated.

    Attributes:
        mu: (N, Z) float16 means.
        logvar: (N, Z) float16 log variances.
        actions: (N, A) float32 actions.
        rewards: (N,) float32 rewards.
        lengths: (E,) int64 episode lengths; their sum is N.
        terminated: (E,) bool termination flags; False for truncated episodes.
        mirrored: Whether every episode of an even index is followed by its mirror image.
    """

    mu: npt.NDArray[np.float16]
    logvar: npt.NDArray[np.float16]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    mirrored: bool = False

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(E,) index of the first frame of every episode."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    def recorded(self) -> Latents:
        """Return the recorded episodes alone, without their mirror images."""
        if not self.mirrored:
            return self
        episodes = np.arange(len(self.lengths)) % 2 == 0
        frames = np.repeat(episodes, self.lengths)
        parts = {key: getattr(self, key)[frames if key in _PER_FRAME else episodes] for key in _KEYS}
        return Latents(**parts)

    def save(self, path: Path) -> None:
        """Write a safetensors file with a checksum of every array, atomically."""
        arrays = {key: np.ascontiguousarray(getattr(self, key)) for key in _KEYS}
        mirrored = {_MIRRORED: True} if self.mirrored else {}
        with atomic_path(path) as temporary:
            try:
                save_file(arrays, temporary, metadata={_CHECKSUMS: json.dumps(_checksums(arrays) | mirrored)})
            except SafetensorError as error:  # such as a full disk
                raise OSError(f"{path}: cannot be written: {error}") from error


def are_held_out(count: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Choose the episodes that are held out: at equal distances, or the last one if they are too few for the fraction.

    Episodes that are appended do not change the choice among the earlier ones, unless those were too few.

    Args:
        count: Number of episodes, at least 1.
        fraction: Fraction to hold out.

    Returns:
        (count,) bool.
    """
    so_far = np.floor(np.arange(count + 1) * fraction)
    held_out: npt.NDArray[np.bool_] = so_far[1:] > so_far[:-1]
    held_out[-1] |= not held_out.any()
    return held_out


def load_latents(folder: Path) -> Latents:
    """Load all files of a folder into memory.

    A frame takes 4 Z bytes: 0.7 GB for the paper's 2.7 million Doom frames.

    Raises:
        FileNotFoundError: The folder has no files.
        ValueError: A file is damaged, or its sizes differ from the first one's, or it alone has mirror images or none.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder}: expected latents (*.safetensors), got none")
    whole: dict[str, Any] = {}
    episodes: dict[str, list[Any]] = {key: [] for key in _PER_EPISODE}
    sizes, mirrored = _sizes(paths[0]), _has_mirror_images(paths[0])
    for path in paths:
        if _sizes(path) != sizes:
            raise ValueError(f"{path}: expected (Z, A) = {sizes} as in {paths[0].name}, got {_sizes(path)}")
        if _has_mirror_images(path) != mirrored:
            wanted, found = ("a", "none") if mirrored else ("no", "one")
            raise ValueError(
                f"{path}: expected {wanted} mirror image of every episode as in {paths[0].name}, got {found}"
            )
        for key, part in _read_episodes(path).items():
            episodes[key].append(part)
    starts = np.cumsum([0, *(int(lengths.sum()) for lengths in episodes["lengths"])])
    for number, (path, start, stop) in enumerate(zip(paths, starts, starts[1:], strict=False)):
        for begin in range(0, stop - start, _ROWS):  # reopened for each part: mapped pages count as memory
            with _opened(path) as file:
                for key in _PER_FRAME:
                    part = file.get_slice(key)[begin : min(begin + _ROWS, stop - start)]
                    if key not in whole:
                        whole[key] = np.empty((starts[-1], *part.shape[1:]), part.dtype)
                    whole[key][start + begin : start + begin + len(part)] = part
        frames = {key: whole[key][start:stop] for key in _PER_FRAME}
        _check(path, {**frames, **{key: episodes[key][number] for key in _PER_EPISODE}})
    return Latents(**whole, **{key: np.concatenate(parts) for key, parts in episodes.items()}, mirrored=mirrored)


def check_latents(path: Path) -> None:
    """Read one file and check it.

    Raises:
        ValueError: The file is damaged.
    """
    _sizes(path)
    episodes = _read_episodes(path)
    with _opened(path) as file:
        frames = {key: file.get_tensor(key) for key in _PER_FRAME}
    _check(path, {**frames, **episodes})


def _has_mirror_images(path: Path) -> bool:
    """Whether every episode of a file is followed by its mirror image."""
    return bool((_header(path) or {}).get(_MIRRORED, False))


def _header(path: Path) -> dict[str, Any] | None:
    """Read the checksums of a file; None if it has none, as older files."""
    with _opened(path) as file:
        text = (file.metadata() or {}).get(_CHECKSUMS)
    try:
        found = None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected checksums in JSON, got {error}") from error
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{path}: expected checksums of every array, got {found!r:.100}")
    return found


def _checksums(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Compute the CRC-32 of every array's bytes."""
    return {key: zlib.crc32(arrays[key].data) for key in _KEYS}


def _check(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Compare a file's arrays with the checksums in its header. Older files have none and pass."""
    expected = _header(path)
    if expected is None:
        return
    expected.pop(_MIRRORED, None)
    if expected != _checksums(arrays):
        raise ValueError(f"{path}: expected arrays with the checksums of its header, got others: the file is damaged")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: expected latents, got {error}") from error


def _sizes(path: Path) -> tuple[int, int]:
    """Read (Z, A) from a file's header and check every shape and dtype in it."""
    with _opened(path) as file:
        names = set(file.keys())
        if names != set(_KEYS):
            raise ValueError(f"{path}: expected {', '.join(_KEYS)}, got {sorted(names)!s:.500}")
        found = {key: (file.get_slice(key).get_dtype(), tuple(file.get_slice(key).get_shape())) for key in _KEYS}
    shapes = {key: shape for key, (_, shape) in found.items()}
    frames, latent = (*shapes["mu"], 0, 0)[:2]
    action, episodes = (*shapes["actions"], 0, 0)[1], shapes["lengths"][:1]
    expected = {
        "mu": ("F16", (frames, latent)),
        "logvar": ("F16", (frames, latent)),
        "actions": ("F32", (frames, action)),
        "rewards": ("F32", (frames,)),
        "lengths": ("I64", episodes),
        "terminated": ("BOOL", episodes),
    }
    if found != expected or not episodes:
        raise ValueError(f"{path}: expected consistent arrays, {expected}, got {found!s:.500}")
    return latent, action


def _read_episodes(path: Path) -> dict[str, Any]:
    """Read and check the episode lengths and termination flags of a file."""
    with _opened(path) as file:
        part = {key: file.get_tensor(key) for key in _PER_EPISODE}
        frames = file.get_slice("rewards").get_shape()[0]
    lengths = part["lengths"]
    if not lengths.size or not ((lengths > 0) & (lengths <= frames)).all() or lengths.sum() != frames:
        raise ValueError(
            f"{path}: expected {', '.join(_KEYS)} of consistent sizes, got {frames} frames, lengths {lengths!s:.200}"
        )
    return part
