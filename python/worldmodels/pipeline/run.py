"""Run: a run folder with the lock of the process that writes to it, which runs its stages."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import resource
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from worldmodels import pretrained
from worldmodels.data.records import StageRecord
from worldmodels.pipeline import stages, tasks
from worldmodels.pipeline.config import Config, to_dict
from worldmodels.pipeline.folder import RunFolder, making, read_config
from worldmodels.pipeline.inputs import require_earlier
from worldmodels.pipeline.outputs import check_discardable, discard, filter_metrics, invalidate, remove_temporary_files
from worldmodels.pipeline.preflight import check_config, check_rounds
from worldmodels.pipeline.profiles import PROFILE
from worldmodels.pipeline.sinks import Sink, check_sinks, numbers, open_sinks
from worldmodels.pipeline.stage import C, M, Stage, StageFailedError, V
from worldmodels.pipeline.stages import STAGES
from worldmodels.support.files import atomic_path, write_json
from worldmodels.support.processes import check_sigint
from worldmodels.support.profile import take_profile
from worldmodels.support.progress import label
from worldmodels.support.suggestions import suggestion
from worldmodels.support.versions import versions
from worldmodels.training.distributed import ranks_from_env


class Run(RunFolder):
    """Run folder, locked by this process, or by the processes of a torchrun launch, of which rank 0 writes.

    Layout: ``config.json``, ``metrics.jsonl``, ``results.json``, ``stages/<stage>.json`` (marker of a complete stage:
    settings, versions and summary), ``stages/<stage>.begun.json`` (marker of an incomplete stage), ``episodes/``,
    ``vae/``, ``latents/``, ``rnn/``, ``check_dream/``, ``evolve/``, ``evaluate/``, ``report/``. With rounds of own
    play, all but ``config.json`` are of the last round, and ``rounds/<number>/`` are the run folders of the others.

    Args:
        folder: Run folder; created if necessary.
        config: Settings; None for those in the folder.
        rerun: Name of a stage to discard, with the stages that build on it.
        force: Whether stages may build on a model that failed its quality check.
        log_to: Names of the sinks that get the metrics too: ``"tensorboard"``, ``"wandb"``. They are opened when the
            first stage runs.

    Raises:
        FileNotFoundError: ``config`` is None and the folder has none.
        FileExistsError: The folder is not a run folder, but has files with names of a run folder. Or it has models, but
            no stage made them: they were imported or downloaded.
        BlockingIOError: Another process has locked the folder.
        ValueError: A stage that is complete or has partial outputs has other settings, or a setting is invalid. Nothing
            has been created, deleted or changed.
        ModuleNotFoundError: The package of a stage or of a sink is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Config | None = None,
        *,
        rerun: str | None = None,
        force: bool = False,
        log_to: Sequence[str] = (),
    ) -> None:
        check_sinks(log_to)
        self.folder = Path(folder)
        self.force = force
        self.log_to = tuple(log_to)
        self._sinks: list[Sink] = []
        self._record: StageRecord | None = None  # of the stage that runs, until it is complete
        self._seconds, self._clock = 0.0, time.monotonic()
        self.ranks = ranks_from_env()
        stored = self.folder / "config.json"
        if rerun is not None:
            self._check_distributed(stages.get(rerun))
        self.ranks.init()
        if not self.ranks.is_main:
            self.ranks.barrier()  # rank 0 holds the lock and has written the settings
            self._use(config if config is not None else read_config(stored))
            return
        if config is None and not stored.is_file():
            raise FileNotFoundError(
                f"{self.folder}: expected a run folder with config.json, got none; start a run with `worldmodels run`"
            )
        discarded = stages.discarded_with(stages.get(rerun)) if rerun is not None else ()
        if not stored.is_file():
            assert config is not None
            self._use(config)
            self._preflight(discarded)
            self._check_unclaimed()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / ".lock"
        fresh = not lock.exists()
        self._lock = lock.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise _lock_error(self.folder, error) from error
        try:
            self._use(config if config is not None else read_config(stored))
            self._check_imported()
            self.check_round()
            self._check_rounds(discarded)
            self._preflight(discarded, [rerun] if rerun is not None and self.has_run(discarded[0]) else [])
            check_discardable(self, discarded)
            if rerun == "collect" and self.config.collect.source and self.has_run(discarded[0]):
                from worldmodels.pipeline.recordings import check_recordings

                check_recordings(self.config)
        except BaseException:
            if fresh:
                lock.unlink(missing_ok=True)
            self._lock.close()
            raise
        try:
            remove_temporary_files(self)
            discard(self, discarded)
            if config is not None:
                write_json(stored, to_dict(config))
        except BaseException:
            self._lock.close()
            raise
        self.ranks.barrier()

    @classmethod
    def check(cls, folder: str | Path, config: Config) -> RunFolder:
        """Check that stages could run in a folder, as the constructor does, without a lock and without writing.

        Raises:
            FileExistsError: The folder is not a run folder, but has files with names of a run folder. Or it has models,
                but no stage made them.
            ValueError: A stage that is complete or has partial outputs has other settings, or a setting is invalid.
        """
        run = cls.__new__(cls)
        RunFolder.__init__(run, folder, config)
        if not run.path("config.json").is_file():
            run._check_unclaimed()
        run._check_imported()
        run._check_rounds(())
        run._preflight((), stages.NAMES)
        return RunFolder(folder, config)

    @staticmethod
    def agent(name: str) -> tuple[Path, Config]:
        """Find the folder and the settings of an agent.

        Args:
            name: Name of a pretrained agent, or a run folder.

        Raises:
            FileNotFoundError: There is no such agent or run folder, or the run has no controller yet.
            ValueError: A file of the pretrained agent, or the run's ``config.json``, is damaged.
        """
        folder, config = Run.find(name)
        if not (folder / C).is_file():
            raise FileNotFoundError(
                f"{name}: expected a run with an agent, got one without {C}; "
                f"`{making(config, name, 'evolve')}` makes it"
            )
        return folder, config

    @staticmethod
    def find(name: str) -> tuple[Path, Config]:
        """Find the folder and the settings of a pretrained agent or of a run, which may have no controller yet.

        Args:
            name: Name of a pretrained agent, or a run folder.

        Raises:
            FileNotFoundError: There is no such agent or run folder.
            ValueError: A file of the pretrained agent, or the run's ``config.json``, is damaged.
        """
        names = pretrained.names()
        if pretrained.is_name(name):
            return pretrained.folder(name), tasks.preset(name, tasks.get(name).preset)
        stored = Run.stored_config(name)
        if stored is None:
            raise FileNotFoundError(
                f"{name}: expected a run folder or one of {', '.join(names)}{suggestion(name, names)}"
            )
        return Path(name), stored

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for sink in self._sinks:
                sink.close()
        finally:
            if self.ranks.is_main:
                self._lock.close()
            self.ranks.shutdown()

    def _check_rounds(self, discarded: Sequence[Stage]) -> None:
        """Check that the outputs of all rounds have the present settings, the number of rounds among them."""
        stored = self.stored_config(self.folder) or self.given
        then, now = stored.last_round, self.given.last_round
        if then != now and (self.has_run() or self.path("rounds", str(now)).exists()):
            refines, name = stored.refine.generations != self.given.refine.generations, "rounds.rounds"
            then, now = stored.rounds.rounds, self.given.rounds.rounds
            if refines:
                name, then, now = "refine.generations", stored.refine.generations, self.given.refine.generations
            raise ValueError(
                f"{self.folder}: stages have run with other settings ({name} {then}, got {now}); use another --out"
            )
        for part, following in itertools.zip_longest(self.rounds, self.rounds[1:]):
            if following is None:
                self.check_settings(discarded)
            else:
                part.check_settings(fixed=following.has_run())

    def _preflight(self, discarded: Sequence[Stage], tried: Collection[str] = ()) -> None:
        """Check the settings of the incomplete stages of all rounds, and the environments of the stages ``tried``."""
        check_rounds(self.given)
        sources_exist = True
        for part in self.rounds:
            todo = [
                stage.name for stage in STAGES if (part is self and stage in discarded) or not part.is_done(stage.name)
            ]
            config = part.config if sources_exist else replace(part.config, world_model=self.given.world_model)
            try:
                check_config(config, todo, part.folder, sources_exist=sources_exist, tried=tried)
            except ValueError as error:
                name, colon, rest = str(error).partition(":")
                raise ValueError(f"{part.names.get(name, name)}{colon}{rest}") from error
            sources_exist = part.path(C).is_file()

    def _check_distributed(self, stage: Stage) -> None:
        """Check that a stage supports the number of processes of the launch."""
        if self.ranks.size > 1 and not stage.distributed:
            commands = " and ".join(other.command for other in STAGES if other.distributed)
            raise ValueError(f"torchrun: expected {commands}, which share their batches, got {stage.command}")

    def _check_unclaimed(self) -> None:
        """Check that a new run would not overwrite files of others."""
        if any(self.marker(name).is_file() for name in stages.NAMES):  # stages linked by a study
            return
        names = ["stages", "metrics.jsonl", *(stage.folder for stage in STAGES), "results.json"]
        paths = [(name, self.path(name)) for name in names]
        taken = [name for name, path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))]
        if taken:
            raise FileExistsError(
                f"{self.folder}: expected a run folder, or a folder without files named like those of a run, got one "
                f"without config.json that has {', '.join(taken)}; use another --out"
            )

    def _check_imported(self) -> None:
        """Check that no stage would train over imported or downloaded models, which belong to no stage."""
        found = [name for name in (V, M, C) if self.path(name).is_file()]
        if found and not any(part.has_run() for part in self.rounds):
            raise FileExistsError(
                f"{self.folder}: expected a run folder whose models its stages made, got one without stages that has "
                f"{', '.join(found)}; use another --out, with --world-model {self.folder}"
            )

    @property
    def seconds(self) -> float:
        """Seconds that the stage has taken so far, in all its sessions."""
        return self._seconds + time.monotonic() - self._clock

    def run_stage(self, name: str) -> None:
        """Run a stage unless it is complete.

        Raises:
            FileNotFoundError: A required stage is not complete.
            StageFailedError: The stage or an earlier one failed its quality check, and ``force`` is False.
            ValueError: The launch has several processes, and the stage does not support them. Or the run is of
                recordings, and the stage needs an environment or rewards.
            KeyboardInterrupt: Ctrl-C was pressed, and its KeyboardInterrupt was dropped.
        """
        check_sigint()
        stage = stages.get(name)
        self._check_distributed(stage)
        done = self.ranks.broadcast(self.is_done(name))
        if done:
            if self.ranks.is_main:
                print(f"{label(stage.command)}  already complete", file=sys.stderr)
            self._check_gate(stage)
            return
        require_earlier(self, name)
        for earlier in stages.requirements(stage):
            if earlier.is_taken(self.config) and not self.ranks.broadcast(self.is_done(earlier.name)):
                self.run_stage(earlier.name)
        for earlier in stages.earlier(stage):
            self._check_gate(earlier)
        began = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._seconds, self._clock = 0.0, time.monotonic()
        take_profile()
        if self.ranks.is_main and not self._sinks:
            self._sinks = open_sinks(self.log_to, self.folder, to_dict(self.config))
        if not stage.extendable:  # such a stage does it after its own checks
            self.invalidate_dependents(name)
        if stage.is_taken(self.config):
            summary = self._copy_from_world_model(stage) if self.ranks.is_main else {}
        else:
            session = self._earlier_session(stage)
            if session is not None:
                began, self._seconds = session.began or began, session.seconds or 0.0
            if self.ranks.is_main and not self.marker(name).is_file():
                self._record = StageRecord(
                    stage=name,
                    settings=self._settings(stage),
                    summary=session.summary if session is not None else {},
                    began=began,
                    versions=versions(),
                )
                self._write_seconds()
            try:
                summary = stage.run(self)
            finally:
                with contextlib.suppress(OSError):  # the stage's own error says more
                    self.log_profile(stage.command)
                self._record = None
        self.invalidate_dependents(name)
        if self.ranks.is_main:
            record = StageRecord(
                stage=name,
                settings=self._settings(stage),
                summary=summary,
                began=began,
                seconds=round(self.seconds, 2),
                peak_memory_mb=_peak_memory_mb(),
                versions=versions(),
            )
            record.write(self.marker(name))
            self.begun(name).unlink(missing_ok=True)
        self.ranks.barrier()
        self._check_gate(stage)

    def invalidate_dependents(self, name: str) -> None:
        """Remove the outputs of the stages that read those of a stage, which is about to change its own."""
        for dependent in stages.get(name).invalidates if self.ranks.is_main else ():
            invalidate(self, stages.get(dependent))

    def _earlier_session(self, stage: Stage) -> StageRecord | None:
        """Read the record of the interrupted session that a stage resumes; None if its settings differ."""
        path = self.marker(stage.name) if stage.extendable else self.begun(stage.name)
        path = path if path.is_file() else self.begun(stage.name)
        try:
            same = path.is_file() and set(self._differences(stage, path)) <= {*stage.extendable, *stage.resumable}
            return StageRecord.read(path) if same else None
        except ValueError:  # a damaged marker of partial outputs
            return None

    @property
    def begun_summary(self) -> dict[str, Any]:
        """Values that :meth:`begin` stored for the stage that runs, in this session or an interrupted one."""
        return {} if self._record is None else self._record.summary

    def begin(self, **values: Any) -> None:
        """Store what the outputs of the stage that runs are made of in its marker, until it is complete."""
        if self._record is not None:
            self._record = replace(self._record, summary={**self._record.summary, **values})
            self._write_seconds()

    def _write_seconds(self) -> None:
        """Write the marker of the incomplete stage, with its duration so far."""
        if self._record is not None:
            replace(self._record, seconds=round(self.seconds, 2)).write(self.begun(self._record.stage or ""))

    def _check_gate(self, stage: Stage) -> None:
        """Raise if a complete stage failed its quality check, unless ``force`` accepts that now or did before."""
        summary = self.ranks.broadcast(self.summary(stage.name))  # that of before rank 0 changes it
        failure = summary.get("failure")
        if failure is None or summary.get("accepted"):
            return
        if not self.force:
            raise StageFailedError(
                f"{stage.command}: {failure} (--force of `worldmodels run` or of the next stage continues anyway)"
            )
        if self.ranks.is_main:
            print(f"WARNING: {stage.command}: {failure}", file=sys.stderr)
            record = StageRecord.read(self.marker(stage.name))
            replace(record, summary={**summary, "accepted": True}).write(self.marker(stage.name))
        self.ranks.barrier()

    def _copy_from_world_model(self, stage: Stage) -> dict[str, Any]:
        """Copy a stage's outputs from the given world model; return its summary."""
        source = pretrained.resolve(self.config.world_model)
        for name in (*stage.exports, *stage.optional_exports):
            path = source / stage.folder / name
            if not path.is_file() and name in stage.exports:
                raise FileNotFoundError(f"world_model: expected {stage.folder}/{name} in {source}")
            if path.is_file():
                self.path(stage.folder).mkdir(exist_ok=True)
                with atomic_path(self.path(stage.folder, name)) as temporary:
                    shutil.copyfile(path, temporary)
        print(f"{label(stage.command)}  copied from the world model {self.config.world_model}", file=sys.stderr)
        from worldmodels.pipeline.collection import player_metadata

        player = {"player": player_metadata(source)} if (source / C).is_file() else {}
        return {"world_model": self.config.world_model, **player}

    def log(self, stage: str, **values: Any) -> None:
        """Append a line to ``metrics.jsonl``, and send its numbers to the sinks if it has a step."""
        if not self.ranks.is_main:
            return
        with self.path("metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, **values}) + "\n")
        found = numbers(values) if self._sinks else None
        if found is not None:
            for sink in self._sinks:
                sink.write(stage, found[1], found[0])

    def log_image(self, stage: str, name: str, path: Path, step: int) -> None:
        """Send an image file of the run folder to the sinks."""
        for sink in self._sinks:
            sink.write_image(stage, name, path, step)

    def log_profile(self, stage: str) -> None:
        """Append the seconds per phase since the last profile, as the profile of a stage, and store its duration."""
        self.log(PROFILE, of=stage, profile=take_profile())
        self._write_seconds()

    def rewind_metrics(self, stage: str, last: int, key: str = "step") -> None:
        """Remove a stage's lines whose ``key`` is greater than ``last``, as they are newer than its checkpoint.

        Profiles are kept, because the time was spent.
        """

        def is_kept(line: dict[str, Any]) -> bool:
            if line.get("stage") != stage:
                return True
            number = line.get(key)
            return isinstance(number, int | float) and number <= last

        if self.ranks.is_main:
            filter_metrics(self, is_kept)


def _lock_error(folder: Path, error: OSError) -> OSError:
    """Explain why a run folder cannot be locked: another process, or its file system."""
    if isinstance(error, BlockingIOError) or error.errno == errno.EACCES:
        return BlockingIOError(
            f"{folder}: another worldmodels process has locked this folder (on NFS and Lustre, perhaps on another node)"
        )
    return OSError(
        f"{folder}: expected a file system with locks, got one without ({error.strerror}); mount Lustre with option "
        "`flock`, NFS 3 with its lock service, or use another --out"
    )


def _peak_memory_mb() -> dict[str, int]:
    """Return the peak resident size of this process and of its largest finished child, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        name: resource.getrusage(which).ru_maxrss // unit
        for name, which in (("process", resource.RUSAGE_SELF), ("largest_child", resource.RUSAGE_CHILDREN))
    }
