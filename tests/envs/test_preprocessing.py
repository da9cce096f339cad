"""Resizing next to Pillow's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import worldmodels
from worldmodels import _core
from worldmodels.envs.preprocessing import resize


@pytest.fixture(params=worldmodels.simd_levels())
def level(request):
    before = _core.simd_level()
    worldmodels.set_simd_level(request.param)
    yield request.param
    worldmodels.set_simd_level(before)


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (100, 160),
        (120, 160),
        (84, 96),
        (400, 640),
        (64, 64),
        (63, 65),
        (500, 500),
        (40, 30),
        (1, 1),
        (7, 3),
        (1080, 64),
    ],
)
def test_the_bits_are_pillows(level, height, width):
    rng = np.random.default_rng([height, width])
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    edges = rng.integers(0, 2, (height, width, 3), np.uint8) * 255
    for screen in (noise, edges, np.full_like(noise, 255), np.zeros_like(noise)):
        expected = np.array(Image.fromarray(screen).resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(resize(screen), expected)


def test_screens_need_not_be_contiguous():
    screen = np.random.default_rng(0).integers(0, 256, (96, 84, 3), np.uint8)
    np.testing.assert_array_equal(resize(screen.transpose(1, 0, 2)), resize(screen.transpose(1, 0, 2).copy()))
    np.testing.assert_array_equal(resize(screen[::2]), resize(screen[::2].copy()))


@pytest.mark.parametrize(
    ("screen", "message"),
    [
        (np.zeros((4, 5, 4), np.uint8), r"^screen: expected \(4, 5, 3\) uint8, got \(4, 5, 4\) uint8"),
        (np.zeros((4, 5, 3), np.float32), r"^screen: expected \(4, 5, 3\) uint8, got \(4, 5, 3\) float32"),
        (np.zeros((0, 5, 3), np.uint8), r"^height: expected an integer from 1 to 16384, got 0"),
        (np.zeros((5, 16_385, 3), np.uint8), r"^width: expected an integer from 1 to 16384, got 16385"),
    ],
)
def test_other_arrays_are_refused(screen, message):
    with pytest.raises(ValueError, match=message):
        resize(screen)
