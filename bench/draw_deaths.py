"""What V makes of the last second before a death: frames above their reconstructions.

    python bench/draw_deaths.py runs/small --last 500 --at-least 500 --out deaths.png

Takes episodes at random of the last ones in the store that lived that long. RUN needs its episodes, V and latents.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from worldmodels import ConvVAE, sheets
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.latents import load_latents
from worldmodels.data.weights import load_model
from worldmodels.models.vae import decode

BEFORE = np.array([48, 42, 36, 30, 26, 22, 18, 14, 11, 8, 5, 3, 1])  # steps before the last frame


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--last", type=int, default=500, help="how many of the store's last episodes to choose from")
    parser.add_argument("--at-least", type=int, default=500, help="steps that an episode must have lived")
    parser.add_argument("--out", type=Path, default=Path("deaths.png"))
    options = parser.parse_args()
    vae = load_model(options.run / "vae" / "vae.safetensors", ConvVAE)
    latents, store = load_latents(options.run / "latents"), EpisodeStore(options.run / "episodes")
    numbers = np.arange(len(latents.lengths))[-options.last :]
    old = numbers[(latents.lengths[numbers] >= options.at_least) & (latents.lengths[numbers] < 2000)]
    rows = []
    for episode in np.random.default_rng(1).choice(old, options.episodes, replace=False):
        shown = latents.starts[episode] + latents.lengths[episode] - 1 - BEFORE
        rows += [store.read(shown), decode(vae, latents.mu[shown].astype(np.float32))]
    store.close()
    sheets.save(options.out, rows)


if __name__ == "__main__":
    main()
