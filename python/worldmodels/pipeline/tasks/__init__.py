"""Tasks: a task is one module with the environment, its open-loop policies and its presets."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from worldmodels.envs.policies import Policy
from worldmodels.envs.rules import Rules
from worldmodels.models.controller import Squash
from worldmodels.pipeline.config import Config
from worldmodels.support.validation import check_integer

if TYPE_CHECKING:
    from worldmodels.models.mdnrnn import MDNRNN

#: Scores by temperature: mean and standard deviation in the dream, then in the real environment.
Temperatures = Mapping[float, tuple[tuple[int, int], tuple[int, int]]]
#: Group of the entry points with which other packages add tasks: ``name = "their.module"``.
GROUP = "worldmodels.pipeline.tasks"
_ARROWS = ("left", "right", "up", "down")


@dataclass(frozen=True)
class Task:
    """A task: the ``TASK`` of the module with its name.

    Attributes:
        name: Name on the command line, and of the module.
        env_id: Gymnasium id of the real environment; its frames are (64, 64, 3) uint8. Empty for recordings.
        actions: Names of the actions, in their order.
        max_steps: Longest real episode, in steps; a longer one is truncated.
        policies: Open-loop policies by name, to collect with and to check the dream with.
        baselines: Policies that are evaluated next to the agent: key in ``results.json`` -> policy. ``"random"`` and
            ``"collecting"`` are required.
        presets: Settings by name.
        score: Unit of the return, for tables and axes.
        frames_per_second: Speed of recordings.
        keys: Action of each arrow key, "left", "right", "up" and "down", in a window; those of pressed keys are added.
            Zeros are appended to an action that is too short.
        action_threshold: The player moves where the absolute value of an action is above this; for recordings.
        squash: How C's outputs become actions; those of ``"tanh"``, in [-1, 1], are scaled to the environment's bounds.
        choices: Number of values of each discrete action, with squash ``"argmax"``; ``actions`` are then the names of
            the values, and all actions one-hot vectors.
        preset: Default preset of ``worldmodels run``; ``quick`` with ``--from-scratch``.
        survival: Whether every step has reward 1, so that dreams need no reward head.
        mirror: Factor of each continuous action in the mirror image of an episode, whose frames are reflected left to
            right; empty if mirror images are not episodes of the environment.
        ablations: Variants of ``worldmodels ablate``: the settings of each, by name.
        paper_scores: The paper's scores by temperature, for ``worldmodels sweep``.
        paper_score: Mean and standard deviation of the paper's agent over 100 real episodes, for the report.
        durations: How long ``worldmodels run`` takes, by preset, with the number of cores; none if not timed.
        description: One sentence on what is played and what a score counts, for the report.

    Raises:
        ValueError: A preset's settings name another task or preset; ``max_steps`` is not a positive integer; ``keys``
            has another key or an action that is too long; ``choices`` or ``mirror`` do not match ``squash`` and
            ``actions``.
    """

    name: str
    env_id: str
    actions: tuple[str, ...]
    max_steps: int
    policies: Mapping[str, Policy]
    baselines: Mapping[str, str]
    presets: Mapping[str, Config]
    score: str
    frames_per_second: int
    keys: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: {"left": (-1.0,), "right": (1.0,)})
    action_threshold: float = 0.0
    squash: Squash = "tanh"
    choices: tuple[int, ...] = ()
    preset: str = "quick"
    survival: bool = False
    mirror: tuple[float, ...] = ()
    ablations: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    paper_scores: Temperatures = field(default_factory=dict)
    paper_score: tuple[int, int] | None = None
    durations: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        check_integer("max_steps", self.max_steps, 1, 2**31 - 1)
        if sum(self.choices) != (len(self.actions) if self.squash == "argmax" else 0):
            wanted = f"numbers that add up to the {len(self.actions)} actions" if self.squash == "argmax" else "none"
            raise ValueError(f"choices: expected {wanted} for squash={self.squash!r}, got {self.choices!r}")
        if self.mirror and (len(self.mirror) != len(self.actions) or self.choices):
            wanted = (
                "none for discrete actions"
                if self.choices
                else f"a factor for each of the actions {self.actions}, or none"
            )
            raise ValueError(f"mirror: expected {wanted}, got {self.mirror!r}")
        for key, action in self.keys.items():
            if key not in _ARROWS or len(action) > len(self.actions):
                wanted = f"{', '.join(_ARROWS)}, each with at most {len(self.actions)} numbers"
                raise ValueError(f"keys: expected {wanted}, got {key!r}: {action!r}")
        for name, config in self.presets.items():
            if (config.task, config.preset) != (self.name, name):
                expected, found = f"task={self.name!r}, preset={name!r}", f"{config.task!r}, {config.preset!r}"
                raise ValueError(f"presets[{name!r}]: expected Config({expected}), got {found}")

    @property
    def rules(self) -> Rules:
        """Rules of the environment: maximum episode length and actions."""
        return Rules(self.squash, self.max_steps, self.choices)

    @property
    def look(self) -> dict[str, Any]:
        """Settings of recordings: fields of :class:`worldmodels.analysis.recording.Recording`."""
        return {
            "names": self.actions,
            "threshold": self.action_threshold,
            "choices": self.choices,
            "frames_per_second": self.frames_per_second,
        }

    @property
    def default_preset(self) -> str:
        """Default preset of a new run."""
        return self.preset if self.preset in self.presets else next(iter(self.presets))

    @property
    def training_preset(self) -> str:
        """Default preset of a new run that trains V and M, and of a single stage."""
        return "quick" if "quick" in self.presets else next(iter(self.presets))

    def dreaming_presets(self, *, trained: bool) -> list[str]:
        """List the presets that evolve C in the dream; with ``trained``, those that train V and M too."""
        return [
            name
            for name, config in self.presets.items()
            if config.evolve.evaluate_in == "dream" and not (trained and config.world_model)
        ]

    def config(self, preset: str) -> Config:
        """Return the settings of a preset.

        Raises:
            ValueError: There is no such preset.
        """
        if preset not in self.presets:
            raise ValueError(f"preset: expected one of {', '.join(self.presets)}, got {preset!r}")
        return self.presets[preset]

    def require_environment(self, name: str) -> None:
        """Check that the task has an environment; recordings have none.

        Args:
            name: What needs it, for the error.

        Raises:
            ValueError: The task has none.
        """
        if not self.env_id:
            raise ValueError(f"{name}: expected a run with an environment, got one of recordings")

    def dream_has_reward(self, mdnrnn: MDNRNN) -> bool:
        """Whether dreams have a return: M predicts the reward, or every step has reward 1."""
        return self.survival or mdnrnn.reward_head


#: Modules of the tasks of this package by name; a task of another package cannot replace one.
_OWN = {module.name: f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)}


def _modules() -> dict[str, str]:
    """Find the module of every task: those of this package, and the entry points of other packages."""
    return {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)} | _OWN


def _module(name: str) -> str | None:
    """Find the module of a task; None if there is no such task."""
    return _OWN.get(name) or _modules().get(name)  # to list the entry points reads the metadata of every package


def modules(config: Config) -> tuple[str, ...]:
    """Return the names of the modules that register a run's environment; a probed one has its packages in ``imports``.

    Args:
        config: Settings of the run.
    """
    module = _module(config.task)
    return () if config.probe.actions or module is None else (module,)


def names() -> list[str]:
    """List the names of the tasks."""
    return sorted(_modules())


def get(name: str) -> Task:
    """Return the task of a name.

    Raises:
        ValueError: There is no such task, or its module has no ``TASK`` of this name.
    """
    if name.startswith("recordings-"):
        from worldmodels.pipeline.recordings import recordings_task

        return recordings_task(name)
    module = _module(name)
    if module is None:
        raise ValueError(f"task: expected one of {', '.join(names())}, got {name!r}")
    imported = importlib.import_module(module)
    task = getattr(imported, "TASK", None)
    if not isinstance(task, Task) or task.name != name:
        raise ValueError(f"{imported.__name__}: expected TASK, a Task named {name!r}, got {task!r:.100}")
    return task


def importable() -> list[Task]:
    """Return the tasks whose modules can be imported, by name; name the others on stderr."""
    found = []
    for name in names():
        try:
            found.append(get(name))
        except Exception as error:  # of another package
            print(f"WARNING: task {name}: left out: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def is_id(name: str) -> bool:
    """Check whether a name may be a Gymnasium id: it has a namespace, a module or a version."""
    return bool(re.search(r"[/:]|-v\d+$", name))


def is_recordings(name: str) -> bool:
    """Check whether a name is that of a task of recordings: ``recordings-A`` with A dimensions of the action."""
    return re.fullmatch(r"recordings-[1-9]\d{0,2}", name) is not None


def find(name: str, environment: Mapping[str, Any] | None = None) -> Task:
    """Return the task of a name, or the one that a probe makes of the environment with this Gymnasium id.

    Args:
        name: Name of a task, or Gymnasium id.
        environment: Settings of the environment by name, for the probe.

    Raises:
        ValueError: There is neither such a task nor such an environment, or the environment does not fit.
        ModuleNotFoundError: A package of the environment is not installed.
    """
    if not is_id(name) or _module(name) is not None:
        return get(name)
    from worldmodels.pipeline.probing import probed_task

    return probed_task(name, environment or {})


def of(config: Config) -> Task:
    """Return the task of a run, from its settings alone.

    Raises:
        ValueError: There is no such task.
    """
    if config.probe.actions:
        from worldmodels.pipeline.gymnasium_task import gymnasium_task

        task = gymnasium_task(config.task, config.probe)
    else:
        task = get(config.task)
    limit = config.environment.max_steps
    return replace(task, max_steps=limit) if limit else task


def portable_preset(config: Config) -> Config:
    """Return the settings of a run's preset, or of the task's default one if it has none of that name.

    The preset of a probed task has the sizes of the smallest probe, so that a run's own, which come from the speed of
    this machine, differ from them.
    """
    task = of(config)
    if config.probe.actions:
        from worldmodels.pipeline.gymnasium_task import gymnasium_task

        probe = replace(config.probe, episode_length=1, steps_per_second=1, max_steps=1, reward_scale=0.0)
        task = gymnasium_task(config.task, probe)
    return task.presets.get(config.preset, task.presets[task.default_preset])


def preset(task: str, name: str) -> Config:
    """Return the settings of a preset.

    Raises:
        ValueError: There is no such task or preset.
    """
    return get(task).config(name)
