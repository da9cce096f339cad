"""Whatever callers hand to the native core: it works as its plain form does, or is refused in so many words.

`HYPOTHESIS_PROFILE=long pytest tests/properties --timeout=0` looks for as long as it takes, at random.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import worldmodels as wm
from conftest import make_mdnrnn, make_vae
from refusals import attempt, little_memory
from strategies import ANY_ARRAY, FLOATS, NUMBERS, laid_out
from worldmodels import _core
from worldmodels.models.agent import Agent
from worldmodels.models.decoder import Decoder
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import LSTMState
from worldmodels.models.vae import ConvVAE

MODEL = make_mdnrnn()
STARTS = np.zeros((3, 4), np.float32), np.full((3, 4), -2, np.float32)
SHAPE = wm.Controller(4, 8, 1)
DREAM = wm.Dream(MODEL, *STARTS, SHAPE, max_steps=20)
MEMORY, BOOLS = np.zeros((3, 8), np.float32), np.zeros(3, np.bool_)
SEEDS, WORDS = np.zeros(3, np.uint64), np.zeros(3, np.uint32)
STATE = _core.DreamStepper(DREAM._model, 3).get_state()
ONE_EPISODE = {
    "episodes": 1,
    "seed": 0,
    "common_random_numbers": False,
    "temperature": 1.0,
    "max_steps": 5,
    "num_threads": 1,
    "first_candidate": 0,
    "first_episode": 0,
}
VAE = make_vae()
CPU = torch.device("cpu")
ENCODE = Encoder(VAE, CPU, num_threads=1)


@given(params=st.integers(1, 5).flatmap(lambda rows: laid_out((rows, 20))), common=st.booleans())
def test_params_of_any_layout_play_as_their_plain_copy(params, common):
    plain = np.array(params, np.float32, order="C")
    expected = DREAM.rollout(plain, 3, seed=1, common_random_numbers=common, num_threads=1)
    result = DREAM.rollout(params, 3, seed=1, common_random_numbers=common)
    assert np.array_equal(result.returns, expected.returns) and np.array_equal(result.lengths, expected.lengths)
    assert result.returns.shape == (len(params), 3)
    assert (result.returns.dtype, result.lengths.dtype) == (np.float32, np.int32)
    assert ((result.lengths >= 1) & (result.lengths <= 20)).all()


@given(params=ANY_ARRAY)
def test_anything_as_params(params):
    result = attempt(lambda: DREAM.rollout(params, 2), "params")
    if result is not None:
        assert np.ndim(params) == 2 and np.shape(params)[1] == 20 and np.isfinite(result.returns).all()


@given(
    episodes=NUMBERS, seed=NUMBERS, threads=NUMBERS, steps=NUMBERS, common=NUMBERS, rows=st.sampled_from([1, 1, 2**20])
)
def test_any_numbers_of_a_rollout(episodes, seed, threads, steps, common, rows):
    params = np.broadcast_to(np.zeros(20, np.float32), (rows, 20))
    big = isinstance(episodes, int) and (episodes > 100 or rows > 1)
    if big and not (isinstance(steps, str) or episodes * rows >= 2**31):
        return  # would be played
    if isinstance(steps, int | np.integer) and steps > 2**20:
        steps = 2**31 if steps >= 2**31 else 50
    with little_memory():
        attempt(
            lambda: DREAM.rollout(
                params, episodes, seed=seed, num_threads=threads, max_steps=steps, common_random_numbers=common
            )
        )


@given(temperature=NUMBERS, steps=NUMBERS, precision=NUMBERS)
def test_any_numbers_of_a_dream(temperature, steps, precision):
    dream = attempt(lambda: wm.Dream(MODEL, *STARTS, SHAPE, temperature=temperature, max_steps=steps))
    if dream is not None:
        assert math.isfinite(dream.temperature) and dream.temperature >= 0
        assert np.isfinite(dream.rollout(np.zeros((1, 20)), 2, max_steps=20).returns).all()
    attempt(lambda: wm.Dream(MODEL, *STARTS, SHAPE, precision=precision), "precision")


@given(mu=ANY_ARRAY, logvar=ANY_ARRAY)
def test_anything_as_starts(mu, logvar):
    attempt(lambda: wm.Dream(MODEL, mu, STARTS[1], SHAPE), "initial_")
    attempt(lambda: wm.Dream(MODEL, STARTS[0], logvar, SHAPE), "initial_logvar")


@given(mu=laid_out((3, 4)), logvar=laid_out((3, 4)))
def test_starts_of_any_layout_dream_as_their_plain_copy(mu, logvar):
    plain = (np.array(array, np.float32, order="C") for array in (mu, logvar))
    trace, expected = (
        wm.Dream(MODEL, *starts, SHAPE, max_steps=5).trace(np.zeros(20), seed=3) for starts in ((mu, logvar), plain)
    )
    assert np.array_equal(trace.z, expected.z)


@given(h=ANY_ARRAY, c=ANY_ARRAY)
def test_anything_as_the_memory_at_the_starts(h, c):
    attempt(lambda: wm.Dream(MODEL, *STARTS, SHAPE, initial_h=h, initial_c=MEMORY), "initial_h")
    attempt(lambda: wm.Dream(MODEL, *STARTS, SHAPE, initial_h=MEMORY, initial_c=c), "initial_c")


SIGNALING = np.full((3, 8), 0x7FF4_0000_0000_0000, np.uint64).view(np.float64)  # NaN that warns when it is converted


def test_a_signaling_nan_is_refused_like_any_other():
    with pytest.raises(ValueError, match=r"^initial_h: expected finite numbers, got -?nan at flat index 0"):
        wm.Dream(MODEL, *STARTS, SHAPE, initial_h=SIGNALING, initial_c=MEMORY)
    with pytest.raises(ValueError, match=r"^x0: expected finite numbers, got (nan|-?inf) at"):
        wm.CMAES(SIGNALING[0].astype(">f8"), 1.0)
    frames, restart = np.zeros((1, 64, 64, 3), np.uint8), np.ones(1, np.bool_)
    decides = an_agent(1).act(frames, restart, forced_actions=SIGNALING[:1, :1])
    assert np.array_equal(decides, an_agent(1).act(frames, restart))


@given(h=laid_out((3, 8)), c=laid_out((3, 8)))
def test_memory_of_any_layout_dreams_as_its_plain_copy(h, c):
    plain = (np.array(array, np.float32, order="C") for array in (h, c))
    trace, expected = (
        wm.Dream(MODEL, *STARTS, SHAPE, max_steps=5, initial_h=h, initial_c=c).trace(np.ones(20), seed=3)
        for h, c in ((h, c), plain)
    )
    assert np.array_equal(trace.z, expected.z) and np.array_equal(trace.action, expected.action)


@given(scale=st.sampled_from([1.0, 1e10, 3e38]), seed=st.integers(0, 9))
def test_memory_of_any_size_is_played_to_an_end(scale, seed):
    h, c = np.random.default_rng(seed).uniform(-scale, scale, (2, 3, 8)).astype(np.float32)
    dream = wm.Dream(MODEL, *STARTS, SHAPE, max_steps=20, initial_h=h, initial_c=c)
    result = dream.rollout(np.ones((2, 20)), 3)
    assert np.isfinite(result.returns).all() and ((result.lengths >= 1) & (result.lengths <= 20)).all()


@given(slots=NUMBERS, threads=NUMBERS)
def test_any_numbers_of_a_memory(slots, threads):
    attempt(lambda: LSTMState(MODEL, slots, 1), "num_envs")
    memory = attempt(lambda: LSTMState(MODEL, 2, threads), "num_threads")
    if memory is not None:
        attempt(lambda: memory.reset(slots), "num_envs")
        assert memory.h.shape == memory.c.shape and not memory.h.any()


@given(
    z=laid_out((3, 4)),
    actions=laid_out((3, 1)),
    restart=laid_out((3,), [np.bool_]),
    slots=st.permutations(range(4)).map(lambda slots: slots[:3]),
    kind=st.sampled_from([np.int8, np.uint64, np.dtype(">i4"), None]),
)
def test_a_memory_takes_any_layout_as_its_plain_copy(z, actions, restart, slots, kind):
    memory, plain = LSTMState(MODEL, 4), LSTMState(MODEL, 4, 1)
    for _ in range(2):
        memory.step(slots if kind is None else np.array(slots, kind), z, actions, restart)
        plain.step(np.array(slots), *(np.array(a, np.float32, order="C") for a in (z, actions)), restart.copy())
    assert np.array_equal(memory.h, plain.h) and np.array_equal(memory.c, plain.c)


@given(array=ANY_ARRAY)
def test_anything_into_a_memory(array):
    memory = LSTMState(MODEL, 3, 1)
    good = {
        "env_ids": np.arange(3),
        "z": np.ones((3, 4), np.float32),
        "actions": np.ones((3, 1), np.float32),
        "restart": np.zeros(3, np.bool_),
    }
    for name in good:
        before = memory.h.copy()
        arguments, named = {**good, name: array}, "" if name == "env_ids" else name
        if attempt(lambda arguments=arguments: memory.step(**arguments) or True, named) is None:
            assert np.array_equal(memory.h, before)


@pytest.mark.parametrize("slots", [[0, 0], [-1], [3], [0.0], [True], [], [[0]], "0", {}, [[0], [1, 2]], [2**64 - 1]])
def test_slots_are_different_numbers(slots):
    with pytest.raises((ValueError, TypeError), match=r"^env_ids: expected"):
        LSTMState(MODEL, 3, 1).step(slots, *[np.zeros((1, 4), np.float32)] * 2, np.zeros(1, np.bool_))
    with pytest.raises((ValueError, TypeError), match=r"^env_ids: expected"):
        an_agent(3).act(np.zeros((1, 64, 64, 3), np.uint8), env_ids=slots)


def test_too_many_slots_are_not_looked_at():
    slots = np.broadcast_to(np.zeros(1, np.int64), 2**31)
    with (
        little_memory(),
        pytest.raises(ValueError, match=r"^env_ids: expected distinct integers from 0 to 2, got \(2147483648,\)"),
    ):
        LSTMState(MODEL, 3, 1).step(slots, *[np.zeros((1, 4), np.float32)] * 2, np.zeros(1, np.bool_))


class OtherVAE(ConvVAE):
    """A V that PyTorch encodes."""


@given(pictures=st.integers(1, 2).flatmap(lambda count: laid_out((count, 64, 64, 3), [np.uint8])))
def test_pictures_of_any_layout_are_encoded_as_their_plain_copy(pictures):
    plain = np.array(pictures, order="C")
    assert all(np.array_equal(*pair) for pair in zip(ENCODE(pictures), ENCODE(plain), strict=True))


@given(array=ANY_ARRAY)
def test_anything_as_pictures(array):
    attempt(lambda: ENCODE(array), "frames")
    attempt(lambda: OTHER(array), "frames")


OTHER = Encoder(OtherVAE(4), CPU, block=2)


DECODE = Decoder(VAE, num_threads=1)


@given(array=ANY_ARRAY)
def test_anything_as_latents(array):
    attempt(lambda: DECODE(array), "z")


@given(number=NUMBERS)
def test_any_numbers_of_a_decoder(number):
    attempt(lambda: Decoder(VAE, num_threads=number), "num_threads")
    attempt(lambda: Decoder(number), "vae")


@given(number=NUMBERS)
def test_any_numbers_of_an_encoder(number):
    attempt(lambda: Encoder(VAE, CPU, num_threads=number), "num_threads")
    attempt(lambda: Encoder(VAE, CPU, block=number), "block")
    attempt(lambda: Encoder(VAE, CPU, number), "precision")
    attempt(lambda: Encoder(VAE, number), "where")
    attempt(lambda: Encoder(number, CPU), "vae")
    attempt(lambda: LSTMState(number, 1), "mdnrnn")


@given(place=st.integers(0, 5), array=ANY_ARRAY)
def test_any_weights_of_an_encoder(place, array):
    sizes = [3, 32, 64, 128, 256]
    layers = [np.zeros((wide, narrow, 4, 4), np.float32) for narrow, wide in itertools.pairwise(sizes)]
    head = np.zeros((4, 1024), np.float32), np.zeros(4, np.float32)
    weights = [layers, [np.zeros(len(layer), np.float32) for layer in layers], *head, *head]
    _core.Encoder(*weights)
    if place < 2:
        weights[place] = [*weights[place][:3], array]
    else:
        weights[place] = array
    try:
        _core.Encoder(*weights)
    except (ValueError, TypeError) as error:
        assert str(error)


def an_agent(slots):
    agent = Agent(VAE, MODEL, SHAPE, np.linspace(-1, 1, 20))
    agent.reset(slots)
    return agent


@given(
    pictures=laid_out((2, 64, 64, 3), [np.uint8]),
    restart=laid_out((2,), [np.bool_]),
    episodes=laid_out((2,), [np.int64, np.uint8, np.dtype(">i2")]).map(np.abs),
    forced_actions=laid_out((2, 1)),
    slots=st.permutations(range(3)).map(lambda slots: slots[:2]),
)
def test_an_agent_acts_on_any_layout_as_on_its_plain_copy(pictures, restart, episodes, forced_actions, slots):
    given = an_agent(3).act(pictures, restart, episodes, forced_actions, slots)
    plain = [np.array(array, order="C") for array in (pictures, restart, episodes.astype(np.int64))]
    expected = an_agent(3).act(*plain, forced_actions.astype(np.float32), np.array(slots))
    assert given.dtype == np.float32 and np.array_equal(given, expected)


@given(array=ANY_ARRAY, number=NUMBERS)
def test_anything_for_an_agent(array, number):
    agent = an_agent(3)
    good = {
        "frames": np.zeros((3, 64, 64, 3), np.uint8),
        "restart": np.ones(3, np.bool_),
        "episodes": np.arange(3),
        "forced_actions": np.zeros((3, 1), np.float32),
        "env_ids": np.arange(3),
    }
    for name in good:
        agent.reset(3)
        arguments, named = {**good, name: array}, "" if name == "env_ids" else name
        if attempt(lambda arguments=arguments: agent.act(**arguments), named) is None:
            assert not agent.z.any()
    attempt(lambda: agent.set_params(0, array), "params")
    attempt(lambda: agent.set_params(number, np.zeros(20, np.float32)), "env_id")
    attempt(lambda: agent.reset(1, seed=number), "seed")
    attempt(lambda: agent.reset(number), "batch")


@given(candidate=NUMBERS, episode=NUMBERS, steps=NUMBERS, seed=NUMBERS)
def test_any_numbers_of_a_trace(candidate, episode, steps, seed):
    trace = attempt(lambda: DREAM.trace(np.zeros(20), candidate=candidate, episode=episode, seed=seed, max_steps=steps))
    assert trace is None or len(trace.z) == len(trace.action) + 1


@given(
    array=ANY_ARRAY,
    call=st.sampled_from(
        [
            lambda core, a: _core.testing.elementwise("baseline", "exp", a),
            lambda core, a: _core.testing.tile_product("baseline", a, a),
            lambda core, a: _core.DreamStepper(core, 3).step(1.0, a, True, True, 1),
            lambda core, a: _core.DreamStepper(core, 3).observe(a, True, False, np.zeros((3, 8), "f4")),
            lambda core, a: _core.DreamStepper(core, 3).observe(np.ones(3, bool), True, False, a),
            lambda core, a: _core.DreamStepper(core, 3).reset(a, WORDS, WORDS, np.ones(3, bool)),
            lambda core, a: _core.DreamStepper(core, 3).reset(SEEDS, a, WORDS, np.ones(3, bool)),
            lambda core, a: _core.DreamStepper(core, 3).reset(SEEDS, WORDS, a, np.ones(3, bool)),
            lambda core, a: _core.DreamStepper(core, 3).reset(SEEDS, WORDS, WORDS, a),
            lambda core, a: _core.DreamStepper(core, 3).set_state(dict.fromkeys(STATE, a)),
            *(lambda core, a, name=name: _core.DreamStepper(core, 3).set_state({**STATE, name: a}) for name in STATE),
            lambda core, a: _core.LstmState(core).advance(a, *[np.zeros((3, 1), "f4"), BOOLS, MEMORY, MEMORY], 1),
            lambda core, a: _core.LstmState(core).advance(np.zeros((3, 4), "f4"), a, BOOLS, MEMORY, MEMORY, 1),
            lambda core, a: _core.LstmState(core).advance(
                np.zeros((3, 4), "f4"), np.zeros((3, 1), "f4"), a, MEMORY, MEMORY, 1
            ),
            lambda core, a: _core.LstmState(core).advance(
                np.zeros((3, 4), "f4"), np.zeros((3, 1), "f4"), BOOLS, a, a, 1
            ),
            lambda core, a: _core.LstmState(a),
            lambda core, a: _core.DreamStepper(a, 3),
            lambda core, a: ENCODE._native.encode(a, 1),
            lambda core, a: _core.Cmaes(a, 1.0, 4, 0, True, False),
        ]
    ),
)
def test_anything_at_the_bindings(array, call):
    try:
        call(DREAM._model, array)
    except (ValueError, TypeError, IndexError) as error:
        assert str(error)


@pytest.mark.parametrize(
    "call",
    [
        _core.LstmState,
        lambda model: _core.DreamStepper(model, 3),
        lambda model: _core.ControllerShape(model, "z", False, 0, False, []),
    ],
)
def test_no_model_is_refused(call):
    with pytest.raises(TypeError, match="incompatible"):
        call(None)


@pytest.mark.parametrize(
    ("carracing", "choices", "message"),
    [
        (False, [1, 2], "choices: expected an integer from 2 to "),
        (False, [-2, 5], "choices: expected an integer from 2 to "),
        (False, [2**40], "choices: expected an integer from 2 to "),
        (False, [2, 2], "choices: expected numbers that add up to action_size, 3, got a sum of 4"),
        (False, [2**16] * 2**16, "choices: expected numbers that add up to action_size, 3, got a sum of 4294967296"),
        (True, [3], "choices: expected none for squash='carracing', got 1"),
    ],
)
def test_choices_that_do_not_fit_are_refused(carracing, choices, message):
    model = wm.Dream(wm.MDNRNN(4, 3, 8, mixtures=2), *STARTS, wm.Controller(4, 8, 3))._model
    with pytest.raises(ValueError, match=f"^{message}"):
        _core.ControllerShape(model, "z", False, 0, carracing, choices)


def test_a_controller_shape_of_another_model_is_refused():
    torch.manual_seed(1)
    other = wm.Dream(wm.MDNRNN(4, 3, 8, mixtures=2), *STARTS, wm.Controller(4, 8, 3, squash="carracing"))
    params, sizes = np.zeros((1, other.controller.size), np.float32), "latent_size 4, hidden_size 8, action_size"
    refusal = f"^controller: expected a shape for {sizes} 1, got one for {sizes} 3$"
    with pytest.raises(ValueError, match=refusal):
        _core.rollout(DREAM._model, other._shape, params, **ONE_EPISODE)
    with pytest.raises(ValueError, match=refusal):
        _core.trace(DREAM._model, other._shape, params[0], candidate=0, episode=0, seed=0, temperature=1.0, max_steps=5)


def a_model(**changes):
    arguments = {name: value for name, value in DREAM._native._arguments.items() if name != "precision"}
    return _core.WorldModel(**arguments | changes, bfloat16=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"termination": "chance"}, "^termination: expected one of threshold, sample, expected, got 'chance'"),
        ({"done_pos_weight": 0.0}, "^done_pos_weight: expected a finite number above 0, got 0"),
        ({"done_pos_weight": math.inf}, "^done_pos_weight: expected a finite number above 0, got inf"),
    ],
)
def test_termination_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        a_model(**changes)


def test_flags_of_any_byte_are_flags():
    """NumPy lets a bool hold any byte; in C++ that is undefined behaviour."""
    rng = np.random.default_rng(0)
    z, actions = rng.normal(size=(3, 4)).astype(np.float32), np.ones((3, 1), np.float32)
    odd, plain = np.array([2, 0, 255], np.uint8).view(bool), np.array([True, False, True])
    memory = _core.LstmState(DREAM._model)
    found, expected = (memory.advance(z, actions, flags, MEMORY, MEMORY, 1) for flags in (odd, plain))
    assert all(map(np.array_equal, found, expected))
    states = []
    for flags in (odd, plain):
        stepper, seen = _core.DreamStepper(DREAM._model, 3), np.zeros((3, 20), np.float32)
        stepper.reset(SEEDS, WORDS, WORDS, flags)
        stepper.observe(flags, True, True, seen)
        states.append((*stepper.get_state().values(), seen))
    assert all(map(np.array_equal, *states))


def a_model_of_many_actions():
    sizes = {"latent_size": 1, "action_size": 1 << 14, "hidden_size": 1, "mixtures": 1}
    shapes = {"weight_ih": (4, 1 + (1 << 14)), "weight_hh": (4, 1), "bias": (4,), "head_weight": (3, 1)}
    shapes |= {"head_bias": (3,), "initial_mu": (1, 1), "initial_logvar": (1, 1)}
    flags = dict.fromkeys(("restart_input", "done_head", "reward_head", "bfloat16"), False)
    return _core.WorldModel(**sizes, **flags, **{name: np.zeros(size, np.float32) for name, size in shapes.items()})


def cmaes_state(**changes):
    core = _core.Cmaes(np.zeros(3), 1.0, 4, 0, True, False)
    state = {**core.get_state(), **changes}
    core.set_state({name: value for name, value in state.items() if value is not None})


def observe_into_a_constant():
    seen = np.zeros((3, 20), np.float32)
    seen.flags.writeable = False
    _core.DreamStepper(DREAM._model, 3).observe(BOOLS, True, True, seen)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda name=name: cmaes_state(**{name: None}), f"state: expected the key {name}$")
            for name in ("pending_x", "sigma", "generation", "decomposed_at", "ps")
        ),
        (lambda: cmaes_state(sigma="x"), "sigma: expected a number, got 'x'$"),
        (lambda: cmaes_state(generation=1.5), "generation: expected an integer, got 1.5$"),
        (lambda: cmaes_state(decomposed_at=7), "decomposed_at: expected an integer from 0 to generation, 0, got 7$"),
        (observe_into_a_constant, "observations: expected a writable array, got a read-only one$"),
        (
            lambda: _core.ControllerShape(DREAM._model, "zch", True, 1 << 20, False, []),
            "features, hidden_units: expected at most 16777216 parameters, got",
        ),
        (
            lambda: _core.ControllerShape(a_model_of_many_actions(), "z", False, 1 << 12, False, []),
            "features, hidden_units: expected at most 16777216 parameters, got 67112960$",
        ),
        (
            lambda: _core.Cmaes(np.zeros(3), 1.0, 2**60, 0, True, False),
            f"popsize: expected an integer from 2 to 2147483647, got {2**60}$",
        ),
        (
            lambda: _core.Cmaes(np.zeros(3), -1e-9, 4, 0, True, False),
            "sigma: expected a finite number above 0, got -1e-09$",
        ),
    ],
)
def test_errors_name_the_argument_and_what_came(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_environments_step_no_model_of_expected_termination():
    with pytest.raises(ValueError, match=r"^model: expected termination threshold or sample, got expected"):
        _core.DreamStepper(a_model(termination="expected"), 3)


@pytest.mark.parametrize("threads", [0, -1])
def test_bindings_refuse_teams_of_nobody(threads):
    es = _core.Cmaes(np.zeros(3), 1.0, 4, 0, True, False)
    for call in (
        lambda: es.ask(threads),
        lambda: ENCODE._native.encode(np.zeros((1, 64, 64, 3), np.uint8), threads),
        lambda: _core.rollout(
            DREAM._model, DREAM._shape, np.zeros((1, 20), np.float32), **{**ONE_EPISODE, "num_threads": threads}
        ),
    ):
        with pytest.raises(ValueError, match=r"^num_threads: expected at least 1, got"):
            call()


def test_bindings_take_no_more_threads_than_are_of_use():
    es, few = (_core.Cmaes(np.zeros(300), 1.0, 400, 0, True, False) for _ in range(2))
    assert np.array_equal(es.ask(2**31 - 1), few.ask(1))


@pytest.mark.parametrize("order", ["C", "misaligned"])
def test_bindings_refuse_what_does_not_lie_on_a_boundary(order):
    array = np.zeros((1, 20), np.float32)
    if order == "misaligned":
        array = np.zeros(81, np.uint8)[1:].view(np.float32).reshape(1, 20)
    arguments = DREAM._model, DREAM._shape, array
    if order == "C":
        assert _core.rollout(*arguments, **ONE_EPISODE)[0].shape == (1, 1)
    else:
        with pytest.raises(ValueError, match=r"^params: expected \(P, 20\) float32, got .* not aligned"):
            _core.rollout(*arguments, **ONE_EPISODE)


HUGE = """
import resource, sys
import numpy as np
import worldmodels as wm
from worldmodels.dream.env import DreamVectorEnv
sys.path.insert(0, {tests!r})
from conftest import make_mdnrnn
model = make_mdnrnn()
starts = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32)
dream = wm.Dream(model, *starts, wm.Controller(4, 8, 1), max_steps=20)
wide = wm.Dream(model, *starts, wm.Controller(4, 8, 1, hidden_units=2**19), max_steps=20)
dream.rollout(np.zeros((64, 20)), 16, num_threads=2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
for call in {calls!r}:
    try:
        eval(call)
    except (MemoryError, ValueError) as error:
        print("refused", call, type(error).__name__, flush=True)
    else:
        print("done", call, flush=True)
"""
TOO_LARGE = [
    "dream.rollout(np.zeros((1, 20)), 2**31 - 1)",
    "dream.rollout(np.broadcast_to(np.zeros(20, np.float32), (2**31 - 1, 20)), 1)",
    "dream.trace(np.zeros(20), max_steps=2**24)",
    "wm.CMAES(np.zeros(3), 1.0, popsize=2**31 - 1)",
    "wm.CMAES(np.zeros(32766), 1.0)",
    "wm.CMAES(np.zeros(2**24), 1.0, separable=True)",
    "DreamVectorEnv(model, *starts, num_envs=2**24)",
    "wide.rollout(np.zeros((1, 13 * 2**19), np.float32), num_threads=1)",
]


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_sizes_beyond_the_memory_end_in_an_error_and_not_in_the_process():
    code = HUGE.format(calls=TOO_LARGE, tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["refused"] * len(TOO_LARGE), done.stdout


def test_thousands_of_threads_are_as_good_as_a_few():
    code = """
import resource
import numpy as np
import worldmodels as wm
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**33, resource.RLIM_INFINITY))  # stacks of 4096 threads take 32 GB
es = wm.CMAES(np.zeros(200), 1.0, popsize=200, seed=1, num_threads=4096)
es.tell(es.ask(), np.arange(200))
few = wm.CMAES(np.zeros(200), 1.0, popsize=200, seed=1, num_threads=1)
few.tell(few.ask(), np.arange(200))
assert np.array_equal(es.ask(), few.ask())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]


# CMA-ES

OPTIONS = sorted({"sigma0", "popsize", "seed", "num_threads", "gap", "weight_decay", "ftarget", "maxiter", "tolfun"})


@given(name=st.sampled_from(OPTIONS), value=NUMBERS)
def test_any_option_of_cmaes(name, value):
    if name == "popsize" and isinstance(value, int) and value > 10_000:
        return  # memory is what the huge sizes above are about
    options = {"sigma0": 1.0, "seed": 1, name: value}
    es = attempt(lambda: wm.CMAES(np.zeros(3), **options), "" if value is None else name if name != "ftarget" else "")
    if es is not None:
        es.tell(es.ask(), np.arange(es.popsize))
        assert np.isfinite(es.mean).all()


@given(x0=ANY_ARRAY)
def test_anything_as_the_start_of_cmaes(x0):
    es = attempt(lambda: wm.CMAES(x0, 1.0, seed=1), "x0")
    assert es is None or np.isfinite(es.ask()).all()


@given(solutions=laid_out((6, 3)), values=laid_out((6,), [*FLOATS, np.int8, np.uint64], finite=False))
def test_solutions_of_any_layout_teach_as_their_plain_copy(solutions, values):
    runs = []
    for x, f in ((solutions, values), (np.array(solutions, np.float64, order="C"), np.array(values, np.float64))):
        es = wm.CMAES(np.zeros(3), 1.0, popsize=6, seed=1)
        es.ask()
        es.tell(x, f)
        runs.append(es)
    assert np.array_equal(runs[0].mean, runs[1].mean) and runs[0].sigma == runs[1].sigma
    assert np.isfinite(runs[0].mean).all() and runs[0].sigma > 0 and np.isfinite(runs[0].C).all()


@given(solutions=ANY_ARRAY, values=ANY_ARRAY)
def test_anything_told_to_cmaes(solutions, values):
    es = wm.CMAES(np.zeros(3), 1.0, popsize=6, seed=1)
    asked = es.ask()
    attempt(lambda: es.tell(solutions, np.zeros(6)), "solutions")
    attempt(lambda: es.tell(asked, values), "values")
    es.ask()
    es.tell(es.ask(), np.arange(6))
    assert np.isfinite(es.mean).all()


def worn_in(asked):
    """A state after a few generations."""
    es = wm.CMAES(np.ones(3), 0.5, popsize=6, seed=1)
    for _ in range(3):
        x = es.ask()
        es.tell(x, (x**2).sum(axis=1))
    if asked:
        es.ask()
    return es


@given(asked=st.booleans(), data=st.data())
def test_states_of_strangers(asked, data):
    state = worn_in(asked).state_dict()
    name = data.draw(st.sampled_from(sorted(state)))
    value = state[name]
    if isinstance(value, np.ndarray) and data.draw(st.booleans()):
        bad = value.copy().astype(np.float64)
        if bad.size:
            flat = bad.reshape(-1)
            flat[data.draw(st.integers(0, bad.size - 1))] = data.draw(st.floats())
        state[name] = bad
    else:
        state[name] = data.draw(st.one_of(NUMBERS, ANY_ARRAY))
    es = wm.CMAES(np.zeros(3), 1.0, popsize=6, seed=2)
    es.ask()
    before = es.state_dict()
    with little_memory():
        try:
            loaded = attempt(lambda: es.load_state_dict(state) or True, name.removeprefix("limit."))
            if loaded:
                for _ in range(3):
                    x = es.ask()
                    es.tell(x, (x**2).sum(axis=1))
                    es.stop()
            else:
                after = es.state_dict()
                assert all(np.array_equal(before[key], after[key], equal_nan=True) for key in before if key != "seed")
        except RuntimeError as error:  # C that no decomposition exists for, told at the next ask
            assert "could not be decomposed" in str(error) or "beyond float64" in str(error), repr(error)


def test_limits_of_any_size_are_held_against_without_a_warning():
    es = worn_in(False)
    state = es.state_dict()
    for limit in (0.0, 1e308, -1e308, math.inf, -math.inf):
        limits = {name: np.array([limit]) for name in state if name.startswith("limit.")}
        es.load_state_dict(state | limits | {"sigma": 1e308, "sigma0": 5e-324})
        assert all(isinstance(reason, str) for reason in es.stop())
    nothing = {"best_history": np.zeros(0), "median_history": np.zeros(0), "limit.tolstagnation": np.array([-1.0])}
    es.load_state_dict(state | nothing)
    assert "tolstagnation" not in es.stop()


@given(asked=st.booleans(), key=st.data())
def test_a_state_without_a_key_is_refused(asked, key):
    state = worn_in(asked).state_dict()
    name = key.draw(st.sampled_from(sorted(state)))
    del state[name]
    assert attempt(lambda: wm.CMAES(np.zeros(3), 1.0).load_state_dict(state), name) is None


@pytest.mark.filterwarnings("error")
def test_the_largest_values_are_taken():
    """Their median's mean of two is beyond float64."""
    es = wm.CMAES(np.zeros(3), 0.1, popsize=4, seed=1)
    for _ in range(3):
        es.tell(es.ask(), [1.7e308, 1.7e308, 1.7e308, 1.75e308])
    assert np.isfinite(es.mean).all()
