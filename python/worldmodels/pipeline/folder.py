"""Run folder as files: settings, which stages are complete, and with which settings they were made."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worldmodels.data.records import StageRecord
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config, from_dict, round_config, round_folder, round_settings
from worldmodels.pipeline.stage import Stage, command
from worldmodels.pipeline.stages import STAGES, get
from worldmodels.support import settings
from worldmodels.support.files import read_json, read_lines


def default_folder(task: str, preset: str = "") -> Path:
    """Return the run folder of a command without ``--out``, by the names of its task and of a chosen preset."""
    name = re.sub(r"[/:]", "-", task)
    return Path("runs", f"{name}-{preset}" if preset else name)


def making(config: Config, folder: str | Path, stage: str) -> str:
    """Return the command that makes the outputs of a stage: ``run``, which recordings lack, or the stage's own.

    Args:
        config: Settings of the run.
        folder: Run folder.
        stage: Name of the stage.
    """
    words = [command(stage)] if tasks.is_recordings(config.task) else ["run", config.task]
    return shlex.join(["worldmodels", *words, "--out", str(folder)])


class RunFolder:
    """Run folder that is read, without its lock; :class:`Run` also writes.

    Args:
        folder: Run folder.
        given: Settings of the run.
        names: Names under which errors report settings, where they are not their own.

    Attributes:
        folder: Run folder.
        given: Settings of the run, as in ``config.json``.
        config: Settings of the folder's stages: those of the last round.
        names: Names under which errors report settings.
    """

    def __init__(self, folder: str | Path, given: Config, names: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder)
        self._use(given, names)

    def _use(self, given: Config, names: Mapping[str, str] | None = None) -> None:
        last = given.last_round
        self.given, self.config = given, round_config(given, last, self.folder)
        self.names = round_settings(given, last) if names is None else names

    @property
    def rounds(self) -> list[RunFolder]:
        """Folders of the rounds; the last one is this folder."""
        given, last = self.given, self.given.last_round
        earlier = [
            RunFolder(
                round_folder(given, number, self.folder),
                round_config(given, number, self.folder),
                round_settings(given, number),
            )
            for number in range(last)
        ]
        return [*earlier, self]

    @staticmethod
    def stored_config(folder: str | Path) -> Config | None:
        """Read the settings of a run folder; None if it has none."""
        path = Path(folder) / "config.json"
        return read_config(path) if path.is_file() else None

    @property
    def task(self) -> tasks.Task:
        """Task of the run."""
        return tasks.of(self.config)

    def path(self, *parts: str) -> Path:
        """Return a path in the run folder."""
        return self.folder.joinpath(*parts)

    def marker(self, stage: str) -> Path:
        """Return the path of a stage's marker, which exists if the stage is complete."""
        return self.path("stages", f"{stage}.json")

    def begun(self, stage: str) -> Path:
        """Return the path of an incomplete stage's marker, with the settings of its partial outputs."""
        return self.path("stages", f"{stage}.begun.json")

    def summary(self, stage: str) -> dict[str, Any]:
        """Return the summary of a complete stage; empty if it is not complete."""
        return StageRecord.read(self.marker(stage)).summary if self.marker(stage).is_file() else {}

    def _settings(self, stage: Stage, config: Config | None = None) -> dict[str, Any]:
        """Collect the settings that determine a stage's outputs, from ``config`` or from the run's settings."""
        config = config or self.config
        section = getattr(config, stage.name)
        known = settings.declared(type(section))
        found = {name: value for name, value in asdict(section).items() if not known[name].machine}
        found["seed"] = config.seed
        if stage.world_model:
            found["world_model"] = config.world_model
        return {**found, **stage.other_settings(config)}

    def _differences(self, stage: Stage, path: Path) -> list[str]:
        """List the settings that differ from those in a stage's marker. A setting missing there had its default."""
        if not path.is_file():
            return []
        return self._changed(stage, _with_defaults(StageRecord.read(path).settings, self._settings(stage, Config())))

    def _changed(self, stage: Stage, then: Mapping[str, Any]) -> list[str]:
        """List the settings of a stage that differ from ``then``."""
        now = self._settings(stage)
        known = settings.declared(type(getattr(self.config, stage.name)))
        locations = {name for name in known if known[name].location} | {"world_model"}
        return [name for name in now if not self._is_same(then.get(name), now[name], name in locations)]

    def _is_same(self, then: Any, now: Any, is_location: bool) -> bool:
        """Check whether a setting is unchanged.

        A location may be spelled differently, or name a round of the run that was moved or copied.
        """
        if then == now or not is_location or not (then and now):
            return bool(then == now)
        old, new, folder = Path(then), Path(now), self.folder.absolute()
        is_round = new.parent.name == "rounds" and new.parent.parent in (folder, *folder.parents)
        return old.resolve() == new.resolve() or (is_round and old.parts[-2:] == new.parts[-2:])

    def check_settings(self, discarded: Collection[Stage] = (), *, fixed: bool = False) -> None:
        """Check that stages with outputs have the present settings.

        Args:
            discarded: Stages that will be discarded; their settings may change.
            fixed: Whether a later round builds on the stages, which can then neither be extended nor discarded.

        Raises:
            ValueError: A stage has other settings.
        """
        for stage in STAGES:
            if stage.leaf or stage in discarded:
                continue
            path, state = self.marker(stage.name), "is complete"
            if path.is_file():
                changed = self._differences(stage, path)
                changed = [name for name in changed if fixed or not self._extends(stage, name)]
            else:
                path, state = self.begun(stage.name), "has partial outputs"
                changed = self._partial_differences(stage, path)
            if changed:
                names = ", ".join(self.names.get(f"{stage.name}.{name}", name) for name in changed)
                rerun = shlex.join(["worldmodels", stage.command, "--out", str(self.folder), "--force"])
                raise ValueError(
                    f"{self.folder}: {stage.command} {state} with other settings ({names}); use another --out"
                    + ("" if fixed else f", or `{rerun}` to discard it and all later stages")
                )

    def check_round(self) -> None:
        """Check that a round of a run has the settings that the run gives it.

        Raises:
            ValueError: A setting differs.
        """
        folder = self.folder.absolute()
        outer = folder.parent.parent
        given = self.stored_config(outer) if folder.parent.name == "rounds" and folder.name.isdigit() else None
        if given is None or int(folder.name) >= given.last_round:
            return
        number = int(folder.name)
        names, config = round_settings(given, number), round_config(given, number, outer)
        for stage in (stage for stage in STAGES if not stage.leaf):
            changed = self._changed(stage, self._settings(stage, config))
            if changed:
                given_as = ", ".join(names.get(f"{stage.name}.{name}", name) for name in changed)
                raise ValueError(
                    f"{self.folder}: expected the settings of round {number} of {outer}, got others for "
                    f"{stage.command} ({given_as}); use `worldmodels run` with another --out"
                )

    def _partial_differences(self, stage: Stage, begun: Path) -> list[str]:
        """List the settings that differ from those of a stage's partial outputs and may not change on resume."""
        if not stage.partial or not any(self.path(stage.folder).glob(stage.partial)):
            return []
        return [name for name in self._differences(stage, begun) if name not in stage.resumable]

    def _extends(self, stage: Stage, name: str) -> bool:
        """Check whether a changed setting only extends a complete stage."""
        return name in stage.extendable and bool(
            self._settings(stage)[name] > StageRecord.read(self.marker(stage.name)).settings.get(name, math.inf)
        )

    def is_done(self, name: str) -> bool:
        """Check whether a stage is complete with the present settings."""
        return self.marker(name).is_file() and not self._differences(get(name), self.marker(name))

    def has_run(self, *chosen: Stage) -> bool:
        """Check whether one of the stages, by default of all, has a marker, complete or not."""
        return any(self.marker(one.name).is_file() or self.begun(one.name).is_file() for one in chosen or STAGES)

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """Read the metrics of a stage, by its name on the command line."""
        path = self.path("metrics.jsonl")
        return [line for line in read_lines(path) if line.get("stage") == stage] if path.is_file() else []


def _with_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Fill missing settings, and missing settings of nested sections, from ``defaults``."""
    filled = {**defaults, **values}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(filled[name], dict):
            filled[name] = {**default, **filled[name]}
    return filled


def read_config(path: Path) -> Config:
    """Read the settings of a ``config.json``."""
    values = read_json(path)
    try:
        config = from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error} (another version of worldmodels may have written it)") from error
    if "task" not in values:
        raise ValueError(f"{path}: expected the settings of a run, got {values!r:.200}")
    return config
