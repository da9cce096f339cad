"""Vectors of real environments in spawned processes, with shared memory for frames and actions."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs import ContractError, GameLostError
from worldmodels.envs.base import Bools, Floats, Step, VectorEnv
from worldmodels.envs.making import LazyEnv, make
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.spec import EnvSpec
from worldmodels.support.processes import Owned, describe_exit, spawn


class _Shared:
    """Arrays of a :class:`ProcessVectorEnv` in shared memory."""

    def __init__(self, num_envs: int, action_size: int, name: str | None = None) -> None:
        kinds: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "frames": ((num_envs, 64, 64, 3), np.uint8),
            "actions": ((num_envs, action_size), np.float32),
            "rewards": ((num_envs,), np.float32),
            "ends": ((num_envs, 2), np.bool_),
        }
        sizes = {key: int(np.prod(shape)) * np.dtype(kind).itemsize for key, (shape, kind) in kinds.items()}
        starts = dict(zip(sizes, np.cumsum([0, *(-(-size // 64) * 64 for size in sizes.values())]), strict=False))
        self.memory = SharedMemory(name, create=name is None, size=sum(sizes.values()) + 64 * len(sizes))
        for key, (shape, kind) in kinds.items():
            array: npt.NDArray[Any] = np.ndarray(shape, kind, self.memory.buf, int(starts[key]))
            setattr(self, key, array)

    frames: Frame
    actions: Floats
    rewards: Floats
    ends: Bools

    def close(self) -> None:
        del self.frames, self.actions, self.rewards, self.ends  # views must be released before the memory
        self.memory.close()


class ProcessVectorEnv(Owned, VectorEnv):
    """Gymnasium environments in spawned processes; worker w of W steps the environments w, w + W, w + 2 W, ...

    Args:
        environment: Specification of the real environment.
        num_envs: Number of environments.
        num_workers: Number of processes.
        options: Options of :func:`make`.

    Raises:
        ValueError: Gymnasium does not know the environment, or the environment does not know an option.
        ContractError: The spaces violate the contract of docs/tutorials/own_environment.md.
        gymnasium.error.ClosedEnvironmentError: In :meth:`reset`, :meth:`send` and :meth:`recv`, the vector is closed.
    """

    def __init__(self, environment: EnvSpec, num_envs: int, num_workers: int, options: dict[str, Any]) -> None:
        super().__init__("ProcessVectorEnv")
        self.num_envs = num_envs
        env = make(environment, **options)
        self._actions = env.actions
        env.close()
        (size,) = self._actions.space.shape
        self._shared = _Shared(num_envs, size)
        context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[SpawnProcess, Connection]] = []
        self._asked: list[tuple[SpawnProcess, Connection]] = []
        self._number = 0  # of the last request
        self._sent = np.arange(0)
        self._closed = False
        try:
            for number in range(num_workers):
                ours, theirs = context.Pipe()
                layout = (number, num_workers, num_envs, size, self._shared.memory.name)
                process = context.Process(target=_serve, args=(theirs, layout, environment, options), daemon=True)
                spawn(process)
                theirs.close()
                self._workers.append((process, ours))
        except BaseException:
            self.close()
            raise

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """See :attr:`worldmodels.envs.base.VectorEnv.action_space`."""
        return self._actions.space

    @property
    def scaling(self) -> str:
        """See :attr:`worldmodels.envs.base.VectorEnv.scaling`."""
        return self._actions.scaling

    def _check_open(self) -> None:
        self.check_owner()
        if self._closed:
            raise gymnasium.error.ClosedEnvironmentError("ProcessVectorEnv: expected an open vector, got a closed one")

    def _request(self, what: str, jobs: dict[int, Any]) -> None:
        """Send every worker the jobs of its environments."""
        self._check_open()
        count = len(self._workers)
        self._asked = []
        self._number += 1
        for number, (process, pipe) in enumerate(self._workers):
            mine = {env_id: job for env_id, job in jobs.items() if env_id % count == number}
            if mine:
                try:
                    pipe.send((self._number, what, mine))
                except OSError as error:
                    raise _lost(process) from error
                self._asked.append((process, pipe))

    def _wait(self) -> None:
        """Wait for all workers with a request; raise the first error."""
        self._check_open()
        errors = []
        for process, pipe in self._asked:
            number = 0
            try:
                while number != self._number:  # answers to earlier requests, whose caller was interrupted
                    number, answer = pipe.recv()
            except (EOFError, OSError):
                answer = _lost(process)
            if answer is not None:
                errors.append(answer)
        if errors:
            raise errors[0]

    def reset(self, env_ids: npt.ArrayLike, seeds: Sequence[int]) -> Frame:
        """See :meth:`worldmodels.envs.base.VectorEnv.reset`."""
        chosen = np.asarray(env_ids)
        self._request("reset", dict(zip(chosen.tolist(), map(int, seeds), strict=True)))
        self._wait()
        return np.array(self._shared.frames[chosen])

    def send(self, env_ids: npt.ArrayLike, actions: Floats) -> None:
        """See :meth:`worldmodels.envs.base.VectorEnv.send`."""
        self._check_open()
        self._sent = np.asarray(env_ids)
        self._actions.check(actions)  # assignment to the shared memory would broadcast an action of length one
        self._shared.actions[self._sent] = actions
        self._request("step", dict.fromkeys(self._sent.tolist()))

    def recv(self) -> Step:
        """See :meth:`worldmodels.envs.base.VectorEnv.recv`."""
        self._wait()
        shared, sent = self._shared, self._sent
        ends = shared.ends[sent]
        return np.array(shared.frames[sent]), np.array(shared.rewards[sent]), ends[:, 0], ends[:, 1]

    def close(self) -> None:
        """Stop the processes and free the shared memory, except in a forked process."""
        if self._closed or not self.owned:
            return
        for _, pipe in self._workers:
            pipe.close()
        for process, _ in self._workers:
            process.join(5)
            process.kill()
            process.join()
        self._workers, self._closed = [], True
        memory = self._shared.memory
        self._shared.close()
        memory.unlink()


def _lost(process: SpawnProcess) -> GameLostError:
    process.join(10)
    return GameLostError(f"environment: a worker died ({describe_exit(process.exitcode)})")


def _serve(
    pipe: Connection, layout: tuple[int, int, int, int, str], environment: EnvSpec, options: dict[str, Any]
) -> None:
    """Worker process: step its environments until the pipe is closed."""
    first, num_workers, num_envs, action_size, name = layout
    shared = _Shared(num_envs, action_size, name)
    rows = {env_id: LazyEnv(environment, options) for env_id in range(first, num_envs, num_workers)}
    try:
        while True:
            number, what, jobs = pipe.recv()
            try:
                for env_id, job in jobs.items():
                    if what == "reset":
                        shared.frames[env_id] = rows[env_id].reset(job)
                    else:
                        frame, reward, *ends = rows[env_id].step(shared.actions[env_id].copy())
                        shared.frames[env_id], shared.rewards[env_id], shared.ends[env_id] = frame, reward, ends
            except (ContractError, GameLostError) as error:
                pipe.send((number, error))
            except Exception as error:
                pipe.send((number, RuntimeError(f"environment: a worker failed: {type(error).__name__}: {error}")))
            else:
                pipe.send((number, None))
    except (EOFError, OSError):
        pass
    finally:
        with ExitStack() as stack:
            stack.callback(shared.close)
            for row in rows.values():
                stack.callback(row.close)
