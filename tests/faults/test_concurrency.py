"""One object called from several threads at once: what one thread alone gets, bit for bit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from conftest import make_mdnrnn, make_vae
from worldmodels import CMAES, Agent, Controller, Dream, _core
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.dream.gpu import TorchDream
from worldmodels.models.decoder import Decoder
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import LSTMState
from worldmodels.support.forks import Lock

THREADS = 6


def at_once(work, count=THREADS):
    """work(0), work(1), ... on as many threads, begun together."""
    gate = threading.Barrier(count)

    def begin(index):
        gate.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def starts(model, rows=7):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(2, rows, model.latent_size)).astype(np.float32))


@pytest.fixture(scope="module")
def world():
    model = make_mdnrnn()
    return model, *starts(model)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_encoder(num_threads):
    encoder = Encoder(make_vae(8), torch.device("cpu"), num_threads=num_threads)
    frames = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    sizes = [1, 3, 16, 40]
    want = {size: encoder(frames[:size]) for size in sizes}
    orders = [sizes[index % 4 :] + sizes[: index % 4] for index in range(THREADS)]
    for order, results in zip(orders, at_once(lambda i: [encoder(frames[:n]) for n in orders[i]]), strict=True):
        for size, found in zip(order, results, strict=True):
            np.testing.assert_array_equal(found, want[size])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_decoder(num_threads):
    decoder = Decoder(make_vae(8), num_threads=num_threads)
    z = np.random.default_rng(1).standard_normal((6, 8), np.float32)
    want = decoder(z)
    for index, found in enumerate(at_once(lambda i: [decoder(z[i % 6 :]) for _ in range(3)])):
        for frames in found:
            np.testing.assert_array_equal(frames, want[index % 6 :])


def test_a_memory():
    """Slots of each thread's own, and a slot that all of them move on."""
    model, steps = make_mdnrnn(4, 40), 30
    rng = np.random.default_rng(2)
    z, actions = rng.normal(size=(steps, THREADS, 4)).astype(np.float32), np.zeros((1, 1), np.float32)
    same, no = np.full((1, 4), 0.3, np.float32), np.zeros(1, np.bool_)

    def play(memory, index):
        for t in range(steps):
            memory.step(np.array([index]), z[t, index : index + 1], actions, no)
            memory.step(np.array([THREADS]), same, actions, no)

    alone, shared = (LSTMState(model, THREADS + 1, 1) for _ in range(2))
    for index in range(THREADS):
        play(alone, index)
    at_once(lambda index: play(shared, index))
    np.testing.assert_array_equal(shared.h, alone.h)
    np.testing.assert_array_equal(shared.c, alone.c)


def test_a_native_memory(world):
    model = LSTMState(world[0], 1)._core
    rng = np.random.default_rng(3)

    def play(index, core):
        count = (1, 3, 40, 70)[index % 4]
        state = np.zeros((2, count, 8), np.float32)
        for _ in range(20):
            z = rng_of[index].normal(size=(count, 4)).astype(np.float32)
            state = core.advance(z, z[:, :1].copy(), np.zeros(count, np.bool_), *map(np.ascontiguousarray, state), 1)
        return state

    seeds = rng.integers(0, 2**31, THREADS)
    rng_of = [np.random.default_rng(seed) for seed in seeds]
    want = [play(index, model.core) for index in range(THREADS)]
    rng_of = [np.random.default_rng(seed) for seed in seeds]
    for found, expected in zip(at_once(lambda index: play(index, model.core)), want, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [Dream, TorchDream])
def test_a_dream(world, kind):
    where = {"device": torch.device("cpu")} if kind is TorchDream else {}
    dream = kind(*world, Controller(4, 8, 1), max_steps=40, **where)
    params = np.random.default_rng(4).normal(size=(3, dream.controller.size))
    want = [dream.rollout(params[: 1 + seed % 3], 9, seed=seed) for seed in range(THREADS)]
    found = at_once(lambda seed: [dream.rollout(params[: 1 + seed % 3], 9, seed=seed) for _ in range(3)])
    for results, expected in zip(found, want, strict=True):
        for result in results:
            np.testing.assert_array_equal(result.returns, expected.returns)
            np.testing.assert_array_equal(result.lengths, expected.lengths)


def test_a_vector_environment(world):
    """Every observation of the threads is one of those of one thread, each of them once."""
    action, steps = np.full((40, 1), 0.2, np.float32), 15
    alone, shared = (DreamVectorEnv(*world, num_envs=40, max_steps=20) for _ in range(2))
    for envs in (alone, shared):
        envs.reset(seed=1)
    want = [alone.step(action)[0] for _ in range(steps * THREADS)]
    found = [seen for part in at_once(lambda _: [shared.step(action)[0] for _ in range(steps)]) for seen in part]
    assert sorted(seen.tobytes() for seen in found) == sorted(seen.tobytes() for seen in want)
    np.testing.assert_array_equal(shared.step(action)[0], alone.step(action)[0])


def test_a_stepper(world):
    model = DreamVectorEnv(*world)._dreams._model.core
    envs, every = 70, np.ones(70, np.bool_)
    alone, shared = (_core.DreamStepper(model, envs) for _ in range(2))
    ones = np.ones(envs, np.uint32)
    for stepper in (alone, shared):
        stepper.reset(ones.astype(np.uint64), ones, ones, every)
    action = np.zeros((envs, 1), np.float32)

    def play(stepper, threads):
        for _ in range(10):
            seen, _, _ = stepper.step(1.0, action, True, True, threads)
            stepper.observe(every, True, True, seen)
            stepper.get_state()

    for _ in range(THREADS):
        play(alone, 1)
    at_once(lambda index: play(shared, 1 + index % 2))
    for name, array in shared.get_state().items():
        np.testing.assert_array_equal(array, alone.get_state()[name])


def test_cmaes():
    """Threads ask and tell as they come: no generation is lost or counted twice."""
    es = CMAES(np.zeros(30), 0.5, popsize=20, seed=1)
    alone = CMAES(np.zeros(30), 0.5, popsize=20, seed=1)
    told, lock = [0], threading.Lock()

    def play(_):
        for _ in range(10):
            repr(es), es.stop(), es.result
            with lock:  # ask and tell of a generation belong together
                x = es.ask()
                es.tell(x, (x**2).sum(axis=1))
                told[0] += 1
            es.state_dict()

    at_once(play)
    for _ in range(told[0]):
        x = alone.ask()
        alone.tell(x, (x**2).sum(axis=1))
    assert es.iterations == told[0] == 60 and es.result.evaluations == 1200
    for name, value in es.state_dict().items():
        np.testing.assert_array_equal(value, alone.state_dict()[name])


def test_cmaes_that_all_tell_at_once():
    es = CMAES(np.zeros(30), 0.5, popsize=20, seed=1)
    x = es.ask()

    def tell(_):
        try:
            es.tell(x, (x**2).sum(axis=1))
        except RuntimeError as error:
            return str(error)
        return ""

    answers = at_once(tell)
    assert sorted(answers) == ["", *["tell: called before ask"] * (THREADS - 1)]
    assert es.iterations == 1 and es.result.evaluations == 20


def test_an_agent():
    """Threads act in slots of their own."""
    vae, model, controller = make_vae(4), make_mdnrnn(), Controller(4, 8, 1)
    frames = np.random.default_rng(5).integers(0, 256, (8, THREADS, 64, 64, 3), dtype=np.uint8)
    agents = [Agent(vae, model, controller, np.linspace(-1, 1, controller.size)) for _ in range(2)]

    def play(agent, slot):
        return [agent.act(frame[slot : slot + 1], env_ids=np.array([slot])) for frame in frames]

    for agent in agents:
        agent.reset(THREADS, seed=3)
    want = [play(agents[0], slot) for slot in range(THREADS)]
    np.testing.assert_array_equal(at_once(lambda slot: play(agents[1], slot)), want)


def test_a_lock_is_free_in_its_copies():
    import copy
    import pickle

    lock = Lock()
    with lock:
        for other in (copy.deepcopy(lock), copy.copy(lock), pickle.loads(pickle.dumps(lock))):
            with other:
                assert other is not lock
