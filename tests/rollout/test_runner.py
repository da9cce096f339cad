"""The episode loop: several players in one pool of environments, each with the scores that it has alone."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from test_evaluators import TOY, make_m

from conftest import make_vae
from toy_env import ToyEnv
from worldmodels import Agent, Controller
from worldmodels.envs import GameLostError
from worldmodels.envs.policies import constant, repeated
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.vector import make_vector_env
from worldmodels.models.agent import Population
from worldmodels.rollout import environments
from worldmodels.rollout.environments import Assignment, Environments, describe_environment, play_policy, record
from worldmodels.rollout.players import OpenLoopPlayer
from worldmodels.rollout.runner import Episode, run_episodes
from worldmodels.support.cluster import Needs


@pytest.fixture(scope="module")
def agent():
    controller = Controller(4, 6, 2)
    params = np.random.default_rng(0).normal(0, 1, controller.size).astype(np.float32)
    return Agent(make_vae(4), make_m(), controller, params)


def players(agent):
    """An agent, a population of three and two policies; the episodes of each."""
    params = np.random.default_rng(1).normal(0, 1, (3, len(agent.params))).astype(np.float32)
    return [
        (Population(agent, agent.params[None]), [0, 1, 2, 5]),
        (Population(agent, params), range(7)),
        (OpenLoopPlayer(repeated(1, 3, 2), "test"), range(5)),
        (OpenLoopPlayer(repeated(4, 9, 2), "test"), []),
        (OpenLoopPlayer(repeated(2, 2, 2), "test"), [3]),
    ]


@pytest.mark.parametrize("num_envs", [1, 2, 3, 30])
def test_players_score_what_they_score_alone(agent, num_envs):
    alone = [{} for _ in players(agent)]
    with Environments(TOY, 2) as environments:
        for (player, episodes), scores in zip(players(agent), alone, strict=True):
            environments.play(player, episodes, seed=4, purpose="test", finished=scores.__setitem__)
    assert [sorted(scores) for scores in alone] == [list(episodes) for _, episodes in players(agent)]
    assert len(set(alone[0].values())) > 1
    together = [{} for _ in players(agent)]
    with Environments(TOY, num_envs) as environments:
        for _ in range(2):  # the second time in environments that others have left
            environments.play_all(
                [
                    Assignment(player, episodes, scores.__setitem__)
                    for (player, episodes), scores in zip(players(agent), together, strict=True)
                ],
                seed=4,
                purpose="test",
            )
            assert together == alone


def test_the_agent_scores_what_its_population_of_one_scores(agent):
    scores = {}
    with Environments(TOY, 3) as environments:
        for name, player in (("agent", agent), ("population", Population(agent, agent.params[None]))):
            scores[name] = {}
            environments.play(player, range(4), seed=1, purpose="test", finished=scores[name].__setitem__)
    assert scores["agent"] == scores["population"]


ONES = OpenLoopPlayer(constant(1.0, 0.0), "test")


def play(environments, seed=4):
    """Scores of four episodes."""
    scores = {}
    environments.play(ONES, range(4), seed=seed, purpose="test", finished=scores.__setitem__)
    return scores


def test_lost_games_are_opened_again(monkeypatch):
    closed = []
    monkeypatch.setattr(ToyEnv, "close", lambda self: closed.append(self))
    with Environments(TOY, 2, num_workers=1) as environments:
        expected = play(environments)
        with pytest.raises(GameLostError), monkeypatch.context() as patch:
            patch.setattr(ToyEnv, "step", lambda *_: (_ for _ in ()).throw(GameLostError("gone")))
            play(environments)
        assert len(closed) == 2
        assert play(environments) == expected


def test_a_worker_of_a_cluster_steps_with_its_own_threads(monkeypatch):
    asked = []
    monkeypatch.setattr(
        environments,
        "make_vector_env",
        lambda *_, **options: asked.append(options["num_workers"]) or make_vector_env(TOY, 1),
    )
    job = environments._PlayJob(Needs(), (ONES,), TOY, 4, None, None, 0, "test")
    handler = job.open(3)
    assert len(handler([(0, 1), (0, 2)])) == 2
    handler.close()
    assert asked == [3, 3]


def test_the_longest_episode_of_the_specification():
    one = replace(TOY, max_steps=1)
    assert play_policy(one, constant(1.0, 0.0), 3, seed=0, purpose="test", num_envs=2) == [1.0] * 3
    assert record(one, ONES, seed=0, episode_seed=4).rewards == [1.0]
    assert record(replace(TOY, max_steps=3), ONES, seed=0, episode_seed=4, rules=Rules("tanh", 2)).rewards == [1.0, 2.0]


def test_episodes_of_an_idle_vector_are_an_error():
    """One that is added with the last step of the others is played."""
    envs, queues = [make_vector_env(TOY, 1) for _ in range(2)], [deque([Episode(0, 0)]), deque([Episode(1, 4)])]
    ONES.reset(2)
    with pytest.raises(RuntimeError, match=r"^queues: expected no episode to be added to the queue of a vector "):
        for step in run_episodes(envs, queues, ONES):
            for number in step.episodes[step.over].tolist():
                if number == 0:
                    queues[0].append(Episode(2, 0))
                if number == 1:
                    queues[0].append(Episode(3, 0))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"num_envs": 0}, ValueError, "num_envs: expected an integer from 1 to"),
        ({"num_envs": 2.5}, TypeError, "num_envs: expected an integer, got 2.5"),
        ({"max_steps": 0}, ValueError, "max_steps: expected an integer from 1 to"),
        ({"max_steps": -5}, ValueError, "max_steps: expected an integer from 1 to"),
        ({"seed": -1}, ValueError, "seed: expected an integer from 0 to"),
    ],
)
def test_bad_numbers_are_named(options, error, said):
    seed = {name: options.pop(name) for name in ["seed"] if name in options}
    with pytest.raises(error, match=f"^{said}"), Environments(TOY, **{"num_envs": 1, **options}) as environments:
        play(environments, **seed)


@pytest.mark.parametrize(("name", "value"), [("num_envs", 0), ("episodes", -1), ("episodes", 2.5)])
def test_bad_numbers_of_episodes_are_named(name, value):
    options = {"episodes": 1, "num_envs": 1, name: value}
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected an integer"):
        play_policy(TOY, constant(0.0, 0.0), seed=0, purpose="test", **options)
    with pytest.raises(ValueError, match=r"^max_steps_without_reward: expected an integer from 0 to"):
        next(run_episodes([], [], ONES, max_steps_without_reward=-1))


TRACK, PLACE = np.zeros((3, 2)), np.ones(2)


class Places(ToyEnv):
    """Reports some infos at the reset and others at every step."""

    first, others = {}, {}

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], self.first

    def step(self, action):
        return *super().step(action)[:4], self.others


gymnasium.register("Places-v0", entry_point=Places)


@pytest.mark.parametrize(
    ("first", "others", "has_path"),
    [
        ({"track": TRACK, "position": PLACE}, {"position": PLACE}, True),
        ({"track": "monza", "position": PLACE}, {"position": PLACE}, False),
        ({"track": TRACK}, {"position": PLACE}, False),
        ({"track": TRACK, "position": PLACE}, {}, False),
        ({"track": TRACK, "position": 3.0}, {"position": 4.0}, False),
        ({"position": PLACE}, {"position": PLACE}, False),
    ],
)
def test_a_path_needs_a_track_and_all_positions(monkeypatch, first, others, has_path):
    monkeypatch.setattr(Places, "first", first)
    monkeypatch.setattr(Places, "others", others)
    trace = record(replace(TOY, id="Places-v0"), ONES, seed=0, episode_seed=1)
    assert trace.rewards == [1.0, 2.0, 3.0]
    assert (trace.track, trace.positions) == ((TRACK.tolist(), [[1.0, 1.0]] * 4) if has_path else (None, None))


def test_a_recorded_back_end_is_described_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("worldmodels.envs.envpool.installed", lambda: False)
    played = EnvSpec(id="worldmodels/CarRacing-v0", variant="", resolution="", backend="envpool")
    assert describe_environment(played) == "worldmodels/CarRacing-v0 (EnvPool)"
