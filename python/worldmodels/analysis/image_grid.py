"""Image grids: rows of 64x64 images in one PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from worldmodels.support.files import atomic_path

_GAP = 2


def save(path: Path, rows: Sequence[npt.NDArray[np.uint8]], scale: int = 2) -> None:
    """Write rows of (N, 64, 64, 3) uint8 images to a PNG file, atomically.

    Args:
        path: Path of the file.
        rows: Rows of images, from top to bottom.
        scale: Integer zoom.
    """
    columns = max(len(row) for row in rows)
    height, width = rows[0].shape[1:3]
    page = np.full((len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + _GAP), x * (width + _GAP)
            page[top : top + height, left : left + width] = picture
    with atomic_path(path) as temporary:
        image = Image.fromarray(page.repeat(scale, axis=0).repeat(scale, axis=1))
        image.save(temporary, format="PNG", compress_level=4)  # 3 % larger than at 6, in less than half the time
