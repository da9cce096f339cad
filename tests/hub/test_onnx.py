"""ONNX files: onnxruntime computes what the models compute, for any batch."""

import json
import sys

import numpy as np
import pytest
import torch

import worldmodels as wm
from conftest import make_mdnrnn, make_vae
from worldmodels.cli import main
from worldmodels.hub import onnx
from worldmodels.hub.onnx import FILES, export_onnx

onnxruntime = pytest.importorskip("onnxruntime")
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
CONTROLLERS = {
    "tanh": {},
    "bias": {"features": "zh", "bias": True},
    "hidden": {"features": "z", "hidden_units": 5, "bias": True},
    "zc": {"features": "zc"},
    "argmax": {"action_size": 4, "squash": "argmax", "choices": (4,)},
    "several": {"action_size": 7, "squash": "argmax", "choices": (3, 2, 2), "bias": True},
    "carracing": {"action_size": 3, "features": "zh", "bias": True, "squash": "carracing"},
}


def make_agent():
    shape = wm.Controller(4, 8, 1)
    return wm.Agent(make_vae(), make_mdnrnn(), shape, np.random.default_rng(3).normal(size=shape.size))


def run(folder, name, **inputs):
    """Outputs of a file by name, computed by onnxruntime."""
    session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    inputs = {name: np.asarray(value, np.float32) for name, value in inputs.items()}
    return dict(zip(outputs, session.run(outputs, inputs), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    agent = make_agent()
    folder = tmp_path_factory.mktemp("onnx")
    assert [path.name for path in export_onnx(agent, folder)] == list(FILES)
    return agent, folder


@pytest.mark.parametrize("batch", [1, 5])
def test_v_encodes_and_decodes(exported, batch):
    agent, folder = exported
    x = torch.rand(batch, 3, 64, 64)
    with torch.inference_mode():
        mu, logvar = agent.vae.encode(x)
        decoded = agent.vae.decode(mu)
    found = run(folder, "encoder.onnx", x=x)
    np.testing.assert_allclose(found["mu"], mu, **TOLERANCE)
    np.testing.assert_allclose(found["logvar"], logvar, **TOLERANCE)
    np.testing.assert_allclose(run(folder, "decoder.onnx", z=mu)["x"], decoded, **TOLERANCE)


@pytest.mark.parametrize("heads", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("restart_input", [False, True])
def test_m_steps(heads, restart_input, tmp_path):
    done, reward = heads
    model = make_mdnrnn(restart_input=restart_input, done_head=done, reward_head=reward)
    with torch.no_grad():
        model.head.bias[-1] = 20.0  # beyond the range of log standard deviations
    (tmp_path / "step.onnx").write_bytes(onnx._step(model).model("step", model.config))
    rng = np.random.default_rng(7)
    for batch in (1, 6):
        h, c = rng.normal(size=(2, batch, 8)).astype(np.float32)
        z, action = rng.normal(size=(batch, 4)).astype(np.float32), rng.uniform(-1, 1, (batch, 1)).astype(np.float32)
        restart = (np.arange(batch) % 2).astype(np.float32)
        inputs = [torch.from_numpy(array)[:, None] for array in (z, action, restart)]
        with torch.inference_mode():
            out, state = model(*inputs, (torch.from_numpy(h)[None], torch.from_numpy(c)[None]))
        found = run(tmp_path, "step.onnx", z=z, action=action, restart=restart, h=h, c=c)
        expected = {name: value[:, 0] for name, value in out._asdict().items() if value is not None}
        expected |= {"next_h": state[0][0], "next_c": state[1][0]}
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, **TOLERANCE, err_msg=name)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_c_acts(name, tmp_path):
    controller = wm.Controller(4, 8, **{"action_size": 1, **CONTROLLERS[name]})
    rng = np.random.default_rng(8)
    params = rng.normal(size=controller.size).astype(np.float32)
    (tmp_path / "controller.onnx").write_bytes(onnx._controller(controller, params).model("controller", {}))
    for batch in (1, 33):
        z, (h, c) = rng.normal(size=(batch, 4)), rng.normal(size=(2, batch, 8))
        features = controller.join(*(array.astype(np.float32) for array in (z, c, h)))
        found = run(tmp_path, "controller.onnx", z=z, h=h, c=c)["action"]
        np.testing.assert_allclose(found, controller.act(params, features), **TOLERANCE)


def test_the_files_replay_the_agent(exported):
    agent, folder = exported
    agent.reset(2, seed=4)
    noise = [np.random.default_rng([4, env]) for env in range(2)]
    h, c = np.zeros((2, 2, 8), np.float32)
    frames = np.random.default_rng(9).integers(0, 256, (4, 2, 64, 64, 3), np.uint8)
    for step, batch in enumerate(frames):
        latent = run(folder, "encoder.onnx", x=batch.transpose(0, 3, 1, 2) / 255)
        eps = np.stack([generator.standard_normal(4, np.float32) for generator in noise])
        z = latent["mu"] + np.exp(0.5 * latent["logvar"]) * eps
        action = run(folder, "controller.onnx", z=z, h=h, c=c)["action"]
        np.testing.assert_allclose(agent.act(batch), action, **TOLERANCE)
        out = run(folder, "step.onnx", z=z, action=action, restart=[step == 0] * 2, h=h, c=c)
        h, c = out["next_h"], out["next_c"]


def test_the_files_carry_their_configuration(exported):
    agent, folder = exported
    for name, config in (("encoder.onnx", agent.vae.config), ("step.onnx", agent.mdnrnn.config)):
        session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        assert json.loads(session.get_modelmeta().custom_metadata_map["config"]) == config
        assert all(value.shape[0] == "batch" for value in [*session.get_inputs(), *session.get_outputs()])


def test_the_command_exports_a_pretrained_agent(tmp_path, capsys):
    assert main(["export", "takecover", "--out", str(tmp_path / "onnx")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(FILES)
    agent = wm.Agent.pretrained("takecover")
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        mu, _ = agent.vae.encode(x)
    np.testing.assert_allclose(run(tmp_path / "onnx", "encoder.onnx", x=x)["mu"], mu, **TOLERANCE)


def test_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"export: no module named 'onnx'; .*worldmodels-rl\[onnx\]"):
        export_onnx(make_agent(), tmp_path)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"^folder: expected a folder, got a file: .*file"):
        export_onnx(make_agent(), tmp_path / "file")
