"""A stage of the pipeline: what it reads, what it writes, and what may change when it is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodels.pipeline.config import Config
    from worldmodels.pipeline.run import Run

#: Files of V, of M with its initial states, and of C in a run folder.
V, M, C = "vae/vae.safetensors", "rnn/rnn.safetensors", "evolve/controller.safetensors"
INITIAL_STATES = "rnn/initial.safetensors"


def command(stage: str) -> str:
    """A stage's name on the command line."""
    return stage.replace("_", "-")


def _nothing(config: Config) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Stage:
    """Declaration of a stage, at the top of its own file.

    Its settings are the section of :class:`Config` with its name.

    Attributes:
        name: Name, as a Python identifier.
        help: What it does, for the command line.
        run: Does the work in a run folder; returns the summary for the marker. A summary with ``"failure"`` stops the
            run there.
        folder: Folder of its files in the run folder.
        inputs: Files of earlier stages, as patterns relative to the run folder.
        optional_inputs: Files of earlier stages that it reads if they are there.
        outputs: Files that it writes, as patterns relative to the run folder; ``{a,b}`` are alternatives,
            ``{policies}`` and ``{baselines}`` those of the task.
        packages: Packages that it imports beyond the dependencies of this one.
        after: Stages that must be complete; None for all earlier ones but leaves.
        leaf: Whether no stage builds on it: it may run again with other settings at any time.
        invalidates: Stages to run again when this one is rerun or resumed.
        extendable: Settings that may grow after it is complete: it resumes from where it stopped.
        partial: Files of partial output, as a pattern in ``folder``, that an interrupted run resumes from.
        resumable: Settings that may change between an interruption and the resumption.
        distributed: Whether the processes of a torchrun launch share it.
        clustered: Whether workers of a cluster can do its work.
        other_settings: Settings of other sections that its outputs depend on.
        world_model: Whether it builds V and M, so that a run with a given world model has nothing to do.
        exports: Its files that such a run copies from the world model.
        optional_exports: Those that it copies if they are there.
        runs_with_world_model: Whether it has something to do all the same.
    """

    name: str
    help: str
    run: Callable[[Run], dict[str, Any]]
    folder: str
    inputs: tuple[str, ...] = ()
    optional_inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    after: tuple[str, ...] | None = None
    leaf: bool = False
    invalidates: tuple[str, ...] = ()
    extendable: tuple[str, ...] = ()
    partial: str = ""
    resumable: tuple[str, ...] = ()
    distributed: bool = False
    clustered: bool = False
    other_settings: Callable[[Config], Mapping[str, Any]] = _nothing
    world_model: bool = False
    exports: tuple[str, ...] = ()
    optional_exports: tuple[str, ...] = ()
    runs_with_world_model: Callable[[Config], bool] = lambda config: False

    @property
    def command(self) -> str:
        """Name on the command line."""
        return command(self.name)

    def is_taken(self, config: Config) -> bool:
        """Whether its outputs are those of the run's world model, so that it has nothing to do."""
        return bool(config.world_model) and self.world_model and not self.runs_with_world_model(config)


class StageFailedError(RuntimeError):
    """A stage is complete, but its model failed its quality check."""
