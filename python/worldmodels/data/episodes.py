"""Episode store: frames, actions and rewards of real episodes in HDF5 shards."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from worldmodels import _core
from worldmodels.support.files import atomic_path

FORMAT = "worldmodels-episodes-1"
FRAME = (64, 64, 3)
_UNCOMPRESSED = 1  # filter mask of a chunk without LZF, the first filter
_HEAP = b"GCOL\x01"  # signature of HDF5's heap of variable-length strings
_KINDS = {"frames": np.uint8, "actions": np.float32, "rewards": np.float32, "lengths": np.int64, "terminated": np.bool_}
_OPTIONAL = {"cut": (np.bool_, False), "seeds": (np.int64, -1)}  # one value per episode, and that of files without them
_LOCK = threading.RLock()  # no thread closes a file that another one reads
os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


@dataclass(frozen=True)
class Episode:
    """One episode. The action ``actions[t]`` was taken at ``frames[t]`` and earned ``rewards[t]``.

    Attributes:
        frames: (T, 64, 64, 3) uint8 frames.
        actions: (T, A) float32 actions.
        rewards: (T,) float32 rewards.
        terminated: Whether the environment terminated the episode; False if a time limit truncated it.
        policy: Name of the policy.
        seed: Seed of the environment's reset.
        cut: Whether the task's step limit truncated the episode, not the environment.
    """

    frames: npt.NDArray[np.uint8]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    terminated: bool
    policy: str
    seed: int
    cut: bool = False


class EpisodeWriter:
    """Write one shard, episode by episode. The file appears under its name when it is complete.

    Frames have lossless compression (LZF) and a checksum (Fletcher32) as HDF5's filters of these names read them. A
    chunk is one frame, so that shuffled reads load nothing else.

    Args:
        path: File of the shard, ``*.h5``.
        action_size: Length A of an action.
    """

    def __init__(self, path: str | Path, action_size: int) -> None:
        self._path = Path(path)
        self._atomic = atomic_path(self._path)
        self._file = h5py.File(self._atomic.__enter__(), "w", libver="v110")
        self._file.attrs["format"] = np.bytes_(FORMAT)  # fixed length: HDF5 can hang on a damaged heap of strings
        self._frames = self._file.create_dataset(
            "frames", (0, *FRAME), "u1", maxshape=(None, *FRAME), chunks=(1, *FRAME), compression="lzf", fletcher32=True
        )
        self._action_size = action_size
        self._episodes: list[Episode] = []

    def __enter__(self) -> EpisodeWriter:
        return self

    def append(self, episode: Episode) -> None:
        """Append an episode. Its frames are written to disk at once, its other arrays are copied.

        Raises:
            ValueError: A shape or dtype does not match, or an action or a reward is not finite.
        """
        steps = len(episode.frames)
        for name, array, shape, dtype in (
            ("frames", episode.frames, (steps, *FRAME), np.uint8),
            ("actions", episode.actions, (steps, self._action_size), np.float32),
            ("rewards", episode.rewards, (steps,), np.float32),
        ):
            if array.shape != shape or array.dtype != dtype or steps == 0:
                wanted = f"{shape} {np.dtype(dtype)} with at least one step"
                raise ValueError(f"{name}: expected {wanted}, got {array.shape} {array.dtype}")
            step = None if name == "frames" else _not_finite(array)
            if step is not None:
                place = f"step {step} of episode {len(self._episodes)} of {self._path.name}"
                raise ValueError(f"{name}: expected finite numbers, got {array[step]} at {place}")
        self._write(np.ascontiguousarray(episode.frames))
        self._episodes.append(
            Episode(
                np.empty((0, *FRAME), np.uint8),  # not a view, which would keep the frames in memory
                episode.actions.copy(),
                episode.rewards.copy(),
                episode.terminated,
                episode.policy,
                episode.seed,
                episode.cut,
            )
        )

    def _write(self, frames: npt.NDArray[np.uint8]) -> None:
        """Write the chunks of frames, compressed here: h5py's LZF takes three times as long."""
        data, ends, is_compressed = _core.compress_frames(frames)
        first, start = self._frames.shape[0], 0
        self._frames.resize(first + len(frames), axis=0)
        for index, (end, compressed) in enumerate(zip(ends.tolist(), is_compressed.tolist(), strict=True), first):
            mask = 0 if compressed else _UNCOMPRESSED
            self._frames.id.write_direct_chunk((index, 0, 0, 0), data[start:end], mask)
            start = end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                if error is None:
                    self._finish()
            finally:
                self._file.close()
        except BaseException as failure:
            self._atomic.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._atomic.__exit__(kind, error, trace)

    def _finish(self) -> None:
        """Write all data sets except the frames."""
        episodes = self._episodes
        if not episodes:
            raise ValueError("episodes: expected at least one in a shard, got none")
        columns: dict[str, npt.NDArray[np.generic]] = {
            "actions": np.concatenate([episode.actions for episode in episodes]),
            "rewards": np.concatenate([episode.rewards for episode in episodes]),
            "lengths": np.array([len(episode.actions) for episode in episodes], np.int64),
            "terminated": np.array([episode.terminated for episode in episodes]),
            "seeds": np.array([episode.seed for episode in episodes], np.int64),
        }
        if any(episode.cut for episode in episodes):
            columns["cut"] = np.array([episode.cut for episode in episodes])
        for name, values in columns.items():
            self._file.create_dataset(name, data=values, fletcher32=True)
        self._file["policies"] = np.array([episode.policy.encode() for episode in episodes], np.bytes_)


def _not_finite(values: npt.NDArray[Any]) -> int | None:
    """Return the first step with a number that is not finite, if there is one."""
    finite = np.isfinite(values)
    return None if finite.all() else int(np.argwhere(~finite)[0, 0])


class EpisodeShard:
    """Read one complete shard.

    Attributes:
        path: Path of the file.
        actions: (N, A) float32 actions.
        rewards: (N,) float32 rewards.
        lengths: (E,) int64 episode lengths; their sum is N.
        terminated: (E,) bool termination flags.
        policies: E names of policies.
        cut: (E,) bool flags of truncation by the task's step limit; all False if the file has none.
        seeds: (E,) int64 seeds of the environment's resets; -1 if the file has none.

    Raises:
        OSError: Too many files are open.
        ValueError: The file is not a complete shard.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self._file: h5py.File | None = self._open()
        self._frames: h5py.Dataset | None = None
        try:
            self._read(path, self._file)
        except Exception as error:  # HDF5 reports damaged files by many exception types
            self.close()
            if type(error) is ValueError and str(error).startswith(f"{path}: "):
                raise
            raise ValueError(f"{path}: expected an episode shard, got {error!r}") from error

    def _open(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r", rdcc_nbytes=0)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise ValueError(f"{self.path}: expected an episode shard, got {error}") from error

    @property
    def frames(self) -> h5py.Dataset:
        """(N, 64, 64, 3) uint8 data set on disk; slicing reads it. A closed file is opened again."""
        if not self._file:
            self._file = self._open()
            self._frames = self._file["frames"]
        return self._frames

    def release(self) -> None:
        """Close the file as soon as nothing refers to its frames. :meth:`close` searches all open files."""
        self._file = self._frames = None

    def _read(self, path: Path, file: h5py.File) -> None:
        if any(text.dtype.hasobject for text in (file.attrs.get_id("format"), file["policies"])):
            _check_heaps(path)  # format of older files
        found = file.attrs["format"]
        if found not in (FORMAT, FORMAT.encode()):
            raise ValueError(f"{path}: expected format {FORMAT!r}, got {found!r:.100}")
        if file["frames"].chunks not in (None, (1, *FRAME)):  # reading decompresses whole chunks
            raise ValueError(f"{path}: expected frames in chunks of one, got chunks of {file['frames'].chunks}")
        for name, kind in (*_KINDS.items(), ("policies", file["policies"].dtype)):
            data = file[name]
            if data.dtype != kind:
                raise ValueError(f"{path}: expected {name} of {np.dtype(kind)}, got {data.dtype}")
            if name != "frames" and data.nbytes > path.stat().st_size:  # unwritten chunks occupy no space
                raise ValueError(f"{path}: expected {name} stored in the file, got {data.shape} without storage")
        self._frames = file["frames"]
        self.lengths: npt.NDArray[np.int64] = file["lengths"][:]
        lengths, total = self.lengths, len(file["rewards"])
        if not lengths.size or not ((lengths > 0) & (lengths <= total)).all() or lengths.sum() != total:
            raise ValueError(f"{path}: expected lengths above 0 that add up to {total} steps, got {lengths!s:.200}")
        shapes = {name: file[name].shape for name in ("frames", "actions", "terminated", "policies")}
        actions = (total, *shapes["actions"][1:2])
        expected = {
            "frames": (total, *FRAME),
            "actions": actions,
            "terminated": lengths.shape,
            "policies": lengths.shape,
        }
        if shapes != expected or len(actions) != 2:
            raise ValueError(f"{path}: expected {total} steps of {lengths.size} episodes, got {shapes}")
        self.actions: npt.NDArray[np.float32] = file["actions"][:]
        self.rewards: npt.NDArray[np.float32] = file["rewards"][:]
        self.terminated: npt.NDArray[np.bool_] = file["terminated"][:]
        self.policies: list[str] = [name.decode() for name in file["policies"][:]]
        optional: dict[str, npt.NDArray[Any]] = {}
        for name, (kind, default) in _OPTIONAL.items():
            optional[name] = file[name][:] if name in file else np.full(lengths.shape, default, kind)
            if optional[name].shape != lengths.shape or optional[name].dtype != kind:
                raise ValueError(f"{path}: expected {name} of {lengths.shape} {np.dtype(kind)}, got {file[name]}")
        self.cut: npt.NDArray[np.bool_] = optional["cut"]
        self.seeds: npt.NDArray[np.int64] = optional["seeds"]
        for name, values in (("actions", self.actions), ("rewards", self.rewards)):
            step = _not_finite(values)
            if step is not None:
                episode = int(np.searchsorted(lengths.cumsum(), step, side="right"))
                place = f"step {step - lengths[:episode].sum()} of episode {episode}"
                raise ValueError(f"{path}: expected finite {name}, got {values[step]} at {place}")

    def close(self) -> None:
        """Close the file. Reading frames opens it again."""
        if self._file is not None:
            self._file.close()


def _check_heaps(path: Path) -> None:
    """Reject heaps of strings whose objects are not contiguous: HDF5 2.0 may follow them forever."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_HEAP)
        while start >= 0:
            end, place = start + int.from_bytes(data[start + 8 : start + 16], "little"), start + 16
            while end <= len(data) and place + 16 <= end:
                index, size = struct.unpack_from("<H6xQ", data, place)
                size = (
                    16 + (size + 7) // 8 * 8 if index else size
                )  # index 0 is free space, its size includes the header
                if not 0 < size <= end - place:
                    raise ValueError(f"{path}: expected strings, got a damaged heap of them at byte {place}")
                place += size
            start = data.find(_HEAP, start + len(_HEAP))


class EpisodeStore:
    """Read all complete shards of a folder as one array of frames on disk.

    A store may have more shards than a process may have open files: the files used last are open.

    Args:
        folder: Folder of the shards.

    Raises:
        FileNotFoundError: The folder has no shards.
        ValueError: A file is not a complete shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.paths = sorted(self.folder.glob("*.h5"))
        if not self.paths:
            raise FileNotFoundError(f"{folder}: expected episode shards (*.h5), got none")
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # two stores may be open: 409 files each of the usual 1,024, or 10,225 episodes in files of 25
        self._max_open = len(self.paths) if limit == resource.RLIM_INFINITY else 2 * limit // 5
        self._used: dict[int, None] = {}  # shards with open files, the one used last at the end
        self.shards: list[EpisodeShard] = []
        for index, path in enumerate(self.paths):
            self.shards.append(EpisodeShard(path))
            self._frames(index)
        self.starts = np.cumsum([0, *(int(shard.lengths.sum()) for shard in self.shards)])

    def __len__(self) -> int:
        """Return the number of frames."""
        return int(self.starts[-1])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(E,) lengths of the episodes, in the order of the store."""
        return np.concatenate([shard.lengths for shard in self.shards])

    def _frames(self, shard: int) -> h5py.Dataset:
        """Return the frames of a shard. The file that was not used for the longest time is closed if too many are open.

        The caller holds ``_LOCK`` until it has read them.
        """
        self._used.pop(shard, None)
        self._used[shard] = None
        if len(self._used) > self._max_open:
            oldest = next(iter(self._used))
            del self._used[oldest]
            self.shards[oldest].release()
        return self.shards[shard].frames

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Read frames.

        Args:
            indices: (B,) frame indices below ``len(self)``, in any order.

        Returns:
            (B, 64, 64, 3) uint8 frames.

        Raises:
            OSError: A frame is damaged.
        """
        frames = np.empty((len(indices), *FRAME), np.uint8)
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        one = h5py.h5s.create_simple((1, *FRAME))
        for row in np.argsort(indices):
            shard = int(shards[row])
            place = int(indices[row] - self.starts[shard])
            with _LOCK:
                data = self._frames(shard).id  # low-level API: h5py's indexing costs as much as reading
                space = data.get_space()
                space.select_hyperslab((place, 0, 0, 0), (1, *FRAME))
                try:
                    data.read(one, space, frames[row : row + 1])
                except OSError as error:
                    raise OSError(f"{self.paths[shard]}: frame {place} is damaged: {error}") from error
        return frames

    def episodes(self) -> Iterator[Episode]:
        """Yield all episodes, one in memory at a time."""
        for index, shard in enumerate(self.shards):
            start = 0
            columns = (shard.lengths, shard.terminated, shard.policies, shard.seeds, shard.cut)
            for length, terminated, policy, seed, cut in zip(*columns, strict=True):
                stop = start + int(length)
                with _LOCK:
                    frames = self._frames(index)[start:stop]
                yield Episode(
                    frames,
                    shard.actions[start:stop],
                    shard.rewards[start:stop],
                    bool(terminated),
                    policy,
                    int(seed),
                    bool(cut),
                )
                start = stop

    def close(self) -> None:
        """Close the files. Reading opens them again."""
        with _LOCK:
            self._used.clear()
            for shard in self.shards:
                shard.close()


def shard_path(folder: Path, index: int) -> Path:
    """Return the path of shard ``index``."""
    return folder / f"{index:05d}.h5"
