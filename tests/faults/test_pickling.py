"""Pickles and deep copies: full state, the same bits from there on, and independent of the original."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import worldmodels as wm
from conftest import make_mdnrnn, make_vae
from worldmodels import _core
from worldmodels.dream.env import DreamEnv, DreamVectorEnv
from worldmodels.dream.gpu import TorchDream
from worldmodels.models.decoder import Decoder
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import LSTMState
from worldmodels.support.simd import simd_levels

CPU = torch.device("cpu")
WAYS = {"pickle": lambda thing: pickle.loads(pickle.dumps(thing)), "deepcopy": copy.deepcopy}
both = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def world(**options):
    model = make_mdnrnn(**options)
    rng = np.random.default_rng(0)
    return {
        "mdnrnn": model,
        "initial_mu": rng.normal(size=(7, model.latent_size)).astype(np.float32),
        "initial_logvar": rng.normal(size=(7, model.latent_size)).astype(np.float32),
    }


def same(one, other):
    """Whether nested arrays, numbers and dictionaries are equal, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        np.testing.assert_array_equal(one, other)


# CMA-ES


def generation(es):
    x = es.ask()
    es.tell(x, ((x - 0.3) ** 2).sum(axis=1))
    return x


@both
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"separable": True},
        {"gap": 3, "active": False, "weight_decay": 0.1, "ftarget": -1.0},
    ],
    ids=str,
)
def test_cmaes(way, asked, options):
    es = wm.CMAES(np.zeros(9), 0.5, popsize=8, seed=2**64 - 1, num_threads=3, maxiter=17, **options)
    for _ in range(6):
        generation(es)
    if asked:
        es.ask()
    before = es.state_dict()
    other = way(es)
    assert other.num_threads == 3 and repr(other) == repr(es)
    same(other.state_dict(), before)
    for _ in range(12):
        same(generation(other), generation(es))
        same(other.stop(), es.stop())
    same(other.state_dict(), es.state_dict())
    assert es.stop()["maxiter"] == 17
    generation(other)
    assert es.iterations == other.iterations - 1


@both
def test_cmaes_before_the_first_generation_and_of_an_own_class(way):
    es = Mine(np.zeros(3), 0.5, seed=4)
    other = way(es)
    assert type(other) is Mine and other.note == es.note == ["kept"] and other.note is not es.note
    same(generation(other), generation(es))


class Mine(wm.CMAES):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.note = ["kept"]


# Dreams


@both
@pytest.mark.parametrize(
    "options",
    [{}, {"termination": "expected", "temperature": 0.7}, {"initial": True, "max_steps": 30}],
    ids=str,
)
@pytest.mark.parametrize("kind", [wm.Dream, TorchDream])
def test_a_dream_is_of_the_weights_it_was_made_of(way, options, kind):
    made, options = world(done_pos_weight=3.0), dict(options)
    if options.pop("initial", False):
        options |= {f"initial_{part}": np.full((7, 8), 0.2, np.float32) for part in "hc"}
    if kind is TorchDream:
        options["device"] = CPU
    dream = kind(*made.values(), wm.Controller(4, 8, 1), **options)
    params = np.random.default_rng(1).normal(size=(2, dream.controller.size))
    want = dream.rollout(params, 5, seed=3)
    with torch.no_grad():
        for parameter in made["mdnrnn"].parameters():
            parameter.zero_()
    for array in made.values():
        if isinstance(array, np.ndarray):
            array[:] = 9
    other = way(dream)
    assert repr(other) == repr(dream)
    same(other.rollout(params, 5, seed=3), want)
    same(way(other).rollout(params, 5, seed=3), want)
    other.temperature = 9.0
    same(dream.rollout(params, 5, seed=3), want)


def test_a_precision_that_a_machine_lacks_is_refused_as_by_the_constructor(monkeypatch):
    if "avx512_bf16" in simd_levels():
        monkeypatch.setattr("worldmodels.support.simd.simd_levels", lambda: ["baseline"])
    model = wm.Dream(*world().values(), wm.Controller(4, 8, 1))._native
    build, (kind, arguments) = model.__reduce__()
    with pytest.raises(ValueError, match=r"^precision: bfloat16 needs a CPU with AVX-512 BF16"):
        build(kind, {**arguments, "precision": "bfloat16"})


# Environments


def play(env, steps, rng):
    seen = []
    for _ in range(steps):
        action = rng.uniform(-1.5, 1.5, env.action_space.shape).astype(np.float32)
        out = env.step(action)
        seen.append(out)
        if isinstance(env.unwrapped, gymnasium.Env) and (out[2] or out[3]):
            seen.append(env.reset())
    return seen


def envs(kind, **settings):
    made = {**world(done_pos_weight=2.0), "max_steps": 15, **settings}
    if kind == "env":
        return DreamEnv(**made)
    if kind == "make":
        return gymnasium.make("worldmodels/Dream-v0", **made, max_episode_steps=11)
    if kind == "make_vec":
        return gymnasium.make_vec(
            "worldmodels/Dream-v0", num_envs=5, vectorization_mode="vector_entry_point", max_episode_steps=11, **made
        )
    return DreamVectorEnv(**made, num_envs=37, autoreset_mode=AutoresetMode[kind], num_threads=2)


@both
@pytest.mark.parametrize("kind", ["env", "make", "make_vec", "NEXT_STEP", "SAME_STEP"])
@pytest.mark.parametrize("steps", [0, 4, 15, 16])
def test_an_environment_goes_on_in_the_middle_of_an_episode(way, kind, steps):
    env = envs(kind, temperature=1.3, termination="sample")
    env.reset(seed=6, options={"temperature": 0.8})
    play(env, steps, np.random.default_rng(2))
    other = way(env)
    want = play(env, 30, np.random.default_rng(3))
    same(play(other, 30, np.random.default_rng(3)), want)
    same(other.reset()[0], env.reset()[0])
    same(other.unwrapped.np_random.integers(2**32), env.unwrapped.np_random.integers(2**32))
    assert other.unwrapped._dreams.temperature == 0.8 and other.action_space == env.action_space


@both
def test_seeds_of_their_own_and_pending_resets_are_kept(way):
    env = DreamVectorEnv(**world(done_head=False), num_envs=3, max_steps=3)
    env.reset(seed=[5, 2**64 - 1, 7])
    for _ in range(3):
        out = env.step(np.zeros((3, 1), np.float32))
    assert out[3].all()  # the next step resets
    other = way(env)
    same(play(other, 9, np.random.default_rng(0)), play(env, 9, np.random.default_rng(0)))
    waiting = DreamVectorEnv(**world(done_head=False), num_envs=2, max_steps=1, autoreset_mode=AutoresetMode.DISABLED)
    waiting.reset(seed=1)
    waiting.step(np.zeros((2, 1), np.float32))
    for each in (way(waiting), waiting):
        with pytest.raises(gymnasium.error.ResetNeeded):
            each.step(np.zeros((2, 1), np.float32))


@both
def test_an_environment_that_was_never_reset(way):
    other = way(DreamEnv(**world()))
    with pytest.raises(gymnasium.error.ResetNeeded):
        other.step(np.zeros(1, np.float32))
    same(other.reset(seed=3)[0], DreamEnv(**world()).reset(seed=3)[0])


def test_a_steppers_state_is_checked():
    model = DreamEnv(**world())._dreams._model.core
    stepper = _core.DreamStepper(model, 3)
    state = stepper.get_state()
    assert {name: (array.shape, array.dtype.name) for name, array in state.items()} == {
        "inputs": ((3, 6), "float32"),
        "h": ((3, 8), "float32"),
        "c": ((3, 8), "float32"),
        "seeds": ((3,), "uint64"),
        "candidates": ((3,), "uint32"),
        "episodes": ((3,), "uint32"),
        "steps": ((3,), "uint32"),
    }
    for name, array in state.items():
        with pytest.raises(ValueError, match=rf"^state: expected the key {name}"):
            stepper.set_state({key: value for key, value in state.items() if key != name})
        with pytest.raises(ValueError, match=rf"^{name}: expected \(3"):
            stepper.set_state({**state, name: array[:2]})
        with pytest.raises(ValueError, match=rf"^{name}: expected \(3"):
            stepper.set_state({**state, name: array.astype(np.float64)})
    stepper.set_state(state)


# V, M and the agent


@both
def test_encoder_memory_and_controller(way):
    vae, model = make_vae(4), make_mdnrnn()
    frames = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    for encoder in (Encoder(vae, CPU, num_threads=2), Encoder(OtherVAE(4).eval(), CPU)):
        same(way(encoder)(frames), encoder(frames))
    latents = np.random.default_rng(2).standard_normal((2, 4), np.float32)
    for decoder in (Decoder(vae, num_threads=2), Decoder(OtherVAE(4).eval())):
        same([way(decoder)(latents)], [decoder(latents)])
    memory = LSTMState(model, 3, 2)
    z, actions = np.ones((2, 4), np.float32), np.ones((2, 1), np.float32)
    memory.step(np.arange(2), z, actions, np.ones(2, np.bool_))
    other = way(memory)
    for each in (memory, other):
        each.step(np.arange(1, 3), z, actions, np.zeros(2, np.bool_))
    same([other.h, other.c], [memory.h, memory.c])
    other.reset(1)
    assert len(memory.h) == 3
    controller = wm.Controller(4, 8, 1, features="zh", bias=True)
    assert way(controller) == controller


class OtherVAE(wm.ConvVAE):
    """A V that PyTorch encodes with."""


@both
def test_an_agent_goes_on_in_the_middle_of_an_episode(way):
    controller = wm.Controller(4, 8, 1)
    agent = wm.Agent(make_vae(4), make_mdnrnn(), controller, np.linspace(-1, 1, controller.size))
    agent.reset(3, seed=8)
    frames = np.random.default_rng(1).integers(0, 256, (9, 3, 64, 64, 3), dtype=np.uint8)
    agent.set_params(1, np.full(controller.size, 0.1, np.float32))
    for frame in frames[:4]:
        agent.act(frame[:2], env_ids=np.array([1, 0]))  # slot 2 has not begun
    other = way(agent)
    assert repr(other) == repr(agent) == "Agent(latent_size=4, hidden_size=8, action_size=1, parameters=20, batch=3)"
    want = [agent.act(frame, restart=np.array([i == 2, False, False])) for i, frame in enumerate(frames[4:])]
    same([other.act(frame, restart=np.array([i == 2, False, False])) for i, frame in enumerate(frames[4:])], want)
    same(other.z, agent.z)
    other.reset(1)
    assert agent.act(frames[0]).shape == (3, 1)


# Another process


CHILD = """
import pickle, sys
import numpy as np
data = pickle.load(sys.stdin.buffer)
out = {}
es = data["es"]
x = es.ask(); es.tell(x, (x**2).sum(axis=1)); out["es"] = es.ask()
dream = data["dream"]
out["dream"] = tuple(dream.rollout(np.full((1, dream.controller.size), 0.3), 4, seed=2, num_threads=1))
for name in ("env", "vector"):
    env = data[name]
    action = np.full(env.action_space.shape, 0.4, np.float32)
    out[name] = [env.step(action)[0] for _ in range(5)]
out["agent"] = data["agent"].act(np.full((1, 64, 64, 3), 9, np.uint8))
sys.stdout.buffer.write(pickle.dumps(out))
"""


def test_another_process_goes_on():
    controller = wm.Controller(4, 8, 1)
    es = wm.CMAES(np.zeros(6), 0.5, seed=3)
    env, vector = envs("make"), envs("make_vec")
    env.reset(seed=1)
    vector.reset(seed=[1, 2, 3, 4, 5])
    agent = wm.Agent(make_vae(4), make_mdnrnn(), controller, np.ones(controller.size))
    agent.act(np.zeros((1, 64, 64, 3), np.uint8))
    for each in (env, vector):
        each.step(np.zeros(each.action_space.shape, np.float32))
    es.ask()
    dream = wm.Dream(*world().values(), controller)
    data = pickle.dumps({"es": es, "dream": dream, "env": env, "vector": vector, "agent": agent})
    done = subprocess.run([sys.executable, "-c", CHILD], input=data, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    found = pickle.loads(done.stdout)
    x = es.ask()
    es.tell(x, (x**2).sum(axis=1))
    same(found["es"], es.ask())
    same(found["dream"], tuple(dream.rollout(np.full((1, 20), 0.3), 4, seed=2)))
    for name, each in (("env", env), ("vector", vector)):
        same(found[name], [each.step(np.full(each.action_space.shape, 0.4, np.float32))[0] for _ in range(5)])
    same(found["agent"], agent.act(np.full((1, 64, 64, 3), 9, np.uint8)))
