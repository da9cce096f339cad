"""Recordings of others: folders of frames and actions become the episodes of a run without an environment."""

import shutil
import zipfile

import h5py
import numpy as np
import pytest

import worldmodels as wm
from conftest import mark_done
from worldmodels.cli import main
from worldmodels.data.episodes import EpisodeStore
from worldmodels.envs.preprocessing import resize
from worldmodels.hub.recordings import Recordings, read_steps
from worldmodels.pipeline import recordings, tasks
from worldmodels.pipeline.run import Run
from worldmodels.support.progress import Progress

LENGTHS = (30, 24, 41)


def write_episode(folder, length, *, side=64, seed=0, reward=True, terminated=True, actions=2):
    """An episode with a square that follows the first action."""
    rng = np.random.default_rng([seed, length])
    frames = rng.integers(0, 40, (length, side, side, 3), np.uint8)
    columns = {f"a{index}": rng.uniform(-1, 1, length) for index in range(actions)}
    for frame, where in zip(frames, (columns["a0"] + 1) * (side - 10) / 2, strict=True):
        frame[10:20, int(where) : int(where) + 10] = 220
    columns |= {"reward": columns["a0"]} if reward else {}
    columns |= {"terminated": np.eye(length)[-1] if seed % 2 else np.zeros(length)} if terminated else {}
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "frames.npz", frames=frames)
    rows = [",".join(f"{value:.6f}" for value in row) for row in zip(*columns.values(), strict=True)]
    (folder / "actions.csv").write_text("\n".join([",".join(columns), *rows]) + "\n")
    return frames, columns


@pytest.fixture
def folder(tmp_path):
    for number, length in enumerate(LENGTHS):
        write_episode(tmp_path / "recordings" / f"{number:03d}", length, seed=number)
    return tmp_path / "recordings"


def test_episodes_are_those_of_the_folder(tmp_path):
    written = [
        write_episode(tmp_path / "all" / name, length, side=side, seed=seed)
        for name, length, side, seed in (("b", 5, 64, 0), ("a", 7, 128, 1))
    ]
    found = Recordings(tmp_path / "all")
    assert (len(found), found.names, found.has_rewards, found.has_termination) == (2, ("a0", "a1"), True, True)
    for episode, (frames, columns) in zip(map(found.read, range(2)), reversed(written), strict=True):
        expected = [frame if frame.shape == (64, 64, 3) else resize(frame) for frame in frames]
        np.testing.assert_array_equal(episode.frames, expected)
        np.testing.assert_allclose(episode.actions, np.stack([columns["a0"], columns["a1"]], axis=1), atol=1e-6)
        np.testing.assert_allclose(episode.rewards, columns["reward"], atol=1e-6)
        assert episode.terminated == bool(columns["terminated"][-1])


def test_a_run_of_recordings_dreams_without_an_environment(folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert main(["collect", "--from", str(folder), *out, "--shard-episodes", "2"]) == 0
    store = EpisodeStore(tmp_path / "run" / "episodes")
    assert store.lengths.tolist() == list(LENGTHS) and len(store.paths) == 2
    assert [episode.terminated for episode in store.episodes()] == [False, True, False]
    expected = Recordings(folder).read(2)
    np.testing.assert_array_equal(list(store.episodes())[2].frames, expected.frames)
    store.close()
    sizes = ["--steps", "3", "--batch-size", "2"]
    assert main(["train-vae", *out, *sizes, "--latent-size", "4", "--validation-frames", "4", "--force"]) == 0
    assert main(["encode", *out]) == 0
    assert main(["train-rnn", *out, *sizes, "--hidden-size", "8", "--sequence-length", "8"]) == 0
    world = wm.load_world_model(tmp_path / "run")
    assert (world.mdnrnn.action_size, world.mdnrnn.done_head, world.mdnrnn.reward_head) == (2, True, True)
    evolve = ["--generations", "1", "--popsize", "4", "--episodes", "1", "--max-steps", "9", "--evaluate-episodes", "2"]
    assert main(["evolve", *out, *evolve]) == 0
    assert main(["dream", str(tmp_path / "run"), "--episodes", "2", "--gif", str(tmp_path / "dream.gif")]) == 0
    assert (tmp_path / "dream.gif").stat().st_size > 0
    capsys.readouterr()
    before = sorted((tmp_path / "run" / "stages").iterdir())
    for line in (["play", str(tmp_path / "run")], ["check-dream", *out], ["evaluate", *out], ["report", *out]):
        assert main(line) == 1
        assert f"{line[0]}: expected a run with an environment, got one of recordings" in capsys.readouterr().err
    assert sorted((tmp_path / "run" / "stages").iterdir()) == before
    assert main(["status", str(tmp_path / "run")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"complete; `worldmodels web {tmp_path / 'run'}` plays its dream"
    assert main(["evolve", *out, "--evaluate-in", "environment", "--force"]) == 1
    assert (
        "evolve.evaluate_in: expected dream, as recordings have no environment, got environment"
        in capsys.readouterr().err
    )


def test_the_heads_of_m_are_those_that_the_recordings_support(tmp_path, capsys):
    for number in range(2):
        write_episode(tmp_path / "all" / str(number), 9, seed=number, reward=False, terminated=False, actions=1)
    assert main(["collect", "--from", str(tmp_path / "all"), "--out", str(tmp_path / "run")]) == 0
    config = Run.stored_config(tmp_path / "run")
    assert (config.task, config.train_rnn.reward_head, config.train_rnn.done_head) == ("recordings-1", False, False)
    assert tasks.get(config.task).actions == ("action 0",)
    with Run(tmp_path / "run") as run:
        mark_done(run, "train_vae", "encode", "train_rnn")
    before = sorted((tmp_path / "run" / "stages").iterdir())
    capsys.readouterr()
    assert main(["evolve", "--out", str(tmp_path / "run")]) == 1
    assert "evolve: expected recordings with rewards, so that dreams have a score, got" in capsys.readouterr().err
    assert sorted((tmp_path / "run" / "stages").iterdir()) == before
    assert main(["status", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("complete; `worldmodels web ")


def test_a_run_of_an_environment_takes_no_recordings(folder, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(f"[collect]\nsource = {str(folder)!r}\n")
    assert main(["collect", "--config", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "recorded")]) == 0
    assert Run.stored_config(tmp_path / "recorded").task == "recordings-2"
    assert main(["collect", "--from", str(folder), "--out", str(tmp_path / "run"), "--task", "takecover"]) == 1
    assert "--from: expected no --task next to it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def converted(run):
    store = EpisodeStore(run / "episodes")
    store.close()
    return store.lengths.tolist()


def test_recordings_that_grow_are_converted_again_with_force(folder, tmp_path, capsys):
    line = ["collect", "--from", str(folder), "--out", str(tmp_path / "run")]
    assert main(line) == main(line) == 0
    write_episode(folder / "003", 5)
    assert main(line) == 1
    expected = f"collect.source: expected 3 episodes, got 4 in {folder}; use --episodes 4, or --force to convert all"
    assert expected in capsys.readouterr().err
    assert converted(tmp_path / "run") == list(LENGTHS)
    assert main([*line, "--force"]) == 0
    assert converted(tmp_path / "run") == [*LENGTHS, 5]
    assert main(["collect", "--out", str(tmp_path / "run")]) == 0
    write_episode(tmp_path / "others" / "0", 5, actions=1)
    write_episode(tmp_path / "others" / "1", 5, actions=1)
    assert main(["collect", "--from", str(tmp_path / "others"), "--out", str(tmp_path / "run"), "--force"]) == 1
    assert "collect.source: expected actions of 2 dimensions, got 1" in capsys.readouterr().err
    assert converted(tmp_path / "run") == [*LENGTHS, 5]


def test_a_damaged_recording_costs_no_episode_with_force(folder, tmp_path, capsys):
    line = ["collect", "--from", str(folder), "--out", str(tmp_path / "run")]
    assert main(line) == 0
    whole = (folder / "002" / "frames.npz").read_bytes()
    (folder / "002" / "frames.npz").write_bytes(whole[: len(whole) // 2])
    assert main([*line, "--force"]) == 1
    assert "002/frames.npz: expected an archive with the array frames" in capsys.readouterr().err
    assert converted(tmp_path / "run") == list(LENGTHS)
    (folder / "002" / "frames.npz").write_bytes(whole)
    assert main([*line, "--force"]) == 0


@pytest.mark.parametrize("shard_episodes", [1, 25])
def test_a_damaged_episode_can_be_deleted(folder, tmp_path, capsys, monkeypatch, shard_episodes):
    """Episodes that are converted already are kept, and their number is where the progress starts."""
    started = []
    monkeypatch.setattr(
        recordings, "Progress", lambda *given, start: started.append(start) or Progress(*given, start=start)
    )
    line = ["collect", "--from", str(folder), "--out", str(tmp_path / "run"), "--shard-episodes", str(shard_episodes)]
    (folder / "002" / "frames.npz").write_bytes(b"PK")
    assert main(line) == 1
    shutil.rmtree(folder / "002")
    if shard_episodes == 1:
        assert main(line) == 1
        assert "expected 3 episodes, got 2" in capsys.readouterr().err
        line += ["--episodes", "2"]
    assert main(line) == 0
    assert converted(tmp_path / "run") == list(LENGTHS[:2])
    assert started == ([0, 2] if shard_episodes == 1 else [0, 0])


def test_converted_episodes_are_those_of_the_recordings(folder, tmp_path, capsys):
    """A recording that sorts before the converted ones would be missing, and one of them there twice."""
    line = ["collect", "--from", str(folder), "--out", str(tmp_path / "run"), "--shard-episodes", "1"]
    whole = (folder / "002" / "frames.npz").read_bytes()
    (folder / "002" / "frames.npz").write_bytes(b"PK")
    assert main(line) == 1
    (folder / "002" / "frames.npz").write_bytes(whole)
    (folder / "001").rename(folder / "000a")
    (folder / "000").rename(folder / "001")
    capsys.readouterr()
    assert main(line) == 1
    assert f"expected 000 as episode 0 of {folder}, as it was converted, got 000a; use" in capsys.readouterr().err
    assert main([*line, "--force"]) == 0
    assert converted(tmp_path / "run") == [LENGTHS[1], LENGTHS[0], LENGTHS[2]]


def test_more_files_than_recordings_are_refused(folder, tmp_path, capsys):
    line = ["collect", "--from", str(folder), "--out", str(tmp_path / "run"), "--shard-episodes", "1"]
    assert main(line) == 0
    (tmp_path / "run" / "stages" / "collect.json").unlink()
    shutil.rmtree(folder / "002")
    assert main([*line, "--episodes", "2"]) == 1
    assert "collect.episodes: expected a number that fits" in capsys.readouterr().err
    assert converted(tmp_path / "run") == list(LENGTHS)


def test_one_episode_is_not_enough(tmp_path, capsys):
    write_episode(tmp_path / "all" / "0", 9)
    assert main(["collect", "--from", str(tmp_path / "all"), "--out", str(tmp_path / "run")]) == 1
    assert "collect.source: expected at least 2 episodes, to hold one out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a0\n", "expected at least one row"),
        ("a0\nx\n", "expected 1 finite numbers in line 2"),
        ("a0\n1\nnan\n", "expected 1 finite numbers in line 3"),
        ("a0,a1\n1\n", "expected 2 finite numbers in line 2"),
        ("a0\n1e39\n", "expected numbers of float32"),
        ("a0,a0\n1,1\n", "expected distinct column names"),
        ("reward\n1\n", "expected distinct column names, at least one of them an action"),
        ("", "expected distinct column names"),
        ("a0,terminated\n0,1\n0,0\n", "expected terminated to be 0 or 1, and 1 in the last row only"),
        ("a0,terminated\n0,2\n", "expected terminated to be 0 or 1"),
    ],
)
def test_damaged_tables_are_refused_by_name(tmp_path, text, message):
    (tmp_path / "actions.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"actions\.csv: {message}"):
        read_steps(tmp_path / "actions.csv")


def test_damaged_episodes_are_refused_by_name(folder):
    (folder / "001" / "actions.csv").write_text("a0\n1\n")
    with pytest.raises(ValueError, match=r"001/actions\.csv: expected the columns a0, a1, reward, terminated, got a0"):
        Recordings(folder)
    (folder / "001" / "actions.csv").write_text("a0,a1,reward,terminated\n1,1,1,0\n")
    with pytest.raises(ValueError, match=r"001/frames\.npz: expected 1 frames, the rows of actions\.csv, got 24"):
        Recordings(folder).read(1)
    for data in (b"PK\x03\x04", b"\x80\x04.", b""):
        (folder / "001" / "frames.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"001/frames\.npz: expected an archive with the array frames"):
            Recordings(folder).read(1)
    np.save(folder / "001" / "frames.npy", np.zeros((1, 64, 64, 3), np.uint8))
    (folder / "001" / "frames.npy").replace(folder / "001" / "frames.npz")
    with pytest.raises(ValueError, match=r"001/frames\.npz: expected an archive with the array frames"):
        Recordings(folder).read(1)
    np.savez(folder / "001" / "frames.npz", frames=np.zeros((1, 64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"expected frames of \(T, height, width, 3\) uint8, got \(1, 64, 64\)"):
        Recordings(folder).read(1)
    (folder / "001" / "frames.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"001: expected frames\.npz or frames\.mp4, got neither"):
        Recordings(folder)
    with pytest.raises(FileNotFoundError, match="no such folder of recordings"):
        Recordings(folder / "nothing")
    with pytest.raises(FileNotFoundError, match="expected one folder per episode"):
        Recordings(folder / "000")


def test_archives_that_cannot_be_unpacked_are_refused_by_name(folder):
    path = folder / "001" / "frames.npz"
    whole = path.read_bytes()
    central = whole.rindex(b"PK\x01\x02")
    for start, flags in ((8, b"\x01"), (10, b"\x63")):  # encrypted; by an unknown method
        path.write_bytes(whole[: central + start] + flags + whole[central + start + 1 :])
        with pytest.raises(ValueError, match=r"001/frames\.npz: expected an archive with the array frames"):
            Recordings(folder).read(1)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive, archive.open("frames.npy", "w") as file:
            shape = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 64, 64, 3)}
            np.lib.format.write_array_header_1_0(file, shape)
        with pytest.raises(ValueError, match=rf"frames\.npz: .*, got a header of {3 * 2**52} bytes in a file of \d+$"):
            Recordings(folder).read(1)


def test_frames_of_a_video(tmp_path):
    av = pytest.importorskip("av")
    frames, _ = write_episode(tmp_path / "all" / "0", 12)
    (tmp_path / "all" / "0" / "frames.npz").unlink()
    path = tmp_path / "all" / "0" / "frames.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 64, "yuv444p", {"crf": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    episode = Recordings(tmp_path / "all").read(0)
    assert episode.frames.shape == frames.shape
    assert np.abs(episode.frames.astype(int) - frames).mean() < 4
    path.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"frames\.mp4: expected a video"):
        Recordings(tmp_path / "all").read(0)


def test_a_file_written_after_the_documented_schema_is_an_episode_store(tmp_path):
    rng = np.random.default_rng(14)
    frames = rng.integers(0, 256, (9, 64, 64, 3), np.uint8)
    actions, rewards = rng.normal(size=(9, 2)).astype(np.float32), rng.normal(size=9).astype(np.float32)
    with h5py.File(tmp_path / "00000.h5", "w") as file:
        file.attrs["format"] = np.bytes_("worldmodels-episodes-1")
        file.create_dataset("frames", data=frames, chunks=(1, 64, 64, 3), compression="lzf", fletcher32=True)
        file["actions"], file["rewards"] = actions, rewards
        file["lengths"], file["seeds"] = np.array([4, 5]), np.array([0, 1])
        file["terminated"] = np.array([True, False])
        file["policies"] = np.array([b"mine", b"mine"])
    store = EpisodeStore(tmp_path)
    first, second = store.episodes()
    np.testing.assert_array_equal(first.frames, frames[:4])
    np.testing.assert_array_equal(second.actions, actions[4:])
    np.testing.assert_array_equal(second.rewards, rewards[4:])
    assert (first.terminated, second.terminated, second.policy) == (True, False, "mine")
    store.close()


def test_a_table_of_a_spreadsheet(tmp_path):
    """With a byte-order mark in front of the first name, and empty lines at the end."""
    write_episode(tmp_path / "all" / "a", 5)
    table = tmp_path / "all" / "a" / "actions.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join(reversed(line)) for line in lines[0:]) + "\n\n\n", encoding="utf-8-sig")
    (tmp_path / "all" / ".ipynb_checkpoints").mkdir()
    found = Recordings(tmp_path / "all")
    assert found.names == ("a1", "a0") and found.has_rewards and len(found) == 1
    assert len(found.read(0).actions) == 5


def test_damaged_frames_are_named(tmp_path):
    write_episode(tmp_path / "all" / "a", 40)
    path = tmp_path / "all" / "a" / "frames.npz"
    data = bytearray(path.read_bytes())
    data[2_000:2_060] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"frames\.npz: expected an archive with the array frames, got "):
        Recordings(tmp_path / "all").read(0)
