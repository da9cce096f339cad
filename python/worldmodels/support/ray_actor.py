"""Ray actor of a worker process."""

from __future__ import annotations

import functools
from typing import Any

import ray


@functools.cache
def worker_class() -> Any:
    """Return the Ray actor class of a worker.

    The class is local to this function, so that Ray pickles it by value. Therefore a node with another version of this
    package can create the actor and report its version. The methods import everything that they use.
    """

    class Worker:
        def __init__(self, num_threads: int) -> None:
            import os

            os.environ["OMP_NUM_THREADS"] = str(num_threads)
            self.open_job = 0, 0  # number of the job, number of threads
            self.runner: Any = None

        def describe_node(self, modules: tuple[str, ...], files: tuple[str, ...]) -> dict[str, Any]:
            try:
                from worldmodels.support.cluster_worker import describe_node
            except ImportError as error:
                try:
                    from worldmodels import __version__ as version
                except ImportError:
                    version = "none"
                return {"versions": {"worldmodels": f"{version} ({error})"}}
            return describe_node(modules, files)

        def run(self, number: int, job: list[Any], data: Any, level: str, threads: int) -> Any:
            import ray

            from worldmodels.support.cluster_worker import JobRunner

            self.runner = self.runner or JobRunner(level)
            pickled = ray.get(job[0]) if (number, threads) != self.open_job else b""
            result = self.runner.run(number, pickled, data, threads)
            self.open_job = (number, threads) if result[0] == "done" else (0, 0)
            return result

    return ray.remote(Worker)
