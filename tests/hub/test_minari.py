"""Minari data sets: image observations are recordings, and an episode store becomes a data set without loss."""

import sys
import warnings
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from conftest import make_episode, write_store
from worldmodels.cli import main
from worldmodels.data.episodes import EpisodeStore
from worldmodels.hub.minari import MinariRecordings, export_minari
from worldmodels.pipeline.run import Run

minari = pytest.importorskip("minari")


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


class Pictures(gymnasium.Env):
    """Random frames of 80x100; terminates after 12 steps."""

    observation_space = Box(0, 255, (80, 100, 3), np.uint8)

    def __init__(self, action_space):
        self.action_space = action_space

    def _frame(self):
        return self.np_random.integers(0, 256, (80, 100, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._frame(), {}

    def step(self, action):
        self.steps += 1
        return self._frame(), float(self.steps), self.steps == 12, False, {}


def record(name, action_space, episodes=3):
    """A data set of an environment as Minari itself records it; its actions."""
    buffers, taken = [], []
    env = Pictures(action_space)
    for number in range(episodes):
        action_space.seed(number)
        frames, actions = [env.reset(seed=number)[0]], [action_space.sample() for _ in range(12)]
        steps = [env.step(action) for action in actions]
        frames += [step[0] for step in steps]
        taken.append(np.array(actions))
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations=np.array(frames),
                actions=taken[-1],
                rewards=[step[1] for step in steps],
                terminations=[step[2] for step in steps],
                truncations=[step[3] for step in steps],
            )
        )
    spaces = {"observation_space": env.observation_space, "action_space": action_space}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about empty metadata
        minari.create_dataset_from_buffers(name, buffers, requirements=[], **spaces)
    return taken


def test_a_data_set_is_a_run(tmp_path):
    taken = record("tests/pictures-v0", Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 4.0], np.float32)))
    out = tmp_path / "run"
    assert main(["collect", "--from", "tests/pictures-v0", "--out", str(out)]) == 0
    store = EpisodeStore(out / "episodes")
    assert store.lengths.tolist() == [12, 12, 12]
    for episode, actions in zip(store.episodes(), taken, strict=True):
        np.testing.assert_allclose(episode.actions, (actions - [0, 2]) / 2, atol=1e-6)
        np.testing.assert_array_equal(episode.rewards, np.arange(1, 13))
        assert episode.terminated
    store.close()
    config = Run.stored_config(out)
    assert (config.task, config.collect.source) == ("recordings-2", "tests/pictures-v0")


def test_discrete_actions_are_one_hot():
    taken = record("tests/discrete-v0", Discrete(3, start=1))
    found = MinariRecordings("tests/discrete-v0")
    assert found.names == ("value 1", "value 2", "value 3")
    np.testing.assert_array_equal(found.read(1).actions, np.eye(3)[taken[1] - 1])


@pytest.mark.parametrize(
    ("space", "actions", "reward", "said"),
    [
        (Box(-2, 2, (1,), np.float32), [[0], [2.5]], 0.0, r"expected actions of Box.* in episode 0"),
        (Box(-np.inf, np.inf, (1,), np.float32), [[0], [np.nan]], 0.0, r"expected actions of Box.* in episode 0"),
        (Discrete(3, start=1), [1, 0], 0.0, r"expected actions of Discrete\(3, start=1\) in episode 0"),
        (Box(-2, 2, (1,), np.float32), [[0], [2]], np.inf, "expected finite rewards in episode 0"),
        (Box(-np.inf, np.inf, (1,), np.float64), [[0], [1e39]], 0.0, "expected actions of float32 in episode 0"),
    ],
)
def test_values_outside_their_space_are_refused(space, actions, reward, said):
    record("tests/damaged-v0", space, episodes=1)
    found = MinariRecordings("tests/damaged-v0")
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    episode = SimpleNamespace(observations=frames, actions=actions, rewards=[0, reward], terminations=[False, True])
    found._data = type("Data", (dict,), {"action_space": space})({0: episode})
    with pytest.raises(ValueError, match=rf"^tests/damaged-v0: {said}"):
        found.read(0)


def test_export_and_import_give_the_same_episodes(tmp_path, capsys):
    written = [make_episode(length, seed, terminated=seed != 1) for seed, length in enumerate((5, 9, 7, 6, 8) * 4)]
    write_store(tmp_path / "run" / "episodes", written, per_shard=4)
    assert main(["export", str(tmp_path / "run"), "--minari", "tests/export-v0"]) == 0
    assert "tests/export-v0: 20 episodes" in capsys.readouterr().out
    found = MinariRecordings("tests/export-v0")
    assert len(found) == len(written)
    for index, episode in enumerate(written):
        again = found.read(index)
        np.testing.assert_array_equal(again.frames, episode.frames)
        np.testing.assert_array_equal(again.actions, episode.actions)
        np.testing.assert_array_equal(again.rewards, episode.rewards)
        assert again.terminated == episode.terminated
    assert main(["export", str(tmp_path / "run"), "--minari", "tests/export-v0"]) == 1
    assert "minari: expected the id of a new data set, got 'tests/export-v0'" in capsys.readouterr().err
    assert len(MinariRecordings("tests/export-v0")) == len(written)


@pytest.mark.parametrize(
    "failing", ["minari.utils.MinariDataset", "minari.MinariDataset.update_dataset_from_buffer"], ids=["first", "later"]
)
def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch, failing):
    write_store(tmp_path / "episodes", [make_episode(5, seed) for seed in range(20)], per_shard=20)
    with pytest.raises(ValueError, match=r"^minari: expected an id of Minari, got 't/e-v0': "):
        export_minari(tmp_path / "episodes", "t/e-v0")
    assert not (tmp_path / "minari" / "t").exists()

    def fail(*given):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(OSError, match="no space left"):
            export_minari(tmp_path / "episodes", "tests/export-v0")
    assert not (tmp_path / "minari" / "tests" / "export-v0").exists()
    assert export_minari(tmp_path / "episodes", "tests/export-v0") == 20


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such folder of recordings, and no Minari data set"):
        MinariRecordings("tests/nothing-v0")
    with pytest.raises(FileNotFoundError, match="expected episode shards"):
        export_minari(tmp_path, "tests/empty-v0")
    for name in ("tests/empty", "tests/empty-vx", "tests/empty-v1.5", "../empty-v0"):
        with pytest.raises(
            ValueError, match=r"^minari: expected an id with a version, such as mine/takecover-v0, got '"
        ):
            export_minari(tmp_path, name)
    monkeypatch.setattr(Pictures, "observation_space", Box(0, 1, (3,), np.float32))
    monkeypatch.setattr(Pictures, "_frame", lambda self: np.zeros(3, np.float32))
    record("tests/vectors-v0", Discrete(2))
    with pytest.raises(ValueError, match=r"expected observations of \(height, width, 3\) uint8, got Box"):
        MinariRecordings("tests/vectors-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ModuleNotFoundError, match=r"worldmodels-rl\[minari\]"):
        MinariRecordings("tests/vectors-v0")
