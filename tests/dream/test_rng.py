"""Philox against the published vectors of Random123, and the draws made of it."""

from __future__ import annotations

import numpy as np
import pytest

from reference import Draws, philox4x32
from worldmodels.dream import native as dream  # noqa: F401  (torch first)

from worldmodels import _core  # isort: skip

# Random123, tests/kat_vectors: philox4x32, 10 rounds: counter, key, output.
VECTORS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_published_vectors(counter, key, output):
    assert list(_core.testing.philox4x32(counter, key)) == output
    assert philox4x32(tuple(counter), tuple(key)) == output


@pytest.mark.parametrize("level", _core.simd_levels())
@pytest.mark.parametrize("count", [1, 3, 15, 16, 17, 40])
def test_draws_equal_reference(level, count):
    seed, candidate, episode, step = 0xFEDCBA9876543210, 4_000_000_000, 77, 2099
    got = _core.testing.draws(level, seed, candidate, episode, step, count)
    normals, uniforms = Draws(seed, candidate, episode).step(step, 2 * count)
    np.testing.assert_array_equal(got[2:].T.ravel(), uniforms)
    np.testing.assert_allclose(got[:2].T.ravel(), normals, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("level", _core.simd_levels())
def test_normals_and_uniforms(level):
    draws = _core.testing.draws(level, 1, 2, 3, 4, 250_000).astype(np.float64)
    normal, uniform = draws[:2].ravel(), draws[2:].ravel()
    assert np.isfinite(draws).all() and uniform.min() >= 0 and uniform.max() < 1
    n = normal.size
    moments = [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]
    for power, mean, variance in moments:
        assert abs((normal**power).mean() - mean) < 5 * np.sqrt(variance / n)
    assert abs(np.corrcoef(draws) - np.eye(4)).max() < 5 / np.sqrt(n / 2)
    counts, _ = np.histogram(uniform, bins=64, range=(0, 1))
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * np.sqrt(2 * 63)
