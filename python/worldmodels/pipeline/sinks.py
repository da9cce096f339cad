"""Sinks of metrics next to ``metrics.jsonl``: TensorBoard and Weights & Biases, for the lines of all stages."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

#: Keys that count the progress of a stage, in the order of precedence.
_STEPS = ("step", "generation", "episodes")


class Sink(Protocol):
    """Receiver of metrics and images."""

    def write(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Write the numbers of a line of metrics.

        Args:
            stage: Name of the stage on the command line.
            values: Numbers by name.
            step: Optimizer step, generation or number of episodes.
        """

    def write_image(self, stage: str, name: str, path: Path, step: int) -> None:
        """Write an image file (PNG)."""

    def close(self) -> None:
        """Flush pending metrics and close the sink."""


def check_sinks(names: Sequence[str]) -> None:
    """Check that the packages of sinks are installed.

    Raises:
        ValueError: There is no such sink.
        ModuleNotFoundError: A package is not installed.
    """
    for name in names:
        if name not in SINKS:
            raise ValueError(f"--log: expected {' or '.join(SINKS)}, got {name!r}")
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"--log: {name} requires `pip install 'worldmodels-rl[{name}]'`", name=name)


def open_sinks(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Sink]:
    """Open sinks for a run folder.

    Args:
        names: Names of sinks.
        folder: Run folder.
        settings: Settings of the run, by section.
    """
    return [SINKS[name](folder, settings) for name in names]


def numbers(line: Mapping[str, Any]) -> tuple[int, dict[str, float]] | None:
    """Split a line of metrics into its step and its other finite numbers; None without a step."""
    key = next((name for name in _STEPS if name in line), None)
    if key is None:
        return None
    values = {
        name: float(value)
        for name, value in line.items()
        if name != key and isinstance(value, int | float) and math.isfinite(value)
    }
    return int(line[key]), values


class TensorBoard:
    """TensorBoard event files in ``tensorboard/<stage>/`` of a run folder.

    Each stage has a folder, as a resumed stage hides the events of its interrupted steps and those of its folder only.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def _writer(self, stage: str, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if stage not in self._writers:
            self._writers[stage] = SummaryWriter(str(self._folder / stage), purge_step=step)
        return self._writers[stage]

    def write(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """See :meth:`Sink.write`."""
        writer = self._writer(stage, step)
        for name, value in values.items():
            writer.add_scalar(f"{stage}/{name}", value, step)

    def write_image(self, stage: str, name: str, path: Path, step: int) -> None:
        """See :meth:`Sink.write_image`."""
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer(stage, step).add_image(f"{stage}/{name}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """See :meth:`Sink.close`."""
        for writer in self._writers.values():
            writer.close()


class WandB:
    """Run of Weights & Biases, which a resumed run continues; its files are in ``wandb/`` of the run folder.

    The environment variables of wandb apply, ``WANDB_MODE=offline`` and ``WANDB_PROJECT`` among them.

    Raises:
        RuntimeError: wandb refuses the run, for example without an API key.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        name, group = _name(folder)
        identity = folder / "wandb" / "id.txt"
        identity.parent.mkdir(exist_ok=True)
        if not identity.is_file():
            identity.write_text(secrets.token_hex(8), encoding="utf-8")
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "worldmodels"),
                name=name,
                group=group,
                id=identity.read_text(encoding="utf-8").strip(),
                resume="allow",
                reinit="create_new",
                dir=folder,
                config=dict(settings),
                settings=wandb.Settings(console="off"),
            )
        except wandb.errors.Error as error:
            raise RuntimeError(f"--log: wandb: {error}") from error
        self._image: Callable[..., Any] = wandb.Image
        self._stages: set[str] = set()

    def _log(self, stage: str, values: Mapping[str, Any], step: int) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/count")
        self._run.log({f"{stage}/{name}": value for name, value in {**values, "count": step}.items()})

    def write(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """See :meth:`Sink.write`."""
        self._log(stage, values, step)

    def write_image(self, stage: str, name: str, path: Path, step: int) -> None:
        """See :meth:`Sink.write_image`."""
        self._log(stage, {name: self._image(str(path))}, step)

    def close(self) -> None:
        """See :meth:`Sink.close`."""
        self._run.finish()


def _name(folder: Path) -> tuple[str, str]:
    """Name a run of wandb and its group: a round, or a variant of a study, belongs to the run folder above it."""
    parts = folder.absolute().parts
    inner = len(parts) > 2 and parts[-2] in ("rounds", "temperatures", "ablations")
    return ("/".join(parts[-3:]), parts[-3]) if inner else (parts[-1], parts[-1])


#: Sinks by name, which is also that of their package and of the extra that installs it.
SINKS: dict[str, Callable[[Path, Mapping[str, Any]], Sink]] = {"tensorboard": TensorBoard, "wandb": WandB}
