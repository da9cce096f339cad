"""Does M predict termination, on recorded episodes and in its own rollouts?

    python analysis_scripts/predict_terminations.py runs/small --episodes 200

Prints two tables. The first has the termination rate (per 1,000 steps) by episode step of the last episodes of RUN's
latents, recorded and predicted by M with teacher forcing. The second has the fraction of dreams that terminate, if they
start K frames before a recorded death, with a burned-in LSTM state and the recorded actions, and if they start K frames
before another time step.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch

from worldmodels.analysis.quality import next_latent
from worldmodels.data.latents import load_latents
from worldmodels.dream.world_model import load_world_model

AGES = (0, 100, 200, 300, 400, 600, 800, 1200, 2100)
AHEAD = (2, 5, 10, 20, 30, 60)  # frames before a death at which dreams start
HISTORY, GROUP, DREAMS, CHUNK = 250, 32, 6, 64  # burn-in frames, episodes per batch, dreams of each, steps per batch


def latent(latents, rows):
    """Sample latents (..., Z) of frames."""
    mu, logvar = (torch.from_numpy(part[rows].astype(np.float32)) for part in (latents.mu, latents.logvar))
    return mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape)


def action(latents, rows):
    return torch.from_numpy(latents.actions[rows].astype(np.float32))


def along(model, latents, episodes, weight):
    """Episode steps, M's teacher-forced termination probabilities and recorded terminations, each (N,)."""
    found = []
    order = episodes[np.argsort(latents.lengths[episodes])]
    for group in (order[at : at + GROUP] for at in range(0, len(order), GROUP)):
        lengths = latents.lengths[group][:, None]
        state = model.initial_state(len(group))
        for start in range(0, int(lengths.max()), CHUNK):
            ages = np.repeat(np.arange(start, min(start + CHUNK, int(lengths.max())))[None], len(group), axis=0)
            rows = latents.starts[group][:, None] + np.minimum(ages, lengths - 1)
            restart = torch.from_numpy((ages == 0).astype(np.float32))
            out, state = model(latent(latents, rows), action(latents, rows), restart, state)
            said = torch.sigmoid(out.done_logit - np.log(weight)).numpy()
            died = (ages == lengths - 1) & latents.terminated[group][:, None]
            there = ages < lengths
            found.append((ages[there], said[there], died[there]))
    return map(np.concatenate, zip(*found, strict=True))


def repeated(model, latents, last, ahead, weight):
    """Fraction of dreams that terminate within the recorded actions of the ``ahead`` frames up to ``last`` (E,)."""
    first = last - ahead
    rows = first[:, None] + np.arange(-HISTORY, 1)
    z = latent(latents, rows)
    _, state = model(z[:, :-1], action(latents, rows[:, :-1]), torch.zeros(len(rows), HISTORY))
    state = tuple(part.repeat_interleave(DREAMS, 1) for part in state)
    now = z[:, -1:].repeat_interleave(DREAMS, 0)
    lives = torch.ones(len(now))
    for step in range(ahead + 1):
        taken = action(latents, first + step).repeat_interleave(DREAMS, 0)[:, None]
        out, state = model(now, taken, torch.zeros(len(now), 1), state)
        lives *= 1 - torch.sigmoid(out.done_logit[:, 0] - np.log(weight))
        now = next_latent(out, sample=True)
    return 1 - float(lives.mean())


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--episodes",
        type=int,
        default=200,
        help="number of episodes, from the end of the latents; the last ones are held out",
    )
    parser.add_argument("--latents", type=Path, help="folder of latents (default: those of RUN)")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load_world_model(options.run).mdnrnn.eval()
    latents = load_latents(options.latents or options.run / "latents")
    weight = model.done_pos_weight
    episodes = np.arange(len(latents.lengths))[-options.episodes :]

    ages, said, died = along(model, latents, episodes, weight)
    print(f"{'terminations/1,000 steps, from step':40s}" + "".join(f"{low:7d}" for low in AGES[:-1]))
    for name, values in (("recorded", died), ("predicted, teacher-forced", said)):
        spans = [(ages >= low) & (ages < high) for low, high in itertools.pairwise(AGES)]
        print(
            f"{name:40s}" + "".join(f"{1000 * values[span].mean():7.2f}" if span.any() else "      -" for span in spans)
        )

    earliest = latents.starts[episodes] + HISTORY + max(AHEAD)  # earliest last frame with enough history
    ends = latents.starts[episodes] + latents.lengths[episodes] - 1
    deaths = ends[latents.terminated[episodes] & (ends >= earliest)]
    rng = np.random.default_rng(0)
    safe = [int(rng.integers(low, high)) for low, high in zip(earliest, ends - 10, strict=True) if low < high]
    print(f"\n{'fraction that terminates, frames before':40s}" + "".join(f"{ahead:7d}" for ahead in AHEAD))
    for name, last in ((f"{len(deaths)} deaths", deaths), (f"{len(safe)} other time steps", np.array(safe))):
        shares = [repeated(model, latents, last, ahead, weight) for ahead in AHEAD]
        print(f"{name:40s}" + "".join(f"{share:7.3f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
