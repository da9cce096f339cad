"""What nodes of a cluster need to play the real environment; does not import PyTorch."""

from __future__ import annotations

from dataclasses import replace

from worldmodels.envs.making import backend, entry_point, import_packages
from worldmodels.envs.spec import EnvSpec
from worldmodels.support.cluster import Needs

#: Environments that a thread of a worker steps at once: V encodes their frames together.
ENVS_PER_THREAD = 32


def environment_needs(environment: EnvSpec, modules: tuple[str, ...] = (), *, bfloat16: bool = False) -> Needs:
    """Collect what a node needs to play an environment.

    Args:
        environment: Specification of the real environment.
        modules: Further modules that it imports.
        bfloat16: Whether V computes in bfloat16.
    """
    registering = import_packages(environment)
    module = entry_point(environment.id).__module__
    vizdoom = module == "worldmodels.envs.take_cover" or module.startswith("vizdoom")
    engines = {"vizdoom": vizdoom, "envpool": backend(environment) == "envpool"}
    packages = ("gymnasium", *(name for name, is_used in engines.items() if is_used))
    imported = (*registering, module, *(("envpool",) if engines["envpool"] else ()), *modules)
    return Needs(modules=imported, packages=packages, bfloat16=bfloat16)


def resolved(environment: EnvSpec) -> EnvSpec:
    """Return an environment with the back end that it has here."""
    return replace(environment, backend=backend(environment))


def check_no_gpu() -> None:
    """Check that V computes on the CPU here, as it does in the workers of a cluster.

    Raises:
        ValueError: There is a CUDA device.
    """
    import torch

    if torch.cuda.is_available():
        raise ValueError(
            "--cluster: expected a driver without CUDA device, as workers compute on the CPU, whose rounding differs; "
            "set CUDA_VISIBLE_DEVICES= for this stage"
        )
