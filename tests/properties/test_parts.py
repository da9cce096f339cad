"""Any part of an evaluation, played alone, has the bits that it has in the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evaluators import make_evaluator

import strategies  # noqa: F401 - registers the profiles
from conftest import make_mdnrnn
from worldmodels import Controller, Dream
from worldmodels.dream.gpu import TorchDream
from worldmodels.rollout.evaluators.dream import DreamEvaluator

CANDIDATES, EPISODES = 5, 4
RNG = np.random.default_rng(0)
STARTS = RNG.normal(size=(7, 4)).astype(np.float32), RNG.normal(size=(7, 4)).astype(np.float32)
SHAPE = Controller(4, 8, 1)
PARAMS = RNG.normal(0, 1, (CANDIDATES, SHAPE.size)).astype(np.float32)
OPTIONS = {"max_steps": 40, "termination": "sample"}
SEEDS = st.integers(0, 2**63 - 1)


def quiet(*_):
    pass


@st.composite
def cuts(draw):
    """Borders of the parts: of the candidates, and of the episodes of each part of them."""

    def borders(total):
        inner = draw(st.sets(st.integers(1, total - 1)))
        return [0, *sorted(inner), total]

    rows = borders(CANDIDATES)
    return [(a, b, borders(EPISODES)) for a, b in itertools.pairwise(rows)]


def in_parts(evaluator, params, parts, **options):
    """Returns and lengths of an evaluation that is played in parts."""
    returns = np.full((CANDIDATES, EPISODES), np.nan, np.float32)
    lengths = np.zeros((CANDIDATES, EPISODES), np.int32)
    for a, b, columns in parts:
        for c, d in itertools.pairwise(columns):
            played = evaluator.play(params[a:b], d - c, first_candidate=a, first_episode=c, **options)
            returns[a:b, c:d], lengths[a:b, c:d] = played
    return returns, lengths


@given(parts=cuts(), seed=SEEDS, common=st.booleans(), threads=st.integers(1, 2))
def test_parts_of_dreams(parts, seed, common, threads):
    evaluator = DreamEvaluator(Dream(make_mdnrnn(), *STARTS, SHAPE, **OPTIONS), threads)
    options = {"seed": seed, "common_random_numbers": common, "on_progress": quiet}
    whole = evaluator.play(PARAMS, EPISODES, **options)
    returns, lengths = in_parts(evaluator, PARAMS, parts, **options)
    np.testing.assert_array_equal(returns, whole.returns)
    np.testing.assert_array_equal(lengths, whole.lengths)


@pytest.mark.slow
@given(parts=cuts(), seed=SEEDS, common=st.booleans())
def test_parts_of_real_episodes(parts, seed, common):
    params = RNG.normal(0, 1, (CANDIDATES, 32)).astype(np.float32)
    evaluator = make_evaluator()
    options = {"seed": seed, "common_random_numbers": common, "on_progress": quiet}
    whole = evaluator.play(params, EPISODES, **options)
    returns, lengths = in_parts(evaluator, params, parts, **options)
    evaluator.close()
    np.testing.assert_array_equal(returns, whole.returns)
    np.testing.assert_array_equal(lengths, whole.lengths)


@pytest.mark.parametrize("name", ["first_candidate", "first_episode"])
def test_first_indices_are_checked(name):
    dream = Dream(make_mdnrnn(), *STARTS, SHAPE, **OPTIONS)
    for value in (-1, 2**31):
        with pytest.raises(ValueError, match=rf"^{name}: expected an integer from 0 to 2147483647, got"):
            dream.rollout(PARAMS, **{name: value})
    with pytest.raises(ValueError, match=rf"^{name}: expected an integer from 0 to 2147483[0-9]+, got 2147483647"):
        dream.rollout(PARAMS, **{name: 2**31 - 1})  # the last index would not be below 2**31
    with pytest.raises(TypeError, match=rf"^{name}: expected an integer, got 0.5"):
        dream.rollout(PARAMS, **{name: 0.5})
    evaluator = make_evaluator()
    with pytest.raises(ValueError, match=rf"^{name}: expected an integer from 0 to 2147483647, got -1"):
        evaluator.play(np.zeros((1, 32)), 1, seed=0, common_random_numbers=True, on_progress=quiet, **{name: -1})


def test_a_dream_of_pytorch_has_no_parts():
    import torch

    evaluator = DreamEvaluator(TorchDream(make_mdnrnn(), *STARTS, SHAPE, device=torch.device("cpu"), max_steps=5), 1)
    with pytest.raises(
        ValueError, match=r"^first_candidate, first_episode: expected 0, 0 for a dream on a GPU, got 1, 0"
    ):
        evaluator.play(PARAMS, 2, seed=0, common_random_numbers=True, on_progress=quiet, first_candidate=1)
