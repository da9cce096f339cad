"""Recorded episodes for the page: one sheet of 64x64 frames, and its description."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worldmodels.data.records import Record
from worldmodels.support.files import atomic_path

#: Longest film in seconds, its frames per second, and their WebP quality.
SECONDS, RATE, QUALITY = 20.0, 50, 80
_MAX_SIDE = 16_383  # of a WebP picture
_COLUMNS = 24


@dataclass(frozen=True, kw_only=True)
class Film(Record):
    """Description of a sheet of frames, row by row.

    Attributes:
        frames: Number of frames.
        columns: Frames per row.
        steps_per_frame: Steps between two frames.
        steps: Steps of the film.
        first: Number of the first step.
        complete: Whether the last step is the last of the episode.
        note: Provenance in one sentence, shown on the page.
    """

    frames: int
    columns: int
    steps_per_frame: int
    steps: int
    first: int = 0
    complete: bool
    note: str = ""


def write_film(
    path: Path,
    frames: npt.NDArray[np.uint8],
    frames_per_second: int,
    *,
    first: int = 0,
    seconds: float = SECONDS,
    note: str = "",
) -> Film:
    """Write the sheet ``path`` (*.webp) of an episode, and its description next to it (*.json).

    Args:
        path: File of the sheet.
        frames: (T, 64, 64, 3) uint8 frames of the whole episode.
        frames_per_second: Steps per second of the environment.
        first: First step to show.
        seconds: Longest duration.
        note: Provenance in one sentence.
    """
    from PIL import Image

    stride = max(1, round(frames_per_second / RATE))
    limit = min(int(seconds * frames_per_second), stride * _COLUMNS * (_MAX_SIDE // 64))
    chosen = frames[first : first + limit]
    shown = chosen[::stride]
    if len(chosen) == 0 or frames.shape[1:] != (64, 64, 3):
        raise ValueError(f"frames: expected (T, 64, 64, 3) with T > {first}, got {frames.shape}")
    film = Film(
        frames=len(shown),
        columns=min(_COLUMNS, len(shown)),
        steps_per_frame=stride,
        steps=len(chosen),
        first=first,
        complete=first + len(chosen) == len(frames),
        note=note,
    )
    rows = math.ceil(film.frames / film.columns)
    sheet = np.zeros((rows * 64, film.columns * 64, 3), np.uint8)
    for number, frame in enumerate(shown):
        row, column = divmod(number, film.columns)
        sheet[64 * row : 64 * (row + 1), 64 * column : 64 * (column + 1)] = frame
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="WEBP", quality=QUALITY, method=6)
    film.write(path.with_suffix(".json"))
    return film
