"""Full disks, read-only folders, damaged files, files of another version: what is wrong is named, nothing is lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_evolve
import test_training
import torch
from safetensors.numpy import load_file, save_file
from test_kills import contents

from conftest import environment, interrupt, make_episode, make_latents, make_mdnrnn, mark_done, toy_config, write_store
from worldmodels import Agent
from worldmodels.cli import main
from worldmodels.data.episodes import EpisodeWriter
from worldmodels.data.latents import load_latents
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.weights import load_model, load_tensors, save_model, save_tensors
from worldmodels.pipeline import evolution as evolve
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stage import command
from worldmodels.pipeline.stages import NAMES, get
from worldmodels.support.files import read_json, write_json
from worldmodels.training import trainer as loop


def complete_before(whole_run, to, stage):
    """A copy of the finished toy run in which ``stage`` is next."""
    shutil.copytree(whole_run[0] / "toy", to)
    with Run(to, rerun=stage):
        pass
    return to


def bits(data, count, seed=0):
    """The same bytes with one bit flipped, at ``count`` places: the first 200, and others anywhere."""
    rng = np.random.default_rng(seed)
    places = np.concatenate([np.arange(min(200, len(data))), rng.integers(0, len(data), count)])
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        yield int(place), bytes(damaged)


# Damaged files


def test_a_flipped_bit_in_weights_is_an_error_that_names_the_file(tmp_path):
    """In its header, too, but for the name of the checksum and the places that hold nothing."""
    path = tmp_path / "rnn.safetensors"
    save_model(path, make_mdnrnn(), steps=3)
    whole = path.read_bytes()
    expected = load_tensors(path)
    passed = 0
    for place, damaged in bits(whole, 200):
        path.write_bytes(damaged)
        try:
            tensors, about = load_tensors(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            continue
        passed += 1
        assert place < whole.index(b"data_offsets")
        assert tensors.keys() == expected[0].keys()
        assert all(torch.equal(tensors[name], expected[0][name]) for name in tensors)
        assert about.items() >= expected[1].items()
    assert passed < 10


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_every_kind_of_number_is_summed(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    tensors = {"none": torch.zeros(0, dtype=kind), "one": torch.ones((), dtype=kind), "two": torch.ones(2, 3).to(kind)}
    tensors["still"] = torch.ones(1, dtype=kind).as_strided((1,), (0,))
    tensors["nowhere"] = torch.ones(1, dtype=kind).as_strided((0,), (0,))
    save_tensors(path, tensors, {"step": 1, "loss": 0.1, "nested": {"a": [1, None, "é"]}})
    loaded, about = load_tensors(path)
    assert about == {"step": 1, "loss": 0.1, "nested": {"a": [1, None, "é"]}}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        ValueError, match=r"a\.safetensors: expected contents of checksum \d+, got \d+: the file is dam"
    ):
        load_tensors(path)


def test_a_flipped_bit_in_latents_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "00001.safetensors"
    make_latents([5, 3, 9]).save(tmp_path / "00000.safetensors")
    make_latents([5, 8], seed=1).save(path)
    whole, expected = path.read_bytes(), load_latents(tmp_path)
    passed = 0
    for place, damaged in bits(whole, 200):
        path.write_bytes(damaged)
        try:
            found = load_latents(tmp_path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            continue
        passed += 1
        assert place < whole.index(b"data_offsets")
        assert all(np.array_equal(value, getattr(expected, name)) for name, value in vars(found).items())
    assert passed < 10


def test_files_of_before_there_were_checksums_are_read(tmp_path):
    make_latents([5, 3]).save(tmp_path / "00000.safetensors")
    expected = load_latents(tmp_path)
    save_file(load_file(tmp_path / "00000.safetensors"), tmp_path / "00000.safetensors")
    assert all(np.array_equal(value, getattr(expected, name)) for name, value in vars(load_latents(tmp_path)).items())


def checkpoint_of(folder, stage):
    """A run that was interrupted after its second checkpoint: its folder's settings and the checkpoint."""
    prepare = test_evolve.prepare if stage == "evolve" else lambda to: test_training.prepare(to, stage)
    with prepare(folder) as experiment, pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, evolve if stage == "evolve" else loop, "save_tensors", 2, after=True)
        experiment.run_stage(stage)
    return prepare, folder / get(stage).folder / "checkpoint.safetensors"


TRAINED = ["train_vae", "train_rnn", "evolve"]


@pytest.mark.parametrize("stage", TRAINED)
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_named_and_discarded_with_force(tmp_path, capsys, stage, damage):
    _, path = checkpoint_of(tmp_path, stage)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert main([command(stage), "--out", str(tmp_path)]) == 1
    assert f"worldmodels: {path}: expected " in capsys.readouterr().err
    assert path.read_bytes() == data
    assert main([command(stage), "--out", str(tmp_path), "--force"]) == 0


# Other versions


@pytest.mark.parametrize("stage", TRAINED)
@pytest.mark.parametrize("change", ["without what it says", "without a tensor", "of other sizes"])
def test_a_checkpoint_of_another_version_is_named(tmp_path, stage, change):
    prepare, path = checkpoint_of(tmp_path, stage)
    tensors, about = load_tensors(path)
    name = next(name for name in tensors if name.startswith("model.") or name == "mean")
    if change == "without what it says":
        about = {}
    elif change == "without a tensor":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(3, 5, 7)
    save_tensors(path, tensors, about)
    message = (
        rf"checkpoint\.safetensors: expected a checkpoint of this version .*`worldmodels {command(stage)} --force`"
    )
    with prepare(tmp_path) as experiment, pytest.raises(ValueError, match=message):
        experiment.run_stage(stage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evolve": {"telepathy": 1}}, r"evolve\.telepathy: no such setting"),
        ({"robots": {}}, "config: expected the keys"),
    ],
)
def test_settings_of_another_version_are_named(tmp_path, capsys, change, message):
    with Run(tmp_path, toy_config()):
        pass
    path = tmp_path / "config.json"
    values = read_json(path)
    for name, fields in change.items():
        values[name] = {**values.get(name, {}), **fields}
    write_json(path, values)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"config\.json: {message}.*another version of worldmodels"):
        Run(tmp_path)
    assert main(["evolve", "--out", str(tmp_path)]) == 1
    assert f"worldmodels: {path}: " in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("marker", [{}, {"settings": {}}, {"settings": 1, "summary": {}}, []])
def test_a_marker_of_another_version_is_named(tmp_path, marker):
    with Run(tmp_path, toy_config()) as experiment:
        mark_done(experiment, "collect")
    write_json(tmp_path / "stages" / "collect.json", marker)
    with pytest.raises(ValueError, match=r"collect\.json: (settings: )?expected an object"):
        Run(tmp_path)


# Disks


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("stage", NAMES[1:])
def test_a_full_disk_is_named_and_the_stage_goes_on_when_there_is_room(tmp_path, whole_run, capsys, monkeypatch, stage):
    """The games are left out, and the report's pictures of them."""
    run = complete_before(whole_run, tmp_path / "toy", stage)
    before = contents(run)
    monkeypatch.setattr(
        "worldmodels.pipeline.dream_check.cached_scores", lambda players, **_: [[1.0, 2.0]] * len(players)
    )
    with Run(run) as experiment, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/toy/"):
            experiment.run_stage(stage)
        assert not experiment.is_done(stage)
    assert not list(run.rglob("*.tmp"))
    after = contents(run)
    assert all(after[name] == before[name] for name in before if name != "metrics.jsonl")
    if stage in ("encode", "train_rnn", "evolve"):
        assert main([command(stage), "--out", str(run)]) == 0
        expected = contents(whole_run[0] / "toy")
        made = {name for name in contents(run).keys() - before.keys() if not name.startswith("stages/check_dream")}
        assert f"stages/{stage}.json" in made
        assert {name: value for name, value in contents(run).items() if name in made} == {n: expected[n] for n in made}


@contextlib.contextmanager
def files_of_at_most(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_what_does_not_fit_on_the_disk_is_an_os_error_and_leaves_nothing(tmp_path):
    """The system refuses to write on, as it does on a full disk: to safetensors and to Python."""
    write_store(tmp_path, [make_episode(3)])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    writers = [
        lambda: save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(50_000)}, {}),
        lambda: make_latents([20_000]).save(tmp_path / "b.safetensors"),
        lambda: write_json(tmp_path / "c.json", ["x" * 100_000]),
    ]
    for write in writers:
        with files_of_at_most(50_000), pytest.raises(OSError, match=r"[abc]\.(safetensors|json)"):
            write()
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


WRITING = """
import resource, sys
from pathlib import Path
from conftest import make_episode
from worldmodels.data.episodes import EpisodeWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with EpisodeWriter(Path(sys.argv[1]) / "00001.h5", 1) as writer:
        for seed in range(4):
            writer.append(make_episode(10, seed))
    print("written")
except (OSError, RuntimeError) as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("share", [0.01, 0.6, 0.998])  # at once, in the frames, and in what comes behind them
def test_a_shard_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path, tmp_path_factory, share):
    """In a process of its own: HDF5 cannot close such a file."""
    whole = tmp_path_factory.mktemp("whole") / "00001.h5"
    with EpisodeWriter(whole, 1) as writer:
        for seed in range(4):
            writer.append(make_episode(10, seed))
    size = int(share * whole.stat().st_size)
    write_store(tmp_path, [make_episode(3)])
    line = [sys.executable, "-c", WRITING, str(tmp_path), str(size)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(line, capture_output=True, text=True, env={**environment(), "PYTHONPATH": path}, check=False)
    assert ran.stdout.startswith("refused: "), ran.stdout + ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["00000.h5"]


def test_a_shard_whose_end_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(EpisodeWriter, "_finish", full)
    with pytest.raises(OSError, match="No space left"), EpisodeWriter(tmp_path / "00000.h5", 1) as writer:
        writer.append(make_episode(3))
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def bound_by_modes():
    """This thread may write only where a file's mode says so, as root too (whose CAP_DAC_OVERRIDE is put aside)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and each one's upper half
    assert libc.capget(header, held) == 0, os.strerror(ctypes.get_errno())
    fewer = type(held)(*held)
    fewer[0] &= ~(1 << 1)
    assert libc.capset(header, fewer) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def read_only(folder):
    """Nothing in a folder can be written, by root neither."""
    modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
    for path, mode in modes.items():
        path.chmod(0o555 if path.is_dir() else mode & 0o444 | 0o444)
    try:
        with bound_by_modes():
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_a_read_only_run_is_refused_and_can_be_read(tmp_path, whole_run, capsys):
    run = complete_before(whole_run, tmp_path / "run", "evaluate")
    before = contents(run)
    with read_only(tmp_path):
        for arguments in (["evaluate", "--out", str(run)], ["run", "takecover", "--out", str(tmp_path / "new")]):
            assert main(arguments) == 1
            said = capsys.readouterr().err
            assert f"Permission denied: '{arguments[-1]}" in said and "Traceback" not in said
        agent = Agent.load(run)
        agent.reset(1)
        assert agent.act(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 1)
        assert main(["dream", str(run), "--episodes", "2"]) == 0
        load_model(run / "rnn" / "rnn.safetensors", MDNRNN)
    assert contents(run) == before
    assert not (tmp_path / "new").exists()


def test_a_folder_that_becomes_read_only_keeps_what_it_has(tmp_path):
    run = tmp_path / "run"
    with test_evolve.prepare(run) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, evolve, "save_tensors", 3, after=True)
            experiment.run_stage("evolve")
        before = contents(run)
        with read_only(tmp_path), pytest.raises(PermissionError, match=str(run)):
            experiment.run_stage("evolve")
        assert contents(run) == before
        experiment.run_stage("evolve")
        assert experiment.is_done("evolve")


# What a killed process leaves


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    names = ["config.json.7.tmp", "evolve/checkpoint.safetensors.7.tmp", "vae/sheets/epoch_0001.png.7.tmp"]
    others = ["rounds/1/rnn/rnn.safetensors.7.tmp", "notes/mine.tmp"]  # of other runs and of people
    with Run(tmp_path, toy_config()) as experiment:
        for name in [*names, *others]:
            experiment.path(name).parent.mkdir(parents=True, exist_ok=True)
            experiment.path(name).touch()
        with pytest.raises(BlockingIOError):
            Run(tmp_path)
        assert all(experiment.path(name).exists() for name in names)
    with Run(tmp_path) as experiment:
        assert not any(experiment.path(name).exists() for name in names)
        assert all(experiment.path(name).exists() for name in others)


@pytest.mark.parametrize(("stage", "last"), [("train_vae", 4), ("train_rnn", 3)])
def test_a_kill_behind_the_last_checkpoint_costs_no_sheet(tmp_path, stage, last):
    """The one of that checkpoint would never be drawn again."""
    with test_training.prepare(tmp_path / "whole", stage) as experiment:
        write_store(experiment.path("episodes"), [make_episode(length, length) for length in test_training.LENGTHS])
        save_model(experiment.path("vae", "vae.safetensors"), test_training.make_vae())
        shutil.copytree(tmp_path / "whole", tmp_path / "killed")
        experiment.run_stage(stage)
    with Run(tmp_path / "killed") as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, loop, "save_tensors", last, after=True)
            experiment.run_stage(stage)
        experiment.run_stage(stage)
    sheets = [
        {path.name: path.read_bytes() for path in (tmp_path / run).rglob("sheets/*.png")} for run in ("whole", "killed")
    ]
    assert len(sheets[0]) > 0
    assert sheets[0] == sheets[1]
