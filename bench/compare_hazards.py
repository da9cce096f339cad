"""How often the agent dies, by age: in the game, in its dream, and in dreams that go on from recorded episodes.

    python bench/compare_hazards.py runs/small --temperatures 1.15 1.5 --ends threshold chance

Prints deaths per 1,000 steps. A dream that is easier than the game there teaches C too little. RUN needs its latents
and the stage evaluate. --done-bias is added to the logit of the end, as another train_rnn.done_weight would.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from worldmodels import Dream
from worldmodels.data.latents import load_latents
from worldmodels.dream import done_weight, load_world
from worldmodels.models.agent import load_controller
from worldmodels.models.memory import Memory

AGES = (0, 100, 200, 300, 400, 600, 800, 1200, 2100)
CONTEXTS, AHEAD, LATEST = (100, 300, 600), 200, 300  # ages of the starts, steps dreamt, recorded episodes looked at


def hazard(lengths, low, high):
    """Deaths per 1,000 steps between two ages."""
    alive = lengths[lengths > low]
    steps = np.minimum(alive, high).sum() - low * len(alive)
    return 1000 * ((alive <= high) & (alive < AGES[-1])).sum() / steps if steps else float("nan")


def row(name, lengths, edges):
    values = " ".join(f"{hazard(lengths, low, high):6.2f}" for low, high in itertools.pairwise(edges))
    print(f"{name:34s} {values}")


def contexts(model, latents, age, rng):
    """Frames of an age in the latest episodes, and M's memory there: the arguments of a Dream."""
    episodes = np.flatnonzero(latents.lengths > age + 5)[-LATEST:]
    first, memory = latents.starts[episodes], Memory(model, len(episodes))
    for step in range(age):
        rows = first + step
        noise = rng.standard_normal((len(rows), model.latent_size))
        z = latents.mu[rows] + np.exp(0.5 * latents.logvar[rows].astype(np.float64)) * noise
        restart = np.full(len(rows), step == 0)
        memory.step(np.arange(len(rows)), z.astype(np.float32), latents.actions[rows], restart)
    rows = first + age
    mu, logvar = (part[rows].astype(np.float32) for part in (latents.mu, latents.logvar))
    return {"initial_mu": mu, "initial_logvar": logvar, "initial_h": memory.h, "initial_c": memory.c}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.15])
    parser.add_argument("--ends", choices=("threshold", "chance"), nargs="+", default=["threshold"])
    parser.add_argument("--done-bias", type=float, nargs="+", default=[0.0])
    options = parser.parse_args()
    controller, params, _ = load_controller(options.run / "evolve" / "controller.safetensors")
    world, latents = load_world(options.run), load_latents(options.run / "latents")
    lines = (options.run / "evaluate" / "episodes.jsonl").read_text().splitlines()[1:]
    print(f"{'by age, from':34s} " + " ".join(f"{age:6d}" for age in AGES[:-1]))
    row("game", np.array([json.loads(line)["score"] for line in lines]), AGES)
    rng = np.random.default_rng(0)
    starts = {age: contexts(world.mdnrnn, latents, age, rng) for age in CONTEXTS}
    settings = itertools.product(options.temperatures, options.ends, options.done_bias)
    later = []
    bias = world.mdnrnn.head.bias.data[0].clone()
    for temperature, ends, added in settings:
        world.mdnrnn.head.bias.data[0] = bias + added
        name = f"dream, {temperature:g}, {ends}, bias {added:+g}"
        chosen = {"temperature": temperature, "done_weight": done_weight(options.run, ends)}
        dream = Dream(*world, controller, max_steps=AGES[-1], **chosen)
        row(name, dream.rollout(params[None], 256, seed=11).lengths.ravel(), AGES)
        for age, given in starts.items():
            dream = Dream(world.mdnrnn, controller=controller, max_steps=AHEAD + 1, **chosen, **given)
            lengths = dream.rollout(params[None], 500, seed=12).lengths.ravel()
            later.append((f"{name}, age {age}", lengths))
    print(f"\n{'from real frames, steps ahead from':34s} " + " ".join(f"{step:6d}" for step in range(0, AHEAD, 50)))
    for name, lengths in later:
        row(name.removeprefix("dream, "), lengths, range(0, AHEAD + 1, 50))


if __name__ == "__main__":
    main()
