"""How well does a linear readout of z, h and c predict the fireballs of the game?

    python analysis_scripts/probe_fireballs.py takecover runs/small --player takecover --temperatures 1.0 1.3

Plays the real game with one agent, records the positions of the engine, and fits a ridge regression on every second
episode. Its inputs are the features of each run (mu; a sampled z; z and h; z, c and h), its targets the number of
fireballs in cells around the player and the number of monsters. Prints R^2 on the other episodes, averaged over the
cells of a distance. With --temperatures, also prints the readout by episode step in the game and in dreams.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from engine import TakeCoverObjects
from gymnasium.vector import AutoresetMode
from readout import encode, explained, features, fit, with_one

from worldmodels import Agent, pretrained
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.agent import load_controller

DISTANCES = (0, 120, 260, 500)  # units of the map, from the player to the wall of the monsters
OFFSETS = (-120, -72, -24, 24, 72, 120)  # to the player's left and right
AGES = (0, 50, 100, 200, 300, 400, 600, 800, 1200)
DREAMS, STEPS = 96, 1200  # dreams per batch, steps of each


def play(player, episodes):
    """Play episodes: frames, actions, lengths, fireballs (N, distances, offsets) and monsters (N, 1)."""
    env, agent = TakeCoverObjects(), Agent.load(pretrained.resolve(player))
    frames, actions, lengths, balls, monsters = [], [], [], [], []
    for episode in range(episodes):
        frame, _ = env.reset(seed=5000 + episode)
        agent.reset(1, seed=episode)
        over, length = False, 0
        while not over:
            (x, y, *_), fireballs, imps = env.objects()
            ahead, aside = (np.reshape(list(fireballs.values()), (-1, 4))[:, :2] - (x, y)).T
            balls.append(np.histogram2d(ahead, aside, (DISTANCES, OFFSETS))[0])
            monsters.append([len(imps)])
            action = agent.act(frame[None], np.array([length == 0]))[0]
            frames.append(frame)
            actions.append(action)
            length += 1
            frame, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        lengths.append(length)
        print(f"\repisode {episode + 1} of {episodes}: {np.mean(lengths):.0f} steps on average", end="", flush=True)
    env.close()
    print()
    return tuple(map(np.array, (frames, actions, lengths, balls, monsters)))


def dream(run, weights, temperature):
    """Play dreams of a run's own agent with sampled termination: episode steps (N,) and readouts (N, targets)."""
    controller, params, _ = load_controller(run / "evolve" / "controller.safetensors")
    envs = DreamVectorEnv(
        *load_world_model(run),
        num_envs=DREAMS,
        temperature=temperature,
        features=controller.features,
        termination="sample",
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    seen, _ = envs.reset(seed=0)
    age, ages, readings = np.zeros(DREAMS, int), [], []
    for _ in range(STEPS):
        ages.append(age.copy())
        readings.append(with_one(seen) @ weights)
        seen, _, terminated, truncated, _ = envs.step(controller.act(params, seen))
        age = np.where(terminated | truncated, 0, age + 1)
    return np.concatenate(ages), np.concatenate(readings)


def print_ages(name, ages, found):
    """Print mean readouts of monsters and fireballs by episode step, then of a fireball next to the player."""
    balls = found[:, :-1].reshape(len(found), len(DISTANCES) - 1, -1)
    numbers = {"monsters": found[:, -1]}
    numbers |= {place: balls[:, row].sum(axis=1) for row, place in enumerate(("near", "midway", "far"))}
    for what, values in numbers.items():
        spans = [(ages >= low) & (ages < high) for low, high in itertools.pairwise(AGES)]
        print(
            f"{name:28s} {what:9s}"
            + "".join(f"{values[span].mean():7.2f}" if span.any() else "      -" for span in spans)
        )
    beside = balls[ages >= 200, 0, balls.shape[2] // 2]
    sure, maybe = 100 * (beside > 0.8).mean(), 100 * ((beside > 0.2) & (beside < 0.6)).mean()
    print(
        f"{name:28s} fireball next to the player, from step 200: readout above 0.8 in {sure:.2f} % of the steps, "
        f"0.2 to 0.6 in {maybe:.2f} %",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders with V and M, or takecover")
    parser.add_argument("--player", default="takecover", help="pretrained agent or run folder whose agent plays")
    parser.add_argument("--episodes", type=int, default=24, help="episodes to play")
    parser.add_argument(
        "--temperatures", type=float, nargs="*", default=[], help="temperatures of dreams to compare with"
    )
    options = parser.parse_args()
    frames, actions, lengths, balls, monsters = play(options.player, options.episodes)
    train = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    targets = np.concatenate([balls.reshape(len(balls), -1), monsters], axis=1)
    print(f"{'':36s} {'near':>6s} {'midway':>6s} {'far':>6s} {'monsters':>8s}")
    readings = {}
    for run in options.runs:
        mu, logvar = encode(pretrained.resolve(run), frames)
        for name, inputs in features(pretrained.resolve(run), mu, logvar, actions, lengths).items():
            if name == "z, c, h":
                weights = fit(inputs, targets)
                readings[run] = weights, with_one(inputs) @ weights
            found = explained(inputs, targets, train)
            near, midway, far = found[:-1].reshape(len(DISTANCES) - 1, -1).mean(axis=1)
            print(f"{run:28s} {name:7s} {near:6.3f} {midway:6.3f} {far:6.3f} {found[-1]:8.3f}", flush=True)
    if options.temperatures:
        ages = np.concatenate([np.arange(length) for length in lengths])
        print(f"{'':38s}" + "".join(f"{low:7d}" for low in AGES[:-1]))
        print_ages("the game, true numbers", ages, targets)
        for run, (weights, read) in readings.items():
            print_ages(f"{run}, readout, game", ages, read)
            for temperature in options.temperatures:
                print_ages(
                    f"{run}, readout, dream {temperature:g}", *dream(pretrained.resolve(run), weights, temperature)
                )


if __name__ == "__main__":
    main()
