"""V, M and C as ONNX files for other runtimes.

The graphs are built from the weights, without tracing. The first axis of every input and output is the batch, of any
length; all are float32. Every file carries the constructor arguments of its model as the metadata ``config``, in JSON.

| file | inputs | outputs |
|---|---|---|
| ``encoder.onnx`` | ``x`` (B, 3, 64, 64) in [0, 1] | ``mu``, ``logvar`` (B, Z) |
| ``decoder.onnx`` | ``z`` (B, Z) | ``x`` (B, 3, 64, 64) in [0, 1] |
| ``step.onnx`` | ``z`` (B, Z), ``action`` (B, A), ``restart`` (B,), ``h``, ``c`` (B, H) | ``logmix``, ``mean``, \
``logstd`` (B, Z, K), ``done_logit``, ``reward`` (B,) if M has the heads, ``next_h``, ``next_c`` (B, H) |
| ``controller.onnx`` | ``z`` (B, Z), ``h``, ``c`` (B, H) | ``action`` (B, A) |

A ``restart`` of 1 marks the first frame of an episode: h and c are zeroed first. C acts on h and c before the step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from worldmodels.models.agent import Agent
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import LOGSTD_RANGE, MDNRNN
from worldmodels.models.vae import ConvVAE
from worldmodels.support.files import atomic_path

ENCODER, DECODER, STEP, CONTROLLER = FILES = ("encoder.onnx", "decoder.onnx", "step.onnx", "controller.onnx")

_OPSET, _IR_VERSION = 17, 8  # read by onnxruntime 1.12 and newer
_BATCH = "batch"

Shape = tuple[int | str, ...]


def export_onnx(agent: Agent, folder: str | Path) -> list[Path]:
    """Write V's encoder and decoder, a step of M and C.

    Args:
        agent: V, M and C.
        folder: Folder; created if necessary.

    Returns:
        Paths of the four files.

    Raises:
        ModuleNotFoundError: The extra ``onnx`` is not installed.
        NotADirectoryError: ``folder`` is a file.
        OSError: A file cannot be written.
    """
    _import_onnx()
    if Path(folder).is_file():
        raise NotADirectoryError(f"folder: expected a folder, got a file: {folder}")
    graphs: dict[str, tuple[_Graph, Mapping[str, Any]]] = {
        ENCODER: (_encoder(agent.vae), agent.vae.config),
        DECODER: (_decoder(agent.vae), agent.vae.config),
        STEP: (_step(agent.mdnrnn), agent.mdnrnn.config),
        CONTROLLER: (_controller(agent.controller, agent.params), asdict(agent.controller)),
    }
    paths = []
    for name, (graph, config) in graphs.items():
        paths.append(Path(folder) / name)
        with atomic_path(paths[-1]) as temporary:
            temporary.write_bytes(graph.model(name.partition(".")[0], config))
    return paths


def _import_onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "export: no module named 'onnx'; `pip install 'worldmodels-rl[onnx]'` installs it", name="onnx"
        ) from error
    return onnx


class _Graph:
    """Graph under construction. Values are referred to by name."""

    def __init__(self, **inputs: Shape) -> None:
        self._helper, self._onnx = _import_onnx().helper, _import_onnx()
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs = inputs
        self._outputs: dict[str, Shape] = {}

    def constant(self, value: npt.ArrayLike, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        (output,) = self.split(kind, 1, *inputs, **attributes)
        return output

    def split(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        outputs = [f"{kind.lower()}_{len(self._nodes)}_{index}" for index in range(count)]
        self._nodes.append(self._helper.make_node(kind, inputs, outputs, **attributes))
        return outputs

    def linear(self, x: str, weight: npt.ArrayLike, bias: npt.ArrayLike | None) -> str:
        """X (B, I) times the transpose of weight (O, I), plus bias (O,)."""
        parameters = [self.constant(weight)] + ([] if bias is None else [self.constant(bias)])
        return self.add("Gemm", x, *parameters, transB=1)

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, self.constant(shape, np.int64))

    def column(self, x: str, index: int, axis: int = 1) -> str:
        """Select an index of an axis, which is removed."""
        return self.add("Gather", x, self.constant(index, np.int64), axis=axis)

    def output(self, name: str, value: str, *shape: int) -> None:
        self._nodes.append(self._helper.make_node("Identity", [value], [name]))
        self._outputs[name] = (_BATCH, *shape)

    def model(self, name: str, config: Mapping[str, Any]) -> bytes:
        """Check and serialize."""
        graph = self._helper.make_graph(
            self._nodes, name, self._values(self._inputs), self._values(self._outputs), self._constants
        )
        model = self._helper.make_model(
            graph,
            opset_imports=[self._helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="worldmodels",
        )
        self._helper.set_model_props(model, {"config": json.dumps(config)})
        self._onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data

    def _values(self, shapes: Mapping[str, Shape]) -> list[Any]:
        kind = self._onnx.TensorProto.FLOAT
        return [self._helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]


def _values(tensor: torch.Tensor | None) -> npt.NDArray[np.float32]:
    assert tensor is not None
    return tensor.detach().to(device="cpu", dtype=torch.float32).numpy()


def _encoder(vae: ConvVAE) -> _Graph:
    graph = _Graph(x=(_BATCH, 3, 64, 64))
    value = "x"
    for layer in vae.encoder:
        if isinstance(layer, nn.Conv2d):
            parameters = graph.constant(_values(layer.weight)), graph.constant(_values(layer.bias))
            value = graph.add("Relu", graph.add("Conv", value, *parameters, strides=list(layer.stride)))
    value = graph.add("Flatten", value)
    for name, last in (("mu", vae.mu), ("logvar", vae.logvar)):
        graph.output(name, graph.linear(value, _values(last.weight), _values(last.bias)), vae.latent_size)
    return graph


def _decoder(vae: ConvVAE) -> _Graph:
    graph = _Graph(z=(_BATCH, vae.latent_size))
    (linear,) = (layer for layer in vae.decoder if isinstance(layer, nn.Linear))
    layers = [layer for layer in vae.decoder if isinstance(layer, nn.ConvTranspose2d)]
    value = graph.linear("z", _values(linear.weight), _values(linear.bias))
    value = graph.reshape(value, -1, linear.out_features, 1, 1)
    for layer in layers:
        parameters = graph.constant(_values(layer.weight)), graph.constant(_values(layer.bias))
        value = graph.add("ConvTranspose", value, *parameters, strides=[int(side) for side in layer.stride])
        value = graph.add("Sigmoid" if layer is layers[-1] else "Relu", value)
    graph.output("x", value, 3, 64, 64)
    return graph


def _step(model: MDNRNN) -> _Graph:
    latent, hidden, mixtures = model.latent_size, model.hidden_size, model.mixtures
    states: dict[str, Shape] = {"h": (_BATCH, hidden), "c": (_BATCH, hidden)}
    graph = _Graph(z=(_BATCH, latent), action=(_BATCH, model.action_size), restart=(_BATCH,), **states)
    restart = graph.reshape("restart", -1, 1)
    keep = graph.add("Sub", graph.constant(1.0), restart)
    h, c = (graph.add("Mul", state, keep) for state in ("h", "c"))
    inputs = ["z", "action", *([restart] if model.restart_input else []), h]
    weights = {name: _values(parameter) for name, parameter in model.lstm.named_parameters()}
    weight = np.concatenate([weights["weight_ih_l0"], weights["weight_hh_l0"]], axis=1)
    gates = graph.linear(graph.add("Concat", *inputs, axis=1), weight, weights["bias_ih_l0"] + weights["bias_hh_l0"])
    i, f, g, o = graph.split("Split", 4, gates, axis=1)
    kept = graph.add("Mul", graph.add("Sigmoid", f), c)
    written = graph.add("Mul", graph.add("Sigmoid", i), graph.add("Tanh", g))
    next_c = graph.add("Add", kept, written)
    next_h = graph.add("Mul", graph.add("Sigmoid", o), graph.add("Tanh", next_c))
    _head(graph, model, graph.linear(next_h, _values(model.head.weight), _values(model.head.bias)), mixtures)
    graph.output("next_h", next_h, hidden)
    graph.output("next_c", next_c, hidden)
    return graph


def _head(graph: _Graph, model: MDNRNN, head: str, mixtures: int) -> None:
    """Outputs of the head: the mixture, and termination and reward if M predicts them."""
    latent, before = model.latent_size, model.done_head + model.reward_head
    rows = graph.constant([before], np.int64), graph.constant([before + latent * mixtures * 3], np.int64)
    mixture = graph.reshape(graph.add("Slice", head, *rows, graph.constant([1], np.int64)), -1, latent, 3, mixtures)
    logits, mean, logstd = (graph.column(mixture, part, axis=2) for part in range(3))
    low, high = (graph.constant(limit) for limit in LOGSTD_RANGE)
    graph.output("logmix", graph.add("LogSoftmax", logits, axis=-1), latent, mixtures)
    graph.output("mean", mean, latent, mixtures)
    graph.output("logstd", graph.add("Clip", logstd, low, high), latent, mixtures)
    if model.done_head:
        graph.output("done_logit", graph.column(head, 0))
    if model.reward_head:
        graph.output("reward", graph.column(head, int(model.done_head)))


def _controller(controller: Controller, params: npt.NDArray[np.floating]) -> _Graph:
    hidden: Shape = (_BATCH, controller.hidden_size)
    graph = _Graph(z=(_BATCH, controller.latent_size), h=hidden, c=hidden)
    chosen = ["z", *(name for name in ("c", "h") if name in controller.features)]
    value = graph.add("Concat", *chosen, axis=1)
    weights = controller.weights(params)
    stride = 2 if controller.bias else 1
    for start in range(0, len(weights), stride):
        value = graph.linear(value, weights[start], weights[start + 1] if controller.bias else None)
        if start + stride < len(weights) or controller.squash != "argmax":
            value = graph.add("Tanh", value)
    graph.output("action", _squashed(graph, controller, value), controller.action_size)
    return graph


def _squashed(graph: _Graph, controller: Controller, value: str) -> str:
    """Map the last layer's outputs to actions, as :meth:`Controller.squashed`."""
    if controller.squash == "carracing":
        steering, gas, brake = graph.split("Split", 3, value, axis=1)
        gas = graph.add("Mul", graph.add("Add", gas, graph.constant(1.0)), graph.constant(0.5))
        return graph.add("Concat", steering, gas, graph.add("Relu", brake), axis=1)
    if controller.squash == "argmax":
        return _one_hot(graph, controller.choices, value)
    return value


def _one_hot(graph: _Graph, choices: Sequence[int], value: str) -> str:
    parts = graph.split("Split", len(choices), value, graph.constant(choices, np.int64), axis=1)
    chosen = [
        graph.add(
            "OneHot",
            graph.add("ArgMax", part, axis=1, keepdims=0),
            graph.constant([count], np.int64),
            graph.constant([0.0, 1.0]),
        )
        for part, count in zip(parts, choices, strict=True)
    ]
    return graph.add("Concat", *chosen, axis=1)
