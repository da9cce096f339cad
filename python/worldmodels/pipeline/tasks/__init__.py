"""The experiments: each is one module that says what is played, with which policies and with which settings."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
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
#: Packages of others add experiments by an entry point of this group: ``name = "their.module"``.
GROUP = "worldmodels.pipeline.tasks"


@dataclass(frozen=True)
class Task:
    """An experiment: the ``TASK`` of a module that is named like it.

    Attributes:
        name: on the command line, and of the module.
        env_id: Gymnasium id of the real environment; its frames are (64, 64, 3) uint8.
        actions: a name for every action, in their order.
        max_steps: longest real episode, in steps; one that the environment does not end is truncated there.
        policies: policies that look at nothing, by name: to collect with, and to ask whether the dream can be trusted.
        beside: those that are scored beside the agent: name in ``results.json`` -> policy. ``"random"`` and
            ``"collecting"`` are always there.
        presets: settings by name.
        score: what a return counts, for tables and axes.
        frames_per_second: the real speed, for animations.
        threshold: an action moves the player where its absolute value is above this; for pictures.
        squash: how C's outputs become actions; those of ``"tanh"``, in [-1, 1], are scaled to the environment's bounds.
        preset: the one of a new run that names none of several; ``quick`` in its place with ``--from-scratch``.
        survival: whether every step is worth 1, so that a dream is scored without a reward head.
        ablations: what ``worldmodels ablate`` compares: the settings that make each variant, by its name.
        paper: the paper's scores by temperature, to stand beside those of ``worldmodels sweep``.
        paper_score: Mean and standard deviation of the paper's agent over 100 real episodes, for the report.
        minutes: Duration of ``worldmodels run`` on two cores by preset, in minutes; presets without one are not timed.

    Raises:
        ValueError: a preset's settings bear another experiment's or another preset's name; ``max_steps`` is no positive
            integer.
    """

    name: str
    env_id: str
    actions: tuple[str, ...]
    max_steps: int
    policies: Mapping[str, Policy]
    beside: Mapping[str, str]
    presets: Mapping[str, Config]
    score: str
    frames_per_second: int
    threshold: float = 0.0
    squash: Squash = "tanh"
    preset: str = "quick"
    survival: bool = False
    ablations: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    paper: Temperatures = field(default_factory=dict)
    paper_score: tuple[int, int] | None = None
    minutes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_integer("max_steps", self.max_steps, 1, 2**31 - 1)
        for name, config in self.presets.items():
            if (config.task, config.preset) != (self.name, name):
                wanted, came = f"experiment={self.name!r}, preset={name!r}", f"{config.task!r}, {config.preset!r}"
                raise ValueError(f"presets[{name!r}]: expected Config({wanted}), got {came}")

    @property
    def rules(self) -> Rules:
        """How the environment is played."""
        return Rules(self.squash, self.max_steps)

    @property
    def look(self) -> dict[str, Any]:
        """How recordings are drawn: fields of :class:`worldmodels.analysis.recording.Recording`."""
        return {"names": self.actions, "threshold": self.threshold, "frames_per_second": self.frames_per_second}

    @property
    def default_preset(self) -> str:
        """The preset of a new run if none is given."""
        return self.preset if self.preset in self.presets else next(iter(self.presets))

    @property
    def training_preset(self) -> str:
        """The preset of a new run that trains V and M, and of a stage on its own, if none is given."""
        return "quick" if "quick" in self.presets else next(iter(self.presets))

    def dreams_are_scored(self, mdnrnn: MDNRNN) -> bool:
        """Whether M says what a step is worth, or need not."""
        return self.survival or mdnrnn.reward_head


def _modules() -> dict[str, str]:
    """The module of every experiment: those here, and those that other installed packages name."""
    own = {module.name: f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)}
    return own | {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}


def names() -> list[str]:
    """Names of the experiments."""
    return sorted(_modules())


def get(name: str) -> Task:
    """The experiment of a name.

    Raises:
        ValueError: there is none, or its module has no fitting ``TASK``.
    """
    modules = _modules()
    if name not in modules:
        raise ValueError(f"experiment: expected one of {', '.join(sorted(modules))}, got {name!r}")
    module = importlib.import_module(modules[name])
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task) or task.name != name:
        raise ValueError(f"{module.__name__}: expected TASK, a Task named {name!r}, got {task!r:.100}")
    return task


def preset(experiment: str, name: str) -> Config:
    """The settings of a preset.

    Raises:
        ValueError: no such experiment or preset.
    """
    presets = get(experiment).presets
    if name not in presets:
        raise ValueError(f"preset: expected one of {', '.join(presets)}, got {name!r}")
    return presets[name]
