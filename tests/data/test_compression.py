"""Compressed frames next to HDF5's own filters: what they read is what was written."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from conftest import write_store
from worldmodels import _core
from worldmodels.data.episodes import Episode, EpisodeStore, shard_path


def frames(kind, count=6):
    """Frames of one kind, (count, 64, 64, 3) uint8."""
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, (count, 64, 64, 3), np.uint8)
    if kind == "noise":  # LZF does not make it smaller
        return noise
    if kind == "black":
        return np.zeros_like(noise)
    if kind == "far repeats":  # at and beyond the farthest distance, 8192
        flat = noise.reshape(count, -1)
        for index, frame in enumerate(flat):
            frame[8189 + index :] = frame[: 12288 - 8189 - index]
        return noise
    if kind == "runs":  # of every length
        lengths = rng.integers(1, 600, 12288)
        return np.resize(np.repeat(rng.integers(0, 256, 12288), lengths).astype(np.uint8), noise.shape)
    return np.where(rng.random(noise.shape) < 0.1, noise, noise[:, :1] // 64 * 64)  # rows that are much alike


@pytest.mark.parametrize("kind", ["noise", "black", "far repeats", "runs", "rows"])
def test_hdf5_reads_what_was_compressed(tmp_path, kind):
    shown = frames(kind)
    actions, rewards = np.zeros((len(shown), 1), np.float32), np.zeros(len(shown), np.float32)
    write_store(tmp_path, [Episode(shown, actions, rewards, True, "noop", 0)] * 2)
    with h5py.File(shard_path(tmp_path, 0)) as file:
        data = file["frames"]
        assert (data.compression, data.fletcher32, data.chunks) == ("lzf", True, (1, 64, 64, 3))
        np.testing.assert_array_equal(data[:], np.concatenate([shown, shown]))
        chunks = [data.id.get_chunk_info(index) for index in range(len(shown))]
    uncompressed = {"noise": 6 * [1], "far repeats": [0, 0, 0, 0, 1, 1]}.get(kind, 6 * [0])  # repeats to 8192 bytes
    assert [chunk.filter_mask for chunk in chunks] == uncompressed
    sizes = [chunk.size for chunk in chunks]
    assert all(size == 12288 + 4 if mask else size < 12288 for size, mask in zip(sizes, uncompressed, strict=True))
    if kind == "black":
        assert max(sizes) < 200


def test_a_changed_byte_is_found(tmp_path):
    shown = frames("rows")
    actions, rewards = np.zeros((len(shown), 1), np.float32), np.zeros(len(shown), np.float32)
    write_store(tmp_path, [Episode(shown, actions, rewards, True, "noop", 0)])
    path = shard_path(tmp_path, 0)
    with h5py.File(path) as file:
        chunk = file["frames"].id.get_chunk_info(2)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset + chunk.size // 2] ^= 4
    path.write_bytes(damaged)
    store = EpisodeStore(tmp_path)
    with pytest.raises(OSError, match="frame 2 is damaged"):
        store.read(np.array([2]))
    np.testing.assert_array_equal(store.read(np.array([1, 3])), shown[[1, 3]])
    store.close()


def test_the_bytes_depend_on_the_frame_alone():
    shown = frames("rows")
    data, ends, compressed = _core.compress_frames(shown)
    starts = [0, *ends[:-1]]
    for index in range(len(shown)):
        one, (end,), (is_compressed,) = _core.compress_frames(shown[index : index + 1])
        assert one[:end].tobytes() == data[starts[index] : ends[index]].tobytes()
        assert is_compressed == compressed[index]


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match=r"^frames: expected \(n, 64, 64, 3\) uint8, got \(1, 64, 64, 4\) uint8"):
        _core.compress_frames(np.zeros((1, 64, 64, 4), np.uint8))
    with pytest.raises(ValueError, match=r"^frames: expected \(n, 64, 64, 3\) uint8, got \(0, 64, 64, 3\) uint8"):
        _core.compress_frames(np.zeros((0, 64, 64, 3), np.uint8))
