"""Where and when does an agent die in TakeCover, and does its dream agree?

    python analysis_scripts/locate_deaths.py runs/full --episodes 100 --image deaths.png

Plays the game with the agent of RUN while the engine reports the player's position, and its dream with sampled
termination. Draws the lateral position over the first 600 episode steps, and the termination rate by episode step in
game and dream. Prints the termination rate in thirds of the room.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from engine import TakeCoverObjects

from worldmodels import Agent, Dream
from worldmodels.dream.world_model import load_world_model
from worldmodels.envs.take_cover import MAX_STEPS
from worldmodels.models.agent import load_controller

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN, BIN = 600, 20  # steps of the figure and of its bins
DREAMS = 2048
WALLS = (16, 752)  # lateral positions of the player at the two walls


def play(folder, episodes):
    """Play episodes: the lateral positions (T,) of each, in units of the map, and whether it ended by a death (E,)."""
    env, agent = TakeCoverObjects(), Agent.load(folder)
    tracks, died = [], []
    for episode in range(episodes):
        frame, _ = env.reset(seed=7000 + episode)
        agent.reset(1, seed=episode)
        track, over = [], False
        while not over:
            track.append(env.objects()[0][1])
            frame, _, terminated, truncated, _ = env.step(agent.act(frame[None], np.array([len(track) == 1]))[0])
            over = terminated or truncated
        tracks.append(np.array(track))
        died.append(bool(terminated))
        print(f"\rgame {episode + 1} of {episodes}: {np.mean([*map(len, tracks)]):.0f} steps", end="", flush=True)
    env.close()
    print()
    return tracks, np.array(died)


def dream(folder, temperature):
    """Lengths of dreams of the agent with sampled termination."""
    controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    dreams = Dream(*load_world_model(folder), controller, temperature=temperature, termination="sample")
    return dreams.rollout(params[None], DREAMS, seed=0).lengths[0]


def rates(lengths, died):
    """Terminations per 1,000 steps in each bin of episode steps."""
    edges = np.arange(0, SHOWN + 1, BIN)
    deaths = np.histogram(lengths[died], edges + 0.5)[0]  # a death at step 20 belongs to the first bin
    steps = [np.clip(lengths - start, 0, BIN).sum() for start in edges[:-1]]
    return 1000 * deaths / np.maximum(steps, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of TakeCover with an agent")
    parser.add_argument("--episodes", type=int, default=100, help="games to play")
    parser.add_argument("--temperature", type=float, default=1.15, help="temperature of the dream")
    parser.add_argument("--image", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args()
    tracks, died = play(options.run, options.episodes)
    lengths = np.array([*map(len, tracks)])
    dreamed = dream(options.run, options.temperature)
    print(f"game {lengths.mean():.0f} steps, dream {dreamed.mean():.0f} steps")

    every = np.concatenate(tracks)
    last = np.array([track[-1] for track, dead in zip(tracks, died, strict=True) if dead])
    thirds = np.linspace(*WALLS, 4)
    steps, deaths = (np.histogram(np.clip(part, *WALLS), thirds)[0] for part in (every, last))
    for name, count, dead in zip(("right third", "middle third", "left third"), steps, deaths, strict=True):
        print(f"{name:12s} {count / steps.sum():6.1%} of the steps, {1000 * dead / count:.2f} deaths per 1,000 steps")

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(6, 5), dpi=160)
    for track, dead in zip(tracks, died, strict=True):
        above.plot(track[:SHOWN], color="#6b7280", alpha=0.25, linewidth=0.7)
        if dead and len(track) < SHOWN:
            above.plot(len(track) - 1, track[-1], ".", color="#c2410c", markersize=5)
    above.set(ylabel="lateral position", title=f"Positions of the player in {len(tracks)} games; deaths in red")
    starts = np.arange(0, SHOWN, BIN)
    below.step(starts, rates(lengths, died), where="post", color="#2563eb", label="game")
    below.step(starts, rates(dreamed, dreamed < MAX_STEPS), where="post", color="#ea8a1f", label="dream")
    below.set(xlabel="episode step", ylabel="deaths per 1,000 steps", xlim=(0, SHOWN))
    below.legend(frameon=False)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(options.image)


if __name__ == "__main__":
    main()
