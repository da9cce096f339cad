"""Models in folders: what is saved is what is loaded, and what does not fit is refused by name."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import worldmodels as wm
from conftest import make_mdnrnn, make_vae


def make_agent():
    controller = wm.Controller(4, 8, 1)
    params = np.random.default_rng(3).normal(size=controller.size).astype(np.float32)
    return wm.Agent(make_vae(), make_mdnrnn(), controller, params)


def make_world():
    mu, logvar = np.random.default_rng(4).normal(size=(2, 20, 4)).astype(np.float32)
    return wm.WorldModel(make_mdnrnn(), mu, logvar)


MODELS = {"ConvVAE": make_vae, "MDNRNN": make_mdnrnn, "Agent": make_agent, "WorldModel": make_world}


def tensors(model):
    """Everything that a model consists of."""
    if isinstance(model, wm.Agent):
        return [*tensors(model.vae), *tensors(model.mdnrnn), torch.from_numpy(model.params)]
    if isinstance(model, wm.WorldModel):
        return [*tensors(model.mdnrnn), *map(torch.from_numpy, model[1:])]
    return list(model.state_dict().values())


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_back_what_was_saved(name, tmp_path):
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(model)
    pairs = list(zip(tensors(model), tensors(loaded), strict=True))
    assert pairs and all(torch.equal(one, other) for one, other in pairs)
    assert {path.suffix for path in (tmp_path / "saved").rglob("*") if path.is_file()} <= {".safetensors", ".json"}


def test_an_agent_of_a_folder_acts_alike(tmp_path):
    agent = make_agent()
    agent.save_pretrained(tmp_path)
    frames = np.random.default_rng(5).integers(0, 256, (3, 2, 64, 64, 3), np.uint8)
    loaded = wm.Agent.from_pretrained(str(tmp_path))
    for one in (agent, loaded, also := wm.Agent.load(tmp_path)):
        one.reset(2, seed=7)
    for batch in frames:
        expected = agent.act(batch)
        np.testing.assert_array_equal(expected, loaded.act(batch))
        np.testing.assert_array_equal(expected, also.act(batch))


def test_one_folder_holds_all_classes(tmp_path):
    make_agent().save_pretrained(tmp_path)
    make_world().save_pretrained(tmp_path)
    for name, make in MODELS.items():
        assert type(make()).from_pretrained(tmp_path), name


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_file_is_named(name, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    kind = type(MODELS[name]())
    with pytest.raises(FileNotFoundError, match=rf"{kind._FILES[0]}.* for {name}, got pytorch_model.bin; pickled"):
        kind.from_pretrained(tmp_path)


def test_another_class_is_refused(tmp_path):
    make_vae().save_pretrained(tmp_path)
    (tmp_path / "rnn").mkdir()
    (tmp_path / "vae" / "vae.safetensors").rename(tmp_path / "rnn" / "rnn.safetensors")
    with pytest.raises(ValueError, match=r"rnn\.safetensors: expected a MDNRNN, got 'ConvVAE'"):
        wm.MDNRNN.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["short", "flipped", "pickle"])
def test_damage_is_refused(damage, tmp_path):
    make_mdnrnn().save_pretrained(tmp_path)
    path = tmp_path / "rnn" / "rnn.safetensors"
    data = path.read_bytes()
    flipped = data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]
    path.write_bytes({"short": data[:-40], "flipped": flipped, "pickle": b"\x80\x04}q\x00."}[damage])
    with pytest.raises(ValueError, match=r"rnn\.safetensors: expected"):
        wm.MDNRNN.from_pretrained(tmp_path)


def test_a_missing_folder_is_no_repository(tmp_path):
    for source in (tmp_path / "nothing", str(tmp_path / "nothing"), "./nothing", Path("nothing")):
        with pytest.raises(FileNotFoundError, match=r"pretrained_model_name_or_path: no such folder: .*nothing"):
            wm.Agent.from_pretrained(source)


def test_a_run_folder_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="save_directory: expected a folder that is no run folder"):
        make_vae().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_without_the_extra_only_the_hub_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    make_vae().save_pretrained(tmp_path)
    assert wm.ConvVAE.from_pretrained(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"push_to_hub: .*worldmodels-rl\[hub\]"):
        make_vae().push_to_hub("tester/one")
    with pytest.raises(ModuleNotFoundError, match=r"tester/one: no such folder; .*worldmodels-rl\[hub\]"):
        wm.ConvVAE.from_pretrained("tester/one")


def test_nothing_imports_huggingface_hub_by_itself():
    code = "import sys, worldmodels as wm; wm.Agent, wm.WorldModel; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
