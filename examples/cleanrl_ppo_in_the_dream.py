"""PPO in a single file, in the style of CleanRL, on the native vector environment of dreams.

    pip install -c constraints.txt ".[examples]"
    python examples/cleanrl_ppo_in_the_dream.py                          the pretrained dream
    python examples/cleanrl_ppo_in_the_dream.py --world runs/quick       your own

Prints the return of the finished episodes after every update, the steps survived in the dream (256 episodes)
after training, and the speed of training as a fraction of the native rollout's.

The policy's mean is tanh(W [z, c, h] + b), so its parameters are those of a `Controller`.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import nn
from torch.distributions import Normal

import worldmodels as wm
from worldmodels.dream.env import DreamVectorEnv

STEPS, EPOCHS, MINIBATCHES = 128, 4, 8  # of an update
GAMMA, LAMBDA = 0.995, 0.95
CLIP, MAX_GRAD_NORM, LEARNING_RATE = 0.2, 0.5, 3e-4


class ActorCritic(nn.Module):
    """A linear actor and a critic with one hidden layer."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        super().__init__()
        self.actor = nn.Linear(observation_size, action_size)
        nn.init.orthogonal_(self.actor.weight, 0.01)
        nn.init.zeros_(self.actor.bias)
        self.logstd = nn.Parameter(torch.zeros(action_size))
        self.critic = nn.Sequential(nn.Linear(observation_size, 64), nn.Tanh(), nn.Linear(64, 1))

    def distribution(self, observation: torch.Tensor) -> Normal:
        return Normal(torch.tanh(self.actor(observation)), self.logstd.exp())

    def value(self, observation: torch.Tensor) -> torch.Tensor:
        return self.critic(observation).squeeze(-1)

    def parameters_of(self, controller: wm.Controller) -> np.ndarray:
        """The actor as the controller's flat parameters."""
        return controller.flatten([part.detach().numpy() for part in (self.actor.weight, self.actor.bias)])


class Rollouts:
    """Steps of the dreams, and the returns of their episodes."""

    def __init__(self, dreams: DreamVectorEnv) -> None:
        self.dreams = dreams
        self.observation = torch.from_numpy(dreams.reset(seed=0)[0])
        self.running = np.zeros(dreams.num_envs)
        self.returns: list[float] = []

    @torch.no_grad()
    def collect(self, agent: ActorCritic) -> tuple[torch.Tensor, ...]:
        """Observations, actions, log probabilities, advantages and returns of STEPS steps, flat."""
        envs = self.dreams.num_envs
        observations = torch.zeros(STEPS, *self.observation.shape)
        actions = torch.zeros(STEPS, envs, *self.dreams.single_action_space.shape)
        logprobs, rewards, ends, last = torch.zeros(4, STEPS, envs)
        values = torch.zeros(STEPS + 1, envs)
        for step in range(STEPS):
            observations[step] = self.observation
            distribution = agent.distribution(self.observation)
            actions[step] = distribution.sample()
            logprobs[step] = distribution.log_prob(actions[step]).sum(-1)
            values[step] = agent.value(self.observation)
            seen, reward, terminated, truncated, info = self.dreams.step(actions[step].numpy())
            self.observation = torch.from_numpy(seen)
            over = terminated | truncated
            rewards[step], ends[step] = torch.from_numpy(reward), torch.from_numpy(over)
            if truncated.any():  # bootstrap from the value of the last observation
                last[step, torch.from_numpy(truncated)] = agent.value(torch.from_numpy(info["final_obs"][truncated]))
            self._count(reward, over)
        values[STEPS] = agent.value(self.observation)
        following = torch.where(ends.bool(), last, values[1:])
        advantages = torch.zeros(STEPS + 1, envs)
        for step in reversed(range(STEPS)):
            delta = rewards[step] + GAMMA * following[step] - values[step]
            advantages[step] = delta + GAMMA * LAMBDA * (1 - ends[step]) * advantages[step + 1]
        parts = observations, actions, logprobs, advantages[:-1], advantages[:-1] + values[:-1]
        return tuple(part.flatten(0, 1) for part in parts)

    def _count(self, reward: np.ndarray, over: np.ndarray) -> None:
        self.running += reward
        self.returns += self.running[over].tolist()
        self.running[over] = 0


def update(agent: ActorCritic, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, ...]) -> None:
    """One update: EPOCHS passes over the collected steps."""
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(batch[0])).chunk(MINIBATCHES):
            observation, action, logprob, advantage, target = (part[rows] for part in batch)
            ratio = (agent.distribution(observation).log_prob(action).sum(-1) - logprob).exp()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            loss = 0.5 * (agent.value(observation) - target).square().mean() - gain.mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
            optimizer.step()


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
    chosen = options.parse_args(arguments)

    torch.manual_seed(0)
    world = wm.load_world_model(chosen.world)
    model = world.mdnrnn
    controller = wm.Controller(model.latent_size, model.hidden_size, model.action_size, bias=True)
    sampling = {"temperature": chosen.temperature, "termination": "sample"}
    dream = wm.Dream(*world, controller, **sampling)
    dreams = DreamVectorEnv(*world, num_envs=chosen.envs, autoreset_mode=AutoresetMode.SAME_STEP, **sampling)
    agent = ActorCritic(controller.feature_size, controller.action_size)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=1e-5)
    rollouts = Rollouts(dreams)
    start, updates = time.perf_counter(), max(1, chosen.steps // (STEPS * chosen.envs))
    for number in range(1, updates + 1):
        update(agent, optimizer, rollouts.collect(agent))
        recent = rollouts.returns[-100:]
        print(f"update {number}: {number * STEPS * chosen.envs} steps, return {np.mean(recent or [np.nan]):.1f}")
    speed = updates * STEPS * chosen.envs / (time.perf_counter() - start)
    params = agent.parameters_of(controller)
    print(f"after: {survival(dream, params)} steps survived in the dream")
    native = rollout_speed(dream, params)
    print(f"speed: {speed:.0f} steps/s, {100 * speed / native:.1f} % of the native rollout's {native:.0f}")


if __name__ == "__main__":
    main()
