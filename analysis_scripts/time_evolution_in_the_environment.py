"""Where does the time go when C is evolved in the real environment?

    python analysis_scripts/time_evolution_in_the_environment.py --rounds 3

Prints frames per second of the whole loop, of its environments alone and of V's encoder alone, measured in alternation,
the ratio of the loop to the slower of the two, and the profile of the loop. V, M and C have the paper's sizes and are
untrained.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from worldmodels import MDNRNN, Controller, ConvVAE
from worldmodels.envs.vector import make_vector_env
from worldmodels.pipeline import tasks
from worldmodels.rollout.environments import describe_environment
from worldmodels.rollout.evaluators.environment import EnvironmentEvaluator
from worldmodels.support.cpu import available_cpus
from worldmodels.support.profile import take_profile

_EPISODES = 2  # in every environment, one after the other; their resets are measured too


def environments_alone(environment, slots, steps, actions):
    batch = make_vector_env(environment, slots)
    everyone, seeds = np.arange(slots), list(range(_EPISODES * slots))
    began = time.perf_counter()
    batch.prefetch(seeds)
    for episode in range(_EPISODES):
        batch.reset(everyone, seeds[episode * slots : (episode + 1) * slots])
        for _ in range(steps):
            batch.step(everyone, actions)
    speed = _EPISODES * slots * steps / (time.perf_counter() - began)
    batch.close()
    return speed


def encoder_alone(evaluator, slots, rounds=20):
    frames = np.random.default_rng(0).integers(0, 256, (slots, 64, 64, 3), dtype=np.uint8)
    evaluator.encode(frames)
    began = time.perf_counter()
    for _ in range(rounds):
        evaluator.encode(frames)
    return slots * rounds / (time.perf_counter() - began)


def whole_loop(evaluator, params, episodes):
    """Measure frames per second, this process's utilization of the cores, and the fractions of the time by phase."""
    take_profile()
    began, cpu = time.perf_counter(), time.process_time()
    played = evaluator.play(params, episodes, seed=0, common_random_numbers=False, on_progress=lambda *_: None)
    seconds = time.perf_counter() - began
    busy = (time.process_time() - cpu) / seconds / available_cpus()
    assert 0 < played.lengths.max() <= evaluator.max_steps
    return played.lengths.sum() / seconds, busy, {name: value / seconds for name, value in take_profile().items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="carracing", help="task")
    parser.add_argument("--environments", type=int, default=64, help="number of environments")
    parser.add_argument("--steps", type=int, default=200, help="steps per episode")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions; medians are printed")
    parser.add_argument("--precision", default="auto", help="precision of V: auto, float32 or bfloat16")
    options = parser.parse_args()
    task = tasks.get(options.experiment)
    config = task.presets["paper"]
    rnn, evolve = config.train_rnn, config.evolve
    latent, size = config.train_vae.latent_size, len(task.actions)
    controller = Controller(
        latent, rnn.hidden_size, size, evolve.features, evolve.bias, evolve.hidden_units, task.squash
    )
    slots = options.environments
    evaluator = EnvironmentEvaluator(
        ConvVAE(latent),
        MDNRNN(latent, size, rnn.hidden_size, restart_input=rnn.restart_input),
        controller,
        config.environment,
        num_envs=slots,
        num_workers=available_cpus(),
        max_steps=options.steps,
        precision=options.precision,
    )
    calm = np.zeros(controller.size)  # constant actions
    actions = np.tile(controller.act(calm, np.zeros(controller.feature_size)), (slots, 1))
    print(f"{describe_environment(config.environment)}, {slots} environments, {available_cpus()} cores")
    rounds = []
    for _ in range(options.rounds):
        alone = environments_alone(config.environment, slots, options.steps, actions)
        encoding = encoder_alone(evaluator, slots)
        loop, busy, profile = whole_loop(evaluator, calm[None], _EPISODES * slots)
        share = loop / min(alone, encoding)
        rounds.append((alone, encoding, loop, share))
        print(
            f"environments alone {alone:,.0f} frames/s, V's encoder alone {encoding:,.0f}, whole loop {loop:,.0f}: "
            f"{share:.2f} of the slower"
        )
        parts = ", ".join(f"{name} {value:.0%}" for name, value in profile.items())
        print(f"profile of the loop: {parts}; utilization of the cores {busy:.0%}")
    evaluator.close()
    alone, encoding, loop, share = map(statistics.median, zip(*rounds, strict=True))
    print(f"medians: environments {alone:,.0f}, encoder {encoding:,.0f}, loop {loop:,.0f}, ratio {share:.2f}")


if __name__ == "__main__":
    main()
