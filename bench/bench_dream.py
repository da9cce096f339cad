"""The dream beside its peers and the machine's peak of multiply-adds, measured just before and after each.

    pytest bench/bench_dream.py -s                       all
    pytest bench/bench_dream.py -s -k "uneven"           a generation whose episodes differ in length
    pytest bench/bench_dream.py --benchmark-json=FILE    for comparison over time

`worldmodels bench` prints the same cases as one table. Every case checks its answer before it is timed.
"""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from worldmodels import _core
from worldmodels.benchmarks.measure import Case, cases, time_case
from worldmodels.support.simd import multiply_add_rate, simd_levels

ROUNDS = 3
COUNT = 1 << 20
FUNCTIONS = {"exp": np.exp, "log": np.log, "tanh": np.tanh}


@pytest.mark.parametrize("number", range(len(list(cases()))))
def test_dream(number: int, benchmark) -> None:
    case: Case = list(cases())[number]()
    fractions, rates, idle = [], [], []

    def play() -> None:
        rate, _, fraction_of_peak, idle_fraction = time_case(case)
        rates.append(rate)
        fractions.append(fraction_of_peak)
        idle.append(idle_fraction)

    benchmark.pedantic(play, rounds=ROUNDS)
    figures = {
        "steps_per_second": statistics.median(rates),
        "fraction_of_peak": statistics.median(fractions),
        "idle_fraction": statistics.median(idle),
    }
    benchmark.extra_info.update(figures)
    print(
        f"\n{case.name}, {case.precision}, {case.threads} threads: {figures['steps_per_second']:,.0f} steps/s, "
        f"{figures['fraction_of_peak']:.2f} of the float32 peak, idle lanes {100 * figures['idle_fraction']:.1f} %"
    )


@pytest.mark.parametrize("level", simd_levels())
@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementwise(level: str, name: str, benchmark) -> None:
    x = np.linspace(0.01, 8.0, COUNT, dtype=np.float32)
    np.testing.assert_allclose(_core.testing.elementwise(level, name, x), FUNCTIONS[name](x), rtol=1e-6, atol=1e-6)
    ours = benchmark.pedantic(lambda: _core.testing.elementwise(level, name, x), rounds=20)
    assert ours.shape == x.shape
    benchmark.extra_info["elements_per_second"] = COUNT / benchmark.stats.stats.median


@pytest.mark.parametrize("level", simd_levels())
@pytest.mark.parametrize("threads", [1, None])
def test_peak(level: str, threads: int | None, benchmark) -> None:
    before = _core.simd_level()
    _core.set_simd_level(level)
    try:
        rate = benchmark.pedantic(lambda: multiply_add_rate("float32", threads, 0.1), rounds=5)
    finally:
        _core.set_simd_level(before)
    assert rate > 1e9
    benchmark.extra_info["gflops"] = rate / 1e9
