"""Files of a run folder: their mode is the umask's, whichever library wrote them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import make_episode, make_latents, make_vae
from worldmodels.data.episodes import EpisodeWriter
from worldmodels.models.weights import save_model, save_tensors
from worldmodels.support.files import atomic_path, link, write_json


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002], ids=lambda mask: f"{mask:03o}")
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_all(folder: Path) -> list[Path]:
    save_tensors(folder / "tensors.safetensors", {"a": torch.zeros(3)}, {})
    save_tensors(folder / "narrow.safetensors", {"a": torch.zeros(3, dtype=torch.bfloat16)}, {})
    save_model(folder / "deep" / "vae.safetensors", make_vae(2))
    make_latents([3]).save(folder / "latents.safetensors")
    write_json(folder / "some.json", {"a": 1})
    with EpisodeWriter(folder / "shard.h5", 1) as writer:
        writer.append(make_episode(3))
    with atomic_path(folder / "copy") as temporary:
        shutil.copyfile(folder / "some.json", temporary)
    with atomic_path(folder / "replaced") as temporary:
        other = temporary.with_name("other")
        other.touch(0o600)
        other.replace(temporary)
    return [path for path in folder.rglob("*") if path.is_file()]


def test_every_file_has_the_mode_of_the_umask(umask, tmp_path):
    written = write_all(tmp_path)
    assert len(written) == 9
    assert {path.name: oct(mode(path)) for path in written} == {path.name: oct(0o666 & ~umask) for path in written}
    (tmp_path / "some.json").chmod(0o600)
    write_json(tmp_path / "some.json", {"a": 2})
    assert mode(tmp_path / "some.json") == 0o666 & ~umask


def test_a_copy_by_link_on_another_disk(umask, tmp_path, monkeypatch):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {})
    monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError()))
    link(tmp_path / "a.safetensors", tmp_path / "b" / "b.safetensors")
    assert mode(tmp_path / "b" / "b.safetensors") == 0o666 & ~umask


def test_a_link_to_a_symbolic_link_is_a_name_of_its_file(tmp_path):
    write_json(tmp_path / "real.json", 1)
    (tmp_path / "other.json").symlink_to("real.json")
    link(tmp_path / "other.json", tmp_path / "deep" / "b.json")
    assert not (tmp_path / "deep" / "b.json").is_symlink()
    assert (tmp_path / "deep" / "b.json").samefile(tmp_path / "real.json")


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="no setfacl here")
def test_a_default_acl_goes_before_the_umask(tmp_path):
    done = subprocess.run(["setfacl", "-d", "-m", "u::rw,g::rw,o::r", tmp_path], capture_output=True)
    if done.returncode:
        pytest.skip("no ACL on this file system")
    before = os.umask(0o077)
    try:
        assert {oct(mode(path)) for path in write_all(tmp_path) if path.parent == tmp_path} == {"0o664"}
    finally:
        os.umask(before)


class Sealed(OSError):
    """An error like PyAV's, whose file name cannot be set."""

    filename = property(lambda _: None)


def test_what_fails_leaves_nothing_and_what_others_write_stays(tmp_path):
    path = tmp_path / "a"
    left = tmp_path / f"a.{os.getpid()}.tmp"
    left.write_text("of a process with this id on another node")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        assert temporary != left and temporary.read_bytes() == b""
        temporary.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [left]
    left.unlink()
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'$"), atomic_path(path):
        raise Sealed(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    path.mkdir()
    with pytest.raises(IsADirectoryError) as refused:
        write_json(path, 1)
    assert str(refused.value) == f"[Errno 21] Is a directory: {str(path)!r}"
    path.rmdir()
    with atomic_path(path) as temporary:
        temporary.write_bytes(np.arange(3, dtype=np.uint8).tobytes())
    assert path.read_bytes() == b"\0\1\2" and list(tmp_path.iterdir()) == [path]
