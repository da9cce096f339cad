"""Environments; `import worldmodels` registers them with Gymnasium, before or after Gymnasium is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class GameLostError(RuntimeError):
    """The process that plays a game has died, or hung and was ended."""


class ContractError(ValueError):
    """An environment, or a policy, breaks the contract of docs/add_environment.md."""


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


class _RegisterAfter(Loader):
    """Loads Gymnasium as its own loader does, then registers."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        register()


class _Finder(MetaPathFinder):
    """Finds nothing but Gymnasium, where the finders after this one find it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "gymnasium":
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisterAfter(spec.loader)
                return spec
        return None


def register_with_gymnasium() -> None:
    """Registers now if Gymnasium has been imported, otherwise as soon as it is: importing it takes a second."""
    if sys.modules.get("gymnasium") is not None:
        register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
