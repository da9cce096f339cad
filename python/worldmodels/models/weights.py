"""Weights and checkpoints as safetensors with their config; never pickle."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import numpy as for_numpy
from safetensors import torch as for_torch
from torch import Tensor, nn

from worldmodels.support.files import atomic_path, write_json
from worldmodels.support.forks import check_threads_usable
from worldmodels.support.processes import defer_sigint

Model = TypeVar("Model", bound=nn.Module)

_CHECKSUM = "crc32"  # key in the metadata
_METADATA = "about"  # key in the header of the file


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file, atomically.

    Args:
        path: Path of the file.
        tensors: Named tensors.
        metadata: JSON object for the header, to which a checksum of the contents is added.

    Raises:
        OSError: The file cannot be written.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, _CHECKSUM: _checksum(flat, metadata)}
    with atomic_path(path) as temporary:
        try:
            _save_file(flat, temporary, {_METADATA: json.dumps(metadata)})
        except SafetensorError as error:  # such as a full disk
            raise OSError(f"{path}: cannot be written: {error}") from error


def _save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors.values()):  # NumPy has no bfloat16
        for_torch.save_file(tensors, path, metadata)
    else:  # safetensors.torch leaks two kilobytes a call, in ctypes
        for_numpy.save_file({name: tensor.numpy() for name, tensor in tensors.items()}, path, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata written by :func:`save_tensors`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged or has other contents.
        MemoryError: The contents do not fit in memory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with defer_sigint(), safe_open(path, framework="pt") as file:  # torch.asarray turns SIGINT into a ValueError
            metadata = dict(json.loads((file.metadata() or {})[_METADATA]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        expected = metadata.pop(_CHECKSUM, None)  # older files have none
        found = _checksum(tensors, metadata) if expected is not None else None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # headers are untrusted: JSON of any depth, dtypes that PyTorch lacks
        raise ValueError(f"{path}: expected safetensors written by worldmodels, got {error!r}") from error
    if found != expected:
        raise ValueError(f"{path}: expected contents of checksum {expected!r:.20}, got {found}: the file is damaged")
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise ValueError(f"{path}: expected real numbers in {name}, got {tensor.dtype}")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> int:
    """Compute the CRC-32 of the metadata and of every tensor's name, dtype, shape and bytes."""
    value = zlib.crc32(json.dumps(metadata).encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        value = zlib.crc32(bits.numpy().tobytes(), value)
    return value


def as_float32(tensor: Tensor) -> Tensor:
    """Convert a tensor on the CPU to float32; from float16 without PyTorch's threads, which a fork would lose."""
    return torch.from_numpy(tensor.numpy().astype(np.float32)) if tensor.dtype == torch.float16 else tensor.float()


@contextmanager
def checkpoint_errors(path: Path, stage: str) -> Iterator[None]:
    """Convert errors of a block that restores a checkpoint into a ValueError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint of this version and these settings, got {error!r:.300}; "
            f"`worldmodels {stage} --force` starts over"
        ) from error


def check_weights(model: nn.Module) -> None:
    """Check that the weights are finite and the ``config`` is JSON; ValueError or TypeError otherwise."""
    json.dumps(model.config)
    for name, tensor in model.state_dict().items():
        if not np.isfinite(tensor.detach().cpu().float().numpy()).all():
            raise ValueError(f"{name}: expected finite weights, got NaN or infinite ones")


def save_model(path: Path, model: nn.Module, **metadata: Any) -> None:
    """Write a model's weights with its ``config`` and ``metadata``, and the same metadata as a JSON file."""
    metadata = {"model": type(model).__name__, "config": model.config, **metadata}
    save_tensors(path, model.state_dict(), metadata)
    write_json(path.with_suffix(".json"), metadata)


def load_model(path: Path, kind: type[Model]) -> Model:
    """Load a model in float32, on the CPU, in eval mode.

    Args:
        path: File written by :func:`save_model`.
        kind: Class of the model.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file holds another model, or is damaged.
        RuntimeError: This process was forked from one that had used PyTorch's threads.
    """
    check_threads_usable()
    tensors, metadata = load_tensors(path)
    found = metadata.get("model") if isinstance(metadata, dict) else metadata
    if found != kind.__name__:
        raise ValueError(f"{path}: expected a {kind.__name__}, got {found!r:.100}")
    try:
        with torch.device("meta"):  # allocates nothing: a config may describe more than the file holds
            read_config = getattr(kind, "read_config", None)  # reader of older files
            model = kind(**(read_config(metadata) if read_config else metadata["config"]))
        tensors = {name: as_float32(tensor) for name, tensor in tensors.items()}
        complete = getattr(kind, "complete", None)  # of files that leave out zeros
        model.load_state_dict(complete(tensors) if complete else tensors, assign=True)
    except MemoryError:
        raise
    except Exception as error:  # the config is untrusted
        raise ValueError(f"{path}: the weights do not fit their config: {error!s:.500}") from error
    return model.eval()


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Collect the state of a training run as flat named tensors."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_training(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state collected by :func:`training_state`."""
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    )
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, kept in optimizer.state.items():  # in the parameter's memory layout, which fused Adam requires
        for name, value in kept.items():
            if value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter).copy_(value)
