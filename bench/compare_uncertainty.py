"""Whether following the noise helps in a dream: fixed episodes per candidate beside CMAES(uncertainty=...).

    python bench/compare_uncertainty.py RUN --seeds 5 --budget 2560

RUN is a run folder whose M is trained. Every run may dream the same number of episodes; printed is the mean return
of the distribution's mean over 192 other episodes, halfway and at the end.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np

from worldmodels.cmaes import CMAES
from worldmodels.data.weights import load_model, load_tensors
from worldmodels.dream import Dream, precisions
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN

POPSIZE = 32
LONGEST = 1000
TEMPERATURE = 1.15
FIXED = (1, 2, 4, 8, 16)
ADAPTED = (2, 32)


def open_dream(run: Path) -> Dream:
    model = load_model(run / "rnn" / "rnn.safetensors", MDNRNN)
    initial, _ = load_tensors(run / "rnn" / "initial.safetensors")
    controller = Controller(model.latent_size, model.hidden_size, model.action_size)
    return Dream(
        model,
        initial["mu"].numpy(),
        initial["logvar"].numpy(),
        controller,
        temperature=TEMPERATURE,
        max_steps=LONGEST,
        precision=precisions()[-1],
    )


def evolve(dream: Dream, repeats: int | None, seed: int, budget: int) -> tuple[float, float, int]:
    """Return of the mean at half of the budget and at the end, and the generations; repeats None adapts them."""
    uncertainty = ADAPTED if repeats is None else None
    es = CMAES(np.zeros(dream.controller.size), 0.1, popsize=POPSIZE, seed=seed, uncertainty=uncertainty)
    halfway: float | None = None
    spent = 0
    while spent < budget:
        candidates = es.ask()
        episodes = es.repeats if repeats is None else repeats
        played = dream.rollout(candidates, episodes, seed=1_000_003 * seed + es.iterations, common_seeds=True)
        costs = -played.returns.astype(np.float64)
        es.tell(candidates, costs if repeats is None else costs.mean(axis=1))
        spent += costs.size
        if halfway is None and spent >= budget / 2:
            halfway = evaluate(dream, es)
    assert halfway is not None
    return halfway, evaluate(dream, es), es.iterations


def evaluate(dream: Dream, es: CMAES) -> float:
    return float(dream.rollout(es.mean[None], 192, seed=999).returns.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=2560, help="dream episodes of a run")
    arguments = parser.parse_args()
    dream = open_dream(arguments.run)
    for repeats in (None, *FIXED):
        runs = [evolve(dream, repeats, seed, arguments.budget) for seed in range(arguments.seeds)]
        halfway, end, generations = zip(*runs, strict=True)
        spread = statistics.stdev(end) if len(end) > 1 else 0.0
        print(
            f"episodes {'adapted' if repeats is None else repeats}: halfway {statistics.mean(halfway):.0f}, "
            f"end {statistics.mean(end):.0f} +- {spread:.0f}, {statistics.median(generations):.0f} generations",
            flush=True,
        )


if __name__ == "__main__":
    main()
