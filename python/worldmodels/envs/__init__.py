"""Environments; `import worldmodels` registers them with Gymnasium."""

from __future__ import annotations


def register() -> None:
    """Registers the environments of the experiments and worldmodels/Dream-v0 with Gymnasium, once."""
    import gymnasium

    entries = {
        "worldmodels/TakeCover-v0": {"entry_point": "worldmodels.envs.take_cover:TakeCoverEnv"},
        "worldmodels/CarRacing-v0": {"entry_point": "worldmodels.envs.car_racing:CarRacingEnv"},
        "worldmodels/Dream-v0": {
            "entry_point": "worldmodels.envs.dream:DreamEnv",
            "vector_entry_point": "worldmodels.envs.dream:DreamVectorEnv",
        },
    }
    for env_id, entry in entries.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, **entry)  # type: ignore[arg-type]
