"""Statistics of episode scores: mean, standard deviation, 95 % intervals, comparison of two means."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from worldmodels.data.records import Scores

_Values = np.ndarray[tuple[int], np.dtype[np.float64]]

#: Minimum number of scores for printing an interval: Student's interval is unreliable for few scores of a skewed
#: distribution.
MIN_FOR_INTERVAL = 20


class Comparison(NamedTuple):
    """Difference of the means of two players.

    Attributes:
        difference: Mean of the first minus mean of the second.
        ci95: 95 % interval of the difference (low, high); infinite if a player has fewer than two scores.
        outcome: ``"better"`` or ``"worse"`` (first against second) if the interval excludes zero.
    """

    difference: float
    ci95: tuple[float, float]
    outcome: Literal["better", "worse", "not distinguishable"]


def describe(scores: Sequence[float]) -> Scores:
    """Summarize episode scores.

    Args:
        scores: (N,) one score per episode.

    Returns:
        Sample standard deviation (n - 1) and Student's interval of the mean, clipped to the range of the scores. A
        single score has standard deviation 0 and an interval of width 0.

    Raises:
        ValueError: There are no scores, or one is not finite.
    """
    values = _checked(scores)
    mean = _mean(values)
    std = math.sqrt(_variance(values))
    half = _student(len(values) - 1) * std / len(values) ** 0.5 if len(values) > 1 else 0.0
    low, high = max(mean - half, float(values.min())), min(mean + half, float(values.max()))
    return Scores(scores=values.tolist(), mean=mean, std=std, ci95=(low, high))


def compare(scores: Sequence[float], others: Sequence[float]) -> Comparison:
    """Compare the means of two players by Welch's interval of their difference.

    Args:
        scores: (N,) scores of the first player.
        others: (M,) scores of the second player, independent of the first.

    Raises:
        ValueError: A player has no scores, or one is not finite.
    """
    first, second = _checked(scores), _checked(others)
    difference = _mean(first) - _mean(second)
    if min(len(first), len(second)) < 2:
        return Comparison(difference, (-math.inf, math.inf), "not distinguishable")
    parts = [_variance(values) / len(values) for values in (first, second)]
    variance = float(sum(parts))
    half = 0.0
    if variance > 0:
        freedom = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
        half = _student(freedom) * variance**0.5
    low, high = difference - half, difference + half
    return Comparison(difference, (low, high), "better" if low > 0 else "worse" if high < 0 else "not distinguishable")


def format_number(value: float, scale: float | None = None, *, digits: int = 0, sign: str = "") -> str:
    """Format a score as an integer; a non-integer with a scale below 10 gets two significant digits of that scale.

    Args:
        value: Score.
        scale: Size of the scores next to it; None for that of the score.
        digits: Minimum number of decimals.
        sign: ``"+"`` to show the sign of positive scores.
    """
    scale = abs(value if scale is None else scale)
    if 0 < scale < 10 and value != round(value):
        digits = max(digits, 1 - math.floor(math.log10(scale)))
    return f"{value:{sign}.{digits}f}"


def scale_of(*scores: Scores) -> float:
    """Return the largest absolute mean or standard deviation, the scale of :func:`format_number`."""
    return max(max(abs(one.mean), one.std) for one in scores)


def format_mean(scores: Scores, plus_minus: str = "+-") -> str:
    """Format mean and standard deviation as ``"818 +- 320"``."""
    scale = scale_of(scores)
    return f"{format_number(scores.mean, scale)} {plus_minus} {format_number(scores.std, scale)}"


def format_interval(scores: Scores, *, digits: int = 0, fewest: int = MIN_FOR_INTERVAL) -> str:
    """Format the 95 % interval of :func:`describe` as ``"691 to 944"``; empty for too few scores.

    Args:
        scores: Scores.
        digits: Minimum number of decimals.
        fewest: Minimum number of scores for an interval.
    """
    if len(scores.scores) < fewest:
        return ""
    return " to ".join(format_number(end, scale_of(scores), digits=digits) for end in scores.ci95)


def termination_rates(lengths: Sequence[float], edges: Sequence[float], limit: float) -> list[float | None]:
    """Compute the termination rate (per 1,000 steps) by episode step.

    Args:
        lengths: (N,) length of every episode, in steps.
        edges: (B + 1,) ascending edges of the bins, in steps.
        limit: Length at which episodes are truncated, which is not a termination.

    Returns:
        Rate in each of the B bins; None where fewer than 1,000 steps were played.
    """
    values, rates = np.asarray(lengths, np.float64), []
    for low, high in itertools.pairwise(edges):
        steps = float(np.clip(values - low, 0, high - low).sum())
        ended = int(((values > low) & (values <= high) & (values < limit)).sum())
        rates.append(1000 * ended / steps if steps >= 1000 else None)
    return rates


def _checked(scores: Sequence[float]) -> _Values:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"scores: expected (N,) finite numbers with N > 0, got shape {values.shape}")
    return values


def _mean(values: _Values) -> float:
    """Compute the mean, clipped to the range of the scores so that equal scores give exactly that score."""
    return float(np.clip(values.mean(), values.min(), values.max()))


def _variance(values: _Values) -> float:
    """Compute the sample variance, 0 for equal scores."""
    return float(values.var(ddof=1)) if values.min() < values.max() else 0.0


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table for the terminal: first column left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _student(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's distribution. SciPy is imported here: most commands do without it."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
