"""Vectors of real environments in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs.base import Floats, Step, VectorEnv
from worldmodels.envs.making import LazyEnv
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.spec import EnvSpec
from worldmodels.support.processes import Owned


class ThreadVectorEnv(Owned, VectorEnv):
    """Gymnasium environments in threads: for environments that wait for a process of their own.

    Args:
        environment: Specification of the real environment.
        num_envs: Number of environments.
        num_workers: Number of threads; 1 steps in the calling thread.
        options: Options of :func:`make`.
    """

    def __init__(self, environment: EnvSpec, num_envs: int, num_workers: int, options: dict[str, Any]) -> None:
        super().__init__("ThreadVectorEnv")
        self.num_envs = num_envs
        self._rows = [LazyEnv(environment, options) for _ in range(num_envs)]
        self._num_workers = num_workers
        self._threads = ThreadPoolExecutor(num_workers) if num_workers > 1 else None
        self._running: list[Future[None]] = []
        self._sent: Step

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """See :attr:`worldmodels.envs.base.VectorEnv.action_space`."""
        return self._rows[0].open().actions.space

    @property
    def scaling(self) -> str:
        """See :attr:`worldmodels.envs.base.VectorEnv.scaling`."""
        return self._rows[0].open().actions.scaling

    @property
    def reset_infos(self) -> list[dict[str, Any]]:
        """Infos of the last reset of every environment."""
        return [row.reset_info for row in self._rows]

    @property
    def outcomes(self) -> list[Any]:
        """Results of the last step of every environment: frame, reward, terminated, truncated, info."""
        return [row.outcome for row in self._rows]

    def _start(self, work: Callable[[int, int, Any], None], env_ids: npt.ArrayLike, values: Iterable[Any]) -> None:
        """Call ``work(index, env_id, value)`` for every environment of a request, in the threads if there are any."""
        self.check_owner()
        wait(self._running)  # a request whose caller was interrupted may still run
        rows = np.asarray(env_ids).tolist()
        jobs = iter(list(zip(range(len(rows)), rows, values, strict=True)))

        def run() -> None:
            for job in jobs:  # shared: a thread that is free takes the next one
                work(*job)

        if self._threads is None:
            run()
        else:
            self._running = [self._threads.submit(run) for _ in range(min(self._num_workers, len(rows)))]

    def _wait(self) -> None:
        """Wait for the request; raise the first error."""
        self.check_owner()
        for future in self._running:
            future.result()

    def reset(self, env_ids: npt.ArrayLike, seeds: Sequence[int]) -> Frame:
        """See :meth:`worldmodels.envs.base.VectorEnv.reset`."""
        frames = np.empty((len(seeds), 64, 64, 3), np.uint8)

        def reset(index: int, env_id: int, seed: int) -> None:
            frames[index] = self._rows[env_id].reset(seed)

        self._start(reset, env_ids, seeds)
        self._wait()
        return frames

    def send(self, env_ids: npt.ArrayLike, actions: Floats) -> None:
        """See :meth:`worldmodels.envs.base.VectorEnv.send`."""
        count = len(actions)
        frames, rewards = np.empty((count, 64, 64, 3), np.uint8), np.empty(count, np.float32)
        terminated, truncated = np.empty((2, count), np.bool_)

        def step(index: int, env_id: int, action: Floats) -> None:
            frames[index], rewards[index], terminated[index], truncated[index] = self._rows[env_id].step(action)

        self._sent = frames, rewards, terminated, truncated
        self._start(step, env_ids, actions)

    def recv(self) -> Step:
        """See :meth:`worldmodels.envs.base.VectorEnv.recv`."""
        self._wait()
        return self._sent

    def close(self) -> None:
        """Close the environments, except in a forked process."""
        if not self.owned:
            return
        if self._threads is not None:
            self._threads.shutdown()
        with ExitStack() as stack:
            for row in self._rows:
                stack.callback(row.close)
