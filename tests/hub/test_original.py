"""The original code's weights: forward passes against a transcription of its arithmetic, and refusals by name."""

import errno
import json

import numpy as np
import pytest
import torch

import worldmodels as wm
from conftest import copy_linked
from worldmodels.cli import main
from worldmodels.hub import original
from worldmodels.hub.original import read_original
from worldmodels.pipeline.importing import import_original
from worldmodels.pipeline.run import Run

Z, HIDDEN, MIXTURES = 32, 24, 5
ENCODER = [(3, 32), (32, 64), (64, 128), (128, 256)]
DECODER = [(1024, 128, 5), (128, 64, 5), (64, 32, 6), (32, 3, 6)]


def integers(rng, *shape, scale):
    """An array as the original code stores it."""
    return np.round(rng.normal(size=shape) * scale * 10_000).astype(int)


def vae_arrays(rng):
    found = []
    for channels, out in ENCODER:
        found += [integers(rng, 4, 4, channels, out, scale=(2 / (16 * channels)) ** 0.5), integers(rng, out, scale=0.1)]
    for _ in range(2):
        found += [integers(rng, 1024, Z, scale=0.03), integers(rng, Z, scale=0.1)]
    found += [integers(rng, Z, 1024, scale=0.2), integers(rng, 1024, scale=0.1)]
    for channels, out, pixels in DECODER:
        scale = (2 / (channels * pixels**2 / 4)) ** 0.5
        found += [integers(rng, pixels, pixels, out, channels, scale=scale), integers(rng, out, scale=0.1)]
    return found


def rnn_arrays(rng, inputs, outputs):
    """[kernel, bias, output_w, output_b]"""
    rows = inputs + HIDDEN
    return [
        integers(rng, rows, 4 * HIDDEN, scale=rows**-0.5),
        integers(rng, 4 * HIDDEN, scale=0.3),
        integers(rng, HIDDEN, outputs, scale=0.5),
        integers(rng, outputs, scale=0.3),
    ]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be a hard link
    path.write_text(json.dumps([part.tolist() if isinstance(part, np.ndarray) else part for part in value]))


@pytest.fixture(scope="module")
def arrays():
    """Arrays of V, and those of M and the parameters of C by experiment."""
    rng = np.random.default_rng(8)
    return {
        "vae": vae_arrays(rng),
        "carracing": (rnn_arrays(rng, Z + 3, Z * MIXTURES * 3), rng.normal(size=3 * (Z + HIDDEN + 1))),
        "doomrnn": (rnn_arrays(rng, Z + 2, Z * MIXTURES * 3 + 1), rng.normal(size=Z + 2 * HIDDEN)),
        "initial": [integers(rng, 7, Z, scale=1), integers(rng, 7, Z, scale=1)],
    }


@pytest.fixture(scope="module")
def folders(arrays, tmp_path_factory):
    """The two experiments as the original repository has them; V's file is shared."""
    top = tmp_path_factory.mktemp("original")
    (kernel, bias, head, head_bias), params = arrays["carracing"]
    write(top / "carracing" / "vae" / "vae.json", arrays["vae"])
    write(top / "carracing" / "rnn" / "rnn.json", [head, head_bias, kernel, bias])  # as TensorFlow made them there
    write(top / "carracing" / "initial_z" / "initial_z.json", arrays["initial"])
    write(top / "carracing" / "log" / "carracing.cma.16.64.best.json", [params, 900.46])
    write(top / "carracing" / "log" / "carracing.cma.16.64.json", [params * 2])
    models, params = arrays["doomrnn"]
    (top / "doomrnn" / "tf_models").mkdir(parents=True)
    (top / "doomrnn" / "tf_models" / "vae.json").hardlink_to(top / "carracing" / "vae" / "vae.json")
    write(top / "doomrnn" / "tf_models" / "rnn.json", models)
    write(top / "doomrnn" / "tf_models" / "initial_z.json", arrays["initial"])
    write(top / "doomrnn" / "log" / "doomrnn.cma.16.64.best.json", [params, 958.5])
    return top


# The original arithmetic, in float64.


def process_frame(frame):
    """((1.0 - frame) * 255).round().astype(uint8): on x86-64, the conversion is modulo 256."""
    return ((1.0 - frame) * 255).round().astype(np.int64).astype(np.uint8)


def convolve(x, kernel, bias):
    """(H, W, C) with (k, k, C, D), stride 2, no padding."""
    pixels = kernel.shape[0]
    side = (x.shape[0] - pixels) // 2 + 1
    out = np.empty((side, side, kernel.shape[3]))
    for row in range(side):
        for column in range(side):
            patch = x[2 * row : 2 * row + pixels, 2 * column : 2 * column + pixels]
            out[row, column] = np.tensordot(patch, kernel, 3)
    return out + bias


def deconvolve(x, kernel, bias):
    """(H, W, C) with (k, k, D, C), stride 2, no padding: the gradient of a convolution."""
    pixels, side = kernel.shape[0], x.shape[0]
    out = np.zeros((2 * (side - 1) + pixels, 2 * (side - 1) + pixels, kernel.shape[2]))
    for row in range(side):
        for column in range(side):
            out[2 * row : 2 * row + pixels, 2 * column : 2 * column + pixels] += kernel @ x[row, column]
    return out + bias


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def encode(arrays, frame):
    p = [array / 10_000 for array in arrays]
    h = process_frame(frame) / 255.0
    for layer in range(4):
        h = np.maximum(convolve(h, p[2 * layer], p[2 * layer + 1]), 0)
    h = h.reshape(-1)
    return h @ p[8] + p[9], h @ p[10] + p[11]


def decode(arrays, z):
    p = [array / 10_000 for array in arrays]
    h = (z @ p[12] + p[13]).reshape(1, 1, 1024)
    for layer in range(7, 10):
        h = np.maximum(deconvolve(h, p[2 * layer], p[2 * layer + 1]), 0)
    return sigmoid(deconvolve(h, p[20], p[21]))


def lstm(arrays, x, c, h):
    kernel, bias = arrays[0] / 10_000, arrays[1] / 10_000
    i, j, f, o = np.split(np.concatenate([x, h]) @ kernel + bias, 4)
    c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
    return c, np.tanh(c) * sigmoid(o)


def mixture(arrays, h, doom):
    out = h @ (arrays[2] / 10_000) + arrays[3] / 10_000
    done = out[0] if doom else None
    logmix, mean, logstd = np.split(out[int(doom) :].reshape(-1, MIXTURES * 3), 3, axis=1)
    return logmix - np.log(np.exp(logmix).sum(axis=1, keepdims=True)), mean, logstd, done


def act(params, features, doom):
    if doom:
        return np.tanh(features @ params.reshape(-1, 1))
    action = np.tanh(features @ params[3:].reshape(-1, 3) + params[:3])
    return np.array([action[0], (action[1] + 1.0) / 2.0, np.clip(action[2], 0, 1)])


def frames(count):
    """Random frames without black, the one level that wraps around."""
    return np.random.default_rng(9).integers(1, 256, (count, 64, 64, 3), np.uint8)


def test_v_encodes_and_decodes_as_the_original(folders, arrays):
    vae = read_original(folders / "carracing").vae
    pictures = frames(2)
    with torch.inference_mode():
        mu, logvar = vae.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
        decoded = vae.decode(mu).permute(0, 2, 3, 1).numpy()
    for index, picture in enumerate(pictures):
        expected_mu, expected_logvar = encode(arrays["vae"], picture)
        np.testing.assert_allclose(mu[index], expected_mu, atol=2e-5)
        np.testing.assert_allclose(logvar[index], expected_logvar, atol=2e-5)
        np.testing.assert_allclose(decoded[index], decode(arrays["vae"], mu[index].double().numpy()), atol=2e-5)


def test_the_original_colours_are_a_level_darker_not_inverted():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(process_frame(levels), [255, *range(255)])


@pytest.mark.parametrize("name", ["carracing", "doomrnn"])
def test_m_predicts_as_the_original(folders, arrays, name):
    doom, model = name == "doomrnn", read_original(folders / name).mdnrnn
    weights, rng = arrays[name][0], np.random.default_rng(10)
    z, actions = rng.normal(size=(6, Z)), rng.uniform(-1, 1, (6, 1 if doom else 3))
    restart = np.array([1, 0, 0, 1, 0, 0]) if doom else np.zeros(6)
    inputs = [torch.from_numpy(array)[None].float() for array in (z, actions)]
    with torch.inference_mode():
        out, state = model(*inputs, torch.from_numpy(restart)[None].float() if doom else None)
    c, h = np.zeros((2, HIDDEN))
    for step in range(6):
        if restart[step]:
            c, h = np.zeros((2, HIDDEN))
        c, h = lstm(weights, np.concatenate([z[step], actions[step], restart[step : step + 1] if doom else []]), c, h)
        logmix, mean, logstd, done = mixture(weights, h, doom)
        np.testing.assert_allclose(out.logmix[0, step], logmix, atol=2e-5)
        np.testing.assert_allclose(out.mean[0, step], mean, atol=2e-5)
        np.testing.assert_allclose(out.logstd[0, step], logstd, atol=2e-5)
        if doom:
            assert out.done_logit[0, step].item() == pytest.approx(done, abs=2e-5)
    np.testing.assert_allclose(state[0][0, 0], h, atol=2e-5)
    np.testing.assert_allclose(state[1][0, 0], c, atol=2e-5)
    assert (out.done_logit is not None, model.restart_input, model.done_pos_weight) == (doom, doom, 10.0 if doom else 1)


@pytest.mark.parametrize("name", ["carracing", "doomrnn"])
def test_the_imported_agent_acts_as_the_original(folders, arrays, name, tmp_path):
    import_original(folders / name, tmp_path / "run")
    agent, doom = wm.Agent.load(tmp_path / "run"), name == "doomrnn"
    agent.reset(1, seed=3)
    noise = np.random.default_rng([3, 0])
    weights, params = arrays[name]
    c, h = np.zeros((2, HIDDEN))
    for step, picture in enumerate(frames(5)):
        mu, logvar = encode(arrays["vae"], picture)
        z = mu + np.exp(logvar / 2.0) * noise.standard_normal(Z, np.float32)
        action = act(params, np.concatenate([z, c, h] if doom else [z, h]), doom)
        np.testing.assert_allclose(agent.act(picture[None])[0], action, atol=1e-4)
        c, h = lstm(weights, np.concatenate([z, action, [step == 0] if doom else []]), c, h)


@pytest.mark.parametrize(
    ("count", "features", "hidden"),
    [(3 * (Z + 1), "z", 0), (3 * (Z + 2 * HIDDEN + 1), "zch", 0), (40 * (Z + 1) + 3 * 41, "z", 40)],
)
def test_other_controllers_of_the_original(folders, tmp_path, monkeypatch, count, features, hidden):
    monkeypatch.setattr(original, "_vae", lambda _: wm.ConvVAE(Z))
    folder = copy_linked(folders / "carracing", tmp_path / "carracing")
    params = np.random.default_rng(11).normal(size=count) * 0.3
    write(folder / "log" / "carracing.cma.16.64.best.json", [params, 632.0])
    found = read_original(folder)
    assert (found.controller.features, found.controller.hidden_units, found.score) == (features, hidden, 632.0)
    z = np.random.default_rng(12).normal(size=found.controller.feature_size)
    if hidden:  # the bias and the matrix (in, out) of each layer
        first, second = params[: 40 * (Z + 1)], params[40 * (Z + 1) :]
        inner = np.tanh(z @ first[40:].reshape(Z, 40) + first[:40])
        expected = act(second, inner, doom=False)
    else:
        expected = act(params, z, doom=False)
    np.testing.assert_allclose(found.controller.act(found.params, z), expected, atol=1e-5)


def test_sizes_of_the_paper(tmp_path, folders):
    rng = np.random.default_rng(13)
    folder = copy_linked(folders / "carracing", tmp_path / "carracing")
    kernel, bias = integers(rng, 32 + 3 + 256, 1024, scale=0.1), integers(rng, 1024, scale=0.1)
    write(
        folder / "rnn" / "rnn.json", [integers(rng, 256, 480, scale=0.1), integers(rng, 480, scale=0.1), kernel, bias]
    )
    write(folder / "log" / "carracing.cma.16.64.best.json", [rng.normal(size=867), 900.46])
    found = read_original(folder)
    assert sum(p.numel() for p in found.mdnrnn.parameters() if p.requires_grad) == 422_368
    assert sum(p.numel() for p in found.vae.parameters()) == 4_348_547
    assert (found.controller.size, found.controller.features, found.task) == (867, "zh", "carracing")


@pytest.mark.parametrize("name", ["carracing", "doomrnn"])
def test_the_command_makes_a_folder_that_dreams(folders, name, tmp_path, capsys):
    assert main(["import", str(folders / name), "--out", str(tmp_path / "run")]) == 0
    assert f"z {Z}, h {HIDDEN}" in capsys.readouterr().out
    _, config = Run.agent(str(tmp_path / "run"))
    doom = name == "doomrnn"
    assert (config.task, config.evolve.features) == (("takecover", "zch") if doom else ("carracing", "zh"))
    assert config.environment.resolution == ("640x480" if doom else "")
    world = wm.WorldModel.from_pretrained(tmp_path / "run")
    np.testing.assert_array_equal(world.initial_mu.shape, (7, Z))
    assert main(["dream", str(tmp_path / "run"), "--episodes", "2"]) == 0
    assert "(2 episodes)" in capsys.readouterr().out


def test_an_imported_folder_is_not_trained_over(folders, tmp_path):
    import_original(folders / "doomrnn", tmp_path / "run")
    before = (tmp_path / "run" / "vae" / "vae.safetensors").read_bytes()
    _, config = Run.find(str(tmp_path / "run"))
    with pytest.raises(FileExistsError, match=r"without stages that has vae/vae\.safetensors, .*; use another --out"):
        Run(tmp_path / "run", config)
    assert (tmp_path / "run" / "vae" / "vae.safetensors").read_bytes() == before
    with pytest.raises(FileExistsError, match="--out: expected a new or empty folder"):
        import_original(folders / "doomrnn", tmp_path / "run")


def test_an_import_that_fails_leaves_nothing(folders, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(wm.WorldModel, "save_pretrained", full)
        import_original(folders / "doomrnn", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    import_original(folders / "doomrnn", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert Run.stored_config(tmp_path / "run").task == "takecover"


def test_checkpoints_of_ctallec_are_another_model(tmp_path):
    for name in ("vae", "mdrnn", "ctrl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.tar").write_bytes(b"\x80\x04.")
    with pytest.raises(
        ValueError, match=r"vae/best\.tar, mdrnn/best\.tar, ctrl/best\.tar.*another model.*one more ReLU"
    ):
        read_original(tmp_path)
    with pytest.raises(ValueError, match="worldmodels run carracing --preset paper"):
        read_original(tmp_path)


def test_the_whole_repository_is_refused(folders):
    with pytest.raises(ValueError, match=r"expected the folder of one experiment, such as .*carracing"):
        read_original(folders)


@pytest.mark.parametrize("missing", ["vae.json", "rnn.json", "initial_z.json", "best.json"])
def test_missing_files_are_named(folders, tmp_path, missing):
    folder = copy_linked(folders / "carracing", tmp_path / "carracing")
    next(folder.glob(f"*/*{missing}")).unlink()
    with pytest.raises(FileNotFoundError, match=f"expected .*{missing} of the original code, in one of"):
        read_original(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_original(tmp_path / "nothing")


def change(folder, name, edit):
    path = next(folder.glob(f"*/*{name}"))
    value = json.loads(path.read_text())
    path.unlink()  # it may be a hard link
    path.write_text(json.dumps(edit(value)))


@pytest.mark.parametrize(
    ("name", "edit", "text"),
    [
        ("rnn.json", lambda value: value[:3], "matrix and the bias of an LSTM without layer normalization"),
        ("rnn.json", lambda value: [*value, *value], "matrix and the bias of an LSTM without layer normalization"),
        ("rnn.json", lambda value: [value[0][:-1], *value[1:]], "expected an M with the input"),
        ("rnn.json", lambda value: [value[0], value[1][:-1], *value[2:]], "expected arrays of shapes"),
        ("rnn.json", lambda value: {"a": 1}, "expected a list of arrays"),
        ("initial_z.json", lambda value: [value[0], value[1][1:]], "expected arrays of shapes"),
        ("initial_z.json", lambda value: [value[0], [value[1][0], [1]]], "lists of different lengths"),
        ("best.json", lambda value: [value[0][:-1], 1.0], r"expected parameters of one of the shapes \(243,\)"),
        ("best.json", lambda value: [["a"]], "expected finite numbers of float32 in array 0"),
        ("best.json", lambda value: [[float("nan")] * 171], "expected finite numbers of float32 in array 0"),
        ("best.json", lambda value: [[1e39, *value[0][1:]]], "expected finite numbers of float32 in array 0"),
        ("best.json", lambda value: [value[0], float("nan")], "expected a finite number as the score of C, got nan"),
        ("best.json", lambda value: [value[0], True], "expected a finite number as the score of C, got True"),
        ("initial_z.json", lambda value: [[[1e43] * Z] * 7, value[1]], "expected finite numbers of float32 in array 0"),
        ("vae.json", lambda value: value[:9], "expected the 22 arrays of a ConvVAE"),
        ("vae.json", lambda value: value[:-1], "expected arrays of shapes"),
    ],
)
def test_damaged_files_are_refused_by_name(folders, tmp_path, monkeypatch, name, edit, text):
    if name != "vae.json":  # takes seconds to read
        monkeypatch.setattr(original, "_vae", lambda _: wm.ConvVAE(Z))
    folder = copy_linked(folders / "carracing", tmp_path / "carracing")
    change(folder, name, edit)
    with pytest.raises(ValueError, match=rf"{name}: .*{text}"):
        read_original(folder)


def test_truncated_json_is_refused_by_name(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(original, "_vae", lambda _: wm.ConvVAE(Z))
    folder = copy_linked(folders / "carracing", tmp_path / "carracing")
    path = folder / "rnn" / "rnn.json"
    text = path.read_text()[:-100]
    path.unlink()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"rnn\.json: expected JSON"):
        read_original(folder)
