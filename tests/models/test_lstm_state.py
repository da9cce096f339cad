"""M's memory in the real world, against the LSTM in NumPy and against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_agent import remember

import worldmodels as wm
from worldmodels.models.lstm_state import LSTMState
from worldmodels.support.simd import set_simd_level, simd_level, simd_levels

LATENT, ACTION, HIDDEN = 5, 2, 37


@pytest.fixture(autouse=True)
def level():
    before = simd_level()
    yield
    set_simd_level(before)


def make(restart_input=True, slots=70, **options):
    torch.manual_seed(4)
    model = wm.MDNRNN(LATENT, ACTION, HIDDEN, 3, restart_input=restart_input)
    for parameter in model.lstm.parameters():
        parameter.data.mul_(2)
    return model, LSTMState(model, slots, **options)


def inputs(rng, count):
    z = rng.standard_normal((count, LATENT), np.float32)
    return z, rng.uniform(-1, 1, (count, ACTION)).astype(np.float32), rng.random(count) < 0.2


@pytest.mark.parametrize("name", simd_levels())
def test_every_level_is_the_lstm(name):
    set_simd_level(name)
    model, memory = make()
    rng = np.random.default_rng(0)
    h = c = np.zeros((70, HIDDEN))
    for _ in range(8):
        z, actions, restart = inputs(rng, 70)
        memory.step(np.arange(70), z, actions, restart)
        h, c = h * ~restart[:, None], c * ~restart[:, None]
        h, c = remember(model, z, actions, restart, h, c)
        np.testing.assert_allclose(memory.h, h, atol=1e-5)
        np.testing.assert_allclose(memory.c, c, atol=1e-5)
    assert np.abs(memory.c).max() > 0.5


def test_without_a_restart_input_torch_agrees():
    model, memory = make(restart_input=False, slots=3)
    z, actions, _ = inputs(np.random.default_rng(1), 3)
    state = None
    for _ in range(4):
        memory.step(np.arange(3), z, actions, np.zeros(3, np.bool_))
        with torch.inference_mode():
            x = torch.cat([torch.from_numpy(z), torch.from_numpy(actions)], dim=1)[:, None]
            _, state = model.lstm(x, state)
        np.testing.assert_allclose(memory.h, state[0][0], atol=1e-5)
        np.testing.assert_allclose(memory.c, state[1][0], atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_the_others(threads):
    _, memory = make(num_threads=threads)
    _, alone = make(num_threads=1)
    rng = np.random.default_rng(2)
    for count in (70, 3, 33, 1, 70):
        slots = rng.permutation(70)[:count]
        z, actions, restart = inputs(rng, count)
        memory.step(slots, z, actions, restart)
        for row, slot in enumerate(slots):
            alone.step(slots[row : row + 1], z[row : row + 1], actions[row : row + 1], restart[row : row + 1])
            np.testing.assert_array_equal(alone.h[slot], memory.h[slot])
    np.testing.assert_array_equal(alone.h, memory.h)
    np.testing.assert_array_equal(alone.c, memory.c)


def test_forgetting():
    _, memory = make(slots=2)
    memory.step(np.arange(2), *inputs(np.random.default_rng(3), 2))
    assert np.abs(memory.h).min() > 0
    memory.reset(3)
    assert memory.h.shape == memory.c.shape == (3, HIDDEN)
    assert not memory.h.any() and not memory.c.any()


def test_bad_arguments_are_named():
    model, memory = make(slots=2)
    z, actions, restart = inputs(np.random.default_rng(5), 2)
    slots = np.arange(2)
    with pytest.raises(ValueError, match=r"^num_envs: expected"):
        LSTMState(model, 0)
    with pytest.raises(ValueError, match=r"^z: expected \(2, 5\) float32, got \(2, 4\)"):
        memory.step(slots, z[:, 1:], actions, restart)
    with pytest.raises(ValueError, match=r"^actions: expected finite numbers"):
        memory.step(slots, z, actions * np.float32(np.nan), restart)
    with pytest.raises(ValueError, match=r"^restart: expected \(2,\) bool"):
        memory.step(slots, z, actions, restart.astype(np.int32) == np.ones((2, 1)))
    assert not memory.h.any()
