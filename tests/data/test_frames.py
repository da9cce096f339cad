"""Batches read ahead: the same for any number of readers, from any step on, each frame once an epoch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import environment, make_episode, write_store
from worldmodels.data.episodes import EpisodeStore, shard_path
from worldmodels.data.frames import FrameReader, ShuffledBatches

LENGTHS = [7, 12, 9, 14, 8]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write_store(folder, [make_episode(length, length) for length in LENGTHS])
    store = EpisodeStore(folder)
    yield store
    store.close()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_for_any_number_of_readers(store, workers):
    order = ShuffledBatches(np.arange(50), 8, seed=3)
    with FrameReader(store, order, 2, 19, num_workers=workers) as reader:
        batches = list(reader)
    assert len(batches) == 17
    for step, frames in enumerate(batches, start=2):
        np.testing.assert_array_equal(frames, store.read(order.batch(step)))


def test_a_rank_reads_its_rows_alone(store, monkeypatch):
    order, asked = ShuffledBatches(np.arange(50), 8, seed=3), []
    real = store.read
    monkeypatch.setattr(store, "read", lambda indices: asked.append(indices) or real(indices))
    with FrameReader(store, order, 0, 3, slice(2, 5)) as reader:
        batches = list(reader)
    assert [len(frames) for frames in batches] == [3, 3, 3]
    for step, indices in enumerate(asked):
        np.testing.assert_array_equal(indices, order.batch(step)[2:5])


def test_readers_stay_ahead_but_not_far(store, monkeypatch):
    asked = []
    real = store.read
    monkeypatch.setattr(store, "read", lambda indices: asked.append(1) or real(indices))
    with FrameReader(store, ShuffledBatches(np.arange(50), 8, seed=3), 0, 1000) as reader:
        batches = iter(reader)
        for count in range(1, 20):
            next(batches)
            assert len(asked) <= count + 4
    assert len(asked) <= 24


def test_epochs_are_counted_in_frames():
    order = ShuffledBatches(np.arange(50), 8, seed=3)
    assert [order.epoch(step) for step in (0, 6, 7, 12, 13, 25)] == [0, 0, 1, 1, 2, 4]
    assert ShuffledBatches(np.arange(3), 8, seed=3).epoch(1) == 2
    assert sorted(ShuffledBatches(np.arange(3), 8, seed=3).batch(0)[:3]) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_frame_is_named(tmp_path, workers):
    write_store(tmp_path, [make_episode(6), make_episode(5, 1)], per_shard=1)
    path = shard_path(tmp_path, 1)
    store = EpisodeStore(tmp_path)
    offset = store.shards[1].frames.id.get_chunk_info(2).byte_offset
    store.close()
    damaged = bytearray(path.read_bytes())
    damaged[offset + 50] ^= 1
    path.write_bytes(damaged)
    store = EpisodeStore(tmp_path)
    with pytest.raises(OSError, match=r"00001\.h5: frame 2 is damaged"):
        with FrameReader(store, ShuffledBatches(np.arange(11), 11, seed=0), 0, 3, num_workers=workers) as reader:
            list(reader)
    store.close()


READING = """
import sys, time
from pathlib import Path
import numpy as np
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.frames import FrameReader, ShuffledBatches

if __name__ == "__main__":
    store = EpisodeStore(Path(sys.argv[1]))
    with FrameReader(store, ShuffledBatches(np.arange(50), 8, seed=0), 0, 100, num_workers=1) as reader:
        next(iter(reader))
        print(*(process.pid for process, _ in reader._processes), flush=True)
        time.sleep(100)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_reading_process_ends_with_its_parent(store, tmp_path, how):
    script = tmp_path / "reading.py"
    script.write_text(READING)
    line = [sys.executable, str(script), str(store.folder)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job passes on that it is ignored
    parent = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    reader = Path(f"/proc/{int(parent.stdout.readline())}")
    assert reader.exists()
    parent.send_signal(how)
    _, said = parent.communicate(timeout=30)  # ends when the reader has closed its end too
    assert said.count("Traceback") == (how == signal.SIGINT)  # the script's own; the reader says nothing
    deadline = time.monotonic() + 10
    while reader.exists() and "Z (" not in (reader / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not reader.exists() or "Z (" in (reader / "status").read_text()


@pytest.mark.parametrize("batch", [1, 300])  # 4 MB: killed in the middle of sending it
def test_a_reading_process_that_is_killed_is_named(store, batch):
    with FrameReader(store, ShuffledBatches(np.arange(50), batch, seed=0), 0, 10**6, num_workers=2) as reader:
        batches = iter(reader)
        next(batches)
        time.sleep(0.5)
        os.kill(reader._processes[1][0].pid, signal.SIGKILL)
        with pytest.raises(
            RuntimeError, match=r"^num_workers: a process that reads frames died \(exit code -9: killed, per"
        ):
            for _ in batches:
                pass
    assert multiprocessing.active_children() == []
