"""What a linear readout, which is what C is, can tell of the game's fireballs from what V and M hand to it.

    python bench/probe_fireballs.py takecover runs/small --player takecover --episodes 24

Plays the real game with one agent while the engine says where everything is, and fits a ridge regression, on every
second episode, from the features of each world (mu; a sampled z; z, h and c) to the number of fireballs in cells around
the player and to the number of monsters. Prints R^2 on the other episodes, the mean over the cells of a distance.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from worldmodels import Agent, ConvVAE, pretrained
from worldmodels.data.weights import load_model
from worldmodels.envs.take_cover import TakeCoverEnv
from worldmodels.models.encoder import Encoder
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.memory import Memory

DISTANCES = (0, 120, 260, 500)  # units of the map, from the player to the wall of the monsters
OFFSETS = (-120, -72, -24, 24, 72, 120)  # to the player's left and right
RIDGE = 10.0  # added to the diagonal of the features' products


def play(player, episodes):
    """Frames, actions, lengths of episodes, fireballs (N, distances, offsets) and monsters (N, 1)."""
    env, agent = TakeCoverEnv(), Agent.load(pretrained.resolve(player))
    env._game.close()
    env._game.set_objects_info_enabled(True)
    env._game.init()
    frames, actions, lengths, balls, monsters = [], [], [], [], []
    for episode in range(episodes):
        frame, _ = env.reset(seed=5000 + episode)
        agent.reset(1, seed=episode)
        over, length = False, 0
        while not over:
            things = env._game.get_state().objects
            me = next(thing for thing in things if thing.name == "DoomPlayer")
            flying = [thing for thing in things if thing.name == "DoomImpBall" and thing.velocity_x]
            ahead = [thing.position_x - me.position_x for thing in flying]
            aside = [thing.position_y - me.position_y for thing in flying]
            balls.append(np.histogram2d(ahead, aside, (DISTANCES, OFFSETS))[0])
            monsters.append([sum(thing.name == "DoomImp" for thing in things)])
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


def features(run, frames, actions, lengths):
    """What C could see in a world: mu, a sampled z, and z beside M's memory of what came before."""
    vae = load_model(run / "vae" / "vae.safetensors", ConvVAE)
    mdnrnn = load_model(run / "rnn" / "rnn.safetensors", MDNRNN)
    encoder = Encoder(vae, torch.device("cpu"))
    parts = [encoder(part) for part in np.split(frames, range(512, len(frames), 512))]
    mu, logvar = map(np.concatenate, zip(*parts, strict=True))
    z = mu + np.exp(0.5 * logvar) * np.random.default_rng(0).standard_normal(mu.shape, np.float32)
    memory = Memory(mdnrnn, len(lengths))
    held = np.zeros((len(frames), 2 * mdnrnn.hidden_size), np.float32)
    starts = np.cumsum(lengths) - lengths
    for step in range(lengths.max()):
        alive = np.flatnonzero(lengths > step)
        rows = starts[alive] + step
        held[rows] = np.concatenate([memory.h[alive], memory.c[alive]], axis=1)
        memory.step(alive, z[rows], actions[rows], np.full(len(alive), step == 0))
    return {"mu": mu, "z": z, "z, h, c": np.concatenate([z, held], axis=1)}


def explained(inputs, targets, train):
    """R^2 of every target on the episodes that the ridge regression has not seen."""
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1).astype(np.float64)
    fitted = inputs[train]
    weights = np.linalg.solve(fitted.T @ fitted + RIDGE * np.eye(fitted.shape[1]), fitted.T @ targets[train])
    seen = targets[~train]
    return 1 - np.square(seen - inputs[~train] @ weights).sum(axis=0) / np.square(seen - seen.mean(axis=0)).sum(axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders with V and M, or takecover")
    parser.add_argument("--player", default="takecover", help="whose agent plays")
    parser.add_argument("--episodes", type=int, default=24)
    options = parser.parse_args()
    frames, actions, lengths, balls, monsters = play(options.player, options.episodes)
    train = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    targets = np.concatenate([balls.reshape(len(balls), -1), monsters], axis=1)
    print(f"{'':36s} {'near':>6s} {'midway':>6s} {'far':>6s} {'monsters':>8s}")
    for run in options.runs:
        for name, inputs in features(pretrained.resolve(run), frames, actions, lengths).items():
            found = explained(inputs, targets, train)
            near, midway, far = found[:-1].reshape(len(DISTANCES) - 1, -1).mean(axis=1)
            print(f"{run:28s} {name:7s} {near:6.3f} {midway:6.3f} {far:6.3f} {found[-1]:8.3f}", flush=True)


if __name__ == "__main__":
    main()
