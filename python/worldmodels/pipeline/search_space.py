"""Search space of an evolution: C's parameters, or principal components saved in the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode

from worldmodels.cmaes.search_space import Floats, SearchSpace, feature_scales, principal_components
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.dream.world_model import WorldModel, load_world_model
from worldmodels.models.controller import Controller
from worldmodels.models.weights import checkpoint_errors, load_tensors, save_tensors

_NUM_ENVS, _STEPS = 256, 600  # dreams that sample C's features
_SAMPLE_EVERY = 10  # steps between two samples
_REPEAT = 5  # steps of each random action


def sample_features(world: WorldModel, controller: Controller, seed: int) -> npt.NDArray[np.float32]:
    """Sample C's features in dreams with random actions, each repeated for 5 steps.

    Args:
        world: World model.
        controller: Architecture of C.
        seed: Seed of the dreams and of the actions.

    Returns:
        (B, F) float32 features.
    """
    envs = DreamVectorEnv(
        *world, num_envs=_NUM_ENVS, features=controller.features, autoreset_mode=AutoresetMode.SAME_STEP
    )
    rng = np.random.default_rng([seed, *b"features"])
    features, _ = envs.reset(seed=int(rng.integers(2**31)))
    rows = []
    for step in range(_STEPS):
        if step % _REPEAT == 0:
            raw = rng.uniform(-1, 1, (_NUM_ENVS, controller.action_size)).astype(np.float32)
            actions = controller.squashed(raw)
        features = envs.step(actions)[0]
        if step % _SAMPLE_EVERY == _SAMPLE_EVERY - 1:
            rows.append(features)
    return np.concatenate(rows)


def make_search_space(
    run_folder: Path, controller: Controller, origin: Floats, components: int, seed: int, *, scaled: bool = False
) -> SearchSpace:
    """Create the search space of an evolution.

    Principal components and scales are saved in ``evolve/coordinates.safetensors`` and reused, because floating-point
    rounding differs between machines.

    Args:
        run_folder: Run folder with M and its initial states.
        controller: Architecture of C.
        origin: (N,) float64 parameters at the zero of the search space.
        components: Number K of principal components; 0 for C's parameters.
        seed: Seed of the sampled features.
        scaled: Whether C's parameters are scaled by the standard deviations of its features.

    Raises:
        ValueError: The features have fewer components, or the file does not match.
    """
    if components == 0 and not scaled:
        return SearchSpace(controller, origin)
    size = controller.feature_size
    if components > size:
        raise ValueError(f"evolve.pca_components: expected at most {size}, the features of C, got {components}")
    path = run_folder / "evolve" / "coordinates.safetensors"
    if not path.is_file():
        features = sample_features(load_world_model(run_folder), controller, seed)
        try:
            basis = principal_components(features, components) if components else feature_scales(features)
        except ValueError as error:  # names the setting
            raise ValueError(str(error).replace("count:", "evolve.pca_components:", 1)) from error
        save_tensors(path, {"origin": torch.from_numpy(origin), "basis": torch.from_numpy(basis)}, {})
    tensors, _ = load_tensors(path)
    with checkpoint_errors(path, "evolve"):
        found = SearchSpace(controller, tensors["origin"].numpy(), tensors["basis"].numpy())
    shapes = [tuple(found.origin.shape), tuple(found.basis.shape if found.basis is not None else ())]
    wanted = (size, components) if components else (size,)
    if shapes != [(controller.size,), wanted]:
        raise ValueError(f"{path}: expected origin ({controller.size},) and basis {wanted}, got {shapes}")
    return found
