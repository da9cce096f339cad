"""Vectors of real environments in EnvPool, in threads or in spawned processes."""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs import ContractError, GameLostError
from worldmodels.envs import envpool as pool
from worldmodels.envs.any_gymnasium import AdaptedEnv, describe_error, raise_failure
from worldmodels.envs.base import Bools, Floats, Step, VectorEnv
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.support.cpu import available_cpus
from worldmodels.support.processes import Owned, describe_exit, spawn
from worldmodels.support.validation import check_integer

_OPTIONS = ("variant", "resolution")  # constructor options with a setting
#: Settings that :class:`AdaptedEnv` applies.
_ADAPTED = ("source", "action_repeat", "crop_top", "crop_bottom", "crop_left", "crop_right")
_DEFAULT = EnvSpec()


def make(environment: EnvSpec, *, rules: Rules | None = None, **options: Any) -> AdaptedEnv:
    """Make a real environment: the result of `gymnasium.make`, with its wrappers and time limit, adapted to the task.

    Args:
        environment: Specification of the real environment.
        rules: Rules of the task; None for the actions of the environment.
        **options: Options of the environment's constructor.

    Raises:
        ValueError: Gymnasium does not know the environment, or the environment does not know an option.
        ContractError: The environment cannot be made, or its spaces violate the contract of
            docs/tutorials/own_environment.md.
        ModuleNotFoundError: A package of the environment is not installed.
    """
    import_packages(environment)
    entry_point(environment.id)  # raises for unknown ids, with a message that names the setting
    check_options(environment)
    chosen = {name: getattr(environment, name) for name in _OPTIONS}
    options = {**{name: value for name, value in chosen.items() if value}, **options}
    if environment.source == "render":
        options["render_mode"] = "rgb_array"
        if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame reports a missing display on stderr
    try:
        env = gymnasium.make(environment.id, disable_env_checker=True, **options)
    except (Exception, SystemExit) as error:
        raise_failure(error, environment.id, "when it was made")
    if _without_module(environment.id).startswith(_VIZDOOM):
        from worldmodels.envs.vizdoom_scenarios import ScenarioEnv

        env = ScenarioEnv(env)
    squash, choices = (rules.squash, rules.choices) if rules else (None, ())
    try:
        return AdaptedEnv(env, environment.id, squash, choices, environment)
    except BaseException:
        env.close()
        raise


def try_environment(environment: EnvSpec, rules: Rules) -> None:
    """Make and reset an environment of Gymnasium as a stage does, to find what only this shows.

    Args:
        environment: Specification of the real environment.
        rules: Rules of the task.

    Raises:
        ValueError, ContractError, ModuleNotFoundError: See :func:`make` and :class:`AdaptedEnv`.
    """
    env = make(environment, rules=rules)
    try:
        env.reset(seed=0)
    finally:
        env.close()


_VIZDOOM = "Vizdoom"  # beginning of the ids of the package vizdoom
#: Packages that register ids when they are imported, by the beginning of the id.
_REGISTERED_BY = {"ALE/": "ale_py", _VIZDOOM: "vizdoom.gymnasium_wrapper"}


def import_packages(environment: EnvSpec) -> list[str]:
    """Import the packages that register an environment: those of its settings, and ALE's or VizDoom's for their ids.

    Returns:
        Names of the packages.

    Raises:
        ValueError: A package of the settings does not exist.
        ModuleNotFoundError: ALE or VizDoom is not installed.
    """
    packages = list(filter(None, (name.strip() for name in environment.imports.split(","))))
    for package in packages:
        _import(package, f"environment.imports: expected an installed package, got {package!r}")
    for prefix, package in _REGISTERED_BY.items():
        if _without_module(environment.id).startswith(prefix):
            module = importlib.import_module(package)
            packages.append(package)
            if package == "ale_py":  # else every environment prints its version
                module.ALEInterface.setLoggerMode(module.LoggerMode.Error)
    return packages


def _import(package: str, message: str) -> None:
    """Import a package that a setting names; ValueError with the message if there is none or it fails."""
    try:
        if package.startswith("."):
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{package}.".startswith(f"{error.name}."):
            raise ModuleNotFoundError(f"{package}: {error}", name=error.name) from error  # one that it imports
        raise ValueError(f"{message}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{message}, whose import failed: {describe_error(error)}") from error


def _without_module(env_id: str) -> str:
    return env_id.rpartition(":")[2]


def check_options(environment: EnvSpec, section: str = "environment", **more: Any) -> None:
    """Check the options of an environment.

    The environment's class may have a static method ``check_options(**options)`` that raises ValueError for values its
    constructor would reject.

    Args:
        environment: Specification of the real environment; its variant and resolution are checked if not empty.
        section: Section of the settings, for error messages.
        **more: Further options of the environment's constructor.

    Raises:
        ValueError: The environment does not have the option, or rejects its value.
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


def backend(environment: EnvSpec) -> Literal["envpool", "gymnasium"]:
    """Resolve the back end of an environment: the one of the settings, or the fastest one installed.

    Returns:
        ``"envpool"`` or ``"gymnasium"``.

    Raises:
        ValueError: EnvPool is requested and does not have this environment, or settings of its frames or actions are
            not the defaults, which EnvPool ignores.
        ModuleNotFoundError: EnvPool is requested and not installed.
    """
    adapted = [name for name in _ADAPTED if getattr(environment, name) != getattr(_DEFAULT, name)]
    if environment.backend == "envpool":
        if adapted:
            value = getattr(environment, adapted[0])
            default = getattr(_DEFAULT, adapted[0])
            raise ValueError(
                f"environment.{adapted[0]}: expected {default!r} with EnvPool, got {value!r}; use "
                "--environment.backend gymnasium"
            )
        if environment.id not in pool.TASKS:
            have = ", ".join(pool.TASKS)
            raise ValueError(f"environment.backend: EnvPool has {have}; expected gymnasium for {environment.id}")
        if not pool.installed():
            raise ModuleNotFoundError(
                "environment.backend: envpool is not installed: pip install 'worldmodels-rl[envpool]'"
            )
    if environment.backend:
        return environment.backend
    return "envpool" if environment.id in pool.TASKS and pool.installed() and not adapted else "gymnasium"


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


def entry_point(env_id: str) -> Callable[..., Any]:
    """Resolve the callable that makes an environment, usually a class.

    Raises:
        ValueError: Gymnasium does not know the id, or the environment has no such callable.
        ModuleNotFoundError: A package of the environment is not installed.
    """
    package, _, name = env_id.rpartition(":")
    unknown = f"environment.id: expected one that Gymnasium knows, got {env_id!r}"
    if package:
        _import(package, unknown)
    try:
        entry: Any = gymnasium.spec(name).entry_point
    except gymnasium.error.Error as error:
        raise ValueError(f"{unknown}: {error}") from error
    if isinstance(entry, str):
        module, _, kind = entry.partition(":")
        try:
            entry = getattr(importlib.import_module(module), kind, None)
        except ModuleNotFoundError:
            raise
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise ModuleNotFoundError(f"{env_id}: {error}") from error
        except (Exception, SystemExit) as error:
            raise_failure(error, env_id, f"when {module} was imported")
    if not callable(entry):
        came = "one that is a vector environment alone" if entry is None else f"the entry point {entry!r}"
        raise ValueError(f"environment.id: expected an environment with an entry point, got {env_id!r}, {came}")
    made: Callable[..., Any] = entry
    return made


class _Row:
    """One Gymnasium environment of a vector, opened at its first reset."""

    def __init__(self, environment: EnvSpec, options: dict[str, Any]) -> None:
        self._of, self._options = environment, options
        self._env: AdaptedEnv | None = None
        self.reset_info: dict[str, Any] = {}
        self.outcome: tuple[Frame, float, bool, bool, dict[str, Any]] | None = None

    def open(self) -> AdaptedEnv:
        if self._env is None:
            self._env = make(self._of, **self._options)
        return self._env

    def reset(self, seed: int) -> Frame:
        frame, self.reset_info = self.open().reset(seed=int(seed))
        return frame

    def step(self, action: Floats) -> tuple[Frame, float, bool, bool]:
        assert self._env is not None, "reset comes before step"
        self.outcome = outcome = self._env.step(action)
        return outcome[:4]

    def close(self) -> None:
        if self._env is not None:
            self._env.close()


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
        self._rows = [_Row(environment, options) for _ in range(num_envs)]
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
        for number in range(num_workers):
            ours, theirs = context.Pipe()
            layout = (number, num_workers, num_envs, size, self._shared.memory.name)
            process = context.Process(target=_serve, args=(theirs, layout, environment, options), daemon=True)
            spawn(process)
            theirs.close()
            self._workers.append((process, ours))

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """See :attr:`worldmodels.envs.base.VectorEnv.action_space`."""
        return self._actions.space

    @property
    def scaling(self) -> str:
        """See :attr:`worldmodels.envs.base.VectorEnv.scaling`."""
        return self._actions.scaling

    def _request(self, what: str, jobs: dict[int, Any]) -> None:
        """Send every worker the jobs of its environments."""
        self.check_owner()
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
        self.check_owner()
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


def _lost(process: SpawnProcess) -> GameLostError:
    process.join(10)
    return GameLostError(f"environment: a worker died ({describe_exit(process.exitcode)})")


def _serve(
    pipe: Connection, layout: tuple[int, int, int, int, str], environment: EnvSpec, options: dict[str, Any]
) -> None:
    """Worker process: step its environments until the pipe is closed."""
    first, num_workers, num_envs, action_size, name = layout
    shared = _Shared(num_envs, action_size, name)
    rows = {env_id: _Row(environment, options) for env_id in range(first, num_envs, num_workers)}
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
