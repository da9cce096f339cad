"""Vectors of real environments in EnvPool, in threads or in spawned processes."""

from __future__ import annotations

from typing import Any

from worldmodels.envs import envpool as pool
from worldmodels.envs.base import VectorEnv
from worldmodels.envs.making import backend, check_options, entry_point, import_packages
from worldmodels.envs.process_vector import ProcessVectorEnv
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.thread_vector import ThreadVectorEnv
from worldmodels.support.cpu import available_cpus
from worldmodels.support.validation import check_integer


def make_vector_env(
    environment: EnvSpec, num_envs: int, *, num_workers: int | None = None, **options: Any
) -> VectorEnv:
    """Make a vector of real environments.

    Args:
        environment: Specification of the real environment; its ``backend`` selects EnvPool or Gymnasium.
        num_envs: Number of concurrent episodes.
        num_workers: Number of threads or processes; None for one per CPU. 1 steps in the calling thread (with EnvPool:
            in one other thread).
        **options: ``rules`` of the task, and options of the environment's constructor, which EnvPool does not support.

    Raises:
        ValueError: A number is out of range, or EnvPool does not support an option.
        ContractError: The spaces violate the contract of docs/tutorials/own_environment.md.
    """
    num_workers = available_cpus() if num_workers is None else num_workers
    check_integer("num_envs", num_envs, 1, 2**31 - 1)
    check_integer("num_workers", num_workers, 1, 2**31 - 1)
    if backend(environment) == "envpool":
        check_options(environment)
        rules = options.pop("rules", None)
        if options:
            raise ValueError(f"{', '.join(options)}: EnvPool has no such option, use --environment.backend gymnasium")
        return pool.EnvPoolVectorEnv(environment.id, num_envs, num_workers, rules)
    import_packages(environment)
    if min(num_envs, num_workers) == 1:
        return ThreadVectorEnv(environment, num_envs, 1, options)
    if _threads(environment.id):  # twice as many: one waits for its game while another resizes a frame
        return ThreadVectorEnv(environment, num_envs, min(num_envs, 2 * num_workers), options)
    return ProcessVectorEnv(environment, num_envs, min(num_envs, num_workers), options)


def _threads(env_id: str) -> bool:
    """Check the metadata of an entry point: whether threads step the environment in parallel."""
    metadata = getattr(entry_point(env_id), "metadata", None)
    return isinstance(metadata, dict) and bool(metadata.get("threads", False))
