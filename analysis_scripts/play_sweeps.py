"""How long do open-loop sweeps between the walls survive in TakeCover and in dreams?

    python analysis_scripts/play_sweeps.py takecover runs/full --episodes 300
    python analysis_scripts/play_sweeps.py --sweeps 8,1 --episodes 1000 --out sweep.json

Each policy crosses the room to the left with an action in every k-th step, and back with one in every m-th step. Prints
the mean steps survived in the game, with 95 % interval, and in the dreams of each run (sampled termination).
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
from gymnasium.vector import AutoresetMode
from results import write_results

from worldmodels import pretrained
from worldmodels.analysis.stats import describe, format_interval, table
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.dream.world_model import load_world_model
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.take_cover import MAX_STEPS
from worldmodels.rollout.environments import play_policy
from worldmodels.rollout.players import episode_seed

CROSSING = 92  # actions that cross the room: 736 units, 8 per action
SWEEPS = ("1,1", "4,1", "6,1", "8,1", "10,1", "12,1", "8,8")  # steps per action: to the left, to the right
DREAMS = 256
PURPOSE = "sweeps"  # of the games, which no other stage plays


def sweep(left, right):
    """Create the policy; its first sweep begins in the middle of the room."""

    def actions(_):
        fraction = 0.5
        for push, every in itertools.cycle(((-1.0, left), (1.0, right))):
            steps = int(CROSSING * every * fraction) + 8 * (every == 1)  # it accelerates for some steps
            for step in range(steps):
                yield np.array([push if step % every == 0 else 0.0], np.float32)
            fraction = 1.0

    return actions


def dream(world, policy, temperature):
    """Mean length of dreams of a policy."""
    envs = DreamVectorEnv(
        *world,
        num_envs=DREAMS,
        temperature=temperature,
        termination="sample",
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    envs.reset(seed=0)
    lengths, stream = np.full(DREAMS, MAX_STEPS), policy(None)
    for step in range(MAX_STEPS):
        _, _, terminated, truncated, _ = envs.step(np.tile(next(stream), (DREAMS, 1)))
        lengths[(terminated | truncated) & (lengths == MAX_STEPS)] = step + 1
    return lengths.mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="run folders with M, or takecover")
    parser.add_argument("--sweeps", nargs="+", default=SWEEPS, help="steps per action to the left, to the right")
    parser.add_argument("--episodes", type=int, default=300, help="games per policy")
    parser.add_argument("--seed", type=int, default=0, help="seed of the games")
    parser.add_argument("--temperature", type=float, default=1.15, help="temperature of the dreams")
    parser.add_argument("--out", type=Path, help="JSON file of the results of a single policy")
    options = parser.parse_args()
    if options.out and len(options.sweeps) != 1:
        parser.error("--out: expected one policy")
    worlds = [load_world_model(pretrained.resolve(run)) for run in options.runs]
    rows, began = [], time.perf_counter()
    for text in options.sweeps:
        policy = sweep(*map(int, text.split(",")))
        game = describe(
            play_policy(EnvSpec(), policy, options.episodes, seed=options.seed, purpose=PURPOSE, num_envs=8)
        )
        dreamed = [f"{dream(world, policy, options.temperature):.0f}" for world in worlds]
        rows.append([text, f"{game.mean:.0f} +- {game.std:.0f}", format_interval(game), *dreamed])
        print(*rows[-1], sep="   ", flush=True)
    print(table(["steps per action", "game", "95 % interval", *(Path(run).name for run in options.runs)], rows))
    if options.out:
        seeds = [episode_seed(options.seed, PURPOSE, episode) for episode in range(options.episodes)]
        write_results(
            options.out,
            game,
            options.seed,
            seeds,
            time.perf_counter() - began,
            "an open-loop policy, which sees no frame",
        )


if __name__ == "__main__":
    main()
