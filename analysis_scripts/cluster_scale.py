"""How long a generation takes on a cluster: costs measured here, predictions for more cores, a check with few workers.

    python analysis_scripts/cluster_scale.py --workers 1 2

Measures the seconds of a step of TakeCover's dream and of CarRacing's evaluator, and what a piece of work and a byte
cost. A simulation of the parts that `rollout.evaluators.distributed` hands out then predicts a generation of
64 x 16 episodes. V and M of CarRacing have the paper's sizes and no training; their episodes last `--frames` steps here
and 1,000 in the prediction.
"""

from __future__ import annotations

import argparse
import heapq
import statistics
import time
from functools import partial

import numpy as np

from worldmodels import MDNRNN, Agent, Controller, ConvVAE, Dream
from worldmodels.analysis.stats import table
from worldmodels.pipeline import tasks
from worldmodels.rollout.evaluators.distributed import DistributedEvaluator, Part, Parts
from worldmodels.rollout.evaluators.dream import DreamEvaluator
from worldmodels.rollout.evaluators.environment import EnvironmentEvaluator
from worldmodels.rollout.needs import environment_needs, resolved
from worldmodels.support.cluster import ClusterAddress, Needs, Piece, Queue, active_cluster, use_cluster
from worldmodels.support.cpu import available_cpus
from worldmodels.support.ray_cluster import Usage

CORES = (1, 8, 64, 512)
POPSIZE, EPISODES = 64, 16


class Echo:
    """Work that returns what it gets."""

    needs = Needs()

    def open(self, num_threads):
        return self

    def __call__(self, piece):
        return piece

    def close(self):
        pass


def quiet(*_):
    pass


def takecover():
    """Candidates around the pretrained controller, and what makes the evaluator of their dreams."""
    agent = Agent.pretrained("takecover")
    dream = Dream.pretrained("takecover", controller=agent.controller)
    noise = np.random.default_rng(0).normal(0, 0.1, (POPSIZE, agent.controller.size))
    return (agent.params + noise).astype(np.float32), partial(DreamEvaluator, dream), Needs()


def carracing(frames):
    """Candidates that do not steer, and what makes the evaluator of their episodes."""
    task = tasks.get("carracing")
    config = task.presets["paper"]
    latent, hidden, size = config.train_vae.latent_size, config.train_rnn.hidden_size, len(task.actions)
    evolve, environment = config.evolve, resolved(config.environment)
    shape = Controller(latent, hidden, size, evolve.features, evolve.bias, evolve.hidden_units, task.squash)
    m = MDNRNN(latent, size, hidden, restart_input=config.train_rnn.restart_input)
    make = partial(EnvironmentEvaluator, ConvVAE(latent), m, shape, environment, max_steps=frames, precision="float32")
    return np.zeros((8, shape.size), np.float32), partial(_one, make), environment_needs(environment)


def _one(make, num_threads):
    return make(num_envs=16, num_workers=num_threads)


def timed(evaluator, params, episodes, rounds):
    """Median seconds of an evaluation after a first one, and its result."""
    seconds = []
    for number in range(rounds + 1):
        began = time.perf_counter()
        played = evaluator.play(params, episodes, seed=number, common_seeds=False, on_progress=quiet)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]), played


def costs(cluster):
    """Seconds between two pieces of all workers, and seconds a byte."""
    work = cluster.prepare(Echo())

    def run(count, data):
        began = time.perf_counter()
        for _ in cluster.run(work, Queue([Piece(1, data)] * count)):
            pass
        return (time.perf_counter() - began) / count

    run(20, b"")
    piece, megabyte = run(300, b""), bytes(2**20)
    return piece, max(0.0, run(30, megabyte) - piece) / 2**21  # there and back again


def predict(lengths, per_step, cores, per_piece, per_byte, size):
    """Seconds of a generation: every core does parts, and the driver hands out one after the other.

    Args:
        lengths: (P, E) steps of the episodes.
        per_step: Seconds of a step on one core.
        cores: Number of workers.
        per_piece: Seconds of the driver for a piece.
        per_byte: Seconds of the driver for a byte.
        size: Number of parameters of a candidate.
    """
    candidates, episodes = lengths.shape
    parts = Parts(Part(np.zeros((candidates, 1), np.float32), episodes, 0, 0, 0, False), per_step * lengths.mean())
    free, driver, end = [0.0] * cores, 0.0, 0.0
    while (piece := parts.take(cores)) is not None:
        part = piece.data
        driver = max(driver, heapq.heappop(free))
        driver += per_piece + per_byte * (4 * size * len(part.params) + 8 * piece.size)
        rows = slice(part.first_candidate, part.first_candidate + len(part.params))
        columns = slice(part.first_episode, part.first_episode + part.episodes)
        done = driver + per_step * float(lengths[rows, columns].sum())
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=100, help="steps of an episode of CarRacing here")
    options = parser.parse_args()
    params, make_dream, no_needs = takecover()
    cars, make_cars, car_needs = carracing(options.frames)
    threads, _ = timed(make_dream(available_cpus()), params, EPISODES, options.rounds)
    one, dreamed = timed(make_dream(1), params, EPISODES, options.rounds)
    whole, driven = timed(make_cars(available_cpus()), cars, 4, options.rounds)
    drive, _ = timed(make_cars(1), cars, 4, options.rounds)
    per_dream, per_frame = one / dreamed.lengths.sum(), drive / driven.lengths.sum()
    print(f"{available_cpus()} cores: dream {1e6 * per_dream:.1f} us/step, CarRacing {1e6 * per_frame:.0f} us/frame")
    print(f"one process with {available_cpus()} threads: dream {threads:.2f} s, CarRacing {whole:.2f} s")
    rows, cost = [], (0.0, 0.0)
    for count in options.workers:
        with use_cluster(ClusterAddress(count)):
            cluster = active_cluster()
            cost = per_piece, per_byte = costs(cluster)
            print(f"{count} workers: {1e3 * per_piece:.2f} ms a piece, {1e9 * per_byte:.2f} ns a byte")
            for name, batch, episodes, make, needs, lengths, per_step in (
                ("dream", params, EPISODES, make_dream, no_needs, dreamed.lengths, per_dream),
                ("CarRacing", cars, 4, make_cars, car_needs, driven.lengths, per_frame),
            ):
                evaluator = DistributedEvaluator(cluster, make, needs)
                timed(evaluator, batch, episodes, 1)
                cluster.usage = Usage()
                seconds, _ = timed(evaluator, batch, episodes, options.rounds)
                guess = predict(lengths, per_step, count, per_piece, per_byte, batch.shape[1])
                cells = [name, str(count), f"{seconds:.2f} s", f"{guess:.2f} s", f"{cluster.usage.share:.1%}"]
                rows.append(cells)
    print(table(["evaluator", "workers", "measured", "predicted", "busy"], rows))
    frames = np.full((POPSIZE, EPISODES), 1000)
    rows = [
        [str(cores)]
        + [
            f"{predict(lengths, per_step, cores, *cost, size):.2f} s"
            for lengths, per_step, size in ((dreamed.lengths, per_dream, 1088), (frames, per_frame, 867))
        ]
        for cores in CORES
    ]
    print(table(["cores", "TakeCover's dream", "CarRacing"], rows))


if __name__ == "__main__":
    main()
