"""Collection: policies play the real environment in worker processes, which write shards of the episode store."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodels import pretrained
from worldmodels.data.episodes import EpisodeShard, shard_path
from worldmodels.envs.policies import AGENT, parse_policies
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import CollectConfig
from worldmodels.pipeline.players import Job
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stage import C, M, V
from worldmodels.pipeline.worker import CollectJob, work
from worldmodels.rollout.needs import environment_needs, resolved
from worldmodels.support.cluster import StaticQueue, WorkUnit, active_cluster, with_sizes
from worldmodels.support.cpu import available_cpus
from worldmodels.support.files import link
from worldmodels.support.processes import describe_exit, spawn
from worldmodels.support.profile import add_to_profile, phase
from worldmodels.support.progress import Progress

if TYPE_CHECKING:
    from worldmodels.support.ray_cluster import RayCluster

_MAX_RESTARTS = 20
_TIMEOUT = 900.0  # seconds without a finished episode after which a worker counts as hung


def collect_episodes(run: Run) -> dict[str, Any]:
    """Play until the episode store is complete; existing shards are kept.

    Returns:
        Summary: ``episodes``, ``frames``, ``bytes``, ``policies`` (mean and std of the lengths by policy)
        and, where they apply, ``cut`` (number of truncated episodes) and ``player`` (see :func:`player_metadata`).

    Raises:
        FileNotFoundError: The folder of ``collect.include`` has no episodes.
        ValueError: The policies need an agent and there is none, another C played the first episodes, or the number of
            episodes or the included ones do not fit the store.
        RuntimeError: A worker failed, or too many of them died.
    """
    config = run.config.collect
    agent_policies = [name for name, _ in parse_policies(config.policies, run.task.policies) if name in AGENT]
    if agent_policies and not config.agent:
        raise ValueError(f"collect.agent: expected the agent of policy '{agent_policies[0]}', got none")
    player = {}
    if agent_policies:
        from worldmodels.models.agent import Agent

        Agent.load(pretrained.resolve(config.agent))  # reports missing files before any episode
        player = player_metadata(pretrained.resolve(config.agent))
    folder = run.path("episodes")
    folder.mkdir(exist_ok=True)
    first = _include(config, folder)
    shards = range(-(-config.episodes // config.shard_episodes))
    todo = [shard for shard in shards if not shard_path(folder, first + shard).is_file()]
    job = Job(run.config, folder.absolute(), first)
    _check_new(job)
    _check_shards(job, len(shards))
    ready = sum(len(job.episodes(shard)) for shard in shards if shard not in todo)
    before = run.begun_summary.get("player", player)
    if ready and before != player:
        raise ValueError(
            f"collect.agent: expected the C that played the {ready} episodes so far, generation {before['generation']} "
            f"(score {before['score']}), got generation {player['generation']} (score {player['score']}); "
            f"`worldmodels collect --out {shlex.quote(str(run.folder))} --force` starts over"
        )
    if player:
        run.begin(player=player)
    progress = Progress("collect", config.episodes, "episodes", start=ready)
    cluster = active_cluster()
    if cluster is None:
        _Pool(job, todo, progress, ready, run).run()
    elif todo:
        _collect_on_cluster(cluster, run, job, todo, progress, ready)
    _log_shards(run, job, len(shards))
    cut = _cut(job, len(shards))
    if cut:
        limit = f"Task.max_steps = {run.task.max_steps}"
        print(f"collect: {cut} of {config.episodes} episodes were truncated at {limit}", file=sys.stderr)
    summary = {**summarize(folder, config), **({"cut": cut} if cut else {})}
    return {**summary, **({"player": player} if player else {})}


def player_metadata(run_folder: Path) -> dict[str, Any]:
    """Identify the C of a run folder by its ``generation`` and its ``score`` in the evolution."""
    from worldmodels.models.agent import load_controller

    _, _, metadata = load_controller(run_folder / "evolve" / "controller.safetensors")
    return {name: metadata.get(name) for name in ("generation", "score")}


def _include(config: CollectConfig, folder: Path) -> int:
    """Link the episodes of the included run (copy them from another file system); return the number of shards."""
    if not config.include:
        return 0
    paths = sorted((Path(config.include) / "episodes").glob("*.h5"))
    if not paths:
        raise FileNotFoundError(f"collect.include: expected a run folder with episodes, got {config.include}")
    for index, path in enumerate(paths):
        target = shard_path(folder, index)
        if not target.is_file():
            link(path, target)
        elif not target.samefile(path) and target.stat().st_size != path.stat().st_size:
            raise ValueError(
                f"collect.include: expected the episodes of {config.include} that were included before, got another "
                f"{path.name}; use another --out, or `worldmodels collect --force`"
            )
    return len(paths)


def _check_new(job: Job) -> None:
    """Check that the episodes of the job are not among the included ones, whose shards may have another size.

    Raises:
        ValueError: Episodes have the same seeds.
    """
    if not job.first:
        return
    first = job.episodes(0).start
    seeds = {job.episode_seed(number) for number in range(first, first + job.collect.episodes)}
    included = set[int]()
    for index in range(job.first):
        shard = EpisodeShard(shard_path(job.folder, index))
        included.update(shard.seeds.tolist())
        shard.close()
    if seeds & included:
        raise ValueError(
            f"collect.include: expected episodes with other seeds than the {job.collect.episodes} new ones, got "
            f"{len(seeds & included)} with the same in {job.collect.include}; use another --seed"
        )


def _check_shards(job: Job, shards: int) -> None:
    """Check that the existing shards belong to the configured number of episodes.

    Raises:
        ValueError: A shard has another number of episodes.
    """
    own = set(job.folder.glob("*.h5")) - {shard_path(job.folder, index) for index in range(job.first)}
    expected = {job.path(shard): len(job.episodes(shard)) for shard in range(shards)}
    for path in sorted(own):
        shard = EpisodeShard(path)
        found = len(shard.lengths)
        shard.close()
        if expected.get(path) != found:
            raise ValueError(
                f"collect.episodes: expected a number that fits the {found} of {path}, got {job.collect.episodes} "
                f"({expected.get(path, 0)} in that file); use another number, or `worldmodels collect --force`"
            )


def _log_shards(run: Run, job: Job, shards: int) -> None:
    """Log the mean length of the episodes of each shard, in their order, over the number of episodes so far."""
    run.rewind_metrics("collect", -1, key="episodes")
    episodes = 0
    for index in range(shards):
        shard = EpisodeShard(job.path(index))
        episodes += len(shard.lengths)
        run.log("collect", episodes=episodes, mean_length=float(shard.lengths.mean()))
        shard.close()


def _cut(job: Job, shards: int) -> int:
    """Count the episodes truncated by the step limit of the task."""
    cut = 0
    for index in range(shards):
        shard = EpisodeShard(job.path(index))
        cut += int(shard.cut.sum())
        shard.close()
    return cut


def summarize(folder: Path, config: CollectConfig) -> dict[str, Any]:
    """Summarize an episode store: episodes, frames, bytes, and lengths by policy."""
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


def _collect_on_cluster(
    cluster: RayCluster, run: Run, job: Job, todo: list[int], progress: Progress, ready: int
) -> None:
    """Play on the workers of a cluster, which write the shards; a work unit is a shard."""
    agent = pretrained.resolve(job.collect.agent) if job.collect.agent else None
    weights = [agent / name for name in (V, M, C)] if agent is not None else []
    files = [run.path("config.json").absolute(), *weights]
    modules = tasks.modules(run.config)
    needs = replace(environment_needs(job.environment, modules), files=with_sizes(files))
    collect = replace(job.collect, agent="" if agent is None else str(agent.absolute()))
    settings = replace(job, config=replace(job.config, environment=resolved(job.environment), collect=collect))
    queue = StaticQueue([WorkUnit(len(job.episodes(shard)), shard) for shard in todo])
    frames, printed = 0, set[str]()
    try:
        with contextlib.closing(cluster.run(cluster.prepare(CollectJob(settings, needs)), queue)) as played:
            for _, (lengths, note) in played:
                ready, frames = ready + len(lengths), frames + sum(lengths)
                progress.update(ready, f"{frames / max(progress.seconds, 1e-9):,.0f} frames/s")
                run.log_profile("collect")
                if note and note not in printed:
                    print(f"collect: {note}", file=sys.stderr)
                    printed.add(note)
    finally:
        for stray in job.folder.glob("*.h5.*.tmp"):  # of workers that died
            stray.unlink(missing_ok=True)
    progress.close(ready, f"{frames:,} frames")


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    shard: int | None = None
    episodes: int = 0
    last_message: float = field(default_factory=time.monotonic)

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last message."""
        return time.monotonic() - self.last_message


class _Pool:
    """Spawned workers that write one shard at a time. A dead worker is replaced, and its shard is played again.

    The profile is that of the workers; the time that this process waits for them is not part of it.
    """

    def __init__(self, job: Job, todo: list[int], progress: Progress, ready: int, run: Run) -> None:
        self._job = job
        self._todo = todo[::-1]
        self._count = min(job.collect.num_workers or available_cpus(), len(todo))
        self._progress, self._ready, self._frames = progress, ready, 0
        self._run = run
        self._restarts = 0
        self._printed: set[str] = set()
        self._workers: list[_Worker] = []

    def run(self) -> None:
        try:
            for _ in range(self._count):
                self._workers.append(self._spawn())
            while self._workers:
                waiting: list[Any] = [worker.pipe for worker in self._workers]
                with phase(None):
                    ready = multiprocessing.connection.wait(waiting, _TIMEOUT / 10)
                for pipe in ready:
                    self._serve(next(worker for worker in self._workers if worker.pipe is pipe))
                for worker in [worker for worker in self._workers if worker.silent_seconds > _TIMEOUT]:
                    self._replace(worker)
        finally:
            for worker in self._workers:
                _kill(worker)
                self._remove_partial(worker)
        self._progress.close(self._ready, f"{self._frames:,} frames")

    def _spawn(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        pipe, worker_pipe = context.Pipe()
        process = context.Process(target=work, args=(worker_pipe, self._job), daemon=True)
        spawn(process)
        worker_pipe.close()
        return _Worker(process, pipe)

    def _serve(self, worker: _Worker) -> None:
        worker.last_message = time.monotonic()
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if isinstance(message, Exception):
            raise message
        if isinstance(message, str):  # note about its environment
            if message not in self._printed:
                print(f"collect: {message}", file=sys.stderr)
            self._printed.add(message)
        elif message is None:  # ready for a shard
            worker.shard, worker.episodes = (self._todo.pop() if self._todo else None), 0
            try:
                worker.pipe.send(worker.shard)
            except (BrokenPipeError, ConnectionResetError):
                self._replace(worker)
                return
            if worker.shard is None:
                self._workers.remove(worker)
                with phase(None):
                    worker.process.join()
        elif isinstance(message, dict):
            add_to_profile(message)
            self._run.log_profile("collect")
        else:
            worker.episodes += 1
            self._ready += 1
            self._frames += message
            self._progress.update(self._ready, f"{self._frames / max(self._progress.seconds, 1e-9):,.0f} frames/s")

    def _replace(self, worker: _Worker) -> None:
        hung = worker.process.is_alive() and worker.silent_seconds > _TIMEOUT
        if not hung:
            worker.process.join(10)  # its pipe is closed, its exit code may not be known yet
        _kill(worker)
        self._workers.remove(worker)
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise RuntimeError(
                f"collect: {self._restarts} workers died, the last with {describe_exit(worker.process.exitcode)}"
            )
        if worker.shard is not None:
            exit_code = describe_exit(worker.process.exitcode)
            how = f"finished no episode for {_TIMEOUT:g} s" if hung else f"died ({exit_code})"
            print(f"\ncollect: a worker {how}; shard {worker.shard} is played again", file=sys.stderr)
            self._ready -= worker.episodes
            self._todo.append(worker.shard)
            self._remove_partial(worker)
        self._workers.append(self._spawn())

    def _remove_partial(self, worker: _Worker) -> None:
        """Remove the partial shard of a dead worker."""
        if worker.shard is not None:
            for stray in self._job.folder.glob(f"{self._job.path(worker.shard).name}.*.tmp"):
                stray.unlink(missing_ok=True)


def _kill(worker: _Worker) -> None:
    """Kill a worker and its game, which runs in the worker's session."""
    assert worker.process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join()
