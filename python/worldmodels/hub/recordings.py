"""Recordings of others as episodes: folders of frames and actions.

A folder of recordings has one folder per episode, in the order of their names:

    recordings/
      000/
        frames.npz      the array "frames", (T, height, width, 3) uint8 RGB; or frames.mp4 (extra video)
        actions.csv     a header and T rows: one column per dimension of the action, and optionally
                        "reward" (of the step) and "terminated" (1 in the last row of an episode that terminated)
      001/
        ...

The action in row t was taken at frame t. Frames are resized to 64x64. M is trained on the actions as they are:
numbers in [-1, 1], and discrete actions as one column per value, 1 for the chosen one.
"""

from __future__ import annotations

import csv
import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worldmodels.data.episodes import FRAME, Episode
from worldmodels.envs.preprocessing import resize

POLICY = "recorded"  # policy of the episodes
FRAMES, VIDEO, ACTIONS = "frames.npz", "frames.mp4", "actions.csv"
_REWARD, _TERMINATED = "reward", "terminated"
_ENCODING = "utf-8-sig"  # spreadsheets write a byte-order mark
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Steps(NamedTuple):
    """Contents of an ``actions.csv``.

    Attributes:
        names: Names of the action's dimensions.
        actions: (T, A) float32 actions.
        rewards: (T,) float32 rewards; zeros if the file has none.
        terminated: Whether the episode terminated.
        has_rewards: Whether the file has rewards.
        has_termination: Whether the file says if the episode terminated.
    """

    names: tuple[str, ...]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    terminated: bool
    has_rewards: bool
    has_termination: bool


class Recordings:
    """Folder of recorded episodes, one in memory at a time.

    Args:
        folder: Folder with one folder per episode.

    Attributes:
        names: Names of the action's dimensions.
        has_rewards: Whether the episodes have rewards.
        has_termination: Whether the episodes say if they terminated.

    Raises:
        FileNotFoundError: There is no such folder, or an episode lacks a file.
        ValueError: A table is damaged, or the episodes have different columns.
    """

    def __init__(self, folder: str | Path) -> None:
        where = Path(folder)
        if not where.is_dir():
            raise FileNotFoundError(f"{where}: no such folder of recordings")
        self.folders = sorted(path for path in where.iterdir() if path.is_dir() and path.name[0] != ".")
        if not self.folders:
            raise FileNotFoundError(f"{where}: expected one folder per episode, got none")
        columns = {path: _columns(path) for path in self.folders}
        first = columns[self.folders[0]]
        for path, found in columns.items():
            if found != first:
                raise ValueError(f"{path / ACTIONS}: expected the columns {', '.join(first)}, got {', '.join(found)}")
            _frames_file(path)
        self.names = tuple(name for name in first if name not in (_REWARD, _TERMINATED))
        self.has_rewards, self.has_termination = _REWARD in first, _TERMINATED in first

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.folders)

    def read(self, index: int) -> Episode:
        """Read an episode, with frames of 64x64.

        Args:
            index: Index of the episode.

        Raises:
            ModuleNotFoundError: The frames are a video, and the extra ``video`` is not installed.
            ValueError: A file is damaged, or the episode has another number of frames than of actions.
        """
        folder = self.folders[index]
        steps, path = read_steps(folder / ACTIONS), _frames_file(folder)
        frames = _read_video(path) if path.name == VIDEO else _read_npz(path)
        if len(frames) != len(steps.actions):
            raise ValueError(f"{path}: expected {len(steps.actions)} frames, the rows of {ACTIONS}, got {len(frames)}")
        return Episode(frames, steps.actions, steps.rewards, steps.terminated, POLICY, index)


def _columns(folder: Path) -> tuple[str, ...]:
    """Read the header of a table."""
    path = folder / ACTIONS
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected {ACTIONS}, got none")
    try:
        with path.open(newline="", encoding=_ENCODING) as file:
            names = tuple(name.strip() for name in next(csv.reader(file), []))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a table, got {error}") from error
    actions = [name for name in names if name not in (_REWARD, _TERMINATED)]
    if not actions or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{path}: expected distinct column names, at least one of them an action, got {names!r:.99}")
    return names


def _frames_file(folder: Path) -> Path:
    found = [folder / name for name in (FRAMES, VIDEO) if (folder / name).is_file()]
    if len(found) != 1:
        raise FileNotFoundError(f"{folder}: expected {FRAMES} or {VIDEO}, got {'both' if found else 'neither'}")
    return found[0]


def read_steps(path: Path) -> Steps:
    """Read an ``actions.csv``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The table is damaged, or a value is not a finite number.
    """
    names = _columns(path.parent)
    rows: list[list[float]] = []
    with path.open(newline="", encoding=_ENCODING) as file:
        reader = csv.reader(file)
        next(reader)
        try:
            for row in filter(None, reader):
                values = [float(cell) for cell in row]
                if len(values) != len(names) or not all(map(math.isfinite, values)):
                    raise ValueError(f"got {row!r:.100}")
                rows.append(values)
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"{path}: expected {len(names)} finite numbers in line {reader.line_num}, {error}"
            ) from error
    if not rows:
        raise ValueError(f"{path}: expected at least one row below the header, got none")
    columns = dict(zip(names, np.array(rows, np.float64).T, strict=True))
    ends = columns.pop(_TERMINATED, None)
    if ends is not None and (not np.isin(ends, (0, 1)).all() or ends[:-1].any()):
        raise ValueError(f"{path}: expected {_TERMINATED} to be 0 or 1, and 1 in the last row only, got {ends!s:.200}")
    rewards = columns.pop(_REWARD, None)
    actions = np.stack(list(columns.values()), axis=1)
    limit = np.finfo(np.float32).max
    if (np.abs(actions) > limit).any() or (rewards is not None and (np.abs(rewards) > limit).any()):
        raise ValueError(f"{path}: expected numbers of float32, got larger ones")
    return Steps(
        tuple(columns),
        actions.astype(np.float32),
        (np.zeros(len(rows)) if rewards is None else rewards).astype(np.float32),
        bool(ends is not None and ends[-1]),
        rewards is not None,
        ends is not None,
    )


def _read_npz(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            _check_size(archive.zip)
            frames = archive["frames"]
    except Exception as error:  # zipfile, its decompressors and NumPy raise a dozen types for a damaged archive
        raise ValueError(f"{path}: expected an archive with the array frames, got {error}") from error
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"{path}: expected frames of (T, height, width, 3) uint8, got {frames.shape} {frames.dtype}")
    return np.stack([fit(frame) for frame in frames])


def _check_size(archive: zipfile.ZipFile) -> None:
    """Check that the header of the frames claims no more bytes than the archive has, before they are allocated."""
    member = archive.getinfo("frames.npy")
    with archive.open(member) as file:
        shape, _, dtype = _READ_HEADER[np.lib.format.read_magic(file)](file)
    if (claimed := math.prod(shape) * dtype.itemsize) > member.file_size:
        raise ValueError(f"a header of {claimed} bytes in a file of {member.file_size}")


def _read_video(path: Path) -> npt.NDArray[np.uint8]:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: no module named 'av' (PyAV); `pip install 'worldmodels-rl[video]'` installs it", name="av"
        ) from error
    try:
        with av.open(str(path)) as container:
            frames = [
                fit(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)) for frame in container.decode(video=0)
            ]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: expected a video, got {error}") from error
    if not frames:
        raise ValueError(f"{path}: expected a video, got one without frames")
    return np.stack(frames)


def fit(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Resize a frame (height, width, 3) uint8 to (64, 64, 3)."""
    return frame if frame.shape == FRAME else resize(frame)
