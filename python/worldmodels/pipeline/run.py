"""The run folder: its settings, which stages are done, what was measured, and who may write to it."""

from __future__ import annotations

import fcntl
import importlib
import itertools
import json
import math
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Any

from worldmodels import pretrained
from worldmodels.envs.spec import EnvironmentConfig
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import TOP, Config, EvolveConfig, from_dict, to_dict
from worldmodels.pipeline.preflight import STARTS, C, M, V, check_config
from worldmodels.pipeline.records import misfit
from worldmodels.support.files import atomic_path, parse_line, read_json, read_lines, write_json
from worldmodels.support.suggestions import suggestion
from worldmodels.support.versions import versions
from worldmodels.training.distributed import launched

#: The stages in their order; each is the function ``run(experiment)`` of a module in ``worldmodels.pipeline.stages``.
STAGES = ("collect", "train_vae", "encode", "train_rnn", "check_dream", "evolve", "evaluate", "report")
#: Stages that make V and M, and the folders they write to.
MAKERS = {"collect": "episodes", "train_vae": "vae", "encode": "latents", "train_rnn": "rnn"}
#: What a run takes of a finished world: weights and the dream's starts; other starts and what was measured, if there.
_TAKEN = {"train_vae": ("vae.safetensors",), "train_rnn": ("rnn.safetensors", "initial.safetensors")}
_TAKEN_IF_THERE = {
    "train_vae": ("vae.json", "quality.json"),
    "train_rnn": ("rnn.json", "midway.safetensors", "quality.json"),
}
#: Stages that nothing builds on: they may be repeated with other settings at any time.
LEAVES = ("check_dream", "evaluate", "report")
#: Stages to repeat when a stage is repeated or goes on: what they made is of something that is no more.
DEPENDENTS = {"evolve": ("evaluate", "report"), "check_dream": ("report",), "evaluate": ("report",)}
#: Settings that may grow after a stage is complete: it goes on from where it stopped.
EXTENDABLE = {("evolve", "generations")}
#: Settings of training that say when it is looked at and when it ends.
_WATCHING = ("checkpoint_every", "patience", "keep")
#: Stages that keep what they have made when they are cut off: the files it is in, and the settings that may be others
#: when they go on.
KEEPERS = {
    "collect": ("*.h5", ("episodes",)),
    "train_vae": ("checkpoint.safetensors", ("steps", "lr", "schedule", "precision", *_WATCHING)),
    "encode": ("*.safetensors", ("batch",)),
    "train_rnn": (
        "checkpoint.safetensors",
        ("steps", "lr", "lr_end", "lr_decay", "schedule", "clip", "precision", *_WATCHING),
    ),
    "evolve": ("*.safetensors", ("generations",)),
}
#: Settings that say where another run lies.
PLACES = ("agent", "include", "start", "world")
#: Settings that say how a stage uses the machine, not what comes out.
MACHINE = {
    ("collect", "workers"),
    ("evolve", "threads"),
    ("evolve", "environments"),
    ("train_vae", "micro_batch"),
    ("train_vae", "workers"),
    ("train_vae", "compile"),
    ("train_vae", "tensorboard"),
    ("train_rnn", "micro_steps"),
    ("train_rnn", "tensorboard"),
}
#: Stages that several processes of one torchrun launch may share.
PARALLEL = ("train_vae", "train_rnn")
#: Files that a stage writes, as patterns relative to the run folder; `{policies}` and `{baselines}` are the task's.
OUTPUTS = {
    "collect": ("episodes/[0-9][0-9][0-9][0-9][0-9].h5",),
    "train_vae": ("vae/{checkpoint,best,vae}.safetensors", "vae/{best,vae,quality}.json", "vae/sheets/epoch_*.png"),
    "encode": ("latents/[0-9][0-9][0-9][0-9][0-9].safetensors",),
    "train_rnn": (
        "rnn/{checkpoint,best,rnn,initial,midway}.safetensors",
        "rnn/{best,rnn,quality}.json",
        "rnn/sheets/epoch_*.png",
    ),
    "check_dream": ("check_dream/check_dream.json", "check_dream/{policies}.jsonl"),
    "evolve": ("evolve/{checkpoint,means,coordinates,controller}.safetensors", "evolve/controller.json"),
    "evaluate": (
        "results.json",
        "evaluate/{episodes,before,curve}.jsonl",
        "evaluate/{baselines}.jsonl",
        "evaluate/episode.{json,gif}",
        "evaluate/frames.png",
    ),
    "report": (
        "report/index.html",
        "report/dream.gif",
        "report/{dream_strip,losses,quality,evolution,reality_check,scores,episode}.png",
    ),
}
#: Files of earlier stages that a stage reads, as patterns relative to the run folder.
INPUTS = {
    "collect": (),
    "train_vae": ("episodes/*.h5",),
    "encode": ("episodes/*.h5", V),
    "train_rnn": ("latents/*.safetensors",),
    "check_dream": (M, STARTS),
    "evolve": (M, STARTS),
    "evaluate": (V, M, STARTS, C),
    "report": (V, M, STARTS, C, "results.json", "check_dream/check_dream.json"),
}
_TEMPORARY = re.compile(r".+\.\d+\.tmp")  # of atomic_path, in whichever process


class StageFailedError(RuntimeError):
    """A stage is complete, but what it made does not serve its purpose."""


class Experiment:
    """A run folder, locked for this process (under torchrun: for the processes of this launch; rank 0 writes).

    Layout: ``config.json``, ``metrics.jsonl``, ``results.json``, ``stages/<stage>.json`` (a stage that is complete,
    with its settings, versions and figures; ``<stage>.begun.json`` while it is not), ``episodes/``, ``vae/``,
    ``latents/``, ``rnn/``, ``check_dream/``, ``evolve/``, ``evaluate/``, ``report/``.

    Args:
        folder: the run folder; made if need be.
        config: its settings; None to go on with those in the folder.
        again: a stage to discard, with all stages after it.
        force: Whether stages may build on one that failed its purpose.

    Raises:
        FileNotFoundError: ``config`` is None and the folder has none.
        FileExistsError: The folder is no run, and holds files under a run's names.
        BlockingIOError: another process works in the folder.
        ValueError: a stage that is done, or that keeps its parts and was begun, has other settings; or the settings
            cannot work. Nothing has been created, deleted or changed.
    """

    def __init__(
        self, folder: str | Path, config: Config | None = None, *, again: str | None = None, force: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.force = force
        self.ranks = launched()
        if again is not None:
            self._check_shared(again)
        self.ranks.join()
        if not self.ranks.first:
            self.ranks.wait()  # until rank 0 has the lock and has written the settings
            self.config = config if config is not None else _read_config(self.folder / "config.json")
            return
        stored = self.folder / "config.json"
        if config is None and not stored.is_file():
            raise FileNotFoundError(f"{self.folder}: no config.json there; start a run with `worldmodels run`")
        discarded = STAGES[STAGES.index(again) :] if again is not None else ()
        if not stored.is_file():
            assert config is not None
            check_config(config, STAGES, self.folder)
            self._check_unclaimed()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / ".lock"
        fresh = not lock.exists()
        self._lock = lock.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise BlockingIOError(f"{self.folder}: another worldmodels process works in this folder") from error
        try:
            self.config = config if config is not None else _read_config(stored)
            self._check_settings(discarded)
            todo = [stage for stage in STAGES if stage in discarded or not self.is_done(stage)]
            check_config(self.config, todo, self.folder)
            self._check_discardable(discarded)
        except BaseException:
            if fresh:
                lock.unlink(missing_ok=True)
            self._lock.close()
            raise
        try:
            self._sweep()
            self._discard(discarded)
            if config is not None:
                write_json(stored, to_dict(config))
        except BaseException:
            self._lock.close()
            raise
        self.ranks.wait()

    @staticmethod
    def agent(name: str) -> tuple[Path, Config]:
        """Find an agent: its folder and its settings.

        Args:
            name: Name of a pretrained agent, or a run folder.

        Raises:
            FileNotFoundError: It is neither, or the run has not evolved a controller yet.
            ValueError: A file of the pretrained agent, or the run's ``config.json``, is damaged.
        """
        names = pretrained.names()
        if name in names:
            return pretrained.folder(name), tasks.preset(name, tasks.get(name).preset)
        stored = Experiment.stored_config(name)
        if stored is None:
            raise FileNotFoundError(
                f"{name}: expected a run folder or one of {', '.join(names)}{suggestion(name, names)}"
            )
        if not (Path(name) / "evolve" / "controller.safetensors").is_file():
            raise FileNotFoundError(
                f"{name}: expected a run with an agent, got one without evolve/controller.safetensors; "
                f"`worldmodels run {stored.experiment} --out {name}` resumes it"
            )
        return Path(name), stored

    @staticmethod
    def stored_config(folder: str | Path) -> Config | None:
        """The settings in a folder, or None."""
        path = Path(folder) / "config.json"
        return _read_config(path) if path.is_file() else None

    def __enter__(self) -> Experiment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ranks.first:
            self._lock.close()
        self.ranks.leave()

    @property
    def task(self) -> tasks.Task:
        """What is played."""
        return tasks.get(self.config.experiment)

    def path(self, *parts: str) -> Path:
        """A path inside the folder."""
        return self.folder.joinpath(*parts)

    def marker(self, stage: str) -> Path:
        """The file that says that a stage is complete."""
        return self.path("stages", f"{stage}.json")

    def _begun(self, stage: str) -> Path:
        """The file that says with which settings a stage was begun that is not complete."""
        return self.path("stages", f"{stage}.begun.json")

    def summary(self, stage: str) -> dict[str, Any]:
        """What a complete stage reported; empty if it is not complete."""
        return dict(_marked(self.marker(stage))["summary"]) if self.marker(stage).is_file() else {}

    def _settings(self, stage: str) -> dict[str, Any]:
        fields_now = asdict(getattr(self.config, stage))
        settings = {name: value for name, value in fields_now.items() if (stage, name) not in MACHINE}
        settings["seed"] = self.config.seed
        if self.config.world and stage in MAKERS:
            settings["world"] = self.config.world
        if stage in ("collect", "check_dream", "evaluate"):
            settings["environment"] = asdict(self.config.environment)
        if stage == "collect":  # episodes serve whoever played them
            settings["environment"].pop("backend")
        if stage == "check_dream":
            evolve = self.config.evolve
            settings |= {"temperature": evolve.temperature, "ends": evolve.ends, "max_steps": evolve.max_steps}
        return settings

    def _differences(self, stage: str, path: Path) -> list[str]:
        """Settings in which a stage differed from the config now, as its marker or its beginning says."""
        if not path.is_file():
            return []
        then, now = _marked(path)["settings"], self._settings(stage)
        # a setting that is younger than the run had its default; the longest dream was whatever it is
        before = {
            **asdict(type(getattr(self.config, stage))()),
            "ends": EvolveConfig.ends,
            "max_steps": self.config.evolve.max_steps,
        }
        if "environment" in then:
            young = {name: asdict(EnvironmentConfig())[name] for name in now["environment"]}
            then["environment"] = {**young, **then["environment"]}
        return [name for name in now if not _same(name, then.get(name, before.get(name)), now[name])]

    def _check_shared(self, stage: str) -> None:
        """Refuses several processes for a stage of one."""
        if self.ranks.size > 1 and stage not in PARALLEL:
            commands = " and ".join(command(name) for name in PARALLEL)
            raise ValueError(f"torchrun: expected {commands}, which share their batches, got {command(stage)}")

    def _check_unclaimed(self) -> None:
        """Refuses to begin a run where somebody's files have the names of a run's."""
        if any(self.marker(stage).is_file() for stage in STAGES):  # a study gave it what another run made
            return
        names = ["stages", "metrics.jsonl", *(MAKERS.get(stage, stage) for stage in STAGES), "results.json"]
        paths = [(name, self.path(name)) for name in names]
        taken = [name for name, path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))]
        if taken:
            raise FileExistsError(
                f"{self.folder}: expected a run folder, or one without files of a run's names, got one without "
                f"config.json that has {', '.join(taken)}; use another --out"
            )

    def _check_settings(self, discarded: Sequence[str]) -> None:
        """Refuses other settings for a stage that is complete or begun, unless it is going to be discarded."""
        for stage in STAGES:
            if stage in LEAVES or stage in discarded:
                continue
            path, what = self.marker(stage), "done"
            if path.is_file():
                bad = [name for name in self._differences(stage, path) if not self._extends(stage, name)]
            else:
                path, what = self._begun(stage), "begun"
                bad = self._mixed(stage, path)
            if bad:
                raise ValueError(
                    f"{self.folder}: {command(stage)} was {what} there with other settings ({', '.join(bad)}); "
                    f"use another --out, or `worldmodels {command(stage)} --again` to discard it and all after it"
                )

    def _mixed(self, stage: str, begun: Path) -> list[str]:
        """Settings in which what a stage that was cut off has kept differs from what it would make now."""
        if stage not in KEEPERS or not any(self.path(MAKERS.get(stage, stage)).glob(KEEPERS[stage][0])):
            return []
        return [name for name in self._differences(stage, begun) if name not in KEEPERS[stage][1]]

    def _extends(self, stage: str, name: str) -> bool:
        """Whether a changed setting only makes a complete stage go on."""
        return (stage, name) in EXTENDABLE and bool(
            self._settings(stage)[name] > _marked(self.marker(stage))["settings"].get(name, math.inf)
        )

    def is_done(self, stage: str) -> bool:
        """Whether a stage is complete with the settings of now."""
        return self.marker(stage).is_file() and not self._differences(stage, self.marker(stage))

    def _sweep(self) -> None:
        """Removes the temporary files of processes that were killed, and how stages began that are complete."""
        for stage in STAGES:
            if self.marker(stage).is_file():
                self._begun(stage).unlink(missing_ok=True)
        ours = ["config.json", "metrics.jsonl", "stages/*.json", *itertools.chain(*map(self._outputs, STAGES))]
        for pattern in ours:
            for stray in self.folder.glob(f"{pattern}.*.tmp"):
                if _TEMPORARY.fullmatch(stray.name):
                    stray.unlink(missing_ok=True)

    def _ran(self, stage: str) -> bool:
        """Whether a marker says that a stage has run here, to its end or not."""
        return self.marker(stage).is_file() or self._begun(stage).is_file()

    def _check_discardable(self, stages: Sequence[str]) -> None:
        """Refuses to discard what cannot be removed whole, before anything is.

        Raises:
            IsADirectoryError: A folder has the name of a file that would be removed.
            PermissionError: A folder may not be written to.
        """
        found = [path for stage in stages if self._ran(stage) for path in self._written(stage)]
        if any(map(self._ran, stages)):
            found += [self.path("metrics.jsonl"), self.path("stages", "*.json")]
        for path in found:
            if path.is_dir():
                raise IsADirectoryError(f"{path}: expected a file, got a folder; nothing has been discarded")
            if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
                raise PermissionError(f"{path.parent}: expected a folder that can be written to; nothing was discarded")

    def _written(self, stage: str) -> Iterator[Path]:
        """The files here that a stage writes."""
        return itertools.chain(*map(self.folder.glob, self._outputs(stage)))

    def _discard(self, stages: Sequence[str]) -> None:
        """Removes what these stages have written, where a marker says that they have run here; nothing else.

        A folder may be a symbolic link; files in it that no stage writes stay, and are named.
        """
        for stage in stages:
            if not self._ran(stage):
                continue
            if self.marker(stage).is_file():  # cut off in the middle, the stage is one that was begun
                self.marker(stage).replace(self._begun(stage))
            for path in list(self._written(stage)):
                path.unlink()
            self.rewind_metrics(command(stage), 0)
            self._begun(stage).unlink()
            folder = self.path(MAKERS.get(stage, stage))
            sheets = folder / "sheets"
            if sheets.is_dir() and not sheets.is_symlink() and not any(sheets.iterdir()):
                sheets.rmdir()
            left = sorted(path.relative_to(self.folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
            if left:
                more = f" and {len(left) - 3} more" if len(left) > 3 else ""
                print(f"{command(stage):>12}  kept {', '.join(left[:3])}{more}: not written by it", file=sys.stderr)
            elif folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()

    def _outputs(self, stage: str) -> Iterator[str]:
        """Patterns of the files that a stage writes, relative to the run folder."""
        names = {
            "policies": [escape(name.replace(" ", "_")) for name in self.task.policies],
            "baselines": [escape(name) for name in self.task.beside],
        }
        for pattern in OUTPUTS[stage]:
            before, brace, rest = pattern.partition("{")
            choice, _, after = rest.partition("}")
            choices = names.get(choice) or choice.split(",")
            yield from (f"{before}{name}{after}" for name in choices) if brace else (pattern,)

    def run(self, stage: str) -> None:
        """Runs a stage unless it is complete.

        Raises:
            FileNotFoundError: a stage that it builds on is not complete.
            StageFailedError: it failed its purpose, or one that it builds on did; not with ``force``.
            ValueError: several processes were launched for a stage of one.
        """
        self._check_shared(stage)
        done = self.ranks.told(self.is_done(stage))
        if done:
            if self.ranks.first:
                print(f"{command(stage):>12}  done before", file=sys.stderr)
            self._check_purpose(stage)
            return
        require_earlier(self.folder, stage)
        for earlier in STAGES[: STAGES.index(stage)]:
            self._check_purpose(earlier)
        for dependent in DEPENDENTS.get(stage, ()) if self.ranks.first else ():
            self.marker(dependent).unlink(missing_ok=True)
        began, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.monotonic()
        taken = self.config.world and stage in MAKERS
        if taken and not (stage == "train_rnn" and self.config.train_rnn.steps == 0):
            summary = self._take(stage)
        else:
            if self.ranks.first and not self.marker(stage).is_file():
                settings = self._settings(stage)
                begun = {"stage": stage, "settings": settings, "summary": {}, "began": began, "versions": versions()}
                write_json(self._begun(stage), begun)
            summary = importlib.import_module(f"worldmodels.pipeline.stages.{stage}").run(self)
        if self.ranks.first:
            write_json(
                self.marker(stage),
                {
                    "stage": stage,
                    "settings": self._settings(stage),
                    "summary": summary,
                    "began": began,
                    "seconds": round(time.monotonic() - clock, 2),
                    "peak_memory_mb": _peak_memory_mb(),
                    "versions": versions(),
                },
            )
            self._begun(stage).unlink(missing_ok=True)
        self.ranks.wait()
        self._check_purpose(stage)

    def _check_purpose(self, stage: str) -> None:
        """Stops at a complete stage that failed its purpose, unless that is accepted, now or before."""
        summary = self.summary(stage)
        failure = summary.get("failure")
        if failure is None or summary.get("accepted"):
            return
        if not self.force:
            raise StageFailedError(f"{command(stage)}: {failure} (--force continues with it)")
        if self.ranks.first:
            print(f"WARNING: {command(stage)}: {failure}", file=sys.stderr)
            marked = _marked(self.marker(stage))
            write_json(self.marker(stage), {**marked, "summary": {**summary, "accepted": True}})
        self.ranks.wait()

    def _take(self, stage: str) -> dict[str, Any]:
        """In place of a stage that makes V or M: copies what it made in the run's ``world``."""
        source = pretrained.resolve(self.config.world)
        folder = MAKERS[stage]
        needed = _TAKEN.get(stage, ())
        for name in (*needed, *_TAKEN_IF_THERE.get(stage, ())):
            path = source / folder / name
            if not path.is_file() and name in needed:
                raise FileNotFoundError(f"world: expected {folder}/{name} in {source}")
            if path.is_file():
                self.path(folder).mkdir(exist_ok=True)
                with atomic_path(self.path(folder, name)) as temporary:
                    shutil.copyfile(path, temporary)
        print(f"{command(stage):>12}  taken from the world {self.config.world}", file=sys.stderr)
        return {"world": self.config.world}

    def log(self, stage: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl."""
        if not self.ranks.first:
            return
        with self.path("metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, **values}) + "\n")

    def metrics(self, stage: str, shape: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """The lines of one stage; those of a shape (:mod:`worldmodels.pipeline.records`) if one is given."""
        path = self.path("metrics.jsonl")
        lines = [value for value in read_lines(path) if value.get("stage") == stage] if path.is_file() else []
        return [value for value in lines if misfit(value, shape or {}) is None]

    def rewind_metrics(self, stage: str, last: int, key: str = "step") -> None:
        """Drops a stage's lines after ``last``: they were logged after the checkpoint that is resumed from."""
        path = self.path("metrics.jsonl")
        if not path.is_file() or not self.ranks.first:
            return
        kept = []
        for line in path.read_bytes().splitlines():
            value = parse_line(line)
            number = (value or {}).get(key, last + 1)
            if value and not (value.get("stage") == stage and not (isinstance(number, int | float) and number <= last)):
                kept.append(line + b"\n")
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"".join(kept))


def require_earlier(folder: Path, stage: str) -> None:
    """Refuses a stage whose earlier stages are not complete in a run folder.

    Raises:
        FileNotFoundError: One of them is not complete, or the folder is no run.
    """
    for earlier in STAGES[: STAGES.index(stage)]:
        if (earlier not in LEAVES or stage == "report") and not (folder / "stages" / f"{earlier}.json").is_file():
            raise FileNotFoundError(
                f"{folder}: `worldmodels {command(stage)}` needs what `worldmodels {command(earlier)}` makes"
            )


def check_inputs(folder: Path, stage: str) -> None:
    """Refuses a stage whose inputs are missing or damaged, before what it made from them is discarded.

    Raises:
        FileNotFoundError: One of them is missing.
        ValueError: One of the weights, or a JSON file, is damaged.
    """
    for pattern in INPUTS[stage]:
        path = next(folder.glob(pattern), None)
        if path is None:
            raise FileNotFoundError(f"{folder}: `worldmodels {command(stage)}` needs {pattern}, which is missing")
        if path.suffix == ".json":
            read_json(path)
        elif "*" not in pattern:
            from worldmodels.models.weights import load_tensors

            load_tensors(path)


def _marked(path: Path) -> dict[str, Any]:
    """What the marker of a stage says."""
    marked = read_json(path)
    if not (isinstance(marked, dict) and all(isinstance(marked.get(key), dict) for key in ("settings", "summary"))):
        raise ValueError(f"{path}: expected a stage's settings and summary, got {marked!r:.200}")
    return marked


def _same(name: str, then: Any, now: Any) -> bool:
    """Whether a setting is what it was; a place may be said in another way, or that of a run that has moved."""
    if then == now or name not in PLACES or not (then and now):
        return bool(then == now)
    was = Path(then)
    return was.resolve() == Path(now).resolve() or (was.is_absolute() and not was.exists())


def _read_config(path: Path) -> Config:
    values = read_json(path)
    try:
        config = from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error} (another version of worldmodels may have written it)") from error
    if "experiment" not in values:
        raise ValueError(f"{path}: expected the settings of a run, got {values!r:.200}")
    return config


def command(stage: str) -> str:
    """A stage's name on the command line."""
    return stage.replace("_", "-")


def _peak_memory_mb() -> dict[str, int]:
    """Largest resident size so far of this process and of any child that has ended."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        who: resource.getrusage(which).ru_maxrss // unit
        for who, which in (("process", resource.RUSAGE_SELF), ("largest_child", resource.RUSAGE_CHILDREN))
    }


def section_names() -> list[str]:
    """Names of the config's sections, the environment first."""
    return [item.name for item in fields(Config) if item.name not in TOP]
