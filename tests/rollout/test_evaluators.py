"""The evaluator of the real environment, beside a player in NumPy who takes one episode after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_agent import remember

from conftest import interrupt, make_vae, mark_done, metrics, toy_config
from toy_env import ToyEnv
from worldmodels import MDNRNN, Controller
from worldmodels.cmaes.cmaes import CMAES
from worldmodels.envs import GameLostError
from worldmodels.envs import envpool as pool
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.vector import make_vector_env
from worldmodels.models.weights import save_model
from worldmodels.pipeline import evolution as evolve
from worldmodels.pipeline.profiles import read_profiles
from worldmodels.pipeline.run import Run
from worldmodels.rollout.evaluators import environment as real
from worldmodels.rollout.evaluators.environment import EnvironmentEvaluator
from worldmodels.rollout.players import episode_seed
from worldmodels.support.profile import take_profile

TOY = EnvSpec(id="toy_env:Toy-v0", variant="", resolution="")
needs_envpool = pytest.mark.skipif(not pool.installed(), reason="EnvPool is not installed")
SETTINGS = {"generations": 4, "popsize": 4, "episodes": 2, "evaluate_every": 2, "evaluate_episodes": 3}


def quiet(*_):
    pass


def make_m(action_size=2):
    torch.manual_seed(3)
    model = MDNRNN(4, action_size, 6, 2, restart_input=True)
    for parameter in model.lstm.parameters():
        parameter.data.mul_(3)
    return model.eval()


def make_evaluator(environment=TOY, action_size=2, slots=3, workers=1, max_steps=100, patience=0, **shape):
    controller = Controller(4, 6, action_size, **shape)
    options = {"num_envs": slots, "num_workers": workers, "max_steps": max_steps, "precision": "float32"}
    options["max_steps_without_reward"] = patience
    return EnvironmentEvaluator(make_vae(4), make_m(action_size), controller, environment, **options)


def play_alone(evaluator, params, seed, max_steps=100, patience=100):
    """One episode as the paper has it, with V alone taken from torch: return and length."""
    barren = 0
    env = ToyEnv()
    frame, _ = env.reset(seed=seed)
    noise = np.random.default_rng([seed, 1]).standard_normal((64, 4), np.float32)
    h = c = np.zeros((1, 6))
    total, steps, over = 0.0, 0, False
    while not over and steps < max_steps:
        with torch.inference_mode():
            mu, logvar = evaluator.vae.encode(torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255)
        z = mu.numpy() + np.exp(logvar.numpy() / 2) * noise[steps]
        action = evaluator.controller.act(params, evaluator.controller.join(z, c, h))
        h, c = remember(evaluator.mdnrnn, z, action, np.array([float(steps == 0)]), h, c)
        frame, reward, terminated, truncated, _ = env.step(action[0])
        total, steps, over = total + reward, steps + 1, terminated or truncated
        barren = 0 if reward > 0 else barren + 1
        if not over and barren == patience:
            total, over = total + reward * (max_steps - steps), True
    return total, steps


@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize("shape", [{"features": "zch"}, {"features": "z", "bias": True, "hidden_units": 5}])
def test_scores_are_those_of_one_episode_after_the_other(common, shape):
    evaluator = make_evaluator(**shape)
    params = np.random.default_rng(0).normal(0, 1, (3, evaluator.controller.size)).astype(np.float32)
    played = evaluator.play(params, 2, seed=5, common_random_numbers=common, on_progress=quiet)
    assert played.returns.shape == played.lengths.shape == (3, 2)
    assert played.returns.dtype == np.float32 and played.lengths.dtype == np.int32
    seeds = [[episode_seed(5, "evolve", e, 0 if common else p) for e in range(2)] for p in range(3)]
    expected = [[play_alone(evaluator, params[p], seeds[p][e]) for e in range(2)] for p in range(3)]
    np.testing.assert_allclose(played.returns, np.array(expected)[:, :, 0], atol=1e-4)
    np.testing.assert_array_equal(played.lengths, np.array(expected)[:, :, 1])
    evaluator.close()


def test_hopeless_episodes_are_given_up():
    """After so many steps without a reward above zero; what is left of them pays as their last step did."""
    params = np.random.default_rng(0).normal(0, 1, (6, 32)).astype(np.float32)
    patient = make_evaluator(max_steps=50).play(params, 4, seed=5, common_random_numbers=True, on_progress=quiet)
    evaluator = make_evaluator(max_steps=50, patience=2)
    played = evaluator.play(params, 4, seed=5, common_random_numbers=True, on_progress=quiet)
    seeds = [episode_seed(5, "evolve", e) for e in range(4)]
    expected = np.array([[play_alone(evaluator, p, seed, max_steps=50, patience=2) for seed in seeds] for p in params])
    np.testing.assert_allclose(played.returns, expected[:, :, 0], atol=1e-3)
    np.testing.assert_array_equal(played.lengths, expected[:, :, 1])
    given_up = played.lengths < patient.lengths
    assert 4 < given_up.sum() < 20 and (played.returns[given_up] < patient.returns[given_up]).all()
    np.testing.assert_array_equal(played.returns[~given_up], patient.returns[~given_up])


def test_slots_and_workers_change_no_bit():
    params = np.random.default_rng(0).normal(0, 1, (3, 32)).astype(np.float32)
    expected = None
    for slots, workers in ((1, 1), (2, 1), (9, 1), (5, 2)):
        evaluator = make_evaluator(slots=slots, workers=workers)
        played = evaluator.play(params, 3, seed=1, common_random_numbers=False, on_progress=quiet)
        expected = expected or played
        np.testing.assert_array_equal(played.returns, expected.returns)
        np.testing.assert_array_equal(played.lengths, expected.lengths)
        again = evaluator.play(
            params, 3, seed=1, common_random_numbers=False, on_progress=quiet
        )  # the same environments once more
        np.testing.assert_array_equal(again.returns, expected.returns)
        evaluator.close()


def test_equal_candidates_under_common_random_numbers():
    evaluator = make_evaluator(slots=4, max_steps=3)
    params = np.tile(np.random.default_rng(0).normal(0, 1, 32).astype(np.float32), (3, 1))
    common = evaluator.play(params, 4, seed=1, common_random_numbers=True, on_progress=quiet)
    assert (common.returns == common.returns[:1]).all()
    assert common.lengths.max() == 3
    independent = evaluator.play(params, 4, seed=1, common_random_numbers=False, on_progress=quiet)
    assert len(np.unique(independent.returns)) == 12
    np.testing.assert_array_equal(independent.returns[0], common.returns[0])


def test_progress_is_told():
    evaluator, told = make_evaluator(slots=2), []
    take_profile()
    played = evaluator.play(
        np.zeros((2, 32)), 3, seed=1, common_random_numbers=True, on_progress=lambda *now: told.append(now)
    )
    assert [ended for ended, _, _ in told] == sorted({ended for ended, _, _ in told})
    assert told[-1] == (6, 6, played.lengths.sum())
    assert set(take_profile()) == {"engine", "V", "C", "M", "other"}


def prepare(folder, environment=TOY, action_size=2, **changes):
    """A run folder in which evolve, in the real environment, is next."""
    config = toy_config(
        environment=vars(environment),
        encode={"precision": "float32"},
        evolve={**SETTINGS, "evaluate_in": "environment", "num_envs": 3, **changes},
    )
    experiment = Run(folder, config)
    save_model(experiment.path("vae", "vae.safetensors"), make_vae(4))
    save_model(experiment.path("rnn", "rnn.safetensors"), make_m(action_size))
    mark_done(experiment, "collect", "train_vae", "encode", "train_rnn")
    return experiment


def outcome(experiment):
    weights = experiment.path("evolve", "controller.safetensors").read_bytes()
    return weights, metrics(experiment, "evolve"), experiment.summary("evolve")


def test_evolution_in_the_real_environment_resumes_exactly(tmp_path):
    with prepare(tmp_path / "whole") as experiment:
        experiment.run_stage("evolve")
        expected = outcome(experiment)
        assert expected[2]["evaluate_in"] == "environment" and expected[2]["parameters"] == 32
        assert len({line["best"] for line in expected[1]}) == 4
        phases = {"ask", "rollout", "engine", "V", "C", "M", "tell", "evaluation", "storing", "other"}
        assert set(read_profiles(experiment.folder)["evolve"]) == phases
    places = [(EnvironmentEvaluator, "play", 3, False), (CMAES, "tell", 2, True), (evolve, "save_tensors", 3, True)]
    for number, (owner, name, call, after) in enumerate(places):
        with prepare(tmp_path / str(number), num_envs=1 + number) as experiment:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                interrupt(patch, owner, name, call, after=after)
                experiment.run_stage("evolve")
            experiment.run_stage("evolve")
            assert outcome(experiment) == expected


def test_another_back_end_does_not_go_on(tmp_path):
    with prepare(tmp_path) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, evolve, "save_tensors", 1, after=True)
            experiment.run_stage("evolve")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(real, "backend", lambda _: "envpool")
            with pytest.raises(ValueError, match=r"expected to resume with .*'gymnasium'.*, got .*'envpool'"):
                experiment.run_stage("evolve")


def test_take_cover_pays_a_point_a_step():
    evaluator = make_evaluator(EnvSpec(), 1, slots=2, workers=2, max_steps=4)
    played = evaluator.play(
        np.zeros((2, evaluator.controller.size)), 2, seed=1, common_random_numbers=True, on_progress=quiet
    )
    evaluator.close()
    assert (played.lengths == 4).all() and (played.returns == 4).all()


@pytest.mark.parametrize("back_end", ["gymnasium", pytest.param("envpool", marks=needs_envpool)])
def test_cars_get_what_the_environment_pays(back_end):
    """A C of zeros does not steer, gives half gas and does not brake."""
    cars = EnvSpec(id="worldmodels/CarRacing-v0", variant="", resolution="", backend=back_end)
    evaluator = make_evaluator(cars, 3, slots=2, max_steps=6, features="zh", bias=True, squash="carracing")
    played = evaluator.play(
        np.zeros((2, evaluator.controller.size)), 1, seed=1, common_random_numbers=True, on_progress=quiet
    )
    evaluator.close()
    assert (played.lengths == 6).all()
    batch = make_vector_env(cars, 1, num_workers=1)
    batch.reset([0], [episode_seed(1, "evolve", 0)])
    paid = sum(float(batch.step([0], np.array([[0, 0.5, 0]], np.float32))[1][0]) for _ in range(6))
    batch.close()
    np.testing.assert_allclose(played.returns, paid, rtol=1e-6)
    assert paid > 1


@pytest.mark.parametrize("name", ["slots", "workers", "max_steps"])
@pytest.mark.parametrize("value", [0, -2, 2.5])
def test_bad_settings_are_named(name, value):
    said = {"slots": "num_envs", "workers": "num_workers"}.get(name, name)
    with pytest.raises((ValueError, TypeError), match=rf"^{said}: expected an integer.*, got {value}$"):
        make_evaluator(**{name: value})
    with pytest.raises(ValueError, match=r"^max_steps_without_reward: expected an integer from 0 to"):
        make_evaluator(patience=-1)


def test_lost_games_are_opened_again(monkeypatch):
    evaluator = make_evaluator()
    options = {"seed": 5, "common_random_numbers": True, "on_progress": quiet}
    expected = evaluator.play(np.zeros((2, 32)), 2, **options)
    with pytest.raises(GameLostError), monkeypatch.context() as patch:
        patch.setattr(ToyEnv, "step", lambda *_: (_ for _ in ()).throw(GameLostError("gone")))
        evaluator.play(np.zeros((2, 32)), 2, **options)
    assert not evaluator._vector_envs
    np.testing.assert_array_equal(evaluator.play(np.zeros((2, 32)), 2, **options).lengths, expected.lengths)
    evaluator.close()


def test_the_longest_episode_of_the_specification():
    evaluator = make_evaluator(replace(TOY, max_steps=1))
    played = evaluator.play(np.zeros((2, 32)), 2, seed=5, common_random_numbers=True, on_progress=quiet)
    assert (played.lengths == 1).all()
    evaluator.close()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ([[np.nan] * 32], "params: expected finite float32 numbers"),
        ([[1e300] * 32], "params: expected finite float32 numbers"),
        ([["a"] * 32], "params: expected real numbers"),
        ([[1.0], [2.0, 3.0]], "params: expected an array"),
    ],
)
def test_bad_parameters_are_named(params, said):
    with pytest.raises((ValueError, TypeError), match=f"^{said}"):
        make_evaluator().play(params, 1, seed=0, common_random_numbers=True, on_progress=quiet)


def test_bad_arguments_are_named():
    evaluator = make_evaluator()
    with pytest.raises(ValueError, match=r"^seed: expected an integer from 0 to \d+, got -1"):
        evaluator.play(np.zeros((2, 32)), 1, seed=-1, common_random_numbers=True, on_progress=quiet)
    with pytest.raises(TypeError, match=r"^episodes: expected an integer, got 2\.0"):
        evaluator.play(np.zeros((2, 32)), 2.0, seed=0, common_random_numbers=True, on_progress=quiet)
    with pytest.raises(ValueError, match=r"^params: expected \(P, 32\), got \(2, 31\)"):
        evaluator.play(np.zeros((2, 31)), 1, seed=0, common_random_numbers=True, on_progress=quiet)
    with pytest.raises(ValueError, match=r"^episodes: expected an integer from 1 to \d+, got 0"):
        evaluator.play(np.zeros((2, 32)), 0, seed=0, common_random_numbers=True, on_progress=quiet)
