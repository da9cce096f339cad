"""Registration of the environments with Gymnasium, called by ``import worldmodels``."""

from __future__ import annotations

_ENTRIES = {
    "worldmodels/TakeCover-v0": {"entry_point": "worldmodels.envs.take_cover:TakeCoverEnv"},
    "worldmodels/CarRacing-v0": {"entry_point": "worldmodels.envs.car_racing:CarRacingEnv"},
    "worldmodels/Pendulum-v0": {"entry_point": "worldmodels.envs.pendulum:PendulumEnv"},
    "worldmodels/Dream-v0": {
        "entry_point": "worldmodels.dream.env:DreamEnv",
        "vector_entry_point": "worldmodels.dream.env:DreamVectorEnv",
    },
}


def register() -> None:
    """Register the package's environments, once; without Gymnasium, do nothing."""
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        if error.name != "gymnasium":
            raise
        return
    for env_id, entry in _ENTRIES.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, **entry)  # type: ignore[arg-type]
