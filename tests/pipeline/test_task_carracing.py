"""The CarRacing experiment: its numbers, its policies, and the authors' way to collect."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest

from conftest import TOY, make_mdnrnn
from worldmodels import MDNRNN, Controller
from worldmodels.data.episodes import EpisodeStore
from worldmodels.envs import envpool as pool
from worldmodels.envs.base import VectorEnv
from worldmodels.envs.car_racing import HIGH, LOW
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.random_agent import RandomAgent
from worldmodels.pipeline import collection as collect
from worldmodels.pipeline import players, tasks
from worldmodels.pipeline.config import override
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES
from worldmodels.rollout import environments as play

TASK = tasks.get("carracing")


def test_the_paper_preset_is_the_papers():
    config = TASK.presets["paper"]
    rnn, evolve = config.train_rnn, config.evolve
    model = MDNRNN(32, 3, rnn.hidden_size, rnn.num_mixtures, restart_input=rnn.restart_input, done_head=rnn.done_head)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 422_368
    assert config.train_vae.latent_size == 32
    controller = Controller(32, 256, 3, evolve.features, evolve.bias, evolve.hidden_units, TASK.squash)
    assert controller.size == 867
    assert (config.collect.episodes, config.collect.ignore_done) == (10_000, True)
    assert (rnn.sequence_length, rnn.batch_size, rnn.reward_head) == (999, 100, False)
    assert (evolve.popsize, evolve.episodes, evolve.sigma0, evolve.evaluate_in) == (64, 16, 0.1, "environment")
    assert (evolve.max_steps, evolve.evaluate_every, evolve.evaluate_episodes) == (1000, 25, 1024)


def test_presets_hold_together():
    for name, config in TASK.presets.items():
        assert (config.preset, config.task) == (name, "carracing")
        players.parse_policies(config.collect.policies, TASK.policies)
        in_dream = name in ("dream", "full", "pretrained")
        assert config.train_rnn.reward_head == (config.evolve.evaluate_in == "dream") == in_dream
    assert set(TASK.baselines.values()) <= set(TASK.policies)


def test_a_dream_is_scored_where_its_M_says_what_a_step_is_worth():
    """Whatever the settings say: M may be another run's."""
    with_rewards, without = (make_mdnrnn(reward_head=flag) for flag in (True, False))
    assert TASK.dream_has_reward(with_rewards) and not TASK.dream_has_reward(without)
    assert tasks.get("takecover").dream_has_reward(without)


@pytest.mark.parametrize("name", list(TASK.policies))
def test_policies_stay_on_the_pedals(name):
    stream = TASK.policies[name](np.random.default_rng(0))
    actions = np.stack(list(itertools.islice(stream, 3000)))
    assert actions.shape == (3000, 3) and actions.dtype == np.float32
    assert (actions >= LOW).all() and (actions <= HIGH).all()
    if name in ("uniform", "repeat 1-20", "brownian"):
        assert (actions.std(axis=0) > 0.2).all()
        assert 0.3 < (actions[:, 2] == 0).mean() < 0.7


def test_noise_acts():
    """Every draw is another agent; its actions are actions, however large its weights are."""
    agent = RandomAgent(Controller(4, 8, 3, squash="carracing"))
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    seen = []
    for seed in (1, 2, 3, 1):
        agent.draw(np.random.default_rng(seed))
        actions = np.stack([agent.act(frame) for frame in frames])
        assert actions.shape == (3, 3) and (actions >= LOW).all() and (actions <= HIGH).all()
        seen.append(actions)
    np.testing.assert_array_equal(seen[0], seen[3])
    assert len({actions.tobytes() for actions in seen}) == 3


class Cars(VectorEnv):
    """Games of three steps, which pay a point each."""

    num_envs = 2
    steps = 3
    paying = range(1, 4)

    action_space = gymnasium.spaces.Box(np.array(LOW, np.float32), np.array(HIGH, np.float32))

    def __init__(self, environment, num_envs, *, num_workers, **options):
        self.ages = {}

    def close(self):
        pass

    def reset(self, env_ids, seeds):
        self.ages.update(dict.fromkeys(env_ids, 0))
        return np.full((len(env_ids), 64, 64, 3), 100, np.uint8)

    def send(self, env_ids, actions):
        assert (actions >= LOW).all() and (actions <= HIGH).all()
        for env_id in env_ids:
            self.ages[env_id] += 1
        self.sent = env_ids

    def recv(self):
        over = np.array([self.ages[env_id] == self.steps for env_id in self.sent])
        rewards = np.array([1 if self.ages[env_id] in self.paying else -0.1 for env_id in self.sent], np.float32)
        return np.full((len(self.sent), 64, 64, 3), 100, np.uint8), rewards, ~over & over, over


def test_noise_collects():
    config = override(
        TASK.presets["paper"],
        {
            "train_rnn": {"hidden_size": 8},
            "train_vae": {"latent_size": 4},
            "collect": {"policies": "random-weight agent:3, brownian:1"},
        },
    )
    job = players.Job(config, None, 0)
    assert job.environment.backend == "gymnasium" and job.options == {"ignore_done": True}
    episodes = list(players.play(Cars(None, 2, num_workers=1), job, range(12), None))
    assert {episode.policy for episode in episodes} == {"random-weight agent", "brownian"}
    assert all(episode.actions.shape == (3, 3) and not episode.terminated for episode in episodes)
    assert len({episode.actions.tobytes() for episode in episodes}) == 12
    with pytest.raises(ValueError, match=r"^collect\.policies: .*random-weight agent"):
        players.parse_policies("noise", TASK.policies)
    assert collect.parse_policies is players.parse_policies


class LongCars(Cars):
    """Games of thirty steps that pay at the second and the sixth."""

    steps = 30
    paying = (2, 6)


@pytest.mark.parametrize(("max_steps", "length"), [(0, 30), (1, 1), (4, 10), (5, 11), (23, 29), (24, 30), (99, 30)])
def test_an_episode_without_rewards_is_truncated(max_steps, length):
    changes = {"policies": "brownian", "max_steps_without_reward": max_steps, "ignore_done": False}
    job = players.Job(override(TASK.presets["paper"], {"collect": changes}), None, 0)
    episodes = list(players.play(LongCars(None, 2, num_workers=1), job, range(5), None))
    assert [len(episode.frames) for episode in episodes] == [length] * 5
    for episode in episodes:
        assert len(episode.rewards) == len(episode.actions) == length and not episode.terminated
        assert episode.rewards[1:2].tolist() == [1][: length - 1]


@pytest.mark.parametrize(
    ("max_steps", "score"), [(None, 2 - 2.8), (1, -0.1), (2, 0.9), (7, 1.5), (30, 2 - 2.8), (40, 2 - 2.8)]
)
def test_episodes_can_be_as_short_as_dreams(monkeypatch, max_steps, score):
    monkeypatch.setattr(play, "make_vector_env", lambda environment, slots: LongCars(environment, slots, num_workers=1))
    player, scores = play.OpenLoopPlayer(TASK.policies["brownian"], "short"), {}
    with play.Environments(EnvSpec("worldmodels/CarRacing-v0"), 2, max_steps) as environments:
        environments.play(player, range(5), seed=0, purpose="short", finished=scores.__setitem__)
    assert scores == {episode: pytest.approx(score) for episode in range(5)}


@pytest.mark.slow
@pytest.mark.skipif(not pool.installed(), reason="EnvPool is not installed")
def test_the_whole_of_it_at_toy_size(tmp_path):
    """Evolved in the real environment, with three-dimensional actions in every picture."""
    toy = {
        **TOY,
        "collect": {"episodes": 2, "shard_episodes": 1, "num_workers": 1},
        "evolve": {**TOY["evolve"], "max_steps": 5, "num_envs": 4, "evaluate_episodes": 2},
        "evaluate": {"episodes": 1, "num_envs": 1, "recording_steps": 6},  # of a thousand steps
    }
    config = override(TASK.presets["quick"], toy)
    assert config.environment == EnvSpec(id=TASK.env_id, variant="", resolution="")
    with Run(tmp_path, config) as experiment:
        for stage in NAMES:
            experiment.run_stage(stage)
        store = EpisodeStore(tmp_path / "episodes")
        assert store.shards[0].actions.shape[1] == 3
        store.close()
        assert experiment.summary("evolve")["backend"] == "envpool"
    for name in ("report/episode", "report/scores", "report/evolution", "evaluate/frames"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "steering, gas, brake" in page and "evolved in the real environment" in page
