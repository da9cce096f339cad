"""CMA-ES beside its peers: time of a generation (ask and tell, decompositions included), N from 10 to 2000.

    pytest bench/bench_cmaes.py -s          all, prints the ratio to each peer that is installed
    pytest bench/bench_cmaes.py -s -k 1088  the size of the Doom controller

The generations of ours and of the peers alternate in batches, so that a busy neighbour slows all of them.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import numpy as np
import pytest

from worldmodels.cmaes import CMAES

POPSIZE = 64
BATCHES = 3

Generation = Callable[[], float]


def cost(x):
    return ((x - 1) ** 2).sum(axis=1)


def seconds_of(step: Callable[[], np.ndarray], learn: Callable[[np.ndarray, np.ndarray], object]) -> float:
    """Seconds of one ask and tell, without those of the function between them."""
    start = time.perf_counter()
    x = step()
    asked = time.perf_counter()
    values = cost(np.asarray(x))
    told = time.perf_counter()
    learn(x, values)
    return asked - start + time.perf_counter() - told


def ours(n: int) -> Generation:
    es = CMAES(np.zeros(n), 0.1, popsize=POPSIZE, seed=1)
    return lambda: seconds_of(es.ask, es.tell)


def pycma(n: int) -> Generation:
    import cma

    es = cma.CMAEvolutionStrategy(np.zeros(n), 0.1, {"popsize": POPSIZE, "seed": 1, "verbose": -9})
    return lambda: seconds_of(es.ask, lambda x, values: es.tell(x, values.tolist()))


def cyberagent(n: int) -> Generation:
    import cmaes

    es = cmaes.CMA(np.zeros(n), 0.1, population_size=POPSIZE, seed=1)
    return lambda: seconds_of(
        lambda: np.array([es.ask() for _ in range(POPSIZE)]),
        lambda x, values: es.tell(list(zip(x, values, strict=True))),
    )


def evosax(n: int) -> Generation:
    import jax
    from evosax.algorithms import CMA_ES

    strategy = CMA_ES(population_size=POPSIZE, solution=np.zeros(n))
    params = strategy.default_params.replace(std_init=0.1)
    key = jax.random.key(1)
    state = strategy.init(key, np.zeros(n), params)
    ask, tell = jax.jit(strategy.ask), jax.jit(strategy.tell)

    def step() -> np.ndarray:
        nonlocal state
        x, state = ask(key, state, params)
        return jax.block_until_ready(x)

    def learn(x: np.ndarray, values: np.ndarray) -> None:
        nonlocal state
        state, _ = jax.block_until_ready(tell(key, x, values, state, params))

    return lambda: seconds_of(step, learn)


# Peer, what it is called on PyPI, and how many generations it can be asked for at a large N.
PEERS = [(pycma, "cma", 24), (cyberagent, "cmaes", 1), (evosax, "evosax", 12)]


def answer_is_right(n: int) -> None:
    """A shifted sphere must get better, and both numbers of threads must agree in every bit."""
    runs = [CMAES(np.zeros(n), 0.1, popsize=POPSIZE, seed=1, num_threads=threads, gap=2) for threads in (1, 2)]
    best = []
    for _ in range(6):
        for es in runs:
            x = es.ask()
            es.tell(x, cost(x))
        best.append(cost(runs[0].mean[None])[0])
    assert best[-1] < best[0] < n
    assert np.array_equal(runs[0].mean, runs[1].mean)
    assert runs[0].sigma == runs[1].sigma


@pytest.mark.parametrize("n", [10, 100, 867, 1088, 2000])
def test_generation(n: int, benchmark) -> None:
    answer_is_right(n)
    generation = ours(n)
    generations = max(16, int(CMAES(np.zeros(n), 0.1, popsize=POPSIZE).gap) + 1)  # one decomposition per batch
    peers = {
        name: (make(n), slow if n > 500 else 50)
        for make, name, slow in PEERS
        if importlib.util.find_spec(name) is not None
    }
    for other, _ in peers.values():
        other()  # compiles, allocates
    own: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}

    def batch() -> None:
        own.append(float(np.mean([generation() for _ in range(generations)])))

    def others() -> None:
        for name, (other, count) in peers.items():
            if count > 1 or not theirs[name]:
                theirs[name].append(float(np.mean([other() for _ in range(count)])))

    benchmark.pedantic(batch, setup=others, rounds=BATCHES, warmup_rounds=0)
    mine = 1e3 * float(np.mean(own))
    print(f"\nN = {n}: {mine:.2f} ms a generation over {generations * len(own)}", end="")
    for name, times in theirs.items():
        theirs_ms = 1e3 * float(np.mean(times))
        benchmark.extra_info[f"{name}_ms"] = theirs_ms
        print(f"; {name} {theirs_ms:.2f} ms, ratio {mine / theirs_ms:.3f}", end="")
    print()
