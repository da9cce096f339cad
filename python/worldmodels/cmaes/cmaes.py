"""CMA-ES (Hansen, arXiv 1604.00772): ask for solutions, tell their values, minimize.

The distribution is part of the native core (`csrc/core/cmaes.cpp`). This module validates arguments, ranks values, and
stores the best solution and the state.
"""

from __future__ import annotations

import copy
import math
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldmodels._core import Cmaes
from worldmodels.cmaes.stopping import StopCriteria, Stopping
from worldmodels.support.forks import Lock
from worldmodels.support.processes import defer_sigint
from worldmodels.support.validation import (
    check_integer,
    check_real,
    check_seed,
    check_threads,
    float64_array,
    single_flag,
    single_number,
)

Array = NDArray[np.float64]
StateDict = dict[str, NDArray[Any] | int | float | str | bool]

_FORMAT = 1
_ARRAYS = ("mean", "ps", "pc", "covariance", "axes", "scales", "pending_z", "pending_y", "pending_x")
_MAX_SOLUTIONS = 2**31 - 1
_MAX_STORED = 2**26  # bound on the numbers of a generation in a stored state
_DIRECTIONS = 4  # random directions that show whether stored axes are orthonormal
_MAX_SKEW = 1e-6


class CMAESResult(NamedTuple):
    """Result of a run so far.

    Attributes:
        xbest: (N,) float64 best solution; None before the first finite value.
        fbest: Value of ``xbest``, including the penalty of `weight_decay`; inf before the first finite value.
        evaluations: Number of values, including those that were not finite.
        iterations: Number of completed generations.
        xfavorite: (N,) float64 mean of the distribution, the better estimate if values are noisy.
        stds: (N,) float64 standard deviation of each coordinate.
        nonfinite: Number of values that were NaN or infinite.
    """

    xbest: Array | None
    fbest: float
    evaluations: int
    iterations: int
    xfavorite: Array
    stds: Array
    nonfinite: int


class CMAES:
    """Covariance matrix adaptation evolution strategy with active (negative) weights; minimizes.

        es = CMAES(np.zeros(1088), 0.1, popsize=64, seed=1)
        while not es.stop():
            solutions = es.ask()
            es.tell(solutions, [f(x) for x in solutions])

    Results are bit-identical for the same seed, any `num_threads` and the SIMD levels "avx2", "avx512", "avx512_bf16"
    and "neon". "baseline" has no fused multiply-add and rounds differently. SciPy's LAPACK decomposes C in one thread,
    so that OPENBLAS_NUM_THREADS changes neither results nor time. Another processor or SciPy version can round
    differently. Concurrent calls are serialized.

    A pickle or a deep copy is independent of its original and continues bit-identically, also between `ask` and
    `tell`. `state_dict` is the same state for files.

    Args:
        x0: (N,) initial mean, finite.
        sigma0: Initial step size, positive.
        popsize: Population size lambda, at least 2; None for 4 + floor(3 ln N) (equation 48).
        seed: Seed of the random stream, 0 <= seed < 2**64; None for one from the operating system.
        num_threads: Number of threads; None for all available CPUs, at most OMP_NUM_THREADS. Changes no result.
        active: Whether the worse half of the population has negative weights.
        separable: Whether C stays diagonal (Ros and Hansen 2008): O(N) memory and time, for large N.
        gap: Generations between two decompositions of C; None for 1 / (2 N (c1 + cmu)), as in Hansen's purecma (the
            tutorial's section B.2 has 10 in place of 2). A diagonal C is decomposed every generation.
        weight_decay: Factor of the penalty mean(x**2), which is added to the value of x.
        ftarget: Stop if the best value is at or below this.
        maxiter: Stop after this many generations; None for 100 + 150 (N + 3)^2 / sqrt(popsize).
        maxfevals: Stop after this many evaluations.
        tolfun: Stop if the range of this generation's values and of the recent best values is below this.
        tolfunhist: Stop if the range of the recent best values is below this.
        tolx: Stop if all standard deviations and sigma * pc are below this.
        tolfacupx: Stop if a standard deviation exceeds this times sigma0 (sigma0 was far too small).
        tolupsigma: Stop if sigma / sigma0 exceeds this times the longest axis of C.
        conditioncov: Stop if the condition number of C exceeds this.
        tolstagnation: Stop after this many generations without progress of best and median, or after a fifth of all
            generations if that is more; None for 100 + 100 N^1.5 / popsize, as in pycma. Above 20,000 it never stops.
        tolflatfitness: Stop after more than this many consecutive generations whose best three quarters are equal.

    Raises:
        ValueError: An argument has the wrong shape or is out of range.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        x0: ArrayLike,
        sigma0: float,
        *,
        popsize: int | None = None,
        seed: int | None = None,
        num_threads: int | None = None,
        active: bool = True,
        separable: bool = False,
        gap: float | None = None,
        weight_decay: float = 0.0,
        ftarget: float = -math.inf,
        maxiter: float | None = None,
        maxfevals: float = math.inf,
        tolfun: float = 1e-11,
        tolfunhist: float = 1e-12,
        tolx: float = 1e-11,
        tolfacupx: float = 1e3,
        tolupsigma: float = 1e20,
        conditioncov: float = 1e14,
        tolstagnation: float | None = None,
        tolflatfitness: float = 3,
    ) -> None:
        mean = float64_array("x0", x0)
        if mean.ndim != 1 or mean.size == 0:
            raise ValueError(f"x0: expected (N,) with N >= 1, got {mean.shape}")
        if not np.isfinite(mean).all():
            place = int(np.argmin(np.isfinite(mean)))
            raise ValueError(f"x0: expected finite numbers, got {mean[place]} at [{place}]")
        self._sigma0 = _checked_sigma("sigma0", sigma0)
        n = mean.size
        if popsize is None:
            popsize = 4 + math.floor(3 * math.log(n))  # (48)
        popsize = check_integer("popsize", popsize, 2, _MAX_SOLUTIONS)
        flags = {"active": active, "separable": separable}
        seed = secrets.randbits(63) if seed is None else check_seed(seed)
        self.num_threads = check_threads(num_threads)
        self._seed = seed
        self._active, self._separable = (single_flag(flags, name) for name in flags)
        self._weight_decay = check_real("weight_decay", weight_decay, 0)
        self._stopping = Stopping(
            StopCriteria(
                ftarget=ftarget,
                maxiter=100 + 150 * (n + 3) ** 2 // popsize**0.5 if maxiter is None else maxiter,
                maxfevals=maxfevals,
                tolfun=tolfun,
                tolfunhist=tolfunhist,
                tolx=tolx,
                tolfacupx=tolfacupx,
                tolupsigma=tolupsigma,
                conditioncov=conditioncov,
                tolstagnation=100 + 100 * n**1.5 / popsize if tolstagnation is None else tolstagnation,
                tolflatfitness=tolflatfitness,
            )
        )
        self._lock = Lock()
        self._core = Cmaes(mean, self._sigma0, popsize, seed, self._active, self._separable)
        if gap is not None:
            self._core.gap = check_real("gap", gap, 0, finite=False)
        self._read_parameters()

        self._evaluations = 0
        self._nonfinite = 0
        self._xbest: Array | None = None
        self._fbest = math.inf

    def __repr__(self) -> str:
        return (
            f"CMAES(n={self._core.mean.size}, popsize={self.popsize}, sigma={self.sigma:.6g}, seed={self._seed}, "
            f"iterations={self.iterations}, active={self._active}, separable={self._separable}, "
            f"num_threads={self.num_threads})"
        )

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {**self.__dict__, "_core": self._state_dict(), "_stopping": copy.deepcopy(self._stopping)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._core = _restored_core(state["_core"])

    def _read_parameters(self) -> None:
        """Set the strategy parameters of the tutorial's Table 1 under their usual names."""
        parameters = self._core.parameters
        self.weights: Array = parameters["weights"]
        self.mu: int = parameters["mu"]
        self.mueff: float = parameters["mueff"]
        self.c1: float = parameters["c1"]
        self.cmu: float = parameters["cmu"]
        self.cc: float = parameters["cc"]
        self.cs: float = parameters["cs"]
        self.damps: float = parameters["damps"]
        self.chiN: float = parameters["chiN"]

    # The distribution

    @property
    def popsize(self) -> int:
        """Lambda, the number of solutions of a generation."""
        return len(self.weights)

    @property
    def mean(self) -> Array:
        """(N,) float64, mean of the distribution."""
        return self._core.mean

    @property
    def sigma(self) -> float:
        """Step size."""
        return self._core.sigma

    @property
    def stds(self) -> Array:
        """(N,) float64, sigma * sqrt(diag(C))."""
        return self.sigma * np.sqrt(self._core.variances())

    @property
    def C(self) -> Array:
        """(N, N) float64, the covariance matrix without sigma**2."""
        lower = self._core.get_state()["covariance"]
        return np.diag(lower) if self._separable else np.tril(lower) + np.tril(lower, -1).T

    @property
    def ps(self) -> Array:
        """(N,) float64, evolution path of the step size."""
        return self._core.ps

    @property
    def pc(self) -> Array:
        """(N,) float64, evolution path of the covariance matrix."""
        return self._core.pc

    @property
    def gap(self) -> float:
        """Generations between two decompositions of C."""
        return self._core.gap

    @property
    def seed(self) -> int:
        """Seed of the random stream."""
        return self._seed

    @property
    def iterations(self) -> int:
        """Number of completed generations."""
        return self._core.generation

    @property
    def result(self) -> CMAESResult:
        """Result of the run so far."""
        with self._lock:
            return CMAESResult(
                xbest=None if self._xbest is None else self._xbest.copy(),
                fbest=self._fbest,
                evaluations=self._evaluations,
                iterations=self.iterations,
                xfavorite=self.mean,
                stds=self.stds,
                nonfinite=self._nonfinite,
            )

    # Ask and tell

    def ask(self) -> Array:
        """Sample the solutions of this generation.

        Until `tell` is called, further calls return the same solutions.

        Returns:
            (popsize, N) float64, a copy.

        Raises:
            RuntimeError: C has no finite decomposition, the distribution reaches beyond float64, or several threads
                are wanted in a forked process.
            KeyboardInterrupt: Ctrl-C was pressed; raised after the decomposition of C, which takes O(N^3).
        """
        x = self._core.ask(self.num_threads)
        if not np.isfinite(x).all():
            raise RuntimeError(f"ask: expected finite solutions, got some beyond float64 (sigma {self.sigma:g})")
        return x

    def tell(self, solutions: ArrayLike, values: ArrayLike) -> None:
        """Update the distribution.

        Values that are NaN or infinite rank last and are counted. A generation without finite values changes the
        counters alone. Equal values rank by row; the rows of `ask` are exchangeable, so this equals a random order.
        Solutions from other sources are injected: steps longer than a typical sample are shortened (Hansen 2011).

        Args:
            solutions: (popsize, N) finite solutions, usually those of `ask`.
            values: (popsize,) values to minimize.

        Raises:
            ValueError: A shape is wrong, or a solution is not finite.
            TypeError: The values are not real numbers.
            RuntimeError: `ask` was not called since the last `tell`.
            KeyboardInterrupt: Ctrl-C was pressed; raised after the update.
        """
        x = float64_array("solutions", solutions)
        f = float64_array("values", values)
        popsize, n = self.popsize, self._core.mean.size
        if x.shape != (popsize, n):
            raise ValueError(f"solutions: expected ({popsize}, {n}), got {x.shape}")
        if f.shape != (popsize,):
            raise ValueError(f"values: expected {(popsize,)}, got {f.shape}")
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise ValueError(f"solutions: expected finite numbers, got {x[row, column]} at [{row}, {column}]")
        with self._lock, defer_sigint():
            self._tell(x, f)

    def _tell(self, x: Array, f: Array) -> None:
        """Rank validated values and update the distribution."""
        if not self._core.asked:
            raise RuntimeError("tell: called before ask")
        nonfinite = f.size - int(np.isfinite(f).sum())
        with np.errstate(invalid="ignore", over="ignore"):  # values beyond float64 rank last
            if self._weight_decay:
                f = f + self._weight_decay * np.mean(np.square(x), axis=1)
        f = np.where(np.isfinite(f), f, math.inf)
        popsize = self.popsize
        order = np.argsort(f, kind="stable")
        ranked = f[order[: int(np.isfinite(f).sum())]]
        if len(ranked):
            rank = np.empty(popsize, dtype=np.int64)
            rank[order] = np.arange(popsize)
            self._core.tell(x, rank, self.num_threads)
            self._stopping.record(ranked, popsize)
        else:
            self._core.skip()
        self._evaluations += f.size
        self._nonfinite += nonfinite
        if len(ranked) and ranked[0] < self._fbest:
            self._fbest = float(ranked[0])
            self._xbest = x[order[0]].copy()

    # Stopping

    def stop(self) -> dict[str, float]:
        """Check the stopping conditions.

        Returns:
            Dictionary of the conditions that are met and their limits; empty if the run should continue. Conditions
            have the names of the options, or are noeffectaxis and noeffectcoord: adding 0.1 (0.2) standard deviations
            along an axis of C (a coordinate) does not change the mean. (Tutorial, section B.3; limits as in pycma.)
        """
        with self._lock:
            if self.iterations == 0:
                return {}
            return self._stopping.reasons(self._core, self._sigma0, self.popsize, self._evaluations, self._fbest)

    # State

    def state_dict(self) -> StateDict:
        """Return the complete state, from which a run continues bit-identically.

        Returns:
            A flat dictionary of NumPy arrays and plain numbers. Numbers that may be infinite are arrays of shape (1,),
            so that the others survive strict JSON. `num_threads` is not included.
        """
        with self._lock:
            return self._state_dict()

    def _state_dict(self) -> StateDict:
        n = self._core.mean.size
        state: StateDict = dict(self._core.get_state())
        state |= {
            "format": _FORMAT,
            "n": n,
            "popsize": self.popsize,
            "seed": self._seed,
            "sigma0": self._sigma0,
            "active": self._active,
            "separable": self._separable,
            "weight_decay": self._weight_decay,
            "gap": np.array([self._core.gap]),
            "evaluations": self._evaluations,
            "nonfinite": self._nonfinite,
            "xbest": np.zeros((0, n)) if self._xbest is None else self._xbest[None].copy(),
            "fbest": np.array([self._fbest]),
        }
        return state | self._stopping.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a run, including its options and seed; only `num_threads` is kept.

        Args:
            state: Dictionary returned by `state_dict`, possibly stored and read again.

        Raises:
            TypeError, ValueError: A key is missing, N differs, or a value is invalid. The state is unchanged.
        """
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(f"state: expected the keys {missing}")
        if check_integer("format", state["format"], 0, 2**63) != _FORMAT:
            raise ValueError(f"state: expected format {_FORMAT}, got {state['format']}")
        n = self._core.mean.size
        if check_integer("n", state["n"], 1, 2**63) != n:
            raise ValueError(f"state: expected N = {n}, got {state['n']}")
        most_rows = max(_MAX_STORED // n, self.popsize, 2)
        check_integer("popsize", state["popsize"], 2, min(most_rows, _MAX_SOLUTIONS))
        if (shape := np.shape(state["mean"])) != (n,):
            raise ValueError(f"mean: expected ({n},), got {shape}")
        core = _restored_core(state)
        weight_decay = check_real("weight_decay", state["weight_decay"], 0)
        stopping = Stopping.from_state(state)
        evaluations = check_integer("evaluations", state["evaluations"], 0, 2**63)
        nonfinite = check_integer("nonfinite", state["nonfinite"], 0, evaluations)
        fbest, xbest = single_number(state, "fbest"), float64_array("xbest", state["xbest"])
        if xbest.shape not in ((0, n), (1, n)):
            raise ValueError(f"xbest: expected (0, {n}) or (1, {n}), got {xbest.shape}")

        if not (xbest.size == 0 or np.isfinite(xbest).all()) or math.isnan(fbest):
            raise ValueError("xbest: expected finite numbers and a value fbest that is a number")

        with self._lock, defer_sigint():
            self._core = core
            self._read_parameters()
            self._seed, self._sigma0 = int(state["seed"]), float(state["sigma0"])
            self._active, self._separable = bool(state["active"]), bool(state["separable"])
            self._weight_decay = weight_decay
            self._stopping = stopping
            self._evaluations, self._nonfinite = evaluations, nonfinite
            self._xbest = xbest[0].copy() if len(xbest) else None
            self._fbest = fbest


def _restored_core(state: Mapping[str, Any]) -> Cmaes:
    """Build the native distribution of a state; ValueError or TypeError if an entry is invalid."""
    popsize = check_integer("popsize", state["popsize"], 2, _MAX_SOLUTIONS)
    seed, sigma0 = check_seed(state["seed"]), _checked_sigma("sigma0", state["sigma0"])
    active, separable = single_flag(state, "active"), single_flag(state, "separable")
    core = Cmaes(float64_array("mean", state["mean"]), sigma0, popsize, seed, active, separable)
    numbers = {name: check_integer(name, state[name], 0, 2**63 - 1) for name in ("generation", "decomposed_at")}
    arrays = {name: float64_array(name, state[name]) for name in _ARRAYS}
    core.set_state({**arrays, **numbers, "sigma": _checked_sigma("sigma", state["sigma"])})
    core.gap = check_real("gap", single_number(state, "gap"), 0, finite=False)
    axes = arrays["axes"]
    directions = np.random.default_rng(0).standard_normal((axes.shape[1], _DIRECTIONS))
    if axes.size and not np.allclose(axes.T @ (axes @ directions), directions, rtol=0, atol=_MAX_SKEW):
        raise ValueError("axes: expected orthonormal rows, got rows that are not orthonormal")
    return core


def _checked_sigma(name: str, sigma: Any) -> float:
    """Validate a positive, finite step size."""
    number = check_real(name, sigma)
    if number <= 0:
        raise ValueError(f"{name}: expected a positive number, got {number:g}")
    return number
