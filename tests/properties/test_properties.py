"""Whatever comes in from files: it works as its plain form does, or is refused in so many words.

`HYPOTHESIS_PROFILE=long pytest tests/properties --timeout=0` looks for as long as it takes, at random.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import worldmodels as wm
from conftest import make_episode, make_latents, make_mdnrnn, make_vae, mark_done, toy_config, write_store
from measurements import MEASURED, draw, read, write_out
from refusals import a_file, attempt, little_memory, without_checksum
from strategies import JSON, NUMBERS, edited
from worldmodels.analysis import figures
from worldmodels.data.episodes import FORMAT, EpisodeStore
from worldmodels.data.latents import load_latents
from worldmodels.data.records import TrainingLine
from worldmodels.dream.world_model import load_burned_in_states, load_world_model
from worldmodels.models.agent import load_controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model, load_tensors, save_model, save_tensors
from worldmodels.pipeline.config import Config, from_dict, override, to_dict
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.scores import read_scores
from worldmodels.support.files import read_json, write_json

_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U64", "BOOL", "C64", "F8_E4M3")


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
    midway = {"mu": (5, 4), "logvar": (5, 4), "h": (5, 8), "c": (5, 8)}
    save_tensors(good / "midway.safetensors", {name: torch.randn(shape) for name, shape in midway.items()}, {})
    write_store(good / "episodes", [make_episode(4, seed) for seed in range(3)], per_shard=3)
    return folder


@given(data=st.data())
def test_safetensors_of_strangers(folder, data):
    original = without_checksum(folder / "good" / "tensors.safetensors")
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
    original = without_checksum(folder / "good" / "rnn.safetensors")
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
    original = without_checksum(folder / "good" / "controller.safetensors")
    path = a_file(folder / "bad.safetensors", data.draw(st.one_of(damaged(original), redirected(original))))
    with little_memory():
        loaded = attempt(lambda: load_controller(path), str(path))
    if loaded is not None:
        controller, params, _ = loaded
        assert params.shape == (controller.size,) and params.dtype == np.float32
    run = folder / "world"
    (run / "rnn").mkdir(parents=True, exist_ok=True)
    a_file(run / "rnn" / "rnn.safetensors", without_checksum(folder / "good" / "rnn.safetensors"))
    original = without_checksum(folder / "good" / "tensors.safetensors")
    path = a_file(run / "rnn" / "initial.safetensors", data.draw(st.one_of(damaged(original), redirected(original))))
    with little_memory():
        world = attempt(lambda: load_world_model(run), str(path))
    if world is not None:
        attempt(lambda: wm.Dream(*world, wm.Controller(4, 8, 1)).rollout(np.zeros((1, 20)), 2, max_steps=5))


@given(data=st.data())
def test_starts_midway_of_strangers(folder, data):
    model = make_mdnrnn()
    original = without_checksum(folder / "good" / "midway.safetensors")
    (folder / "midway" / "rnn").mkdir(parents=True, exist_ok=True)
    path = folder / "midway" / "rnn" / "midway.safetensors"
    a_file(path, data.draw(st.one_of(damaged(original), redirected(original))))
    with little_memory():
        midway = attempt(lambda: load_burned_in_states(folder / "midway", model), str(path))
    if midway is not None:
        memory = {"initial_h": midway["h"], "initial_c": midway["c"]}
        assert memory["initial_h"].shape == memory["initial_c"].shape == (len(midway["mu"]), model.hidden_size)
        starts = midway["mu"], midway["logvar"]
        dream = attempt(lambda: wm.Dream(model, *starts, wm.Controller(4, 8, 1), **memory), "initial_")
        assert dream is None or np.isfinite(dream.rollout(np.zeros((1, 20)), 2, max_steps=5).returns).all()


@pytest.mark.parametrize(
    "shapes",
    [
        {"mu": (), "logvar": (), "h": (), "c": ()},
        {"mu": (3, 4), "logvar": (3, 4), "h": (3, 8), "c": (3, 7)},
        {"mu": (3, 4), "logvar": (3, 5), "h": (3, 8), "c": (3, 8)},
        {"mu": (3,), "logvar": (3,), "h": (3,), "c": (3,)},
        {},
    ],
    ids=str,
)
def test_starts_midway_that_do_not_fit_m(tmp_path, shapes):
    path = tmp_path / "rnn" / "midway.safetensors"
    save_tensors(path, {name: torch.zeros(shape) for name, shape in shapes.items()}, {})
    with pytest.raises(ValueError, match=r"midway\.safetensors: expected mu and logvar, each \(K, 4\), and h and c"):
        load_burned_in_states(tmp_path, make_mdnrnn())


def test_complex_weights_are_refused(tmp_path):
    path = tmp_path / "tensors.safetensors"
    save_tensors(path, {"params": torch.zeros(20, dtype=torch.complex64)}, {})
    with pytest.raises(
        ValueError, match=r"tensors\.safetensors: expected real numbers in params, got torch\.complex64"
    ):
        load_tensors(path)


@given(data=st.data())
def test_latents_of_strangers(folder, data):
    original = without_checksum(folder / "good" / "latents" / "00000.safetensors")
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


def test_a_damaged_heap_of_strings_is_refused(tmp_path):
    """HDF5 2.0 follows an object that takes no room for ever; shards had strings of any length once."""
    import h5py

    write_store(tmp_path, [make_episode(4, seed) for seed in range(3)], per_shard=3)
    path = tmp_path / "00000.h5"
    with h5py.File(path, "r+") as file:
        del file["policies"]
        file.attrs["format"] = FORMAT
        file["policies"] = ["noop", "uniform", "noop"]
    store = EpisodeStore(tmp_path)
    assert store.shards[0].policies == ["noop", "uniform", "noop"]
    store.close()
    good = path.read_bytes()
    place = good.index(b"GCOL\x01") + 16
    for damage in (bytes(24), b"\x01\0\0\0\0\0\0\0" + b"\xff" * 8, bytes(8) + b"\xff" * 8):
        a_file(path, good[:place] + damage + good[place + len(damage) :])
        with pytest.raises(
            ValueError, match=rf"00000\.h5: expected strings, got a damaged heap of them at byte {place}"
        ):
            EpisodeStore(tmp_path)


def test_a_store_keeps_no_heap_of_strings(tmp_path):
    write_store(tmp_path, [make_episode(4)])
    assert b"GCOL" not in (tmp_path / "00000.h5").read_bytes()


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "chunks"),
    [("policies", (3,), "S1000000000", (1,)), ("frames", (12, 64, 64, 3), "u1", (2**16, 64, 64, 3))],
)
def test_a_store_unpacks_no_more_than_its_file_holds(tmp_path, name, shape, dtype, chunks):
    import h5py

    write_store(tmp_path, [make_episode(4, seed) for seed in range(3)], per_shard=3)
    path = tmp_path / "00000.h5"
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, shape, dtype, chunks=chunks, maxshape=(None, *shape[1:]), compression="gzip")
    with pytest.raises(ValueError, match=rf"00000\.h5: expected {name}"):
        EpisodeStore(tmp_path)


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
    with Run(run, toy_config()) as experiment:
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
    with Run(run, toy_config()) as experiment:
        mark_done(experiment, "collect")
        path = experiment.marker("collect")
    good = path.read_bytes()
    a_file(path, data.draw(st.one_of(damaged(good), JSON.map(lambda value: json.dumps(value).encode()))))
    try:
        experiment = attempt(lambda: Run(run), str(run))
        if experiment is not None:
            with experiment:
                attempt(lambda: experiment.summary("collect"), str(run))
    finally:
        a_file(path, good)


@pytest.mark.parametrize("name", MEASURED)
@given(data=st.data())
def test_measurements_of_strangers(folder, name, data):
    path = a_file(folder / f"{name}.json", json.dumps(data.draw(edited(MEASURED[name]))).encode())
    value = attempt(lambda: read(name, path), str(path))
    if value is not None:
        write_out(value)
        if data.draw(st.integers(0, 9)) == 0:  # takes most of a second
            draw(value, folder / "picture.png")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "results",
            {"agent": {"scores": [], "mean": 1.0, "std": 0.0, "ci95": [0, 1]}},
            "agent.scores: expected a list",
        ),
        ("results", {"random": None}, "random: expected an object with policy, scores, mean, std, ci95, got None"),
        ("results", {"dream": {"temperature": 1.0}}, "dream: expected an object with score, got "),
        (
            "results",
            {"full gas": {"policy": "full gas"}},
            "full gas: expected an object with policy, scores, mean, std, ci95, got ",
        ),
        ("check", {"policies": {"left": {"dream": 3}}}, "policies.left: expected an object with dream, game, got "),
        (
            "vae",
            {"pixels": {"all": {"share": 0.5}}},
            "pixels.all: expected an object with share, error, mean_picture, ",
        ),
        ("vae", {"frames": float("nan")}, "frames: expected a number below 1e100, got nan"),
        ("rnn", {"z_dimensions": [1.0, True]}, r"z_dimensions\[1\]: expected a number below 1e100, got True"),
        ("episode", {"positions": [[1.0]]}, r"positions\[0\]: expected a pair, got \[1.0\]"),
    ],
)
def test_measurements_are_refused_by_their_place(tmp_path, name, change, says):
    write = a_file(tmp_path / "some.json", json.dumps(MEASURED[name] | change).encode())
    with pytest.raises(ValueError, match=rf"some\.json: {says}"):
        read(name, write)


@settings(max_examples=max(8, settings.default.max_examples // 5))  # a picture takes its time
@given(lines=st.lists(edited({"stage": "train-rnn", "step": 3, "z": 1.5, "validation_z": 1.6, "done": 0.1})))
def test_lines_of_training_are_drawn_as_far_as_they_fit(folder, lines):
    good = {"stage": "train-rnn", "step": 1, "z": 2.0, "done": 0.3}
    with Run(folder / "trained", toy_config()) as experiment:
        text = "".join(json.dumps(line) + "\n" for line in [*lines, good])
        (folder / "trained" / "metrics.jsonl").write_text(text)
        fitting = TrainingLine.from_lines(experiment.metrics("train-rnn"))
    assert fitting[-1] == TrainingLine(step=1, z=2.0, done=0.3)
    figures.losses(folder / "losses.png", [], fitting)


@given(lines=st.lists(edited({"episode": 1, "score": 2.5}), min_size=1))
def test_scores_of_strangers(folder, lines):
    text = "".join(json.dumps(line) + "\n" for line in [{"seed": 0}, {"episode": 0, "score": 1.0}, *lines])
    scores = read_scores(a_file(folder / "scores.jsonl", b"\xff\n" + text.encode()), {"seed": 0})
    assert all(isinstance(episode, int) and math.isfinite(score) for episode, score in scores.items())
    assert 0 in scores


@given(data=st.data())
def test_json_of_strangers(folder, data):
    path = folder / "some.json"
    write_json(path, {"a": [1, 2.5, None], "b": {"c": "text"}})
    a_file(path, data.draw(damaged(path.read_bytes())))
    attempt(lambda: read_json(path), str(path))
