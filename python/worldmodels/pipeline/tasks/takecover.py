"""VizDoom TakeCover: C is evolved in the dream and transferred to the game."""

from __future__ import annotations

from dataclasses import replace

from worldmodels.envs.policies import constant, repeated, sweeping
from worldmodels.pipeline.config import (
    CheckDreamConfig,
    CollectConfig,
    Config,
    EvaluateConfig,
    EvolveConfig,
    RoundsConfig,
    TrainRNNConfig,
    TrainVAEConfig,
)
from worldmodels.pipeline.tasks import Task

POLICIES = {
    "uniform": repeated(1, 1),
    "repeat 1-10": repeated(1, 10),
    "repeat 1-60": repeated(1, 60),
    "sweep": sweeping(92, 16),
    "noop": constant(0.0),
    "left": constant(-1.0),
    "right": constant(1.0),
}


def _presets() -> dict[str, Config]:
    paper = Config()
    exploring = "repeat 1-10:4, repeat 1-60:2, left:1, right:1"
    # The measurements behind these numbers are in docs/lab_notes/presets.md.
    quick = replace(
        paper,
        preset="quick",
        collect=CollectConfig(episodes=5_000, policies=exploring, min_length=1),
        train_vae=TrainVAEConfig(
            steps=8_000, batch_size=32, lr=1e-3, schedule="cosine", kl_weight=0.03, quartic_weight=30.0
        ),
        train_rnn=TrainRNNConfig(
            steps=6_000,
            batch_size=32,
            sequence_length=128,
            lr=1.5e-3,
            schedule="cosine",
            done_lookahead=6,
        ),
        check_dream=CheckDreamConfig(episodes=20, dream_episodes=64),
        evolve=EvolveConfig(
            generations=20,
            common_random_numbers=True,
            scale_inputs=True,
            termination="expected",
            evaluate_every=10,
            evaluate_episodes=512,
        ),
        evaluate=EvaluateConfig(num_envs=32),
    )
    small = replace(
        quick,
        preset="small",
        collect=replace(quick.collect, episodes=6_000),
        train_vae=replace(quick.train_vae, steps=10_000),
        check_dream=CheckDreamConfig(),
        evolve=replace(quick.evolve, generations=30),
        rounds=RoundsConfig(episodes=400, vae_steps=0, rnn_steps=2_000, rnn_lr=1e-3, generations=30),
    )
    pretrained = replace(
        paper,
        preset="pretrained",
        world_model="takecover",
        check_dream=CheckDreamConfig(episodes=20, dream_episodes=64),
        evolve=EvolveConfig(
            generations=32,
            episodes=8,
            common_random_numbers=True,
            scale_inputs=True,
            termination="expected",
            evaluate_every=8,
            evaluate_episodes=512,
        ),
        evaluate=EvaluateConfig(num_envs=32),
    )
    # Rounds 0 and 1 collect with a C that is evolved for fewer generations; the last round's C is the agent.
    full = replace(
        small,
        preset="full",
        evolve=replace(small.evolve, generations=60),
        evaluate=EvaluateConfig(episodes=300, num_envs=32),
        rounds=replace(small.rounds, rounds=2),
    )
    return {"pretrained": pretrained, "quick": quick, "small": small, "full": full, "paper": paper}


TASK = Task(
    name="takecover",
    env_id="worldmodels/TakeCover-v0",
    actions=("left / right",),
    max_steps=2100,
    policies=POLICIES,
    baselines={"random": "uniform", "collecting": "repeat 1-10", "noop": "noop", "left": "left", "right": "right"},
    presets=_presets(),
    score="steps survived",
    description="TakeCover (Doom): the player dodges fireballs by moving left or right; the score is the number "
    "of steps survived, at most 2,100 (60 s).",
    frames_per_second=35,
    action_threshold=1 / 3,
    preset="pretrained",
    survival=True,
    mirror=(-1.0,),
    paper_score=(1092, 556),
    durations={
        "pretrained": "4 minutes on 2 cores of an AMD EPYC (Zen 5)",
        "quick": "19 minutes on 2 cores of an AMD EPYC (Zen 5)",
        "small": "28 minutes on 2 cores of an AMD EPYC (Zen 5)",
        "full": "77 minutes on 2 cores of an AMD EPYC (Zen 5)",
    },
    ablations={
        "z": {"evolve": {"features": "z"}},
        "z, h": {"evolve": {"features": "zh"}},
        "z, c, h": {"evolve": {"features": "zch"}},
        "z, c, h, in the game": {"evolve": {"features": "zch", "evaluate_in": "environment"}},
        "z, c, h, M untrained, in the game": {
            "train_rnn": {"steps": 0, "init_from": ""},
            "evolve": {"features": "zch", "evaluate_in": "environment"},
        },
    },
    paper_scores={
        0.1: ((2086, 140), (193, 58)),
        0.5: ((2060, 277), (196, 50)),
        1.0: ((1145, 690), (868, 511)),
        1.15: ((918, 546), (1092, 556)),
        1.3: ((732, 269), (753, 139)),
    },
)
