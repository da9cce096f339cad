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
    with pytest.raises(FileExistsError, match="save_directory: expected a folder that is not a run folder"):
        make_vae().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_numpy_numbers_are_stored_as_python_ones(tmp_path):
    """In the constructors of V, M and C, so that all of them can be saved."""
    four, eight, one = np.int64(4), np.int32(8), np.uint8(1)
    model = wm.MDNRNN(four, one, eight, np.int64(2), restart_input=np.True_, done_head=np.bool_(True))
    controller = wm.Controller(four, eight, one, bias=np.True_, hidden_units=np.int64(3))
    vae = wm.ConvVAE(four)
    for numbers in (vae.config, model.config, vars(controller)):
        assert {type(value) for value in numbers.values()} <= {int, bool, float, str, tuple}
    wm.Agent(vae, model, controller, np.zeros(controller.size)).save_pretrained(tmp_path)
    assert wm.Agent.load(tmp_path).controller == controller


def spoilt(name):
    """A model with one number that is not finite, and the error."""
    model = MODELS[name]()
    if name == "WorldModel":
        model.initial_logvar[3, 1] = np.inf
        return model, r"^initial_logvar: expected finite numbers, got inf at flat index 13"
    if name == "Agent":
        model.params[2] = np.nan
        return model, r"^params: expected \(20,\) finite numbers, got nan at \[2\]"
    weight = {"ConvVAE": "mu.weight", "MDNRNN": "head.bias"}[name]
    with torch.no_grad():
        model.get_parameter(weight).view(-1)[0] = torch.nan
    return model, rf"^{weight}: expected finite weights"


@pytest.mark.parametrize("name", MODELS)
def test_what_could_not_be_loaded_is_not_saved(name, tmp_path):
    model, message = spoilt(name)
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_initial_states_that_do_not_fit_are_not_saved(tmp_path):
    model, mu, logvar = make_world()
    bad = [
        (ValueError, r"^initial_mu: expected \(K, 4\) float32, got \(3, 7\) float64", np.zeros((3, 7)), logvar),
        (ValueError, r"^initial_logvar: expected \(20, 4\) float32, got \(2, 4\)", mu, logvar[:2]),
        (ValueError, r"^initial_mu: expected \(K, 4\) float32, got \(0, 4\)", mu[:0], logvar[:0]),
        (ValueError, "^initial_logvar: expected numbers of at most 80.0, got 81.0 at flat index 0", mu, 0 * mu + 81),
    ]
    for error, message, *states in bad:
        with pytest.raises(error, match=message):
            wm.WorldModel(model, *states).save_pretrained(tmp_path / "bad")
    with pytest.raises(TypeError, match=r"^mdnrnn: expected an MDNRNN, got NoneType"):
        wm.WorldModel(None, mu, logvar).save_pretrained(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    wm.WorldModel(model, mu[::-1], logvar[::-1].astype(np.float64)).save_pretrained(tmp_path)
    _, loaded_mu, loaded_logvar = wm.WorldModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded_mu, mu[::-1])
    np.testing.assert_array_equal(loaded_logvar, logvar[::-1])


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
