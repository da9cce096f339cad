"""From a screen of any size to the frame that V sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Frame = npt.NDArray[np.uint8]


def shrink(screen: Frame) -> Frame:
    """Resizes a screen (height, width, 3) uint8 to (64, 64, 3).

    Pillow's bilinear filter averages over the source area when it shrinks: the authors' own resize.
    """
    return np.array(Image.fromarray(screen).resize((64, 64), Image.Resampling.BILINEAR))
