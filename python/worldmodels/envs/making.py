"""Real environments from their specifications: Gymnasium's, adapted to the task, and their back ends."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import gymnasium

from worldmodels.envs import envpool as pool
from worldmodels.envs.any_gymnasium import AdaptedEnv, describe_error, raise_failure
from worldmodels.envs.base import Floats
from worldmodels.envs.preprocessing import Frame
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec

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


class LazyEnv:
    """One Gymnasium environment of a vector, made at its first reset.

    Args:
        environment: Specification of the real environment.
        options: Options of :func:`make`.

    Attributes:
        reset_info: Info of the last reset.
        outcome: Result of the last step: frame, reward, terminated, truncated, info.
    """

    def __init__(self, environment: EnvSpec, options: dict[str, Any]) -> None:
        self._environment, self._options = environment, options
        self._env: AdaptedEnv | None = None
        self.reset_info: dict[str, Any] = {}
        self.outcome: tuple[Frame, float, bool, bool, dict[str, Any]] | None = None

    def open(self) -> AdaptedEnv:
        """Return the environment; make it if needed."""
        if self._env is None:
            self._env = make(self._environment, **self._options)
        return self._env

    def reset(self, seed: int) -> Frame:
        """Start an episode; return its first frame."""
        frame, self.reset_info = self.open().reset(seed=int(seed))
        return frame

    def step(self, action: Floats) -> tuple[Frame, float, bool, bool]:
        """Take an action; return frame, reward, terminated and truncated."""
        assert self._env is not None, "reset comes before step"
        self.outcome = outcome = self._env.step(action)
        return outcome[:4]

    def close(self) -> None:
        """Close the environment if it was made."""
        if self._env is not None:
            self._env.close()
