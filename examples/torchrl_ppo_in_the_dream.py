"""Train a TorchRL PPO agent inside a dream.

    pip install -c constraints.txt ".[examples]"
    python examples/torchrl_ppo_in_the_dream.py                          the pretrained dream
    python examples/torchrl_ppo_in_the_dream.py --world runs/quick       your own

Prints the mean reward and the episodes that end per batch, the steps survived in the dream (256 episodes)
after training, and the speed of training as a fraction of the native rollout's.

An action is tanh of a normal sample with the mean W [z, c, h] + b, so the parameters are those of a `Controller`.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import worldmodels as wm
from worldmodels.dream.env import DreamVectorEnv

STEPS, EPOCHS, MINIBATCHES = 128, 4, 8  # of an update


class DreamTorchRLEnv(EnvBase):
    """The native vector environment as one environment with a batch; partial resets are reset masks."""

    def __init__(self, dreams: DreamVectorEnv) -> None:
        super().__init__(batch_size=[dreams.num_envs])
        self.dreams = dreams
        envs, space = dreams.num_envs, dreams.action_space
        flag = Binary(1, (envs, 1), dtype=torch.bool)
        self.observation_spec = Composite(observation=Unbounded(dreams.observation_space.shape), shape=(envs,))
        self.action_spec = Bounded(torch.from_numpy(space.low), torch.from_numpy(space.high))
        self.reward_spec = Unbounded((envs, 1))
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=(envs,))
        self.next_seed: int | None = 0

    def _set_seed(self, seed: int | None) -> None:
        self.next_seed = seed

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        options = {} if mask is None else {"reset_mask": mask.squeeze(-1).numpy()}
        observation, _ = self.dreams.reset(seed=self.next_seed, options=options)
        self.next_seed = None  # later resets go on to the next episodes
        return TensorDict({"observation": torch.from_numpy(observation)}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation, *rest, _ = self.dreams.step(tensordict["action"].numpy())
        reward, terminated, truncated = (torch.from_numpy(part).unsqueeze(-1) for part in rest)
        found = {"observation": torch.from_numpy(observation), "reward": reward, "done": terminated | truncated}
        return TensorDict({**found, "terminated": terminated, "truncated": truncated}, self.batch_size)


class Policy(nn.Module):
    """Mean and standard deviation of the normal distribution."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        super().__init__()
        self.mean = nn.Linear(observation_size, action_size)
        nn.init.orthogonal_(self.mean.weight, 0.01)
        nn.init.zeros_(self.mean.bias)
        self.logstd = nn.Parameter(torch.zeros(action_size))

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.mean(observation)
        return mean, self.logstd.exp().expand_as(mean)

    def parameters_of(self, controller: wm.Controller) -> np.ndarray:
        """The linear map as the controller's flat parameters."""
        return controller.flatten([part.detach().numpy() for part in (self.mean.weight, self.mean.bias)])


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
    dreams = DreamVectorEnv(*world, num_envs=chosen.envs, autoreset_mode=AutoresetMode.DISABLED, **sampling)
    env = DreamTorchRLEnv(dreams)

    policy = Policy(controller.feature_size, controller.action_size)
    actor = ProbabilisticActor(
        TensorDictModule(policy, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=env.action_spec,
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    network = nn.Sequential(nn.Linear(controller.feature_size, 64), nn.Tanh(), nn.Linear(64, 1))
    critic = ValueOperator(network, in_keys=["observation"])
    advantage = GAE(gamma=0.995, lmbda=0.95, value_network=critic, average_gae=True)
    objective = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_bonus=False, critic_coeff=0.5)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-4, eps=1e-5)

    batch_size = STEPS * chosen.envs
    updates = max(1, chosen.steps // batch_size)
    start = time.perf_counter()
    frames = {"frames_per_batch": batch_size, "total_frames": updates * batch_size}
    collector = Collector(env, actor, auto_register_policy_transforms=False, **frames)
    for number, batch in enumerate(collector, 1):
        with torch.no_grad():
            advantage(batch)
        flat = batch.reshape(-1)
        for _ in range(EPOCHS):
            for rows in torch.randperm(batch_size).chunk(MINIBATCHES):
                losses = objective(flat[rows])
                loss = losses["loss_objective"] + losses["loss_critic"]
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(objective.parameters(), 0.5)
                optimizer.step()
        reward, ends = batch["next", "reward"].mean(), batch["next", "done"].sum()
        print(f"update {number}: {number * batch_size} steps, reward {reward:.2f}, {ends} episodes ended")
    speed = updates * batch_size / (time.perf_counter() - start)
    collector.shutdown()
    params = policy.parameters_of(controller)
    print(f"after: {survival(dream, params)} steps survived in the dream")
    native = rollout_speed(dream, params)
    print(f"speed: {speed:.0f} steps/s, {100 * speed / native:.1f} % of the native rollout's {native:.0f}")


if __name__ == "__main__":
    main()
