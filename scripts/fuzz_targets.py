"""The targets of scripts/fuzz.py: each makes of any bytes a call that must work or be refused by name.

python scripts/fuzz_targets.py TARGET SCRATCH [folders and options of libFuzzer]
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import struct
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atheris
import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
with atheris.instrument_imports(include=["worldmodels"]):
    import worldmodels as wm
    from conftest import make_episode, make_latents, make_mdnrnn, make_vae, mark_done, toy_config, write_store
    from measurements import MEASURED, draw, read, write_out
    from refusals import REFUSALS, STRANGE, a_file, attempt, little_memory, without_checksum
    from worldmodels.data.episodes import EpisodeStore
    from worldmodels.data.latents import load_latents
    from worldmodels.dream.world_model import load_burned_in_states, load_world_model
    from worldmodels.models.agent import Agent, load_controller
    from worldmodels.models.decoder import Decoder
    from worldmodels.models.encoder import Encoder
    from worldmodels.models.lstm_state import LSTMState
    from worldmodels.models.mdnrnn import MDNRNN
    from worldmodels.models.weights import load_model, load_tensors, save_model, save_tensors
    from worldmodels.pipeline.config import Config, from_dict, override, to_dict
    from worldmodels.pipeline.run import Run
    from worldmodels.pipeline.scores import read_scores
    from worldmodels.support.files import read_json, write_json

Provider = atheris.FuzzedDataProvider
LOADERS = (ValueError, TypeError, FileNotFoundError)  # a small file is no reason for a MemoryError
KINDS = ["?", "i1", "u1", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">f4", "c8", "S3", "M8[s]", np.longdouble]


@dataclass
class Target:
    """A function of any bytes, and what helps to find those that matter.

    Attributes:
        run: takes the bytes and a folder.
        seeds: given the folder, inputs to begin with; it also writes the files that `run` finds there.
        mutate: in place of libFuzzer's own mutations.
        megabytes: that a single input may allocate.
    """

    run: Callable[[bytes, Path], object]
    seeds: Callable[[Path], list[bytes]] = lambda _: [bytes(range(256))]
    mutate: Callable[[bytes, int, int], bytes] | None = None
    megabytes: int = 256


# What the bytes are made into


def strange(fdp: Provider) -> Any:
    """A number, or what is none."""
    match fdp.ConsumeIntInRange(0, 3):
        case 0:
            return fdp.PickValueInList(STRANGE)
        case 1:
            return fdp.ConsumeFloat()
        case 2:
            return fdp.ConsumeInt(9)
    return fdp.ConsumeIntInRange(-2, 20)


def some_json(fdp: Provider, depth: int = 3) -> Any:
    """A JSON value."""
    match fdp.ConsumeIntInRange(0, 7 if depth else 5):
        case 0:
            return fdp.PickValueInList([None, True, False, 0, 1, -1, 10**400, math.nan, math.inf, 1e308, "", [], {}])
        case 1:
            return fdp.ConsumeInt(9)
        case 2 | 3:
            return fdp.ConsumeFloat()
        case 4 | 5:
            return fdp.ConsumeUnicodeNoSurrogates(fdp.ConsumeIntInRange(0, 8))
        case 6:
            return [some_json(fdp, depth - 1) for _ in range(fdp.ConsumeIntInRange(0, 3))]
    return {fdp.ConsumeUnicodeNoSurrogates(4): some_json(fdp, depth - 1) for _ in range(fdp.ConsumeIntInRange(0, 3))}


def edited(fdp: Provider, value: Any) -> Any:
    """A JSON value with one place of it replaced, dropped or repeated."""
    if not value or not isinstance(value, dict | list) or fdp.ConsumeIntInRange(0, 7) == 0:
        return some_json(fdp)
    place = fdp.PickValueInList(sorted(value) if isinstance(value, dict) else list(range(len(value))))
    value = value.copy()
    match fdp.ConsumeIntInRange(0, 7):
        case 0:
            del value[place]
        case 1 if isinstance(value, list):
            value = value[: place + 1] * 2
        case _:
            value[place] = edited(fdp, value[place])
    return value


def an_array(fdp: Provider, shape: tuple[int, ...], kind: Any) -> Any:
    """An array, mostly of this shape and kind, of any bytes and in any layout; now and then something else."""
    sizes = list(shape)
    match fdp.ConsumeIntInRange(0, 15):
        case 0 if sizes:
            sizes[fdp.ConsumeIntInRange(0, len(sizes) - 1)] = fdp.ConsumeIntInRange(0, 9)
        case 1:
            sizes.append(fdp.ConsumeIntInRange(0, 2))
        case 2 if sizes:
            sizes.pop()
        case 3:
            return fdp.PickValueInList([*STRANGE, [[1.0], [1.0, 2.0]], [[None] * 4], torch.ones(2, requires_grad=True)])
    dtype = np.dtype(fdp.PickValueInList(KINDS) if fdp.ConsumeIntInRange(0, 7) == 0 else kind)
    size = math.prod(sizes) * dtype.itemsize
    filled = fdp.ConsumeBytes(min(size, fdp.ConsumeIntInRange(0, 4096)))
    array = np.frombuffer(filled.ljust(size, filled[-1:] or b"\0"), dtype).reshape(sizes)
    match fdp.ConsumeIntInRange(0, 7):
        case 0:
            return np.asfortranarray(array)
        case 1 if array.ndim:
            return array[::-1]
        case 2 if array.ndim:
            return np.repeat(array, 2, axis=0)[::2]
        case 3 if array.ndim and len(array):
            return np.broadcast_to(array[:1], (fdp.PickValueInList([1, 2, 2**20, 2**31]), *array.shape[1:]))
        case 4:
            return np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(dtype).reshape(sizes)
    return array


def mutate_header(data: bytes, most: int, seed: int) -> bytes:
    """Changes the header of a safetensors file, whose length stays right; every other time, any bytes."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if seed % 2 or not 0 < size <= len(data) - 8:
        return atheris.Mutate(data, most)
    header, body = data[8 : 8 + size], data[8 + size :]
    if random.Random(seed).random() < 0.5:  # a valid header that says something else
        with contextlib.suppress(ValueError, RecursionError):
            header = json.dumps(edited(Provider(random.Random(seed).randbytes(256)), json.loads(header))).encode()
    else:
        header = atheris.Mutate(header, max(most - len(body) - 8, 1))
    return struct.pack("<Q", len(header)) + header + body


# Files


def tensors(data: bytes, folder: Path) -> None:
    path = a_file(folder / "tensors.safetensors", data)
    loaded = attempt(lambda: load_tensors(path), str(path), LOADERS)
    assert loaded is None or sum(tensor.nbytes for tensor in loaded[0].values()) <= len(data)
    attempt(lambda: load_controller(path), str(path), LOADERS)
    attempt(lambda: load_model(path, MDNRNN), str(path), LOADERS)


def tensor_files(folder: Path) -> list[bytes]:
    save_tensors(folder / "a.safetensors", {"mu": torch.ones(5, 4), "step": torch.tensor([3])}, {"frames": 5})
    shape = {"latent_size": 4, "hidden_size": 8, "action_size": 1}
    save_tensors(folder / "b.safetensors", {"params": torch.zeros(20)}, {"config": shape})
    save_model(folder / "c.safetensors", make_mdnrnn(2, 2, mixtures=1))
    return [without_checksum(folder / f"{name}.safetensors") for name in "abc"]


def world(data: bytes, folder: Path) -> None:
    name = "midway" if data[:1] == b"m" else "initial"
    path = a_file(folder / "rnn" / f"{name}.safetensors", data[1:])
    try:
        loaded = attempt(lambda: load_world_model(folder), str(path), LOADERS)
        if loaded is None:
            return
        midway = attempt(lambda: load_burned_in_states(folder, loaded.mdnrnn), str(path), LOADERS)
        starts = loaded[1:] if midway is None else (midway["mu"], midway["logvar"])
        memory = {} if midway is None else {f"initial_{key}": midway[key] for key in "hc"}
        shape = wm.Controller(4, 8, 1)
        dream = attempt(lambda: wm.Dream(loaded.mdnrnn, *starts, shape, **memory), "initial_")
        if dream is not None:
            dream.rollout(np.zeros((1, shape.size)), 2, max_steps=5)
    finally:
        (folder / "rnn" / "midway.safetensors").unlink(missing_ok=True)
        a_file(folder / "rnn" / "initial.safetensors", (folder / "good").read_bytes())


def worlds(folder: Path) -> list[bytes]:
    save_model(folder / "rnn" / "rnn.safetensors", make_mdnrnn())
    first = {"mu": torch.ones(3, 4), "logvar": torch.ones(3, 4)}
    save_tensors(folder / "good", first, {})
    save_tensors(folder / "midway", first | {"h": torch.ones(3, 8), "c": torch.ones(3, 8)}, {})
    return [b"i" + without_checksum(folder / "good"), b"m" + without_checksum(folder / "midway")]


def mutate_world(data: bytes, most: int, seed: int) -> bytes:
    return data[:1] + mutate_header(data[1:], most - 1, seed)


def latents(data: bytes, folder: Path) -> None:
    path = a_file(folder / "latents" / "00000.safetensors", data)
    found = attempt(lambda: load_latents(path.parent), str(path), LOADERS)
    if found is not None:
        assert found.lengths.sum() == len(found.mu) == len(found.logvar) == len(found.rewards) > 0


def latent_files(folder: Path) -> list[bytes]:
    make_latents([5, 3, 9]).save(folder / "latents" / "00000.safetensors")
    return [without_checksum(folder / "latents" / "00000.safetensors")]


def read_store(folder: Path, path: Path) -> None:
    store = attempt(lambda: EpisodeStore(folder), str(path), LOADERS)
    if store is None:
        return
    with contextlib.suppress(OSError):  # a damaged frame, named by the store's own tests
        store.read(np.arange(min(len(store), 20)))
        for episode in store.episodes():
            assert len(episode.frames) == len(episode.rewards) == len(episode.actions)
    store.close()


def shard(data: bytes, folder: Path) -> None:
    read_store(folder, a_file(folder / "00000.h5", data))


def shards(folder: Path) -> list[bytes]:
    plain = make_episode(2)
    plain.frames[:] = 0  # so that the file is small
    write_store(folder, [plain, plain])
    return [(folder / "00000.h5").read_bytes()]


def datasets(data: bytes, folder: Path) -> None:
    """A shard in which some data sets are other ones: HDF5's own checksums hide most of what `shard` changes."""
    fdp, path = Provider(data), a_file(folder / "00000.h5", (folder / "good").read_bytes())
    with h5py.File(path, "r+") as file:
        for _ in range(fdp.ConsumeIntInRange(1, 2)):
            name = fdp.PickValueInList(["frames", "actions", "rewards", "lengths", "terminated", "policies", "seeds"])
            if name not in file:
                continue
            old = file[name]
            shape, kind = list(old.shape), old.dtype
            for _ in range(fdp.ConsumeIntInRange(0, 2) if shape else 0):
                axis = fdp.ConsumeIntInRange(0, len(shape) - 1)
                shape[axis] = fdp.PickValueInList([0, 1, 2, 3, 4, 64, 2**20, 2**34, 2**62])
            if fdp.ConsumeIntInRange(0, 3) == 0:
                shape = shape[:-1] if fdp.ConsumeBool() else [*shape, 1]
            if fdp.ConsumeBool():
                kind = fdp.PickValueInList(
                    ["f4", "f8", "i8", "u1", "?", "S4", "S1000000000", h5py.string_dtype(), ">f4"]
                )
            values = fdp.ConsumeBytes(4096) if fdp.ConsumeBool() else b""
            chunks = None
            if shape and (math.prod(shape) > 1e5 or fdp.ConsumeBool()):
                large = fdp.ConsumeIntInRange(0, 20)
                chunks = (max(1, min(shape[0], 2**large)), *(max(1, min(size, 64)) for size in shape[1:]))
            packed = fdp.PickValueInList([None, "gzip", "lzf"]) if chunks else None
            del file[name]
            with contextlib.suppress(ValueError, TypeError, OSError):  # h5py does not write everything
                file.create_dataset(name, shape, kind, chunks=chunks, compression=packed)
                if values and 0 < math.prod(shape) * file[name].dtype.itemsize <= len(values):
                    size = math.prod(shape) * file[name].dtype.itemsize
                    file[name][...] = np.frombuffer(values[:size], file[name].dtype).reshape(shape)
    read_store(folder, path)


def good_shard(folder: Path) -> list[bytes]:
    a_file(folder / "good", shards(folder)[0])
    return [bytes(range(256))]


GOOD = to_dict(Config())


def config(data: bytes, folder: Path) -> None:
    fdp = Provider(data)
    values = edited(fdp, edited(fdp, GOOD))
    read = attempt(lambda: from_dict(values), "", LOADERS)
    if read is not None:
        assert from_dict(json.loads(json.dumps(to_dict(read), allow_nan=False))) == read
    section = fdp.PickValueInList([name for name in GOOD if isinstance(GOOD[name], dict)])
    name = fdp.PickValueInList(sorted(GOOD[section]))
    attempt(lambda: override(Config(), {section: {name: some_json(fdp)}}), f"{section}.{name}", LOADERS)
    path = a_file(folder / "some.json", fdp.ConsumeBytes(512))
    attempt(lambda: read_json(path), str(path), LOADERS)


def run_folder(data: bytes, folder: Path) -> None:
    """Markers and metrics of a run folder."""
    fdp, run = Provider(data), folder / "run"
    with Run(run, toy_config()) as experiment:
        mark_done(experiment, "collect")
        path = experiment.marker("collect")
        good = read_json(path)
        try:
            path.write_text(json.dumps(edited(fdp, good)))
            opened = attempt(lambda: experiment.is_done("collect"), str(run), LOADERS)
            if opened is not None:
                attempt(lambda: experiment.summary("collect"), str(run), LOADERS)
        finally:
            write_json(path, good)
        (run / "metrics.jsonl").write_bytes(fdp.ConsumeBytes(256) + b"\n" + json.dumps(some_json(fdp)).encode() + b"\n")
        experiment.log("evolve", generation=1)
        experiment.rewind_metrics("evolve", 1, "generation")
        assert {"stage": "evolve", "generation": 1} in experiment.metrics("evolve")


def measured(data: bytes, folder: Path) -> None:
    """What the report reads, writes out and, of some inputs, draws: pictures take most of a second."""
    fdp = Provider(data)
    name, drawn = fdp.PickValueInList(sorted(MEASURED)), fdp.ConsumeIntInRange(0, 15) == 0
    path = a_file(folder / f"{name}.json", json.dumps(edited(fdp, edited(fdp, MEASURED[name]))).encode())
    value = attempt(lambda: read(name, path), str(path), LOADERS)
    if value is not None:
        write_out(value)
        if drawn:
            draw(value, folder / "picture.png")
    scores = a_file(folder / "scores.jsonl", b'{"seed": 0}\n{"episode": 0, "score": 1}\n' + fdp.ConsumeBytes(128))
    assert read_scores(scores, {"seed": 0})


# Callers

MODEL, SHAPE = make_mdnrnn(), wm.Controller(4, 8, 1)
STARTS = np.zeros((3, 4), np.float32), np.full((3, 4), -2, np.float32)


def cmaes(data: bytes, folder: Path) -> None:
    fdp = Provider(data)
    run = wm.CMAES(np.ones(3), 0.5, popsize=6, seed=1, num_threads=1, separable=fdp.ConsumeBool())
    for _ in range(2):
        run.tell(run.ask(), np.arange(6))
    if fdp.ConsumeBool():
        run.ask()
    state = run.state_dict()
    for _ in range(fdp.ConsumeIntInRange(1, 3)):
        name = fdp.PickValueInList(sorted(state))
        value = state[name]
        match fdp.ConsumeIntInRange(0, 3):
            case 0:
                state.pop(name)
            case 1 if isinstance(value, np.ndarray) and value.size:
                state[name] = value.astype(np.float64)
                state[name].reshape(-1)[fdp.ConsumeIntInRange(0, value.size - 1)] = fdp.ConsumeFloat()
            case 2 if isinstance(value, np.ndarray):
                state[name] = an_array(fdp, value.shape, np.float64)
            case _:
                state[name] = strange(fdp)
        if name not in state:
            break
    es = wm.CMAES(np.zeros(3), 1.0, popsize=6, seed=2, num_threads=1)
    before = es.state_dict()
    try:
        if attempt(lambda: es.load_state_dict(state) or True) is None:
            assert all(np.array_equal(before[key], value, equal_nan=True) for key, value in es.state_dict().items())
        elif es.popsize < 1000:
            for _ in range(3):
                es.tell(es.ask(), np.arange(es.popsize))
                es.stop()
    except RuntimeError as error:  # C that no decomposition exists for, or steps beyond float64, told at the next ask
        assert "could not be decomposed" in str(error) or "beyond float64" in str(error), repr(error)


def dream(data: bytes, folder: Path) -> None:
    fdp = Provider(data)
    mu, logvar = (an_array(fdp, (3, 4), "f4") for _ in range(2))
    memory = {f"initial_{key}": an_array(fdp, (3, 8), "f4") for key in "hc" if fdp.ConsumeBool()}
    numbers = {"temperature": strange(fdp), "max_steps": strange(fdp)} if fdp.ConsumeBool() else {}
    made = attempt(lambda: wm.Dream(MODEL, mu, logvar, SHAPE, **memory, **numbers))
    params = an_array(fdp, (fdp.ConsumeIntInRange(1, 5), 20), "f4")
    rows = len(params) if isinstance(params, np.ndarray) and params.ndim else 1
    episodes, steps = strange(fdp), fdp.ConsumeIntInRange(-1, 20)
    whole = isinstance(episodes, int | np.integer) and episodes > 0
    if whole and 2**12 < rows * int(episodes) < 2**31:
        return  # would be played
    made = made or wm.Dream(MODEL, *STARTS, SHAPE)
    options = {"seed": strange(fdp), "num_threads": strange(fdp)} if fdp.ConsumeBool() else {}
    played = attempt(lambda: made.rollout(params, episodes, max_steps=steps, **options))
    if played is not None:
        assert played.returns.shape == played.lengths.shape == (len(params), episodes)
        assert ((played.lengths >= 1) & (played.lengths <= steps)).all() and np.isfinite(played.returns).all()
    attempt(lambda: made.trace(np.zeros(20), max_steps=steps, episode=strange(fdp), candidate=strange(fdp)))


def memory(data: bytes, folder: Path) -> None:
    fdp, count = Provider(data), 3
    kept = attempt(lambda: LSTMState(MODEL, strange(fdp), strange(fdp)))
    if kept is None or len(kept.h) > 100:
        kept = LSTMState(MODEL, count, 1)
    slots = np.arange(count) if fdp.ConsumeBool() else an_array(fdp, (count,), "i8")
    arrays = an_array(fdp, (count, 4), "f4"), an_array(fdp, (count, 1), "f4"), an_array(fdp, (count,), "?")
    h = kept.h.copy()
    stepped = attempt(lambda: kept.step(slots, *arrays) or True)
    if stepped is None:
        assert np.array_equal(h, kept.h)
        return
    plain = LSTMState(MODEL, len(h), 1)
    z, actions, restart = (np.array(array, order="C") for array in arrays)
    plain.step(np.array(slots), z.astype(np.float32), actions.astype(np.float32), restart)
    assert np.array_equal(plain.h, kept.h) and np.array_equal(plain.c, kept.c)


VAE = make_vae()
CPU = torch.device("cpu")
ENCODERS = [Encoder(VAE, CPU, num_threads=1)]


def encoder(data: bytes, folder: Path) -> None:
    fdp = Provider(data)
    pictures = an_array(fdp, (fdp.ConsumeIntInRange(1, 3), 64, 64, 3), "u1")
    if isinstance(pictures, np.ndarray) and pictures.size > 2**20:
        return  # would be encoded
    found = attempt(lambda: ENCODERS[0](pictures), "frames")
    if found is not None:
        plain = ENCODERS[0](np.array(pictures, order="C"))
        assert all(np.array_equal(*pair) and np.isfinite(pair[0]).all() for pair in zip(found, plain, strict=True))
    shapes = [(32, 3, 4, 4), (64, 32, 4, 4), (4, 1024), (4,)]
    weights = an_array(fdp, fdp.PickValueInList(shapes), "f4")
    place = fdp.ConsumeIntInRange(0, 5)
    arguments = [[np.zeros((32, 3, 4, 4), "f4")] * 4, [np.zeros(32, "f4")] * 4, *[np.zeros((4, 1024), "f4")] * 4]
    arguments[place] = [weights] * 4 if place < 2 else weights
    with contextlib.suppress(*REFUSALS):
        wm._core.Encoder(*arguments)
    attempt(lambda: Encoder(VAE, CPU, block=strange(fdp), num_threads=strange(fdp)))


DECODERS = [Decoder(VAE, num_threads=1)]


def decoder(data: bytes, folder: Path) -> None:
    fdp = Provider(data)
    latents = an_array(fdp, (fdp.ConsumeIntInRange(1, 3), 4), "f4")
    if isinstance(latents, np.ndarray) and latents.size > 2**10:
        return  # would be decoded
    found = attempt(lambda: DECODERS[0](latents), "z")
    if found is not None:
        assert np.array_equal(found, DECODERS[0](np.array(latents, order="C")))
    shapes = [(3200, 4), (3200,), (128, 64, 5, 5), (64,)]
    weights = an_array(fdp, fdp.PickValueInList(shapes), "f4")
    arguments: list[Any] = [np.zeros((3200, 4), "f4"), np.zeros(3200, "f4")]
    arguments += [[np.zeros((128, 64, 5, 5), "f4")] * 3, [np.zeros(64, "f4")] * 3]
    place = fdp.ConsumeIntInRange(0, 3)
    arguments[place] = weights if place < 2 else [weights] * 3
    with contextlib.suppress(*REFUSALS):
        wm._core.Decoder(*arguments)
    attempt(lambda: Decoder(VAE, num_threads=strange(fdp)))


AGENT = Agent(VAE, MODEL, SHAPE, np.zeros(20, np.float32))


def agent(data: bytes, folder: Path) -> None:
    fdp = Provider(data)
    attempt(lambda: AGENT.reset(fdp.PickValueInList([-1, 0, None, "3", 2**40, 3.0]), seed=strange(fdp)))
    AGENT.reset(3)
    attempt(lambda: AGENT.set_params(strange(fdp), an_array(fdp, (20,), "f4")))
    AGENT.reset(3)
    count = fdp.ConsumeIntInRange(1, 3)
    options = {
        name: an_array(fdp, shape, kind)
        for name, shape, kind in (
            ("restart", (count,), "?"),
            ("episodes", (count,), "i8"),
            ("forced_actions", (count, 1), "f4"),
            ("env_ids", (count,), "i8"),
        )
        if fdp.ConsumeBool()
    }
    options.setdefault("env_ids", np.arange(count))
    pictures = an_array(fdp, (count, 64, 64, 3), "u1")
    actions = attempt(lambda: AGENT.act(pictures, **options))
    if actions is None:
        assert not AGENT.z.any()
    else:
        assert actions.shape == (len(pictures), 1) and actions.dtype == np.float32 and np.isfinite(actions).all()


TARGETS = {
    "tensors": Target(tensors, tensor_files, mutate_header),
    "world": Target(world, worlds, mutate_world),
    "latents": Target(latents, latent_files, mutate_header),
    "shard": Target(shard, shards),
    "datasets": Target(datasets, good_shard),
    "config": Target(config),
    "cmaes": Target(cmaes, megabytes=1024),
    "dream": Target(dream),
    "memory": Target(memory),
    "encoder": Target(encoder, megabytes=1024),
    "decoder": Target(decoder, megabytes=1024),
    "agent": Target(agent),
    "run_folder": Target(run_folder),
    "measured": Target(measured),
}


def main() -> None:
    name, scratch, *options = sys.argv[1:]
    target, folder = TARGETS[name], Path(scratch)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    seeds = target.seeds(folder)
    inputs = Path(options[0])
    if inputs.is_dir():
        for number, seed in enumerate(seeds):
            a_file(inputs / f"seed-{number}", seed)
    options.append(f"-max_len={max(4096, *(2 * len(seed) for seed in seeds))}")
    findings = next(option.partition("=")[2] for option in options if option.startswith("-artifact_prefix="))

    def run(data: bytes) -> None:
        try:
            target.run(data, folder)
        except BaseException:  # libFuzzer would do this at the end of the process, which not every error lets it reach
            Path(f"{findings}crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise

    mutate = {} if target.mutate is None else {"custom_mutator": target.mutate}
    atheris.Setup([sys.argv[0], *options], run, **mutate)
    with little_memory(target.megabytes):
        atheris.Fuzz()


if __name__ == "__main__":
    main()
