"""Weights on disk: bit-exact, refused when they do not fit or are damaged, and never pickled."""

from __future__ import annotations

import gc
import json
import pickle
import signal
import struct
import tracemalloc

import pytest
import torch
from safetensors import SafetensorError

from conftest import make_mdnrnn, make_vae
from worldmodels.models import weights
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import (
    load_model,
    load_tensors,
    restore_training,
    save_model,
    save_tensors,
    training_state,
)
from worldmodels.support.files import read_json, write_json


@pytest.mark.parametrize("model", [make_vae(3), make_mdnrnn(reward_head=True), make_mdnrnn(restart_input=False)])
def test_a_model_comes_back_bit_for_bit(tmp_path, model):
    path = tmp_path / "deep" / "model.safetensors"
    save_model(path, model.train(), steps=7)
    loaded = load_model(path, type(model))
    assert not loaded.training
    assert loaded.config == model.config
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    said = read_json(path.with_suffix(".json"))
    assert said == {"model": type(model).__name__, "config": model.config, "steps": 7}
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.json", "model.safetensors"]


def test_every_bit_of_every_kind_of_number_is_kept(tmp_path):
    tensors = {
        "float": torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45, 3.4e38]),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "int": torch.tensor([2**62], dtype=torch.int64),
        "bfloat": torch.tensor([[1.5]], dtype=torch.bfloat16),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(3.0),
    }
    save_tensors(tmp_path / "a.safetensors", tensors, {"step": 3, "nested": {"x": [1, 2.5, None]}})
    loaded, about = load_tensors(tmp_path / "a.safetensors")
    assert about == {"step": 3, "nested": {"x": [1, 2.5, None]}}
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert (
            loaded[name].numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes()
            if name != "bfloat"
            else (torch.equal(loaded[name], tensor))
        )


def test_another_model_is_refused(tmp_path):
    save_model(tmp_path / "vae.safetensors", make_vae(3))
    with pytest.raises(ValueError, match=r"vae\.safetensors: expected a MDNRNN, got 'ConvVAE'"):
        load_model(tmp_path / "vae.safetensors", MDNRNN)


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path):
    path = tmp_path / "rnn.safetensors"
    model = make_mdnrnn()
    for tensors, config in (
        (model.state_dict(), {**model.config, "hidden_size": 9}),
        ({name: value for name, value in model.state_dict().items() if name != "head.bias"}, model.config),
        ({**model.state_dict(), "more": torch.zeros(1)}, model.config),
    ):
        save_tensors(path, tensors, {"model": "MDNRNN", "config": config})
        with pytest.raises(ValueError, match=r"rnn\.safetensors: the weights do not fit their config"):
            load_model(path, MDNRNN)


@pytest.mark.parametrize(
    ("config", "metadata", "expected"),
    [
        ({"done_pos_weight": 3.0}, {}, 3.0),
        ({"done_pos_weight": 3.0}, {"done_weight": 5.0}, 3.0),  # the config comes first
        ({}, {"done_weight": 5.0}, 5.0),
        ({}, {}, 10.0),
    ],
)
def test_the_positive_class_weight_of_files_with_and_without_it(tmp_path, config, metadata, expected):
    """A file whose config lacks it has it as ``done_weight``, or was trained with 10."""
    path = tmp_path / "rnn.safetensors"
    model = make_mdnrnn()
    written = {name: value for name, value in model.config.items() if name != "done_pos_weight"} | config
    about = {"model": "MDNRNN", "config": written, **metadata}
    assert MDNRNN.read_config(about) == {**written, "done_pos_weight": expected}
    assert about["config"] is written and ("done_pos_weight" in written) == bool(config)  # read, not changed
    save_tensors(path, model.state_dict(), about)
    loaded = load_model(path, MDNRNN)
    assert loaded.config == {**model.config, "done_pos_weight": expected}


@pytest.mark.parametrize("weight", [0, -1.0, "much", None, [1.0]])
def test_a_positive_class_weight_that_is_none_is_refused(tmp_path, weight):
    path = tmp_path / "rnn.safetensors"
    model = make_mdnrnn()
    old = {name: value for name, value in model.config.items() if name != "done_pos_weight"}
    for about in ({"config": {**old, "done_pos_weight": weight}}, {"config": old, "done_weight": weight}):
        save_tensors(path, model.state_dict(), {"model": "MDNRNN", **about})
        with pytest.raises(
            ValueError, match=r"rnn\.safetensors: the weights do not fit their config: done_pos_weight: "
        ):
            load_model(path, MDNRNN)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        load_model(tmp_path / "none.safetensors", ConvVAE)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "rnn.safetensors"
    save_model(path, make_mdnrnn())
    whole = path.read_bytes()
    damages = [whole[:size] for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1)]
    damages += [whole + b"\0", struct.pack("<Q", 2**62) + whole[8:], whole[:8] + b"x" + whole[9:]]
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"rnn\.safetensors: expected safetensors"):
            load_model(path, MDNRNN)


def test_a_header_cannot_ask_for_more_than_the_file_holds(tmp_path):
    header = {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}, "__metadata__": {"about": "{}"}}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 64)
    with pytest.raises(ValueError, match="expected safetensors"):
        load_tensors(tmp_path / "a.safetensors")


def test_ctrl_c_while_a_file_is_read_is_ctrl_c_and_not_a_damaged_file(tmp_path, monkeypatch):
    class Swallows:
        """As torch.asarray: whatever is raised in what it calls back becomes a ValueError of its own."""

        def __enter__(self):
            return self

        def __exit__(self, *error):
            read.append(error)

        def metadata(self):
            return {"about": "{}"}

        def keys(self):
            return ["a"]

        def get_tensor(self, name):
            try:
                signal.raise_signal(signal.SIGINT)
                return torch.zeros(1)
            except KeyboardInterrupt:
                raise ValueError("could not determine the shape") from None

    read: list[tuple] = []
    path = tmp_path / "some.safetensors"
    path.touch()
    monkeypatch.setattr(weights, "safe_open", lambda path, framework: Swallows())
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load_tensors(path)
    assert read == [(None, None, None)]
    assert signal.getsignal(signal.SIGINT) is before


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_nothing_is_ever_unpickled(tmp_path, monkeypatch):
    path = tmp_path / "vae.safetensors"
    for dump in (lambda: torch.save({"x": Trap()}, path), lambda: path.write_bytes(pickle.dumps(Trap()))):
        dump()
        with pytest.raises(ValueError, match="expected safetensors"):
            load_model(path, ConvVAE)
    save_model(path, make_vae(3))
    load_model(path, ConvVAE)  # PyTorch imports modules on first use

    def refuse(*_arguments, **_options):
        pytest.fail("unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    load_model(path, ConvVAE)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.zeros(2)}, {})
    before = path.read_bytes()

    def half(_tensors, target, metadata):
        target.write_bytes(before[:20])
        raise OSError("disk full")

    monkeypatch.setattr(weights, "_save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_tensors(path, {"x": torch.ones(2)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    for bad in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, bad)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json: expected JSON"):
        read_json(path)


def test_training_goes_on_bit_for_bit(tmp_path):
    """Adam's moments and its step count come back too."""

    def train(model, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            z = torch.randn(2, 5, 4)
            out, _ = model(z, z[..., :1])
            optimizer.zero_grad()
            (out.mean.square().mean() + out.done_logit.mean()).backward()
            optimizer.step()

    def new():
        model = make_mdnrnn()
        return model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True)

    whole, optimizer = new()
    train(whole, optimizer, range(6))
    first, optimizer = new()
    train(first, optimizer, range(3))
    save_tensors(tmp_path / "a.safetensors", training_state(first, optimizer), {})
    second, optimizer = new()
    with torch.no_grad():
        second.head.weight.zero_()
    restore_training(second, optimizer, load_tensors(tmp_path / "a.safetensors")[0])
    train(second, optimizer, range(3, 6))
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)
    assert not torch.equal(first.head.weight, whole.head.weight)


def test_a_full_disk_is_an_os_error_and_the_old_file_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {"step": 1})
    before = path.read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(b"half of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "_save_file", full)
    with pytest.raises(OSError, match=r"checkpoint\.safetensors: cannot be written: .*No space left on device"):
        save_tensors(path, {"a": torch.zeros(3)}, {"step": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_adams_state_takes_the_layout_of_its_parameter():
    """Fused Adam goes through memory in order, whatever the strides say."""

    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    x, models = torch.randn(2, 3, 8, 8), []
    for _ in range(2):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 4).to(memory_format=torch.channels_last)
        models.append((model, torch.optim.Adam(model.parameters(), lr=0.1, fused=True)))
    steps(*models[0], 5)
    kept = {name: tensor.clone().contiguous() for name, tensor in training_state(*models[0]).items()}
    steps(*models[0], 5)
    restore_training(*models[1], kept)
    steps(*models[1], 5)
    for one, other in zip(models[0][0].parameters(), models[1][0].parameters(), strict=True):
        assert torch.equal(one, other)


def test_saving_often_keeps_no_memory(tmp_path):
    """An evolution saves its checkpoint in every generation."""
    tensors = {str(size): torch.ones(size) for size in range(1, 20)}

    def repeated(times):
        for _ in range(times):
            save_tensors(tmp_path / "checkpoint.safetensors", tensors, {})
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = repeated(5)
        assert repeated(50) - before < 50_000  # 6 KB for every save, where they are kept
    finally:
        tracemalloc.stop()
