"""Collecting: policies, and real episodes that depend on nothing but the seed and their number."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from conftest import make_episode, start, toy_config, write_store, write_world
from worldmodels import Controller
from worldmodels.data.episodes import EpisodeStore
from worldmodels.envs.policies import brownian, constant, ornstein_uhlenbeck, repeated, sweeping
from worldmodels.pipeline import players
from worldmodels.pipeline.collection import _include
from worldmodels.pipeline.config import CollectConfig
from worldmodels.pipeline.evolution import save_controller
from worldmodels.pipeline.players import interruptions, parse_policies
from worldmodels.pipeline.profiles import read_profiles
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.tasks.takecover import POLICIES
from worldmodels.rollout.players import episode_seed
from worldmodels.support.files import read_json

SETTINGS = {"episodes": 7, "shard_episodes": 3, "policies": "repeat 1-10, left", "min_length": 120, "num_workers": 2}


def run(folder, **changes):
    """Collects in a folder; returns its episodes."""
    with Run(folder, toy_config(collect={**SETTINGS, **changes})) as experiment:
        experiment.run_stage("collect")
    return read(folder)


def read(folder):
    store = EpisodeStore(folder / "episodes")
    episodes = list(store.episodes())
    store.close()
    return episodes


def check_equal(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.actions, b.actions)
        assert (a.policy, a.terminated) == (b.policy, b.terminated)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Episodes of two workers that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run(folder)


def test_episodes_are_real_and_whole(undisturbed):
    folder, episodes = undisturbed
    assert len(episodes) == 7
    assert sorted(path.name for path in (folder / "episodes").iterdir()) == ["00000.h5", "00001.h5", "00002.h5"]
    for episode in episodes:
        assert len(episode.frames) >= 120
        assert episode.terminated
        assert (episode.rewards == 1).all()
        assert episode.frames[0].std() > 5
        assert (episode.frames[1:] != episode.frames[:-1]).any(axis=(1, 2, 3)).mean() > 0.5
        lengths = [len(list(group)) for _, group in itertools.groupby(episode.actions[:, 0].tolist())]
        assert (
            max(lengths[:-1], default=0) <= 10
            if episode.policy == "repeat 1-10"
            else set(episode.actions[:, 0]) == {-1}
        )
    assert {episode.policy for episode in episodes} == {"repeat 1-10", "left"}
    assert len({episode.frames[-1].tobytes() for episode in episodes}) == 7
    with Run(folder) as experiment:
        summary = experiment.summary("collect")
    assert summary["frames"] == sum(len(episode.frames) for episode in episodes)
    for name, figures in summary["policies"].items():
        lengths = [len(episode.frames) for episode in episodes if episode.policy == name]
        assert (figures["episodes"], figures["mean"]) == (len(lengths), pytest.approx(np.mean(lengths)))


def test_the_number_of_workers_changes_nothing(tmp_path, undisturbed):
    check_equal(run(tmp_path, num_workers=1), undisturbed[1])


def test_the_profile_adds_the_seconds_of_the_workers(undisturbed):
    profile = read_profiles(undisturbed[0])["collect"]
    assert {"start", "engine", "policy", "storing", "other"} <= set(profile)
    seconds = read_json(undisturbed[0] / "stages" / "collect.json")["seconds"]
    assert seconds / 4 < sum(profile.values()) < 2.2 * seconds  # of two workers


def logged(folder):
    """Lines of collect in metrics.jsonl: episodes and mean length."""
    with Run(folder) as experiment:
        return [(line["episodes"], line["mean_length"]) for line in experiment.metrics("collect")]


def test_metrics_have_a_line_per_shard(undisturbed):
    lengths = [len(episode.frames) for episode in undisturbed[1]]
    expected = [(3, np.mean(lengths[:3])), (6, np.mean(lengths[3:6])), (7, lengths[6])]
    assert logged(undisturbed[0]) == expected


def test_another_seed_plays_other_episodes(undisturbed):
    ours = undisturbed[1]
    seeds = {episode_seed(seed, "collect", number) for seed in (0, 1) for number in range(1000)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert episode_seed(0, "collect", 1) != episode_seed(0, "evaluate", 1) != episode_seed(0, "evaluate", 1, attempt=1)
    assert len({len(episode.frames) for episode in ours}) > 1


def test_finished_shards_are_kept(tmp_path, undisturbed):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "episodes"
    (tmp_path / "stages" / "collect.json").unlink()
    (folder / "00001.h5").rename(folder / "00001.h5.123.tmp")  # a worker that was cut off leaves this
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.h5")}
    check_equal(run(tmp_path), undisturbed[1])
    assert logged(tmp_path) == logged(undisturbed[0])
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert sorted(path.name for path in folder.iterdir()) == ["00000.h5", "00001.h5", "00002.h5"]


def test_other_numbers_of_episodes_must_fit_those_that_are_there(tmp_path, undisturbed):
    """7 in shards of 3: more would want 3 in the last one, fewer would leave some over."""
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "stages" / "collect.json").unlink()
    for episodes, name in ((9, "00002"), (6, "00002"), (5, "00001")):
        with pytest.raises(ValueError, match=rf"^collect\.episodes: expected a number that fits the . of .*{name}\.h5"):
            run(tmp_path, episodes=episodes)
    (tmp_path / "episodes" / "00002.h5").unlink()
    check_equal(run(tmp_path, episodes=6), undisturbed[1][:6])


def engines(mark):
    """Ids of the games whose environment holds ``mark``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text() == "vizdoom\n" and mark in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_kill_9_of_the_whole_command_leaves_no_game_behind(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setenv("WM_TEST", str(tmp_path))
    mark = f"WM_TEST={tmp_path}".encode()
    with Run(tmp_path, toy_config(collect=SETTINGS)):
        pass
    process = start("collect", "--out", tmp_path, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "episodes").glob("*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert engines(mark)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # ends when the workers have ended too
    while left := engines(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    check_equal(run(tmp_path), undisturbed[1])


def test_a_worker_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("worldmodels.pipeline.run.check_config", lambda *_, **__: None)  # which would have refused it
    failed = pytest.raises(RuntimeError, match=r"a worker failed: ValueError: environment\.resolution: expected")
    with Run(tmp_path, toy_config(environment={"resolution": "1x1"})) as experiment, failed:
        experiment.run_stage("collect")
    assert multiprocessing.active_children() == []


def test_repeated_actions_last_as_long_as_they_should():
    stream = repeated(2, 5)(np.random.default_rng(0))
    actions = [next(stream) for _ in range(20_000)]
    assert all(action.shape == (1,) and action.dtype == np.float32 for action in actions)
    runs = [(value, len(list(group))) for value, group in itertools.groupby(float(action[0]) for action in actions)][
        :-1
    ]
    counts = np.bincount([length for _, length in runs], minlength=6)
    assert counts[:2].sum() == 0
    assert len(counts) == 6
    np.testing.assert_allclose(counts[2:] / len(runs), 1 / 4, atol=0.03)
    values = np.array([value for value, _ in runs])
    assert -1 <= values.min() < -0.99 < 0.99 < values.max() <= 1
    assert abs(values.mean()) < 0.03
    assert values.std() == pytest.approx(1 / 3**0.5, abs=0.02)
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.05


def test_constant_and_random_policies():
    def first(name, count=400):
        stream = POLICIES[name](np.random.default_rng(0))
        return [float(next(stream)[0]) for _ in range(count)]

    assert set(first("noop")) == {0.0}
    assert set(first("left")) == {-1.0}
    assert set(first("right")) == {1.0}
    assert len(set(first("uniform"))) == 400
    longest = {
        name: max(len(list(g)) for _, g in itertools.groupby(first(name))) for name in ("repeat 1-10", "repeat 1-60")
    }
    assert longest["repeat 1-10"] == 10
    assert 40 < longest["repeat 1-60"] <= 60
    assert next(constant(0.25)(np.random.default_rng(0))).tolist() == [0.25]
    for low, high in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="low, high: expected 1 <= low <= high"):
            repeated(low, high)


def test_sweeps_alternate_at_random_speeds():
    directions, shares = set(), []
    for seed in range(40):
        stream = sweeping(10, 16)(np.random.default_rng(seed))
        values = np.array([float(next(stream)[0]) for _ in range(2000)])
        assert set(values) == {-1.0, 0.0, 1.0}
        pushes = values[values != 0]
        directions.add(pushes[0])
        lengths = [len(list(group)) for _, group in itertools.groupby(pushes)]
        assert all(3 <= length <= 13 for length in lengths[:-1])  # 0.3 to 1.2 crossings of 10 pushes
        shares.append(len(pushes) / len(values))
    assert directions == {-1.0, 1.0}
    # as many pushes at every speed, so their share is that of the mean of k, log-uniform in 1 to 16: log(16) / 15
    assert np.mean(shares) == pytest.approx(np.log(16) / 15, rel=0.1)
    for crossing, slowest in ((0, 16), (92, 0)):
        with pytest.raises(ValueError, match=r"^crossing, slowest: expected positive numbers, got "):
            sweeping(crossing, slowest)


def test_policies_are_read_with_their_shares():
    assert parse_policies("repeat 1-10", POLICIES) == [("repeat 1-10", 1.0)]
    assert parse_policies(" left : 2,right:0.5 ", POLICIES) == [("left", 2.0), ("right", 0.5)]


@pytest.mark.parametrize("text", ["", "left,", "hover", "left:0", "left:-1", "left:much", "left:inf", "left:nan"])
def test_bad_policies_are_named(text):
    with pytest.raises(ValueError, match=r"collect\.policies: expected '<name>:<weight>, \.\.\.' of uniform, "):
        parse_policies(text, POLICIES)


def test_shares_are_followed():
    """By the episodes' own seeds; checked on a game that ends at once."""

    class Games:
        num_envs = 2
        action_space = gymnasium.spaces.Box(-1, 1, (1,))

        def prefetch(self, seeds):
            self.seeds = seeds

        def reset(self, slots, seeds):
            assert set(seeds) <= set(self.seeds)
            return np.zeros((len(slots), 64, 64, 3), np.uint8)

        def send(self, slots, actions):
            self.slots = slots

        def recv(self):
            none = np.zeros(len(self.slots), np.bool_)
            return np.zeros((len(self.slots), 64, 64, 3), np.uint8), none + np.float32(1), ~none, none

    config = toy_config(collect={"policies": "left:1, right:3"})
    names = [episode.policy for episode in players.play(Games(), players.Job(config, None, 0), range(1000), None)]
    assert abs(names.count("right") / 1000 - 0.75) < 0.05


def test_interruptions_stay_in_the_action_space():
    stream = interruptions(np.random.default_rng(1), np.array([-1.0, 0.0]), np.array([1.0, 0.5]))
    pushes = np.stack([action for action in itertools.islice(stream, 2000) if not np.isnan(action).any()])
    assert -1 <= pushes[:, 0].min() < -0.5 and 0.5 < pushes[:, 0].max() <= 1
    assert 0 <= pushes[:, 1].min() < 0.1 and 0.4 < pushes[:, 1].max() <= 0.5


def test_brownian_actions_walk():
    """Steps are normal where no bound is near, and the walk forgets where it began."""
    stream = brownian(0.05, 2)(np.random.default_rng(0))
    actions = np.stack(list(itertools.islice(stream, 20_000)))
    assert actions.shape == (20_000, 2) and actions.dtype == np.float32 and np.abs(actions).max() <= 1
    steps = np.diff(actions, axis=0)[np.abs(actions[:-1]).max(axis=1) < 0.7]
    assert steps.std() == pytest.approx(0.05, rel=0.03) and abs(steps.mean()) < 0.002
    assert np.abs(np.corrcoef(actions[:, 0], actions[:, 1])[0, 1]) < 0.2
    with pytest.raises(ValueError, match=r"^step: expected a finite number above zero, got 0"):
        brownian(0)


def test_ornstein_uhlenbeck_actions_are_drawn_back_to_zero():
    """An AR(1): its standard deviation is step / sqrt(1 - a^2), its correlation a step a = 1 - 1 / time_constant."""
    stream = ornstein_uhlenbeck(0.1, 10, 2)(np.random.default_rng(0))
    actions = np.stack(list(itertools.islice(stream, 40_000)))
    assert actions.shape == (40_000, 2) and actions.dtype == np.float32 and np.abs(actions).max() <= 1
    assert abs(actions.mean()) < 0.02
    assert actions.std() == pytest.approx(0.1 / np.sqrt(1 - 0.9**2), rel=0.03)
    for column in actions.T:
        assert np.corrcoef(column[:-1], column[1:])[0, 1] == pytest.approx(0.9, abs=0.02)
    said = r"^step, time_constant: expected a finite step above zero and a time constant from 1"
    for step, time_constant in ((0, 10), (0.1, 0.5), (0.1, float("inf"))):
        with pytest.raises(ValueError, match=said):
            ornstein_uhlenbeck(step, time_constant)


@pytest.fixture(scope="module")
def toy_agent(tmp_path_factory):
    """A run folder with an agent that does something or other."""
    folder = tmp_path_factory.mktemp("agent")
    with Run(folder, toy_config()) as experiment:
        write_world(experiment)
        controller = Controller(4, 8, 1)
        save_controller(experiment, controller, np.random.default_rng(1).normal(size=controller.size), {})
    return folder


def test_an_agent_collects_beside_included_episodes(tmp_path, toy_agent, undisturbed):
    base, before = undisturbed
    changes = {
        "episodes": 4,
        "agent": str(toy_agent),
        "policies": "agent, agent with parameter noise, agent with action bursts",
        "include": str(base),
        "min_length": 1,
    }
    episodes = run(tmp_path / "one", **changes)
    check_equal(episodes[:7], before)
    mine = episodes[7:]
    assert len(mine) == 4
    assert {episode.policy for episode in mine} == {"agent", "agent with parameter noise", "agent with action bursts"}
    for episode in mine:
        unchanged = (np.diff(episode.actions[:, 0]) == 0).mean()
        assert (unchanged > 0.05) == (episode.policy == "agent with action bursts")
    assert (base / "episodes" / "00000.h5").stat().st_nlink == 2
    check_equal(run(tmp_path / "two", **{**changes, "num_workers": 1}), episodes)


def test_a_resumed_collection_has_one_agent(tmp_path, toy_agent, monkeypatch):
    agent = shutil.copytree(toy_agent, tmp_path / "agent")
    changes = {"episodes": 2, "shard_episodes": 1, "agent": str(agent), "policies": "agent", "min_length": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("worldmodels.pipeline.collection._Pool.run", interrupted)
        run(tmp_path / "run", **changes)
    write_store(tmp_path / "run" / "episodes", [make_episode(3)])
    with Run(agent) as evolved:
        controller = Controller(4, 8, 1)
        save_controller(evolved, controller, np.ones(controller.size), {"generation": 3, "score": 5.0})
    said = r"^collect\.agent: expected the C that played the 1 episodes so far, generation None .*, got generation 3 "
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "run", **changes)


def interrupted(_):
    raise KeyboardInterrupt


def test_included_episodes_are_those_of_the_first_session(tmp_path):
    base, own = tmp_path / "base", tmp_path / "own"
    write_store(base / "episodes", [make_episode(3)])
    write_store(own, [make_episode(9)])
    with pytest.raises(
        ValueError, match=r"^collect\.include: expected the episodes of .*base that were included before"
    ):
        _include(CollectConfig(include=str(base)), own)


def test_included_episodes_are_not_played_again(tmp_path):
    """With the same seed, smaller files would begin at numbers of the included episodes."""
    run(tmp_path / "base", episodes=3, shard_episodes=3, min_length=1)
    said = r"^collect\.include: expected episodes with other seeds than the 2 new ones, got 2 with the same in .*base"
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "own", episodes=2, shard_episodes=1, min_length=1, include=str(tmp_path / "base"))


def test_an_incomplete_run_is_not_included(tmp_path):
    write_store(tmp_path / "base" / "episodes", [make_episode(3)])
    (tmp_path / "base" / "stages").mkdir()
    (tmp_path / "base" / "stages" / "collect.begun.json").touch()
    with pytest.raises(ValueError, match=r"^collect\.include: expected a run whose collect is complete, got .*base"):
        run(tmp_path / "run", include=str(tmp_path / "base"))


def test_interruptions_hold_an_action_now_and_then():
    stream = interruptions(np.random.default_rng(1), np.array([-1, -1]), np.array([1, 1]))
    actions = np.stack(list(itertools.islice(stream, 4000)))
    free = np.isnan(actions).all(axis=1)
    assert (np.isnan(actions).any(axis=1) == free).all() and 0.6 < free.mean() < 0.85
    assert np.nanmin(actions) >= -1 and np.nanmax(actions) <= 1 and np.nanstd(actions) > 0.4
    runs = [len(list(group)) for pushed, group in itertools.groupby(free) if not pushed]
    assert max(runs) <= 20 and len(runs) > 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": "agent"}, r"^collect\.agent: expected the agent of policy 'agent', got none"),
        ({"policies": "agent", "agent": "/no/such/run"}, r"/no/such/run"),
        ({"include": "/no/such/run"}, r"^collect\.include: expected a run folder with episodes, got /no/such/run"),
    ],
)
def test_bad_agents_and_folders(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tmp_path, **changes)
    assert not list((tmp_path / "episodes").glob("*.h5"))
