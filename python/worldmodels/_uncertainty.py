"""How many evaluations of a solution the ranking needs (UH-CMA-ES: Hansen, Niederberger, Guzzella,
Koumoutsakos 2009).

Every solution is evaluated K >= 2 times, which a noisy function needs anyhow. If the two halves of the
evaluations rank the population too differently K grows by half, else it shrinks. Unlike in the paper no
evaluation is spent on measuring and sigma is left alone.

Measured, median of f(mean) over 7 seeds after a fixed budget, best fixed K of 1, 2, 4, 16, 64 against K in
[2, 64]: noise N(0, 1) on the sphere, N = 10, 20,000 evaluations: 0.137 (K = 16) -> 0.096; ellipsoid
(condition 1e3), N = 10, 60,000: 0.239 (16) -> 0.138; sphere, N = 20, popsize 64, 100,000: 0.045 (16) ->
0.027; noise N(0, 100), N = 100, popsize 64, 200,000: 2.63 (16) -> 1.53. Where noise shrinks with the signal
(f times N(1, 0.25)) ever smaller steps need no averaging, and a fixed K = 1 is far better.

In the dream, where the noise is that of a rollout's mean return, it does not help: mean return of the mean after
2,560 dream episodes (of at most 1,000 steps, N = 1088, popsize 32, 5 seeds, +- standard deviation over seeds) was
862 +- 44 with K in [2, 32], and 848 +- 34, 872 +- 6, 867 +- 14, 868 +- 16, 837 +- 28 with K = 1, 2, 4, 8, 16
(`python bench/compare_uncertainty.py RUN`, M of the quick preset). The halves' ranks always differed more than
tolerated, K grew to its limit without a pause, and eight generations were all there was; between K = 1 and 8, or 80
and 10 generations, it makes little difference. `worldmodels evolve` therefore has no such option.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STRICTNESS = 0.2  # theta, the share of rank changes by chance that is tolerated
_GROWTH = 1.5  # alpha_t


def rank_change(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Equation 4 of the paper: how much the ranks change beyond what is tolerated, positive when too much.

    Args:
        first: (popsize,) values.
        second: (popsize,) values of the same solutions, measured again.
    """
    popsize = len(first)
    rank = np.empty(2 * popsize)
    rank[np.argsort(np.concatenate([first, second]), kind="stable")] = np.arange(1, 2 * popsize + 1)
    one, two = rank[:popsize], rank[popsize:]
    change = np.abs(two - one - np.sign(two - one))
    others = np.arange(1, 2 * popsize)

    def tolerated(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        distances = np.abs(others - ranks[:, None])
        return np.asarray(np.percentile(distances, 50 * _STRICTNESS, axis=1), dtype=np.float64)

    return float(np.mean(2 * change - tolerated(two - (two > one)) - tolerated(one - (one > two))))


def next_repeats(repeats: float, values: NDArray[np.float64], least: int, most: int) -> float:
    """K for the next generation, not rounded, from the finite rows of values (popsize, K)."""
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < 2:
        return repeats
    with np.errstate(over="ignore"):
        halves = values[:, ::2].mean(axis=1), values[:, 1::2].mean(axis=1)
    too_uncertain = rank_change(*halves) > 0
    return min(float(most), repeats * _GROWTH) if too_uncertain else max(float(least), repeats / _GROWTH)
