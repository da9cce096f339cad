"""Evaluation of candidates on a cluster, in parts over candidates and episodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from worldmodels.envs import GameLostError
from worldmodels.rollout.evaluators import EvalResult, Evaluator, OnProgress, check_params
from worldmodels.support.cluster import Needs, Piece, WorkerLostError
from worldmodels.support.validation import check_integer

if TYPE_CHECKING:
    from worldmodels.support.ray_cluster import RayCluster

_SHORTEST, _LONGEST = 0.05, 10.0  # seconds of a part


class Part(NamedTuple):
    """Part of an evaluation.

    Attributes:
        params: (p, N) parameters of its candidates.
        episodes: Number of episodes per candidate.
        first_candidate: Index of its first candidate.
        first_episode: Index of its first episode.
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
class EvaluatorWork:
    """:class:`worldmodels.support.cluster.Work` of an evaluator.

    Attributes:
        make: Makes the evaluator, for a number of threads.
        needs: What a node needs.
    """

    make: Callable[[int], Evaluator]
    needs: Needs

    def open(self, num_threads: int) -> _Handler:
        """See :meth:`worldmodels.support.cluster.Work.open`."""
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


class Parts:
    """:class:`worldmodels.support.cluster.Pieces` of an evaluation: large ones first, small ones at the end.

    A part has whole candidates, or some episodes of one of them. It is an equal share of the episodes that are left
    (guided self-scheduling), within limits.

    Args:
        whole: The evaluation as one part.
        batch: Number of episodes that a worker plays efficiently at once: parts have fewer only if all have.
        seconds: Duration of an episode; None if it is unknown.

    Attributes:
        seconds: Measured duration of an episode.
    """

    def __init__(self, whole: Part, batch: int = 1, seconds: float | None = None) -> None:
        self._whole, self._batch = whole, batch
        self._next, self._total = 0, len(whole.params) * whole.episodes
        self.seconds = seconds

    def take(self, workers: int) -> Piece | None:
        """See :meth:`worldmodels.support.cluster.Pieces.take`."""
        left = self._total - self._next
        if left == 0:
            return None
        lowest, highest = min(self._batch, math.ceil(self._total / workers)), self._total
        if self.seconds is not None:
            lowest = max(lowest, int(_SHORTEST / self.seconds))
            highest = max(self._batch, int(_LONGEST / self.seconds))
        size = min(max(math.ceil(left / workers), lowest), highest, left)
        if left - size < lowest / 2:
            size = left
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
        return Piece(candidates * episodes, part)

    def finished(self, piece: Piece, seconds: float) -> None:
        """See :meth:`worldmodels.support.cluster.Pieces.finished`."""
        now = max(seconds / piece.size, 1e-9)
        self.seconds = now if self.seconds is None else 0.75 * self.seconds + 0.25 * now


class DistributedEvaluator:
    """:class:`worldmodels.rollout.evaluators.Evaluator` on a cluster, bit-identical to the evaluator it distributes.

    Args:
        cluster: Cluster; it stays open.
        make: Makes the evaluator in a worker, for its number of threads. It is sent to every node once.
        needs: What a node needs.
        batch: Number of episodes that one thread plays efficiently at once.
        threaded: Whether one process of each node evaluates with the threads of all its workers. Threads of a dream
            share M's weights, and exchange episodes until the last one ends.
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
        self._cluster, self._batch = cluster, batch * cluster.threads_of_a_worker(threaded)
        self._work = cluster.prepare(EvaluatorWork(make, needs), threaded=threaded)
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
            TypeError: A number has another type.
            ValueError: A shape or number is invalid.
            RuntimeError: A node is refused, or too many workers died.
        """
        params = check_params(params, self.controller.size)
        episodes = check_integer("episodes", episodes, 1, 2**31 - 1)
        whole = Part(params, episodes, first_candidate, first_episode, seed, common_random_numbers)
        parts = Parts(whole, self._batch, self._seconds)
        returns = np.empty((len(params), episodes), np.float32)
        lengths = np.empty((len(params), episodes), np.int32)
        ended = steps = 0
        for piece, played in self._cluster.run(self._work, parts):
            rows, columns = _place(piece.data, first_candidate, first_episode)
            returns[rows, columns], lengths[rows, columns] = played
            ended, steps = ended + piece.size, steps + int(played.lengths.sum())
            on_progress(ended, returns.size, steps)
        self._seconds = parts.seconds
        return EvalResult(returns, lengths)

    def close(self) -> None:
        """See :meth:`worldmodels.rollout.evaluators.Evaluator.close`; the cluster stays open."""


def _place(part: Part, first_candidate: int, first_episode: int) -> tuple[slice, slice]:
    """Return the rows and columns of a part in its evaluation."""
    row, column = part.first_candidate - first_candidate, part.first_episode - first_episode
    return slice(row, row + len(part.params)), slice(column, column + part.episodes)
