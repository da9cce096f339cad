"""TakeCover, CarRacing and Pendulum as Gymnasium asks of an environment: copies, the order of calls, no display."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env

from conftest import environment, forked, make_episode, write_store
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.frames import FrameReader, ShuffledBatches
from worldmodels.envs import envpool as pool
from worldmodels.envs.car_racing import CarRacingEnv
from worldmodels.envs.pendulum import PendulumEnv
from worldmodels.envs.process_vector import ProcessVectorEnv
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.take_cover import TakeCoverEnv
from worldmodels.envs.thread_vector import ThreadVectorEnv
from worldmodels.envs.vector import make_vector_env

ENVS = {
    "TakeCover": (TakeCoverEnv, {"variant": "modern", "render_mode": "rgb_array"}),
    "CarRacing": (CarRacingEnv, {"ignore_done": True, "render_mode": "rgb_array"}),
    "Pendulum": (PendulumEnv, {"render_mode": "rgb_array"}),
}
IDS = {name: f"worldmodels/{name}-v0" for name in ENVS} | {"Pendulum": "worldmodels/Pendulum-v0"}


@pytest.fixture(scope="module", params=list(ENVS))
def pair(request):
    """An environment in the middle of an episode, and the same by `gymnasium.make`."""
    kind, options = ENVS[request.param]
    plain, made = kind(**options), gymnasium.make(IDS[request.param], **options)
    for env in (plain, made):
        env.reset(seed=3)
        env.step(np.zeros(env.action_space.shape, np.float32))
    yield plain, made
    plain.close()
    made.close()


def play(env, steps=4):
    frames = [env.reset(seed=3)[0]]
    for _ in range(steps):
        frames.append(env.step(np.full(env.action_space.shape, 0.5, np.float32))[0])
    return np.stack(frames)


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_is_a_new_environment(pair, how):
    for env in pair:
        other = how(env)
        if other.unwrapped is env.unwrapped:  # copy.copy of a wrapper is shallow
            assert how is copy.copy
            continue
        action = np.zeros(env.action_space.shape, np.float32)
        with pytest.raises(ResetNeeded, match=r"Env\.step: expected reset first"):
            other.step(action)
        names = ENVS[type(env.unwrapped).__name__.removesuffix("Env")][1]
        assert {name: getattr(other.unwrapped, name) for name in names} == names
        env.step(action)  # the first has not been disturbed
        np.testing.assert_array_equal(play(other), play(env))
        other.close()
        env.step(action)


def first_frame(env):
    frame = env.reset(seed=3)[0]
    env.close()
    return frame


def test_an_environment_can_be_sent_to_a_spawned_process(pair):
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        frames = workers.map(first_frame, pair)
    for env, frame in zip(pair, frames, strict=True):
        np.testing.assert_array_equal(frame, env.reset(seed=3)[0])


@pytest.mark.parametrize("name", list(ENVS))
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_the_order_of_calls(name, render_mode):
    env = ENVS[name][0](render_mode=render_mode)
    action = np.zeros(env.action_space.shape, np.float32)
    with pytest.raises(ResetNeeded, match=rf"^{name}Env\.step: expected reset first"):
        env.step(action)
    if render_mode:
        with pytest.raises(ResetNeeded, match=rf"^{name}Env\.render: expected reset first"):
            env.render()
    frame, info = env.reset(seed=1, options=None)
    assert env.observation_space.contains(frame) and isinstance(info, dict)
    assert (env.render() is None) == (render_mode is None)
    assert env.reset(options={})[0].shape == (64, 64, 3)
    env.close()
    env.close()
    for call, work in (("step", lambda: env.step(action)), ("reset", lambda: env.reset(seed=1))):
        with pytest.raises(ClosedEnvironmentError, match=rf"^{name}Env\.{call}: expected an open environment"):
            work()
    if render_mode:
        with pytest.raises(ClosedEnvironmentError):
            env.render()
    for mode in ("human", "ansi", 3):
        with pytest.raises(ValueError, match=r"^render_mode: expected None or 'rgb_array'"):
            ENVS[name][0](render_mode=mode)


@pytest.mark.parametrize("name", ["CarRacing", "Pendulum"])  # TakeCover in test_take_cover.py, in both variants
def test_gymnasium_finds_no_fault(name):
    env = gymnasium.make(IDS[name], render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("name", list(ENVS))
def test_a_seed_is_an_episode_of_its_own(name):
    env, other = (ENVS[name][0]() for _ in range(2))
    np.testing.assert_array_equal(play(env), play(other))
    env.reset(seed=3)
    other.reset(seed=3)
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
    env.close()
    other.close()


# ---- no display


SILENT = """
import numpy as np, gymnasium, worldmodels
env = gymnasium.make({id!r}, render_mode="rgb_array")
env.reset(seed=1)
env.step(np.zeros(env.action_space.shape, np.float32))
env.render()
env.close()
"""


@pytest.mark.parametrize("name", list(ENVS))
def test_nothing_is_said_where_there_is_no_display(name):
    """By libraries of C either: all of the file descriptor is read."""
    unset = {"XDG_RUNTIME_DIR", "SDL_VIDEODRIVER"}
    env = {key: value for key, value in environment().items() if key not in unset}
    line = [sys.executable, "-W", "error", "-c", SILENT.format(id=IDS[name])]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_pendulum_leaves_the_display_alone(monkeypatch):
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame.display.quit()
    env = PendulumEnv()
    env.reset(seed=1)
    assert not pygame.display.get_init()
    pygame.display.init()
    window = pygame.display.set_mode((100, 80))
    env.step(np.zeros(1, np.float32))
    env.close()
    assert pygame.display.get_surface() is window and window.get_size() == (100, 80)
    pygame.display.quit()
    human = gymnasium.wrappers.HumanRendering(PendulumEnv(render_mode="rgb_array"))
    human.reset(seed=1)
    human.step(np.zeros(1, np.float32))
    assert pygame.display.get_surface().get_size() == (500, 500)
    human.close()
    pygame.display.quit()


# ---- forked processes


TOY = EnvSpec(id="toy_env:Toy-v0", variant="", resolution="")
CARS = EnvSpec(id="worldmodels/CarRacing-v0", variant="", resolution="", backend="envpool")
BATCHES = {
    "ThreadVectorEnv": lambda: ThreadVectorEnv(TOY, 2, 2, {}),
    "ProcessVectorEnv": lambda: ProcessVectorEnv(TOY, 2, 2, {}),
    "EnvPoolVectorEnv": lambda: make_vector_env(CARS, 2, num_workers=2),
}


@pytest.mark.parametrize("name", list(BATCHES))
def test_a_batch_is_of_the_process_that_has_made_it(name):
    """Its threads do not live on in a forked one, and its processes and pipes are the parent's."""
    if name == "EnvPoolVectorEnv" and not pool.installed():
        pytest.skip("EnvPool is not installed")
    batch = BATCHES[name]()
    seeds = [4, 8]
    frames = batch.reset([0, 1], seeds)
    actions = np.zeros((2, batch.action_space.shape[0]), np.float32)
    batch.send([0, 1], actions)
    said = f"RuntimeError: {name}: expected the process that created it, got a process forked from it"
    for work in (batch.recv, lambda: batch.send([0], actions[:1]), lambda: batch.reset([0, 1], seeds)):
        assert forked(work).startswith(said)
    assert forked(batch.close) == "None"
    assert (batch.recv()[0] != frames).any()  # the parent goes on
    batch.step([0, 1], actions)
    batch.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_frames_are_read_by_the_process_that_has_begun(tmp_path, workers):
    write_store(tmp_path, [make_episode(12)])
    store = EpisodeStore(tmp_path)
    with FrameReader(store, ShuffledBatches(np.arange(12), 3, 0), 0, 8, num_workers=workers) as reader:
        batches = iter(reader)
        next(batches)
        said = "RuntimeError: FrameReader: expected the process that created it"
        assert forked(lambda: next(batches)).startswith(said)
        assert forked(lambda: list(reader)).startswith(said)
        assert forked(lambda: reader.__exit__(None, None, None)) == "None"
        assert len(list(batches)) == 7
    store.close()
