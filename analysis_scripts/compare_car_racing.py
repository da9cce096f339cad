"""Do scores in EnvPool's CarRacing agree with those in Gymnasium's?

    python analysis_scripts/compare_car_racing.py --agent runs/car --episodes 100 --policies

Plays the same agent and open-loop policies in both back ends. Prints scores with 95 % intervals, and statistics of the
frames under constant actions. A seed gives different tracks in the two back ends.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from worldmodels import Agent
from worldmodels.analysis.stats import describe, table
from worldmodels.envs.vector import make_vector_env
from worldmodels.pipeline import tasks
from worldmodels.rollout.environments import Environments
from worldmodels.rollout.players import OpenLoopPlayer, Player


def frames(environment, episodes=20, steps=60):
    """Compute the mean and std of the colours and the mean change between frames, with gas 0.3 and no steering."""
    batch = make_vector_env(environment, episodes)
    everyone, seen = np.arange(episodes), []
    batch.reset(everyone, list(range(episodes)))
    for _ in range(steps):
        seen.append(batch.step(everyone, np.tile(np.array([[0, 0.3, 0]], np.float32), (episodes, 1)))[0])
    batch.close()
    film = np.stack(seen[30:]).astype(np.float64)
    return [*film.mean(axis=(0, 1, 2, 3)), film.std(), np.abs(np.diff(film, axis=0)).mean()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", help="run folder of an agent")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per player and back end")
    parser.add_argument(
        "--policies",
        nargs="*",
        default=["uniform", "brownian", "noop"],
        help="open-loop policies; none for the agent alone",
    )
    options = parser.parse_args()
    task = tasks.get("carracing")
    rows, looks = [], []
    for name in ("gymnasium", "envpool"):
        environment = replace(task.presets["paper"].environment, backend=name)
        looks.append([name, *(f"{value:.2f}" for value in frames(environment))])
        players: dict[str, Player] = {name: OpenLoopPlayer(task.policies[name], "compare") for name in options.policies}
        if options.agent:
            players["agent"] = Agent.load(Path(options.agent))
        for player, playing in players.items():
            scores: dict[int, float] = {}
            with Environments(environment, 16) as real:
                real.play(playing, range(options.episodes), seed=0, purpose="compare", finished=scores.__setitem__)
            found = describe([scores[episode] for episode in range(options.episodes)])
            interval = "{:.0f} to {:.0f}".format(*found.ci95)
            rows.append([player, name, f"{found.mean:.0f} +- {found.std:.0f}", interval])
    print(table(["player", "back end", "score", "95 % interval"], sorted(rows)))
    print(table(["frames", "red", "green", "blue", "std", "change"], looks))


if __name__ == "__main__":
    main()
