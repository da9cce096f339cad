"""TakeCover: the real game behind Gymnasium's interface."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import vizdoom
from gymnasium.utils.env_checker import check_env

import worldmodels  # noqa: F401 (registers the environments)
from conftest import environment, forked, gone, processes
from worldmodels.envs import GameLostError, take_cover, vizdoom_process
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.take_cover import TakeCoverEnv
from worldmodels.pipeline.tasks.takecover import POLICIES
from worldmodels.rollout.environments import play_policy


@pytest.fixture(scope="module", params=["paper", "modern"])
def env(request):
    env = TakeCoverEnv(request.param)
    yield env
    env.close()


@pytest.fixture(scope="module")
def paper():
    env = TakeCoverEnv("paper")
    yield env
    env.close()


def play(env, seed, action=0.0, steps=3000):
    """Frames and rewards of an episode with one action (or a list of them), and how it ended."""
    frames, rewards = [env.reset(seed=seed)[0]], []
    terminated = truncated = False
    while not (terminated or truncated) and len(rewards) < steps:
        value = action[len(rewards) % len(action)] if isinstance(action, list) else action
        frame, reward, terminated, truncated, _ = env.step(np.array([value], np.float32))
        frames.append(frame)
        rewards.append(reward)
    return np.stack(frames), rewards, terminated, truncated


@pytest.mark.parametrize("variant", ["paper", "modern"])
def test_gymnasium_finds_no_fault(variant):
    env = gymnasium.make("worldmodels/TakeCover-v0", variant=variant, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


def test_spaces_are_the_papers(env):
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


def test_same_seed_and_actions_give_the_same_frames(env):
    actions = np.random.default_rng(0).uniform(-1, 1, 40).tolist()
    first, *_ = play(env, 3, actions, steps=80)
    again, *_ = play(env, 3, actions, steps=80)
    np.testing.assert_array_equal(first, again)
    other, *_ = play(env, 4, actions, steps=80)
    assert other.shape != first.shape or (other != first).any()
    fresh = TakeCoverEnv(env.variant)
    np.testing.assert_array_equal(play(fresh, 3, actions, steps=80)[0], first)
    fresh.close()


def test_without_a_seed_the_next_episode_is_another(paper):
    """But the same one after the same seed, as Gymnasium asks."""

    def two():
        paper.reset(seed=1)
        paper.reset()
        return np.stack([paper.step(np.zeros(1, np.float32))[0] for _ in range(60)])

    first, second = two(), two()
    np.testing.assert_array_equal(first, second)
    seeded, *_ = play(paper, 1, 0.0, steps=60)
    assert (first != seeded[1:]).any()


def leftward(env, action):
    """How far the player moves to the left of where they look, in the engine's own units."""
    env.reset(seed=0)
    read = env._game.get_game_variable
    place = [read(vizdoom.GameVariable.POSITION_X), read(vizdoom.GameVariable.POSITION_Y)]
    angle = np.deg2rad(read(vizdoom.GameVariable.ANGLE) + 90)
    for _ in range(25):  # a modern episode begins with a few tics that stand still
        env.step(np.array([action], np.float32))
    moved = np.array([read(vizdoom.GameVariable.POSITION_X), read(vizdoom.GameVariable.POSITION_Y)]) - place
    return float(moved @ [np.cos(angle), np.sin(angle)])


def test_a_third_is_where_the_player_starts_to_move(env):
    full = leftward(env, -1.0)
    assert full > 40
    assert leftward(env, 1.0) == pytest.approx(-full, rel=0.05)
    assert leftward(env, -0.34) == pytest.approx(full, rel=1e-6)
    assert leftward(env, 0.34) == pytest.approx(leftward(env, 1.0), rel=1e-6)
    for action in (-0.33, -0.1, 0.0, 0.33):
        assert leftward(env, action) == pytest.approx(0, abs=1e-6)


def test_the_picture_moves_against_the_player(paper):
    """Going left shifts what is seen to the right."""
    still = play(paper, 0, 0.0, steps=12)[0][-1].mean(axis=2)
    sharper = {}
    for action in (-1.0, 1.0):
        moved = play(paper, 0, action, steps=12)[0][-1].mean(axis=2)
        errors = [np.abs(np.roll(still, shift, axis=1) - moved)[:, 8:-8].mean() for shift in range(-6, 7)]
        sharper[action] = int(np.argmin(errors)) - 6
    assert sharper[-1.0] > 0 > sharper[1.0]


def test_one_point_a_tic_until_death(env):
    frames, rewards, terminated, truncated = play(env, 5)
    assert set(rewards) == {1.0}
    assert 30 < len(rewards) < 1000
    assert terminated
    assert not truncated
    assert frames.shape == (len(rewards) + 1, 64, 64, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[-1], frames[-2])  # death has no screen of its own


def test_the_undying_are_cut_off_at_2100(env):
    env.reset(seed=0)
    env._game.send_game_command("god")
    over, steps, still = False, 0, np.zeros(1, np.float32)
    while not over:
        _, reward, terminated, truncated, _ = env.step(still)
        assert reward == 1.0
        steps += 1
        over = terminated or truncated
    assert steps == 2100
    assert truncated
    assert not terminated


def test_the_game_is_the_same_at_every_resolution(paper):
    """Same seed, same actions: same length, nearly the same pictures."""
    large = TakeCoverEnv("paper", "320x240", render_mode="rgb_array")
    actions = np.random.default_rng(1).uniform(-1, 1, 400).repeat(5).tolist()
    for seed in (0, 1):
        small_frames, small_rewards, *_ = play(paper, seed, actions)
        large_frames, large_rewards, *_ = play(large, seed, actions)
        assert len(small_rewards) == len(large_rewards)
        difference = np.abs(small_frames.astype(int) - large_frames).mean()
        shifted = np.abs(small_frames[:-20].astype(int) - large_frames[20:]).mean()
        assert 0 < difference < shifted
    assert large.render().shape == (240, 320, 3)
    large.close()


def test_the_status_bar_is_cut_off(paper):
    """The paper's picture is the top 400 of 480 rows, averaged down: nothing of the bar is left."""
    env = TakeCoverEnv("paper", "640x480", render_mode="rgb_array")
    frame, _ = env.reset(seed=0)
    screen = env.render().astype(np.float64)
    columns = screen[:400].reshape(400, 64, 10, 3).mean(axis=2)
    rows = np.stack([part.mean(axis=0) for part in np.array_split(columns, 64)])
    env.close()
    assert np.abs(frame - rows).mean() < 4
    bar = screen[400:].reshape(80, 64, 10, 3).mean(axis=2).mean(axis=0)
    assert np.abs(frame[-1] - bar).mean() > 10


def test_render_is_none_unless_asked_for(paper):
    paper.reset(seed=0)
    assert paper.render() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "hard"}, "variant: expected one of paper, modern, got 'hard'"),
        ({"resolution": "160x100"}, "resolution: expected a 4:3 size of VizDoom such as '160x120', got '160x100'"),
        ({"resolution": "huge"}, "resolution: expected"),
        ({"resolution": "160X120"}, "resolution: expected a 4:3 size of VizDoom such as '160x120', got '160X120'"),
        ({"resolution": 160}, "resolution: expected"),
        ({"render_mode": "human"}, "render_mode: expected None or 'rgb_array', got 'human'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TakeCoverEnv(**options)


@pytest.mark.parametrize("action", [0.5, [0.1, 0.2], [np.nan], [np.inf]])
def test_bad_actions_are_named(paper, action):
    paper.reset(seed=0)
    for given in (np.array(action), "abc", {}):
        with pytest.raises(ValueError, match=r"action: expected \(1,\) finite numbers, got"):
            paper.step(given)


def test_policies_play_the_same_episodes_in_any_number_of_slots():
    lengths = [
        play_policy(EnvSpec(), POLICIES["repeat 1-10"], 3, seed=1, purpose="test", num_envs=slots) for slots in (1, 3)
    ]
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0])) == 3
    other = play_policy(EnvSpec(), POLICIES["repeat 1-10"], 3, seed=1, purpose="else", num_envs=3)
    assert other != lengths[0]


def test_a_plain_import_is_enough_and_no_display_is_needed(tmp_path):
    """Nothing is left where the game was started, either."""
    code = (
        "import gymnasium, worldmodels\n"
        "env = gymnasium.make('worldmodels/TakeCover-v0')\n"
        "frame, _ = env.reset(seed=1)\n"
        "for _ in range(5): frame, *rest = env.step(env.action_space.sample())\n"
        "env.close()\n"
        "print(frame.shape, frame.dtype, frame.std() > 5)"
    )
    line = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout == "(64, 64, 3) uint8 True\n", done.stderr
    assert list(tmp_path.iterdir()) == []


STARTS = """
from worldmodels.envs.take_cover import TakeCoverEnv
for _ in range(4):
    TakeCoverEnv().close()
"""


def test_processes_start_engines_in_one_folder_at_once(tmp_path):
    """Every engine makes the folder _vizdoom where it is started, and crashes where another removes it."""
    processes = [subprocess.Popen([sys.executable, "-c", STARTS], cwd=tmp_path) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the game's process in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_game_that_dies_or_hangs_is_an_error(monkeypatch, how):
    monkeypatch.setattr(vizdoom_process, "_PATIENCE", 2.0)
    monkeypatch.setattr(vizdoom_process, "WATCH", vizdoom_process._Watch())
    env = TakeCoverEnv()
    env.reset(seed=1)
    (engine,) = env._engines
    os.kill(engine, how)
    with pytest.raises(GameLostError, match=r"^VizDoom: the game's process has died or hung: "):
        for _ in range(100):
            env.step(np.zeros(1, np.float32))
    for call in (lambda: env.step(np.zeros(1, np.float32)), env.reset):
        with pytest.raises(GameLostError):
            call()
    env.close()
    assert engine not in vizdoom_process.engines()


WAITS = """
import os, signal, threading
import numpy as np
from worldmodels.envs import take_cover, vizdoom_process
vizdoom_process._PATIENCE, vizdoom_process._GRACE = 4.0, 1.0
env = take_cover.TakeCoverEnv()
env.reset(seed=1)

class Stuck:
    def make_action(self, pressed):
        os.kill(*env._engines, signal.SIGKILL)
        threading.Event().wait()  # as vizdoom does where the engine dies in the middle of a message

game, env._game = env._game, Stuck()
env.step(np.zeros(1, np.float32))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the game's process in /proc")
def test_nobody_waits_for_ever_for_a_game_that_was_killed(tmp_path):
    env = {**environment(), "WM_TEST": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WAITS], cwd=tmp_path, env=env, text=True, capture_output=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stderr.startswith("VizDoom: the game's process was killed and vizdoom waits for it forever; ")
    assert gone(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the game's process in /proc")
def test_a_game_does_not_hear_the_terminals_interrupt():
    env = TakeCoverEnv()
    env.reset(seed=1)
    for engine in env._engines:
        os.kill(engine, signal.SIGINT)
    for _ in range(50):
        env.step(np.zeros(1, np.float32))
    assert env._engines <= vizdoom_process.engines()
    env.close()


PLAYS = """
import numpy as np
from worldmodels.envs.take_cover import TakeCoverEnv
envs = []
for _ in range(2):
    print("starting", flush=True)
    envs.append(TakeCoverEnv())
    envs[-1].reset(seed=1)
print("playing", flush=True)
while True:
    for env in envs:
        if any(env.step(np.zeros(1, np.float32))[2:4]):
            env.reset()
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("when", "engines"), [("playing", 2), ("starting", 1)])
def test_a_player_that_is_killed_leaves_no_engine(tmp_path, when, engines):
    """While it plays, and while an engine starts."""
    places = tmp_path / "a place"
    places.mkdir()
    env = {**environment(), "WM_TEST": str(tmp_path), "TMPDIR": str(places)}
    player = subprocess.Popen([sys.executable, "-c", PLAYS], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    while player.stdout.readline() != f"{when}\n":
        assert player.poll() is None
    while len(processes(tmp_path, "vizdoom")) < engines:
        assert player.poll() is None
    player.kill()
    player.communicate()
    assert gone(tmp_path)
    assert list(places.iterdir()) == []


# ---- the folder of an engine


READ_ONLY = """
import os, sys, threading
import gymnasium, numpy as np, worldmodels, vizdoom
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs import take_cover, vizdoom_process
from worldmodels.envs.thread_vector import ThreadVectorEnv
os.chdir(sys.argv[1])
os.chmod(".", 0o555)
if os.getuid() == 0:  # root may write anywhere
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
assert not os.access(".", os.W_OK)
batch = ThreadVectorEnv(EnvSpec(), 3, 3, {})
batch.reset([0, 1, 2], [1, 2, 3])
batch.step([0, 1, 2], np.zeros((3, 1), np.float32))
batch.close()
print("played")
"""


def open_to_all(path):
    """Whether a user other than root may look into all folders above a file."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(path).resolve().parents)


def test_the_working_directory_may_be_read_only(tmp_path):
    if os.getuid() == 0 and not (open_to_all(take_cover.__file__) and open_to_all(vizdoom.__file__)):
        pytest.skip("the packages are in a folder of root's, which the unprivileged user cannot enter")
    folder = tmp_path / "here"
    folder.mkdir()
    line = [sys.executable, "-W", "error", "-c", READ_ONLY, str(folder)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=100)
    folder.chmod(0o755)
    assert (done.returncode, done.stdout, done.stderr) == (0, "played\n", "")


def engine_folders(place):
    return sorted(path.name for path in place.iterdir())


def test_the_folder_of_an_engine_goes_with_it(tmp_path, monkeypatch):
    place = tmp_path / "it's a place"  # a name for shells to stumble over
    here = tmp_path / "here"
    for folder in (place, here):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.chdir(here)
    one, other = TakeCoverEnv(), TakeCoverEnv()
    assert len(engine_folders(place)) == 2
    for env in (one, other):
        env.reset(seed=1)
    one.close()
    assert len(engine_folders(place)) == 1
    other.step(np.zeros(1, np.float32))
    del env, other
    gc.collect()
    assert engine_folders(place) == []
    assert list(here.iterdir()) == []
    assert not {vizdoom_process._MARK, vizdoom_process._FOLDER, vizdoom_process._ENGINE} & set(os.environ)


def test_an_environment_that_is_not_closed_leaves_no_folder(tmp_path):
    env = {**environment(), "TMPDIR": str(tmp_path)}
    code = "from worldmodels.envs.take_cover import TakeCoverEnv; env = TakeCoverEnv()"
    subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=True)
    assert list(tmp_path.iterdir()) == []


def test_no_folder_for_the_engine_is_an_error(tmp_path, monkeypatch):
    """The working directory is taken only where TMPDIR names it."""
    before = vizdoom_process.engines()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match=r"^TMPDIR: expected a folder to write to, .*/nowhere"):
        TakeCoverEnv()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match=r"^TMPDIR: expected .*, got none but the working directory, /"):
        TakeCoverEnv()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    with pytest.raises(OSError, match=r"^TMPDIR: expected .*, got none: .*/nowhere"):
        TakeCoverEnv()
    assert vizdoom_process.engines() == before
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", ".")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    TakeCoverEnv().close()
    assert list(tmp_path.iterdir()) == []


def test_a_starter_that_cannot_be_executed_is_an_error(tmp_path, monkeypatch):
    starter = tmp_path / "vizdoom"
    starter.write_text("#!/bin/sh\n")
    monkeypatch.setattr(vizdoom_process, "STARTER", starter)
    with pytest.raises(PermissionError, match="vizdoom: expected a script that can be executed"):
        TakeCoverEnv()


def test_an_engine_that_does_not_start_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def init(_):
        raise vizdoom.ViZDoomErrorException("no")

    monkeypatch.setattr(vizdoom.DoomGame, "init", init)
    with pytest.raises(vizdoom.ViZDoomErrorException):
        TakeCoverEnv()
    assert list(tmp_path.iterdir()) == []


# ---- forked processes


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the game's process in /proc")
def test_a_forked_process_ends_engines_that_hang(monkeypatch):
    monkeypatch.setattr(vizdoom_process, "_PATIENCE", 2.0)
    env = TakeCoverEnv()
    env.reset(seed=1)  # the watch of this process runs
    env.close()

    def work():
        env = TakeCoverEnv()
        env.reset(seed=1)
        for engine in env._engines:
            os.kill(engine, signal.SIGSTOP)
        env.step(np.zeros(1, np.float32))

    assert forked(work).startswith("GameLostError: VizDoom: the game's process has died or hung")


def test_a_lock_that_is_held_while_forking_is_not_waited_for():
    with vizdoom_process.starting():
        assert forked(lambda: TakeCoverEnv().reset(seed=1)[0].shape) == "(64, 64, 3)"


def test_the_environment_of_a_parent_is_left_alone(paper):
    """A forked process cannot play it, and does not end its game by closing or forgetting it."""
    paper.reset(seed=1)
    action = np.zeros(1, np.float32)
    said = "RuntimeError: TakeCoverEnv: expected the process that created it, got a process forked from it"
    assert forked(lambda: paper.step(action)).startswith(said)
    assert forked(lambda: paper.reset(seed=1)).startswith(said)
    envs = [TakeCoverEnv()]
    envs[0].reset(seed=1)

    def forget():
        envs.clear()
        gc.collect()

    assert forked(paper.close) == forked(envs[0].close) == forked(forget) == "None"
    for env in (paper, envs[0]):
        for _ in range(20):
            env.step(action)
    envs[0].close()


def test_a_forked_process_that_stays_does_not_keep_the_reaper(tmp_path):
    """The shell of a parent that was killed ends its engines, whoever has inherited the parent's pipes."""
    code = """
import os, sys, time
from worldmodels.envs.take_cover import TakeCoverEnv
env = TakeCoverEnv()
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print("forked", flush=True)
time.sleep(60)
"""
    env = {**environment(), "WM_TEST": str(tmp_path), "TMPDIR": str(tmp_path)}
    player = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
    assert player.stdout.readline() == "forked\n"
    player.kill()
    player.wait()
    player.stdout.close()
    assert gone(tmp_path, "vizdoom")
    for left in processes(tmp_path):
        os.kill(left, signal.SIGKILL)
