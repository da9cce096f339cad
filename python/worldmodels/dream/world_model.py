"""World models on disk: M and the initial states of its dreams."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from worldmodels import pretrained
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.native_model import check_initial_latents
from worldmodels.models.sharing import Shared
from worldmodels.models.weights import as_float32, load_model, load_tensors, save_tensors


class _WorldModel(NamedTuple):
    mdnrnn: MDNRNN
    initial_mu: npt.NDArray[np.float32]
    initial_logvar: npt.NDArray[np.float32]


class WorldModel(_WorldModel, Shared):
    """M and the initial states of its dreams, in the order of the arguments of :class:`Dream` and ``Dream-v0``.

    Attributes:
        mdnrnn: M.
        initial_mu: (K, Z) float32 means of the initial latents.
        initial_logvar: (K, Z) float32 log variances of the initial latents.
    """

    __slots__ = ()
    _FILES = ("rnn/rnn.safetensors", "rnn/initial.safetensors")

    def _check_savable(self) -> None:
        if not isinstance(self.mdnrnn, MDNRNN):
            raise TypeError(f"mdnrnn: expected an MDNRNN, got {type(self.mdnrnn).__name__}")
        self.mdnrnn._check_savable()
        self._states()

    def _states(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Validate and return initial_mu and initial_logvar."""
        return check_initial_latents(self.mdnrnn, self.initial_mu, self.initial_logvar)

    def _save(self, folder: Path) -> None:
        mu, logvar = self._states()
        self.mdnrnn._save(folder)
        tensors = {"mu": torch.from_numpy(mu), "logvar": torch.from_numpy(logvar)}
        save_tensors(folder / self._FILES[1], tensors, {"frames": len(mu)})

    @classmethod
    def _load(cls, folder: Path) -> Self:
        return cls(*load_world_model(folder))


def load_world_model(name: str | Path) -> WorldModel:
    """Load M and the initial states.

    Args:
        name: Name of a pretrained world model, or a run folder.

    Raises:
        FileNotFoundError: The run folder has no M yet.
        ValueError: A file is damaged.
    """
    folder = pretrained.find("name", name) / "rnn"
    mdnrnn = load_model(folder / "rnn.safetensors", MDNRNN)
    path = folder / "initial.safetensors"
    states, _ = load_tensors(path)
    found = {name: tuple(tensor.shape) for name, tensor in states.items()}
    rows = found.get("mu", (0,))[0] if found.get("mu") else 0
    if rows < 1 or any(found.get(name) != (rows, mdnrnn.latent_size) for name in ("mu", "logvar")):
        raise ValueError(f"{path}: expected mu and logvar, each (K, {mdnrnn.latent_size}), got {found}")
    return WorldModel(mdnrnn, as_float32(states["mu"]).numpy(), as_float32(states["logvar"]).numpy())


def load_burned_in_states(run_folder: str | Path, mdnrnn: MDNRNN) -> dict[str, npt.NDArray[np.float32]] | None:
    """Load the burned-in initial states of a run folder.

    Args:
        run_folder: Run folder in which ``train-rnn`` is complete.
        mdnrnn: M of the run folder.

    Returns:
        ``mu`` and ``logvar``, each (K, Z) float32, and ``h`` and ``c``, each (K, H) float32; None if there are none.

    Raises:
        ValueError: The file is damaged.
    """
    path = Path(run_folder) / "rnn" / "midway.safetensors"
    if not path.is_file():
        return None
    states, _ = load_tensors(path)
    found = {name: tuple(tensor.shape) for name, tensor in states.items()}
    rows = (*found.get("mu", ()), 0)[0]
    latents, lstm_state = (rows, mdnrnn.latent_size), (rows, mdnrnn.hidden_size)
    if found != {"mu": latents, "logvar": latents, "h": lstm_state, "c": lstm_state}:
        wanted = f"each (K, {mdnrnn.latent_size}), and h and c, each (K, {mdnrnn.hidden_size})"
        raise ValueError(f"{path}: expected mu and logvar, {wanted}, got {found}")
    arrays = {name: tensor.float().numpy() for name, tensor in states.items()}
    return arrays if rows else None
