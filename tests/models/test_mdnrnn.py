"""M: the paper's sizes, TensorFlow's BasicLSTM in NumPy, restarts, and the losses in NumPy."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import norm

import worldmodels as wm
from conftest import make_mdnrnn
from worldmodels.models.mdnrnn import LOGSTD_RANGE, MDNOutput, done_loss, mdn_loss


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def basic_lstm(model, inputs, restart):
    """TensorFlow's BasicLSTM and the head, (T, O), h, c: a kernel over [input, h]; gates i, j, f, o; forget bias 1."""

    def gates(parameter):  # torch stores i, f, g, o
        i, f, g, o = np.split(parameter.detach().numpy().astype(np.float64), 4)
        return np.concatenate([i, g, f, o])

    kernel = np.concatenate([gates(model.lstm.weight_ih_l0), gates(model.lstm.weight_hh_l0)], axis=1).T
    bias = gates(model.lstm.bias_ih_l0)
    h = c = np.zeros(model.hidden_size)
    outputs = []
    for x, first in zip(inputs, restart, strict=True):
        if first:
            h = c = np.zeros(model.hidden_size)
        i, j, f, o = np.split(np.concatenate([x, h]) @ kernel + bias, 4)
        c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        outputs.append(model.head.weight.detach().numpy() @ h + model.head.bias.detach().numpy())
    return np.stack(outputs), h, c


def sequences(model, batch=3, steps=9, seed=0):
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.normal(size=(batch, steps, model.latent_size)).astype(np.float32))
    action = torch.from_numpy(rng.uniform(-1, 1, (batch, steps, model.action_size)).astype(np.float32))
    restart = torch.from_numpy((rng.uniform(size=(batch, steps)) < 0.25).astype(np.float32))
    restart[:, 0] = 1
    return z, action, restart


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (wm.MDNRNN(32, 3, 256), 422_368),
        (wm.MDNRNN(64, 1, 512, restart_input=True, done_head=True), 1_678_785),
    ],
)
def test_trainable_parameters_count_what_the_paper_counts(model, count):
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("weight", [1, 0.25, 10.0, np.float32(3), np.int64(2)])
def test_the_positive_class_weight_is_part_of_the_config(weight):
    assert wm.MDNRNN(4, 1, 8).config["done_pos_weight"] == 1.0
    model = wm.MDNRNN(4, 1, 8, done_head=True, done_pos_weight=weight)
    found = model.config["done_pos_weight"]
    assert type(found) is float and found == model.done_pos_weight == weight
    assert wm.MDNRNN(**model.config).config == model.config
    assert json.loads(json.dumps(model.config)) == model.config


@pytest.mark.parametrize(
    "bad", [0, -1.0, float("nan"), float("inf"), -float("inf"), pytest.param(10**400, id="10**400")]
)
def test_a_positive_class_weight_is_a_finite_number_above_0(bad):
    with pytest.raises(ValueError, match=r"^done_pos_weight: expected a (finite )?number"):
        wm.MDNRNN(4, 1, 8, done_head=True, done_pos_weight=bad)


@pytest.mark.parametrize("bad", ["much", "3", None, [3.0], 1j])
def test_a_positive_class_weight_is_a_number(bad):
    with pytest.raises(TypeError, match=r"^done_pos_weight: expected a number, got "):
        wm.MDNRNN(4, 1, 8, done_head=True, done_pos_weight=bad)


@pytest.mark.parametrize("restart_input", [True, False])
@pytest.mark.parametrize(("done", "reward"), [(True, True), (True, False), (False, True), (False, False)])
@torch.no_grad()
def test_forward_is_tensorflows_basic_lstm(restart_input, done, reward):
    model = make_mdnrnn(4, 6, mixtures=3, restart_input=restart_input, done_head=done, reward_head=reward)
    z, action, restart = sequences(model)
    assert restart[:, 1:].any()
    out, (h, c) = model(z, action, restart)
    for row in range(len(z)):
        flag = restart[row, :, None] if restart_input else restart[row, :, None][:, :0]
        inputs = torch.cat([z[row], action[row], flag], dim=1).numpy().astype(np.float64)
        head, last_h, last_c = basic_lstm(model, inputs, restart[row].numpy())
        np.testing.assert_allclose(h[0, row], last_h, atol=1e-5)
        np.testing.assert_allclose(c[0, row], last_c, atol=1e-5)
        if done:
            np.testing.assert_allclose(out.done_logit[row], head[:, 0], atol=1e-5)
        if reward:
            np.testing.assert_allclose(out.reward[row], head[:, int(done)], atol=1e-5)
        mixture = head[:, done + reward :].reshape(-1, 4, 9)  # a row per dimension: 3 logits, 3 means, 3 log stds
        logits = mixture[..., :3]
        logmix = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        np.testing.assert_allclose(out.logmix[row], logmix, atol=1e-5)
        np.testing.assert_allclose(out.mean[row], mixture[..., 3:6], atol=1e-5)
        np.testing.assert_allclose(out.logstd[row], mixture[..., 6:], atol=1e-5)
    assert (out.done_logit is None) == (not done)
    assert (out.reward is None) == (not reward)


@torch.no_grad()
def test_restart_in_mid_sequence_equals_episodes_on_their_own():
    model = make_mdnrnn()
    z, action, _ = sequences(model, batch=2, steps=10)
    restart = torch.zeros(2, 10)
    restart[:, 0] = restart[0, 4] = restart[1, 7] = restart[1, 8] = 1
    together, state = model(z, action, restart)
    for row, cuts in enumerate([[0, 4, 10], [0, 7, 8, 10]]):
        for start, stop in itertools.pairwise(cuts):
            alone, last = model(
                z[row : row + 1, start:stop], action[row : row + 1, start:stop], restart[row : row + 1, start:stop]
            )
            for a, b in zip(alone, together, strict=True):
                if a is not None:
                    np.testing.assert_allclose(a[0], b[row, start:stop], atol=1e-6)
        np.testing.assert_allclose(last[0][0, 0], state[0][0, row], atol=1e-6)
        np.testing.assert_allclose(last[1][0, 0], state[1][0, row], atol=1e-6)


@torch.no_grad()
def test_state_is_carried_and_zeroed_at_a_restart():
    model = make_mdnrnn()
    z, action, _ = sequences(model)
    whole, last = model(z, action)
    first, state = model(z[:, :4], action[:, :4])
    second, end = model(z[:, 4:], action[:, 4:], None, state)
    np.testing.assert_allclose(torch.cat([first.mean, second.mean], dim=1), whole.mean, atol=1e-6)
    np.testing.assert_allclose(end[1], last[1], atol=1e-6)

    forgotten, _ = model(z[:, 4:], action[:, 4:], torch.eye(5)[:1].expand(3, 5), state)
    fresh, _ = model(z[:, 4:], action[:, 4:], torch.eye(5)[:1].expand(3, 5), None)
    assert torch.equal(forgotten.mean, fresh.mean)
    assert not torch.allclose(forgotten.mean, second.mean)


@torch.no_grad()
def test_restart_flag_is_an_input_only_where_asked_for():
    for wanted in (True, False):
        model = make_mdnrnn(restart_input=wanted)
        z, action, _ = sequences(model, steps=1)
        flagged, _ = model(z, action, torch.ones(3, 1))
        plain, _ = model(z, action, torch.zeros(3, 1))
        assert torch.equal(flagged.mean, plain.mean) != wanted


def test_forget_bias_is_one_frozen_and_outside_the_stored_bias():
    model = wm.MDNRNN(4, 1, 3)
    assert model.lstm.bias_hh_l0.tolist() == [0] * 3 + [1] * 3 + [0] * 6
    assert model.lstm.bias_ih_l0.tolist() == [0] * 12
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    z, action, restart = sequences(model)
    mdn_loss(model(z, action, restart)[0], z).backward()
    optimizer.step()
    assert model.lstm.bias_hh_l0.tolist() == [0] * 3 + [1] * 3 + [0] * 6
    assert (model.lstm.bias_ih_l0 != 0).all()


@torch.no_grad()
def test_mixture_is_normalised_and_its_spread_is_clamped():
    model = make_mdnrnn(mixtures=3)
    model.head.weight *= 100
    out, _ = model(*sequences(model))
    np.testing.assert_allclose(out.logmix.double().exp().sum(dim=-1), 1, atol=1e-5)
    assert out.logstd.min() == LOGSTD_RANGE[0]
    assert out.logstd.max() == LOGSTD_RANGE[1]


def random_output(batch=2, steps=4, latent_size=3, mixtures=5, seed=0):
    rng = np.random.default_rng(seed)
    logits, mean, logstd = rng.normal(size=(3, batch, steps, latent_size, mixtures))
    logmix = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    arrays = logmix, mean, logstd
    return arrays, MDNOutput(*(torch.tensor(a, dtype=torch.float32) for a in arrays), None, None)


def test_mdn_loss_equals_the_density_of_the_mixture():
    (logmix, mean, logstd), out = random_output()
    rng = np.random.default_rng(1)
    z, valid = rng.normal(size=(2, 4, 3)), np.array([[1, 1, 0, 1], [0, 1, 1, 1]], np.float32)
    density = (np.exp(logmix) * norm.pdf(z[..., None], mean, np.exp(logstd))).sum(axis=-1)
    expected = -np.log(density)  # (B, T, Z)
    z = torch.tensor(z, dtype=torch.float32)
    assert mdn_loss(out, z).item() == pytest.approx(expected.mean(), rel=1e-5)
    masked = mdn_loss(out, z, torch.from_numpy(valid))
    assert masked.item() == pytest.approx(expected[valid > 0].mean(), rel=1e-5)
    assert mdn_loss(out, z, torch.zeros(2, 4)).item() == 0


@pytest.mark.parametrize("weight", [10.0, 1.0, 3.5])
def test_done_loss_equals_numpy(weight):
    rng = np.random.default_rng(0)
    logit, done = rng.normal(0, 3, (2, 6)), (rng.uniform(size=(2, 6)) < 0.4).astype(np.float32)
    valid = (rng.uniform(size=(2, 6)) < 0.6).astype(np.float32)
    probability = sigmoid(logit)
    expected = np.where(done > 0, -weight * np.log(probability), -np.log(1 - probability))
    tensors = torch.tensor(logit, dtype=torch.float32), torch.from_numpy(done)
    assert done_loss(*tensors, weight).item() == pytest.approx(expected.mean(), rel=1e-5)
    masked = done_loss(*tensors, weight, torch.from_numpy(valid))
    assert masked.item() == pytest.approx(expected[valid > 0].mean(), rel=1e-5)
    assert done_loss(*tensors, weight, torch.zeros(2, 6)).item() == 0


def test_done_weighs_ten_unless_told_otherwise():
    zero = torch.zeros(1, 1)
    assert done_loss(zero, zero + 1).item() == pytest.approx(10 * done_loss(zero, zero).item())


@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e6])
def test_no_batch_gives_nan(scale):
    model = make_mdnrnn()
    with torch.no_grad():
        model.head.weight *= scale
        model.head.bias *= scale
    z, action, restart = sequences(model)
    out, _ = model(1e4 * z, action, restart)
    loss = mdn_loss(out, 1e4 * z) + done_loss(out.done_logit, restart)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.skipif("avx512_bf16" not in wm.simd_levels(), reason="no AVX-512 BF16 here")
def test_bfloat16_autocast_stays_close_and_trains():
    model = make_mdnrnn(8, 32)
    z, action, restart = sequences(model)
    exact, _ = model(z, action, restart)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = model(z, action, restart)
    assert out.mean.dtype == out.logmix.dtype == out.done_logit.dtype == torch.float32
    assert not torch.equal(out.mean, exact.mean)
    np.testing.assert_allclose(out.mean.detach(), exact.mean.detach(), atol=0.15)
    np.testing.assert_allclose(out.logmix.exp().sum(dim=-1).detach(), 1, atol=1e-5)
    mdn_loss(out, z).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["latent_size", "action_size", "hidden_size", "mixtures"])
@pytest.mark.parametrize("value", [0, -3, 1.5, True])
def test_bad_sizes_are_named(name, value):
    sizes = {"latent_size": 4, "action_size": 1, "hidden_size": 8, "mixtures": 5, name: value}
    with pytest.raises(ValueError, match=rf"^{name}: expected an integer of at least 1, got"):
        wm.MDNRNN(**sizes)


@pytest.mark.parametrize("name", ["restart_input", "done_head", "reward_head"])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_bad_flags_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected a bool, got {value!r}"):
        wm.MDNRNN(4, 1, 8, **{name: value})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 5), (2, 3, 1), None, None), r"z: expected \(B, T, 4\)"),
        (((2, 4), (2, 3, 1), None, None), r"z: expected"),
        (((2, 0, 4), (2, 0, 1), None, None), r"z: expected .* T > 0"),
        (((2, 3, 4), (2, 3, 2), None, None), r"action: expected \(2, 3, 1\), got \(2, 3, 2\)"),
        (((2, 3, 4), (2, 3, 1), (2, 3, 1), None), r"restart: expected \(2, 3\)"),
        (((2, 3, 4), (2, 3, 1), (2, 3), ((1, 2, 8), (1, 3, 8))), r"state c: expected \(1, 2, 8\)"),
        (((2, 3, 4), (2, 3, 1), (2, 3), ((2, 8), (1, 2, 8))), r"state h: expected \(1, 2, 8\)"),
    ],
)
def test_bad_shapes_are_named(shapes, message):
    z, action, restart, state = shapes
    with pytest.raises(ValueError, match=message):
        make_mdnrnn()(
            torch.zeros(z),
            torch.zeros(action),
            None if restart is None else torch.zeros(restart),
            None if state is None else tuple(torch.zeros(part) for part in state),
        )
