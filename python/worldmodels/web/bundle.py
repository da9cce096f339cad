"""The weights of a world model in one safetensors file, for a page or any other embedding of `worldmodels.js`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from worldmodels.dream.world_model import WorldModel
from worldmodels.models.controller import Controller
from worldmodels.models.decoder import folded_decoder
from worldmodels.models.native_model import Termination, check_termination
from worldmodels.models.vae import ConvVAE

FORMAT = "worldmodels-dream-1"
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
_HASH = "0" * 64  # in the place of the hash while the file is hashed


@dataclass(frozen=True)
class BundledAgent:
    """A controller of a bundle.

    Attributes:
        controller: Architecture of C.
        params: (controller.size,) parameters.
        temperature: Temperature of the dream in which it was evolved.
    """

    controller: Controller
    params: npt.NDArray[np.floating]
    temperature: float


def bundle(
    vae: ConvVAE,
    world: WorldModel,
    agents: Mapping[str, BundledAgent],
    *,
    task: str,
    termination: Termination,
    temperature: float,
    max_steps: int,
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """Collect V with its decoder folded, M, initial states and controllers in the contents of one safetensors file.

    Weights of V and M and initial states are rounded to float16; biases and controllers are float32. The metadata
    ``sha256`` is the hash of the file with zeros in its place. Equal inputs give equal bytes.

    Args:
        vae: V.
        world: M and the initial states of its dreams.
        agents: Controllers by name.
        task: Name of the task.
        termination: Termination of the dreams in which the agents were evolved.
        temperature: Default temperature of the dreams.
        max_steps: Maximum length of an episode, in steps.
        metadata: JSON object with further members of ``world.info`` in JavaScript.

    Raises:
        TypeError: V is not a ``ConvVAE`` but another class.
        ValueError: Sizes do not match, a weight is not finite, or an initial state is invalid.
    """
    if type(vae) is not ConvVAE:
        raise TypeError(f"vae: expected a ConvVAE, got {type(vae).__name__}")
    mdnrnn = world.mdnrnn
    if vae.latent_size != mdnrnn.latent_size:
        raise ValueError(f"vae: expected {mdnrnn.latent_size} latents, as M has, got {vae.latent_size}")
    mu, logvar = world._states()
    world = world._replace(initial_mu=mu, initial_logvar=logvar)
    info = {
        "task": task,
        "latentSize": mdnrnn.latent_size,
        "actionSize": mdnrnn.action_size,
        "hiddenSize": mdnrnn.hidden_size,
        "mixtures": mdnrnn.mixtures,
        "restartInput": bool(mdnrnn.restart_input),
        "doneHead": bool(mdnrnn.done_head),
        "rewardHead": bool(mdnrnn.reward_head),
        "donePosWeight": float(mdnrnn.done_pos_weight),
        "termination": check_termination(termination, mdnrnn),
        "temperature": float(temperature),
        "maxSteps": int(max_steps),
        "initialStates": len(world.initial_mu),
        "latents": {
            "mean": [round(float(value), 4) for value in world.initial_mu.mean(axis=0)],
            "std": [round(float(value), 4) for value in world.initial_mu.std(axis=0)],
        },
        "agents": list(agents),
        "controllers": {name: _controller_info(name, agent, world) for name, agent in agents.items()},
        **(metadata or {}),
    }
    tensors = {**_vae_tensors(vae), **_rnn_tensors(world)}
    tensors |= {f"agents.{name}": np.array(agent.params, np.float32) for name, agent in agents.items()}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name}: expected finite numbers, got {tensor[~np.isfinite(tensor)][0]}")
    about = {"format": FORMAT, "sha256": _HASH, "info": json.dumps(info, allow_nan=False)}
    contents = _safetensors(tensors, about)
    return contents.replace(_HASH.encode(), hashlib.sha256(contents).hexdigest().encode(), 1)


def _safetensors(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Serialize float32 and float16 tensors; the safetensors package orders the metadata at random."""
    header: dict[str, Any] = {"__metadata__": metadata}
    parts, end = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):  # float32 first
        start, end = end, end + tensor.nbytes
        dtype = {4: "F32", 2: "F16"}[tensor.itemsize]
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]}
        parts.append(tensor.astype(tensor.dtype.newbyteorder("<"), order="C").tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _controller_info(name: str, agent: BundledAgent, world: WorldModel) -> dict[str, Any]:
    of, mdnrnn = agent.controller, world.mdnrnn
    sizes = (of.latent_size, of.hidden_size, of.action_size)
    wanted = (mdnrnn.latent_size, mdnrnn.hidden_size, mdnrnn.action_size)
    if sizes != wanted or np.shape(agent.params) != (of.size,):
        got = f"{sizes} and {np.shape(agent.params)} parameters"
        raise ValueError(f"agents: expected (latent, hidden, action) sizes {wanted} of M in {name!r:.100}, got {got}")
    return {
        "features": of.features,
        "bias": of.bias,
        "hiddenUnits": of.hidden_units,
        "squash": of.squash,
        "choices": list(of.choices),
        "temperature": float(agent.temperature),
    }


def _vae_tensors(vae: ConvVAE) -> dict[str, npt.NDArray[Any]]:
    tensors: dict[str, npt.NDArray[Any]] = {}
    for number, (weight, bias) in enumerate(folded_decoder(vae)):
        tensors |= {f"decoder.{number}.weight": _float16(weight), f"decoder.{number}.bias": bias}
    convolutions = (layer for layer in vae.encoder if isinstance(layer, nn.Conv2d))
    layers = [
        *((str(number), layer) for number, layer in enumerate(convolutions)),
        ("mu", vae.mu),
        ("logvar", vae.logvar),
    ]
    for name, layer in layers:
        tensors[f"encoder.{name}.weight"] = _float16(_values(layer.get_parameter("weight")))
        tensors[f"encoder.{name}.bias"] = _values(layer.get_parameter("bias"))
    return tensors


def _rnn_tensors(world: WorldModel) -> dict[str, npt.NDArray[Any]]:
    mdnrnn = world.mdnrnn
    lstm = {name: mdnrnn.lstm.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    return {
        "rnn.weight_ih": _float16(_values(lstm["weight_ih"])),
        "rnn.weight_hh": _float16(_values(lstm["weight_hh"])),
        "rnn.bias": _values(lstm["bias_ih"] + lstm["bias_hh"]),
        "rnn.head_weight": _float16(_values(mdnrnn.head.weight)),
        "rnn.head_bias": _values(mdnrnn.head.bias),
        "initial.mu": _float16(world.initial_mu),
        "initial.logvar": _float16(world.initial_logvar),
    }


def _values(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.array(tensor.detach().to(device="cpu", dtype=torch.float32).numpy(), order="C")


def _float16(values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Round to float16, or keep float32 where a value is out of range."""
    return values if np.abs(values).max() > _LARGEST_FLOAT16 else values.astype(np.float16)
