"""worldmodels/CarRacing-v0 against Gymnasium's own game."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from PIL import Image

import worldmodels  # noqa: F401 (registers the environments)
from worldmodels.envs import car_racing
from worldmodels.envs.car_racing import CarRacingEnv

ACTIONS = np.random.default_rng(0).uniform([-1, 0, 0], [1, 1, 0.5], (8, 3)).astype(np.float32)


def play(env, seed, actions=ACTIONS):
    frame, info = env.reset(seed=seed)
    frames, rewards, positions = [frame], [], [info["position"]]
    for action in actions:
        frame, reward, terminated, truncated, info = env.step(action)
        assert not terminated and not truncated
        frames.append(frame)
        rewards.append(reward)
        positions.append(info["position"])
    return np.stack(frames), np.array(rewards), np.stack(positions)


@pytest.fixture(scope="module")
def env():
    env = gymnasium.make("worldmodels/CarRacing-v0", disable_env_checker=True).unwrapped
    yield env
    env.close()


def test_it_is_gymnasiums_game(env):
    """The top 84 rows, averaged over the area of every new pixel; the rewards are the same."""
    frames, rewards, positions = play(env, 5)
    game = gymnasium.make("CarRacing-v3", disable_env_checker=True)
    screens, paid = [game.reset(seed=5)[0]], []
    for action in ACTIONS:
        screen, reward, *_ = game.step(action)
        screens.append(screen)
        paid.append(reward)
    resized = [np.asarray(Image.fromarray(s[:84]).resize((64, 64), Image.Resampling.BILINEAR)) for s in screens]
    np.testing.assert_array_equal(frames, np.stack(resized))
    np.testing.assert_array_equal(rewards, paid)
    assert rewards.sum() > 5  # some tiles lie under the car when it starts
    np.testing.assert_allclose(positions[-1], game.unwrapped.car.hull.position, rtol=1e-6)
    game.close()


def test_the_seed_is_the_track(env):
    first, again, other = play(env, 3), play(env, 4), play(env, 3)
    np.testing.assert_array_equal(first[0], other[0])
    np.testing.assert_array_equal(first[1], other[1])
    assert (first[0] != again[0]).any()
    fresh = CarRacingEnv()
    np.testing.assert_array_equal(play(fresh, 3)[0], first[0])
    _, info = fresh.reset(seed=3)
    assert info["track"].shape[1] == 2 and len(info["track"]) > 150
    np.testing.assert_allclose(info["track"][0], info["position"], atol=3)
    fresh.close()


def test_spaces_and_limits(env, monkeypatch):
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(env.action_space.low, [-1, 0, 0])
    np.testing.assert_array_equal(env.action_space.high, [1, 1, 1])
    wild, tame = np.array([[-7, 9, -3]] * 3, np.float32), np.array([[-1, 1, 0]] * 3, np.float32)
    np.testing.assert_array_equal(play(env, 1, wild)[0], play(env, 1, tame)[0])
    monkeypatch.setattr(car_racing, "MAX_STEPS", 2)
    env.reset(seed=1)
    assert env.step(tame[0])[2:4] == (False, False)
    assert env.step(tame[0])[2:4] == (False, True)


def test_an_end_can_be_ignored(monkeypatch):
    """Outside the field, which the car is put to here."""
    monkeypatch.setattr(car_racing, "MAX_STEPS", 3)
    for ignore, ends in ((False, (True, False)), (True, (False, False))):
        env = CarRacingEnv(ignore_done=ignore)
        env.reset(seed=1)
        env._game.car.hull.position = (1000.0, 0.0)
        _, reward, *got, _ = env.step(np.zeros(3, np.float32))
        assert tuple(got) == ends and reward == -100
        env.close()


def test_the_whole_picture():
    env = CarRacingEnv(render_mode="rgb_array")
    env.reset(seed=1)
    assert env.render().shape == (400, 600, 3)
    env.close()
    assert CarRacingEnv().render() is None


@pytest.mark.parametrize("action", [[0.0, 0.0], [[0.0, 0.0, 0.0]], [np.nan, 0, 0]])
def test_bad_actions_are_named(env, action):
    env.reset(seed=1)
    with pytest.raises(ValueError, match=r"^action: expected \(3,\) finite numbers"):
        env.step(np.array(action))
    with pytest.raises(ValueError, match=r"^render_mode: expected None or 'rgb_array', got 'human'"):
        CarRacingEnv(render_mode="human")
