"""CMA-ES beside its peers, beside the machine's limits and beside a generation of the dream.

    pytest bench/bench_cmaes.py -s             all; each line says what it measured
    pytest bench/bench_cmaes.py -s -k "1088"   the size of the Doom controller
    pytest bench/bench_cmaes.py -s -k "share"  what CMA-ES adds to a dream generation

Times are those of a generation, ask and tell. What is compared alternates in batches, so that a busy neighbour
slows all of it.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest

from worldmodels.benchmarks.measure import rollout_case
from worldmodels.benchmarks.worlds import CANDIDATES, EPISODES, doom
from worldmodels.cmaes.cmaes import CMAES
from worldmodels.support.cpu import available_cpus
from worldmodels.support.simd import multiply_add_rate, precisions

POPSIZE = 64
BATCHES = 3
DREAM_STEPS = 650  # of an episode, on average

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


def ours(n: int, gap: float | None = None) -> Generation:
    es = CMAES(np.zeros(n), 0.1, popsize=POPSIZE, seed=1, gap=gap)
    return lambda: seconds_of(es.ask, es.tell)


def ours_at_tutorials_gap(n: int) -> Generation:
    """Decomposes five times as often: every 1 / (10 N (c1 + cmu)) generations, like pycma."""
    return ours(n, CMAES(np.zeros(n), 0.1, popsize=POPSIZE).gap / 5)


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


# What is beside ours, the package it needs, and how many generations it can be asked for at a large N.
PEERS = [
    (ours_at_tutorials_gap, "worldmodels", 24),
    (pycma, "cma", 24),
    (cyberagent, "cmaes", 1),
    (evosax, "evosax", 12),
]


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
        make.__name__: (make(n), slow if n > 500 else 50)
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
    print(f"\nN = {n}: {mine:.2f} ms over {generations * len(own)} generations", end="")
    for name, times in theirs.items():
        theirs_ms = 1e3 * float(np.mean(times))
        benchmark.extra_info[f"{name}_ms"] = theirs_ms
        print(f"; {name} {theirs_ms:.2f} ms, ratio {mine / theirs_ms:.3f}", end="")
    print()


def copy_rate() -> float:
    """Bytes read and written per second by a copy that no cache holds, on one thread."""
    source = np.ones(1 << 23)
    target = np.empty_like(source)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


@pytest.mark.parametrize("threads", sorted({1, available_cpus()}))
@pytest.mark.parametrize("n", [867, 1088, 2000])
def test_without_decompositions(n: int, threads: int, benchmark) -> None:
    """Beside its limit: multiply-adds at the machine's peak, then the memory's traffic at the speed of a copy.

    The peak of float64 is half that of float32; both limits are measured before every batch.
    """
    es = CMAES(np.zeros(n), 0.1, popsize=POPSIZE, seed=1, num_threads=threads, gap=math.inf)
    flops = 2 * POPSIZE * n**2 + (POPSIZE + 1) * n**2 + 2 * n**2  # y = B D z, half of C's update, B z_mean
    traffic = 8 * 3 * n**2  # the axes twice, half of C read and written
    times, peaks, copies = [], [], []

    def batch() -> None:
        peaks.append(multiply_add_rate("float32", threads, 0.05) / 2)
        copies.append(copy_rate())
        times.append(statistics.median(seconds_of(es.ask, es.tell) for _ in range(20)))

    benchmark.pedantic(batch, rounds=5, warmup_rounds=1)
    took, peak, copy = (statistics.median(values) for values in (times, peaks, copies))
    limits = [flops / p + traffic / c for p, c in zip(peaks, copies, strict=True)]
    share = statistics.median(limit / seconds for limit, seconds in zip(limits, times, strict=True))
    benchmark.extra_info.update(milliseconds=1e3 * took, gflops=flops / took / 1e9, share_of_limit=share)
    print(
        f"\nN = {n}, {threads} threads, without decompositions: {1e3 * took:.2f} ms, {flops / took / 1e9:.1f} GFLOP/s "
        f"of {peak / 1e9:.1f}, {traffic / took / 1e9:.1f} GB/s of {copy / 1e9:.1f}, {share:.2f} of the limit"
    )


@pytest.mark.parametrize("n", [1088])
def test_share_of_a_dream_generation(n: int, benchmark) -> None:
    """64 candidates x 16 episodes x 650 steps, at the rate that the dream has in this process."""
    precision = precisions()[-1]
    case = rollout_case(doom(), precision, available_cpus())
    generation = ours(n)
    generations = int(CMAES(np.zeros(n), 0.1, popsize=POPSIZE).gap) + 1
    own: list[float] = []
    rates: list[float] = []

    def batch() -> None:
        own.append(float(np.mean([generation() for _ in range(generations)])))

    def dream() -> None:
        start = time.perf_counter()
        steps, _ = case.play()
        rates.append(steps / (time.perf_counter() - start))

    benchmark.pedantic(batch, setup=dream, rounds=BATCHES, warmup_rounds=1)
    dreamt = CANDIDATES * EPISODES * DREAM_STEPS / statistics.median(rates)
    share = statistics.median(own) / dreamt
    benchmark.extra_info.update(dream_seconds=dreamt, share=share)
    print(
        f"\nN = {n}: {1e3 * statistics.median(own):.2f} ms, {100 * share:.2f} % of a dream generation of "
        f"{dreamt:.2f} s ({precision}, {statistics.median(rates):,.0f} steps/s, {available_cpus()} threads)"
    )
