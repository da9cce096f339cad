"""The native dream against the NumPy reference, torch, and itself."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from reference import Draws, ReferenceDream
from worldmodels import _core, pretrained
from worldmodels.dream.native import Dream
from worldmodels.models.agent import load_controller
from worldmodels.models.controller import Controller
from worldmodels.models.decoder import Decoder
from worldmodels.models.encoder import Encoder
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.support import cpu
from worldmodels.support.simd import set_simd_level, simd_level, simd_levels

FUSED = [level for level in simd_levels() if level != "baseline"]


@pytest.fixture(autouse=True)
def _same_level_after():
    before = simd_level()
    yield
    set_simd_level(before)


@pytest.fixture(params=simd_levels())
def level(request):
    set_simd_level(request.param)
    return request.param


def make_model(
    latent=5, action=2, hidden=7, mixtures=3, *, restart=True, done=True, reward=False, pos_weight=1.0, seed=1
):
    """A random M whose gates, mixtures and done logit are far from trivial."""
    torch.manual_seed(seed)
    heads = {"done_head": done, "reward_head": reward, "done_pos_weight": pos_weight}
    model = MDNRNN(latent, action, hidden, mixtures, restart_input=restart, **heads)
    with torch.no_grad():
        for p in (
            model.lstm.weight_ih_l0,
            model.lstm.weight_hh_l0,
            model.lstm.bias_ih_l0,
            model.head.weight,
            model.head.bias,
        ):
            p.copy_(torch.randn_like(p) * 0.5)
        if done:
            model.head.weight[0] *= 3
            model.head.bias[0] = -1.0
    return model


def make_starts(latent, rows=11, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, latent)).astype(np.float32), rng.normal(-1, 0.5, (rows, latent)).astype(np.float32)


def make_dream(model, *, temperature=1.0, max_steps=2100, **controller):
    c = Controller(model.latent_size, model.hidden_size, model.action_size, **controller)
    mu, logvar = make_starts(model.latent_size)
    return Dream(model, mu, logvar, c, temperature=temperature, max_steps=max_steps), ReferenceDream(
        model, mu, logvar, c, temperature
    )


def make_params(dream, count, seed=2):
    return np.random.default_rng(seed).normal(size=(count, dream.controller.size)) * 0.5


def check_against_reference(dream, reference, params, *, seed=3, steps=12, episodes=(0, 1, 2), tolerance=1e-5):
    """A trace equals the reference's episode; its rollout has the same length and return."""
    result = dream.rollout(params[None], episodes=max(episodes) + 1, seed=seed, max_steps=steps)
    for episode in episodes:
        want = reference.play(params, seed, 0, episode, steps)
        got = dream.trace(params, episode=episode, seed=seed, max_steps=steps)
        assert got.reward.shape == (len(want.reward),)
        assert result.lengths[0, episode] == len(want.reward)
        np.testing.assert_allclose(got.z, np.array(want.z), atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(got.action, np.array(want.action), atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(got.reward, np.array(want.reward), atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(result.returns[0, episode], np.sum(want.reward), atol=20 * tolerance, rtol=tolerance)
        if want.done_logit:
            np.testing.assert_allclose(got.done_logit, want.done_logit, atol=tolerance, rtol=tolerance)
        else:
            assert got.done_logit is None


def test_single_steps_equal_reference(level):
    dream, reference = make_dream(make_model(64, 1, 50, 5), features="zch")
    check_against_reference(dream, reference, make_params(dream, 1)[0], steps=1, episodes=range(20))


@pytest.mark.parametrize("features", ["z", "zh", "zc", "zch"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hidden_units", [0, 6])
def test_controllers_equal_reference(level, features, bias, hidden_units):
    dream, reference = make_dream(make_model(), features=features, bias=bias, hidden_units=hidden_units)
    check_against_reference(dream, reference, make_params(dream, 1)[0], steps=4, tolerance=5e-5)


@pytest.mark.parametrize("hidden_units", [0, 5])
def test_carracing_squash_equals_reference(level, hidden_units):
    model = make_model(6, 3, 9, 5, restart=False, done=False)
    dream, reference = make_dream(model, features="zh", bias=True, hidden_units=hidden_units, squash="carracing")
    params = make_params(dream, 1)[0] * 4
    check_against_reference(dream, reference, params, steps=4, tolerance=1e-4)
    actions = dream.trace(params, max_steps=50).action
    assert actions[:, 0].min() < 0
    assert (actions[:, 1:] >= 0).all() and (actions <= 1).all()


CHOICES = [(2,), (3,), (18,), (2, 2, 2), (5, 2, 18), (2, 40)]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("hidden_units", [0, 6])
@pytest.mark.parametrize("features", ["z", "zch"])
def test_discrete_actions_equal_reference(level, choices, hidden_units, features):
    shape = {"features": features, "bias": features == "z", "hidden_units": hidden_units}
    dream, reference = make_dream(make_model(6, sum(choices), 9, 3), squash="argmax", choices=choices, **shape)
    params = make_params(dream, 1)[0] * 4
    check_against_reference(dream, reference, params, steps=6, tolerance=1e-4)
    actions = np.concatenate([dream.trace(params, episode=episode, max_steps=60).action for episode in range(20)])
    parts = np.split(actions, np.cumsum(choices)[:-1], axis=1)
    assert set(np.unique(actions)) == {0, 1}
    assert all((part.sum(axis=1) == 1).all() for part in parts)
    assert max(len(np.unique(part.argmax(axis=1))) for part in parts) > 1


def test_discrete_actions_from_burned_in_states_equal_reference(level):
    model, (mu, logvar) = make_model(5, 4, 7, 3), make_starts(5)
    controller = Controller(5, 7, 4, features="zch", squash="argmax", choices=(4,))
    h, c = np.random.default_rng(5).normal(size=(2, 11, 7)).astype(np.float32)
    h[::2], c[::2] = 0, 0
    dream = Dream(model, mu, logvar, controller, initial_h=h, initial_c=c, termination="sample")
    reference = ReferenceDream(model, mu, logvar, controller, 1.0, initial_h=h, initial_c=c, termination="sample")
    check_against_reference(dream, reference, make_params(dream, 1)[0] * 4, episodes=range(8), tolerance=1e-4)


def test_the_first_of_equal_outputs_is_chosen(level):
    """Outputs of zero, and pairs of equal rows of weights."""
    dream, _ = make_dream(make_model(6, 8, 9, 3), squash="argmax", choices=(3, 5))
    assert (dream.trace(np.zeros(dream.controller.size), max_steps=9).action == [1, 0, 0, 1, 0, 0, 0, 0]).all()
    weights = dream.controller.weights(make_params(dream, 1)[0] * 4)[0].copy()
    weights[[1, 5, 7]] = weights[[0, 4, 6]]
    actions = dream.trace(weights.ravel(), max_steps=200).action
    assert not actions[:, [1, 5, 7]].any() and actions[:, [0, 2]].any(axis=0).all()
    assert actions[:, [3, 4, 6]].any(axis=0).sum() > 1


def test_discrete_actions_do_not_saturate(level):
    """Outputs whose tanh would round to 1 are compared as they are."""
    dream, _ = make_dream(make_model(5, 3, 7, 3), features="z", bias=True, squash="argmax", choices=(3,))
    weights, bias = np.zeros((3, 5), np.float32), np.array([20.0, 40.0, 30.0], np.float32)
    params = dream.controller.flatten([weights, bias])
    assert (dream.trace(params, max_steps=5).action == [0, 1, 0]).all()


@pytest.mark.parametrize("choices", [(18,), (2, 3, 5)], ids=str)
def test_bits_with_discrete_actions_depend_on_no_lanes_threads_or_fused_level(choices):
    shape = {"bias": True, "hidden_units": 5, "squash": "argmax", "choices": choices}
    dream, _ = make_dream(make_model(9, sum(choices), 40, 5, reward=True, done=False), max_steps=20, **shape)
    params = make_params(dream, 33)
    for fused in FUSED[:1]:
        set_simd_level(fused)
    whole = dream.rollout(params, episodes=1, num_threads=1).returns
    for count in (1, 2, 3, 8, 17):
        np.testing.assert_array_equal(dream.rollout(params[:count], episodes=1).returns, whole[:count])
    np.testing.assert_array_equal(dream.rollout(params, episodes=1, num_threads=3).returns, whole)
    for other in FUSED:
        set_simd_level(other)
        np.testing.assert_array_equal(dream.rollout(params, episodes=1).returns, whole)


def test_discrete_actions_are_those_of_the_controller(level):
    """Of a trace's own features, in NumPy and in the dream."""
    dream, _ = make_dream(make_model(6, 18, 9, 3, done=False), features="z", squash="argmax", choices=(18,))
    params = make_params(dream, 5) * 4
    for row in params:
        trace = dream.trace(row, max_steps=100)
        np.testing.assert_array_equal(trace.action, dream.controller.act(row, trace.z[:-1]))


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_heads_equal_reference(level, done, reward, restart):
    dream, reference = make_dream(make_model(done=done, reward=reward, restart=restart))
    check_against_reference(dream, reference, make_params(dream, 1)[0], steps=6, tolerance=5e-5)


@pytest.mark.parametrize(
    ("latent", "hidden", "mixtures"),
    [
        (1, 1, 1),
        (2, 4, 1),
        (5, 7, 3),
        (3, 16, 4),
        (7, 17, 5),
        (4, 12, 6),
        (5, 13, 8),
        (3, 10, 9),
        (2, 5, 17),
        (33, 31, 2),
    ],
)
def test_odd_sizes_equal_reference(level, latent, hidden, mixtures):
    dream, reference = make_dream(make_model(latent, 1, hidden, mixtures))
    check_against_reference(dream, reference, make_params(dream, 1)[0], steps=5, tolerance=5e-5)


def test_whole_rollouts_have_the_references_lengths(level):
    dream, reference = make_dream(make_model(), temperature=1.15)
    params = make_params(dream, 3)
    result = dream.rollout(params, episodes=8, seed=5, max_steps=20)
    want = [[len(reference.play(p, 5, i, e, 20).reward) for e in range(8)] for i, p in enumerate(params)]
    np.testing.assert_array_equal(result.lengths, want)
    assert 1 < result.lengths.mean() < 20 and result.lengths.max() == 20
    np.testing.assert_array_equal(result.returns, result.lengths.astype(np.float32))


def test_gates_forget_bias_and_head_equal_torch(level):
    """A trace replayed through MDNRNN.forward: the heads are torch's, z is a mean of its mixture."""
    model = make_model(6, 2, 19, 4, reward=True)
    assert model.lstm.bias_hh_l0[19:38].eq(1).all()
    with torch.no_grad():
        model.head.bias[0] = -30
    dream, _ = make_dream(model, temperature=0.0)
    trace = dream.trace(make_params(dream, 1)[0], max_steps=9)
    restart = torch.zeros(1, 9)
    restart[0, 0] = 1
    with torch.no_grad():
        out, _ = model(torch.from_numpy(trace.z[None, :-1]), torch.from_numpy(trace.action[None]), restart)
    np.testing.assert_allclose(trace.done_logit, out.done_logit[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(trace.reward, out.reward[0], rtol=1e-5, atol=1e-5)
    means = out.mean[0].gather(-1, out.logmix[0].argmax(-1, keepdim=True))[..., 0]
    np.testing.assert_allclose(trace.z[1:], means, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logstd", [-50.0, 50.0])
def test_logstd_is_clamped_as_in_torch(level, logstd):
    model = make_model(4, 1, 6, 1, done=False)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.view(4, 3)[:] = torch.tensor([0.0, 0.0, logstd])
    dream, _ = make_dream(model)
    z = dream.trace(make_params(dream, 1)[0], max_steps=1, seed=9).z[1]
    normal, _ = Draws(9, 0, 0).step(1, 4)
    out, _ = model(torch.zeros(1, 1, 4), torch.zeros(1, 1, 1))
    np.testing.assert_allclose(z, normal * np.exp(out.logstd[0, 0, :, 0].detach().numpy()), rtol=3e-6)


def test_bits_do_not_depend_on_how_many_lanes_are_filled(level):
    """Each number of lanes picks its kernels: few lanes, half a vector, one, two."""
    dream, _ = make_dream(make_model(9, 2, 40, 5, reward=True, done=False), max_steps=6)
    params = make_params(dream, 33)
    whole = dream.rollout(params, episodes=1, num_threads=1).returns
    for lanes in range(1, 33):
        part = dream.rollout(params[:lanes], episodes=1, num_threads=1).returns
        np.testing.assert_array_equal(part, whole[:lanes])


def test_bits_do_not_depend_on_threads_or_batch(level):
    dream, _ = make_dream(make_model(reward=True), temperature=1.2, max_steps=60)
    params = make_params(dream, 13)
    whole = dream.rollout(params, episodes=9, seed=7, num_threads=1)
    assert len(np.unique(whole.lengths)) > 5
    for threads in (2, 3, 8):
        again = dream.rollout(params, episodes=9, seed=7, num_threads=threads)
        np.testing.assert_array_equal(again.returns, whole.returns)
        np.testing.assert_array_equal(again.lengths, whole.lengths)
    corner = dream.rollout(params[:3], episodes=4, seed=7, num_threads=2)
    np.testing.assert_array_equal(corner.returns, whole.returns[:3, :4])
    np.testing.assert_array_equal(corner.lengths, whole.lengths[:3, :4])
    trace = dream.trace(params[0], episode=5, seed=7)
    assert len(trace.reward) == whole.lengths[0, 5]
    assert np.float32(trace.reward.astype(np.float64).sum()) == whole.returns[0, 5]


def uneven_dream():
    """A small M whose episodes terminate with one probability at every step, after 260 steps on average."""
    model = MDNRNN(4, 1, 40, restart_input=True, done_head=True, reward_head=False)
    with torch.no_grad():
        model.head.weight[0] = 0
        model.head.bias[0] = -np.log(299.0)
    c = Controller(4, 40, 1)
    return Dream(model, *make_starts(4), c, termination="sample", max_steps=700)


@pytest.mark.parametrize("threads", [16, 64, 128])
def test_few_lanes_are_idle_with_many_threads(level, threads):
    """64 controllers x 16 episodes of uneven lengths: threads exchange lanes."""
    dream = uneven_dream()
    params = make_params(dream, 64)
    want = dream.rollout(params, num_threads=1)
    assert want.lengths.min() < 20 and 200 < want.lengths.mean() < 350 and want.lengths.max() == 700
    result, computed = dream.rollout_with_stats(params, num_threads=threads)
    np.testing.assert_array_equal(result.lengths, want.lengths)
    np.testing.assert_array_equal(result.returns, want.returns)
    assert result.lengths.sum() <= computed < result.lengths.sum() / 0.9


@pytest.mark.slow
@pytest.mark.parametrize("threads", [16, 64, 128])
def test_few_lanes_are_idle_in_a_generation_with_many_threads(threads):
    controller, mean, _ = load_controller(pretrained.folder("takecover") / "evolve" / "controller.safetensors")
    dream = Dream.pretrained("takecover", controller=controller)
    params = mean + np.random.default_rng(0).normal(size=(64, controller.size)) * 0.1
    result, computed = dream.rollout_with_stats(params, max_steps=500, num_threads=threads)
    assert result.lengths.sum() <= computed < result.lengths.sum() / 0.9


@pytest.mark.parametrize("mixtures", [3, 5, 7, 9])
def test_fused_levels_give_the_same_bits(mixtures):
    dream, _ = make_dream(make_model(11, 2, 20, mixtures, reward=True, done=False), temperature=1.1)
    params = make_params(dream, 5)
    results = []
    for name in FUSED:
        set_simd_level(name)
        trace = dream.trace(params[0], max_steps=40)
        results.append([dream.rollout(params, episodes=7, max_steps=40).returns.tobytes(), trace.z.tobytes()])
    assert all(result == results[0] for result in results)


def test_common_random_numbers_leave_the_candidate_out():
    dream, _ = make_dream(make_model(), max_steps=50)
    params = np.repeat(make_params(dream, 1), 3, axis=0)
    same = dream.rollout(params, episodes=20, common_random_numbers=True).lengths
    assert (same == same[0]).all()
    np.testing.assert_array_equal(same[0], dream.rollout(params[:1], episodes=20).lengths[0])
    different = dream.rollout(params, episodes=20).lengths
    assert (different[0] != different[1]).any()


def test_seeds_and_episodes_differ():
    dream, _ = make_dream(make_model(done=False, reward=True), max_steps=5)
    params = make_params(dream, 4)
    first = dream.rollout(params, episodes=50, seed=1).returns
    assert len(np.unique(first)) == first.size
    assert (first != dream.rollout(params, episodes=50, seed=1 + 2**32).returns).all()
    np.testing.assert_array_equal(first, dream.rollout(params, episodes=50, seed=1).returns)


def mixture_model(logits, latent=4):
    """An M that ignores its input: component k of every dimension has mean k and no spread."""
    mixtures = len(logits)
    model = MDNRNN(latent, 1, 3, mixtures)
    with torch.no_grad():
        model.head.weight.zero_()
        bias = model.head.bias.view(latent, 3, mixtures)
        bias[:, 0] = torch.tensor(logits)
        bias[:, 1] = torch.arange(float(mixtures))
        bias[:, 2] = -8
    return model


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 1.15, 3.0])
def test_component_frequencies(level, temperature):
    logits = np.array([0.3, -1.0, 0.0, 1.2, -0.4])
    dream, _ = make_dream(mixture_model(logits.tolist()), temperature=temperature)
    z = dream.trace(make_params(dream, 1)[0], seed=17, max_steps=5000).z[1:]
    component = np.rint(z).astype(int)
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    counts = np.bincount(component.ravel(), minlength=5)
    kept = expected * counts.sum() >= 5
    chi2 = ((counts - expected * counts.sum())[kept] ** 2 / (expected[kept] * counts.sum())).sum()
    assert chi2 < 25  # 4 degrees of freedom: exceeded once in 20,000
    assert counts[~kept].sum() <= 20
    if temperature >= 1:  # each dimension draws its own: two agree as often as chance has it
        agree = (component[:, 0] == component[:, 1]).mean()
        chance = (expected**2).sum()
        assert abs(agree - chance) < 5 * np.sqrt(chance * (1 - chance) / len(component))


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0])
def test_noise_moments(level, temperature):
    model = MDNRNN(4, 1, 3, 1)
    with torch.no_grad():
        model.head.weight.zero_()
    dream, _ = make_dream(model, temperature=temperature)
    z = dream.trace(make_params(dream, 1)[0], seed=23, max_steps=20000).z[1:] / np.sqrt(temperature)
    n = z.size
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert np.abs(np.corrcoef(z.T) - np.eye(4)).max() < 5 / np.sqrt(len(z))
    assert np.abs(np.corrcoef(z[1:].T, z[:-1].T)[:4, 4:]).max() < 5 / np.sqrt(len(z))


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-30])
def test_temperature_near_zero_is_deterministic(level, temperature):
    dream, _ = make_dream(mixture_model([0.0, 2.0, 1.0]), temperature=temperature)
    z = dream.trace(make_params(dream, 1)[0], max_steps=100).z[1:]
    np.testing.assert_allclose(z, 1, atol=1e-10)


def test_starts_are_drawn_from_all_rows(level):
    model = make_model(3, 1, 4, 2)
    controller = Controller(3, 4, 1)
    mu = np.arange(8, dtype=np.float32)[:, None] * 100 + np.zeros((1, 3), np.float32)
    logvar = np.full((8, 3), 2 * np.log(0.5), np.float32)
    dream = Dream(model, mu, logvar, controller)
    params = make_params(dream, 1)[0]
    z = np.array([dream.trace(params, episode=e, max_steps=1).z[0] for e in range(4000)])
    rows = np.rint(z.mean(axis=1) / 100).astype(int)
    assert ((np.bincount(rows, minlength=8) - 500) ** 2 / 500).sum() < 30
    noise = (z - rows[:, None] * 100) / 0.5
    assert abs(noise.std() - 1) < 0.03


def test_lengths_end_with_the_step_that_is_done():
    dream, _ = make_dream(make_model(), max_steps=500)
    for episode in range(10):
        trace = dream.trace(make_params(dream, 1)[0], episode=episode)
        assert trace.z.shape == (len(trace.reward) + 1, 5)
        assert (trace.done_logit[:-1] <= 0).all()
        assert trace.done_logit[-1] > 0 or len(trace.reward) == 500


def test_float64_params_and_starts_are_converted():
    model = make_model()
    mu, logvar = make_starts(5)
    controller = Controller(5, 7, 2)
    single = Dream(model, mu, logvar, controller, max_steps=20)
    double = Dream(model, mu.astype(np.float64), np.asfortranarray(logvar.astype(np.float64)), controller, max_steps=20)
    params = make_params(single, 2).astype(np.float32)
    np.testing.assert_array_equal(
        single.rollout(params).returns, double.rollout(np.asfortranarray(params.astype(np.float64))).returns
    )


def test_result_types():
    dream, _ = make_dream(make_model())
    result = dream.rollout(make_params(dream, 3), episodes=2, max_steps=4)
    assert result.returns.shape == result.lengths.shape == (3, 2)
    assert result.returns.dtype == np.float32 and result.lengths.dtype == np.int32


@pytest.mark.usefixtures("level")
def test_starts_with_a_memory_equal_the_reference():
    """Some rows come with h and c, and without the restart flag; rows of zeros are first frames."""
    model = make_model(5, 2, 7, 3, reward=True)
    controller, (mu, logvar) = Controller(5, 7, 2), make_starts(5)
    rng = np.random.default_rng(4)
    memory = {f"initial_{key}": rng.uniform(-1, 1, (11, 7)).astype(np.float32) for key in "hc"}
    for part in memory.values():
        part[::2] = 0
    dream = Dream(model, mu, logvar, controller, **memory)
    params = make_params(dream, 1)[0]
    reference = ReferenceDream(model, mu, logvar, controller, 1.0, **memory)
    check_against_reference(dream, reference, params, episodes=range(12))
    zeros = {key: np.zeros_like(part) for key, part in memory.items()}
    plain = Dream(model, mu, logvar, controller).rollout(params[None], 12).returns
    empty = Dream(model, mu, logvar, controller, **zeros).rollout(params[None], 12).returns
    np.testing.assert_array_equal(empty, plain)
    assert np.abs(dream.rollout(params[None], 12).returns - plain).max() > 1e-3


def test_sampled_termination_equals_the_reference(level):
    model, controller, starts = make_model(pos_weight=4), Controller(5, 7, 2), make_starts(5)
    dream = Dream(model, *starts, controller, termination="sample")
    params = make_params(dream, 1)[0]
    check_against_reference(
        dream,
        ReferenceDream(model, *starts, controller, 1.0, termination="sample"),
        params,
        episodes=range(12),
        tolerance=5e-5,
    )
    by_threshold = Dream(model, *starts, controller).rollout(params[None], 12).lengths
    assert (dream.rollout(params[None], 12).lengths != by_threshold).any()


@pytest.mark.parametrize(("weight", "probability"), [(1, 0.5), (10, 0.02), (0.3, 0.2)])
def test_termination_is_sampled_with_the_probability_that_M_predicts(weight, probability):
    """With positive-class weight w, the logit of a probability p is log(w p / (1 - p)); lengths are geometric."""
    model = make_model(pos_weight=weight)
    with torch.no_grad():
        model.head.weight[0] = 0
        model.head.bias[0] = np.log(weight * probability / (1 - probability))
    dream = Dream(model, *make_starts(5), Controller(5, 7, 2), termination="sample")
    lengths = dream.rollout(np.zeros((100, dream.controller.size)), 100).lengths
    error = np.sqrt(1 - probability) / probability / 100
    assert abs(lengths.mean() - 1 / probability) < 4 * error
    first = (lengths == 1).mean()
    assert abs(first - probability) < 4 * np.sqrt(probability * (1 - probability) / 1e4)


@pytest.mark.parametrize("weight", [1, 4])
def test_expected_termination_weights_rewards_by_the_survival_probability(level, weight):
    model = make_model(reward=True, pos_weight=weight)
    dream = Dream(model, *make_starts(5), Controller(5, 7, 2), termination="expected", max_steps=300)
    params = make_params(dream, 3)
    result = dream.rollout(params, 8, seed=4)
    for row, episode in itertools.product(range(3), range(8)):
        trace = dream.trace(params[row], candidate=row, episode=episode, seed=4)
        odds = np.exp(trace.done_logit.astype(np.float64)) / weight
        survival = np.cumprod(np.concatenate([[1.0], 1 / (1 + odds)]))  # probability of surviving to each step
        assert len(trace.reward) == result.lengths[row, episode]
        assert len(trace.reward) == 300 or survival[-1] < 0.01 <= survival[-2]
        assert result.returns[row, episode] == pytest.approx((survival[:-1] * trace.reward).sum(), rel=1e-5, abs=1e-5)


def test_returns_of_expected_termination_have_the_mean_of_sampled_ones_and_a_lower_variance():
    model, controller, starts = make_model(pos_weight=4), Controller(5, 7, 2), make_starts(5)
    params = make_params(Dream(model, *starts, controller), 1)
    sampled, expected = (
        Dream(model, *starts, controller, termination=termination).rollout(params, 20_000).returns[0]
        for termination in ("sample", "expected")
    )
    error = np.sqrt((sampled.var() + expected.var()) / 20_000)
    assert abs(sampled.mean() - expected.mean()) < 4 * error + 0.01 * sampled.mean()
    assert expected.std() < 0.7 * sampled.std()


@pytest.mark.parametrize("termination", ["threshold", "sample", "expected"])
def test_nan_terminates(level, termination):
    """The first step leads to infinite latents; the sums of the second are inf - inf."""
    model = make_model(restart=False)
    with torch.no_grad():
        model.lstm.weight_ih_l0.zero_()
        model.lstm.weight_ih_l0[:, 0], model.lstm.weight_ih_l0[:, 1] = 10, -10
        model.lstm.weight_hh_l0.zero_()
        model.lstm.bias_ih_l0.fill_(20)  # h is near 0.76
        model.head.weight.fill_(3e38)
        model.head.weight[0], model.head.bias[0] = 0, -50
    start = np.zeros((3, 5), np.float32)
    controller = Controller(5, 7, 2, features="z")
    dream = Dream(model, start, start - 10, controller, termination=termination, max_steps=30)
    trace = dream.trace(np.zeros(controller.size), seed=0)
    assert trace.done_logit[0] == -50 and np.isnan(trace.done_logit[1])
    assert (dream.rollout(np.zeros((2, controller.size)), episodes=4).lengths == 2).all()


def test_expected_returns_do_not_depend_on_the_threads():
    model, controller, starts = make_model(), Controller(5, 7, 2), make_starts(5)
    dream = Dream(model, *starts, controller, termination="expected")
    params = make_params(dream, 7)
    one, two = (dream.rollout(params, 9, num_threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.returns, two.returns)
    np.testing.assert_array_equal(one.lengths, two.lengths)


DISCRETE = {"squash": "argmax", "choices": (2,)}
needs_bfloat16 = pytest.mark.skipif("avx512_bf16" not in simd_levels(), reason="no AVX-512 BF16 here")


@needs_bfloat16
@pytest.mark.parametrize("shape", [{}, DISCRETE], ids=["tanh", "argmax"])
@pytest.mark.parametrize(("latent", "hidden", "mixtures"), [(64, 50, 5), (5, 7, 3), (4, 6, 9)])
def test_bfloat16_equals_reference_with_rounded_products(latent, hidden, mixtures, shape):
    model = make_model(latent, 2, hidden, mixtures, reward=True)
    controller = Controller(latent, hidden, 2, **shape)
    starts = make_starts(latent)
    dream = Dream(model, *starts, controller, precision="bfloat16", temperature=0.0)
    reference = ReferenceDream(model, *starts, controller, 0.0, bfloat16=True)
    params = make_params(dream, 1)[0]
    errors, exact_errors = [], []
    exact = ReferenceDream(model, *starts, controller, 0.0)
    for episode in range(20):
        got = dream.trace(params, episode=episode, max_steps=1)
        for other, gaps in ((reference, errors), (exact, exact_errors)):
            want = other.play(params, 0, 0, episode, 1)
            gaps += [got.done_logit[0] - want.done_logit[0], got.reward[0] - want.reward[0]]
    assert np.abs(errors).max() < 0.02 and np.median(np.abs(errors)) < 5e-5  # a tie may round the other way
    assert 1e-5 < np.median(np.abs(exact_errors)) < 0.02


@needs_bfloat16
@pytest.mark.parametrize("shape", [{}, DISCRETE], ids=["tanh", "argmax"])
def test_bfloat16_bits_do_not_depend_on_threads_or_batch(shape):
    model = make_model(9, 2, 21, 5, reward=True)
    dream = Dream(model, *make_starts(9), Controller(9, 21, 2, **shape), precision="bfloat16", max_steps=60)
    params = make_params(dream, 13)
    whole = dream.rollout(params, episodes=9, num_threads=1)
    assert len(np.unique(whole.lengths)) > 5
    np.testing.assert_array_equal(dream.rollout(params, episodes=9, num_threads=3).returns, whole.returns)
    for candidates in (1, 2, 4, 7):
        part = dream.rollout(params[:candidates], episodes=1)
        np.testing.assert_array_equal(part.returns, whole.returns[:candidates, :1])
    assert dream.trace(params[0]).reward.astype(np.float64).sum().astype(np.float32) == whole.returns[0, 0]


@needs_bfloat16
def test_bfloat16_dreams_are_distributed_as_float32s():
    """Lengths of 4,096 episodes: the Kolmogorov-Smirnov distance is what two samples of one law have."""
    model = make_model(8, 1, 32, 5)
    lengths = {}
    for precision in ("float32", "bfloat16"):
        dream = Dream(model, *make_starts(8), Controller(8, 32, 1), precision=precision, max_steps=300)
        params = make_params(dream, 1)
        lengths[precision] = np.sort(dream.rollout(params, 4096, seed=len(precision)).lengths[0])
    grid = np.arange(301)
    gap = [np.searchsorted(lengths[p], grid, side="right") / 4096 for p in lengths]
    assert np.abs(gap[0] - gap[1]).max() < 1.95 * np.sqrt(2 / 4096)  # p = 0.001
    assert len(np.unique(lengths["float32"])) > 30


@needs_bfloat16
def test_bfloat16_needs_its_level():
    model = make_model()
    dream = Dream(model, *make_starts(5), Controller(5, 7, 2), precision="bfloat16")
    set_simd_level("avx512")
    with pytest.raises(ValueError, match=r"^precision: bfloat16 needs the SIMD level avx512_bf16, got avx512$"):
        dream.rollout(np.zeros((1, 38)))
    with pytest.raises(ValueError, match=r"^precision: bfloat16 needs"):
        Dream(model, *make_starts(5), Controller(5, 7, 2), precision="bfloat16")


BAD_ROLLOUTS = [
    ({"params": np.zeros((2, 3))}, ValueError, r"^params: expected \(P, 38\) float32, got \(2, 3\) float64$"),
    ({"params": np.zeros(38)}, ValueError, r"^params: expected \(P, 38\) float32, got \(38,\) float64$"),
    ({"params": np.zeros((0, 38))}, ValueError, "^params: "),
    ({"params": np.zeros((2, 38), int)}, ValueError, "^params: .* int64$"),
    ({"params": np.zeros((2, 38), complex)}, ValueError, "^params: "),
    ({"params": [[0.0], [0.0, 1.0]]}, ValueError, "^params: expected an array"),
    ({"params": torch.zeros(2, 38, requires_grad=True)}, ValueError, "^params: expected an array"),
    ({"params": np.full((2, 38), np.nan)}, ValueError, "^params: expected finite"),
    ({"params": np.full((2, 38), np.inf)}, ValueError, "^params: expected finite"),
    ({"params": np.full((2, 38), 1e300)}, ValueError, "^params: expected finite"),
    ({"episodes": 0}, ValueError, "^episodes: "),
    ({"episodes": -1}, ValueError, "^episodes: "),
    ({"episodes": 1.5}, TypeError, "^episodes: "),
    ({"episodes": True}, TypeError, "^episodes: "),
    ({"episodes": 2**31 - 1}, ValueError, r"^params: expected fewer than 2\*\*31 episodes"),
    ({"episodes": 2**40}, ValueError, "^episodes: "),
    ({"max_steps": 0}, ValueError, "^max_steps: "),
    ({"seed": -1}, ValueError, "^seed: "),
    ({"seed": 2**64}, ValueError, "^seed: "),
    ({"seed": 0.5}, TypeError, "^seed: "),
    ({"num_threads": 0}, ValueError, "^num_threads: "),
    ({"num_threads": "2"}, TypeError, "^num_threads: "),
    ({"common_random_numbers": 1}, TypeError, "^common_random_numbers: "),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_ROLLOUTS)
def test_bad_rollout_arguments(bad, error, message):
    dream, _ = make_dream(make_model())
    with pytest.raises(error, match=message):
        dream.rollout(**{"params": np.zeros((2, 38)), "episodes": 2, "max_steps": 2, **bad})


def test_largest_seed_is_taken():
    dream, reference = make_dream(make_model())
    check_against_reference(dream, reference, make_params(dream, 1)[0], seed=2**64 - 1, steps=2)


BAD_DREAMS = [
    (
        {"initial_mu": np.zeros((9, 4))},
        ValueError,
        r"^initial_mu: expected \(K, 5\) float32, got \(9, 4\) float64$",
    ),
    ({"initial_mu": np.zeros((0, 5))}, ValueError, "^initial_mu: "),
    (
        {"initial_logvar": np.zeros((8, 5))},
        ValueError,
        r"^initial_logvar: expected \(9, 5\) float32, got \(8, 5\)",
    ),
    ({"initial_mu": np.full((9, 5), np.nan)}, ValueError, "^initial_mu: expected finite"),
    ({"initial_logvar": np.full((9, 5), np.inf)}, ValueError, "^initial_logvar: expected finite"),
    (
        {"initial_logvar": np.full((9, 5), 178.0)},
        ValueError,
        r"^initial_logvar: expected numbers of at most 80.0, got 178.0 at flat index 0$",
    ),
    ({"initial_h": np.zeros((9, 6)), "initial_c": np.zeros((9, 7))}, ValueError, r"^initial_h: expected \(9, 7\)"),
    ({"initial_h": np.zeros((9, 7))}, ValueError, "^initial_h, initial_c: expected both or neither"),
    ({"temperature": -0.1}, ValueError, "^temperature: "),
    ({"temperature": float("nan")}, ValueError, "^temperature: "),
    ({"temperature": float("inf")}, ValueError, "^temperature: "),
    ({"temperature": "warm"}, TypeError, "^temperature: "),
    ({"max_steps": 0}, ValueError, "^max_steps: "),
    ({"controller": Controller(5, 8, 2)}, ValueError, "^controller: expected hidden_size 7"),
    ({"controller": Controller(6, 7, 2)}, ValueError, "^controller: expected latent_size 5"),
    ({"controller": Controller(5, 7, 1)}, ValueError, "^controller: expected action_size 2"),
    ({"controller": None}, TypeError, "^controller: "),
    ({"mdnrnn": None}, TypeError, "^mdnrnn: "),
    ({"precision": "float16"}, ValueError, "^precision: "),
    *(
        ({"termination": bad}, ValueError, "^termination: expected one of threshold, sample, expected, got")
        for bad in ("chance", "", "Sample", None, True, 3.0, ["sample"])
    ),
    *(
        (
            {"mdnrnn": make_model(done=False), "termination": value},
            ValueError,
            f"^termination: expected threshold, as mdnrnn has no termination head, got {value}",
        )
        for value in ("sample", "expected")
    ),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_DREAMS)
def test_bad_dream_arguments(bad, error, message):
    arguments = {
        "mdnrnn": make_model(),
        "initial_mu": np.zeros((9, 5)),
        "initial_logvar": np.zeros((9, 5)),
        "controller": Controller(5, 7, 2),
        **bad,
    }
    with pytest.raises(error, match=message):
        Dream(**arguments)


def test_nan_weights_are_refused():
    model = make_model()
    with torch.no_grad():
        model.head.weight[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"^head_weight: expected finite"):
        make_dream(model)


def test_settings_that_may_change_and_others():
    """A termination or precision that no rollout obeys is not shown."""
    dream, _ = make_dream(make_model())
    for name in ("controller", "precision", "termination"):
        with pytest.raises(AttributeError):
            setattr(dream, name, getattr(dream, name))
    for name, error, bad in (
        ("temperature", ValueError, -1),
        ("temperature", TypeError, "hot"),
        ("max_steps", ValueError, 0),
    ):
        with pytest.raises(error, match=f"^{name}: expected"):
            setattr(dream, name, bad)
    dream.temperature, dream.max_steps = 0.5, np.int64(7)
    other, _ = make_dream(make_model(), temperature=0.5)
    params = make_params(dream, 2)
    found, wanted = dream.rollout(params, 4, seed=3), other.rollout(params, 4, seed=3, max_steps=7)
    np.testing.assert_array_equal(found.returns, wanted.returns)
    assert dream.temperature == 0.5 and dream.max_steps == 7 and "max_steps=7," in repr(dream)


def test_levels():
    assert simd_levels()[0] in ("baseline", "neon")
    with pytest.raises(ValueError, match=r"^name: expected one of baseline"):
        set_simd_level("mmx")
    code = "from worldmodels._core import simd_level; print(simd_level())"
    for name in simd_levels():
        env = {**os.environ, "WORLDMODELS_SIMD": name}
        assert (
            subprocess.run(
                [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
            ).stdout.strip()
            == name
        )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "WORLDMODELS_SIMD": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0 and "WORLDMODELS_SIMD: expected one of baseline" in run.stderr


def test_two_python_threads_at_once():
    dream, _ = make_dream(make_model(32, 1, 64, 5, done=False, reward=True), max_steps=200)
    params = make_params(dream, 6)
    want = dream.rollout(params, episodes=8, num_threads=2).returns
    got = [None] * 4

    def play(i):
        got[i] = dream.rollout(params, episodes=8, num_threads=2).returns

    threads = [threading.Thread(target=play, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in got:
        np.testing.assert_array_equal(result, want)


@pytest.mark.parametrize(("hidden_units", "max_steps"), [(0, 10**6), (2000, 1)])
def test_gil_is_free_and_ctrl_c_stops(hidden_units, max_steps):
    """Another Python thread runs during a long rollout, and interrupts it; large controllers take long to start."""
    dream, _ = make_dream(make_model(64, 1, 128, 5, done=False), max_steps=max_steps, hidden_units=hidden_units)
    params = make_params(dream, 1)
    sent = []

    def interrupt():
        time.sleep(0.3)
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job may have been told to ignore it
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            dream.rollout(params, episodes=10**5, num_threads=1)
        stopped = time.process_time()
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert stopped - sent[0] < 0.5  # CPU time, which other processes take nothing from; 0.1 s is usual


@pytest.mark.parametrize("name", ["encode", "decode", "compress_frames", "multiply_add_rate"])
def test_ctrl_c_stops_long_calls(name):
    vae = ConvVAE(8)
    frames = np.tile(np.random.default_rng(0).integers(0, 9, (50, 64, 64, 3), np.uint8), (400, 1, 1, 1))
    encoder, decoder = Encoder(vae, torch.device("cpu"), num_threads=1), Decoder(vae, num_threads=1)
    call = {
        "encode": lambda: encoder(frames),
        "decode": lambda: decoder(np.zeros((8000, 8), np.float32)),
        "compress_frames": lambda: _core.compress_frames(frames),
        "multiply_add_rate": lambda: _core.multiply_add_rate(False, 1, 20.0),
    }[name]
    sent = []

    def interrupt():
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.2, interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        stopped = time.process_time()
    finally:
        signal.signal(signal.SIGINT, before)
        timer.join()
    assert stopped - sent[0] < 0.5


SIGNALS = """
import signal
import torch
from worldmodels import _core
signal.signal(signal.SIGALRM, lambda number, frame: None)
for _ in range(20):
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    _core.check_threads_usable()
    signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_signals_do_not_look_like_a_fork():
    subprocess.run([sys.executable, "-c", SIGNALS], check=True, timeout=60)


FORK = """
import json, os, sys, warnings
import torch
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/.."]
warnings.simplefilter("ignore")
torch.set_num_threads(2)
from test_dream import make_dream, make_model, make_params
dream, _ = make_dream(make_model(), max_steps=5)
params = make_params(dream, 40)
want = dream.rollout(params, num_threads=2 if sys.argv[2] == "dream" else 1).returns
if sys.argv[2] == "torch":
    torch.ones(10**6).exp()
read, write = os.pipe()
if os.fork() == 0:
    out = {"single": bool((dream.rollout(params, num_threads=1).returns == want).all())}
    try:
        dream.rollout(params, num_threads=2)
    except RuntimeError as error:
        out["error"] = str(error)
    os.write(write, json.dumps(out).encode())
    os._exit(0)
os.wait()
print(os.read(read, 10000).decode())
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.parametrize("threads_of", ["dream", "torch"])  # who used OpenMP's threads before the fork
def test_fork_is_refused(threads_of):
    run = subprocess.run(
        [sys.executable, "-c", FORK, str(Path(__file__).parent), threads_of],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    out = json.loads(run.stdout)
    assert out["single"] and "forked" in out["error"]


def test_all_available_cpus_are_the_default(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpu, "affinity", lambda: 3)
    monkeypatch.setattr(cpu, "cgroup_quota", lambda: None)
    used, real = [], _core.rollout

    def spy(*arguments, **settings):
        used.append(settings["num_threads"])
        return real(*arguments, **settings)

    monkeypatch.setattr(_core, "rollout", spy)
    dream, _ = make_dream(make_model(), max_steps=5)
    params = make_params(dream, 4)
    by_default, by_one = dream.rollout(params), dream.rollout(params, num_threads=1)
    assert used == [3, 1]
    np.testing.assert_array_equal(by_default.returns, by_one.returns)


def test_the_default_of_termination_is_threshold():
    """Also for a folder with the files of a pretrained world model, which has another default by name."""
    assert make_dream(make_model())[0].termination == "threshold"
    assert Dream.load(pretrained.folder("takecover")).termination == "threshold"
