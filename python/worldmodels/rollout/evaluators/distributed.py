"""Evaluation of candidates on a cluster, divided over candidates and episodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from worldmodels.envs import GameLostError
from worldmodels.rollout.evaluators import EvalResult, Evaluator, OnProgress, check_params
from worldmodels.support.cluster import Needs, WorkerLostError, WorkUnit
from worldmodels.support.validation import check_integer

if TYPE_CHECKING:
    from worldmodels.support.ray_cluster import RayCluster

_MIN_SECONDS, _MAX_SECONDS = 0.05, 10.0  # target durations of a work unit


class Part(NamedTuple):
    """Part of an evaluation: a range of candidates and a range of their episodes.

    Attributes:
        params: (p, N) parameters of the candidates.
        episodes: Number of episodes per candidate.
        first_candidate: Index of the first candidate.
        first_episode: Index of the first episode.
        seed: Seed of the evaluation.
        common_random_numbers: Whether all candidates share their random numbers.
    """

    params: npt.NDArray[np.floating]
    episodes: int
    first_candidate: int
    first_episode: int
    seed: int
    common_random_numbers: bool


@dataclass(frozen=True)
class EvaluatorJob:
    """:class:`worldmodels.support.cluster.Job` of an evaluator; a work unit is a :class:`Part`.

    Attributes:
        make: Function that makes the evaluator for a number of threads.
        needs: Requirements on a node.
    """

    make: Callable[[int], Evaluator]
    needs: Needs

    def open(self, num_threads: int) -> _Handler:
        """See :meth:`worldmodels.support.cluster.Job.open`."""
        return _Handler(self.make(num_threads))


class _Handler:
    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def __call__(self, part: Part) -> EvalResult:
        params, episodes, first_candidate, first_episode, seed, common_random_numbers = part
        try:
            return self._evaluator.play(
                params,
                episodes,
                seed=seed,
                common_random_numbers=common_random_numbers,
                on_progress=lambda *_: None,
                first_candidate=first_candidate,
                first_episode=first_episode,
            )
        except GameLostError as error:
            raise WorkerLostError(str(error)) from error

    def close(self) -> None:
        self._evaluator.close()


class GuidedQueue:
    """:class:`worldmodels.support.cluster.WorkQueue` of an evaluation with guided scheduling, as in OpenMP.

    The size of a work unit is the number of remaining episodes divided by the number of workers, within limits. Large
    work units come first, small ones balance the load at the end. A work unit has whole candidates, or some episodes of
    one candidate.

    Args:
        whole: Evaluation.
        batch: Number of episodes that a worker plays efficiently at once. It is a lower
            bound of the size of a work unit if there are that many episodes per worker.
        seconds: Duration of an episode; None if it is unknown.

    Attributes:
        seconds: Moving average of the duration of an episode, initially the argument.
    """

    def __init__(self, whole: Part, batch: int = 1, seconds: float | None = None) -> None:
        self._whole, self._batch = whole, batch
        self._next, self._total = 0, len(whole.params) * whole.episodes
        self.seconds = seconds

    def take(self, num_workers: int) -> WorkUnit | None:
        """See :meth:`worldmodels.support.cluster.WorkQueue.take`."""
        remaining = self._total - self._next
        if remaining == 0:
            return None
        lowest, highest = min(self._batch, math.ceil(self._total / num_workers)), self._total
        if self.seconds is not None:
            lowest = max(lowest, int(_MIN_SECONDS / self.seconds))
            highest = max(self._batch, int(_MAX_SECONDS / self.seconds))
        size = min(max(math.ceil(remaining / num_workers), lowest), highest, remaining)
        if remaining - size < lowest / 2:
            size = remaining
        whole = self._whole
        candidate, episode = divmod(self._next, whole.episodes)
        candidates, episodes = 1, min(size, whole.episodes - episode)
        if episode == 0 and size >= whole.episodes:
            candidates = size // whole.episodes
        self._next += candidates * episodes
        part = whole._replace(
            params=whole.params[candidate : candidate + candidates],
            episodes=episodes,
            first_candidate=whole.first_candidate + candidate,
            first_episode=whole.first_episode + episode,
        )
        return WorkUnit(candidates * episodes, part)

    def record(self, unit: WorkUnit, seconds: float) -> None:
        """See :meth:`worldmodels.support.cluster.WorkQueue.record`."""
        measured = max(seconds / unit.size, 1e-9)
        self.seconds = measured if self.seconds is None else 0.75 * self.seconds + 0.25 * measured


class DistributedEvaluator:
    """:class:`worldmodels.rollout.evaluators.Evaluator` on a cluster, bit-identical to the evaluator it distributes.

    Args:
        cluster: Cluster; it stays open.
        make: Function that makes the evaluator in a worker, for its number of threads. It is sent to every node once.
        needs: Requirements on a node.
        batch: Number of episodes that one thread plays efficiently at once.
        threaded: Whether one worker per node evaluates, with the threads of all workers of the node. The threads of a
            dream share the weights of M and balance their load until the last episode ends.
    """

    def __init__(
        self,
        cluster: RayCluster,
        make: Callable[[int], Evaluator],
        needs: Needs,
        *,
        batch: int = 1,
        threaded: bool = False,
    ) -> None:
        local = make(1)
        self.controller, self.unit, self.metadata = local.controller, local.unit, local.metadata
        local.close()
        self._cluster, self._batch = cluster, batch * cluster.threads_per_worker(threaded)
        self._job = cluster.prepare(EvaluatorJob(make, needs), threaded=threaded)
        self._seconds: float | None = None

    def play(
        self,
        params: npt.NDArray[np.floating],
        episodes: int,
        *,
        seed: int,
        common_random_numbers: bool,
        on_progress: OnProgress,
        first_candidate: int = 0,
        first_episode: int = 0,
    ) -> EvalResult:
        """See :meth:`worldmodels.rollout.evaluators.Evaluator.play`.

        Raises:
            TypeError: A number is not an integer.
            ValueError: A shape or number is invalid.
            RuntimeError: A node is refused, or too many workers died.
        """
        params = check_params(params, self.controller.size)
        episodes = check_integer("episodes", episodes, 1, 2**31 - 1)
        whole = Part(params, episodes, first_candidate, first_episode, seed, common_random_numbers)
        queue = GuidedQueue(whole, self._batch, self._seconds)
        returns = np.empty((len(params), episodes), np.float32)
        lengths = np.empty((len(params), episodes), np.int32)
        ended = steps = 0
        for unit, played in self._cluster.run(self._job, queue):
            rows, columns = _slices(unit.data, first_candidate, first_episode)
            returns[rows, columns], lengths[rows, columns] = played
            ended, steps = ended + unit.size, steps + int(played.lengths.sum())
            on_progress(ended, returns.size, steps)
        self._seconds = queue.seconds
        return EvalResult(returns, lengths)

    def close(self) -> None:
        """See :meth:`worldmodels.rollout.evaluators.Evaluator.close`; the cluster stays open."""


def _slices(part: Part, first_candidate: int, first_episode: int) -> tuple[slice, slice]:
    """Return the rows (candidates) and columns (episodes) of a part in the arrays of its evaluation."""
    row, column = part.first_candidate - first_candidate, part.first_episode - first_episode
    return slice(row, row + len(part.params)), slice(column, column + part.episodes)
