"""Coordinates of the search for C: principal components of what it sees, all of one size."""

from __future__ import annotations

import numpy as np
import pytest
from bundles import small_world

from conftest import toy_config, write_world
from worldmodels.cmaes.search_space import SearchSpace, feature_scales, principal_components
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.controller import Controller
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.search_space import make_search_space, sample_features


def samples(count=4000, seed=0):
    """Of five correlated numbers of very different sizes, and the matrix that mixed them."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(5, 5)) * [100, 10, 1, 0.1, 0.01]
    return rng.normal(size=(count, 5)) @ mix.T


def test_components_are_uncorrelated_and_of_one_size():
    features = samples()
    seen = features @ principal_components(features, 5)
    np.testing.assert_allclose(seen.T @ seen / len(seen), np.eye(5), atol=1e-6)


def test_the_largest_come_first():
    features = samples()
    one, three = (principal_components(features, count) for count in (1, 3))
    np.testing.assert_array_equal(one, three[:, :1])
    share = np.square(features @ three / np.linalg.norm(three, axis=0)).mean(axis=0)
    assert (np.diff(share) < 0).all()
    assert share[0] > 0.9 * np.square(features).sum(axis=1).mean()


def test_more_than_there_are_directions_is_refused():
    features = np.repeat(samples()[:, :2], 2, axis=1)
    principal_components(features, 2)
    with pytest.raises(ValueError, match=r"^count: expected at most 2, the rank of the features, got 3"):
        principal_components(features, 3)
    for count in (-1, 0, 5):
        with pytest.raises(ValueError, match=rf"^count: expected an integer from 1 to 4, got {count}"):
            principal_components(features, count)
    with pytest.raises(TypeError, match=r"^count: expected an integer, got 1\.0"):
        principal_components(features, 1.0)
    features[3, 1] = np.nan
    for bad in (features, features[0], features[:0]):
        with pytest.raises(ValueError, match=r"^features: expected \(B, F\) finite numbers, got "):
            principal_components(bad, 2)


@pytest.mark.parametrize("shape", [{}, {"bias": True}, {"bias": True, "hidden_units": 2}, {"action_size": 2}])
def test_a_point_acts_on_the_components(shape):
    """C with the parameters of a point does with what it sees what a C of K inputs does with the components."""
    sizes = {"action_size": 1, **shape}
    controller = Controller(2, 3, features="zh", **sizes)
    small = Controller(1, 2, features="zh", **sizes)  # of 3 inputs
    rng = np.random.default_rng(1)
    features = samples()
    basis = principal_components(features, 3)
    coordinates = SearchSpace(controller, np.zeros(controller.size), basis)
    assert coordinates.size == small.size
    points = rng.normal(size=(4, coordinates.size))
    params = coordinates.params(points)
    assert params.shape == (4, controller.size)
    for point, one in zip(points, params, strict=True):
        np.testing.assert_allclose(
            controller.act(one, features[:50]), small.act(point, features[:50] @ basis), atol=1e-4
        )


def test_zero_is_the_origin():
    controller = Controller(2, 3, 1, features="zh")
    origin = np.arange(5.0)
    coordinates = SearchSpace(controller, origin, principal_components(samples(), 2))
    np.testing.assert_array_equal(coordinates.start, np.zeros(2))
    np.testing.assert_array_equal(coordinates.params(coordinates.start), origin)


def test_without_components_points_are_parameters():
    coordinates = SearchSpace(Controller(2, 3, 1), np.arange(8.0))
    np.testing.assert_array_equal(coordinates.start, np.arange(8.0))
    np.testing.assert_array_equal(coordinates.params(coordinates.start), np.arange(8.0))


def test_scaled_parameters_act_like_those_of_standardized_features():
    controller, features = Controller(2, 3, 1, features="zh"), samples()
    scales = feature_scales(features)
    space = SearchSpace(controller, np.arange(5.0), scales)
    assert space.size == controller.size
    np.testing.assert_array_equal(space.start, np.zeros(5))
    points = np.random.default_rng(2).normal(size=(7, 5))
    for one, point in zip(space.params(points) - space.origin, points, strict=True):
        np.testing.assert_allclose(
            controller.act(one, features[:50]), controller.act(point, features[:50] / features.std(axis=0)), atol=1e-4
        )


def test_a_constant_feature_has_a_finite_scale():
    np.testing.assert_allclose(feature_scales(np.array([[1.0, 0.0], [1.0, 4.0]])), [1000, 0.5])


@pytest.fixture
def run(tmp_path):
    """A run folder in which evolve is next."""
    with Run(tmp_path, toy_config()) as experiment:
        write_world(experiment)
        experiment.path("evolve").mkdir(exist_ok=True)
    return tmp_path


def test_they_are_those_of_what_c_sees_in_dreams(run):
    controller = Controller(4, 8, 1)
    coordinates = make_search_space(run, controller, np.ones(20), 6, seed=3)
    features = sample_features(load_world_model(run), controller, 3)
    assert features.shape[1] == 20
    np.testing.assert_array_equal(coordinates.basis, principal_components(features, 6))
    other = features[: len(features) // 2] @ coordinates.basis
    assert np.square(other).mean(axis=0) == pytest.approx(np.ones(6), abs=0.1)


def test_random_discrete_actions_are_one_hot_vectors(monkeypatch):
    taken = []

    class Watched(DreamVectorEnv):
        def step(self, actions):
            taken.append(actions)
            return super().step(actions)

    monkeypatch.setattr("worldmodels.pipeline.search_space.DreamVectorEnv", Watched)
    controller = Controller(4, 8, 5, squash="argmax", choices=(2, 3))
    features = sample_features(small_world(action_size=5), controller, 3)
    assert features.shape[1] == 20 and np.isfinite(features).all()
    actions = np.concatenate(taken)
    assert set(np.unique(actions)) == {0, 1}
    for values in (actions[:, :2], actions[:, 2:]):
        np.testing.assert_array_equal(values.sum(axis=1), 1)
        np.testing.assert_allclose(values.mean(axis=0), 1 / values.shape[1], atol=0.05)


def test_scales_are_saved_and_reused(run):
    controller = Controller(4, 8, 1)
    first = make_search_space(run, controller, np.ones(20), 0, seed=3, scaled=True)
    np.testing.assert_array_equal(first.basis, feature_scales(sample_features(load_world_model(run), controller, 3)))
    again = make_search_space(run, controller, np.zeros(20), 0, seed=4, scaled=True)
    np.testing.assert_array_equal(first.basis, again.basis)
    with pytest.raises(ValueError, match=r"coordinates.safetensors: expected .* basis \(20, 5\), got .*\(20,\)"):
        make_search_space(run, controller, np.ones(20), 5, seed=3)


def test_what_is_in_the_file_is_kept(run):
    controller = Controller(4, 8, 1)
    first = make_search_space(run, controller, np.ones(20), 6, seed=3)
    again = make_search_space(run, controller, np.zeros(20), 6, seed=4)
    np.testing.assert_array_equal(first.basis, again.basis)
    np.testing.assert_array_equal(again.origin, np.ones(20))
    with pytest.raises(ValueError, match=r"coordinates.safetensors: expected .* basis \(20, 5\), got .*\(20, 6\)"):
        make_search_space(run, controller, np.ones(20), 5, seed=3)


def test_more_than_c_sees_is_refused_before_anything_is_played(tmp_path):
    with pytest.raises(ValueError, match=r"evolve\.pca_components: expected at most 20, the features of C, got 21"):
        make_search_space(tmp_path, Controller(4, 8, 1), np.ones(20), 21, seed=3)
