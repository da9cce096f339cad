"""When things break: killed workers and games, damaged files, settings that cannot be, results of what is no more."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
import weakref
from pathlib import Path

import h5py
import pytest
import test_collect
import test_evaluate
import test_training
from safetensors.torch import save_file

from conftest import interrupt, make_episode, start, toy_config, write_store
from worldmodels.data.episodes import EpisodeShard, EpisodeStore, EpisodeWriter, shard_path
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.weights import load_model, load_tensors, save_tensors
from worldmodels.pipeline import collection as collect
from worldmodels.pipeline.config import Config, from_dict, override
from worldmodels.pipeline.players import Job
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.scores import read_scores
from worldmodels.pipeline.stages import NAMES, get
from worldmodels.support.progress import Progress
from worldmodels.training import trainer as loop
from worldmodels.training.optim import DivergedError


def engines():
    """Ids of the games that this process or its children started and that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().strip() != "vizdoom" or "Z (" in (folder / "status").read_text():
                continue
            if f"WM_TEST={os.getpid()}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setenv("WM_TEST", str(os.getpid()))
    yield
    for pid in engines():
        os.kill(pid, signal.SIGKILL)


def gone(seconds=5.0):
    deadline = time.monotonic() + seconds
    while engines() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not engines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, test_collect.run(folder)


def test_workers_that_are_killed_are_replaced(tmp_path, undisturbed, monkeypatch, capfd, watched):
    """Both, one at least in the middle of a shard."""
    killed = []

    class Killing(Progress):
        def update(self, done, note=""):
            if not killed:
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGKILL)
                    killed.append(worker.pid)
            super().update(done, note)

    monkeypatch.setattr(collect, "Progress", Killing)
    test_collect.check_equal(test_collect.run(tmp_path), undisturbed[1])
    assert len(killed) == 2
    out, err = capfd.readouterr()
    assert "a worker died (exit code -9: killed, perhaps because memory ran out); shard" in out + err
    assert "7/7 episodes" in err
    assert multiprocessing.active_children() == []
    assert len(list((tmp_path / "episodes").iterdir())) == 3
    assert gone()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGSTOP, "a worker finished no episode for 8 s; shard"),
        (signal.SIGKILL, "a worker died (exit code 1); shard"),
    ],
)
def test_a_worker_whose_game_hangs_or_dies_is_replaced(tmp_path, undisturbed, monkeypatch, capfd, watched, how, said):
    stopped = []

    class Stopping(Progress):
        def update(self, done, note=""):
            if not stopped:
                stopped.extend(engines())  # all: one alone may have nothing left to play
                for engine in stopped:
                    os.kill(engine, how)
            super().update(done, note)

    monkeypatch.setattr(collect, "Progress", Stopping)
    if how == signal.SIGSTOP:
        monkeypatch.setattr(collect, "_TIMEOUT", 8.0)
    test_collect.check_equal(test_collect.run(tmp_path), undisturbed[1])
    out, err = capfd.readouterr()
    assert len(stopped) in (1, 2)
    assert said in out + err
    assert multiprocessing.active_children() == []
    assert gone()


def test_an_interrupted_collect_leaves_no_game_behind(tmp_path, undisturbed, monkeypatch, watched):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, Progress, "update", 5)
        test_collect.run(tmp_path, num_workers=1)
    assert multiprocessing.active_children() == []
    assert gone()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "episodes").glob("*.h5")}
    assert len(before) == 1
    test_collect.check_equal(test_collect.run(tmp_path), undisturbed[1])
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_kill_9_of_the_whole_collect_leaves_no_game_behind(tmp_path, watched):
    with Run(tmp_path, toy_config(collect={"episodes": 50, "shard_episodes": 5, "num_workers": 2})):
        pass
    process = start("collect", "--out", tmp_path, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "episodes").glob("*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert engines()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)  # ends when the workers have ended too
    assert gone(10)


def test_a_worker_that_dies_while_it_waits_is_replaced(tmp_path):
    """It has said that it is free, and is gone when the shard is sent to it."""
    pool = collect._Pool(Job(toy_config(), tmp_path, 0), [0], Progress("collect", 2, "episodes"), 0, lambda: None)
    ours, theirs = multiprocessing.Pipe()
    theirs.send(None)
    theirs.close()

    dead = multiprocessing.get_context("spawn").Process(target=int)
    dead.start()
    dead.join()
    worker = collect._Worker(dead, ours)
    pool._workers = [worker]
    pool._spawn = lambda: collect._Worker(dead, ours)
    pool._serve(worker)
    assert pool._todo == [0]


def test_a_writer_keeps_no_frames_in_memory(tmp_path):
    with EpisodeWriter(tmp_path / "00000.h5", 1) as writer:
        episode = make_episode(3)
        frames = weakref.ref(episode.frames)
        writer.append(episode)
        del episode
        assert frames() is None


@pytest.mark.parametrize("name", ["actions", "rewards", "lengths", "terminated"])
def test_a_flipped_byte_outside_the_frames_is_an_error(tmp_path, name):
    write_store(tmp_path, [make_episode(5), make_episode(4)])
    path = shard_path(tmp_path, 0)
    with h5py.File(path) as file:
        dataset = file[name]
        place = dataset.id.get_offset() or dataset.id.get_chunk_info(0).byte_offset
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    with pytest.raises((ValueError, OSError)):
        EpisodeShard(path)


def test_a_damaged_header_is_a_value_error(tmp_path):
    write_store(tmp_path, [make_episode(5), make_episode(4)])
    path = shard_path(tmp_path, 0)
    whole = path.read_bytes()
    kinds = set()
    for place in range(48, 2000, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            store = EpisodeStore(tmp_path)
            list(store.episodes())
            store.close()
        except Exception as error:
            kinds.add(type(error))
    assert kinds <= {ValueError, OSError}


def test_an_empty_shard_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one"), EpisodeWriter(tmp_path / "00000.h5", 1):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"seed": "x"}, {"seed": -1}, {"seed": 1.5}, {"preset": 3}, {"experiment": None}])
def test_the_top_of_a_config_is_checked_too(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        from_dict(change)


@pytest.mark.parametrize("section", ["evolv", "seed", "preset"])
def test_an_unknown_section_is_named(section):
    with pytest.raises(ValueError, match=section):
        override(Config(), {section: {"popsize": 3}})


def test_infinity_is_named():
    with pytest.raises(ValueError, match=r"train_vae\.lr"):
        override(Config(), {"train_vae": {"lr": float("inf")}})


def test_all_episodes_cannot_be_held_out():
    with pytest.raises(ValueError, match=r"train_rnn\.validation_fraction"):
        override(Config(), {"train_rnn": {"validation_fraction": 1.0}})


@pytest.fixture
def ran(monkeypatch):
    ran = []
    for stage in NAMES:
        monkeypatch.setitem(vars(get(stage)), "run", lambda _, stage=stage: ran.append(stage) or {"x": stage})
    return ran


def everything(folder, config):
    with Run(folder, config) as experiment:
        for stage in NAMES:
            experiment.run_stage(stage)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"evolve": {"generations": 5}}, ["evolve", "evaluate", "report"]),
        ({"evaluate": {"episodes": 3}}, ["evaluate", "report"]),
        ({"check_dream": {"episodes": 3}}, ["check_dream", "report"]),
    ],
)
def test_what_builds_on_a_repeated_stage_is_repeated(tmp_path, ran, change, again):
    everything(tmp_path, toy_config())
    ran.clear()
    everything(tmp_path, toy_config(**change))
    assert ran == again


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"max_steps": 40}])
def test_the_check_is_of_the_dream_that_will_be_used(tmp_path, ran, change):
    with Run(tmp_path, toy_config()) as experiment:
        for stage in NAMES[:5]:
            experiment.run_stage(stage)
    ran.clear()
    everything(tmp_path, toy_config(evolve=change))
    assert ran[0] == "check_dream"


def test_the_agent_can_be_evaluated_in_the_other_variant(tmp_path, ran):
    everything(tmp_path, toy_config())
    ran.clear()
    with Run(tmp_path, toy_config(evaluate={"variant": "modern"})) as experiment:
        experiment.run_stage("evaluate")
    assert ran == ["evaluate"]


def test_fewer_generations_than_were_run_are_refused(tmp_path, ran):
    everything(tmp_path, toy_config(evolve={"generations": 5}))
    with pytest.raises(ValueError, match="generations"):
        everything(tmp_path, toy_config(evolve={"generations": 3}))


@pytest.mark.parametrize("stage", ["train_vae", "train_rnn"])
def test_a_checkpoint_is_never_of_a_model_that_has_diverged(tmp_path, stage):
    """The step that ruins the weights is the one before the checkpoint: its own loss was still good."""
    folder, short = test_training.FILES[stage][0], {"steps": 3, "checkpoint_every": 1, "precision": "float32"}
    with test_training.prepare(tmp_path, stage, **short) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, loop, "save_tensors", 1, after=True)
            experiment.run_stage(stage)
    with test_training.prepare(tmp_path, stage, **short, lr=1e30) as experiment:
        with pytest.raises(DivergedError):
            experiment.run_stage(stage)
        tensors, _ = load_tensors(experiment.path(folder, "checkpoint.safetensors"))
    assert max(float(t.abs().max()) for name, t in tensors.items() if name.startswith("model.")) < 1e6
    with test_training.prepare(tmp_path, stage, **short) as experiment:
        experiment.run_stage(stage)


def test_lines_after_one_that_was_cut_off_are_kept(tmp_path, monkeypatch):
    test_evaluate.without_policies(monkeypatch)
    with test_evaluate.prepare(tmp_path) as experiment:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, Progress, "update", 1)
            experiment.run_stage("evaluate")
        path = experiment.path("evaluate", "episodes.jsonl")
        with path.open("a") as file:
            file.write('{"episode": 2, "sco')
        experiment.run_stage("evaluate")
        about = json.loads(path.read_text().splitlines()[0])
        assert sorted(read_scores(path, about)) == [0, 1, 2]


def test_a_config_cannot_ask_for_more_than_the_file_holds(tmp_path):
    """4 * 5,000^2 numbers of four bytes are 400 MB; the file has none of them."""
    path = tmp_path / "rnn.safetensors"
    config = {**MDNRNN(4, 1, 8).config, "hidden_size": 5000}
    save_tensors(path, {}, {"model": "MDNRNN", "config": config})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError):
        load_model(path, MDNRNN)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("about", [{"model": "MDNRNN"}, {"model": "MDNRNN", "config": {"x": 1}}, [1]])
def test_a_header_without_its_config_is_a_value_error(tmp_path, about):
    save_file({}, tmp_path / "rnn.safetensors", metadata={"about": json.dumps(about)})
    with pytest.raises(ValueError, match=r"rnn\.safetensors: "):
        load_model(tmp_path / "rnn.safetensors", MDNRNN)
