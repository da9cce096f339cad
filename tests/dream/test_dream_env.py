"""The dream as an environment: the same dream as the rollout's, by Gymnasium's rules."""

from __future__ import annotations

import copy
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import pygame
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from test_dream import make_model, make_params, make_starts

from worldmodels.dream.env import DreamEnv, DreamVectorEnv
from worldmodels.dream.native import Dream
from worldmodels.dream.world_model import WorldModel, load_world_model
from worldmodels.models.controller import Controller
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model, save_model, save_tensors
from worldmodels.support.display import Window
from worldmodels.support.simd import set_simd_level, simd_level, simd_levels

MODEL = ("mdnrnn", "initial_mu", "initial_logvar")
DISPLAYS = ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR")


def arguments(**model):
    m = make_model(**model)
    return m, *make_starts(m.latent_size)


@pytest.mark.filterwarnings("ignore:.*A Box observation space m:UserWarning")  # latents have no bounds
@pytest.mark.parametrize("choices", [(), (4,), (2, 2)], ids=str)
def test_check_env(choices):
    check_env(DreamEnv(*arguments(action=4), choices=choices), skip_render_check=True)


@pytest.mark.parametrize(
    ("features", "termination"), [("z", "threshold"), ("zc", "threshold"), ("zh", "sample"), ("zch", "threshold")]
)
def test_vector_env_plays_the_rollouts_episodes(features, termination):
    """A linear controller by hand: lengths and returns are Dream.rollout's, episode by episode."""
    made = arguments(reward=True, pos_weight=3.0)
    controller = Controller(5, 7, 2, features=features)
    settings = {"temperature": 1.1, "max_steps": 30, "termination": termination}
    dream = Dream(*made, controller, **settings)
    params = make_params(dream, 1)[0].astype(np.float32)
    envs = DreamVectorEnv(*made, num_envs=37, features=features, **settings)
    want = dream.rollout(np.repeat(params[None], 37, axis=0), episodes=3, seed=11)
    observation, _ = envs.reset(seed=11)
    lengths, returns = np.zeros((37, 3), int), np.zeros((37, 3))
    episode, starting = np.zeros(37, int), np.zeros(37, bool)
    while (episode < 3).any():
        observation, reward, terminated, truncated, _ = envs.step(controller.act(params, observation))
        for i in range(37):
            if not starting[i] and episode[i] < 3:
                lengths[i, episode[i]] += 1
                returns[i, episode[i]] += reward[i]
            elif starting[i]:
                assert reward[i] == 0 and not terminated[i] and not truncated[i]
            if terminated[i] or truncated[i]:
                assert truncated[i] == (not terminated[i])
                episode[i] += 1
        starting = terminated | truncated
    np.testing.assert_array_equal(lengths, want.lengths)
    np.testing.assert_allclose(returns, want.returns, rtol=1e-4, atol=1e-4)


def test_env_is_row_0_of_the_vector_env_and_of_the_trace():
    made = arguments()
    env, envs = DreamEnv(*made), DreamVectorEnv(*made, num_envs=3)
    one, _ = env.reset(seed=4)
    many, _ = envs.reset(seed=4)
    np.testing.assert_array_equal(one, many[0])
    assert (many[0, :5] != many[1, :5]).any()
    assert (one[5:] == 0).all()
    for _ in range(5):
        one, reward, done, _, _ = env.step(np.float32([0.5, -0.5]))
        many, rewards, dones, _, _ = envs.step(np.tile(np.float32([0.5, -0.5]), (3, 1)))
        np.testing.assert_array_equal(one, many[0])
        assert reward == rewards[0] and done == dones[0]
        if done:
            break
    dream = Dream(*made, Controller(5, 7, 2))
    start = dream.trace(np.zeros(38), seed=4, max_steps=1).z[0]
    np.testing.assert_array_equal(env.reset(seed=4)[0][:5], start)


@pytest.mark.skipif("avx512_bf16" not in simd_levels(), reason="no AVX-512 BF16 here")
def test_bfloat16():
    made = arguments(done=False)
    dream = Dream(*made, Controller(5, 7, 2), precision="bfloat16")
    want = dream.trace(np.zeros(38), seed=3, max_steps=9).z[1:]
    for env in (
        DreamEnv(*made, precision="bfloat16"),
        DreamVectorEnv(*made, num_envs=7, precision="bfloat16"),
    ):
        env.reset(seed=3)
        for z in want:
            observation = env.step(np.zeros(env.action_space.shape, np.float32))[0]
            np.testing.assert_array_equal(np.atleast_2d(observation)[0, :5], z)


def test_unseeded_reset_goes_on_to_the_next_episode():
    made = arguments()
    env = DreamEnv(*made)
    dream = Dream(*made, Controller(5, 7, 2))
    env.reset(seed=8)
    for episode in (1, 2):
        want = dream.trace(np.zeros(38), seed=8, episode=episode, max_steps=1).z[0]
        np.testing.assert_array_equal(env.reset()[0][:5], want)


def test_temperature_at_reset():
    env = DreamEnv(*arguments(done=False))
    env.reset(seed=1, options={"temperature": 0.0})
    cold = env.step(np.zeros(2, np.float32))[0]
    env.reset(seed=1, options={"temperature": 2.0})
    warm = env.step(np.zeros(2, np.float32))[0]
    assert (cold[:5] != warm[:5]).any()
    with pytest.raises(ValueError, match=r"^temperature: "):
        env.reset(options={"temperature": -1})
    with pytest.raises(ValueError, match=r"^options: "):
        env.reset(options={"heat": 1})


def test_truncation_and_autoreset_mode():
    envs = DreamVectorEnv(*arguments(done=False), num_envs=2, max_steps=3)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    first, _ = envs.reset(seed=0)
    truncations = []
    for _ in range(8):
        observation, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert not terminated.any()
        truncations.append(bool(truncated.all()))
    assert truncations == [False, False, True, False, False, False, True, False]
    assert (observation[:, 5:] == 0).all() and (reward == 0).all() and (observation != first).any()


def test_same_step_autoreset_plays_the_same_episodes():
    made = arguments(done=True)
    later = DreamVectorEnv(*made, num_envs=3, max_steps=9)
    at_once = DreamVectorEnv(*made, num_envs=3, max_steps=9, autoreset_mode=AutoresetMode.SAME_STEP)
    assert at_once.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert later.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    streams = {}
    for envs in (later, at_once):
        observation, _ = envs.reset(seed=4)
        steps = [[("start", observation[i])] for i in range(3)]
        ended = np.zeros(3, bool)
        for _ in range(40):
            observation, reward, terminated, truncated, info = envs.step(np.full((3, 2), 0.25, np.float32))
            for i in range(3):
                if ended[i] and envs is later:
                    steps[i].append(("start", observation[i]))
                    continue
                over = bool(terminated[i] or truncated[i])
                last = info["final_obs"][i] if over and envs is at_once else observation[i]
                steps[i].append((reward[i], last))
                if over and envs is at_once:
                    assert info["_final_obs"][i] and info["_final_info"][i] and info["final_info"] == {}
                    steps[i].append(("start", observation[i]))
            if envs is at_once and "_final_obs" in info:
                assert (info["_final_obs"] == (terminated | truncated)).all()
                assert (info["final_obs"][~info["_final_obs"]] == 0).all()
            ended = (terminated | truncated) & ~ended
        streams[envs] = steps
    starts = 0
    for one, other in zip(streams[later], streams[at_once], strict=True):
        for (reward, observation), (reward_too, observation_too) in zip(one, other, strict=False):
            assert reward == reward_too and (observation == observation_too).all()
            starts += isinstance(reward, str)
    assert starts > 6
    with pytest.raises(
        ValueError, match=r"^autoreset_mode: expected one of NEXT_STEP, SAME_STEP, DISABLED, got 'later'"
    ):
        DreamVectorEnv(*made, autoreset_mode="later")


def test_spaces():
    made = arguments(latent=4, action=3)
    envs = DreamVectorEnv(*made, num_envs=6, features="zh", action_low=[-1, 0, 0])
    assert envs.single_action_space.low.tolist() == [-1, 0, 0]
    assert envs.observation_space.shape == (6, 11) and envs.action_space.shape == (6, 3)
    observation, info = envs.reset(seed=0)
    assert observation in envs.observation_space and info == {}


def test_the_spec_is_json():
    settings = {"world": "takecover", "temperature": 1.1, "features": "z", "max_steps": 9, "render_mode": "rgb_array"}
    env = gymnasium.make("worldmodels/Dream-v0", **settings)
    spec = EnvSpec.from_json(env.spec.to_json())
    assert spec == env.spec and spec.kwargs == settings
    check_same(gymnasium.make(spec), env)
    envs = gymnasium.make_vec("worldmodels/Dream-v0", num_envs=3, world="takecover", termination="threshold")
    spec = EnvSpec.from_json(envs.spec.to_json())
    again = gymnasium.make_vec(spec, num_envs=3)
    assert isinstance(again, DreamVectorEnv)
    check_same(again, envs)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_with_its_wrappers_goes_on_with_the_episode(duplicate):
    env = gymnasium.make("worldmodels/Dream-v0", world="takecover", render_mode="rgb_array", max_episode_steps=7)
    env.reset(seed=1)
    for _ in range(3):
        env.step(env.action_space.sample())
    other = duplicate(env)
    assert other.spec == env.spec
    for action in np.linspace(-1, 1, 4, dtype=np.float32)[:, None]:
        for mine, copied in zip(env.step(action), other.step(action), strict=True):
            np.testing.assert_array_equal(mine, copied)
        np.testing.assert_array_equal(env.render(), other.render())
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


def test_registered():
    from worldmodels.envs.registration import register

    register()
    made = dict(zip(MODEL, arguments(), strict=True))
    env = gymnasium.make("worldmodels/Dream-v0", **made)
    assert env.reset(seed=0)[0].shape == (19,)
    envs = gymnasium.make_vec("worldmodels/Dream-v0", num_envs=4, vectorization_mode="vector_entry_point", **made)
    assert isinstance(envs.unwrapped, DreamVectorEnv) and envs.reset(seed=0)[0].shape == (4, 19)


def test_errors():
    made = arguments()
    env = DreamEnv(*made)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2, np.float32))
    env.reset(seed=0)
    bad = (
        (ValueError, r"expected \(2,\) float32, got \(3,\) float32", np.zeros(3, np.float32)),
        (ValueError, r"expected finite numbers, got nan at flat index 0", np.float32([np.nan, 0])),
        (ValueError, r"expected an array, got rows of different lengths", [[1.0], [1.0, 2.0]]),
        (TypeError, r"expected an array, Can't call numpy\(\) on Tensor", torch.zeros(2).requires_grad_()),
    )
    envs = DreamVectorEnv(*made, num_envs=1)
    envs.reset(seed=0)
    for error, message, action in bad:
        with pytest.raises(error, match=f"^action: {message}"):
            env.step(action)
        with pytest.raises(error, match=r"^actions: expected "):
            envs.step(action)
    discrete = DreamEnv(*made, choices=(2,))
    discrete.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action: expected \(\) int64, got \(1,\) int64"):
        discrete.step(np.array([1]))
    with pytest.raises(ValueError, match=r"^features: "):
        DreamEnv(*made, features="hz")
    with pytest.raises(ValueError, match=r"^num_envs: "):
        DreamVectorEnv(*made, num_envs=0)
    for bad in ([0, 0, 0], 2, np.nan, "a", None, np.inf, 1e300, [0, np.inf]):
        with pytest.raises(ValueError, match=r"^action_low: expected "):
            DreamVectorEnv(*made, action_low=bad, action_high=np.inf if bad != 2 else 1)
    for bad in ("a", -np.inf, [-np.inf, 1]):
        with pytest.raises(ValueError, match=r"^action_high: expected "):
            DreamVectorEnv(*made, action_low=-np.inf, action_high=bad)
    for bad in (2, "2", None, [[2]], (2.0,)):
        with pytest.raises(ValueError, match=r"^choices: expected integers of at least 2 that add up to action_size"):
            DreamEnv(*made, choices=bad)


# Actions


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
@pytest.mark.parametrize(
    ("low", "high"), [(-1, 1), ([-1, 0], [0.5, 1]), (-np.inf, [1, np.inf]), ([0, -np.inf], np.inf), (0.25, 0.25)]
)
def test_actions_are_clipped_to_the_action_space(dtype, low, high):
    made = arguments(done=False)
    bounds = {"action_low": low, "action_high": high}
    given = np.array([[-7, 3], [1, -2], [0, 9]], dtype)
    free = DreamVectorEnv(*made, num_envs=3, action_low=-np.inf, action_high=np.inf)
    envs = DreamVectorEnv(*made, num_envs=3, **bounds)
    env = DreamEnv(*made, **bounds)
    for each in (free, envs, env):
        each.reset(seed=5)
    within = np.clip(given.astype(np.float64), envs.single_action_space.low, envs.single_action_space.high)
    for _ in range(3):
        want = free.step(within.astype(np.float32))[0]
        np.testing.assert_array_equal(envs.step(given)[0], want)
        np.testing.assert_array_equal(env.step(given[0])[0], want[0])


def test_numbers_beyond_float32_are_clipped_where_there_is_a_bound():
    made = arguments(done=False)
    env = DreamEnv(*made, action_low=[-1, -np.inf])
    one = env.reset(seed=0)[0], env.step(np.array([1e300, 1.0]))[0]
    other = env.reset(seed=0)[0], env.step(np.array([1.0, 1.0], np.float32))[0]
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"^action: expected finite numbers, got -inf"):
        env.step(np.array([1.0, -1e300]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_that_are_not_finite_are_refused(bad, dtype):
    envs = DreamVectorEnv(*arguments(done=False), num_envs=2)
    before, _ = envs.reset(seed=0)
    given = np.zeros((2, 2), dtype)
    given[1, 0] = bad
    with pytest.raises(ValueError, match=rf"^actions: expected finite numbers, got {bad} at flat index 2"):
        envs.step(given)
    np.testing.assert_array_equal(envs.reset(seed=0)[0], before)
    with pytest.raises(ValueError, match=r"^actions: expected \(2, 2\) float32, got \(2, 2\) bool"):
        envs.step(np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match=r"^actions: expected \(2, 2\) float32, got \(2, 3\) int64"):
        envs.step(np.zeros((2, 3), np.int64))


# Discrete actions


@pytest.mark.parametrize(("choices", "space"), [((4,), Discrete(4)), ([2, 3, 18], MultiDiscrete([2, 3, 18]))])
def test_discrete_actions_are_one_hot_vectors_of_m(choices, space):
    made = arguments(action=sum(choices), done=False)
    env, envs = DreamEnv(*made, choices=choices), DreamVectorEnv(*made, num_envs=3, choices=choices)
    continuous = DreamVectorEnv(*made, num_envs=3)
    assert env.action_space == envs.single_action_space == space
    for each in (env, envs, continuous):
        each.reset(seed=5)
    rng = np.random.default_rng(0)
    for dtype in (np.int64, np.int32, np.uint8, np.uint64):
        taken = rng.integers(0, choices, (3, len(choices))).astype(dtype)
        vectors = [np.concatenate([np.eye(n)[i] for n, i in zip(choices, row, strict=True)]) for row in taken]
        want = continuous.step(np.stack(vectors).astype(np.float32))[0]
        given = taken[:, 0] if len(choices) == 1 else taken
        np.testing.assert_array_equal(envs.step(given)[0], want)
        np.testing.assert_array_equal(env.step(given[0])[0], want[0])
    envs.step(envs.action_space.sample())


def test_a_controller_of_discrete_actions_plays_the_rollout():
    made = arguments(action=18, done=False, reward=True)
    controller = Controller(5, 7, 18, squash="argmax", choices=(18,))
    dream, env = Dream(*made, controller, max_steps=9), DreamEnv(*made, choices=controller.choices)
    params = make_params(dream, 1)[0] * 4
    observation, total = env.reset(seed=2)[0], 0.0
    for _ in range(9):
        observation, reward, *_ = env.step(int(controller.act(params, observation).argmax()))
        total += reward
    assert total == pytest.approx(dream.rollout(params[None], 1, seed=2).returns[0, 0], rel=1e-4)


@pytest.mark.parametrize(
    ("choices", "given", "message"),
    [
        ((4,), [4, 0], "expected 0 to 3, got 4 at flat index 0"),
        ((4,), [0, -1], "expected 0 to 3, got -1 at flat index 1"),
        ((4,), [1.0, 1.0], "expected (2,) int64, got (2,) float64"),
        ((4,), [[1], [1]], "expected (2,) int64, got (2, 1) int64"),
        ((4,), [True, False], "expected (2,) int64, got (2,) bool"),
        ((2, 2), [[1, 1], [0, 2]], "expected 0 to 1, got 2 at flat index 3"),
        ((2, 2), [1, 1], "expected (2, 2) int64, got (2,) int64"),
    ],
)
def test_values_that_do_not_fit_are_refused(choices, given, message):
    envs = DreamVectorEnv(*arguments(action=4, done=False), num_envs=2, choices=choices)
    before, _ = envs.reset(seed=0)
    with pytest.raises(ValueError, match=f"^actions: {re.escape(message)}"):
        envs.step(np.array(given))
    np.testing.assert_array_equal(envs.reset(seed=0)[0], before)


@pytest.mark.parametrize("make", [DreamEnv, DreamVectorEnv])
def test_choices_that_do_not_fit_are_refused(make):
    made = arguments(action=4)
    with pytest.raises(ValueError, match=r"^choices: expected integers of at least 2 that add up to action_size, 4"):
        make(*made, choices=(3,))
    with pytest.raises(ValueError, match=r"^action_low: expected its default, -1\.0, as choices are given, got 0"):
        make(*made, choices=(4,), action_low=0)
    with pytest.raises(ValueError, match=r"^action_high: expected its default, 1\.0, as choices are given, got \["):
        make(*made, choices=(4,), action_high=[1, 1])


# Seeds, masks and modes of the vector environment


@pytest.mark.parametrize("name", simd_levels())
@pytest.mark.parametrize("num_envs", [1, 3, 37])
@pytest.mark.parametrize("termination", ["threshold", "sample"])
def test_seeds_of_their_own_play_what_single_environments_play(name, num_envs, termination):
    before = simd_level()
    set_simd_level(name)
    try:
        made = arguments(pos_weight=2.0)
        settings = {"max_steps": 7, "temperature": 1.2, "termination": termination}
        envs = DreamVectorEnv(*made, num_envs=num_envs, **settings)
        seeds = [int(seed) for seed in np.random.default_rng(num_envs).integers(0, 2**63, num_envs)]
        seeds[0] = 2**64 - 1
        singles = [DreamEnv(*made, **settings) for _ in seeds]
        observation, _ = envs.reset(seed=tuple(seeds))
        want = np.stack([env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)])
        np.testing.assert_array_equal(observation, want)
        over = np.zeros(num_envs, bool)
        for _ in range(20):  # with autoresets
            action = np.full((num_envs, 2), 0.4, np.float32)
            observation, reward, terminated, truncated, _ = envs.step(action)
            for i, env in enumerate(singles):
                one = (env.reset()[0], 0.0, False, False) if over[i] else env.step(action[i])[:4]
                np.testing.assert_array_equal(observation[i], one[0])
                assert (reward[i], terminated[i], truncated[i]) == one[1:]
            over = terminated | truncated
    finally:
        set_simd_level(before)


def test_a_seed_of_none_keeps_the_one_there_is():
    """As in Gymnasium's own: the environment continues with its generator."""
    envs, singles = DreamVectorEnv(*arguments(), num_envs=3), [DreamEnv(*arguments()) for _ in range(3)]
    envs.reset(seed=[1, 2, 3])
    for seed, single in enumerate(singles, 1):
        single.reset(seed=seed)
    for seeds in ([None] * 3, [None, 7, None], [None] * 3):
        observations, _ = envs.reset(seed=seeds)
        want = [single.reset(seed=seed)[0] for seed, single in zip(seeds, singles, strict=True)]
        np.testing.assert_array_equal(observations, np.stack(want))


def test_a_seed_of_none_is_a_fresh_one_where_there_is_none():
    envs = DreamVectorEnv(*arguments(), num_envs=3)
    first, _ = envs.reset(seed=[4, None, 4])
    again, _ = envs.reset(seed=[4, None, 4])
    np.testing.assert_array_equal(first[[0, 0, 2]], again[[0, 2, 0]])
    assert (first[1] != again[1]).any() and (first[1] != first[0]).any()
    np.testing.assert_array_equal(envs.reset(seed=np.array([4, 5, 6], np.uint64))[0][0], first[0])
    envs.reset(seed=9)
    assert envs.np_random_seed == 9
    drawn, _ = envs.reset(seed=[None] * 3)
    envs.reset(seed=9)
    np.testing.assert_array_equal(envs.reset(seed=[None] * 3)[0], drawn)


@pytest.mark.parametrize(
    ("seed", "error"),
    [
        ([1], ValueError),
        ([1, 2, 3], ValueError),
        ([1, -1], ValueError),
        ([1, 2**64], ValueError),
        ([1, 2.5], TypeError),
        ([1, True], TypeError),
        ([1, "2"], TypeError),
        ("12", TypeError),
        (np.zeros((2, 2), int), ValueError),
        (np.zeros(2), TypeError),
        (-1, ValueError),
        (2**64, ValueError),
        (1.5, TypeError),
        ({3: "x", 4: "y"}, TypeError),
        ({3, 4}, TypeError),
    ],
)
def test_seeds_that_do_not_fit(seed, error):
    envs = DreamVectorEnv(*arguments(), num_envs=2)
    envs.reset(seed=1)
    with pytest.raises(error, match=r"^seed: expected"):
        envs.reset(seed=seed)
    assert envs.np_random_seed == 1
    start = envs.reset(seed=1)[0]
    with pytest.raises(error, match=r"^seed: expected"):
        envs.reset(seed=seed, options={"temperature": 5.0})
    np.testing.assert_array_equal(envs.reset(seed=1)[0], start)


def test_a_mask_resets_some_environments():
    made = arguments(done=False)
    envs, twin = (DreamVectorEnv(*made, num_envs=4, max_steps=4) for _ in range(2))
    action = np.full((4, 2), 0.3, np.float32)
    for each in (envs, twin):
        each.reset(seed=2)
        each.step(action)
    before = envs.step(action)[0]
    twin.step(action)
    mask = np.array([True, False, True, False])
    options = {"reset_mask": mask, "temperature": 0.5}
    after, info = envs.reset(options=options)
    assert info == {} and set(options) == {"reset_mask", "temperature"}
    np.testing.assert_array_equal(after[~mask], before[~mask])
    np.testing.assert_array_equal(after[mask], twin.reset()[0][mask])  # the next episode of each
    truncations = []
    for _ in range(5):
        truncations.append(envs.step(action)[3].tolist())
    assert truncations == [[False] * 4, [False, True] * 2, [False] * 4, [True, False] * 2, [False] * 4]


def test_a_mask_with_seeds():
    made = arguments()
    envs = DreamVectorEnv(*made, num_envs=3)
    envs.reset(seed=3)
    whole = envs.reset(seed=8)[0]
    envs.reset(seed=3)
    before = envs.step(np.zeros((3, 2), np.float32))[0]
    mask = np.array([False, True, True])
    after, _ = envs.reset(seed=8, options={"reset_mask": mask})
    np.testing.assert_array_equal(after, np.where(mask[:, None], whole, before))  # candidates 1 and 2 of seed 8
    after, _ = envs.reset(seed=[1, 6, None], options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(after[1], DreamEnv(*made).reset(seed=6)[0])
    np.testing.assert_array_equal(after[[0, 2]], np.where(mask[:, None], whole, before)[[0, 2]])


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        ([True, False], TypeError),
        (np.array([1, 0]), TypeError),
        (np.ones(3, bool), ValueError),
        (np.ones((2, 1), bool), ValueError),
        (np.zeros(2, bool), ValueError),
        (None, TypeError),
    ],
)
def test_masks_that_do_not_fit(mask, error):
    envs = DreamVectorEnv(*arguments(), num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(error, match=r"^reset_mask: expected"):
        envs.reset(options={"reset_mask": mask})
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"^reset_mask: "):
        DreamVectorEnv(*arguments(), num_envs=2).reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ValueError, match=r"^options: expected only 'temperature', got 'reset_mask'"):
        DreamEnv(*arguments()).reset(options={"reset_mask": np.ones(1, bool)})


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.DISABLED.value])
def test_without_autoreset_an_ended_environment_is_reset_by_mask(mode):
    made = arguments(done=False)
    envs = DreamVectorEnv(*made, num_envs=3, max_steps=2, autoreset_mode=mode)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    action = np.zeros((3, 2), np.float32)
    envs.reset(seed=[1, 2, 3])
    envs.step(action)
    envs.reset(options={"reset_mask": np.array([False, False, True])})
    last, _, _, truncated, info = envs.step(action)
    assert truncated.tolist() == [True, True, False] and info == {}
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"environments \[0, 1\] have ended"):
        envs.step(action)
    after, _ = envs.reset(options={"reset_mask": truncated})
    np.testing.assert_array_equal(after[2], last[2])
    single = DreamEnv(*made)
    single.reset(seed=1)
    np.testing.assert_array_equal(after[0], single.reset()[0])
    assert envs.step(action)[3].tolist() == [False, False, True]


@pytest.mark.parametrize(("most", "wanted"), [({"max_episode_steps": 5}, 5), ({"max_episode_steps": 9}, 6)])
def test_the_smaller_limit_of_steps_counts(most, wanted):
    made = dict(zip(MODEL, arguments(done=False), strict=True))
    settings = {"vectorization_mode": "vector_entry_point", **made}
    envs = gymnasium.make_vec("worldmodels/Dream-v0", num_envs=2, max_steps=6, **most, **settings)
    envs.reset(seed=0)
    lengths = [bool(envs.step(np.zeros((2, 2), np.float32))[3].all()) for _ in range(6)].index(True) + 1
    assert lengths == wanted
    for bad, error in ((0, ValueError), (-1, ValueError), (2.5, TypeError), (2**31, ValueError)):
        with pytest.raises(error, match=r"^max_episode_steps: expected"):
            DreamVectorEnv(**made, max_episode_steps=bad)


def test_conventions_of_vector_environments():
    envs = DreamVectorEnv(*arguments(), num_envs=3)
    assert envs.render_mode is None and not envs.closed and envs.unwrapped is envs
    assert envs.single_action_space.shape == (2,) and envs.single_observation_space.shape == (19,)
    envs.action_space.seed(1)
    sampled = envs.action_space.sample()
    envs.action_space.seed(1)
    np.testing.assert_array_equal(envs.action_space.sample(), sampled)
    envs.reset(seed=7)
    twin = DreamVectorEnv(*arguments(), num_envs=3)
    twin.reset(seed=np.int64(7))
    assert envs.np_random_seed == twin.np_random_seed == 7
    assert envs.np_random.integers(2**32) == twin.np_random.integers(2**32)
    _, reward, terminated, truncated, _ = envs.step(sampled)
    assert reward.dtype == np.float32 and terminated.dtype == truncated.dtype == np.bool_
    envs.close()
    assert envs.closed
    assert repr(twin) == (
        "DreamVectorEnv(num_envs=3, latent_size=5, hidden_size=7, action_size=2, temperature=1.0, max_steps=2100, "
        "precision='float32')"
    )


def run_folder(path, *, latents=5, vae=5):
    """A run folder with M, its initial states and, unless ``vae`` is None, a V of so many latents."""
    model, mu, logvar = arguments(latent=latents)
    save_model(path / "rnn" / "rnn.safetensors", model)
    tensors = {"mu": torch.from_numpy(mu), "logvar": torch.from_numpy(logvar)}
    save_tensors(path / "rnn" / "initial.safetensors", tensors, {})
    if vae is not None:
        torch.manual_seed(0)
        save_model(path / "vae" / "vae.safetensors", ConvVAE(vae))
    return WorldModel(model, mu, logvar)


def observations(env, steps=5):
    """Observations, rewards and ends of an episode's first steps."""
    found = [env.reset(seed=3)[0]]
    actions = np.linspace(-1, 1, steps * env.action_space.shape[-1], dtype=np.float32).reshape(steps, -1)
    for action in actions:
        found += env.step(np.broadcast_to(action, env.action_space.shape))[:4]
    return found


def check_same(one, other):
    for mine, theirs in zip(observations(one), observations(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("settings", [{}, {"world": "takecover"}])
def test_a_pretrained_world_model(settings):
    """Its name is enough, and it is the default; termination is sampled, as rewards of single steps have no mean."""
    model = load_world_model("takecover")
    wanted = DreamEnv(*model, termination="sample")
    check_same(DreamEnv(**settings), wanted)
    made = gymnasium.make("worldmodels/Dream-v0", **settings)
    check_same(made, wanted)
    arguments = made.unwrapped._dreams._model._arguments
    assert arguments["termination"] == "sample"
    assert arguments["done_pos_weight"] == model.mdnrnn.done_pos_weight == 10
    threshold = DreamEnv(termination="threshold", **settings)
    assert threshold._dreams._model._arguments["termination"] == "threshold"
    check_same(threshold, DreamEnv(*model))
    envs = gymnasium.make_vec("worldmodels/Dream-v0", num_envs=3, **settings)
    assert isinstance(envs, DreamVectorEnv)
    check_same(envs, DreamVectorEnv(*model, num_envs=3, termination="sample"))


@pytest.mark.parametrize("kind", [str, Path])
def test_the_world_model_of_a_run_folder(tmp_path, kind):
    model = run_folder(tmp_path)
    for world in (kind(tmp_path), model):
        check_same(DreamEnv(world=world), DreamEnv(*model))
        check_same(DreamVectorEnv(world=world, num_envs=2), DreamVectorEnv(*model, num_envs=2))
        assert DreamEnv(world=world)._dreams._model._arguments["termination"] == "threshold"
        sampled = DreamEnv(world=world, termination="sample")._dreams._model._arguments
        assert (sampled["termination"], sampled["done_pos_weight"]) == ("sample", 1)


def test_one_world_model_is_given(tmp_path):
    model, mu, logvar = arguments()
    with pytest.raises(ValueError, match=r"^world: expected None, as mdnrnn is given, got 'takecover'"):
        DreamEnv(model, mu, logvar, world="takecover")
    with pytest.raises(ValueError, match=r"^world: expected None, as initial_logvar is given, got "):
        DreamVectorEnv(initial_logvar=logvar, world=tmp_path)
    with pytest.raises(ValueError, match=r"^initial_mu: expected an array, as mdnrnn is given, got None"):
        DreamEnv(model)
    with pytest.raises(ValueError, match=r"^initial_logvar: expected an array, as mdnrnn is given, got None"):
        DreamVectorEnv(model, mu)
    with pytest.raises(ValueError, match=r"^mdnrnn: expected an MDNRNN, as initial_mu is given, got None"):
        DreamEnv(initial_mu=mu, initial_logvar=logvar)
    with pytest.raises(
        ValueError, match=r"^world: expected carracing, takecover, .*, got 'takecove'; did you mean 'takecover'\?"
    ):
        DreamEnv(world="takecove")
    with pytest.raises(TypeError, match=r"^world: expected a name, a run folder or a WorldModel, got 3"):
        DreamEnv(world=3)
    with pytest.raises(FileNotFoundError, match=r"rnn\.safetensors: no such file"):
        DreamEnv(world=tmp_path)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'temprature'"):
        DreamEnv(model, mu, logvar, temprature=1.0)


@pytest.mark.parametrize("make", [DreamEnv, DreamVectorEnv])
def test_terminations_of_an_environment(make):
    wanted = r"^termination: expected threshold or sample \(an environment has no survival weights\), got 'expected'"
    with pytest.raises(ValueError, match=wanted):
        make(world="takecover", termination="expected")
    with pytest.raises(ValueError, match=r"^termination: expected threshold or sample, got 'chance'"):
        make(*arguments(), termination="chance")
    with pytest.raises(
        ValueError, match=r"^termination: expected threshold, as mdnrnn has no termination head, got sample"
    ):
        make(*arguments(done=False), termination="sample")


def check_reconstructions(frames, vae, latents):
    """The arithmetic of a batch of another size may round otherwise."""
    wanted = vae.decode(torch.from_numpy(latents)).detach().permute(0, 2, 3, 1).numpy() * 255
    assert frames.shape == (len(latents), 64, 64, 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(frames, wanted, atol=0.501)


@pytest.mark.parametrize("features", ["zch", "z"])
def test_rendering_reconstructs_the_current_latents(tmp_path, features, no_screen):
    run_folder(tmp_path)
    vae = load_model(tmp_path / "vae" / "vae.safetensors", ConvVAE)
    env = gymnasium.make("worldmodels/Dream-v0", world=tmp_path, features=features, render_mode="rgb_array")
    assert env.render_mode == "rgb_array" and env.metadata["render_modes"] == ["human", "rgb_array"]
    observation, _ = env.reset(seed=1)
    for _ in range(3):
        check_reconstructions(env.render()[None], vae, observation[None, :5])
        observation = env.step(env.action_space.sample())[0]
    other = copy.deepcopy(env.unwrapped)
    np.testing.assert_array_equal(other.render(), env.render())
    other = pickle.loads(pickle.dumps(env.unwrapped))
    np.testing.assert_array_equal(other.render(), env.render())
    assert DreamEnv(world=tmp_path).render() is None


def test_rendering_a_vector_gives_a_frame_of_every_environment(tmp_path):
    run_folder(tmp_path)
    vae = load_model(tmp_path / "vae" / "vae.safetensors", ConvVAE)
    envs = gymnasium.make_vec("worldmodels/Dream-v0", num_envs=3, world=tmp_path, render_mode="rgb_array")
    assert envs.render_mode == "rgb_array"
    observation, _ = envs.reset(seed=1)
    for _ in range(3):
        frames = envs.render()
        assert isinstance(frames, tuple) and len(frames) == 3
        check_reconstructions(np.stack(frames), vae, observation[:, :5])
        observation = envs.step(envs.action_space.sample())[0]
    assert DreamVectorEnv(world=tmp_path).render() is None


@pytest.mark.filterwarnings("ignore:.*A Box observation space m:UserWarning")  # latents have no bounds
@pytest.mark.parametrize("display", [True, False])
def test_check_env_with_rendering(monkeypatch, display):
    """Every render mode of the metadata is tried."""
    for name in DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gymnasium.make("worldmodels/Dream-v0", world="takecover", render_mode="rgb_array")
    modes = ["human", "rgb_array"] if display or sys.platform != "linux" else ["rgb_array"]
    assert env.metadata["render_modes"] == modes
    check_env(env.unwrapped)


@pytest.mark.parametrize("make", [DreamEnv, DreamVectorEnv])
def test_rendering_needs_v(tmp_path, make):
    model = run_folder(tmp_path / "none", vae=None)
    for given in ({"world": model}, model._asdict()):
        with pytest.raises(ValueError, match=r"^render_mode: expected None, as frames need V: .*, got 'rgb_array'"):
            make(**given, render_mode="rgb_array")
    with pytest.raises(ValueError, match=r"^render_mode: expected None, as there is no .*vae\.safetensors, got 'rgb_"):
        make(world=tmp_path / "none", render_mode="rgb_array")
    assert make(world=tmp_path / "none").metadata["render_modes"] == []
    run_folder(tmp_path / "other", vae=4)
    with pytest.raises(ValueError, match=r"vae\.safetensors: expected V with 5 latents, as M has, got 4"):
        make(world=tmp_path / "other", render_mode="rgb_array")
    known = {DreamEnv: "'human' or 'rgb_array'", DreamVectorEnv: "'rgb_array'"}[make]
    with pytest.raises(ValueError, match=rf"^render_mode: expected None or {known}, got 'ansi'"):
        make(world=tmp_path / "other", render_mode="ansi")
    run_folder(tmp_path / "good")
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"^call reset before render"):
        make(world=tmp_path / "good", render_mode="rgb_array").render()


@pytest.fixture
def no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    yield
    pygame.display.quit()


def shown():
    """The picture in the window, (64, 64, 3)."""
    screen = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    assert screen.shape == (512, 512, 3)
    small = screen[::8, ::8]
    np.testing.assert_array_equal(small.repeat(8, 0).repeat(8, 1), screen)
    return small


def test_the_window_shows_every_step(tmp_path, monkeypatch, no_screen):
    run_folder(tmp_path)
    waits = []
    monkeypatch.setattr(Window, "wait", lambda self, frames_per_second: waits.append(frames_per_second))
    env = gymnasium.make("worldmodels/Dream-v0", world=tmp_path, render_mode="human", max_steps=50)
    pictures = gymnasium.make("worldmodels/Dream-v0", world=tmp_path, render_mode="rgb_array", max_steps=50)
    assert env.render_mode == "human"
    assert env.reset(seed=1)[0].tolist() == pictures.reset(seed=1)[0].tolist()
    for _ in range(3):
        np.testing.assert_array_equal(shown(), pictures.render())
        assert env.render() is None
        action = env.action_space.sample()
        env.step(action)
        pictures.step(action)
    assert waits == [35] * 4
    copies = copy.deepcopy(env.unwrapped), pickle.loads(pickle.dumps(env.unwrapped))
    env.close()
    assert pygame.display.get_surface() is None
    pictures.step(action)
    for one in copies:
        one.step(action)
        np.testing.assert_array_equal(shown(), pictures.render())
    copies[0].close()
    copies[1].step(action)  # opens it again
    pictures.step(action)
    np.testing.assert_array_equal(shown(), pictures.render())


def test_two_environments_share_the_window(tmp_path, no_screen):
    run_folder(tmp_path)
    first, second = (DreamEnv(world=tmp_path, render_mode="human") for _ in range(2))
    first.reset(seed=1)
    picture = shown()
    second.reset(seed=2)
    assert (shown() != picture).any()
    first.reset(seed=1)
    np.testing.assert_array_equal(shown(), picture)
    first.close()
    second.close()


def test_a_window_needs_a_display(tmp_path, monkeypatch):
    run_folder(tmp_path)
    for name in DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match=r"^render_mode='human': no display; use render_mode='rgb_array'$"):
        DreamEnv(world=tmp_path, render_mode="human")


def test_frames_in_a_window_take_their_time(monkeypatch):
    """Four pictures at 35 a second, the third of which is late."""
    clock, slept = [10.0], []

    def sleep(seconds):
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("time.sleep", sleep)
    window = Window("")
    for spent in (0.0, 0.02, 0.05, 0.01):
        clock[0] += spent
        window.wait(35)
    np.testing.assert_allclose(slept, [0, 1 / 35 - 0.02, 0, 1 / 35 - 0.01], atol=1e-9)


@pytest.mark.parametrize("make", [DreamEnv, lambda **given: DreamVectorEnv(**given, num_envs=1)])
def test_the_temperature_may_change_at_any_step(make):
    """A change at step 3 changes the steps from there on; a dream at that temperature from the start has others."""

    def play(temperature, changed):
        env = make(world="takecover", temperature=temperature)
        env.reset(seed=1)
        observations = []
        for step in range(6):
            if step == 3:
                env.temperature = changed
            action = np.zeros(1, np.float32) if make is DreamEnv else np.zeros((1, 1), np.float32)
            observations.append(np.ravel(env.step(action)[0]))
        assert env.temperature == changed
        return observations

    usual, changed = play(1.0, 1.0), play(1.0, 0.1)
    same = [(one == other).all() for one, other in zip(usual, changed, strict=True)]
    assert same == [True] * 3 + [False] * 3
    env = make(world="takecover")
    with pytest.raises(ValueError, match=r"^temperature: expected a number >= 0, got -1"):
        env.temperature = -1
    assert env.temperature == 1.0


def test_the_temperature_may_change_through_wrappers():
    env = gymnasium.make("worldmodels/Dream-v0", world="takecover")
    env.set_wrapper_attr("temperature", 0.5)
    assert env.unwrapped.temperature == env.get_wrapper_attr("temperature") == 0.5


def record_video(folder):
    """Record an episode by Gymnasium's wrapper; returns its frames."""
    env = gymnasium.make("worldmodels/Dream-v0", world="takecover", render_mode="rgb_array", max_steps=8)
    env = gymnasium.wrappers.RecordVideo(env, str(folder))
    env.reset(seed=1)
    frames, over = [env.unwrapped.render()], False
    while not over:
        _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        frames.append(env.unwrapped.render())
        over = terminated or truncated
    env.close()
    assert len(frames) == 9
    return frames


def test_gymnasium_records_every_frame(tmp_path, monkeypatch):
    """A stand-in for moviepy, which is no dependency, keeps what Gymnasium's wrapper passes to it."""
    clips = []

    class Clip:
        def __init__(self, frames, fps):
            clips.append((frames, fps))

        def write_videofile(self, path, logger):
            Path(path).touch()

        def close(self):
            pass

    for name in ("moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip"):
        monkeypatch.setitem(sys.modules, name, module := ModuleType(name))
    module.ImageSequenceClip = Clip
    frames = record_video(tmp_path / "videos")
    ((recorded, fps),) = clips
    np.testing.assert_array_equal(recorded, frames)
    assert fps == 35 and len(list((tmp_path / "videos").iterdir())) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # moviepy leaves pipes open
def test_a_dream_is_recorded_as_a_video(tmp_path):
    moviepy = pytest.importorskip("moviepy", reason="Gymnasium's RecordVideo needs moviepy")
    frames = record_video(tmp_path / "videos")
    (video,) = (tmp_path / "videos").glob("*.mp4")
    with moviepy.VideoFileClip(str(video)) as clip:
        assert (clip.fps, clip.size, clip.n_frames) == (35, [64, 64], len(frames))
        last = clip.get_frame((len(frames) - 1) / 35)
    assert np.abs(last.astype(int) - frames[-1]).mean() < 10  # a lossy codec


@pytest.mark.parametrize(
    ("settings", "longest"),
    [({}, 2100), ({"world": "carracing"}, 1000), ({"world": "carracing", "max_steps": 3}, 3)],
)
def test_the_longest_episode_is_that_of_the_pretrained_world_model(settings, longest):
    assert DreamEnv(**settings)._dreams.max_steps == longest
    assert f"max_steps={longest}" in repr(DreamVectorEnv(**settings))
    assert "max_steps=2," in repr(DreamVectorEnv(**settings, max_episode_steps=2))


class Interrupting:
    """Native stepper whose ``step`` ends with SIGINT, as if it had arrived during the call, or fails before it."""

    def __init__(self, stepper, fails=False):
        self._stepper, self._fails = stepper, fails

    def __getattr__(self, name):
        return getattr(self._stepper, name)

    def step(self, *arguments):
        if self._fails:
            raise RuntimeError("several threads in a forked process")
        found = self._stepper.step(*arguments)
        signal.raise_signal(signal.SIGINT)
        return found


@pytest.mark.parametrize("make", [DreamEnv, DreamVectorEnv])
@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_interrupted_step_is_complete(make, at):
    """In the middle of an episode, at its last step, and at the step that starts the next one."""
    env, other = (make(*arguments(done=False), max_steps=3) for _ in range(2))
    action = np.full(env.action_space.shape, 0.25, np.float32)
    for one in (env, other):
        one.reset(seed=1)
    stepper = env._dreams._stepper
    for step in range(1, 7):
        want = other.step(action)
        if step == at:
            env._dreams._stepper = Interrupting(stepper, fails=True)
            with pytest.raises(RuntimeError, match="several threads"):
                env.step(action)
            env._dreams._stepper = Interrupting(stepper)
            with pytest.raises(KeyboardInterrupt):
                env.step(action)
            env._dreams._stepper = stepper
            continue
        for mine, theirs in zip(env.step(action), want, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_forked_workers_make_their_own_dreams():
    """Gymnasium's AsyncVectorEnv makes one in the parent too; PyTorch has threads there."""
    code = """
import gymnasium, torch, worldmodels
torch.set_num_threads(2)
envs = gymnasium.make_vec("worldmodels/Dream-v0", num_envs=2, vectorization_mode="async", world="takecover")
observations, _ = envs.reset(seed=[3, 4])
one = gymnasium.make("worldmodels/Dream-v0", world="takecover")
assert (observations[1] == one.reset(seed=4)[0]).all()
envs.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
