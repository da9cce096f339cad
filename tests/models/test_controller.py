"""C: the paper's sizes, the flat order of its weights, and its actions against plain formulas."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

import worldmodels as wm


@pytest.mark.parametrize(
    ("controller", "size"),
    [
        (wm.Controller(64, 512, 1), 1088),
        (wm.Controller(32, 256, 3, features="zh", bias=True, squash="carracing"), 867),
        (wm.Controller(32, 256, 3, features="z", bias=True, squash="carracing"), 99),
        (wm.Controller(32, 256, 3, features="z", bias=True, hidden_units=40, squash="carracing"), 1443),
    ],
)
def test_sizes_are_the_papers(controller, size):
    assert controller.size == size


@pytest.mark.parametrize(("bias", "hidden_units"), list(itertools.product([True, False], [0, 3])))
def test_flat_order_is_row_by_row_then_bias(bias, hidden_units):
    controller = wm.Controller(2, 2, 2, features="zc", bias=bias, hidden_units=hidden_units)
    flat = np.arange(controller.size, dtype=np.float64)
    shapes = [(3, 4), (3,), (2, 3), (2,)] if hidden_units else [(2, 4), (2,)]
    weights = controller.weights(flat)
    assert [w.shape for w in weights] == (shapes if bias else shapes[::2])
    assert [value for w in weights for value in w.ravel()] == list(range(controller.size))
    np.testing.assert_array_equal(controller.flatten(weights), flat)


@pytest.mark.parametrize("features", ["z", "zh", "zc", "zch"])
def test_features_are_joined_as_z_then_c_then_h(features):
    controller = wm.Controller(1, 2, 1, features=features)
    z, c, h = np.array([[1.0]]), np.array([[2.0, 3.0]]), np.array([[4.0, 5.0]])
    expected = [1] + [2, 3] * ("c" in features) + [4, 5] * ("h" in features)
    assert controller.join(z, c, h)[0].tolist() == expected
    assert controller.feature_size == len(expected)


@pytest.mark.parametrize(
    ("features", "squash", "bias", "hidden_units"),
    list(itertools.product(["z", "zh", "zc", "zch"], ["tanh", "carracing"], [True, False], [0, 4])),
)
def test_act_is_the_plain_formula(features, squash, bias, hidden_units):
    rng = np.random.default_rng(0)
    controller = wm.Controller(3, 5, 3, features=features, bias=bias, hidden_units=hidden_units, squash=squash)
    params, f = rng.normal(size=controller.size), rng.normal(size=(7, controller.feature_size))
    got = controller.act(params, f)
    assert got.shape == (7, 3)
    assert got.dtype == np.float32

    def layer(values, numbers, outputs):
        """tanh(W values + b), number by number from the flat list."""
        rows = [[next(numbers) for _ in values] for _ in range(outputs)]
        offsets = [next(numbers) if bias else 0.0 for _ in range(outputs)]
        return [
            math.tanh(sum(w * v for w, v in zip(r, values, strict=True)) + o)
            for r, o in zip(rows, offsets, strict=True)
        ]

    for row in range(7):
        numbers = iter(params)
        values = f[row].tolist()
        if hidden_units:
            values = layer(values, numbers, hidden_units)
        action = layer(values, numbers, 3)
        assert next(numbers, None) is None
        if squash == "carracing":
            action = [action[0], (action[1] + 1) / 2, max(action[2], 0)]
        np.testing.assert_allclose(got[row], action, atol=1e-5)


@pytest.mark.parametrize("choices", [(3,), (18,), (2, 2, 2), (3, 18, 2)], ids=str)
@pytest.mark.parametrize(("bias", "hidden_units"), list(itertools.product([True, False], [0, 4])))
def test_discrete_actions_are_the_plain_formula(choices, bias, hidden_units):
    rng = np.random.default_rng(0)
    shape = {"bias": bias, "hidden_units": hidden_units}
    controller = wm.Controller(3, 5, sum(choices), squash="argmax", choices=choices, **shape)
    linear = wm.Controller(3, 5, sum(choices), **shape)
    params = rng.normal(size=(20, controller.size)) * 0.1  # tanh keeps the order of outputs this small
    features = rng.normal(size=(20, 13)).astype(np.float32)
    acted = controller.act_each(params, features)
    np.testing.assert_array_equal(acted, np.stack(list(map(controller.act, params, features))))
    for action, outputs in zip(acted, linear.act_each(params, features), strict=True):
        first, expected = 0, []
        for count in choices:
            values = outputs[first : first + count].tolist()
            expected += [float(k == values.index(max(values))) for k in range(count)]
            first += count
        assert action.dtype == np.float32 and action.tolist() == expected
    assert len(np.unique(acted, axis=0)) > 2


def test_of_equal_outputs_the_first_is_chosen():
    controller = wm.Controller(1, 1, 5, features="z", bias=True, squash="argmax", choices=(2, 3))
    params = controller.flatten([np.zeros((5, 1)), np.array([1.0, 1.0, -3.0, 2.0, 2.0])])
    assert controller.act(params, np.zeros((2, 3, 1))).tolist() == [[[1, 0, 0, 1, 0]] * 3] * 2
    assert controller.act(np.zeros(10), np.ones(1)).tolist() == [1, 0, 1, 0, 0]


def test_outputs_beyond_the_range_of_tanh_are_compared():
    controller = wm.Controller(1, 1, 3, features="z", bias=True, squash="argmax", choices=(3,))
    params = controller.flatten([np.zeros((3, 1)), np.array([20.0, 40.0, 30.0])])
    assert controller.act(params, np.zeros(1)).tolist() == [0, 1, 0]


def test_choices_are_plain_integers():
    """So that they are written as JSON and read again."""
    controller = wm.Controller(2, 3, 5, squash="argmax", choices=np.array([2, 3]))
    assert controller.choices == (2, 3) and all(type(count) is int for count in controller.choices)
    assert wm.Controller(**json.loads(json.dumps(dataclasses.asdict(controller)))) == controller


def test_act_takes_any_leading_shape():
    controller = wm.Controller(3, 5, 2)
    rng = np.random.default_rng(0)
    params, f = rng.normal(size=controller.size), rng.normal(size=(2, 4, 13)).astype(np.float32)
    many = controller.act(params, f)
    assert many.shape == (2, 4, 2)
    np.testing.assert_allclose(many[1, 2], controller.act(params, f[1, 2]), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_size": 0}, "latent_size: expected an integer of at least 1"),
        ({"hidden_size": 2.0}, "hidden_size: expected an integer"),
        ({"action_size": True}, "action_size: expected an integer"),
        ({"hidden_units": -1}, "hidden_units: expected an integer of at least 0"),
        ({"bias": "yes"}, "bias: expected a bool, got 'yes'"),
        ({"bias": 2}, "bias: expected a bool, got 2"),
        ({"choices": 3}, "choices: expected none for squash='tanh', got 3"),
        ({"squash": "argmax", "action_size": 3, "choices": 3}, "choices: expected integers of at least 2 .*, got 3"),
        ({"features": "hz"}, "features: expected one of z, zh, zc, zch, got 'hz'"),
        ({"squash": "relu"}, "squash: expected one of tanh, carracing, argmax, got 'relu'"),
        ({"squash": "carracing"}, "action_size: expected 3 for squash='carracing', got 1"),
        ({"choices": (2,)}, "choices: expected none for squash='tanh', got \\(2,\\)"),
        ({"squash": "argmax"}, "choices: expected integers of at least 2 that add up to action_size, 1, got \\(\\)"),
        ({"squash": "argmax", "action_size": 3, "choices": (1, 2)}, "choices: expected integers of at least 2"),
        ({"squash": "argmax", "action_size": 3, "choices": (3.0,)}, "choices: expected integers of at least 2"),
        ({"squash": "argmax", "action_size": 3, "choices": (2, 2)}, "choices: .* add up to action_size, 3, got"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        wm.Controller(**{"latent_size": 4, "hidden_size": 8, "action_size": 1, **change})


def test_bad_arrays_are_named():
    controller = wm.Controller(2, 3, 1)
    with pytest.raises(ValueError, match=r"params: expected \(8,\), got \(7,\)"):
        controller.weights(np.zeros(7))
    with pytest.raises(ValueError, match=r"features: expected \(\.\.\., 8\), got \(2, 7\)"):
        controller.act(np.zeros(8), np.zeros((2, 7)))
    with pytest.raises(ValueError, match=r"weights: expected shapes \[\(1, 8\)\], got \[\(8, 1\)\]"):
        controller.flatten([np.zeros((8, 1))])


@pytest.mark.parametrize("features", ["z", "zh", "zc", "zch"])
@pytest.mark.parametrize(("bias", "hidden_units"), [(False, 0), (True, 0), (True, 7), (False, 7)])
def test_many_controllers_act_as_each_of_them(features, bias, hidden_units):
    controller = wm.Controller(5, 6, 3, features, bias, hidden_units, "carracing")
    rng = np.random.default_rng(0)
    params = rng.normal(size=(4, controller.size)).astype(np.float32)
    seen = rng.normal(size=(4, controller.feature_size)).astype(np.float32)
    actions = controller.act_each(params, seen)
    assert actions.shape == (4, 3) and actions.dtype == np.float32
    np.testing.assert_allclose(actions, np.stack(list(map(controller.act, params, seen))), atol=1e-5)
    np.testing.assert_array_equal(controller.act_each(params[2:], seen[2:]), actions[2:])  # whoever else acts
    with pytest.raises(ValueError, match=r"^params, features: expected \(B, "):
        controller.act_each(params[:3], seen)


@pytest.mark.parametrize("squash", ["tanh", "carracing"])
@pytest.mark.parametrize("hidden_units", [0, 4])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_no_controller_leaves_the_action_space(squash, hidden_units, size):
    """Whatever its parameters, in NumPy and in the dream."""
    model = wm.MDNRNN(4, 3, 8, 2)
    controller = wm.Controller(4, 8, 3, bias=True, hidden_units=hidden_units, squash=squash)
    rng = np.random.default_rng(0)
    params = (rng.normal(size=(5, controller.size)) * size).astype(np.float32)
    seen = (rng.normal(size=(5, controller.feature_size)) * size).astype(np.float32)
    starts = rng.normal(size=(2, 3, 4)).astype(np.float32)
    dream = wm.Dream(model, *starts, controller, max_steps=20)
    with np.errstate(over="ignore", invalid="ignore"):
        acted = [controller.act_each(params, seen / size), *(dream.trace(row).action for row in params)]
    low = np.array([-1, 0, 0] if squash == "carracing" else [-1] * 3)
    for actions in acted:
        assert (actions >= low).all() and (actions <= 1).all()
