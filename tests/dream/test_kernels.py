"""The kernels' elementary functions against float64, at every level this machine has."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodels.dream import native as dream  # noqa: F401  (torch first)

from worldmodels import _core  # isort: skip

LEVELS = _core.simd_levels()
TINY = np.float32(1.17549435e-38)
DENORMALS = np.array([1e-45, -1e-45, 1e-40, -1e-40, TINY, -TINY, 0.0, -0.0], np.float32)


def span(low, high, count=200_001):
    return np.linspace(low, high, count, dtype=np.float64).astype(np.float32)


def ulps(got, want):
    """Error in units in the last place of float32, of the smallest denormal at least."""
    unit = np.maximum(np.spacing(np.abs(want).astype(np.float32)).astype(np.float64), 2.0**-149)
    return np.abs(got.astype(np.float64) - want) / unit


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("x", [span(-87.3, 88.72), span(-0.01, 0.01), DENORMALS], ids=["range", "small", "denormal"])
def test_exp(level, x):
    assert ulps(_core.testing.elementwise(level, "exp", x), np.exp(x.astype(np.float64))).max() <= 2


@pytest.mark.parametrize("level", LEVELS)
def test_exp_extremes(level):
    x = span(-104, -87.3)
    assert ulps(_core.testing.elementwise(level, "exp", x), np.exp(x.astype(np.float64))).max() <= 1.5
    x = np.array([np.inf, -np.inf, np.nan, 89, 1e30, -1e30, -110], np.float32)
    np.testing.assert_array_equal(
        _core.testing.elementwise(level, "exp", x), np.array([np.inf, 0, np.nan, np.inf, np.inf, 0, 0])
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "x",
    [np.exp(span(-87, 88)), span(0.5, 2), np.abs(DENORMALS[DENORMALS != 0])],
    ids=["range", "around 1", "denormal"],
)
def test_log(level, x):
    want = np.log(x.astype(np.float64))
    assert (ulps(_core.testing.elementwise(level, "log", x), want) <= 3).all()


@pytest.mark.parametrize("level", LEVELS)
def test_log_extremes(level):
    x = np.array([0, -0.0, -1, np.inf, -np.inf, np.nan], np.float32)
    want = np.array([-np.inf, -np.inf, np.nan, np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(_core.testing.elementwise(level, "log", x), want)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "x",
    [span(-12, 12), span(-0.01, 0.01), np.float32([np.inf, -np.inf, 1e30, -1e30]), DENORMALS],
    ids=["range", "small", "large", "denormal"],
)
def test_tanh(level, x):
    got = _core.testing.elementwise(level, "tanh", x)
    assert ulps(got, np.tanh(x.astype(np.float64))).max() <= 6
    assert np.abs(got).max() <= 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "x", [span(-3, 3), np.float32(np.arange(-16, 17) / 8), DENORMALS], ids=["range", "eighths", "denormal"]
)
def test_sine_and_cosine_of_turns(level, x):
    turns = 2 * np.pi * x.astype(np.float64)
    assert np.abs(_core.testing.elementwise(level, "sin_turns", x) - np.sin(turns)).max() <= 1.5e-7
    assert np.abs(_core.testing.elementwise(level, "cos_turns", x) - np.cos(turns)).max() <= 1.5e-7


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sin_turns", "cos_turns"])
def test_nan_stays_and_lengths_do_not_matter(level, name):
    assert np.isnan(_core.testing.elementwise(level, name, np.float32([np.nan]))).all()
    x = span(0.1, 5, 133)
    whole = _core.testing.elementwise(level, name, x)
    for n in (1, 3, 15, 16, 17, 130):
        np.testing.assert_array_equal(_core.testing.elementwise(level, name, x[:n].copy()), whole[:n])
        np.testing.assert_array_equal(_core.testing.elementwise(level, name, x[1 : 1 + n]), whole[1 : 1 + n])


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sin_turns", "cos_turns"])
def test_fused_levels_give_the_same_bits(name):
    x = span(0.001, 20, 10_001)
    results = [_core.testing.elementwise(level, name, x).tobytes() for level in LEVELS if level != "baseline"]
    assert all(result == results[0] for result in results)


def filtered(x, size):
    """Pillow's bilinear filter along the first axis, in its fixed-point arithmetic."""
    scale = size / 64
    support = max(scale, 1.0)
    rows = []
    for i in range(64):
        center = (i + 0.5) * scale
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)
        weights = np.maximum(0, 1 - np.abs((np.arange(first, last) - center + 0.5) / support))
        fixed = (0.5 + weights / weights.sum() * (1 << 22)).astype(np.int64)
        rows.append((np.tensordot(fixed, x[first:last].astype(np.int64), 1) + (1 << 21)) >> 22)
    return np.stack(rows).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("height", "width"), [(96, 65), (65, 2), (1000, 320), (84, 96), (31, 300)])
def test_screens_are_resized_across_their_columns_first(level, height, width):
    screen = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    before = _core.simd_level()
    _core.set_simd_level(level)
    try:
        found = _core.ScreenResizer(height, width).resize(screen)
    finally:
        _core.set_simd_level(before)
    assert np.array_equal(found, filtered(filtered(screen.transpose(1, 0, 2), width).transpose(1, 0, 2), height))
