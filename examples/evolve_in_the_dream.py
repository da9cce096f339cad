"""Evolve a controller inside the dream that comes with the package: no game, no GPU, a minute."""

import argparse

import numpy as np

import worldmodels as wm

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--generations", type=int, default=10)
options.add_argument("--popsize", type=int, default=64)
options.add_argument("--episodes", type=int, default=16, help="dreams a candidate is judged by")
chosen = options.parse_args()

# Ends were weighed ten times in M's training; none is drawn: a reward counts as much as its step is likely to come
ends = {"done_weight": 10.0, "expected_returns": True}
dream = wm.Dream.pretrained("takecover", temperature=1.15, **ends)  # or wm.Dream.load("runs/quick", ...)
size = dream.controller.size  # 1,088: weights of z, c and h
es = wm.CMAES(np.zeros(size), 0.1, popsize=chosen.popsize, seed=1)

for generation in range(chosen.generations):
    candidates = es.ask()  # (popsize, 1088)
    result = dream.rollout(candidates, chosen.episodes, seed=generation, common_seeds=True)
    survived = result.returns.mean(axis=1)  # (popsize,) steps
    es.tell(candidates, -survived)  # CMA-ES minimises
    print(f"generation {generation}: best {survived.max():.0f}, mean {survived.mean():.0f} steps survived in the dream")

fresh = {"episodes": 4 * chosen.episodes, "seed": 1_000_000}
before, after = (dream.rollout(params[None], **fresh).returns.mean() for params in (np.zeros(size), es.mean))
print(f"standing still survives {before:.0f} steps, the evolved mean {after:.0f}")
