"""Minimise Rosenbrock's function with CMA-ES, and continue from a saved state.

    python examples/cmaes_on_a_function.py

Time: 3 seconds. Needs no PyTorch, game or GPU. Prints the best value and the step size every 100 generations, then the
stopping criterion, the number of evaluations and the minimum.
"""

import argparse

import numpy as np

import worldmodels as wm

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--dimensions", type=int, default=10, help="dimensions N of the function")
options.add_argument("--seed", type=int, default=1, help="seed of CMA-ES")
chosen = options.parse_args()


def rosenbrock(x):
    """Zero at (1, ..., 1), at the end of a narrow valley; x (..., N)."""
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(axis=-1)


es = wm.CMAES(np.zeros(chosen.dimensions), 0.5, seed=chosen.seed, ftarget=1e-10)
while not es.stop():
    solutions = es.ask()  # (popsize, N)
    es.tell(solutions, rosenbrock(solutions))  # (popsize,) values; NaN and infinity rank worst
    if es.iterations % 100 == 0:
        print(f"generation {es.iterations}: best {es.result.fbest:.3g}, sigma {es.sigma:.3g}")
        state = es.state_dict()  # arrays and numbers; a restored state continues bit-identically
        es = wm.CMAES(np.zeros(chosen.dimensions), 0.5)
        es.load_state_dict(state)

print(f"stopped by {es.stop()} after {es.result.evaluations} evaluations")
print(f"best value {es.result.fbest:.3g} at {np.round(es.result.xbest, 4)}")
