"""Pendulum swing-up from pixels: C is evolved in the dream of an M with a reward head."""

from __future__ import annotations

from dataclasses import replace

from worldmodels.envs.policies import brownian, constant, repeated
from worldmodels.envs.spec import EnvSpec
from worldmodels.pipeline.config import (
    CheckDreamConfig,
    CollectConfig,
    Config,
    EvolveConfig,
    RoundsConfig,
    TrainRNNConfig,
    TrainVAEConfig,
)
from worldmodels.pipeline.tasks import Task

ENVIRONMENT = "worldmodels/Pendulum-v0"

QUICK = Config(
    task="pendulum",
    preset="quick",
    environment=EnvSpec(id=ENVIRONMENT, variant="", resolution=""),
    collect=CollectConfig(episodes=300, policies="repeat 1-20:2, brownian:1, noop:1", min_length=1),
    train_vae=TrainVAEConfig(
        latent_size=16,
        steps=2_000,
        batch_size=32,
        lr=1e-3,
        schedule="cosine",
        kl_weight=0.25,
        mean_output=True,
    ),
    train_rnn=TrainRNNConfig(
        hidden_size=128,
        done_head=False,
        reward_head=True,
        steps=8_000,
        batch_size=32,
        sequence_length=64,
        lr=2e-3,
        schedule="cosine",
    ),
    check_dream=CheckDreamConfig(episodes=20),
    evolve=EvolveConfig(
        features="zh",
        bias=True,
        temperature=1.0,
        max_steps=200,
        generations=200,
        sigma0=0.3,
        common_random_numbers=True,
        evaluate_every=20,
        evaluate_episodes=256,
    ),
    rounds=RoundsConfig(rounds=2, episodes=100, vae_steps=0, rnn_steps=3_000, generations=120),
)

TASK = Task(
    name="pendulum",
    env_id=ENVIRONMENT,
    actions=("torque",),
    max_steps=200,
    policies={
        "uniform": repeated(1, 1),
        "repeat 1-20": repeated(1, 20),
        "brownian": brownian(0.3),
        "noop": constant(0.0),
        "left": constant(1.0),
        "right": constant(-1.0),
    },
    baselines={"random": "uniform", "collecting": "repeat 1-20", "noop": "noop"},
    presets={"quick": QUICK, "paper": replace(QUICK, preset="paper", rounds=replace(QUICK.rounds, rounds=20))},
    durations={"quick": "10 minutes on one core of an AMD EPYC (Zen 5)"},
    score="points",
    description="Pendulum: a rod is swung up and balanced; the score is minus the sum of angle² + 0.1 "
    "velocity² + 0.001 torque² over 200 steps, 0 at best.",
    frames_per_second=20,
    keys={"left": (1.0,), "right": (-1.0,)},  # as the policies of these names
)
