"""Batches: an episode is what its seed and its actions make of it, in any back end, in any slot."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory

import gymnasium
import numpy as np
import pytest

from toy_env import ToyEnv
from worldmodels.envs import ContractError, GameLostError, process_vector, vector
from worldmodels.envs import envpool as pool
from worldmodels.envs.making import LazyEnv, backend, entry_point
from worldmodels.envs.process_vector import ProcessVectorEnv
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.thread_vector import ThreadVectorEnv
from worldmodels.envs.vector import make_vector_env

TOY = EnvSpec(id="toy_env:Toy-v0", variant="", resolution="")
CARS = EnvSpec(id="worldmodels/CarRacing-v0", variant="", resolution="", backend="envpool")
needs_envpool = pytest.mark.skipif(not pool.installed(), reason="EnvPool is not installed")


def make_toy(kind, slots, bonus=0.0):
    if kind == "threads":
        return ThreadVectorEnv(TOY, slots, 2, {"bonus": bonus})
    return ProcessVectorEnv(TOY, slots, min(2, slots), {"bonus": bonus})


def actions_of(number, steps, size):
    return np.random.default_rng(number).uniform(0, 1, (steps, size)).astype(np.float32)


def play(batch, seeds, steps, expect=True):
    """Plays every seed for at most so many steps: per episode its frames, rewards and how it ended."""
    if expect:
        batch.prefetch(seeds)
    size = batch.action_space.shape[0]
    waiting, running, found = list(range(len(seeds)))[::-1], {}, {}

    def begin(slot):
        running.pop(slot, None)
        if waiting:
            running[slot] = number = waiting.pop()
            found[number] = [batch.reset([slot], [seeds[number]])[0]], [], None

    for slot in range(batch.num_envs):
        begin(slot)
    while running:
        busy = list(running)[::-1]  # in no order in particular
        chosen = [actions_of(running[slot], steps, size)[len(found[running[slot]][1])] for slot in busy]
        for slot, frame, reward, *ends in zip(busy, *batch.step(busy, np.stack(chosen)), strict=True):
            frames, rewards, _ = found[running[slot]]
            frames.append(frame)
            rewards.append(reward)
            found[running[slot]] = frames, rewards, tuple(map(bool, ends))
            if any(ends) or len(rewards) == steps:
                begin(slot)
    batch.close()
    return [(np.stack(found[n][0]), np.array(found[n][1]), found[n][2]) for n in range(len(seeds))]


def check_equal(some, others):
    for (frames, rewards, ends), (frames2, rewards2, ends2) in zip(some, others, strict=True):
        np.testing.assert_array_equal(frames, frames2)
        np.testing.assert_array_equal(rewards, rewards2)
        assert ends == ends2


@pytest.mark.parametrize(("kind", "slots"), [("threads", 1), ("threads", 3), ("processes", 1), ("processes", 5)])
def test_episodes_are_those_of_the_environment_itself(kind, slots):
    seeds = [4, 11, 3, 8, 0, 3]
    expected = []
    for number, seed in enumerate(seeds):
        env, rewards, ends = ToyEnv(bonus=0.5), [], []
        frames = [env.reset(seed=seed)[0]]
        for action in actions_of(number, 10, 2):
            frame, reward, *ends, _ = env.step(action)
            frames.append(frame)
            rewards.append(np.float32(reward))
            if any(ends):
                break
        assert len(rewards) == 2 + seed % 5
        expected.append((np.stack(frames), np.array(rewards), tuple(ends)))
    check_equal(play(make_toy(kind, slots, bonus=0.5), seeds, 10), expected)
    assert multiprocessing.active_children() == []


def test_an_error_in_a_worker_is_raised_here():
    batch = make_toy("processes", 3)
    batch.reset([0, 1, 2], [1, 2, 3])
    actions = np.zeros((3, 2), np.float32)
    actions[1, 1] = 7
    with pytest.raises(
        ContractError, match=r"the environment failed: ValueError: seven at step 1 of the episode with seed 2"
    ):
        batch.step([0, 1, 2], actions)
    actions[1, 1] = 0
    batch.step([0, 1, 2], actions)  # the workers have not lost step
    actions[2, 1] = 11
    with pytest.raises(GameLostError, match=r"^the game is gone$"):
        batch.step([0, 1, 2], actions)
    actions[2, 1] = 8
    for _ in range(2):
        with pytest.raises(GameLostError, match=r"a worker died \(exit code 3\)"):
            batch.step([0, 1, 2], actions)
    batch.close()
    batch.close()
    assert multiprocessing.active_children() == []


def test_a_request_whose_caller_was_interrupted_answers_no_later_one(monkeypatch):
    batch = make_toy("processes", 2)
    batch.reset([0, 1], [1, 2])
    batch.send([0, 1], np.full((2, 2), 7, np.float32))  # both fail, and nobody asks
    np.testing.assert_array_equal(batch.reset([0, 1], [3, 4])[1], ToyEnv().reset(seed=4)[0])
    assert batch.step([0, 1], np.ones((2, 2), np.float32))[1].tolist() == [1, 1]
    batch.close()
    batch, step = make_toy("threads", 2), LazyEnv.step
    batch.reset([0, 1], [1, 2])
    monkeypatch.setattr(LazyEnv, "step", lambda *row: time.sleep(0.2) or step(*row))
    batch.send([0], np.ones((1, 2), np.float32))
    batch.reset([0], [4])  # another thread is free
    assert batch.step([0], np.ones((1, 2), np.float32))[1].tolist() == [1]
    batch.close()


@pytest.mark.parametrize("started", [0, 1])
def test_a_worker_that_cannot_start_leaves_nothing(monkeypatch, started):
    names, shared, spawn = [], process_vector._Shared, process_vector.spawn

    def create(*given):
        made = shared(*given)
        names.append(made.memory.name)
        return made

    def start(process):
        if len(multiprocessing.active_children()) == started:
            raise OSError("no more processes")
        spawn(process)

    monkeypatch.setattr(process_vector, "_Shared", create)
    monkeypatch.setattr(process_vector, "spawn", start)
    with pytest.raises(OSError, match="no more processes"):
        make_toy("processes", 2)
    assert multiprocessing.active_children() == []
    with pytest.raises(FileNotFoundError):
        SharedMemory(*names)


def test_a_closed_vector_says_so():
    batch = make_toy("processes", 1)
    batch.reset([0], [1])
    batch.close()
    for call in (lambda: batch.reset([0], [1]), lambda: batch.send([0], np.zeros((1, 2), np.float32)), batch.recv):
        with pytest.raises(gymnasium.error.ClosedEnvironmentError, match=r"^ProcessVectorEnv: expected an open vector"):
            call()


class Unclosed(ToyEnv):
    """Fails to close, the first time."""

    closed = 0

    def close(self):
        Unclosed.closed += 1
        if Unclosed.closed == 1:
            raise OSError("not now")


def test_one_environment_that_does_not_close_leaves_no_other_open():
    gymnasium.register("Unclosed-v0", entry_point=Unclosed)
    batch = ThreadVectorEnv(EnvSpec(id="Unclosed-v0", variant="", resolution=""), 3, 1, {})
    batch.reset([0, 1, 2], [1, 2, 3])
    with pytest.raises(OSError, match="not now"):
        batch.close()
    assert Unclosed.closed == 3


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (9, r"a worker died \(exit code -9: killed, perhaps because memory ran out\)"),
        (10, r"a worker failed: .*Memory"),
    ],
)
def test_a_worker_without_memory_says_so(what, said):
    batch = make_toy("processes", 2)
    batch.reset([0, 1], [1, 2])
    actions = np.zeros((2, 2), np.float32)
    actions[1, 1] = what
    with pytest.raises(RuntimeError, match=said):
        batch.step([0, 1], actions)
    batch.close()
    assert multiprocessing.active_children() == []


def test_the_back_end_is_the_fastest_there_is(monkeypatch):
    assert backend(TOY) == "gymnasium"
    for installed in (True, False):
        monkeypatch.setattr(pool, "installed", lambda there=installed: there)
        anyone = EnvSpec(id=CARS.id, variant="", resolution="")
        assert backend(anyone) == ("envpool" if installed else "gymnasium")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'worldmodels-rl\[envpool\]'"):
        backend(CARS)
    with pytest.raises(ValueError, match=r"^environment\.backend: EnvPool has worldmodels/CarRacing-v0"):
        backend(EnvSpec(backend="envpool"))


def test_kinds_of_batches(monkeypatch):
    assert isinstance(
        make_vector_env(EnvSpec(), 2, num_workers=2), ThreadVectorEnv
    )  # TakeCover is a process of its own
    assert isinstance(make_vector_env(TOY, 4, num_workers=1), ThreadVectorEnv)
    made = make_vector_env(TOY, 4, num_workers=2)
    assert isinstance(made, ProcessVectorEnv)
    made.close()
    with pytest.raises(ValueError, match=r"^num_envs: expected an integer from 1 to \d+, got 0"):
        make_vector_env(TOY, 0)
    with pytest.raises(TypeError, match=r"^num_workers: expected an integer, got 1\.5"):
        make_vector_env(TOY, 1, num_workers=1.5)
    monkeypatch.setattr(vector, "backend", lambda _: "envpool")
    with pytest.raises(ValueError, match=r"^ignore_done: EnvPool has no such option"):
        make_vector_env(CARS, 1, ignore_done=True)


@pytest.mark.parametrize("option", ["variant", "resolution"])
def test_options_that_an_environment_lacks_are_refused(monkeypatch, option):
    said = rf"^environment\.{option}: expected none, as .* has no such option, got 'modern'"
    monkeypatch.setattr(vector, "backend", lambda environment: environment.backend or "gymnasium")
    for environment in (TOY, CARS):
        with pytest.raises(ValueError, match=said):
            make_vector_env(replace(environment, **{option: "modern"}), 1).reset([0], [1])


def test_an_environment_that_gymnasium_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"^environment\.id: expected one that Gymnasium knows, got 'worldmodels/No"):
        make_vector_env(EnvSpec(id="worldmodels/Nothing-v0"), 2, num_workers=2)


def test_packages_that_are_no_names_are_refused():
    with pytest.raises(ValueError, match=r"^environment\.imports: expected an installed package, got '\./my_env\.py'"):
        make_vector_env(replace(TOY, imports="./my_env.py"), 1)
    with pytest.raises(ValueError, match=r"^environment\.id: expected one that Gymnasium knows, got '\.\./x:Toy-v0'"):
        make_vector_env(replace(TOY, id="../x:Toy-v0"), 1).reset([0], [1])


@pytest.mark.parametrize("error", ["gymnasium.error.DependencyNotInstalled", "ImportError"])
def test_an_environment_without_its_packages_says_which(tmp_path, monkeypatch, error):
    name = error.replace(".", "_")
    (tmp_path / f"{name}.py").write_text(f"import gymnasium\nraise {error}('MuJoCo is not installed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    gymnasium.register(f"{name}-v0", entry_point=f"{name}:Env")
    with pytest.raises(ModuleNotFoundError, match=rf"^{name}-v0: MuJoCo is not installed$"):
        entry_point(f"{name}-v0")


@needs_envpool
def test_envpool_wants_seeds_and_a_reset():
    batch = make_vector_env(CARS, 2, num_workers=1)
    for seed in (-1, 2**31):
        for call in (lambda seed=seed: batch.reset([0], [seed]), lambda seed=seed: batch.prefetch([seed])):
            with pytest.raises(ValueError, match=rf"^seed: expected an integer from 0 to {2**31 - 1}, got {seed}"):
                call()
    batch.reset([0], [1])
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"expected reset before a step of environment 1$"):
        batch.step([0, 1], np.zeros((2, 3), np.float32))
    batch.step([0], np.zeros((1, 3), np.float32))
    batch.close()
    with pytest.raises(gymnasium.error.ResetNeeded):
        batch.step([0], np.zeros((1, 3), np.float32))


@needs_envpool
def test_envpool_needs_no_box2d():
    lines = (
        "import sys",
        "sys.modules['Box2D'] = None",
        "from worldmodels.pipeline.config import EnvSpec",
        "from worldmodels.envs.vector import make_vector_env",
        "cars = EnvSpec(id='worldmodels/CarRacing-v0', variant='', resolution='', backend='envpool')",
        "print(make_vector_env(cars, 1, num_workers=1).reset([0], [1]).shape)",
    )
    done = subprocess.run([sys.executable, "-c", "; ".join(lines)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 64, 64, 3)", done.stderr


@pytest.mark.parametrize(
    ("module", "package", "said"),
    [
        ("car_racing", "Box2D", "worldmodels/CarRacing-v0: Box2D is not installed (extra carracing)"),
        ("take_cover", "vizdoom", "worldmodels/TakeCover-v0: vizdoom is not installed (extra takecover)"),
    ],
)
def test_a_game_without_its_package_says_which_extra_it_wants(module, package, said):
    lines = (
        "import sys",
        f"sys.modules['{package}'] = None",
        f"import worldmodels.envs.{module}",
    )
    done = subprocess.run([sys.executable, "-c", "; ".join(lines)], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == f"ModuleNotFoundError: {said}"


@needs_envpool
def test_envpool_plays_the_same_whatever_the_slots():
    seeds, steps = [5, 6, 7, 5], 12
    wide = play(make_vector_env(CARS, 4, num_workers=2), seeds, steps)
    check_equal(play(make_vector_env(CARS, 1, num_workers=1), seeds, steps), wide)
    check_equal(play(make_vector_env(CARS, 3, num_workers=2), seeds, steps, expect=False), wide)
    first = [frames[0] for frames, _, _ in wide]
    assert (first[0] == first[3]).all()
    assert (first[0] != first[1]).any() and (first[1] != first[2]).any()
    assert all(rewards.shape == (steps,) and rewards.max() > 1 for _, rewards, _ in wide)  # tiles under the car


@needs_envpool
def test_envpool_games_are_left_when_they_are_over(monkeypatch):
    """Few are alive at a time, and one seed twice is two games."""
    monkeypatch.setattr(pool, "_CHUNK", 2)
    made = []
    make = pool.EnvPoolVectorEnv._make
    monkeypatch.setattr(
        pool.EnvPoolVectorEnv, "_make", lambda self, seeds: made.append(len(seeds)) or make(self, seeds)
    )
    batch = make_vector_env(CARS, 2, num_workers=1)
    play(batch, [9, 9, 9, 8, 7], 2)
    assert made == [2, 2, 1]
    assert batch._pools == []
