"""World models on disk: M and the initial states that dreams start from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.weights import load_model, load_tensors
from worldmodels.pipeline.config import TrainRNNConfig
from worldmodels.support.validation import check_real


class World(NamedTuple):
    """What a dream is made of: the first arguments of :class:`Dream` and of the environment Dream-v0.

    Attributes:
        mdnrnn: M.
        initial_mu: (K, Z) float32, means of the latents an episode may start from.
        initial_logvar: (K, Z) float32, their log variances.
    """

    mdnrnn: MDNRNN
    initial_mu: npt.NDArray[np.float32]
    initial_logvar: npt.NDArray[np.float32]


def load_world(run_folder: str | Path) -> World:
    """Loads M and the starts of a run folder.

    Raises:
        FileNotFoundError: M has not been trained there yet.
        ValueError: a file is damaged.
    """
    folder = Path(run_folder) / "rnn"
    mdnrnn = load_model(folder / "rnn.safetensors", MDNRNN)
    path = folder / "initial.safetensors"
    starts, _ = load_tensors(path)
    found = {name: tuple(tensor.shape) for name, tensor in starts.items()}
    rows = found.get("mu", (0,))[0] if found.get("mu") else 0
    if rows < 1 or any(found.get(name) != (rows, mdnrnn.latent_size) for name in ("mu", "logvar")):
        raise ValueError(f"{path}: expected mu and logvar, each (K, {mdnrnn.latent_size}), got {found}")
    return World(mdnrnn, starts["mu"].float().numpy(), starts["logvar"].float().numpy())


def done_weight(run_folder: str | Path, ends: str) -> float | None:
    """The ``done_weight`` that a :class:`Dream` of a run folder's M is given.

    Args:
        run_folder: where ``train-rnn`` has been completed.
        ends: ``"threshold"``, ``"chance"`` or ``"expected"``.

    Returns:
        None for a threshold; else how many times the steps at which an episode ends weighed in M's training.

    Raises:
        FileNotFoundError: M has not been trained there yet.
        ValueError: a file is damaged.
    """
    return None if ends == "threshold" else trained_done_weight(run_folder)


def trained_done_weight(run_folder: str | Path) -> float:
    """How many times the steps at which an episode ends weighed in the training of a run folder's M.

    Raises:
        FileNotFoundError: M has not been trained there yet.
        ValueError: a file is damaged.
    """
    path = Path(run_folder) / "rnn" / "rnn.safetensors"
    _, about = load_tensors(path)
    weight = about.get("done_weight", TrainRNNConfig.done_weight)  # before it was written down it was this one
    try:
        return check_real("done_weight", weight, 0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def load_midway(run_folder: str | Path, mdnrnn: MDNRNN) -> dict[str, npt.NDArray[np.float32]] | None:
    """Loads the starts on the way, of which a run folder's M keeps a memory.

    Args:
        run_folder: where ``train-rnn`` has been completed.
        mdnrnn: its M.

    Returns:
        mu and logvar, each (K, Z) float32, and h and c, each (K, H) float32; None where there are none.

    Raises:
        ValueError: a file is damaged.
    """
    path = Path(run_folder) / "rnn" / "midway.safetensors"
    if not path.is_file():
        return None
    starts, _ = load_tensors(path)
    found = {name: tuple(tensor.shape) for name, tensor in starts.items()}
    rows = (*found.get("mu", ()), 0)[0]
    latents, memory = (rows, mdnrnn.latent_size), (rows, mdnrnn.hidden_size)
    if found != {"mu": latents, "logvar": latents, "h": memory, "c": memory}:
        wanted = f"each (K, {mdnrnn.latent_size}), and h and c, each (K, {mdnrnn.hidden_size})"
        raise ValueError(f"{path}: expected mu and logvar, {wanted}, got {found}")
    arrays = {name: tensor.float().numpy() for name, tensor in starts.items()}
    return arrays if rows else None
