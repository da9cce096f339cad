"""The episode store: what was seen and done in the real environment, in HDF5 shards of a few episodes each."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import numpy.typing as npt

from worldmodels.support.files import atomic_path

FORMAT = "worldmodels-episodes-1"
FRAME = (64, 64, 3)
_HEAP = b"GCOL\x01"  # how a heap of strings of any length begins in HDF5
_KINDS = {"frames": np.uint8, "actions": np.float32, "rewards": np.float32, "lengths": np.int64, "terminated": np.bool_}


@dataclass(frozen=True)
class Episode:
    """One episode: at ``frames[t]`` the action ``actions[t]`` was taken and brought ``rewards[t]``.

    Attributes:
        frames: (T, 64, 64, 3) uint8.
        actions: (T, A) float32.
        rewards: (T,) float32.
        terminated: whether the environment ended it; False for a recording that was cut off by a time limit.
        policy: name of the policy that acted.
        seed: seed the environment was reset with.
        cut: Whether the longest episode of the task truncated it, which the environment had not ended.
    """

    frames: npt.NDArray[np.uint8]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    terminated: bool
    policy: str
    seed: int
    cut: bool = False


class EpisodeWriter:
    """Writes one shard, episode by episode; it appears under its name only when it is complete.

    Frames are compressed without loss (LZF, one chunk a frame so that shuffled reads touch nothing else) and
    carry a checksum.

    Args:
        path: the shard's file, ``*.h5``.
        action_size: length A of an action.
    """

    def __init__(self, path: Path, action_size: int) -> None:
        self._atomic = atomic_path(path)
        self._file = h5py.File(self._atomic.__enter__(), "w", libver="v110")
        self._file.attrs["format"] = np.bytes_(FORMAT)  # of fixed length: a damaged heap of strings can hang HDF5
        self._frames = self._file.create_dataset(
            "frames", (0, *FRAME), "u1", maxshape=(None, *FRAME), chunks=(1, *FRAME), compression="lzf", fletcher32=True
        )
        self._action_size = action_size
        self._episodes: list[Episode] = []

    def __enter__(self) -> EpisodeWriter:
        return self

    def append(self, episode: Episode) -> None:
        """Adds an episode; its frames go to disk at once.

        Raises:
            ValueError: shapes or dtypes do not fit.
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
        start = self._frames.shape[0]
        self._frames.resize(start + steps, axis=0)
        self._frames[start:] = episode.frames
        self._episodes.append(
            Episode(
                np.empty((0, *FRAME), np.uint8),  # no view: it would keep the frames in memory
                episode.actions,
                episode.rewards,
                episode.terminated,
                episode.policy,
                episode.seed,
                episode.cut,
            )
        )

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
        """Writes everything but the frames, which are there."""
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


class EpisodeShard:
    """One complete shard, open for reading.

    Attributes:
        path: of the file.
        frames: the (N, 64, 64, 3) uint8 data set on disk: slice it to read.
        actions: (N, A) float32.
        rewards: (N,) float32.
        lengths: (E,) int64; they add up to N.
        terminated: (E,) bool.
        policies: E names.
        cut: (E,) bool; all False where the file has none.

    Raises:
        ValueError: the file is not a complete shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = h5py.File(path, "r", rdcc_nbytes=0)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: expected an episode shard, got {error}") from error
        try:
            self._read(path)
        except Exception as error:  # HDF5 says what it finds in a damaged file in many ways
            self._file.close()
            if type(error) is ValueError and str(error).startswith(f"{path}: "):
                raise
            raise ValueError(f"{path}: expected an episode shard, got {error!r}") from error

    def _read(self, path: Path) -> None:
        file = self._file
        if any(text.dtype.hasobject for text in (file.attrs.get_id("format"), file["policies"])):
            _check_heaps(path)  # of an earlier version
        found = file.attrs["format"]
        if found not in (FORMAT, FORMAT.encode()):
            raise ValueError(f"{path}: expected format {FORMAT!r}, got {found!r:.100}")
        if file["frames"].chunks not in (None, (1, *FRAME)):  # whole chunks are unpacked
            raise ValueError(f"{path}: expected frames in chunks of one, got chunks of {file['frames'].chunks}")
        for name, kind in (*_KINDS.items(), ("policies", file["policies"].dtype)):
            data = file[name]
            if data.dtype != kind:
                raise ValueError(f"{path}: expected {name} of {np.dtype(kind)}, got {data.dtype}")
            if name != "frames" and data.nbytes > path.stat().st_size:  # chunks that were never written take no room
                raise ValueError(f"{path}: expected {name} that lie in the file, got {data.shape} of them")
        self.frames = file["frames"]
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
        self.cut: npt.NDArray[np.bool_] = np.zeros(lengths.shape, np.bool_)
        if "cut" in file:
            if file["cut"].shape != lengths.shape or file["cut"].dtype != np.bool_:
                raise ValueError(f"{path}: expected cut of {lengths.shape} bool, got {file['cut']}")
            self.cut = file["cut"][:]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _check_heaps(path: Path) -> None:
    """Refuses heaps of strings whose objects do not lie one behind the other: HDF5 2.0 may follow them for ever."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_HEAP)
        while start >= 0:
            end, place = start + int.from_bytes(data[start + 8 : start + 16], "little"), start + 16
            while end <= len(data) and place + 16 <= end:
                index, size = struct.unpack_from("<H6xQ", data, place)
                size = 16 + (size + 7) // 8 * 8 if index else size  # 0 is the free space, with its header
                if not 0 < size <= end - place:
                    raise ValueError(f"{path}: expected strings, got a damaged heap of them at byte {place}")
                place += size
            start = data.find(_HEAP, start + len(_HEAP))


class EpisodeStore:
    """All complete shards of a folder, as one array of frames on disk.

    Args:
        folder: where the shards lie.

    Raises:
        FileNotFoundError: there are none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = sorted(folder.glob("*.h5"))
        if not self.paths:
            raise FileNotFoundError(f"{folder}: expected episode shards (*.h5), got none")
        self.shards = [EpisodeShard(path) for path in self.paths]
        self.starts = np.cumsum([0, *(int(shard.lengths.sum()) for shard in self.shards)])

    def __len__(self) -> int:
        """Number of frames."""
        return int(self.starts[-1])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Length of every episode, in the order of the store."""
        return np.concatenate([shard.lengths for shard in self.shards])

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Reads frames: (B,) indices below ``len(self)``, in any order, to (B, 64, 64, 3) uint8.

        Raises:
            OSError: a frame is damaged.
        """
        frames = np.empty((len(indices), *FRAME), np.uint8)
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        one = h5py.h5s.create_simple((1, *FRAME))
        for row in np.argsort(indices):
            shard = int(shards[row])
            place = int(indices[row] - self.starts[shard])
            data = self.shards[shard].frames.id  # below h5py's indexing, which costs as much as the reading
            space = data.get_space()
            space.select_hyperslab((place, 0, 0, 0), (1, *FRAME))
            try:
                data.read(one, space, frames[row : row + 1])
            except OSError as error:
                raise OSError(f"{self.paths[shard]}: frame {place} is damaged: {error}") from error
        return frames

    def episodes(self) -> Iterator[Episode]:
        """All episodes in turn, one in memory at a time."""
        for shard in self.shards:
            start = 0
            columns = (shard.lengths, shard.terminated, shard.policies, shard.cut)
            for length, terminated, policy, cut in zip(*columns, strict=True):
                stop = start + int(length)
                yield Episode(
                    shard.frames[start:stop],
                    shard.actions[start:stop],
                    shard.rewards[start:stop],
                    bool(terminated),
                    policy,
                    -1,
                    bool(cut),
                )
                start = stop

    def close(self) -> None:
        """Closes the files."""
        for shard in self.shards:
            shard.close()


def shard_path(folder: Path, index: int) -> Path:
    """Name of shard ``index``."""
    return folder / f"{index:05d}.h5"
