"""Stable-Baselines3 with the dream as an environment, and with an agent as a policy."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from bundles import small_world
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

import worldmodels as wm
from conftest import make_mdnrnn, make_vae
from toy_env import ToyEnv


@pytest.mark.parametrize("settings", [{"world": "takecover", "render_mode": "rgb_array"}, {}, {"choices": (2, 2)}])
def test_the_dream_passes_check_env(settings):
    check_env(gymnasium.make("worldmodels/Dream-v0", **{"world": small_world(action_size=4), **settings}))


class Seeded(gymnasium.Wrapper):
    """Episode i has seed i."""

    episodes = 0

    def reset(self, **_):
        self.episodes += 1
        return self.env.reset(seed=self.episodes)


def test_an_agent_is_evaluated():
    """In two environments that play the same three episodes."""
    controller = wm.Controller(4, 6, 2)
    params = np.random.default_rng(0).normal(0, 0.3, controller.size)
    agent = wm.Agent(make_vae(4), make_mdnrnn(4, 6, action_size=2), controller, params)
    envs = DummyVecEnv([lambda: Seeded(ToyEnv()) for _ in range(2)])
    returns, lengths = evaluate_policy(agent, envs, 6, return_episode_rewards=True, warn=False)
    env, wanted = Seeded(ToyEnv()), []
    for _ in range(3):
        (frame, _), state, total, over = env.reset(), None, 0.0, False
        while not over:
            action, state = agent.predict(frame, state, deterministic=True)
            frame, reward, terminated, truncated, _ = env.step(action)
            total, over = total + reward, terminated or truncated
        wanted.append((total, int(state.step[0])))
    assert [steps for _, steps in wanted] == [3, 4, 5]
    np.testing.assert_allclose(sorted(zip(returns, lengths, strict=True)), sorted(2 * wanted), atol=1e-5)


def test_an_agent_is_evaluated_in_the_game():
    env = gymnasium.make("worldmodels/TakeCover-v0", max_episode_steps=40)
    returns, lengths = evaluate_policy(
        wm.Agent.pretrained("takecover"), env, 2, deterministic=False, return_episode_rewards=True, warn=False
    )
    env.close()
    assert returns == lengths == [40, 40]  # it survives longer
