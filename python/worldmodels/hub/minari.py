"""Minari data sets with image observations as recordings, and episode stores as Minari data sets (extra ``minari``)."""

from __future__ import annotations

import itertools
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.data.episodes import FRAME, Episode, EpisodeStore
from worldmodels.hub.recordings import POLICY, fit

_CHUNK = 16  # episodes in memory while a data set is written
_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+")  # of a data set


class MinariRecordings:
    """Minari data set of this machine, read as :class:`worldmodels.hub.recordings.Recordings`.

    The last observation of an episode, at which no action was taken, is left out. Actions of a Box are scaled to
    [-1, 1] by its bounds, if they are finite; those of a Discrete space become one-hot vectors.

    Args:
        name: Id of the data set, such as ``"atari/breakout/expert-v0"``.

    Raises:
        FileNotFoundError: There is no such data set on this machine.
        ModuleNotFoundError: The extra ``minari`` is not installed.
        ValueError: The observations are no RGB images, or the actions are neither a vector nor discrete.
    """

    has_rewards = has_termination = True

    def __init__(self, name: str) -> None:
        minari = _import_minari(name)
        try:
            self._data: Any = minari.load_dataset(name)
        except (FileNotFoundError, ValueError) as error:
            raise FileNotFoundError(
                f"{name}: no such folder of recordings, and no Minari data set of this machine: {error}; "
                f"`minari download {name}` fetches a public one"
            ) from error
        self._name, space = name, self._data.observation_space
        if len(space.shape or ()) != 3 or space.shape[2] != 3 or space.dtype != np.uint8:
            raise ValueError(f"{name}: expected observations of (height, width, 3) uint8, got {space}")
        self._scale: Any = None
        self._count, space = 0, self._data.action_space
        if type(space).__name__ == "Discrete":
            self._count, self._first = int(space.n), int(space.start)
            self.names = tuple(f"value {value}" for value in range(self._first, self._first + self._count))
        elif type(space).__name__ == "Box" and len(space.shape) == 1:
            self.names = tuple(f"action {index}" for index in range(space.shape[0]))
            if np.isfinite(space.low).all() and np.isfinite(space.high).all():
                low, high = space.low.astype(np.float64), space.high.astype(np.float64)
                self._scale = (low + high) / 2, np.maximum(high - low, 1e-12) / 2
        else:
            raise ValueError(f"{name}: expected actions of a Discrete space or of a Box of (A,), got {space}")

    def __len__(self) -> int:
        """Return the number of episodes."""
        return int(self._data.total_episodes)

    def read(self, index: int) -> Episode:
        """Read an episode, with frames of 64x64.

        Raises:
            ValueError: An action is outside its space or beyond float32, or a reward is not a finite number.
        """
        found = self._data[index]
        frames = np.stack([fit(frame) for frame in found.observations[:-1]])
        actions, rewards = np.asarray(found.actions), np.asarray(found.rewards, np.float32)
        if not self._is_inside(actions):
            raise ValueError(
                f"{self._name}: expected actions of {self._data.action_space} in episode {index}, got others"
            )
        if not np.isfinite(rewards).all():
            raise ValueError(f"{self._name}: expected finite rewards in episode {index}, got NaN or infinity")
        with np.errstate(over="ignore"):
            actions = self._actions(actions)
        if not np.isfinite(actions).all():
            raise ValueError(f"{self._name}: expected actions of float32 in episode {index}, got larger ones")
        return Episode(
            frames,
            actions,
            rewards,
            bool(found.terminations[-1]),
            POLICY,
            index,
        )

    def _is_inside(self, actions: npt.NDArray[Any]) -> bool:
        if self._count:
            return bool(((actions >= self._first) & (actions < self._first + self._count)).all())
        space = self._data.action_space
        values = actions.astype(space.dtype)
        return bool((np.isfinite(values) & (values >= space.low) & (values <= space.high)).all())

    def _actions(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if self._count:
            rows: npt.NDArray[np.float32] = np.eye(self._count, dtype=np.float32)[actions - self._first]
            return rows
        if self._scale is not None:
            actions = (actions - self._scale[0]) / self._scale[1]
        return actions.astype(np.float32)


def export_minari(folder: str | Path, name: str) -> int:
    """Write an episode store as a Minari data set of this machine.

    Minari stores one observation more than actions; the last frame of an episode is repeated for it. Frames are stored
    without loss.

    Args:
        folder: Folder of the episode store.
        name: Id of the new data set, such as ``"mine/takecover-v0"``.

    Returns:
        Number of episodes.

    Raises:
        FileNotFoundError: The folder has no shards.
        ModuleNotFoundError: The extra ``minari`` is not installed.
        ValueError: There is a data set of this id, or the id is invalid.
    """
    if not _ID.fullmatch(name):
        raise ValueError(f"minari: expected an id with a version, such as mine/takecover-v0, got {name!r}")
    minari = _import_minari(name)
    from gymnasium.spaces import Box
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    try:
        parse_dataset_id(name)
    except ValueError as error:
        raise ValueError(f"minari: expected an id of Minari, got {name!r}: {error}") from error
    where = get_dataset_path(name)
    if where.exists():
        raise ValueError(f"minari: expected the id of a new data set, got {name!r}, which exists")
    store = EpisodeStore(Path(folder))
    size = store.shards[0].actions.shape[1]
    spaces = {
        "observation_space": Box(0, 255, FRAME, np.uint8),
        "action_space": Box(-np.inf, np.inf, (size,), np.float32),
    }
    data, count = None, 0
    try:
        for chunk in _chunks(store):
            buffers = [_buffer(episode, number) for number, episode in enumerate(chunk, count)]
            if data is None:
                about = f"Episodes of worldmodels, {len(store.lengths)} in all"
                options = {"description": about, "requirements": [], "jpeg_encoding": False, **spaces}
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # about empty metadata, such as the author
                    data = minari.create_dataset_from_buffers(name, buffers, **options)
            else:
                data.update_dataset_from_buffer(buffers)
            count += len(buffers)
    except BaseException:
        shutil.rmtree(where, ignore_errors=True)  # else the next export of this id is refused
        raise
    finally:
        store.close()
    return count


def _chunks(store: EpisodeStore) -> Any:
    episodes = store.episodes()
    return iter(lambda: list(itertools.islice(episodes, _CHUNK)), [])


def _buffer(episode: Episode, number: int) -> Any:
    from minari.data_collector import EpisodeBuffer

    ends = np.zeros((2, len(episode.rewards)), np.bool_)
    ends[0 if episode.terminated else 1, -1] = True
    return EpisodeBuffer(
        id=number,
        observations=np.concatenate([episode.frames, episode.frames[-1:]]),
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=ends[0],
        truncations=ends[1],
    )


def _import_minari(name: str) -> Any:
    try:
        import minari
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name}: no such folder, and Minari data sets need the extra minari; "
            "`pip install 'worldmodels-rl[minari]'` installs it",
            name="minari",
        ) from error
    return minari
