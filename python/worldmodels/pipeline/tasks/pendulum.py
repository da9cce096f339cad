"""Pendulum swing-up from pixels: C evolves inside a dream that predicts rewards, round after round."""

from __future__ import annotations

from dataclasses import replace

from worldmodels.envs.policies import brownian, constant, held
from worldmodels.envs.spec import EnvironmentConfig
from worldmodels.pipeline.config import (
    CollectConfig,
    Config,
    EvolveConfig,
    IterateConfig,
    TrainRNNConfig,
    TrainVAEConfig,
)
from worldmodels.pipeline.tasks import Task

# Gymnasium imports what is before the colon, and the module registers what is behind it.
ENVIRONMENT = "worldmodels/Pendulum-v0"

QUICK = Config(
    experiment="pendulum",
    preset="quick",
    environment=EnvironmentConfig(id=ENVIRONMENT, variant="", resolution=""),
    collect=CollectConfig(episodes=300, policies="held 1-20:2, brownian:1, never:1", min_length=1),
    train_vae=TrainVAEConfig(latent_size=16, steps=2_000, batch=32, lr=1e-3, schedule="cosine", kl_weight=0.25),
    train_rnn=TrainRNNConfig(
        hidden_size=128,
        done_head=False,
        reward_head=True,
        steps=1_000,
        batch=32,
        sequence=64,
        lr=2e-3,
        schedule="cosine",
    ),
    evolve=EvolveConfig(
        temperature=1.0,
        max_steps=200,
        generations=60,
        sigma=0.3,
        seeds="common",
        evaluate_every=10,
        evaluate_episodes=256,
    ),
    iterate=IterateConfig(rounds=3, episodes=100, generations=60),
)

TASK = Task(
    name="pendulum",
    env_id=ENVIRONMENT,
    actions=("torque",),
    max_steps=200,
    policies={
        "uniform": held(1, 1),
        "held 1-20": held(1, 20),
        "brownian": brownian(0.3),
        "never": constant(0.0),
        "left": constant(1.0),
        "right": constant(-1.0),
    },
    beside={"random": "uniform", "collecting": "held 1-20", "never": "never"},
    presets={"quick": QUICK, "paper": replace(QUICK, preset="paper", iterate=replace(QUICK.iterate, rounds=20))},
    score="points",
    frames_per_second=20,
)
