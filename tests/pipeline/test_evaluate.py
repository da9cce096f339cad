"""Evaluating and checking the dream: real episodes, every score kept, nothing played twice."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import interrupt, make_mdnrnn, mark_done, toy_config, write_world
from worldmodels.data.records import EpisodeTrace, PolicyCheck, Scores
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.dream.native import Dream
from worldmodels.envs import making
from worldmodels.envs.making import make
from worldmodels.envs.policies import constant
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.agent import Agent, Population
from worldmodels.models.controller import Controller
from worldmodels.pipeline import dream_check as check_dream
from worldmodels.pipeline import evaluation as evaluate
from worldmodels.pipeline import scores
from worldmodels.pipeline.config import override
from worldmodels.pipeline.evaluators import playback_precision
from worldmodels.pipeline.evolution import Means, save_controller
from worldmodels.pipeline.run import Run
from worldmodels.rollout import environments as play
from worldmodels.support.files import read_json
from worldmodels.support.progress import Progress
from worldmodels.support.versions import versions
from worldmodels.web.film import Film

SETTINGS = {"episodes": 3, "num_envs": 2, "recording_steps": 40}
EVOLVED = {"parameters": 20, "score": 50.0, "generation": 2, "temperature": 1.15}


def prepare(folder, **changes):
    """A run folder in which evaluate is next."""
    experiment = Run(folder, toy_config(evaluate={**SETTINGS, **changes}))
    if not experiment.is_done("evolve"):
        write_world(experiment)
        params = np.random.default_rng(0).normal(0, 0.5, 20)
        save_controller(experiment, Controller(4, 8, 1), params, EVOLVED)
        mark_done(experiment, "evolve", summary=EVOLVED)
    return experiment


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder in which everything was really played."""
    folder = tmp_path_factory.mktemp("evaluated")
    with prepare(folder) as experiment:
        experiment.run_stage("evaluate")
    return folder


def test_results_are_complete(evaluated):
    results = read_json(evaluated / "results.json")
    for name in ("agent", "before", "random", "collecting", "noop", "left", "right"):
        scores = results[name]["scores"]
        assert len(scores) == 3
        assert all(score == int(score) and 20 < score <= 2100 for score in scores)
        assert results[name]["mean"] == pytest.approx(np.mean(scores))
        assert results[name]["std"] == pytest.approx(np.std(scores, ddof=1))
        low, high = results[name]["ci95"]
        assert low <= results[name]["mean"] <= high
    assert len({tuple(results[name]["scores"]) for name in ("agent", "random", "collecting", "noop")}) == 4
    assert results["before"]["policy"] == "first generation" and "curve" not in results
    assert (results["random"]["policy"], results["collecting"]["policy"]) == ("uniform", "repeat 1-10")
    assert results["environment"] == {
        "id": "worldmodels/TakeCover-v0",
        "variant": "paper",
        "resolution": "160x120",
        "backend": "gymnasium",
        "max_steps": 2100,
    }
    assert results["versions"] == versions()
    assert results["seeds"]["seed"] == 0
    evaluation = results["dream"].pop("evaluation")
    assert results["dream"] == {"score": 50.0, "temperature": 1.15, "precision": "float32", "generation": 2}
    assert len(evaluation["scores"]) == 4 and evaluation["mean"] == np.mean(evaluation["scores"])
    with Run(evaluated) as experiment:
        assert experiment.summary("evaluate")["agent"]["mean"] == results["agent"]["mean"]


def test_scores_can_be_played_again_from_their_seeds(evaluated):
    results = read_json(evaluated / "results.json")
    env = make(EnvSpec())
    for seed, score in zip(results["seeds"]["episodes"], results["noop"]["scores"], strict=True):
        env.reset(seed=seed)
        steps, over = 0, False
        while not over:
            _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
            steps += 1
            over = terminated or truncated
        assert steps == score
    env.close()


def test_the_recording_shows_frame_and_reconstruction(evaluated):
    with Image.open(evaluated / "evaluate" / "episode.gif") as image:
        assert image.n_frames == 21  # every second of 40 steps, and the last one
        assert image.width == 2 * 64 * 4 + 4 and 300 < image.height < 400  # two panels, titles and captions
        shown, milliseconds = [], 0
        for number in range(image.n_frames):
            image.seek(number)
            milliseconds += image.info["duration"]
            shown.append(np.asarray(image.convert("RGB"))[50:250].astype(int))  # rows of the panels
    assert milliseconds == pytest.approx(1000 * (40 / 35 + 1), abs=10)  # the last one stays for a second
    (first, reconstruction), (last, _) = ((page[:, :256], page[:, 260:]) for page in (shown[0], shown[-1]))
    assert np.abs(first - last).mean() > 0.5
    assert np.abs(first - reconstruction).mean() > 5


def without_policies(patch):
    """The policies beside the agent play nothing."""
    really = evaluate.cached_scores

    def cached_scores(players, **options):
        controllers = [one for one in players if not isinstance(one.player, play.OpenLoopPlayer)]
        assert controllers == players[: len(controllers)]  # longer episodes come first
        return really(controllers, **options) + [[1, 2, 3]] * (len(players) - len(controllers))

    patch.setattr(evaluate, "cached_scores", cached_scores)
    patch.setattr(evaluate, "_record", lambda _: None)


def episodes_played(patch):
    """Numbers of the episodes that the agent itself, the first player, is sent to play."""
    played = []

    def spy(environments, assignments, **options):
        played.extend(assignments[0].episodes)
        really(environments, assignments, **options)

    really = play.Environments.play_all
    patch.setattr(play.Environments, "play_all", spy)
    return played


def test_the_whole_episode_is_filmed_for_the_page(evaluated):
    film = Film.read(evaluated / "evaluate" / "film.json")
    steps = len(EpisodeTrace.read(evaluated / "evaluate" / "episode.json").rewards)
    assert (film.steps, film.frames, film.complete) == (min(steps, 700), min(steps, 700), steps <= 700)
    with Image.open(evaluated / "evaluate" / "film.webp") as sheet:
        assert sheet.size == (64 * film.columns, 64 * -(-film.frames // film.columns))


def test_nothing_is_played_twice(evaluated, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "again"
    shutil.copytree(evaluated, folder)
    expected = read_json(folder / "results.json")
    without_policies(monkeypatch)
    played = episodes_played(monkeypatch)
    with prepare(folder) as experiment:
        experiment.run_stage("evaluate")
        assert "already complete" in capsys.readouterr().err
        experiment.marker("evaluate").unlink()
        experiment.run_stage("evaluate")
    assert played == []
    assert read_json(folder / "results.json")["agent"] == expected["agent"]
    with prepare(folder, episodes=4) as experiment:  # one more
        experiment.run_stage("evaluate")
    assert played == [3]
    assert read_json(folder / "results.json")["agent"]["scores"][:3] == expected["agent"]["scores"]


def test_policies_do_not_play_twice_either(evaluated, tmp_path, monkeypatch):
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    expected = read_json(tmp_path / "results.json")
    monkeypatch.setattr(evaluate, "_record", lambda _: None)
    monkeypatch.setattr(play, "make_vector_env", None)
    with prepare(tmp_path) as experiment:
        experiment.marker("evaluate").unlink()
        experiment.run_stage("evaluate")
    assert read_json(tmp_path / "results.json") == expected
    lines = (tmp_path / "evaluate" / "random.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["policy"] == "uniform" and len(lines) == 4


def test_a_run_that_is_cut_off_keeps_its_episodes(evaluated, tmp_path, monkeypatch):
    expected = read_json(evaluated / "results.json")["agent"]["scores"]
    without_policies(monkeypatch)
    with prepare(tmp_path) as experiment:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, Progress, "update", 1)
            experiment.run_stage("evaluate")
        path = experiment.path("evaluate", "episodes.jsonl")
        (kept,) = [json.loads(line)["episode"] for line in path.read_text().splitlines()[1:]]
        with path.open("a") as file:
            file.write('{"episode": 2, "sco')  # the end of a line that was being written
        played = episodes_played(monkeypatch)
        experiment.run_stage("evaluate")
    assert sorted([*played, kept]) == [0, 1, 2]
    assert kept not in played
    assert read_json(tmp_path / "results.json")["agent"]["scores"] == expected


def test_the_curve_is_of_every_evaluated_mean(tmp_path, monkeypatch):
    without_policies(monkeypatch)
    with prepare(tmp_path, curve_episodes=2) as experiment:
        agent = Agent.load(experiment.folder)
        means = Means(experiment.path("evolve", "means.safetensors"), 0)
        for generation, params in ((1, np.zeros(20)), (2, agent.params)):
            means.add(generation, 10.0 * generation, params)
        experiment.run_stage("evaluate")
    results = read_json(tmp_path / "results.json")
    curve = results["curve"]
    assert [(point["generation"], point["dream"]) for point in curve] == [(1, 10.0), (2, 20.0)]
    assert [len(point["game"]["scores"]) for point in curve] == [2, 2]
    # Episode e is of mean e % 2: number 1 was the agent's own, and so are its score and its seed.
    assert curve[1]["game"]["scores"][0] == results["agent"]["scores"][1]
    longer = override(experiment.config, {"evolve": {"generations": 3}})
    with Run(tmp_path, longer) as experiment:  # the same C, and one more mean: the episodes are of others now
        means.add(3, 5.0, np.ones(20))
        experiment.marker("evaluate").unlink()
        played, really = [], play.Environments.play_all

        def spy(environments, assignments, **options):
            played.extend(one.episodes for one in assignments)
            really(environments, assignments, **options)

        monkeypatch.setattr(play.Environments, "play_all", spy)
        experiment.run_stage("evaluate")
    assert [episodes for episodes in played if episodes] == [list(range(6))]
    curve = read_json(tmp_path / "results.json")["curve"]
    assert [len(point["game"]["scores"]) for point in curve] == [2, 2, 2]
    assert curve[1]["game"]["scores"][0] == results["agent"]["scores"][1]


def test_a_machine_without_bfloat16_looks_at_its_dreams_in_float32(tmp_path, monkeypatch):
    with prepare(tmp_path) as experiment:
        expected = evaluate.dream_scores(experiment)
        experiment.config = override(experiment.config, {"evolve": {"precision": "bfloat16"}})
        for here, found in ((["float32", "bfloat16"], "bfloat16"), (["float32"], "float32")):
            monkeypatch.setattr("worldmodels.pipeline.evaluators.precisions", lambda here=here: here)
            assert playback_precision(experiment) == found
        assert evaluate.dream_scores(experiment) == expected


def test_every_episode_is_played_by_its_own_candidate(tmp_path):
    """The actions are those of agents that are made of one candidate each."""
    with prepare(tmp_path) as experiment:
        agent = Agent.load(experiment.folder)
    params = np.random.default_rng(5).normal(0, 1, (3, 20)).astype(np.float32)
    frames = np.random.default_rng(6).integers(0, 256, (4, 64, 64, 3), np.uint8)
    restart, episodes = np.ones(4, np.bool_), np.array([7, 0, 2, 4])
    many = Population(Agent.load(tmp_path), params)
    many.reset(4, seed=1)
    actions = many.act(frames, restart, episodes)
    for slot, episode in enumerate(episodes):
        alone = Agent(agent.vae, agent.mdnrnn, agent.controller, params[episode % 3])
        alone.reset(4, seed=1)
        np.testing.assert_allclose(alone.act(frames, restart, episodes)[slot], actions[slot], atol=1e-5)


def test_the_liveliest_frames_are_those_that_differ_most_from_the_one_before():
    frames = [np.zeros((64, 64, 3), np.uint8) for _ in range(9)]
    frames[3][:], frames[6][:] = 9, 5
    assert evaluate.most_active_frames(frames, 2) == [3, 6]
    assert evaluate.most_active_frames(frames[:1], 4) == [0]


def test_scores_of_another_agent_or_environment_are_not_reused(evaluated, tmp_path, monkeypatch):
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "evaluate" / "episodes.jsonl"
    about = json.loads(path.read_text().splitlines()[0])
    assert sorted(scores.read_scores(path, about)) == [0, 1, 2]
    for other in ({**about, "seed": 1}, {**about, "environment": {**about["environment"], "variant": "modern"}}):
        assert scores.read_scores(path, other) == {}
    assert scores.read_scores(path, {**about, "controller": {**about["controller"], "generation": 3}}) == {}


class Countdown:
    """A game whose seed is its length; every frame shows how many steps are left, every step but the last pays 1."""

    def reset(self, seed):
        self.left = seed
        return np.full((64, 64, 3), self.left, np.uint8), {}

    def step(self, action):
        assert action == [self.left]  # the action that was meant for this very frame
        self.left -= 1
        return np.full((64, 64, 3), self.left, np.uint8), float(self.left > 0), self.left == 0, False, {}

    def close(self):
        self.left = None


class Spy:
    """Answers every frame with what it shows, and keeps what it was told."""

    def reset(self, batch, *, seed=0):
        self.batch, self.seed, self.told = batch, seed, []

    def act(self, frames, restart=None, episodes=None, *, env_ids=None):
        shown = frames[:, 0, 0, 0].astype(np.float32)
        self.told += [(int(e), bool(r), int(left)) for e, r, left in zip(episodes, restart, shown, strict=True)]
        assert len(frames) == len(set(env_ids)) <= self.batch
        return shown[:, None]


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_an_agent_is_told_which_episode_every_frame_is_of(monkeypatch, slots):
    lengths, envs = {3: 4, 4: 1, 5: 7, 8: 2, 9: 3}, []
    monkeypatch.setattr(making, "make", lambda _: envs.append(Countdown()) or envs[-1])
    monkeypatch.setattr(play, "episode_seed", lambda seed, purpose, episode: lengths[episode])
    player, played = Spy(), []
    with play.Environments(EnvSpec(), slots) as environments:
        for episodes in (list(lengths), [8, 5], []):  # what was opened for the first is there for the others
            options = {"seed": 6, "purpose": "test", "finished": lambda *score: played.append(score)}
            played.clear()
            environments.play(player, episodes, **options)
            assert sorted(played) == [(episode, lengths[episode] - 1.0) for episode in sorted(episodes)]
            if not episodes:
                continue
            assert (player.batch, player.seed) == (min(slots, len(episodes)), 6)
            for episode in episodes:
                told = [(restart, left) for number, restart, left in player.told if number == episode]
                assert told == [(left == lengths[episode], left) for left in range(lengths[episode], 0, -1)]
        assert len(envs) == min(slots, 5)
    assert [env.left for env in envs] == [None] * min(slots, 5)


def starts(latent_size=4, rows=20):
    rng = np.random.default_rng(0)
    mu, logvar = rng.normal(size=(2, rows, latent_size)).astype(np.float32)
    return mu, logvar - 2


def test_policies_dream_what_controllers_dream():
    """A controller that is nothing but a bias always acts the same, as a constant policy does."""
    model, count = make_mdnrnn(), 12
    dreams = DreamVectorEnv(model, *starts(), num_envs=count, temperature=1.15, max_steps=80, features="z")
    controller = Controller(4, 8, 1, features="z", bias=True)
    dream = Dream(model, *starts(), controller, temperature=1.15, max_steps=80)
    lengths = {}
    for action, bias in ((1.0, 30.0), (-1.0, -30.0), (0.0, 0.0)):
        params = np.tile([0.0, 0, 0, 0, bias], (count, 1))
        lengths[action] = check_dream.play_dreams(dreams, constant(action), seed=3)
        assert lengths[action] == dream.rollout(params, 1, seed=3).lengths[:, 0].tolist()
    assert len(set(map(tuple, lengths.values()))) == 3


def check_of(dream, game):
    return PolicyCheck(
        **{
            name: Scores(scores=[mean], mean=mean, std=1.0, ci95=(mean - width, mean + width))
            for name, (mean, width) in (("dream", dream), ("game", game))
        }
    )


@pytest.mark.parametrize(
    ("dream", "game", "said"),
    [
        ((200, 10), (190, 10), None),
        ((290, 10), (200, 10), None),  # within one and a half
        ((400, 150), (200, 60), None),  # could be chance
        ((765, 20), (173, 10), "'left': 765 steps survived in the dream, 173 in the game. M is too optimistic"),
        ((100, 5), (200, 10), "M is too pessimistic"),
    ],
)
def test_a_dream_that_cannot_be_trusted_is_named(dream, game, said):
    text = check_dream.bias_warning("left", check_of(dream, game), "steps survived")
    assert text is None if said is None else said in text


@pytest.mark.parametrize(
    ("dream", "game", "said"),
    [
        ((30, 5), (-40, 5), None),  # 70 apart, of policies that are 200 apart
        ((90, 5), (-40, 5), "'left': 90 points in the dream, -40 in the game. M is too optimistic"),
        ((-140, 5), (-40, 5), "M is too pessimistic"),
        ((90, 150), (-40, 5), None),
    ],
)
def test_scores_below_zero_are_compared_too(dream, game, said):
    text = check_dream.bias_warning("left", check_of(dream, game), "points", 200)
    assert text is None if said is None else said in text


def test_the_check_compares_both_worlds_and_warns(tmp_path, monkeypatch, capsys):
    """A policy that survives at most 50 steps in the dream and over 100 in the game gets a warning."""
    asked = []

    def game(players, **options):
        real, common = options["environments"], (options["seed"], options["purpose"])
        asked.extend(
            (one.metadata["policy"], real.environment, real.max_steps, one.episodes, *common) for one in players
        )
        return [[110, 120, 130]] * len(players)

    monkeypatch.setattr(check_dream, "cached_scores", game)
    changes = {"episodes": 3, "dream_episodes": 40}
    with Run(tmp_path, toy_config(check_dream=changes, evolve={"temperature": 0.7})) as experiment:
        write_world(experiment)
        experiment.run_stage("check_dream")
        summary = experiment.summary("check_dream")
    out, err = capsys.readouterr()
    found = read_json(tmp_path / "check_dream" / "check_dream.json")
    names = ["uniform", "repeat 1-10", "repeat 1-60", "sweep", "noop", "left", "right"]
    assert list(found["policies"]) == names
    assert found["temperature"] == 0.7
    # The same episodes of the environment for every policy, as long as its dreams, not longer.
    assert asked == [(name, EnvSpec(), 50, 3, 0, "check-dream") for name in names]
    for name, both in found["policies"].items():
        assert len(both["dream"]["scores"]) == 40
        assert max(both["dream"]["scores"]) <= 50
        assert both["game"]["scores"] == [110, 120, 130]
        assert summary[name]["game"] == 120
        assert name in out
    assert len({tuple(both["dream"]["scores"]) for both in found["policies"].values()}) == 7
    assert found["warnings"] == summary["warnings"]
    assert len(found["warnings"]) == 7
    assert err.count("WARNING: policy '") == 7
