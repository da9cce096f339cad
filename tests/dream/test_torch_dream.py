"""The dream in PyTorch: the native dream's episodes, up to chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import make_mdnrnn
from worldmodels.dream import gpu
from worldmodels.dream.gpu import TorchDream
from worldmodels.dream.native import Dream
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN

EPISODES = 2000
TERMINATION = ("threshold", "sample", "expected")


def both(controller, model=None, *, logvar=1.0, memory=None, **settings):
    """The dream in PyTorch and the native one, and three candidates."""
    if model is None:
        model = make_mdnrnn(done_pos_weight=3.0)
        with torch.no_grad():
            model.lstm.weight_ih_l0[:, -1] *= 8  # the restart flag
    rng = np.random.default_rng(0)
    starts = rng.normal(size=(5, 4)).astype(np.float32), np.full((5, 4), logvar, np.float32)
    settings = {"temperature": 2.5, "max_steps": 60, **settings, **(memory or {})}
    params = rng.normal(size=(3, controller.size))
    ours = TorchDream(model, *starts, controller, device=torch.device("cpu"), **settings)
    return ours, Dream(model, *starts, controller, **settings), params


def compare(ours, native, params, episodes=EPISODES):
    """Means of returns and of lengths of every candidate, within 4.5 standard errors."""
    found, wanted = ours.rollout(params, episodes, seed=3), native.rollout(params, episodes, seed=4)
    for ours_, theirs in zip(found, wanted, strict=True):
        assert ours_.shape == theirs.shape and ours_.dtype == theirs.dtype
        error = np.sqrt((ours_.var(axis=1) + theirs.var(axis=1)) / episodes) + 1e-4
        assert (np.abs(ours_.mean(axis=1) - theirs.mean(axis=1)) < 4.5 * error).all()
    return found


@pytest.mark.parametrize("termination", TERMINATION)
@pytest.mark.parametrize("features", ["z", "zh", "zc", "zch"])
def test_returns_are_those_of_the_native_dream(features, termination):
    found = compare(*both(Controller(4, 8, 1, features=features), termination=termination))
    assert found.lengths.min() < 60  # some episodes terminate
    assert (termination == "expected") == (not np.array_equal(found.returns, found.lengths))


def test_a_hidden_layer_and_biases():
    compare(*both(Controller(4, 8, 1, hidden_units=3, bias=True), termination="sample"))


def test_a_car_with_rewards_and_no_end():
    torch.manual_seed(0)
    model = MDNRNN(4, 3, 8, 2, reward_head=True).eval()
    controller = Controller(4, 8, 3, features="zh", bias=True, squash="carracing")
    found = compare(*both(controller, model))
    assert (found.lengths == 60).all()
    assert found.returns.std() > 0


@pytest.mark.parametrize("choices", [(18,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("hidden_units", [0, 3])
def test_discrete_actions(choices, hidden_units):
    model = make_mdnrnn(action_size=sum(choices), done_pos_weight=3.0)
    controller = Controller(4, 8, sum(choices), hidden_units=hidden_units, squash="argmax", choices=choices)
    ours, native, params = both(controller, model, termination="sample")
    assert compare(ours, native, 4 * params).lengths.min() < 60


def test_the_first_of_equal_outputs_is_chosen():
    """Weights of zero: the returns of the constant action 0."""
    model = make_mdnrnn(action_size=3)
    controller = Controller(4, 8, 3, squash="argmax", choices=(3,))
    ours, native, params = both(controller, model, temperature=0.0, logvar=-60.0)
    apart = ours.rollout(0 * params, 50).returns, native.rollout(0 * params, 50).returns
    np.testing.assert_array_equal(*map(np.unique, apart))


def test_without_chance_every_step_is_the_native_one():
    """At temperature 0, from starts without spread, returns agree episode by episode."""
    controller = Controller(4, 8, 1)
    cells = np.random.default_rng(1).normal(size=(5, 8))
    cells[[0, 3]] = 0  # first frames of an episode
    memory = {"initial_h": np.zeros((5, 8)), "initial_c": cells}
    ours, native, params = both(controller, logvar=-60.0, temperature=0.0, memory=memory, termination="expected")
    found, wanted = ours.rollout(params, 300, seed=1), native.rollout(params, 300, seed=1)
    for mine, theirs in zip(found.returns, wanted.returns, strict=True):  # one value for every start
        apart = np.abs(mine[:, None] - theirs[None])
        assert apart.min(axis=1).max() < 1e-3 * theirs.max() and apart.min(axis=0).max() < 1e-3 * theirs.max()
        assert np.ptp(theirs) > 0.1 * theirs.max()


def test_seeds():
    ours, _, params = both(Controller(4, 8, 1))
    one = ours.rollout(params, 40, seed=1)
    np.testing.assert_array_equal(one.returns, ours.rollout(params, 40, seed=1).returns)
    assert (one.returns != ours.rollout(params, 40, seed=2).returns).any()
    same = np.repeat(params[:1], 3, axis=0)
    alike = ours.rollout(same, 40, seed=1, common_random_numbers=True).returns
    np.testing.assert_array_equal(alike[0], alike[1])
    apart = ours.rollout(same, 40, seed=1).returns
    assert (apart[0] != apart[1]).any()


def test_bad_arguments_are_named():
    ours, _, params = both(Controller(4, 8, 1))
    with pytest.raises(ValueError, match=r"params: expected \(P, 20\) float32, got \(3, 19\)"):
        ours.rollout(params[:, 1:], 4)
    with pytest.raises(ValueError, match="episodes: expected an integer from 1"):
        ours.rollout(params, 0)
    with pytest.raises(ValueError, match="params: expected finite numbers"):
        ours.rollout(np.full_like(params, np.nan), 4)
    model, starts = make_mdnrnn(), (np.zeros((1, 4)), np.zeros((1, 4)))
    for settings, said in (
        ({"termination": "chance"}, "termination: expected one of threshold, sample, expected, got 'chance'"),
        ({"max_steps": 0}, "max_steps: expected an integer from 1"),
        ({"temperature": -1}, "temperature: expected a"),
    ):
        with pytest.raises(ValueError, match=said):
            TorchDream(model, *starts, Controller(4, 8, 1), device=torch.device("cpu"), **settings)
    for termination in ("sample", "expected"):
        with pytest.raises(
            ValueError, match=f"termination: expected threshold, as mdnrnn has no termination head, got {termination}"
        ):
            TorchDream(
                make_mdnrnn(done_head=False),
                *starts,
                Controller(4, 8, 1),
                device=torch.device("cpu"),
                termination=termination,
            )
    with pytest.raises(ValueError, match="controller: expected hidden_size 8 as mdnrnn has, got 9"):
        TorchDream(model, *starts, Controller(4, 9, 1), device=torch.device("cpu"))


STARTS = {"initial_mu": np.zeros((5, 4)), "initial_logvar": np.zeros((5, 4))}
CELLS = np.zeros((5, 8))


def spoilt_model():
    model = make_mdnrnn()
    with torch.no_grad():
        model.head.weight[3, 2] = torch.nan
    return model


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"initial_mu": np.zeros((5, 1))}, ValueError, r"initial_mu: expected \(K, 4\) float32, got \(5, 1\) float64"),
        ({"initial_mu": np.zeros((0, 4))}, ValueError, r"initial_mu: expected \(K, 4\) float32, got \(0, 4\)"),
        ({"initial_mu": np.full((5, 4), np.nan)}, ValueError, "initial_mu: expected finite numbers, got nan at flat"),
        ({"initial_logvar": np.zeros((4, 4))}, ValueError, r"initial_logvar: expected \(5, 4\) float32, got \(4, 4\)"),
        (
            {"initial_logvar": np.full((5, 4), 178.0)},
            ValueError,
            "initial_logvar: expected numbers of at most 80.0, got 178.0 at flat index 0",
        ),
        ({"initial_h": CELLS}, ValueError, "initial_h, initial_c: expected both or neither, got one"),
        ({"initial_h": CELLS, "initial_c": CELLS + np.inf}, ValueError, "initial_c: expected finite numbers, got inf"),
        ({"mdnrnn": spoilt_model()}, ValueError, "head.weight: expected finite weights"),
        ({"mdnrnn": None}, TypeError, "mdnrnn: expected an MDNRNN, got NoneType"),
        ({"controller": None}, TypeError, "controller: expected a Controller, got NoneType"),
        ({"device": None}, ValueError, "device: expected a device of PyTorch or its name, got None"),
        ({"device": "gpu"}, ValueError, "device: expected a device of PyTorch or its name, got 'gpu'"),
        ({"device": "cuda:99"}, ValueError, "device: expected cpu or one of . CUDA devices, got 'cuda:99'"),
        *(
            ({"device": name}, ValueError, f"device: expected cpu or one of . CUDA devices, got '{name}'")
            for name in ("meta", "mps", "xpu")
        ),
    ],
)
def test_bad_constructor_arguments_are_named(bad, error, message):
    settings = {"mdnrnn": make_mdnrnn(), **STARTS, "controller": Controller(4, 8, 1), "device": "cpu", **bad}
    with pytest.raises(error, match=f"^{message}"):
        TorchDream(**settings)


def test_settings_that_may_change_and_others():
    ours, _, params = both(Controller(4, 8, 1))
    for name in ("controller", "device", "termination"):
        with pytest.raises(AttributeError):
            setattr(ours, name, getattr(ours, name))
    before = ours.rollout(params, 40, seed=1)
    for name in ("temperature", "max_steps"):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            setattr(ours, name, -1)
    np.testing.assert_array_equal(ours.rollout(params, 40, seed=1).returns, before.returns)
    ours.temperature, ours.max_steps = 0.5, 7
    after, _, _ = both(Controller(4, 8, 1), temperature=0.5, max_steps=7)
    found = ours.rollout(params, 40, seed=1)
    np.testing.assert_array_equal(found.returns, after.rollout(params, 40, seed=1).returns)
    assert found.lengths.max() == 7 and not np.array_equal(found.returns, np.minimum(before.returns, 7))


def test_buffers_of_the_last_two_shapes_are_kept():
    ours, _, params = both(Controller(4, 8, 1))
    ours.max_steps = 2
    for episodes in (3, 4, 5, 4, 6):
        ours.rollout(params, episodes)
    assert list(ours._batches) == [(3, 4, False), (3, 6, False)]
    with pytest.raises(TypeError, match=r"^common_random_numbers: expected a bool, got str"):
        ours.rollout(params, 3, common_random_numbers="no")


@pytest.mark.parametrize("given", ["none", "ieee", "tf32"])
def test_the_precision_of_products_is_changed_on_a_gpu_alone(given):
    """And only inside of a block. A CPU needs no such setting, and reads none."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, given
    try:
        ours, _, params = both(Controller(4, 8, 1), max_steps=2)
        ours.rollout(params, 3)
        for allowed, wanted in ((True, "tf32"), (False, "ieee")):
            with gpu._tf32(torch.device("cpu"), allowed):
                assert matmul.fp32_precision == given
            with gpu._tf32(torch.device("cuda"), allowed):
                assert matmul.fp32_precision == wanted
        assert matmul.fp32_precision == given
    finally:
        matmul.fp32_precision = before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("termination", TERMINATION)
def test_on_a_gpu(termination):
    """Seventy steps: three graphs of twenty and ten alone."""
    model, controller = make_mdnrnn(done_pos_weight=3.0), Controller(4, 8, 1)
    rng = np.random.default_rng(0)
    starts, params = (rng.normal(size=(5, 4)), np.zeros((5, 4))), rng.normal(size=(3, controller.size))
    settings = {"temperature": 1.2, "max_steps": 70, "termination": termination}
    one, other = (TorchDream(model, *starts, controller, device=torch.device("cuda"), **settings) for _ in range(2))
    found = compare(one, Dream(model, *starts, controller, **settings), params)
    for dream in (one, other):
        np.testing.assert_array_equal(dream.rollout(params, EPISODES, seed=3).returns, found.returns)
