"""Scores in numbers: mean, standard deviation and the 95 % interval of the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student


def describe(scores: Sequence[float]) -> dict[str, Any]:
    """Describes episode scores.

    Args:
        scores: one number per episode.

    Returns:
        ``{"scores", "mean", "std", "ci95": [low, high]}``: the sample's standard deviation (n - 1) and Student's
        interval of the mean; both are 0 wide for a single score.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"scores: expected (N,) finite numbers with N > 0, got shape {values.shape}")
    mean = float(values.mean())
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    half = float(student.ppf(0.975, len(values) - 1)) * std / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"scores": values.tolist(), "mean": mean, "std": std, "ci95": [mean - half, mean + half]}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a table for the terminal: first column left, the others right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
