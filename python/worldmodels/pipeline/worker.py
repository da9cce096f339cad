"""Worker process of collect. It imports PyTorch, most of its size, only for agents."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from worldmodels import pretrained
from worldmodels.data.episodes import EpisodeWriter
from worldmodels.envs import ContractError, GameLostError
from worldmodels.envs.policies import RANDOM_AGENT
from worldmodels.envs.vector import backend, make_vector_env
from worldmodels.pipeline.players import Job, check_policies, play
from worldmodels.support.profile import OTHER, phase, phase_of, take_profile

if TYPE_CHECKING:
    from worldmodels.models.agent import Agent

_NUM_ENVS = 24  # environments of one worker with an agent or with EnvPool


def work(pipe: Connection, job: Job) -> None:
    """Collect shards until there are none left.

    Args:
        pipe: Receives indices of shards, None at the end. Sends the number of frames of each episode, the profile of
            each shard, None when the worker is ready for a shard, notes, and the error that ended the worker.
        job: Settings of the stage.
    """
    os.setsid()  # the parent ends this session with the game in it
    os.set_inheritable(pipe.fileno(), False)  # or the game would hold the pipe open after this process has died
    try:
        with phase("start"):
            agent = _agent(job)
            is_batched = agent is not None or backend(job.environment) == "envpool"
            num_envs = min(_NUM_ENVS, job.collect.shard_episodes) if is_batched else 1
            batch = make_vector_env(job.environment, num_envs, num_workers=1, rules=job.task.rules, **job.options)
            (action_size,) = batch.action_space.shape
            check_policies(job, batch.action_space)
        if batch.scaling:
            pipe.send(batch.scaling)
        while (shard := _next_shard(pipe)) is not None:
            with phase("storing"), EpisodeWriter(job.path(shard), action_size) as writer:
                for played in phase_of(OTHER, play(batch, job, job.episodes(shard), agent)):
                    writer.append(played)
                    pipe.send(len(played.frames))
            pipe.send(take_profile())
        batch.close()
    except (BrokenPipeError, EOFError):
        pass
    except GameLostError as error:
        print(f"collect: {error}", file=sys.stderr)
        sys.exit(1)  # the parent replaces this worker
    except ContractError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(RuntimeError(f"collect: a worker failed: {type(error).__name__}: {error}"))


def _next_shard(pipe: Connection) -> int | None:
    """Ask for a shard; None if there are no more."""
    pipe.send(None)
    with phase("wait"):
        shard: int | None = pipe.recv()
    return shard


def _agent(job: Job) -> Agent | None:
    """Load the agent of the policies that need one, and limit PyTorch to one thread; None without such a policy."""
    if not job.collect.agent and RANDOM_AGENT not in dict(job.shares):
        return None
    import torch

    from worldmodels.models.agent import Agent

    torch.set_num_threads(1)
    return Agent.load(pretrained.resolve(job.collect.agent)) if job.collect.agent else None
