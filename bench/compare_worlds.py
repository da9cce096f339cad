"""How well worlds know a driver whom they may never have seen: V's pictures, M's rollouts, and a linear readout.

    worldmodels collect --out runs/drives --preset small --episodes 24 --agent runs/refined --policies agent
    python bench/compare_worlds.py runs/random runs/brownian --drives runs/drives

Per world: the squared error (summed over pixels, colours in [0, 1]) of V's picture and of M's, free-running after so
many steps with the recorded actions; and R^2 of a ridge regression, fitted on every second episode and tried on the
others, from what C sees to what the driver does and to the reward of the steps that follow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from readout import encode, explained, features

from worldmodels import ConvVAE, quality
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.latents import Latents
from worldmodels.data.weights import load_model
from worldmodels.experiment import Experiment
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.tasks import get

AHEAD = 50  # steps whose reward is to be read


def coming(rewards, lengths):
    """(N,) sum of the rewards of the next steps of an episode, as many as there are."""
    found = []
    for episode in np.split(rewards.astype(np.float64), np.cumsum(lengths)[:-1]):
        total = np.concatenate([[0], np.cumsum(episode)])
        found.append(total[np.minimum(np.arange(len(episode)) + AHEAD, len(episode))] - total[:-1])
    return np.concatenate(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with V and M")
    parser.add_argument("--drives", type=Path, required=True, help="a run folder with the episodes of a driver")
    options = parser.parse_args()
    store = EpisodeStore(options.drives / "episodes")
    episodes = list(store.episodes())
    frames, actions, rewards = (
        np.concatenate([getattr(episode, name) for episode in episodes]) for name in ("frames", "actions", "rewards")
    )
    lengths, terminated = store.lengths, np.array([episode.terminated for episode in episodes])
    train = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    targets = np.column_stack([actions, coming(rewards, lengths)])
    names = [*get(Experiment.stored_config(options.drives).experiment).actions, f"reward of {AHEAD} steps"]
    print(f"{len(lengths)} episodes of {rewards.sum() / len(lengths):.0f} points, {len(frames):,} frames")
    for run in options.runs:
        mu, logvar = encode(run, frames)
        latents = Latents(
            mu.astype(np.float16), logvar.astype(np.float16), actions, rewards, lengths.astype(np.int64), terminated
        )
        vae, mdnrnn = (
            load_model(run / path, kind)
            for path, kind in (("vae/vae.safetensors", ConvVAE), ("rnn/rnn.safetensors", MDNRNN))
        )
        everyone = np.arange(len(lengths))
        for row in quality.rollouts(mdnrnn, latents, everyone, len(lengths), vae=vae, store=store):
            pictures = ", ".join(f"{name} {row[f'picture_{name}']:.1f}" for name in ("v", "mean", "sample", "stays"))
            print(f"{run}: after {row['steps']} steps, squared error: {pictures}")
        for name, inputs in features(run, mu, logvar, actions, lengths).items():
            found = explained(inputs, targets, train)
            print(f"{run}: R^2 from {name}: " + ", ".join(f"{n} {v:.3f}" for n, v in zip(names, found, strict=True)))
    store.close()


if __name__ == "__main__":
    main()
