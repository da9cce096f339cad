from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from worldmodels.cmaes import CMAES
from worldmodels.restarts import RestartingCMAES


def rastrigin(x):
    return 10 * x.shape[1] + (x**2 - 10 * np.cos(2 * np.pi * x)).sum(axis=1)


def sphere(x):
    return (x**2).sum(axis=1)


def run(es, function):
    sizes = [es.popsize]
    while not es.stop():
        x = es.ask()
        es.tell(x, function(x))
        if es.runs == len(sizes):
            sizes.append(es.popsize)
    return sizes


@pytest.mark.parametrize("scheme", ["ipop", "bipop"])
def test_restarts_solve_what_one_run_does_not(scheme):
    n = 5
    options = {"popsize": 8, "seed": 3, "num_threads": 1}
    plain = CMAES(np.full(n, 3.0), 1.0, **options)
    while not plain.stop():
        x = plain.ask()
        plain.tell(x, rastrigin(x))
    assert plain.result.fbest > 0.5
    es = RestartingCMAES(np.full(n, 3.0), 1.0, scheme=scheme, spread=1.0, ftarget=1e-8, **options)
    sizes = run(es, rastrigin)
    assert es.stop() == {"ftarget": 1e-8}
    assert es.result.fbest <= 1e-8
    assert rastrigin(es.result.xbest[None])[0] == es.result.fbest
    assert len(sizes) == es.runs + 1 > 1
    if scheme == "ipop":
        assert sizes == [8 * 2**k for k in range(len(sizes))]


def test_bipop_spends_as_much_on_small_runs_as_on_large_ones():
    es = RestartingCMAES(np.full(4, 3.0), 1.0, scheme="bipop", restarts=4, spread=1.0, popsize=6, seed=1)
    sizes = run(es, lambda x: rastrigin(x) + 1)
    assert es.stop() == {"restarts": 4}
    large = [6 * 2**k for k in range(5)]
    assert [size for size in sizes if size in large[1:]][-1] == large[-1]
    assert min(sizes) >= 6
    state = es.state_dict()
    assert 0.3 * state["spent_large"] < state["spent_small"] < 3 * state["spent_large"] + 1


def test_all_evaluations_are_counted_and_limited():
    es = RestartingCMAES(np.ones(3), 1.0, scheme="ipop", seed=1, popsize=6, maxfevals=5000)
    told = 0
    while not es.stop():
        x = es.ask()
        told += len(x)
        es.tell(x, sphere(x))
    assert es.stop() == {"maxfevals": 5000}
    assert es.result.evaluations == told >= 5000


@pytest.mark.parametrize("at", [0, 50, 400])
def test_a_resumed_run_equals_an_uninterrupted_one(at):
    options = {"scheme": "bipop", "spread": 1.0, "popsize": 6, "num_threads": 1}
    whole = RestartingCMAES(np.full(3, 3.0), 1.0, seed=5, **options)
    for _ in range(at):
        x = whole.ask()
        whole.tell(x, rastrigin(x))
    whole.ask()
    other = RestartingCMAES(np.zeros(3), 2.0, seed=6, **options)
    state = whole.state_dict()
    arrays = {k: np.ascontiguousarray(v) for k, v in state.items() if isinstance(v, np.ndarray)}
    rest = {k: v for k, v in state.items() if k not in arrays}
    other.load_state_dict({**load(save(arrays)), **json.loads(json.dumps(rest, allow_nan=False))})
    for _ in range(400):
        x = whole.ask()
        assert np.array_equal(x, other.ask())
        for es in (whole, other):
            es.tell(x, rastrigin(x))
    assert whole.runs == other.runs > 0
    assert whole.result.fbest == other.result.fbest
    assert whole.result.evaluations == other.result.evaluations


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("scheme: expected 'ipop' or 'bipop', got 'x'", {"scheme": "x"}),
        ("restarts: expected an integer from 0 to 30, got -1", {"restarts": -1}),
        ("spread: expected a number >= 0, got nan", {"spread": np.nan}),
    ],
)
def test_arguments_are_checked(message, arguments):
    with pytest.raises(ValueError, match=message):
        RestartingCMAES([0.0, 0.0], 1.0, **arguments)


def test_a_bad_state_changes_nothing():
    es = RestartingCMAES(np.full(3, 3.0), 1.0, popsize=6, seed=5, restarts=2, spread=1.0, num_threads=1)
    run(es, rastrigin)
    before = es.state_dict()
    bad = {"scheme": "x", "regime": "x", "runs": -1, "x0": np.zeros(4), "xbest": np.zeros((2, 3)), "run.sigma": -1.0}
    for key, value in bad.items():
        with pytest.raises(ValueError):
            es.load_state_dict({**before, key: value})
    with pytest.raises(ValueError, match="expected the keys"):
        es.load_state_dict({"runs": 1})
    after = es.state_dict()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_repeats_are_those_of_the_present_run():
    random = np.random.default_rng(0)
    es = RestartingCMAES(np.ones(4), 1.0, popsize=6, seed=1, uncertainty=(2, 16), num_threads=1)
    for _ in range(30):
        x = es.ask()
        es.tell(x, sphere(x)[:, None] + random.standard_normal((len(x), es.repeats)))
    assert es.repeats > 2
