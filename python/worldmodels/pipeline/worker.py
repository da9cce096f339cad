"""Workers of collect. They import PyTorch, most of their size, only for agents."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from worldmodels import pretrained
from worldmodels.data.episodes import EpisodeWriter
from worldmodels.envs import ContractError, GameLostError
from worldmodels.envs.making import backend
from worldmodels.envs.policies import RANDOM_AGENT
from worldmodels.envs.vector import make_vector_env
from worldmodels.pipeline.players import Job, check_policies, play
from worldmodels.support.cluster import Needs, WorkerLostError
from worldmodels.support.profile import OTHER, phase, phase_of, take_profile

if TYPE_CHECKING:
    from worldmodels.models.agent import Agent

_NUM_ENVS = 24  # environments of one worker with an agent or with EnvPool


class _ShardPlayer:
    """Environments and agent that play shards.

    Args:
        job: Settings of the stage.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        with phase("start"):
            self._agent = _agent(job)
            is_batched = self._agent is not None or backend(job.environment) == "envpool"
            num_envs = min(_NUM_ENVS, job.collect.shard_episodes) if is_batched else 1
            self._envs = make_vector_env(job.environment, num_envs, num_workers=1, rules=job.task.rules, **job.options)
            check_policies(job, self._envs.action_space)
        self.note = self._envs.scaling

    def play(self, shard: int) -> Iterator[int]:
        """Play and write a shard; yield the number of frames of each episode."""
        job, (action_size,) = self._job, self._envs.action_space.shape
        with phase("storing"), EpisodeWriter(job.path(shard), action_size) as writer:
            for played in phase_of(OTHER, play(self._envs, job, job.episodes(shard), self._agent)):
                writer.append(played)
                yield len(played.frames)

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()


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
        player = _ShardPlayer(job)
        if player.note:
            pipe.send(player.note)
        while (shard := _next_shard(pipe)) is not None:
            for frames in player.play(shard):
                pipe.send(frames)
            pipe.send(take_profile())
        player.close()
    except (BrokenPipeError, EOFError):
        pass
    except GameLostError as error:
        print(f"collect: {error}", file=sys.stderr)
        sys.exit(1)  # the parent replaces this worker
    except ContractError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(_failure(error))


def _failure(error: Exception) -> RuntimeError:
    return RuntimeError(f"collect: a worker failed: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class CollectJob:
    """:class:`worldmodels.support.cluster.Job` of collect; a work unit is the index of a shard.

    Attributes:
        settings: Settings of the stage; its folder is on a file system of all nodes.
        needs: Requirements on a node.
    """

    settings: Job
    needs: Needs

    def open(self, num_threads: int) -> _CollectHandler:
        """See :meth:`worldmodels.support.cluster.Job.open`."""
        return _CollectHandler(_ShardPlayer(self.settings))


class _CollectHandler:
    def __init__(self, player: _ShardPlayer) -> None:
        self._player = player

    def __call__(self, shard: int) -> tuple[list[int], str]:
        """Write a shard; return the number of frames of each episode, and a note on the environment."""
        try:
            return list(self._player.play(shard)), self._player.note
        except GameLostError as error:
            raise WorkerLostError(str(error)) from error
        except ContractError:
            raise
        except Exception as error:
            raise _failure(error) from error

    def close(self) -> None:
        self._player.close()


def _next_shard(pipe: Connection) -> int | None:
    """Ask for a shard; None if there are no more."""
    pipe.send(None)
    with phase("wait"):
        shard: int | None = pipe.recv()
    return shard


def _agent(job: Job) -> Agent | None:
    """Load the agent of the policies that need one, and limit PyTorch to one thread; None without such a policy."""
    if not job.collect.agent and RANDOM_AGENT not in dict(job.policy_weights):
        return None
    import torch

    from worldmodels.models.agent import Agent

    torch.set_num_threads(1)
    return Agent.load(pretrained.resolve(job.collect.agent)) if job.collect.agent else None
