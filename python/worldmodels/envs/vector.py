"""Many real environments stepped as one batch: in EnvPool, in threads or in spawned processes."""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs import ContractError
from worldmodels.envs import envpool as pool
from worldmodels.envs.any_gymnasium import AdaptedEnv
from worldmodels.envs.base import Batch, Bools, Floats, Step
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.support.cpu import cores
from worldmodels.support.processes import Owned, deaf_to_interrupts, ending

_OPTIONS = ("variant", "resolution")  # of an environment's constructor; a run may choose them


def make(environment: EnvSpec, *, rules: Rules | None = None, **options: Any) -> AdaptedEnv:
    """Makes the real environment of an experiment: what `gymnasium.make` returns, with its wrappers and time limit.

    Args:
        environment: Real environment.
        rules: Rules of the task; None where actions are those of the environment.
        **options: Options of the environment's constructor.

    Raises:
        ValueError: Gymnasium does not know the environment, or the environment does not know an option.
        ContractError: its spaces are not those of docs/tutorials/own_environment.md.
    """
    entry_point(environment.id)  # an id that Gymnasium does not know is named
    check_options(environment)
    chosen = {name: getattr(environment, name) for name in _OPTIONS}
    options = {**{name: value for name, value in chosen.items() if value}, **options}
    env = gymnasium.make(environment.id, disable_env_checker=True, **options)
    try:
        return AdaptedEnv(env, environment.id, rules.squash if rules else None)
    except BaseException:
        env.close()
        raise


def check_options(environment: EnvSpec, section: str = "environment", **more: Any) -> None:
    """Refuses an option that the environment does not know, or a value that it does not take.

    An environment class may have a static method ``check_options(**options)``, which raises ValueError for values that
    its constructor would refuse.

    Args:
        environment: the real environment, whose variant and resolution are checked where they are not empty.
        section: of the settings that chose them.
        **more: Further options of the environment's constructor.

    Raises:
        ValueError: the environment has no such option, or does not take its value.
    """
    asked = {name: value for name in _OPTIONS if (value := getattr(environment, name))} | more
    if not asked:
        return
    entry = entry_point(environment.id)
    takes = inspect.signature(entry).parameters
    for name, value in asked.items():
        if name not in takes and not any(item.kind is item.VAR_KEYWORD for item in takes.values()):
            raise ValueError(f"{section}.{name}: expected none, as {environment.id} has no such option, got {value!r}")
    check = getattr(entry, "check_options", None)
    if callable(check):
        try:
            check(**asked)
        except ValueError as error:
            raise ValueError(f"{section}.{error}") from error


def backend(environment: EnvSpec) -> str:
    """Who steps the environment: what the settings say, or the fastest that is installed.

    Returns:
        ``"envpool"`` or ``"gymnasium"``.

    Raises:
        ValueError: EnvPool is wanted and does not have this environment.
        ModuleNotFoundError: EnvPool is wanted and not installed.
    """
    if environment.backend == "envpool":
        if environment.id not in pool.TASKS:
            have = ", ".join(pool.TASKS)
            raise ValueError(f"environment.backend: EnvPool has {have}; expected gymnasium for {environment.id}")
        if not pool.installed():
            raise ModuleNotFoundError(
                "environment.backend: envpool is not installed: pip install 'worldmodels-rl[envpool]'"
            )
    if environment.backend:
        return environment.backend
    return "envpool" if environment.id in pool.TASKS and pool.installed() else "gymnasium"


def make_batch(environment: EnvSpec, slots: int, *, workers: int | None = None, **options: Any) -> Batch:
    """Makes a batch of environments.

    Args:
        environment: the real environment; its ``backend`` chooses EnvPool or Gymnasium.
        slots: episodes that are played side by side.
        workers: threads or processes; None for one per core. One means: in this thread (with EnvPool: in one other).
        **options: ``rules`` of the task, and options of the environment's constructor; EnvPool takes none of these.

    Raises:
        ValueError: a number is out of range, or EnvPool is asked for what it does not have.
        ContractError: the spaces of the environment are not those of docs/tutorials/own_environment.md.
    """
    workers = cores() if workers is None else workers
    for name, value in (("slots", slots), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if backend(environment) == "envpool":
        check_options(environment)
        rules = options.pop("rules", None)
        if options:
            raise ValueError(f"{', '.join(options)}: EnvPool has no such option, use --environment.backend gymnasium")
        return pool.EnvPoolBatch(environment.id, slots, workers, rules)
    if min(slots, workers) == 1:
        return ThreadBatch(environment, slots, 1, options)
    if _threads(environment.id):  # twice as many: while one waits for its game, another resizes its frame
        return ThreadBatch(environment, slots, min(slots, 2 * workers), options)
    return ProcessBatch(environment, slots, min(slots, workers), options)


def _threads(env_id: str) -> bool:
    """Whether threads are enough to step an environment in parallel: the metadata of its entry point say so."""
    metadata = getattr(entry_point(env_id), "metadata", None)
    return isinstance(metadata, dict) and bool(metadata.get("threads", False))


def entry_point(env_id: str) -> Callable[..., Any]:
    """The callable that makes an environment: most often a class, or a function that returns a wrapped one."""
    package, _, name = env_id.rpartition(":")
    if package:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{package}.".startswith(f"{error.name}."):
                raise  # the package is there, and needs another
            raise ValueError(f"environment.id: expected one that Gymnasium knows, got {env_id!r}: {error}") from error
    try:
        entry: Any = gymnasium.spec(name).entry_point
    except gymnasium.error.Error as error:
        raise ValueError(f"environment.id: expected one that Gymnasium knows, got {env_id!r}: {error}") from error
    if isinstance(entry, str):
        module, _, kind = entry.partition(":")
        entry = getattr(importlib.import_module(module), kind, None)
    if not callable(entry):
        came = "one that is a vector environment alone" if entry is None else f"the entry point {entry!r}"
        raise ValueError(f"environment.id: expected an environment with an entry point, got {env_id!r}, {came}")
    made: Callable[..., Any] = entry
    return made


class _Row:
    """One slot of a batch that is made of Gymnasium environments."""

    def __init__(self, environment: EnvSpec, options: dict[str, Any]) -> None:
        self._of, self._options = environment, options
        self._env: AdaptedEnv | None = None

    def open(self) -> AdaptedEnv:
        if self._env is None:
            self._env = make(self._of, **self._options)
        return self._env

    def reset(self, seed: int) -> Frame:
        return self.open().reset(seed=int(seed))[0]

    def step(self, action: Floats) -> tuple[Frame, float, bool, bool]:
        assert self._env is not None, "reset comes before step"
        return self._env.step(action)[:4]

    def close(self) -> None:
        if self._env is not None:
            self._env.close()


class ThreadBatch(Owned, Batch):
    """Gymnasium environments in threads of this process: right for those that wait for a process of their own."""

    def __init__(self, environment: EnvSpec, slots: int, workers: int, options: dict[str, Any]) -> None:
        super().__init__("ThreadBatch")
        self.slots = slots
        self._rows = [_Row(environment, options) for _ in range(slots)]
        self._threads = ThreadPoolExecutor(workers) if workers > 1 else None
        self._sent: list[Future[Any]] = []

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """As :class:`Batch` says."""
        return self._rows[0].open().actions.space

    @property
    def scaling(self) -> str:
        """As :class:`Batch` says."""
        return self._rows[0].open().actions.scaling

    def _submit(self, work: Any, *jobs: Any) -> list[Future[Any]]:
        self.check_owner()
        if self._threads is not None:
            return [self._threads.submit(work, *job) for job in zip(*jobs, strict=True)]
        done = []
        for job in zip(*jobs, strict=True):
            done.append(Future[Any]())
            done[-1].set_result(work(*job))
        return done

    def reset(self, slots: npt.ArrayLike, seeds: Sequence[int]) -> Frame:
        """As :class:`Batch` says."""
        rows = np.asarray(slots).tolist()
        return np.stack(
            [future.result() for future in self._submit(lambda row, seed: self._rows[row].reset(seed), rows, seeds)]
        )

    def send(self, slots: npt.ArrayLike, actions: Floats) -> None:
        """As :class:`Batch` says."""
        rows = np.asarray(slots).tolist()
        self._sent = self._submit(lambda row, action: self._rows[row].step(action), rows, actions)

    def receive(self) -> Step:
        """As :class:`Batch` says."""
        self.check_owner()
        frames, rewards, *ends = zip(*[future.result() for future in self._sent], strict=True)
        return np.stack(frames), np.array(rewards, np.float32), np.array(ends[0]), np.array(ends[1])

    def close(self) -> None:
        """Ends the environments; in a forked process, leaves them alone."""
        if not self.owned:
            return
        if self._threads is not None:
            self._threads.shutdown()
        for row in self._rows:
            row.close()


class _Shared:
    """The arrays of a :class:`ProcessBatch`, in memory that its processes share."""

    def __init__(self, slots: int, action_size: int, name: str | None = None) -> None:
        kinds: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "frames": ((slots, 64, 64, 3), np.uint8),
            "actions": ((slots, action_size), np.float32),
            "rewards": ((slots,), np.float32),
            "ends": ((slots, 2), np.bool_),
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
        del self.frames, self.actions, self.rewards, self.ends  # views of the memory
        self.memory.close()


class ProcessBatch(Owned, Batch):
    """Gymnasium environments in spawned processes; worker w has the slots w, w + W, w + 2 W, ..."""

    def __init__(self, environment: EnvSpec, slots: int, workers: int, options: dict[str, Any]) -> None:
        super().__init__("ProcessBatch")
        self.slots = slots
        env = make(environment, **options)
        self._actions = env.actions
        env.close()
        (size,) = self._actions.space.shape
        self._shared = _Shared(slots, size)
        context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[SpawnProcess, Connection]] = []
        self._asked: list[tuple[SpawnProcess, Connection]] = []
        self._sent = np.arange(0)
        for number in range(workers):
            ours, theirs = context.Pipe()
            about = (number, workers, slots, size, self._shared.memory.name)
            process = context.Process(target=_serve, args=(theirs, about, environment, options), daemon=True)
            with deaf_to_interrupts():
                process.start()
            theirs.close()
            self._workers.append((process, ours))

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """As :class:`Batch` says."""
        return self._actions.space

    @property
    def scaling(self) -> str:
        """As :class:`Batch` says."""
        return self._actions.scaling

    def _tell(self, what: str, jobs: dict[int, Any]) -> None:
        """Gives every worker its slots."""
        self.check_owner()
        count = len(self._workers)
        self._asked = []
        for number, (process, pipe) in enumerate(self._workers):
            mine = {slot: job for slot, job in jobs.items() if slot % count == number}
            if mine:
                try:
                    pipe.send((what, mine))
                except OSError as error:
                    raise RuntimeError(f"environment: a worker died ({ending(process.exitcode)})") from error
                self._asked.append((process, pipe))

    def _wait(self) -> None:
        """Waits for all workers that were told something; the first error of one is raised."""
        self.check_owner()
        errors = []
        for process, pipe in self._asked:
            try:
                answer = pipe.recv()
            except (EOFError, OSError):
                process.join(10)
                answer = RuntimeError(f"environment: a worker died ({ending(process.exitcode)})")
            if answer is not None:
                errors.append(answer)
        if errors:
            raise errors[0]

    def reset(self, slots: npt.ArrayLike, seeds: Sequence[int]) -> Frame:
        """As :class:`Batch` says."""
        chosen = np.asarray(slots)
        self._tell("reset", dict(zip(chosen.tolist(), map(int, seeds), strict=True)))
        self._wait()
        return np.array(self._shared.frames[chosen])

    def send(self, slots: npt.ArrayLike, actions: Floats) -> None:
        """As :class:`Batch` says."""
        self._sent = np.asarray(slots)
        self._actions(actions)  # refused here: the shared memory would repeat an action of length one
        self._shared.actions[self._sent] = actions
        self._tell("step", dict.fromkeys(self._sent.tolist()))

    def receive(self) -> Step:
        """As :class:`Batch` says."""
        self._wait()
        shared, sent = self._shared, self._sent
        ends = shared.ends[sent]
        return np.array(shared.frames[sent]), np.array(shared.rewards[sent]), ends[:, 0], ends[:, 1]

    def close(self) -> None:
        """Ends the processes and frees the shared memory; in a forked process, leaves them alone."""
        if not self._workers or not self.owned:
            return
        for _, pipe in self._workers:
            pipe.close()
        for process, _ in self._workers:
            process.join(5)
            process.kill()
            process.join()
        self._workers = []
        memory = self._shared.memory
        self._shared.close()
        memory.unlink()


def _serve(
    pipe: Connection, about: tuple[int, int, int, int, str], environment: EnvSpec, options: dict[str, Any]
) -> None:
    """A worker: plays its slots until the pipe is closed."""
    number, workers, slots, action_size, name = about
    shared = _Shared(slots, action_size, name)
    rows = {slot: _Row(environment, options) for slot in range(number, slots, workers)}
    try:
        while True:
            what, jobs = pipe.recv()
            try:
                for slot, job in jobs.items():
                    if what == "reset":
                        shared.frames[slot] = rows[slot].reset(job)
                    else:
                        frame, reward, *ends = rows[slot].step(shared.actions[slot].copy())
                        shared.frames[slot], shared.rewards[slot], shared.ends[slot] = frame, reward, ends
            except ContractError as error:
                pipe.send(error)
            except Exception as error:
                pipe.send(RuntimeError(f"environment: a worker failed: {type(error).__name__}: {error}"))
            else:
                pipe.send(None)
    except (EOFError, OSError):
        pass
    finally:
        for row in rows.values():
            row.close()
        shared.close()
