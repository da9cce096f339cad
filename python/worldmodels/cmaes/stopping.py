"""Stopping conditions of CMA-ES (tutorial, section B.3) and the history of values they need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from worldmodels.support.validation import check_integer, check_real, float64_array, single_number

if TYPE_CHECKING:
    from worldmodels._core import Cmaes

_MAX_HISTORY = 20_000


@dataclass(frozen=True)
class StopCriteria:
    """Limits of the stopping conditions: the arguments of ``CMAES``. A limit may be infinite."""

    ftarget: float
    maxiter: float
    maxfevals: float
    tolfun: float
    tolfunhist: float
    tolx: float
    tolfacupx: float
    tolupsigma: float
    conditioncov: float
    tolstagnation: float
    tolflatfitness: float

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            object.__setattr__(self, name, check_real(name, limit, finite=False))


class Stopping:
    """Stopping conditions: their limits and the history of values.

    Attributes:
        criteria: Limits.
        best: Best value of each of the last 20,000 generations.
        median: Median of the finite values of each of the last 20,000 generations.
        span: Range of the last generation's values, inf if one was not finite.
        flat: Number of consecutive generations whose best three quarters were equal.
    """

    def __init__(self, criteria: StopCriteria) -> None:
        self.criteria = criteria
        self.best: list[float] = []
        self.median: list[float] = []
        self.span = math.inf
        self.flat = 0

    def state(self) -> dict[str, NDArray[np.float64] | int]:
        """Return the state as arrays and integers; the key of a limit is its name after `limit.`."""
        return {
            "flat": self.flat,
            "span": np.array([self.span]),
            "best_history": np.array(self.best),
            "median_history": np.array(self.median),
            **{f"limit.{name}": np.array([limit]) for name, limit in vars(self.criteria).items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Stopping:
        """Restore the limits and the history; ValueError if the state is invalid."""
        limits = {item.name: single_number(state, f"limit.{item.name}") for item in fields(StopCriteria)}
        stopping = cls(StopCriteria(**limits))
        stopping.span = check_real("span", single_number(state, "span"), finite=False)
        stopping.flat = check_integer("flat", state["flat"], 0, 2**63)
        best, median = (float64_array(name, state[name]) for name in ("best_history", "median_history"))
        if best.ndim != 1 or best.shape != median.shape:
            raise ValueError(f"best_history: expected (T,), as median_history, got {best.shape}, {median.shape}")
        for name, history in (("best_history", best), ("median_history", median)):
            if np.isnan(history).any():
                raise ValueError(f"{name}: expected numbers, got nan at [{int(np.isnan(history).argmax())}]")
        stopping.best, stopping.median = list(map(float, best)), list(map(float, median))
        return stopping

    @np.errstate(over="ignore")  # values of any size
    def record(self, ranked: NDArray[np.float64], popsize: int) -> None:
        """Record a generation's finite values, in ascending order, at least one."""
        self.best.append(float(ranked[0]))
        self.median.append(float(np.median(ranked)))
        if len(self.best) > _MAX_HISTORY:
            del self.best[0], self.median[0]
        self.span = float(ranked[-1]) - float(ranked[0]) if len(ranked) == popsize else math.inf
        quarter = int(0.75 * popsize)
        is_flat = len(ranked) > quarter and ranked[0] == ranked[quarter]
        self.flat = self.flat + 1 if is_flat else 0

    @np.errstate(over="ignore", invalid="ignore")  # limits and steps may be of any size
    def reasons(self, core: Cmaes, sigma0: float, popsize: int, evaluations: int, fbest: float) -> dict[str, float]:
        """Return the limits that are met, by name; those of noeffectaxis and noeffectcoord are 0."""
        limit = self.criteria
        mean, sigma, scales = core.mean, core.sigma, core.D
        stds = sigma * np.sqrt(core.variances())
        n = mean.size
        recent = self.best[-(10 + math.ceil(30 * n / popsize)) :]
        recent_span = max(recent) - min(recent) if recent else math.inf
        k = core.generation % n
        along = 0.1 * sigma * scales[k] * core.axis(k)
        met = {
            "ftarget": fbest <= limit.ftarget,
            "maxiter": core.generation >= limit.maxiter,
            "maxfevals": evaluations >= limit.maxfevals,
            "tolfun": max(self.span, recent_span) < limit.tolfun,
            "tolfunhist": len(recent) > 9 and recent_span < limit.tolfunhist,
            "tolx": (stds < limit.tolx).all() and (sigma * np.abs(core.pc) < limit.tolx).all(),
            "tolfacupx": (stds > sigma0 * limit.tolfacupx).any(),
            "tolupsigma": sigma / sigma0 > limit.tolupsigma * scales.max(),
            "conditioncov": scales.max() ** 2 > limit.conditioncov * scales.min() ** 2,
            "tolstagnation": self._stagnates(),
            "tolflatfitness": self.flat > limit.tolflatfitness,
            "noeffectaxis": (mean == mean + along).all(),
            "noeffectcoord": (mean == mean + 0.2 * stds).any(),
        }
        return {reason: getattr(limit, reason, 0.0) for reason, is_met in met.items() if is_met}

    def _stagnates(self) -> bool:
        """Check that the last 30 % of the window have no better median than the first 30 %, for best and median."""
        window = max(self.criteria.tolstagnation, 0.2 * len(self.best))
        if not self.best or len(self.best) < window:
            return False
        part = math.ceil(0.3 * window)
        start = len(self.best) - math.ceil(window)
        return all(
            float(np.median(history[-part:])) >= float(np.median(history[start : start + part]))
            for history in (self.best, self.median)
        )
