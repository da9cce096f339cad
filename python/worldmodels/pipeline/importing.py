"""Import the original code's weights into a run folder."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import replace
from pathlib import Path

from worldmodels.dream.world_model import WorldModel
from worldmodels.hub.original import Original, read_original
from worldmodels.models.agent import Agent
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config, to_dict
from worldmodels.support.files import write_json


def import_original(folder: str | Path, out: str | Path) -> Original:
    """Convert the original code's JSON files to a run folder with V, M, their initial states and C.

    The settings are those of the preset ``paper`` with the sizes of the models. The folder has no completed stages:
    ``play``, ``dream``, ``web`` and ``--world-model`` accept it, and ``run`` refuses to train over it.

    Args:
        folder: Folder of an experiment of the original code.
        out: New folder.

    Returns:
        The models.

    Raises:
        FileExistsError: ``out`` exists and is not an empty folder.
        FileNotFoundError: A file is missing.
        OSError: A file cannot be written; ``out`` is unchanged.
        ValueError: A file is damaged or has other shapes.
    """
    target = Path(out).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"--out: expected a new or empty folder, got {out}")
    found = read_original(folder)
    temporary = target.with_name(f"{target.name}.{secrets.randbelow(10**12)}.tmp")
    try:
        Agent(found.vae, found.mdnrnn, found.controller, found.params).save_pretrained(temporary)
        WorldModel(found.mdnrnn, found.initial_mu, found.initial_logvar).save_pretrained(temporary)
        write_json(temporary / "config.json", to_dict(_config(found)))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _config(found: Original) -> Config:
    """Settings of the preset ``paper`` with the sizes of the models."""
    config, controller = tasks.preset(found.task, "paper"), found.controller
    environment = config.environment
    if found.task == "takecover":  # the screen whose frames V was trained on
        environment = replace(environment, resolution="640x480")
    return replace(
        config,
        environment=environment,
        train_vae=replace(config.train_vae, latent_size=found.vae.latent_size),
        train_rnn=replace(config.train_rnn, hidden_size=found.mdnrnn.hidden_size, num_mixtures=found.mdnrnn.mixtures),
        evolve=replace(
            config.evolve,
            features=controller.features,
            bias=controller.bias,
            hidden_units=controller.hidden_units,
        ),
    )
