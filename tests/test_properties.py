"""Whatever comes in, from files and from callers: it works as its plain form does, or is refused in so many words.

`HYPOTHESIS_PROFILE=long pytest tests/test_properties.py --timeout=0` looks for as long as it takes, at random.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import worldmodels as wm
from conftest import make_episode, make_latents, make_mdnrnn, make_vae, mark_done, toy_config, write_store
from worldmodels import _core
from worldmodels.config import Config, from_dict, override, to_dict
from worldmodels.data.atomic import read_json, write_json
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.latents import load_latents
from worldmodels.data.weights import load_model, load_tensors, save_model, save_tensors
from worldmodels.dream import load_world
from worldmodels.experiment import Experiment
from worldmodels.models.agent import load_controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE

_SLOW = [HealthCheck.too_slow]  # a matter of the machine
settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=_SLOW
)
settings.register_profile("long", max_examples=5_000, deadline=None, database=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U64", "BOOL", "C64", "F8_E4M3")
REFUSALS = (ValueError, TypeError, FileNotFoundError, MemoryError)


@contextlib.contextmanager
def little_memory(megabytes=1024):
    """A limit to what may be allocated beside what is: to overstep it is a MemoryError or the end of the process."""
    if sys.platform != "linux":
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(work, names=""):
    """What `work` gives, or None where it refuses with an error of ours: of a plain type, with a name in front."""
    try:
        return work()
    except REFUSALS as error:
        assert type(error) in REFUSALS, f"unexplained: {error!r}"
        if not isinstance(error, MemoryError):
            assert ": " in str(error), f"unexplained: {error!r}"
            if names:
                assert names in str(error), f"expected {names!r} to be named by: {error!r}"
        return None


# Values from outside

NUMBERS = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), 10**400]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.sampled_from(["", "1", "x", b"1", [], [1], {}, 1j]),
    st.sampled_from([np.float32(2), np.int8(-1), np.uint64(2**64 - 1), np.bool_(1), np.array(2), np.array([2.0])]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def damaged(draw, data):
    """Bytes with a few bits flipped, cut short, overwritten, or with something in between."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.one_of(st.integers(0, min(len(data), 400) - 1), st.integers(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "cut", "overwrite", "insert", "zero"])):
            case "flip":
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[max(place, 1) :]
            case "overwrite":
                noise = draw(st.binary(min_size=1, max_size=8))
                data[place : place + len(noise)] = noise
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "zero":
                data[place : place + 64] = bytes(len(data[place : place + 64]))
    return bytes(data)


@st.composite
def redirected(draw, data):
    """A safetensors file whose header says something else of the same bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = draw(st.sampled_from(sorted(header)))
    what = draw(st.sampled_from(["drop", "rename", "dtype", "shape", "offsets", "about", "any"]))
    entry = header[name]
    if what == "drop":
        del header[name]
    elif what == "rename":
        header[draw(st.text(max_size=8))] = header.pop(name)
    elif what == "about" or name == "__metadata__":
        header["__metadata__"] = draw(
            st.one_of(JSON, st.fixed_dictionaries({"about": st.one_of(JSON.map(json.dumps), st.text(max_size=20))}))
        )
    elif what == "dtype":
        entry["dtype"] = draw(st.sampled_from([*_DTYPES]))
    elif what == "shape":
        entry["shape"] = draw(
            st.one_of(
                st.permutations(entry["shape"]),
                st.just([math.prod(entry["shape"])]),
                st.just([1, *entry["shape"]]),
                st.lists(st.sampled_from([0, 1, 2, 8, 2**31, 2**62]), max_size=3),
            )
        )
    elif what == "offsets":
        entry["data_offsets"] = draw(st.lists(st.integers(0, len(body) + 8), min_size=2, max_size=2))
    else:
        header[name] = draw(JSON)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def a_file(path, data):
    """Writes it and returns the path."""
    path.write_bytes(data)
    return path


# Files

TENSORS = {"mu": torch.randn(5, 4), "logvar": torch.randn(5, 4), "step": torch.tensor([3])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all examples, with a good file of every kind."""
    folder = tmp_path_factory.mktemp("properties")
    good = folder / "good"
    save_tensors(good / "tensors.safetensors", TENSORS, {"frames": 5})
    save_model(good / "rnn.safetensors", make_mdnrnn())
    shape = {"latent_size": 4, "hidden_size": 8, "action_size": 1}
    save_tensors(good / "controller.safetensors", {"params": torch.zeros(20)}, {"config": shape})
    make_latents([5, 3, 9]).save(good / "latents" / "00000.safetensors")
    write_store(good / "episodes", [make_episode(4, seed) for seed in range(3)], per_shard=3)
    return folder


@given(data=st.data())
def test_safetensors_of_strangers(folder, data):
    original = (folder / "good" / "tensors.safetensors").read_bytes()
    path = a_file(folder / "bad.safetensors", data.draw(st.one_of(damaged(original), redirected(original))))
    with little_memory():
        loaded = attempt(lambda: load_tensors(path), str(path))
    if loaded is not None:
        tensors, _ = loaded
        assert sum(tensor.nbytes for tensor in tensors.values()) <= path.stat().st_size


@pytest.mark.parametrize(
    "about", ["[" * 10_000, "9" * 5_000, '{"a": ' * 5_000, "NaN", '"\\ud800"', "\x00"], ids=lambda text: text[:3]
)
def test_the_deepest_json_is_refused(folder, about):
    header = {"__metadata__": {"about": about}}
    text = json.dumps(header).encode()
    path = a_file(folder / "deep.safetensors", struct.pack("<Q", len(text)) + text)
    attempt(lambda: load_tensors(path), str(path))
    attempt(lambda: load_model(path, MDNRNN), str(path))
    path = a_file(folder / "deep.json", about.encode())
    attempt(lambda: read_json(path), str(path))


@given(data=st.data())
def test_models_of_strangers(folder, data):
    original = (folder / "good" / "rnn.safetensors").read_bytes()
    path = a_file(folder / "bad.safetensors", data.draw(st.one_of(damaged(original), redirected(original))))
    with little_memory():
        model = attempt(lambda: load_model(path, MDNRNN), str(path))
    if model is not None:
        out, _ = model(torch.zeros(1, 2, model.latent_size), torch.zeros(1, 2, model.action_size))
        assert out.mean.shape == (1, 2, model.latent_size, model.mixtures)


@given(config=st.dictionaries(st.sampled_from(sorted(make_mdnrnn().config)), st.one_of(NUMBERS, st.integers(1, 2**40))))
def test_configs_that_promise_something_else(folder, config):
    model = make_mdnrnn()
    config = {name: value for name, value in config.items() if isinstance(value, bool | int | float | str | None)}
    path = folder / "promise.safetensors"
    save_tensors(path, model.state_dict(), {"model": "MDNRNN", "config": {**model.config, **config}})
    with little_memory():
        loaded = attempt(lambda: load_model(path, MDNRNN), str(path))
    assert loaded is None or loaded.config == model.config


@given(size=st.one_of(NUMBERS, st.integers(-(2**70), 2**70)))
def test_a_v_that_promises_something_else(folder, size):
    if not isinstance(size, bool | int | float | str | None):
        return
    path = folder / "v.safetensors"
    if not path.is_file():
        save_tensors(path, make_vae().state_dict(), {})
    tensors, _ = load_tensors(path)
    save_tensors(path, tensors, {"model": "ConvVAE", "config": {"latent_size": size}})
    with little_memory():
        loaded = attempt(lambda: load_model(path, ConvVAE), str(path))
    assert loaded is None or (loaded.latent_size == 4 and size == 4)


@given(data=st.data())
def test_controllers_and_starts_of_strangers(folder, data):
    original = (folder / "good" / "controller.safetensors").read_bytes()
    path = a_file(folder / "bad.safetensors", data.draw(st.one_of(damaged(original), redirected(original))))
    with little_memory():
        loaded = attempt(lambda: load_controller(path), str(path))
    if loaded is not None:
        controller, params, _ = loaded
        assert params.shape == (controller.size,) and params.dtype == np.float32
    run = folder / "world"
    (run / "rnn").mkdir(parents=True, exist_ok=True)
    a_file(run / "rnn" / "rnn.safetensors", (folder / "good" / "rnn.safetensors").read_bytes())
    original = (folder / "good" / "tensors.safetensors").read_bytes()
    path = a_file(run / "rnn" / "initial.safetensors", data.draw(st.one_of(damaged(original), redirected(original))))
    with little_memory():
        world = attempt(lambda: load_world(run), str(path))
    if world is not None:
        attempt(lambda: wm.Dream(*world, wm.Controller(4, 8, 1)).rollout(np.zeros((1, 20)), 2, max_steps=5))


@given(data=st.data())
def test_latents_of_strangers(folder, data):
    original = (folder / "good" / "latents" / "00000.safetensors").read_bytes()
    (folder / "latents").mkdir(exist_ok=True)
    a_file(folder / "latents" / "00000.safetensors", original)
    path = a_file(
        folder / "latents" / "00001.safetensors", data.draw(st.one_of(damaged(original), redirected(original)))
    )
    with little_memory():
        latents = attempt(lambda: load_latents(folder / "latents"), str(path))
    if latents is not None:
        assert latents.lengths.sum() == len(latents.mu) == len(latents.logvar) == len(latents.rewards)
        assert (latents.lengths > 0).all()
        assert latents.mu.shape == (17 * 2, 3)
        assert (latents.mu.dtype, latents.actions.dtype) == (np.float16, np.float32)


@given(data=st.data())
def test_episodes_of_strangers(folder, data):
    original = (folder / "good" / "episodes" / "00000.h5").read_bytes()
    (folder / "episodes").mkdir(exist_ok=True)
    path = a_file(folder / "episodes" / "00000.h5", data.draw(damaged(original)))
    with little_memory():
        store = attempt(lambda: EpisodeStore(folder / "episodes"), str(path))
        if store is None:
            return
        with contextlib.suppress(OSError):  # a damaged frame, named by the store's own tests
            frames = store.read(np.arange(len(store)))
            assert frames.shape == (12, 64, 64, 3)
        assert list(store.lengths) == [4, 4, 4]
        assert [len(shard.policies) for shard in store.shards] == [3]
        store.close()


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("actions", (2**34, 1), "f4"),
        ("rewards", (2**34,), "f4"),
        ("lengths", (2**34,), "i8"),
        ("terminated", (2**34,), "?"),
        ("frames", (2**34, 64, 64, 3), "u1"),
        ("actions", (), "f4"),
        ("actions", (12,), "f4"),
        ("actions", (12, 1), "S4"),
        ("rewards", (12,), "i4"),
        ("frames", (12, 64, 64), "u1"),
        ("frames", (12, 64, 64, 3), "f8"),
        ("lengths", (3,), "f8"),
        ("terminated", (2,), "?"),
        ("policies", (12,), "f4"),
    ],
)
def test_a_store_cannot_ask_for_more_than_its_file_holds(tmp_path, name, shape, dtype):
    import h5py

    write_store(tmp_path, [make_episode(4, seed) for seed in range(3)], per_shard=3)
    path = tmp_path / "00000.h5"
    with h5py.File(path, "r+") as file:
        del file[name]
        chunks = (1, *shape[1:]) if name == "frames" else (1024, *shape[1:]) if math.prod(shape) > 1e6 else None
        file.create_dataset(name, shape, dtype, chunks=chunks)  # unwritten chunks take no room on disk
    with little_memory():
        assert attempt(lambda: EpisodeStore(tmp_path), str(path)) is None


@pytest.mark.parametrize("lengths", [[-4, 8, 8], [0, 4, 8], [2**62, 2**62, 12 - 2**63]])
def test_lengths_of_a_store_are_lengths(tmp_path, lengths):
    import h5py

    write_store(tmp_path, [make_episode(4, seed) for seed in range(3)], per_shard=3)
    with h5py.File(tmp_path / "00000.h5", "r+") as file:
        file["lengths"][:] = np.array(lengths, np.int64)
    assert attempt(lambda: EpisodeStore(tmp_path), "lengths") is None


SECTIONS = sorted(name for name, value in to_dict(Config()).items() if isinstance(value, dict))
FIELDS = [(section, name) for section in SECTIONS for name in to_dict(Config())[section]]


@given(values=st.one_of(JSON, st.dictionaries(st.sampled_from(sorted(to_dict(Config()))), JSON)))
def test_configs_of_strangers(values):
    config = attempt(lambda: from_dict(values))
    if config is not None:
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@given(field=st.sampled_from(FIELDS), value=st.one_of(JSON, NUMBERS))
def test_a_setting_is_taken_as_it_is_or_refused_by_name(field, value):
    section, name = field
    config = attempt(lambda: override(Config(), {section: {name: value}}), f"{section}.{name}")
    if config is not None:
        assert from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False))) == config


@given(lines=st.lists(st.one_of(st.binary(max_size=20), JSON.map(lambda value: json.dumps(value).encode()))))
def test_metrics_with_anything_between_their_lines(folder, lines):
    run = folder / "run"
    with Experiment(run, toy_config()) as experiment:
        (run / "metrics.jsonl").write_bytes(b"")
        experiment.log("evolve", generation=1, best=2.0)
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(b"\n".join([*lines, b""]))
            file.write(b'{"stage": "evolve", "generation": "1"}\n' + b"[" * 5_000 + b"\n")
        experiment.log("evolve", generation=2, best=3.0)
        assert {"stage": "evolve", "generation": 2, "best": 3.0} in experiment.metrics("evolve")
        experiment.rewind_metrics("evolve", 1, "generation")
        kept = experiment.metrics("evolve")
        assert {"stage": "evolve", "generation": 1, "best": 2.0} in kept
        assert {"stage": "evolve", "generation": 2, "best": 3.0} not in kept


@given(data=st.data())
def test_markers_of_strangers(folder, data):
    run = folder / "marked"
    with Experiment(run, toy_config()) as experiment:
        mark_done(experiment, "collect")
        path = experiment.marker("collect")
    good = path.read_bytes()
    a_file(path, data.draw(st.one_of(damaged(good), JSON.map(lambda value: json.dumps(value).encode()))))
    try:
        experiment = attempt(lambda: Experiment(run), str(run))
        if experiment is not None:
            with experiment:
                attempt(lambda: experiment.summary("collect"), str(run))
    finally:
        a_file(path, good)


@given(data=st.data())
def test_json_of_strangers(folder, data):
    path = folder / "some.json"
    write_json(path, {"a": [1, 2.5, None], "b": {"c": "text"}})
    a_file(path, data.draw(damaged(path.read_bytes())))
    attempt(lambda: read_json(path), str(path))


# Callers

MODEL = make_mdnrnn()
STARTS = np.zeros((3, 4), np.float32), np.full((3, 4), -2, np.float32)
SHAPE = wm.Controller(4, 8, 1)
DREAM = wm.Dream(MODEL, *STARTS, SHAPE, max_steps=20)
FLOATS = [np.float16, np.float32, np.float64, np.dtype(">f4"), np.dtype(">f8"), np.longdouble]


@st.composite
def laid_out(draw, shape, dtypes=FLOATS, finite=True):
    """An array of a shape in any layout: transposed, reversed, with gaps, repeated, misaligned, read-only."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    size = math.prod(shape)
    values = draw(
        hnp.arrays(np.float64, size, elements=st.floats(-4, 4, width=16) if finite else st.floats(width=32))
    ).reshape(shape)
    with np.errstate(all="ignore"):
        plain = values.astype(dtype)
    match draw(st.sampled_from(["plain", "fortran", "reversed", "gaps", "misaligned", "repeated", "read-only"])):
        case "fortran":
            return np.asfortranarray(plain)
        case "reversed":
            return plain[::-1].copy()[::-1]
        case "gaps":
            return np.repeat(plain, 2, axis=0)[::2]
        case "misaligned":
            buffer = np.zeros(plain.nbytes + 1, np.uint8)[1:]
            out = buffer.view(dtype).reshape(shape) if plain.size else plain
            out[...] = plain
            return out
        case "repeated":
            return np.broadcast_to(plain[:1], shape)
        case "read-only":
            plain.flags.writeable = False
    return plain


ANY_ARRAY = st.one_of(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), st.sampled_from(FLOATS)),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=21),
        fill=st.nothing(),
    ),
    st.sampled_from([None, "params", [[1.0], [1.0, 2.0]], [[None] * 20], {}, torch.zeros(1, 20, requires_grad=True)]),
    st.sampled_from([np.zeros((0, 20)), np.zeros((1, 0)), np.broadcast_to(np.float32(0), (2**31, 20))[:, :0]]),
)


@given(params=st.integers(1, 5).flatmap(lambda rows: laid_out((rows, 20))), common=st.booleans())
def test_params_of_any_layout_play_as_their_plain_copy(params, common):
    plain = np.array(params, np.float32, order="C")
    expected = DREAM.rollout(plain, 3, seed=1, common_seeds=common, num_threads=1)
    result = DREAM.rollout(params, 3, seed=1, common_seeds=common)
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
                params, episodes, seed=seed, num_threads=threads, max_steps=steps, common_seeds=common
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


@given(candidate=NUMBERS, episode=NUMBERS, steps=NUMBERS, seed=NUMBERS)
def test_any_numbers_of_a_trace(candidate, episode, steps, seed):
    trace = attempt(lambda: DREAM.trace(np.zeros(20), candidate=candidate, episode=episode, seed=seed, max_steps=steps))
    assert trace is None or len(trace.z) == len(trace.action) + 1


@given(
    array=ANY_ARRAY,
    call=st.sampled_from(
        [
            lambda core, a: _core.elementwise("baseline", "exp", a),
            lambda core, a: _core.tile_product("baseline", a, a),
            lambda core, a: _core.DreamStepper(core, 3).step(0, 1.0, a, 1),
            lambda core, a: _core.DreamStepper(core, 3).reset(0, a, np.ones(3, bool)),
            lambda core, a: _core.DreamStepper(core, 3).reset(0, np.zeros(3, np.uint32), a),
            lambda core, a: _core.Cmaes(a, 1.0, 4, 0, True, False),
        ]
    ),
)
def test_anything_at_the_bindings(array, call):
    try:
        call(DREAM._model, array)
    except (ValueError, TypeError, IndexError) as error:
        assert str(error)


@pytest.mark.parametrize("order", ["C", "misaligned"])
def test_bindings_refuse_what_does_not_lie_on_a_boundary(order):
    array = np.zeros((1, 20), np.float32)
    if order == "misaligned":
        array = np.zeros(81, np.uint8)[1:].view(np.float32).reshape(1, 20)
    arguments = (DREAM._model, DREAM._shape, array, 1, 0, False, 1.0, 5, 1)
    if order == "C":
        assert _core.rollout(*arguments)[0].shape == (1, 1)
    else:
        with pytest.raises(ValueError, match=r"^params: expected \(P, 20\) float32, got .* not aligned"):
            _core.rollout(*arguments)


HUGE = """
import resource, sys
import numpy as np
import worldmodels as wm
from worldmodels.envs.dream import DreamVectorEnv
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
    code = HUGE.format(calls=TOO_LARGE, tests=str(Path(__file__).parent))
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
            assert "decomposition" in str(error), repr(error)


@given(asked=st.booleans(), key=st.data())
def test_a_state_without_a_key_is_refused(asked, key):
    state = worn_in(asked).state_dict()
    name = key.draw(st.sampled_from(sorted(state)))
    del state[name]
    assert attempt(lambda: wm.CMAES(np.zeros(3), 1.0).load_state_dict(state), name) is None
