"""Run folders and pretrained world models that settings name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from worldmodels import pretrained
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.stage import INITIAL_STATES, M, V


def folder_of(name: str) -> Path:
    """Return the folder of a pretrained world model, without checking its hashes, or the run folder of that name."""
    return pretrained.path(name) if pretrained.is_name(name) else Path(name)


def header(setting: str, name: str, file: str) -> dict[str, Any]:
    """Read the metadata of a safetensors file of a run folder, without its tensors.

    Args:
        setting: Setting that names the folder, for error messages.
        name: Name of a pretrained world model, or run folder.
        file: Path in the folder.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file was not written by this package.
    """
    path = folder_of(name) / file
    if not path.is_file():
        choices = ", ".join(pretrained.names())
        raise FileNotFoundError(f"{setting}: expected a run folder with {file}, or one of {choices}, got {name}")
    try:
        with safe_open(path, framework="numpy") as opened:
            metadata = json.loads((opened.metadata() or {})["about"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{setting}: expected {path} as worldmodels writes it, got {error!r:.200}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{setting}: expected {path} as worldmodels writes it, got {metadata!r:.200}")
    return metadata


def check_world_model(config: Config, task: tasks.Task) -> None:
    """Check the files of a given world model, and that it has the actions of the task."""
    for file in (V, M, INITIAL_STATES):
        header("world_model", config.world_model, file)
    model = model_of(config, task)
    if model["action_size"] != len(task.actions):
        raise ValueError(
            f"world_model: expected an M of {len(task.actions)} actions ({', '.join(task.actions)}), got one of "
            f"{model['action_size']} in {config.world_model}"
        )


def model_of(config: Config, task: tasks.Task) -> dict[str, Any]:
    """Return the sizes and heads of M, from the given world model or from the settings."""
    if config.world_model:
        model = header("world_model", config.world_model, M).get("config")
        names = ("latent_size", "hidden_size", "action_size", "done_head", "reward_head")
        if not isinstance(model, dict) or not all(isinstance(model.get(name), int) for name in names):
            raise ValueError(
                f"world_model: expected the config of an M in {config.world_model}/{M}, got {model!r:.200}"
            )
        return model
    rnn = config.train_rnn
    return {
        "latent_size": config.train_vae.latent_size,
        "hidden_size": rnn.hidden_size,
        "action_size": len(task.actions),
        "done_head": rnn.done_head,
        "reward_head": rnn.reward_head,
    }
