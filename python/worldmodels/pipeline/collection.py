"""Collect: policies play the real environment in spawned workers, and every frame goes to the episode store."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np

from worldmodels import pretrained
from worldmodels.data.episodes import EpisodeShard, shard_path
from worldmodels.envs.policies import AGENT, parse_policies
from worldmodels.pipeline.config import CollectConfig
from worldmodels.pipeline.players import Job
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.worker import work
from worldmodels.support.cpu import available_cpus
from worldmodels.support.files import link
from worldmodels.support.processes import block_sigint, describe_exit
from worldmodels.support.progress import Progress

_MAX_DEATHS = 20
_PATIENCE = 900.0  # seconds without an episode after which a worker is taken to hang, as its game can


def collect_episodes(run: Run) -> dict[str, Any]:
    """Plays until every shard of the store is there; shards that are there already are kept."""
    config = run.config.collect
    longest = run.task.max_steps
    wanted = [name for name, _ in parse_policies(config.policies, run.task.policies) if name in AGENT]
    if wanted and not config.agent:
        raise ValueError(f"collect.agent: expected whose agent plays '{wanted[0]}', got nothing")
    player = {}
    if wanted:
        from worldmodels.models.agent import Agent

        Agent.load(pretrained.resolve(config.agent))  # what is missing there is told before any work
        player = player_of(pretrained.resolve(config.agent))
    folder = run.path("episodes")
    folder.mkdir(exist_ok=True)
    first = _include(config, folder)
    shards = range(-(-config.episodes // config.shard_episodes))
    todo = [shard for shard in shards if not shard_path(folder, first + shard).is_file()]
    job = Job(run.config, folder.absolute(), first)
    _check_shards(job, len(shards))
    ready = sum(len(job.episodes(shard)) for shard in shards if shard not in todo)
    progress = Progress("collect", config.episodes, "episodes", start=ready)
    _Pool(job, todo, progress, ready).run()
    cut = _cut(job, len(shards))
    if cut:
        what = f"{cut} of {config.episodes} episodes were cut at Task.max_steps = {longest}"
        print(f"collect: {what}; the environment ends later or never", file=sys.stderr)
    summary = {**_summary(folder, config), **({"cut": cut} if cut else {})}
    return {**summary, **({"player": player} if player else {})}


def player_of(run_folder: Path) -> dict[str, Any]:
    """Which C of a run plays: the ``generation`` it is of and its ``score`` in evolution."""
    from worldmodels.models.agent import load_controller

    _, _, about = load_controller(run_folder / "evolve" / "controller.safetensors")
    return {name: about.get(name) for name in ("generation", "score")}


def _include(config: CollectConfig, folder: Path) -> int:
    """Links the episodes of another run (copies them, on another disk); returns the number of their shards."""
    if not config.include:
        return 0
    paths = sorted((Path(config.include) / "episodes").glob("*.h5"))
    if not paths:
        raise FileNotFoundError(f"collect.include: expected a run folder with episodes, got {config.include}")
    for index, path in enumerate(paths):
        to = shard_path(folder, index)
        if not to.is_file():
            link(path, to)
    return len(paths)


def _check_shards(job: Job, shards: int) -> None:
    """Refuses a number of episodes that does not fit those that were played before.

    Raises:
        ValueError: a shard is of other episodes.
    """
    own = set(job.folder.glob("*.h5")) - {shard_path(job.folder, index) for index in range(job.first)}
    wanted = {job.path(shard): len(job.episodes(shard)) for shard in range(shards)}
    for path in sorted(own):
        shard = EpisodeShard(path)
        found = len(shard.lengths)
        shard.close()
        if wanted.get(path) != found:
            raise ValueError(
                f"collect.episodes: expected a number that fits the {found} of {path}, got {job.collect.episodes} "
                f"({wanted.get(path, 0)} there); go on with another, or `worldmodels collect --force`"
            )


def _cut(job: Job, shards: int) -> int:
    """Number of the played episodes that the longest episode of the task truncated."""
    cut = 0
    for index in range(shards):
        shard = EpisodeShard(job.path(index))
        cut += int(shard.cut.sum())
        shard.close()
    return cut


def _summary(folder: Path, config: CollectConfig) -> dict[str, Any]:
    lengths: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.h5")):
        shard = EpisodeShard(path)
        for policy, length in zip(shard.policies, shard.lengths, strict=True):
            lengths.setdefault(policy, []).append(int(length))
        shard.close()
    return {
        "episodes": config.episodes,
        "frames": sum(map(sum, lengths.values())),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.h5")),
        "policies": {
            name: {"episodes": len(values), "mean": float(np.mean(values)), "std": float(np.std(values))}
            for name, values in sorted(lengths.items())
        },
    }


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    shard: int | None = None
    episodes: int = 0
    heard: float = field(default_factory=time.monotonic)

    @property
    def silent(self) -> float:
        """Seconds since it said something."""
        return time.monotonic() - self.heard


class _Pool:
    """Spawned workers that write one shard at a time; one that dies is replaced and its shard is done again."""

    def __init__(self, job: Job, todo: list[int], progress: Progress, ready: int) -> None:
        self._job = job
        self._todo = todo[::-1]
        self._count = min(job.collect.num_workers or available_cpus(), len(todo))
        self._progress, self._ready, self._frames = progress, ready, 0
        self._deaths = 0
        self._noted: set[str] = set()
        self._workers: list[_Worker] = []

    def run(self) -> None:
        try:
            for _ in range(self._count):
                self._workers.append(self._spawn())
            while self._workers:
                waiting: list[Any] = [worker.pipe for worker in self._workers]
                for pipe in multiprocessing.connection.wait(waiting, _PATIENCE / 10):
                    self._serve(next(worker for worker in self._workers if worker.pipe is pipe))
                for worker in [worker for worker in self._workers if worker.silent > _PATIENCE]:
                    self._bury(worker)
        finally:
            for worker in self._workers:
                _kill(worker)
                self._sweep(worker)
        self._progress.close(self._ready, f"{self._frames:,} frames")

    def _spawn(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._job), daemon=True)
        with block_sigint():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _serve(self, worker: _Worker) -> None:
        worker.heard = time.monotonic()
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if isinstance(message, Exception):
            raise message
        if isinstance(message, str):  # of its environment
            if message not in self._noted:
                print(f"collect: {message}", file=sys.stderr)
            self._noted.add(message)
        elif message is None:  # free for a shard
            worker.shard, worker.episodes = (self._todo.pop() if self._todo else None), 0
            try:
                worker.pipe.send(worker.shard)
            except (BrokenPipeError, ConnectionResetError):
                self._bury(worker)
                return
            if worker.shard is None:
                self._workers.remove(worker)
                worker.process.join()
        else:
            worker.episodes += 1
            self._ready += 1
            self._frames += message
            self._progress.update(self._ready, f"{self._frames / max(self._progress.seconds, 1e-9):,.0f} frames/s")

    def _bury(self, worker: _Worker) -> None:
        hung = worker.process.is_alive() and worker.silent > _PATIENCE
        if not hung:
            worker.process.join(10)  # it has closed its pipe and is about to say with which code it ends
        _kill(worker)
        self._workers.remove(worker)
        self._deaths += 1
        if self._deaths > _MAX_DEATHS:
            raise RuntimeError(
                f"collect: {self._deaths} workers died, the last with {describe_exit(worker.process.exitcode)}"
            )
        if worker.shard is not None:
            how = f"said nothing for {_PATIENCE:g} s" if hung else f"died ({describe_exit(worker.process.exitcode)})"
            print(f"\ncollect: a worker {how}; shard {worker.shard} is played again", file=sys.stderr)
            self._ready -= worker.episodes
            self._todo.append(worker.shard)
            self._sweep(worker)
        self._workers.append(self._spawn())

    def _sweep(self, worker: _Worker) -> None:
        """Removes the shard that a worker which was killed had begun."""
        if worker.shard is not None:
            for stray in self._job.folder.glob(f"{self._job.path(worker.shard).name}.*.tmp"):
                stray.unlink(missing_ok=True)


def _kill(worker: _Worker) -> None:
    """Ends a worker and its game, which is a process of the worker's session."""
    assert worker.process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join()
