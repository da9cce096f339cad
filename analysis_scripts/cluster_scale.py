"""How long does a generation take on a cluster of 1 to 512 cores, and what is the utilization of its workers?

    python analysis_scripts/cluster_scale.py --workers 1 2

Measures the seconds of a step of TakeCover's dream and of CarRacing's evaluator, of a work unit and of a byte. A
simulation of the work units of `rollout.evaluators.distributed` then predicts a generation of 64 x 16 episodes on nodes
of at most 64 cores, and is compared with generations on few workers, which alternate with generations of one process on
all cores. On many cores the main thread bounds CarRacing's evaluator of one process. V and M of CarRacing have the
paper's sizes and are untrained; their episodes last `--frames` steps in the measurement and 1,000 in the prediction.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from worldmodels import MDNRNN, Controller, ConvVAE, Dream
from worldmodels.analysis.stats import table
from worldmodels.pipeline import tasks
from worldmodels.rollout.evaluators import Evaluator
from worldmodels.rollout.evaluators.distributed import DistributedEvaluator, GuidedQueue, Part
from worldmodels.rollout.evaluators.dream import DREAMS_PER_THREAD, DreamEvaluator
from worldmodels.rollout.evaluators.environment import EnvironmentEvaluator
from worldmodels.rollout.needs import ENVS_PER_THREAD, environment_needs, resolved
from worldmodels.support.cluster import ClusterAddress, Needs, StaticQueue, WorkUnit, active_cluster, use_cluster
from worldmodels.support.cluster_scheduling import Usage
from worldmodels.support.cpu import available_cpus
from worldmodels.support.profile import take_profile

CORES = (1, 8, 64, 512)
NODE = 64  # most cores of a node in the prediction
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)  # episodes of a work unit
POPSIZE, EPISODES = 64, 16


class Echo:
    """Job whose work units return their data."""

    needs = Needs()

    def open(self, num_threads):
        return self

    def __call__(self, data):
        return data

    def close(self):
        pass


def quiet(*_):
    pass


@dataclass
class Case:
    """An evaluator and candidates for it.

    Attributes:
        name: Name in the tables.
        params: (P, N) candidates that are measured.
        episodes: Episodes of each.
        make: Function that makes the evaluator for a number of threads.
        needs: Requirements on a node.
        batch: Episodes that a thread plays efficiently at once.
        threaded: Whether one worker per node evaluates, with the threads of all workers of the node.
        lengths: (P, E) steps of the episodes measured.
        steps: Seconds of a step on one core, by the number of episodes of a work unit.
    """

    name: str
    params: np.ndarray
    episodes: int
    make: Callable[[int], Evaluator]
    needs: Needs
    batch: int
    threaded: bool
    lengths: np.ndarray = field(init=False)
    steps: dict[int, float] = field(init=False)


def takecover():
    """Candidates around zero, as in a first generation, in the pretrained world model."""
    dream = Dream.pretrained("takecover")
    params = np.random.default_rng(0).normal(0, 0.1, (POPSIZE, dream.controller.size)).astype(np.float32)
    return Case("TakeCover's dream", params, EPISODES, partial(DreamEvaluator, dream), Needs(), DREAMS_PER_THREAD, True)


def carracing(frames):
    """Candidates that do not steer."""
    task = tasks.get("carracing")
    config = task.presets["paper"]
    latent, hidden, size = config.train_vae.latent_size, config.train_rnn.hidden_size, len(task.actions)
    evolve, environment = config.evolve, resolved(config.environment)
    shape = Controller(
        latent,
        hidden,
        size,
        features=evolve.features,
        bias=evolve.bias,
        hidden_units=evolve.hidden_units,
        squash=task.squash,
    )
    m = MDNRNN(latent, size, hidden, restart_input=config.train_rnn.restart_input)
    make = partial(EnvironmentEvaluator, ConvVAE(latent), m, shape, environment, max_steps=frames, precision="float32")
    params = np.zeros((POPSIZE, shape.size), np.float32)
    return Case("CarRacing", params, EPISODES, partial(_cars, make), environment_needs(environment), 1, False)


def _cars(make, num_threads):
    return make(num_envs=ENVS_PER_THREAD * num_threads, num_workers=num_threads)


def timed(evaluators, case, rounds):
    """Measure evaluations in turns, after a first one of each evaluator.

    Returns the seconds of every round, (rounds, evaluators), and the lengths of the last round's episodes.
    """
    seconds = np.zeros((rounds + 1, len(evaluators)))
    for number in range(rounds + 1):
        options = {"seed": number, "common_random_numbers": False, "on_progress": quiet}
        played = []
        for index, evaluator in enumerate(evaluators):
            began = time.perf_counter()
            played.append(evaluator.play(case.params, case.episodes, **options))
            seconds[number, index] = time.perf_counter() - began
        assert all((one.returns == played[0].returns).all() for one in played)
    return seconds[1:], played[0].lengths


@contextlib.contextmanager
def one_core():
    """Pin threads and processes that are started in this context to one core, as an engine has a thread of its own."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def step_costs(case):
    """Measure the seconds of a step by size of the work unit: few episodes do not fill SIMD vectors or batches of V."""
    evaluator, found = case.make(1), {}
    for size in SIZES:
        options = {"seed": 1, "common_random_numbers": False, "on_progress": quiet}
        began = time.perf_counter()
        played = evaluator.play(case.params[: max(1, size // case.episodes)], min(size, case.episodes), **options)
        found[size] = (time.perf_counter() - began) / played.lengths.sum()
    evaluator.close()
    return found


def costs(cluster):
    """Measure the seconds per work unit of all workers, and per byte."""
    job = cluster.prepare(Echo())

    def run(count, data):
        began = time.perf_counter()
        for _ in cluster.run(job, StaticQueue([WorkUnit(1, data)] * count)):
            pass
        return (time.perf_counter() - began) / count

    run(20, b"")
    unit, megabyte = run(300, b""), bytes(2**20)
    return unit, max(0.0, run(30, megabyte) - unit) / 2**21  # there and back again


def predict(case, lengths, workers, threads, cost):
    """Simulate a generation: the driver sends work units to the workers, one after the other. Returns seconds.

    Args:
        case: Case.
        lengths: (P, E) steps of the episodes.
        workers: Number of workers.
        threads: Number of cores of each.
        cost: Seconds of the driver per work unit, and per byte.
    """
    (candidates, episodes), (per_unit, per_byte) = lengths.shape, cost
    size = case.params.shape[1]
    part = Part(np.zeros((candidates, 1), np.float32), episodes, 0, 0, 0, False)
    queue = GuidedQueue(part, case.batch * threads, case.steps[SIZES[-1]] * lengths.mean() / threads)
    free, driver, end = [0.0] * workers, 0.0, 0.0
    while (unit := queue.take(workers)) is not None:
        part = unit.data
        driver = max(driver, heapq.heappop(free))
        driver += per_unit + per_byte * (4 * size * len(part.params) + 8 * unit.size)
        rows = slice(part.first_candidate, part.first_candidate + len(part.params))
        columns = slice(part.first_episode, part.first_episode + part.episodes)
        per_step = np.interp(np.log(unit.size / threads), np.log(SIZES), [case.steps[one] for one in SIZES])
        done = driver + per_step * float(lengths[rows, columns].sum()) / threads
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def main_thread(case):
    """Measure the CPU seconds of a step that one process does not divide: those of its main thread without V and M."""
    evaluator = case.make(1)
    options = {"seed": 1, "common_random_numbers": False, "on_progress": quiet}
    evaluator.play(case.params[:4], case.episodes, **options)
    take_profile()
    began = time.thread_time()
    played = evaluator.play(case.params[:16], case.episodes, **options)
    seconds, profile = time.thread_time() - began, take_profile()
    evaluator.close()
    return (seconds - profile["V"] - profile["M"]) / played.lengths.sum()


def measure(case, rounds):
    """Measure a case on one core, without a cluster."""
    with one_core():
        one = case.make(1)
        seconds, case.lengths = timed([one], case, rounds)
        one.close()
        case.steps = step_costs(case)
    print(f"{case.name}: {np.median(seconds):.2f} s on one core")


def compare(case, cluster, cost, rounds):
    """Measure a case on a cluster; return a row of the table."""
    evaluator = DistributedEvaluator(cluster, case.make, case.needs, batch=case.batch, threaded=case.threaded)
    process = case.make(available_cpus())
    timed([evaluator], case, 0)  # starts the workers
    cluster.usage = Usage()
    seconds, _ = timed([process, evaluator], case, rounds)
    process.close()
    threads = cluster.threads_per_worker(case.threaded)
    workers = 1 if case.threaded else cluster.num_workers
    guess = predict(case, case.lengths, workers, min(threads, available_cpus()), cost)
    return [
        case.name,
        f"{workers} x {threads}",
        *(f"{one:.2f} s" for one in np.median(seconds, axis=0)),
        f"{np.median(seconds[:, 1] / seconds[:, 0]):.2f}",
        f"{guess:.2f} s",
        f"{cluster.usage.utilization:.1%}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to measure")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; medians are printed")
    parser.add_argument("--frames", type=int, default=50, help="steps of a measured episode of CarRacing")
    options = parser.parse_args()
    cases = [takecover(), carracing(options.frames)]
    for case in cases:
        measure(case, options.rounds)
    serial = main_thread(cases[1])
    print(
        f"CarRacing, one process: {1e6 * serial:.1f} us of its main thread per step, {1 / serial:,.0f} steps/s at most"
    )
    rows = [[str(size), *(f"{1e6 * case.steps[size]:.1f} us" for case in cases)] for size in SIZES]
    print(table(["episodes of a work unit", *(f"{case.name}: one step" for case in cases)], rows))
    rows, cost = [], (0.0, 0.0)
    for count in options.workers:
        with use_cluster(ClusterAddress(count)):
            cluster = active_cluster()
            cost = costs(cluster)
            print(f"{count} workers: {1e3 * cost[0]:.2f} ms per work unit, {1e9 * cost[1]:.2f} ns per byte")
            rows += [compare(case, cluster, cost, options.rounds) for case in cases]
    titles = ["evaluator", "processes x threads", "one process", "cluster", "ratio", "predicted", "utilization"]
    print(table(titles, rows))
    lengths = {"CarRacing": np.full((POPSIZE, EPISODES), 1000)}
    rows = []
    for cores in CORES:
        threads = min(cores, NODE)
        shapes = [(cores // threads, threads) if one.threaded else (cores, 1) for one in cases]
        guesses = [
            predict(one, lengths.get(one.name, one.lengths), *shape, cost)
            for one, shape in zip(cases, shapes, strict=True)
        ]
        alone = lengths["CarRacing"].sum() * max(cases[1].steps[SIZES[-1]] / cores, serial)
        rows.append([str(cores), *(f"{guess:.2f} s" for guess in guesses), f"{alone:.2f} s" if cores <= NODE else ""])
    print(table(["cores", *(case.name for case in cases), "CarRacing, one process"], rows))


if __name__ == "__main__":
    main()
