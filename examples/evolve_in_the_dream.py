"""Evolve a controller inside the pretrained dream of TakeCover.

    python examples/evolve_in_the_dream.py

Time: 3 minutes on two cores with AVX-512, longer without. Needs neither a game nor a GPU. Prints the best and the mean
steps survived of every generation, then the scores of zero parameters and of the evolved mean in new dreams.
"""

import argparse

import numpy as np

import worldmodels as wm

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--generations", type=int, default=10, help="generations of CMA-ES")
options.add_argument("--popsize", type=int, default=64, help="candidates per generation")
options.add_argument("--episodes", type=int, default=16, help="dreams per candidate")
chosen = options.parse_args()

# termination="expected" is this world model's default: rewards are weighted by the survival probability
dream = wm.Dream.pretrained("takecover", temperature=1.15)  # or wm.Dream.load("runs/quick", termination=...)
size = dream.controller.size  # 1,088: weights of z, c and h
es = wm.CMAES(np.zeros(size), 0.1, popsize=chosen.popsize, seed=1)

for generation in range(chosen.generations):
    candidates = es.ask()  # (popsize, 1088)
    result = dream.rollout(candidates, chosen.episodes, seed=generation, common_random_numbers=True)
    survived = result.returns.mean(axis=1)  # (popsize,) steps
    es.tell(candidates, -survived)  # CMA-ES minimizes
    print(f"generation {generation}: best {survived.max():.0f}, mean {survived.mean():.0f} steps survived in the dream")

fresh = {"episodes": 4 * chosen.episodes, "seed": 1_000_000}
before, after = (dream.rollout(params[None], **fresh).returns.mean() for params in (np.zeros(size), es.mean))
print(f"zero parameters survive {before:.0f} steps, the evolved mean {after:.0f}")
