"""Preprocessing of a game's screen to V's input."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from worldmodels import _core

Frame = npt.NDArray[np.uint8]


def resize(screen: Frame) -> Frame:
    """Resize a screen (height, width, 3) uint8 to (64, 64, 3).

    The result is that of Pillow's bilinear filter, bit for bit. It averages over the source area when downscaling, like
    the original code's.
    """
    return _resizer(*screen.shape[:2]).resize(np.ascontiguousarray(screen))


@lru_cache(maxsize=16)
def _resizer(height: int, width: int) -> _core.ScreenResizer:
    return _core.ScreenResizer(height, width)
