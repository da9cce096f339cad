"""Collect: fixed policies play the real game in spawned workers, and every frame goes to the episode store."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from worldmodels import pretrained, tasks
from worldmodels.config import CollectConfig, EnvironmentConfig
from worldmodels.data.atomic import atomic_path
from worldmodels.data.episodes import Episode, EpisodeShard, EpisodeWriter, shard_path
from worldmodels.envs.play import Frame, episode_seed, make
from worldmodels.envs.policies import AGENT, Action, Policy
from worldmodels.experiment import Experiment
from worldmodels.models.agent import Agent
from worldmodels.progress import Progress
from worldmodels.threads import cores

_MAX_ATTEMPTS = 1000
_MAX_DEATHS = 20
_SLOTS = 8  # games that an agent plays side by side in one worker
_PERTURBATION = 0.5  # largest noise on a perturbed agent's parameters, in standard deviations of theirs


def run(experiment: Experiment) -> dict[str, Any]:
    """Plays until every shard of the store is there; shards that are there already are kept."""
    config = experiment.config.collect
    wanted = [name for name, _ in parse_policies(config.policies, experiment.task.policies) if name in AGENT]
    if wanted and not config.agent:
        raise ValueError(f"collect.agent: expected whose agent plays '{wanted[0]}', got nothing")
    if wanted:
        Agent.load(pretrained.resolve(config.agent))  # what is missing there is told before any work
    folder = experiment.path("episodes")
    folder.mkdir(exist_ok=True)
    for stray in folder.glob("*.tmp"):
        stray.unlink()
    first = _include(config, folder)
    shards = range(-(-config.episodes // config.shard_episodes))
    todo = [shard for shard in shards if not shard_path(folder, first + shard).is_file()]
    ready = sum(len(_episodes(config, shard)) for shard in shards) - sum(len(_episodes(config, s)) for s in todo)
    progress = Progress("collect", config.episodes, "episodes", start=ready)
    _Pool(experiment, todo, progress, ready, first).run()
    return _summary(folder, config)


def parse_policies(text: str, policies: Mapping[str, Policy]) -> list[tuple[str, float]]:
    """Reads 'held 1-10:4, left:1' as names with shares; the names are those of ``policies`` and of what an agent does.

    Raises:
        ValueError: an unknown name or a share that is no positive number.
    """
    parsed = []
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition(":"))
        try:
            weight = float(share or 1)
        except ValueError:
            weight = 0.0
        if name not in (*policies, *AGENT) or not 0 < weight < float("inf"):
            known = ", ".join((*policies, *AGENT))
            raise ValueError(f"collect.policies: expected '<name>:<share>, ...' of {known}, got {part.strip()!r}")
        parsed.append((name, weight))
    return parsed


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
            try:
                to.hardlink_to(path)
            except OSError:
                with atomic_path(to) as temporary:
                    shutil.copyfile(path, temporary)
    return len(paths)


def _episodes(config: CollectConfig, shard: int) -> range:
    start = shard * config.shard_episodes
    return range(start, min(start + config.shard_episodes, config.episodes))


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


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know; sent to it once."""

    experiment: str
    environment: EnvironmentConfig
    collect: CollectConfig
    folder: Path
    first: int  # number of the first shard that is played
    seed: int

    def path(self, shard: int) -> Path:
        return shard_path(self.folder, self.first + shard)


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    shard: int | None = None
    episodes: int = 0


class _Pool:
    """Spawned workers that write one shard at a time; one that dies is replaced and its shard is done again."""

    def __init__(self, experiment: Experiment, todo: list[int], progress: Progress, ready: int, first: int = 0) -> None:
        config = experiment.config
        folder = experiment.path("episodes").absolute()
        self._job = _Job(config.experiment, config.environment, config.collect, folder, first, config.seed)
        self._todo = todo[::-1]
        self._count = min(config.collect.workers or cores(), len(todo))
        self._progress, self._ready, self._frames = progress, ready, 0
        self._deaths = 0
        self._workers: list[_Worker] = []

    def run(self) -> None:
        try:
            for _ in range(self._count):
                self._workers.append(self._spawn())
            while self._workers:
                waiting: list[Any] = [worker.pipe for worker in self._workers]
                for pipe in multiprocessing.connection.wait(waiting):
                    self._serve(next(worker for worker in self._workers if worker.pipe is pipe))
        finally:
            for worker in self._workers:
                _kill(worker)
        self._progress.close(self._ready, f"{self._frames:,} frames")

    def _spawn(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._job), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _serve(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._bury(worker)
            return
        if isinstance(message, Exception):
            raise message
        if message is None:  # free for a shard
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
        _kill(worker)
        self._workers.remove(worker)
        self._deaths += 1
        if self._deaths > _MAX_DEATHS:
            raise RuntimeError(
                f"collect: {self._deaths} workers died, the last with exit code {worker.process.exitcode}"
            )
        if worker.shard is not None:
            print(
                f"\ncollect: a worker died (exit code {worker.process.exitcode}); shard {worker.shard} is played again",
                file=sys.stderr,
            )
            self._ready -= worker.episodes
            self._todo.append(worker.shard)
            for stray in self._job.folder.glob(f"{self._job.path(worker.shard).name}.*.tmp"):
                stray.unlink()
        self._workers.append(self._spawn())


def _kill(worker: _Worker) -> None:
    """Ends a worker and its game, which is a process of the worker's session."""
    assert worker.process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join()


def _work(pipe: Connection, job: _Job) -> None:
    """A worker: asks for shards until there are none."""
    os.setsid()  # Ctrl-C is for the parent, which ends this session with the game in it
    os.set_inheritable(pipe.fileno(), False)  # or the game would hold the pipe open after this process has died
    try:
        torch.set_num_threads(1)
        agent = Agent.load(pretrained.resolve(job.collect.agent)) if job.collect.agent else None
        envs = [make(job.environment) for _ in range(1 if agent is None else _SLOTS)]
        pipe.send(None)
        while (shard := pipe.recv()) is not None:
            with EpisodeWriter(job.path(shard), envs[0].action_space.shape[0]) as writer:  # type: ignore[index]
                for played in _play(envs, job, _episodes(job.collect, shard), agent):
                    writer.append(played)
                    pipe.send(len(played.frames))
            pipe.send(None)
        for env in envs:
            env.close()
    except (KeyboardInterrupt, BrokenPipeError, EOFError):
        pass
    except Exception as error:
        pipe.send(RuntimeError(f"collect: a worker failed: {type(error).__name__}: {error}"))


class _Turn(NamedTuple):
    """What a policy knows before its action.

    Attributes:
        frame: (64, 64, 3) uint8.
        overrule: (A,) float32, NaN where the agent decides.
        params: (N,) float32, the agent's controller in this episode; None for its own.
        seed: of the episode.
        first: whether the episode begins.
    """

    frame: Frame
    overrule: Action
    params: npt.NDArray[np.float32] | None
    seed: int
    first: bool


def _play(envs: list[Any], job: _Job, numbers: range, agent: Agent | None) -> Iterator[Episode]:
    """Plays episodes, one in every environment at a time, and yields them in their order."""
    waiting = list(reversed(numbers))
    running: dict[int, tuple[int, Generator[_Turn, Action, Episode]]] = {}  # slot: episode, player
    turns: dict[int, _Turn] = {}
    done: dict[int, Episode] = {}
    following = numbers.start
    if agent is not None:
        agent.reset(len(envs))

    def begin(slot: int) -> None:
        running.pop(slot, None)
        turns.pop(slot, None)
        if waiting:
            number = waiting.pop()
            running[slot] = number, _play_one(envs[slot], job, number, agent)
            turns[slot] = next(running[slot][1])

    for slot in range(len(envs)):
        begin(slot)
    while running:
        actions = _decide(turns, agent, len(envs))
        for slot, (number, player) in list(running.items()):
            try:
                turns[slot] = player.send(actions[slot])
            except StopIteration as end:
                done[number] = end.value
                begin(slot)
        while following in done:
            yield done.pop(following)
            following += 1


def _decide(turns: dict[int, _Turn], agent: Agent | None, slots: int) -> dict[int, Action]:
    """The action of every slot; the agent's batch keeps its size, so that episodes do not depend on each other."""
    if agent is None:
        return {slot: turn.overrule for slot, turn in turns.items()}
    size = agent.controller.action_size
    frames, overrule = np.zeros((slots, 64, 64, 3), np.uint8), np.zeros((slots, size), np.float32)
    restart, seeds = np.zeros(slots, np.bool_), np.zeros(slots, np.int64)
    for slot, turn in turns.items():
        frames[slot], overrule[slot], restart[slot], seeds[slot] = turn.frame, turn.overrule, turn.first, turn.seed
        agent.assign(slot, turn.params)
    return dict(enumerate(agent.act(frames, restart, seeds, overrule)))


def _play_one(env: Any, job: _Job, number: int, agent: Agent | None) -> Generator[_Turn, Action, Episode]:
    """Plays episode ``number``: what comes out depends on nothing but the seed, the number and the agent."""
    config = job.collect
    policies = tasks.get(job.experiment).policies
    names, weights = zip(*parse_policies(config.policies, policies), strict=True)
    for attempt in range(_MAX_ATTEMPTS):
        seed = episode_seed(job.seed, "collect", number, attempt)
        rng = np.random.default_rng(seed)
        name = str(rng.choice(names, p=np.array(weights) / sum(weights)))
        overrule, params = (policies[name](rng), None) if name in policies else _agent_policy(name, rng, agent)
        frames: list[Frame] = []
        taken, rewards = [], []
        frame, _ = env.reset(seed=seed)
        over = False
        while not over:
            action = yield _Turn(frame, next(overrule), params, seed, not frames)
            frames.append(frame)
            taken.append(action)
            frame, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            over = terminated or truncated
        if len(frames) >= config.min_length:
            return Episode(np.stack(frames), np.stack(taken), np.array(rewards, np.float32), terminated, name, seed)
    raise RuntimeError(f"collect.min_length: no episode of {config.min_length} frames in {_MAX_ATTEMPTS} attempts")


def _agent_policy(
    name: str, rng: np.random.Generator, agent: Agent | None
) -> tuple[Iterator[Action], npt.NDArray[np.float32] | None]:
    """The actions of one episode, NaN where the agent decides, and the agent's controller if it is not its own."""
    assert agent is not None
    size, params = agent.controller.action_size, None
    if name == "agent perturbed":
        noise = rng.standard_normal(len(agent.params)) * agent.params.std() * rng.uniform(0, _PERTURBATION)
        params = agent.params + noise.astype(np.float32)
    if name == "agent interrupted":
        return interruptions(rng, size), None
    return itertools.repeat(np.full(size, np.nan, np.float32)), params


def interruptions(rng: np.random.Generator, action_size: int) -> Iterator[Action]:
    """Endless (A,) float32: NaN for 1 to 60 steps, an action uniform in [-1, 1] held for 1 to 20 steps, and again."""
    while True:
        for _ in range(rng.integers(1, 61)):
            yield np.full(action_size, np.nan, np.float32)
        push = rng.uniform(-1, 1, action_size).astype(np.float32)
        for _ in range(rng.integers(1, 21)):
            yield push
