import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from worldmodels import Agent, Dream, WorldModel, load_world_model, pretrained, simd_levels

NEEDS_BFLOAT16 = pytest.mark.skipif("avx512_bf16" not in simd_levels(), reason="no AVX-512 BF16 here")


def test_names_and_errors():
    assert "takecover" in pretrained.names()
    with pytest.raises(ValueError, match=r"^name: expected one of .*takecover.*, got 'pong'"):
        pretrained.folder("pong")
    for load in (Agent.pretrained, Dream.pretrained):
        with pytest.raises(ValueError, match=r"^name: "):
            load("pong")


def test_a_path_is_a_run_folder_even_with_the_name_of_a_pretrained_agent():
    assert pretrained.resolve("takecover") == pretrained.path("takecover")
    assert pretrained.resolve(Path("./takecover")) == pretrained.resolve("./takecover") == Path("takecover")


@pytest.mark.parametrize("file", ["vae/vae.safetensors", "rnn/initial.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, monkeypatch, file):
    shutil.copytree(pretrained.folder("takecover"), tmp_path / "takecover")
    monkeypatch.setattr(pretrained, "_HERE", tmp_path)
    assert pretrained.folder("takecover") == tmp_path / "takecover"
    data = bytearray((tmp_path / "takecover" / file).read_bytes())
    data[-1] ^= 1
    (tmp_path / "takecover" / file).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{file}: expected SHA-256"):
        pretrained.folder("takecover")
    (tmp_path / "takecover" / file).unlink()
    with pytest.raises(FileNotFoundError):
        pretrained.folder("takecover")


def test_every_file_is_hashed_and_described():
    for name in pretrained.names():
        folder = pretrained.folder(name)
        found = (path for ending in ("safetensors", "webp") for path in folder.rglob(f"*.{ending}"))
        files = {str(path.relative_to(folder)) for path in found}
        assert files == set(json.loads((folder / pretrained.HASHES).read_text()))
        assert "seed" in (folder / "README.md").read_text()


def test_agent_acts():
    agent = Agent.pretrained("takecover")
    assert all(parameter.dtype == torch.float32 for parameter in agent.vae.parameters())
    agent.reset(2)
    frames = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    assert agent.act(frames).shape == (2, 1)


def test_the_agents_controller_survives_longer_in_the_dream_than_a_zero_one():
    dream = Dream.pretrained("takecover", temperature=1.15, termination="threshold")
    params = np.stack([Agent.pretrained("takecover").params, np.zeros(dream.controller.size, np.float32)])
    survived = dream.rollout(params, 64, max_steps=600).lengths.mean(axis=1)
    assert survived[0] > 1.5 * survived[1]


@pytest.mark.parametrize("name", ["takecover", pretrained.path("takecover"), str(pretrained.path("takecover"))])
def test_a_world_model_is_loaded_by_its_name_or_from_its_folder(name):
    world = load_world_model(name)
    assert isinstance(world, WorldModel)
    assert world.initial_mu.dtype == np.float32 and world.initial_mu.shape[1] == world.mdnrnn.latent_size
    assert world.initial_logvar.shape == world.initial_mu.shape
    assert world.mdnrnn.done_pos_weight == 10
    dream = Dream(*world, Dream.pretrained("takecover").controller, termination="expected")
    params = np.zeros((1, dream.controller.size))
    same = Dream.pretrained("takecover").rollout(params, 4, max_steps=20)
    assert (dream.rollout(params, 4, max_steps=20).returns == same.returns).all()


def test_a_world_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^name: expected carracing, takecover or a run folder, got 'pong'$"):
        load_world_model("pong")
    with pytest.raises(
        FileNotFoundError, match=r"^run_folder: expected carr.*, got 'takecovr'; did you mean 'takecover'"
    ):
        Agent.load("takecovr")
    with pytest.raises(FileNotFoundError, match=r"rnn\.safetensors: no such file"):
        load_world_model(tmp_path)


def test_the_pretrained_dream_has_its_own_termination():
    assert Dream.pretrained("takecover").termination == "expected"
    assert Dream.load("takecover").termination == "expected"
    assert Dream.pretrained("takecover", termination="threshold").termination == "threshold"
    with pytest.raises(ValueError, match=r"^termination: expected one of threshold, sample, expected, got 'chance'"):
        Dream.pretrained("takecover", termination="chance")


@NEEDS_BFLOAT16
@pytest.mark.parametrize(
    "agent", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["standing still", "the agent"]
)
def test_bfloat16_dreams_of_a_trained_model_are_distributed_as_float32s(agent):
    lengths = {}
    for seed, precision in enumerate(("float32", "bfloat16")):
        dream = Dream.pretrained("takecover", temperature=1.15, precision=precision, termination="threshold")
        params = Agent.pretrained("takecover").params if agent else np.zeros(dream.controller.size, np.float32)
        lengths[precision] = dream.rollout(params[None], 4096, seed=seed, max_steps=600).lengths[0].astype(float)
    exact, rough = lengths["float32"], lengths["bfloat16"]
    assert ks_2samp(exact, rough).pvalue > 1e-3
    error = np.sqrt((exact.var() + rough.var()) / 4096)
    assert abs(exact.mean() - rough.mean()) < 3.5 * error
