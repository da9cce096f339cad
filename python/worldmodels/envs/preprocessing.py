"""Preprocessing of a game's screen to V's input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Frame = npt.NDArray[np.uint8]


def resize(screen: Frame) -> Frame:
    """Resize a screen (height, width, 3) uint8 to (64, 64, 3).

    Pillow's bilinear filter averages over the source area when downscaling, like the original code's.
    """
    return np.array(Image.fromarray(screen).resize((64, 64), Image.Resampling.BILINEAR))
