"""Train a stable-baselines3 PPO agent inside a dream, then let it play the real game.

    pip install -c constraints.txt ".[examples]"
    python examples/ppo_in_the_dream.py                          the pretrained dream
    python examples/ppo_in_the_dream.py --world runs/quick       your own

Time: 2 minutes on two cores for a million dream steps. Prints stable-baselines3's tables, then the steps survived in
the dream (256 episodes), the speed of training as a fraction of the native rollout's, and the steps survived in the
real game (20 episodes), mean and standard deviation.

The policy is linear, a' = W [z, c, h] + b, so a `Controller` has the same form and an `Agent` can play with it. PPO
clips a' to [-1, 1] where the controller computes tanh(a'). The game only asks whether an action is above 1/3 or
below -1/3, and SCALE moves that threshold to the same place.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

import worldmodels as wm
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.models.weights import load_model
from worldmodels.pipeline import tasks
from worldmodels.pipeline.run import Run
from worldmodels.rollout.environments import Environments

SCALE = math.atanh(1 / 3) * 3


class DreamVecEnv(VecEnv):
    """The native vector environment with stable-baselines3's interface."""

    def __init__(self, dreams: DreamVectorEnv) -> None:
        self.dreams = dreams
        super().__init__(dreams.num_envs, dreams.single_observation_space, dreams.single_action_space)

    def reset(self) -> np.ndarray:
        return self.dreams.reset(seed=self._seeds[0])[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, info = self.dreams.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(terminated | truncated):
            infos[i] = {"terminal_observation": info["final_obs"][i], "TimeLimit.truncated": bool(truncated[i])}
        return observations, rewards, terminated | truncated, infos

    def close(self) -> None:
        self.dreams.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.dreams, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.dreams, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [getattr(self.dreams, method_name)(*args, **kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def parameters(policy: torch.nn.Module, controller: wm.Controller) -> np.ndarray:
    """The linear policy as the controller's flat parameters."""
    action = policy.action_net
    return controller.flatten(
        [SCALE * action.weight.detach().numpy(), SCALE * action.bias.detach().numpy()],
    )


def survival(dream: wm.Dream, params: np.ndarray) -> str:
    """Mean survival in the dream over 256 episodes."""
    lengths = dream.rollout(params[None], 256, seed=1).lengths
    return f"{lengths.mean():.0f} +- {lengths.std():.0f}"


def rollout_speed(dream: wm.Dream, params: np.ndarray) -> float:
    """Steps per second of the native rollout."""
    start = time.perf_counter()
    return dream.rollout(params[None], 256, max_steps=100).lengths.sum() / (time.perf_counter() - start)


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description="PPO in the dream", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--world", default="takecover", help="pretrained world model, or run folder")
    options.add_argument("--steps", type=int, default=1_000_000, help="dream steps to train for")
    options.add_argument("--envs", type=int, default=64, help="dreams stepped at once")
    options.add_argument("--temperature", type=float, default=1.15, help="temperature of the dream")
    options.add_argument("--episodes", type=int, default=20, help="real games to play after training")
    chosen = options.parse_args(arguments)
    folder, config = Run.find(chosen.world)
    if config.task != "takecover":
        options.error(f"--world: expected a world model of takecover, whose actions SCALE is for, got {config.task}")

    world = wm.load_world_model(folder)
    model = world.mdnrnn
    controller = wm.Controller(model.latent_size, model.hidden_size, model.action_size, bias=True)
    # termination is sampled with M's probability
    sampling = {"temperature": chosen.temperature, "termination": "sample"}
    dream = wm.Dream(*world, controller, **sampling)
    dreams = DreamVectorEnv(*world, num_envs=chosen.envs, autoreset_mode=AutoresetMode.SAME_STEP, **sampling)
    ppo = PPO(
        "MlpPolicy",
        VecMonitor(DreamVecEnv(dreams)),
        n_steps=256,
        batch_size=2048,
        n_epochs=4,
        gamma=0.995,
        learning_rate=3e-4,
        policy_kwargs={"net_arch": {"pi": [], "vf": [64]}},
        seed=0,
        verbose=1,
    )
    print(f"before: {survival(dream, parameters(ppo.policy, controller))} steps survived in the dream")
    start = time.perf_counter()
    ppo.learn(chosen.steps)
    speed = ppo.num_timesteps / (time.perf_counter() - start)
    params = parameters(ppo.policy, controller)
    print(f"after:  {survival(dream, params)} steps survived in the dream")
    native = rollout_speed(dream, params)
    print(f"speed:  {speed:.0f} steps/s, {100 * speed / native:.1f} % of the native rollout's {native:.0f}")
    if chosen.episodes:
        agent = wm.Agent(load_model(folder / "vae" / "vae.safetensors", wm.ConvVAE), model, controller, params)
        scores: dict[int, float] = {}
        with Environments(config.environment, min(8, chosen.episodes), rules=tasks.of(config).rules) as games:
            games.play(agent, range(chosen.episodes), seed=0, purpose="ppo", finished=scores.__setitem__)
        lived = list(scores.values())
        print(f"game:   {np.mean(lived):.0f} +- {np.std(lived):.0f} steps survived over {len(scores)} episodes")


if __name__ == "__main__":
    main()
