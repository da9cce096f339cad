"""The search space of an evolution, kept in the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode

from worldmodels.cmaes.search_space import Floats, SearchSpace, principal_components
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.dream.world_model import WorldModel, load_world_model
from worldmodels.models.controller import Controller
from worldmodels.models.weights import checkpoint_errors, load_tensors, save_tensors

_DREAMS, _STEPS, _EVERY, _HELD = 256, 600, 10, 5  # that what C sees is learnt from; steps between two rows, and actions


def dreamt_features(world: WorldModel, controller: Controller, seed: int) -> npt.NDArray[np.float32]:
    """What C sees, (B, F), in dreams whose actions are drawn anew every few steps."""
    envs = DreamVectorEnv(
        *world, num_envs=_DREAMS, features=controller.features, autoreset_mode=AutoresetMode.SAME_STEP
    )
    rng = np.random.default_rng([seed, *b"features"])
    seen, _ = envs.reset(seed=int(rng.integers(2**31)))
    rows = []
    for step in range(_STEPS):
        if step % _HELD == 0:
            raw = rng.uniform(-1, 1, (_DREAMS, controller.action_size)).astype(np.float32)
            actions = controller.squashed(raw)
        seen = envs.step(actions)[0]
        if step % _EVERY == _EVERY - 1:
            rows.append(seen)
    return np.concatenate(rows)


def make_coordinates(
    run_folder: Path, controller: Controller, origin: Floats, components: int, seed: int
) -> SearchSpace:
    """The coordinates of an evolution; those along components are kept in a file, as another machine's would differ.

    Args:
        run_folder: of M and the starts; the file is ``evolve/coordinates.safetensors``.
        controller: the shape of C.
        origin: (N,), the parameters that the search begins at.
        components: K; 0 for C's parameters themselves.
        seed: of the dreams that show what C sees.

    Raises:
        ValueError: there are fewer components, or the file does not fit.
    """
    if components == 0:
        return SearchSpace(controller, origin)
    seen = controller.feature_size
    if components > seen:
        raise ValueError(f"evolve.pca_components: expected at most {seen}, what C sees, got {components}")
    path = run_folder / "evolve" / "coordinates.safetensors"
    if not path.is_file():
        basis = principal_components(dreamt_features(load_world_model(run_folder), controller, seed), components)
        save_tensors(path, {"origin": torch.from_numpy(origin), "basis": torch.from_numpy(basis)}, {})
    tensors, _ = load_tensors(path)
    with checkpoint_errors(path, "evolve"):
        found = SearchSpace(controller, tensors["origin"].numpy(), tensors["basis"].numpy())
    shapes = [tuple(found.origin.shape), tuple(found.basis.shape if found.basis is not None else ())]
    if shapes != [(controller.size,), (seen, components)]:
        raise ValueError(f"{path}: expected origin ({controller.size},) and basis ({seen}, {components}), got {shapes}")
    return found
