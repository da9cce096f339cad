"""The episode loop: several players in one pool of environments, each with the scores that it has alone."""

from __future__ import annotations

import numpy as np
import pytest
from test_evaluators import TOY, make_m

from conftest import make_vae
from worldmodels import Agent, Controller
from worldmodels.envs.policies import repeated
from worldmodels.models.agent import Population
from worldmodels.rollout.runner import Assignment, Environments, OpenLoopPlayer


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
