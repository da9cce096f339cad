"""Benchmarks of collecting and evaluating in TakeCover, next to a bare loop of its engine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import gymnasium
import numpy as np

from worldmodels.benchmarks.case import Case
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.device import limit_threads
from worldmodels.pipeline import tasks
from worldmodels.pipeline.players import CollectingPlayer, Job
from worldmodels.pipeline.worker import work
from worldmodels.rollout.environments import Assignment, Environments
from worldmodels.rollout.players import OpenLoopPlayer, Player
from worldmodels.support.cpu import available_cpus
from worldmodels.support.processes import spawn

_TASK, _POLICY = "takecover", "repeat 1-10"
_EPISODES = 12  # of every worker
_PURPOSE = "bench"
_NUM_ENVS, _MAX_STEPS = 16, 300  # of an evaluation: every player has as many episodes, cut at so many steps
_ROWS = 100  # of a screen of 160x120, those above the status bar


def cases(*, peers: bool) -> Iterator[Callable[[], Case]]:
    """Yield factories of the benchmarks; with ``peers``, the bare loop is among them."""
    yield partial(worker_case, "collecting", work)
    if peers:
        yield partial(worker_case, "bare loop of the engine", bare_loop)
    yield partial(evaluating_case)


def worker_case(name: str, target: Callable[[Connection, Job], None]) -> Case:
    """Create the benchmark of the same episodes in every round, in as many worker processes as there are CPUs.

    Raises:
        ImportError: ViZDoom is not installed.
    """
    import vizdoom  # noqa: F401 (its absence is reported before a process starts)

    workers = available_cpus()
    config = tasks.preset(_TASK, "quick")
    collect = replace(
        config.collect, episodes=workers * _EPISODES, shard_episodes=_EPISODES, policies=_POLICY, min_length=1
    )
    folder = tempfile.TemporaryDirectory(prefix="worldmodels-bench-")
    job = Job(replace(config, collect=collect), Path(folder.name), 0)
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    for _ in range(workers):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=target, args=(theirs, job), daemon=True))
        spawn(processes[-1])
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        _frames(pipe)  # the engine is ready

    def play() -> tuple[int, int]:
        for shard, pipe in enumerate(pipes):
            pipe.send(shard)
        frames = sum(map(_frames, pipes))
        return frames, frames

    def stop() -> None:
        for pipe, process in zip(pipes, processes, strict=True):
            with contextlib.suppress(OSError):
                pipe.send(None)
            process.join(10)
            process.kill()
        folder.cleanup()

    weakref.finalize(play, stop)
    return Case(f"TakeCover: {name}", "float32", workers, 0, "steps/s", play)


def _frames(pipe: Connection) -> int:
    """Wait until a worker is ready for a shard; return the number of frames since the last one.

    Raises:
        RuntimeError: The worker failed.
    """
    frames = 0
    while (message := pipe.recv()) is not None:
        if isinstance(message, Exception):
            raise RuntimeError(str(message)) from message
        frames += message if isinstance(message, int) else 0
    return frames


def bare_loop(pipe: Connection, job: Job) -> None:
    """Play the episodes of :func:`worldmodels.pipeline.worker.work`: action, screen, Pillow's resize, nothing else."""
    from PIL import Image

    from worldmodels.envs.take_cover import THRESHOLD, TakeCoverEnv

    os.setsid()  # like a worker: Linux shares the CPUs between sessions
    env = TakeCoverEnv()
    game = env._game
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    player = CollectingPlayer(job, space, None)

    def buttons(number: int) -> list[list[bool]]:
        """Draw the actions of an episode before it is timed: right and left at every step."""
        frame, episode, env_id = np.zeros((1, 64, 64, 3), np.uint8), np.array([number]), np.zeros(1, np.int64)
        pressed = []
        for step in range(job.task.max_steps):
            (value,) = player.act(frame, np.array([step == 0]), episode, env_ids=env_id)[0]
            pressed.append([bool(value > THRESHOLD), bool(value < -THRESHOLD)])
        return pressed

    shards = [
        [(player.seed(number), buttons(number)) for number in job.episodes(shard)] for shard in range(available_cpus())
    ]
    pipe.send(None)
    while (shard := pipe.recv()) is not None:
        for seed, pressed in shards[shard]:
            env.reset(seed=seed)
            steps = 0
            for action in pressed:
                game.make_action(action)
                steps += 1
                if game.is_episode_finished():
                    break
                screen = game.get_state().screen_buffer[:_ROWS]
                np.array(Image.fromarray(screen).resize((64, 64), Image.Resampling.BILINEAR))
            pipe.send(steps)
        pipe.send(None)
    env.close()


def evaluating_case() -> Case:
    """Create the benchmark of evaluating the pretrained agent and an open-loop policy in one pool.

    Raises:
        ImportError: ViZDoom is not installed.
    """
    import vizdoom  # noqa: F401

    from worldmodels.models.agent import Agent

    task = tasks.get(_TASK)
    limit_threads()
    environments = Environments(EnvSpec(), _NUM_ENVS, _MAX_STEPS, rules=task.rules)
    players: list[Player] = [Agent.pretrained(_TASK), OpenLoopPlayer(task.policies[_POLICY], _PURPOSE)]

    def play() -> tuple[int, int]:
        scores: list[float] = []
        assignments = [
            Assignment(player, range(_NUM_ENVS), lambda _, score: scores.append(score)) for player in players
        ]
        environments.play_all(assignments, seed=0, purpose=_PURPOSE)
        return int(sum(scores)), int(sum(scores))  # a reward of 1 per step

    play()  # starts the engines
    weakref.finalize(play, environments.close)
    return Case("TakeCover: evaluating", "float32", available_cpus(), 0, "steps/s", play)
