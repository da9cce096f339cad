"""Weights and checkpoints: safetensors with their config. Nothing is ever unpickled."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors import numpy as for_numpy
from safetensors import torch as for_torch
from torch import Tensor, nn

from worldmodels.support.files import atomic_path, write_json
from worldmodels.support.forks import check_threads_usable
from worldmodels.support.processes import interrupts_wait

Model = TypeVar("Model", bound=nn.Module)

_CHECKSUM = "crc32"  # beside what ``about`` says


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes a safetensors file, atomically; ``about`` (JSON) goes into its header, with a checksum of everything.

    Raises:
        OSError: it cannot be written.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {**about, _CHECKSUM: _checksum(flat, about)}
    with atomic_path(path) as temporary:
        try:
            _save_file(flat, temporary, {"about": json.dumps(about)})
        except SafetensorError as error:  # a full disk is one
            raise OSError(f"{path}: cannot be written: {error}") from error


def _save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors.values()):  # NumPy has none
        for_torch.save_file(tensors, path, metadata)
    else:  # safetensors.torch keeps two kilobytes a call for ever, in ctypes
        for_numpy.save_file({name: tensor.numpy() for name, tensor in tensors.items()}, path, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds something else.
        MemoryError: there is no room for what it holds.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with interrupts_wait(), safe_open(path, framework="pt") as file:  # in torch.asarray Ctrl-C is a ValueError
            about = dict(json.loads((file.metadata() or {})["about"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        expected = about.pop(_CHECKSUM, None)  # files of before there was one have none
        found = _checksum(tensors, about) if expected is not None else None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the header is anybody's: JSON of any depth, kinds of number that PyTorch lacks
        raise ValueError(f"{path}: expected safetensors written by worldmodels, got {error!r}") from error
    if found != expected:
        raise ValueError(f"{path}: expected contents of checksum {expected!r:.20}, got {found}: the file is damaged")
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise ValueError(f"{path}: expected real numbers in {name}, got {tensor.dtype}")
    return tensors, about


def _checksum(tensors: dict[str, Tensor], about: dict[str, Any]) -> int:
    """CRC-32 of what a file says: ``about``, and every tensor's name, kind, shape and bytes."""
    value = zlib.crc32(json.dumps(about).encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        value = zlib.crc32(bits.numpy().tobytes(), value)
    return value


@contextmanager
def taking_up(path: Path, stage: str) -> Iterator[None]:
    """Around the use of a checkpoint: whatever does not fit in it is a ValueError that names it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint of this version and these settings, got {error!r:.300}; "
            f"`worldmodels {stage} --again` begins anew"
        ) from error


def save_model(path: Path, model: nn.Module, **about: Any) -> None:
    """Writes a model's weights with its ``config`` and ``about``; the JSON beside them says the same to people."""
    about = {"model": type(model).__name__, "config": model.config, **about}
    save_tensors(path, model.state_dict(), about)
    write_json(path.with_suffix(".json"), about)


def load_model(path: Path, kind: type[Model]) -> Model:
    """Builds the model that the file describes and fills it, in float32, on the CPU, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds another model, or is damaged.
        RuntimeError: this process was forked from one that had used PyTorch's threads, which are missing here.
    """
    check_threads_usable()
    tensors, about = load_tensors(path)
    found = about.get("model") if isinstance(about, dict) else about
    if found != kind.__name__:
        raise ValueError(f"{path}: expected a {kind.__name__}, got {found!r:.100}")
    try:
        with torch.device("meta"):  # no memory yet: a config may promise more than the file holds
            model = kind(**about["config"])
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    except MemoryError:
        raise
    except Exception as error:  # the config is anybody's: sizes of any sign and length
        raise ValueError(f"{path}: the weights do not fit their config: {error!s:.500}") from error
    return model.eval()


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything a training run needs to go on, as flat named tensors."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_training(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts :func:`training_state` back."""
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    )
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, kept in optimizer.state.items():  # in the parameter's layout: fused Adam goes by memory
        for name, value in kept.items():
            if value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter).copy_(value)
