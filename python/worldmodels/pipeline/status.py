"""Status of run folders, read from their files alone: nothing is locked or written, and no model is loaded."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worldmodels import pretrained
from worldmodels.analysis.stats import format_interval, format_mean, table
from worldmodels.data.records import Results, StageRecord
from worldmodels.pipeline import tasks
from worldmodels.pipeline.folder import RunFolder, making, read_config
from worldmodels.pipeline.stage import V
from worldmodels.pipeline.stages import get, names_of
from worldmodels.support.files import read_json

State = Literal["complete", "failed", "changed", "damaged", "running", "interrupted", "to do"]

#: What counts the progress of a stage in ``metrics.jsonl``, and the setting with its total.
_PROGRESS = {
    "train_vae": ("step", "steps"),
    "train_rnn": ("step", "steps"),
    "evolve": ("generation", "generations"),
}
_LOCKS = Path("/proc/locks")


@dataclass(frozen=True)
class StageStatus:
    """Status of a stage.

    Attributes:
        name: Name of the stage on the command line.
        state: ``"complete"``; ``"failed"``: complete, with a model that failed its quality check; ``"changed"``:
            complete with other settings than the run's; ``"damaged"``: its marker is unreadable; ``"running"``;
            ``"interrupted"``; ``"to do"``.
        seconds: Duration of a complete stage.
        progress: Units done and their total, such as ``"250/4,000 steps"``; empty if it is unknown.
    """

    name: str
    state: State
    seconds: float | None = None
    progress: str = ""


def stage_statuses(run: RunFolder) -> list[StageStatus]:
    """Read the status of every stage of a run, or of a round of one."""
    locked = is_locked(run.folder)
    return [_stage_status(run, name, locked) for name in names_of(run.config)]


def _stage_status(run: RunFolder, name: str, locked: bool) -> StageStatus:
    stage = get(name)
    if run.marker(name).is_file():
        try:
            record, same = StageRecord.read(run.marker(name)), run.is_done(name)
        except (ValueError, OSError):
            return StageStatus(stage.command, "damaged")
        failed = "failure" in record.summary and not record.summary.get("accepted")
        state: State = "failed" if failed else "complete" if same else "changed"
        return StageStatus(stage.command, state, record.seconds, _progress(run, name) if not same else "")
    if not run.has_run(stage):
        return StageStatus(stage.command, "to do")
    return StageStatus(stage.command, "running" if locked else "interrupted", progress=_progress(run, name))


def _progress(run: RunFolder, name: str) -> str:
    """Read the progress of a stage from its last line of metrics; for collect, count the files of episodes."""
    if name == "collect":
        files = len(list(run.path("episodes").glob("*.h5")))
        return f"{files} file{'' if files == 1 else 's'} of episodes"
    if name not in _PROGRESS:
        return ""
    key, total = _PROGRESS[name]
    try:
        lines = run.metrics(get(name).command)
    except OSError:
        return ""
    done = [line[key] for line in lines if isinstance(line.get(key), int)]
    return f"{done[-1]:,}/{getattr(getattr(run.config, name), total):,} {total}" if done else ""


def is_locked(folder: Path) -> bool:
    """Check whether a process has locked a run folder, from the kernel's list of locks; False where there is none."""
    try:
        found = (folder / ".lock").stat()
        text = _LOCKS.read_text(encoding="ascii")
    except (OSError, ValueError):
        return False
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any(wanted in line.split() for line in text.splitlines())


def read_score(folder: Path) -> str:
    """Format the agent's score of ``results.json``; empty without one, ``"damaged"`` if it is unreadable."""
    path = folder / "results.json"
    try:
        agent = Results.read(path).agent
    except FileNotFoundError:
        return ""
    except (ValueError, OSError):
        return "damaged"
    interval = format_interval(agent)
    return format_mean(agent) + (f" ({interval})" if interval else "") + f", n {len(agent.scores)}"


def format_status(run: RunFolder) -> str:
    """Format the status of a run: stages, rounds, score, and the command that resumes it."""
    parts = [(part, stage_statuses(part)) for part in run.rounds]
    lines = [f"{run.folder}: task {run.given.task}, preset {run.given.preset}, seed {run.given.seed}"]
    if run.given.world_model:
        lines[0] += f", world model {run.given.world_model}"
    for number, (part, statuses) in enumerate(parts):
        if len(parts) > 1:
            lines += ["", f"round {number} of {len(parts) - 1}: {part.folder}"]
        lines.append(table(["stage", "state", "seconds", "progress"], [_row(status) for status in statuses]))
        score = read_score(part.folder)
        lines += [f"score: {score} ({_unit(run)})"] if score else []
    return "\n".join([*lines, "", _advice(run, [status for _, statuses in parts for status in statuses])])


def _row(status: StageStatus) -> list[str]:
    return [status.name, status.state, "" if status.seconds is None else f"{status.seconds:,.1f}", status.progress]


def _unit(run: RunFolder) -> str:
    try:
        return f"{run.task.score}, 95 % interval in parentheses"
    except ValueError:  # the task's package is not installed
        return "95 % interval in parentheses"


def _advice(run: RunFolder, statuses: list[StageStatus]) -> str:
    """Return the command that resumes the run."""
    states = {status.state for status in statuses}
    recorded = tasks.is_recordings(run.given.task)
    following = next((status.name for status in statuses if status.state not in ("complete", "failed")), "")
    resume = making(run.given, run.folder, following)
    if states == {"complete"} and not recorded:
        return f"complete; the report is {run.path('report', 'index.html')}"
    if is_locked(run.folder):
        return "another process is running it"
    if "damaged" in states:
        return "the marker of a stage is damaged; `worldmodels STAGE --force` discards and reruns a stage"
    if recorded and not following:
        failed = ", with a model that failed its quality check" if "failed" in states else ""
        return f"complete{failed}; `worldmodels web {shlex.quote(str(run.folder))}` plays its dream"
    if "failed" in states:
        return f"a model failed its quality check; `{resume} --force` continues anyway"
    if recorded:
        return f"recordings without an environment; `{resume}` runs the next stage"
    if all(status.state == "to do" for status in statuses) and run.path(V).is_file():
        return f"models without the stages that made them; use them with --world-model {shlex.quote(str(run.folder))}"
    return f"`{resume}` resumes it"


def format_list(folder: Path) -> str:
    """Format the pretrained world models, the presets of all tasks and the runs of a folder as tables."""
    worlds = table(["world model", "score", "95 % interval", "n"], [_world_row(name) for name in pretrained.names()])
    presets = table(
        ["task", "preset", "duration", "default"], [row for task in tasks.importable() for row in _preset_rows(task)]
    )
    own = [folder] if (folder / "config.json").is_file() else []
    runs = [_run_row(found) for found in [*own, *sorted(path.parent for path in folder.glob("*/config.json"))]]
    listed = table(["run", "task", "preset", "stages", "score"], runs) if runs else f"no runs in {folder}"
    notes = "Durations are those of `worldmodels run TASK --preset PRESET`; empty if not measured."
    return "\n\n".join([worlds, f"{presets}\n{notes}", listed])


def _world_row(name: str) -> list[str]:
    try:
        game: Mapping[str, Any] = read_json(pretrained.path(name) / "scores.json")["game"]
        low, high = game["ci95"]
        return [name, f"{game['mean']:.0f} +- {game['std']:.0f}", f"{low:.0f} to {high:.0f}", f"{game['n']:,}"]
    except (ValueError, OSError, KeyError, TypeError):
        return [name, "", "", ""]


def _preset_rows(task: tasks.Task) -> list[list[str]]:
    return [
        [task.name, preset, task.durations.get(preset, ""), "yes" if preset == task.default_preset else ""]
        for preset in task.presets
    ]


def _run_row(folder: Path) -> list[str]:
    try:
        run = RunFolder(folder, read_config(folder / "config.json"))
        statuses = [status for part in run.rounds for status in stage_statuses(part)]
    except (ValueError, OSError):
        return [str(folder), "damaged", "", "", ""]
    done = sum(status.state == "complete" for status in statuses)
    now = next((status for status in statuses if status.state in ("running", "interrupted", "failed", "damaged")), None)
    stages = f"{done}/{len(statuses)}" + (f", {now.name} {now.state}" if now else "")
    return [str(folder), run.given.task, run.given.preset, stages, read_score(folder)]
