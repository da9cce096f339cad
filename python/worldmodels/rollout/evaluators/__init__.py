"""Evaluators of candidate controllers: one interface for dreams and the real environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from worldmodels.models.controller import Controller
from worldmodels.support.validation import float64_array

#: Progress callback: finished episodes, number of episodes, steps so far.
OnProgress = Callable[[int, int, int], None]


class EvalResult(NamedTuple):
    """Result of an evaluation.

    Attributes:
        returns: (P, E) float32 sum of rewards of each episode.
        lengths: (P, E) int32 number of steps of each episode.
    """

    returns: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]


class Evaluator(Protocol):
    """Evaluator of candidate controllers.

    Attributes:
        controller: Architecture of C.
        unit: Name of the steps, in the plural.
        metadata: Metadata stored with the score. Resuming requires the same metadata.
    """

    controller: Controller
    unit: str
    metadata: dict[str, Any]

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
        """Evaluate every candidate.

        An episode depends on its candidate's parameters, the indices of its candidate and of itself, and the seed. Any
        part of a larger evaluation, played with its first indices, is bit-identical to that part.

        Args:
            params: (P, N) flat parameters, one candidate per row.
            episodes: Number E of episodes per candidate.
            seed: Seed of all random numbers, from 0 to 2**63 - 1.
            common_random_numbers: Whether all candidates share their random numbers (common random numbers).
            on_progress: Progress callback.
            first_candidate: Index of the first candidate in a larger evaluation.
            first_episode: Index of the first episode in a larger evaluation.
        """

    def close(self) -> None:
        """Free all resources."""


def check_params(params: npt.ArrayLike, size: int) -> npt.NDArray[np.float32]:
    """Validate flat parameters; return them as (P, size) float32, one candidate per row.

    Raises:
        TypeError: The parameters are not real numbers.
        ValueError: The shape is wrong, or a parameter is not finite in float32.
    """
    array = float64_array("params", params)
    if array.ndim != 2 or array.shape[1] != size or len(array) == 0:
        raise ValueError(f"params: expected (P, {size}), got {array.shape}")
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise ValueError("params: expected finite float32 numbers, got others")
    return narrow
