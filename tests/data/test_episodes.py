"""The episode store: lossless, complete or not there, and streamed."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from conftest import environment, make_episode, write_store
from worldmodels.data.episodes import Episode, EpisodeShard, EpisodeStore, EpisodeWriter, shard_path


def episodes():
    return [
        make_episode(5, 1, policy="repeat 1-10"),
        make_episode(1, 2, policy="left"),
        make_episode(9, 3, terminated=False),
        make_episode(4, 4),
        make_episode(2, 5, policy="uniform"),
    ]


@pytest.fixture
def store(tmp_path):
    write_store(tmp_path, episodes())
    store = EpisodeStore(tmp_path)
    yield store
    store.close()


def test_round_trip_is_lossless(store):
    read = list(store.episodes())
    assert len(store.shards) == 3
    assert len(read) == 5
    for got, wrote in zip(read, episodes(), strict=True):
        for name in ("frames", "actions", "rewards"):
            one, other = getattr(got, name), getattr(wrote, name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        assert (got.terminated, got.policy, got.seed) == (wrote.terminated, wrote.policy, wrote.seed)
    assert store.lengths.tolist() == [5, 1, 9, 4, 2]
    assert len(store) == 21


def test_shuffled_reads_across_shards_are_the_frames_asked_for(store):
    everything = np.concatenate([episode.frames for episode in episodes()])
    indices = np.random.default_rng(0).permutation(np.tile(np.arange(21), 2))  # repeats too
    np.testing.assert_array_equal(store.read(indices), everything[indices])


def test_nothing_is_there_before_the_end(tmp_path):
    with EpisodeWriter(tmp_path / "00000.h5", 1) as writer:
        writer.append(make_episode(3))
        assert not list(tmp_path.glob("*.h5"))
    assert [path.name for path in tmp_path.iterdir()] == ["00000.h5"]


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), EpisodeWriter(tmp_path / "00000.h5", 1) as writer:
        writer.append(make_episode(3))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"expected episode shards \(\*\.h5\), got none"):
        EpisodeStore(tmp_path)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from worldmodels.data.episodes import Episode, EpisodeWriter
frames = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
episode = Episode(frames, np.zeros((50, 1), np.float32), np.ones(50, np.float32), True, "noop", 0)
with EpisodeWriter(Path(sys.argv[1]) / "00000.h5", 1) as writer:
    for _ in range(3):
        writer.append(episode)
    print("writing", flush=True)
    while True:
        writer.append(episode)
"""


def test_a_kill_while_writing_leaves_nothing_that_loads(tmp_path):
    line = [sys.executable, "-c", WRITER, str(tmp_path)]
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size > 500_000  # it had got far
    with pytest.raises(FileNotFoundError):
        EpisodeStore(tmp_path)
    left.rename(tmp_path / "00000.h5")  # even under its name it is no shard
    with pytest.raises(ValueError, match=r"00000\.h5: expected"):
        EpisodeStore(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    write_store(tmp_path, episodes()[:2])
    path = shard_path(tmp_path, 0)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"00000\.h5: expected"):
            EpisodeShard(path)


def test_a_flipped_byte_in_a_frame_is_an_error(tmp_path):
    write_store(tmp_path, [make_episode(2)])
    path = shard_path(tmp_path, 0)
    whole = path.read_bytes()
    with h5py.File(path) as file:
        chunk = file["frames"].id.get_chunk_info(1)
    for place in np.linspace(0, chunk.size - 1, 60).astype(int) + chunk.byte_offset:
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        store = EpisodeStore(tmp_path)
        with pytest.raises(OSError):
            store.read(np.array([1]))
        store.read(np.array([0]))
        store.close()


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "00000.h5"
    for damage in (lambda file: file.attrs.update(format="other"), lambda file: file["rewards"].resize(3, axis=0)):
        write_store(tmp_path, [make_episode(2)])
        with h5py.File(path, "r+") as file:
            rewards = file["rewards"][:]
            del file["rewards"]
            file.create_dataset("rewards", data=rewards, maxshape=(None,))
            damage(file)
        with pytest.raises(ValueError, match=r"00000\.h5: expected"):
            EpisodeShard(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((3, 64, 64), np.uint8)}, r"frames: expected \(3, 64, 64, 3\) uint8"),
        ({"frames": np.zeros((3, 64, 64, 3), np.float32)}, r"frames: expected .* got \(3, 64, 64, 3\) float32"),
        ({"frames": np.zeros((0, 64, 64, 3), np.uint8)}, "frames: expected .* at least one step"),
        ({"actions": np.zeros((3, 2), np.float32)}, r"actions: expected \(3, 1\) float32"),
        ({"actions": np.zeros((2, 1), np.float32)}, r"actions: expected \(3, 1\) float32"),
        ({"rewards": np.zeros(3)}, r"rewards: expected \(3,\) float32 .* got \(3,\) float64"),
        (
            {"actions": np.float32([[0], [np.nan], [0]])},
            r"actions: expected finite numbers, got \[nan\] at step 1 of episode 0 of 00000\.h5",
        ),
        (
            {"rewards": np.float32([0, 0, -np.inf])},
            r"rewards: expected finite numbers, got -inf at step 2 of episode 0",
        ),
    ],
)
def test_bad_episodes_are_named(tmp_path, change, message):
    episode = Episode(**{**vars(make_episode(3)), **change})
    with pytest.raises(ValueError, match=message), EpisodeWriter(tmp_path / "00000.h5", 1) as writer:
        writer.append(episode)
    assert list(tmp_path.iterdir()) == []


READER = """
import resource, sys
from pathlib import Path
import numpy as np
from worldmodels.data.episodes import EpisodeStore
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
store = EpisodeStore(Path(sys.argv[1]))
before = used()
order = np.random.default_rng(0).permutation(len(store))
for start in range(0, len(store), 100):
    store.read(order[start:start + 100])
for episode in store.episodes():
    pass
print(len(store) * 64 * 64 * 3 / 2**20, used() - before)
"""


def test_reading_keeps_a_little_in_memory(tmp_path):
    """Frames of one colour compress to nothing on disk, but not in memory."""
    plain = make_episode(400)
    plain = Episode(**{**vars(plain), "frames": np.zeros_like(plain.frames)})
    write_store(tmp_path, [plain] * 20, per_shard=10)
    line = [sys.executable, "-c", READER, str(tmp_path)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
    total, grown = map(float, done.stdout.split())
    assert total > 90
    assert grown < 30


def test_an_appended_episode_is_copied(tmp_path):
    """The caller may use its buffers again."""
    first, second = make_episode(3, 1), make_episode(3, 2)
    buffer = Episode(
        **{name: value.copy() if isinstance(value, np.ndarray) else value for name, value in vars(first).items()}
    )
    with EpisodeWriter(str(tmp_path / "00000.h5"), 1) as writer:
        for episode in (first, second):
            for name in ("frames", "actions", "rewards"):
                getattr(buffer, name)[:] = getattr(episode, name)
            writer.append(buffer)
    store = EpisodeStore(str(tmp_path))
    for got, wrote in zip(store.episodes(), (first, second), strict=True):
        np.testing.assert_array_equal(got.frames, wrote.frames)
        np.testing.assert_array_equal(got.actions, wrote.actions)
        np.testing.assert_array_equal(got.rewards, wrote.rewards)
    store.close()


@pytest.mark.parametrize("name", ["actions", "rewards"])
def test_a_file_with_numbers_that_are_not_finite_is_refused(tmp_path, name):
    write_store(tmp_path, [make_episode(2, 0), make_episode(3, 1)])
    with h5py.File(tmp_path / "00000.h5", "r+") as file:
        file[name][3] = np.nan
    with pytest.raises(ValueError, match=rf"00000\.h5: expected finite {name}, got .*nan.* at step 1 of episode 1$"):
        EpisodeShard(str(tmp_path / "00000.h5"))


def open_files(store):
    return sum(bool(shard._file) for shard in store.shards)


def test_a_store_has_more_shards_than_open_files(tmp_path, monkeypatch):
    written = [make_episode(3, seed) for seed in range(9)]
    write_store(tmp_path, written, per_shard=1)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10, 10))
    store = EpisodeStore(tmp_path)
    assert open_files(store) == 4
    everything = np.concatenate([episode.frames for episode in written])
    order = np.random.default_rng(0).permutation(np.tile(np.arange(27), 10)).reshape(10, 27)
    with ThreadPoolExecutor(3) as threads:  # a reader and the validation read at the same time
        for indices, frames in zip(order, threads.map(store.read, order), strict=True):
            np.testing.assert_array_equal(frames, everything[indices])
    for got, wrote in zip(store.episodes(), written, strict=True):
        np.testing.assert_array_equal(got.frames, wrote.frames)
    assert open_files(store) == 4
    store.close()
    assert open_files(store) == 0
    np.testing.assert_array_equal(store.read(np.array([26])), everything[26:])
    store.close()


def test_too_many_open_files_are_no_damage(tmp_path):
    write_store(tmp_path, [make_episode(2)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError) as raised:
            EpisodeShard(tmp_path / "00000.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert raised.value.errno == errno.EMFILE
