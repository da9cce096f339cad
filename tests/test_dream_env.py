"""The dream as an environment: the same dream as the rollout's, by Gymnasium's rules."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from test_dream import make_model, make_params, make_starts
from worldmodels.dream import Dream, simd_levels
from worldmodels.envs.dream import DreamEnv, DreamVectorEnv
from worldmodels.models.controller import Controller


def arguments(**model):
    m = make_model(**model)
    return m, *make_starts(m.latent_size)


@pytest.mark.filterwarnings("ignore:.*A Box observation space m:UserWarning")  # latents have no bounds
def test_check_env():
    check_env(DreamEnv(*arguments()), skip_render_check=True)


@pytest.mark.parametrize(("features", "done_weight"), [("z", None), ("zc", None), ("zh", 3), ("zch", None)])
def test_vector_env_plays_the_rollouts_episodes(features, done_weight):
    """A linear controller by hand: lengths and returns are Dream.rollout's, episode by episode."""
    made = arguments(reward=True)
    controller = Controller(5, 7, 2, features=features)
    settings = {"temperature": 1.1, "max_steps": 30, "done_weight": done_weight}
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
                    assert info["_final_obs"][i]
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
    with pytest.raises(ValueError, match=r"^autoreset_mode: "):
        DreamVectorEnv(*made, autoreset_mode=AutoresetMode.DISABLED)


def test_spaces():
    made = arguments(latent=4, action=3)
    envs = DreamVectorEnv(*made, num_envs=6, features="zh", action_low=[-1, 0, 0])
    assert envs.single_action_space.low.tolist() == [-1, 0, 0]
    assert envs.observation_space.shape == (6, 11) and envs.action_space.shape == (6, 3)
    observation, info = envs.reset(seed=0)
    assert observation in envs.observation_space and info == {}


def test_registered():
    from worldmodels.envs import register

    register()
    made = dict(zip(["mdnrnn", "initial_mu", "initial_logvar"], arguments(), strict=True))
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
    with pytest.raises(ValueError, match=r"^actions: expected \(1, 2\) float32, got \(1, 3\)"):
        env.step(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"^actions: expected finite"):
        env.step(np.float32([np.nan, 0]))
    with pytest.raises(ValueError, match=r"^features: "):
        DreamEnv(*made, features="hz")
    with pytest.raises(ValueError, match=r"^num_envs: "):
        DreamVectorEnv(*made, num_envs=0)
    for bad in ({"action_low": [0, 0, 0]}, {"action_low": 2}, {"action_low": np.nan}):
        with pytest.raises(ValueError, match=r"^action_low: "):
            DreamVectorEnv(*made, **bad)
