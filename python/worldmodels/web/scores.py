"""Scores of an agent that the page shows."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodels.data.records import Record

SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True)
class Summary(Record):
    """Mean, standard deviation and 95 % interval of the mean over n episodes."""

    mean: float
    std: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True, kw_only=True)
class AgentScores(Record):
    """Scores of an agent in its dream and in the game; None if not measured."""

    dream: Summary | None = None
    game: Summary | None = None
