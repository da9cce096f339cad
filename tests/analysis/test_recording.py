"""Recordings: their checks and cuts, and M's termination probability."""

import numpy as np
import pytest
import torch

from conftest import make_mdnrnn
from recordings import moving, recording_of
from worldmodels.analysis.film import Film
from worldmodels.analysis.recording import Recording, termination_probability, unweighted_probability
from worldmodels.models.lstm_state import LSTMState


def test_a_recording_is_cut_and_keeps_its_step_numbers():
    recording = recording_of(moving(10))
    part = recording.cut(4, 3)
    assert (len(part), part.first, part.complete) == (3, 4, False)
    assert Film([part])._blocks[0]._texts(2)[0] == "step 6"
    assert np.array_equal(part.actions, recording.actions[4:7])
    assert recording.cut(4, 6).complete
    chosen = recording_of(moving(10), panels=2).select(**{"panel 1": "only"})
    assert list(chosen.panels) == ["only"]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"panels": {"game": moving(2)}}, "recording: expected 3 > 0 steps"),
        ({"panels": {}}, "recording: expected 3 > 0 steps"),
        ({"termination": np.zeros(4, np.float32)}, "'termination': 4"),
        ({"names": ("a", "b")}, r"names: expected 1 of them, got \['a', 'b'\]"),
        ({"panels": {"game": moving(0)}, "actions": np.zeros((0, 1), np.float32)}, "expected 0 > 0 steps"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(about, message):
    with pytest.raises(ValueError, match=message):
        Recording(**{"panels": {"game": moving(3)}, "actions": np.zeros((3, 1), np.float32), **about})


def test_the_termination_probability_is_that_of_M_stepped_along():
    """Against the native LSTM, step by step, and the head's first row in NumPy."""
    torch.manual_seed(0)
    model = make_mdnrnn(4, 8, done_pos_weight=10.0)
    rng = np.random.default_rng(1)
    z, actions = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(30, 1)).astype(np.float32)
    memory = LSTMState(model, 1)
    weight, bias = model.head.weight[0].detach().double().numpy(), float(model.head.bias[0].detach())
    for step, found in enumerate(termination_probability(model, z, actions)):
        memory.step(np.zeros(1, np.int64), z[step : step + 1], actions[step : step + 1], np.array([step == 0]))
        weighted = 1 / (1 + np.exp(-(memory.h[0] @ weight + bias)))
        wanted = weighted / (weighted + 10 * (1 - weighted))  # inverts w p / (w p + 1 - p)
        assert found == pytest.approx(wanted, rel=1e-4)
    assert unweighted_probability(np.array([-1e4, 1e4], np.float32), 10.0).tolist() == [0, 1]


def test_no_termination_head_no_probability():
    model = make_mdnrnn(4, 8, done_head=False)
    assert termination_probability(model, np.zeros((3, 4), np.float32), np.zeros((3, 1), np.float32)) is None
    film = Film([recording_of(moving(3), termination=None)])
    assert len(film._blocks[0]._texts(0)) == 2
