"""Where candidates for C are tried: one small interface, the dream and the real environment behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from worldmodels.models.controller import Controller

#: Told now and then: episodes that have ended, episodes in all, steps so far.
Told = Callable[[int, int, int], None]


class Played(NamedTuple):
    """What candidates achieved.

    Attributes:
        returns: (P, E) float32, the sum of rewards of each episode.
        lengths: (P, E) int32, steps of each episode.
        profile: seconds that each part of the work took; empty where there is but one.
    """

    returns: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]
    profile: Mapping[str, float]


class Evaluator(Protocol):
    """Plays candidates' episodes.

    Attributes:
        controller: the shape of C.
        unit: what a step is called, in the plural.
        about: what is to be known beside a score; a run goes on only with what it was begun with.
    """

    controller: Controller
    unit: str
    about: dict[str, Any]

    def play(
        self, params: npt.NDArray[np.floating], episodes: int, *, seed: int, common_seeds: bool, told: Told
    ) -> Played:
        """Plays every candidate's episodes.

        Args:
            params: (P, N), a candidate's flat parameters per row.
            episodes: E, episodes per candidate.
            seed: of everything that is random, from 0 to 2**63 - 1.
            common_seeds: whether all candidates meet the same chance.
            told: called now and then while it goes on.
        """

    def close(self) -> None:
        """Frees what is in use."""
