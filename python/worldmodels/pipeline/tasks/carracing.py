"""CarRacing: C is evolved in the real environment, as in the paper, or in the dream (preset ``dream``)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worldmodels.envs.policies import Action, brownian, constant, ornstein_uhlenbeck, repeated, transformed
from worldmodels.envs.spec import EnvSpec
from worldmodels.pipeline.config import (
    CheckDreamConfig,
    CollectConfig,
    Config,
    EvaluateConfig,
    EvolveConfig,
    RefineConfig,
    RoundsConfig,
    TrainRNNConfig,
    TrainVAEConfig,
)
from worldmodels.pipeline.tasks import Task


def _pedals(action: Action) -> Action:
    """Map [-1, 1] to steering in [-1, 1], gas in [0, 1], and brake in [0, 1], zero for half of the range."""
    return np.array([action[0], (action[1] + 1) / 2, max(action[2], 0)], np.float32)


def _gently(action: Action) -> Action:
    """Map [-1, 1] to steering in [-0.3, 0.3], gas in [0, 0.3], and brake in [0, 0.2], zero for 90 % of the range."""
    return np.array([0.3 * action[0], 0.15 * (action[1] + 1), max(action[2] - 0.8, 0)], np.float32)


POLICIES = {
    "uniform": transformed(repeated(1, 1, 3), _pedals),
    "repeat 1-20": transformed(repeated(1, 20, 3), _pedals),
    "brownian": transformed(brownian(0.15, 3), _pedals),
    "gentle": transformed(ornstein_uhlenbeck(0.15, 20, 3), _gently),
    "full gas": constant(0.0, 1.0, 0.0),
    "noop": constant(0.0, 0.0, 0.0),
}


def _presets() -> dict[str, Config]:
    # The lengths of training are the paper's: 10,000 episodes, 1 epoch of V, 20 epochs of M (2,000 batches of 100
    # episodes; 4,000 in the original code), 1,800 generations of C.
    paper = Config(
        task="carracing",
        preset="paper",
        environment=EnvSpec(id="worldmodels/CarRacing-v0", variant="", resolution=""),
        collect=CollectConfig(episodes=10_000, policies="random-weight agent", ignore_done=True, min_length=1),
        train_vae=TrainVAEConfig(latent_size=32, steps=100_000),
        train_rnn=TrainRNNConfig(
            hidden_size=256, restart_input=False, done_head=False, steps=2_000, batch_size=100, sequence_length=999
        ),
        evolve=EvolveConfig(
            evaluate_in="environment", features="zh", bias=True, temperature=1.0, max_steps=1000, generations=1_800
        ),
    )
    exploring = "brownian:3, repeat 1-20:1"
    quick = replace(
        paper,
        preset="quick",
        collect=CollectConfig(episodes=100, policies=exploring, min_length=1, shard_episodes=10),
        train_vae=replace(paper.train_vae, steps=1_500, batch_size=32, lr=1e-3, schedule="cosine", kl_weight=0.25),
        train_rnn=replace(paper.train_rnn, steps=300, batch_size=32, sequence_length=64, lr=2e-3, schedule="cosine"),
        check_dream=CheckDreamConfig(episodes=10, num_envs=10),
        evolve=replace(
            paper.evolve,
            max_steps=400,
            generations=12,
            popsize=16,
            episodes=3,
            common_random_numbers=True,
            evaluate_every=4,
            evaluate_episodes=16,
            num_envs=48,
        ),
        evaluate=EvaluateConfig(episodes=20, num_envs=20),
    )
    small = replace(
        paper,
        preset="small",
        collect=CollectConfig(episodes=1_000, policies=exploring, min_length=1),
        train_vae=replace(paper.train_vae, steps=20_000, batch_size=32, lr=1e-3, schedule="cosine", kl_weight=0.25),
        train_rnn=replace(paper.train_rnn, steps=4_000, batch_size=64, sequence_length=64, lr=2e-3, schedule="cosine"),
        evolve=replace(
            paper.evolve,
            generations=100,
            popsize=32,
            episodes=6,
            common_random_numbers=True,
            evaluate_every=10,
            evaluate_episodes=64,
            num_envs=96,
        ),
    )
    # Episodes of open-loop policies are short, so dreams are at most 300 steps long. A round of own play adds episodes
    # of C (docs/lab_notes/carracing_dreams_alone.md).
    dream = replace(
        small,
        preset="dream",
        collect=CollectConfig(
            episodes=800,
            policies="gentle:3, brownian:2, repeat 1-20:2, full gas:1, noop:0.3",
            min_length=1,
            max_steps_without_reward=60,
        ),
        train_vae=replace(small.train_vae, steps=2_000),
        train_rnn=replace(
            small.train_rnn,
            restart_input=True,
            done_head=True,
            reward_head=True,
            reward_clip=10.0,
            steps=2_000,
            batch_size=32,
            sequence_length=128,
        ),
        check_dream=CheckDreamConfig(episodes=12, dream_episodes=64, num_envs=12),
        evolve=replace(
            small.evolve,
            evaluate_in="dream",
            max_steps=300,
            popsize=64,
            episodes=8,
            generations=50,
            evaluate_every=10,
            evaluate_episodes=256,
        ),
        evaluate=EvaluateConfig(episodes=16, num_envs=16),
        rounds=RoundsConfig(
            rounds=1,
            episodes=120,
            policies="agent:3, agent with parameter noise:1",
            max_steps_without_reward=60,
            vae_steps=800,
            vae_lr=5e-4,
            rnn_steps=1_000,
            rnn_lr=2e-3,
            generations=40,
            evaluate_episodes=16,
        ),
    )
    # Round 0 explores with a C of short dreams; whole episodes of C make whole laps in the dream possible, at a higher
    # temperature. Some generations in the environment come last (docs/lab_notes/carracing_refinement.md).
    full = replace(
        dream,
        preset="full",
        evolve=replace(dream.evolve, max_steps=1000, temperature=1.3),
        rounds=replace(
            dream.rounds,
            rounds=2,
            max_steps_without_reward=0,
            rnn_steps=1_500,
            first_max_steps=300,
            first_temperature=1.0,
        ),
        refine=RefineConfig(
            generations=12,
            sigma0=0.055,
            pca_components=64,
            max_steps=1000,
            max_steps_without_reward=100,
        ),
        evaluate=EvaluateConfig(episodes=100, num_envs=16),
    )
    pretrained = replace(
        full, preset="pretrained", world_model="carracing", rounds=RoundsConfig(), refine=RefineConfig()
    )
    return {"pretrained": pretrained, "quick": quick, "small": small, "full": full, "paper": paper, "dream": dream}


TASK = Task(
    name="carracing",
    env_id="worldmodels/CarRacing-v0",
    actions=("steering", "gas", "brake"),
    max_steps=1000,
    policies=POLICIES,
    baselines={"random": "uniform", "collecting": "brownian", "full gas": "full gas", "noop": "noop"},
    presets=_presets(),
    score="points",
    description="CarRacing: a car seen from above visits the tiles of a random track; the score is 1,000 "
    "times the fraction of visited tiles, minus 0.1 per step.",
    frames_per_second=50,
    keys={"left": (-1.0,), "right": (1.0,), "up": (0.0, 1.0), "down": (0.0, 0.0, 0.8)},
    squash="carracing",
    preset="pretrained",
    paper_score=(906, 21),
    durations={"quick": "15 minutes on 2 cores", "full": "105 minutes on one core"},
    ablations={
        "z": {"evolve": {"features": "z", "hidden_units": 0}},
        "z, 40 hidden": {"evolve": {"features": "z", "hidden_units": 40}},
        "z, h": {"evolve": {"features": "zh", "hidden_units": 0}},
        "z, h, M untrained": {
            "train_rnn": {"steps": 0, "init_from": ""},
            "evolve": {"features": "zh", "hidden_units": 0, "evaluate_in": "environment"},
        },
    },
)
