"""IPOP- and BIPOP-CMA-ES: starts CMA-ES anew with another population when it has converged or got stuck.

IPOP (Auger and Hansen 2005) doubles the population each time. BIPOP (Hansen 2009) has that regime and one of
small populations and small steps, and starts whichever has spent fewer evaluations.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike

from worldmodels.checks import check_integer, check_seed
from worldmodels.cmaes import CMAES, Array, CMAESResult, StateDict

Scheme = Literal["ipop", "bipop"]

_INNER = "run."  # prefix of the inner run's keys in the state
_COUNTS = (
    *("restarts", "seed", "first_popsize", "runs", "doublings", "spent_large", "spent_small"),
    *("last_large", "evaluations", "iterations", "nonfinite"),
)


class RestartingCMAES:
    """CMA-ES with restarts; the interface of `CMAES`, `popsize` and so the shape of `ask` change from run to
    run.

        es = RestartingCMAES(np.zeros(20), 1.0, scheme="bipop", restarts=8, seed=1, ftarget=1e-9)
        while not es.stop():
            solutions = es.ask()
            es.tell(solutions, [f(x) for x in solutions])

    Args:
        x0: (N,) start of the first run.
        sigma0: step size of the first run and of all large ones.
        scheme: "ipop" or "bipop".
        restarts: of the large regime, after the first run; at most 30.
        spread: runs after the first start from x0 + spread * N(0, I).
        popsize: of the first run.
        seed: of everything, 0 <= seed < 2**64; drawn from the system when None.
        ftarget: stop for good when the best value is at or below.
        maxfevals: stop for good after so many evaluations.
        **options: of `CMAES`, for every run.

    Raises:
        ValueError: an argument has the wrong shape or is out of range.
    """

    def __init__(
        self,
        x0: ArrayLike,
        sigma0: float,
        *,
        scheme: Scheme = "bipop",
        restarts: int = 9,
        spread: float = 0.0,
        popsize: int | None = None,
        seed: int | None = None,
        ftarget: float = -math.inf,
        maxfevals: float = math.inf,
        **options: Any,
    ) -> None:
        if scheme not in get_args(Scheme):
            raise ValueError(f"scheme: expected 'ipop' or 'bipop', got {scheme!r}")
        if not (math.isfinite(spread) and spread >= 0):
            raise ValueError(f"spread: expected a number >= 0, got {spread!r}")
        self._scheme: Scheme = scheme
        self._restarts = check_integer("restarts", restarts, 0, 30)
        self._spread = float(spread)
        self._seed = secrets.randbits(63) if seed is None else check_seed(seed)
        self._ftarget = float(ftarget)
        self._maxfevals = float(maxfevals)
        self._options = dict(options)
        self._es = CMAES(x0, sigma0, popsize=popsize, seed=self._seed, ftarget=ftarget, **options)
        self._x0 = self._es.mean
        self._sigma0 = float(sigma0)
        self._first_popsize = self._es.popsize
        self._runs = 0  # finished ones
        self._doublings = 0  # large runs begun after the first
        self._spent = {"large": 0, "small": 0}
        self._regime = "first"
        self._last_large = 0  # evaluations of the last run that was not small
        self._budget = math.inf  # of the present run
        self._finished: CMAESResult | None = None  # best and sums of the finished runs

    @property
    def popsize(self) -> int:
        """Solutions of this generation."""
        return self._es.popsize

    @property
    def mean(self) -> Array:
        """(N,) float64, mean of the present run."""
        return self._es.mean

    @property
    def sigma(self) -> float:
        """Step size of the present run."""
        return self._es.sigma

    @property
    def repeats(self) -> int:
        """How often to evaluate each solution of this generation; 1 without `uncertainty`."""
        return self._es.repeats

    @property
    def runs(self) -> int:
        """Finished runs."""
        return self._runs

    @property
    def result(self) -> CMAESResult:
        """Best and sums over all runs; xfavorite and stds are those of the present run."""
        now = self._es.result
        before = self._finished
        if before is None:
            return now
        best = before if before.fbest <= now.fbest else now
        return now._replace(
            xbest=best.xbest,
            fbest=best.fbest,
            evaluations=before.evaluations + now.evaluations,
            iterations=before.iterations + now.iterations,
            nonfinite=before.nonfinite + now.nonfinite,
        )

    def ask(self) -> Array:
        """Draws this generation's solutions, (popsize, N) float64. See `CMAES.ask`."""
        return self._es.ask()

    def tell(self, solutions: ArrayLike, values: ArrayLike) -> None:
        """Updates the present run, and starts the next one when it is over. See `CMAES.tell`."""
        self._es.tell(solutions, values)
        over = self._es.stop() or self._es.result.evaluations >= self._budget
        if over and not self.stop():
            self._start_next()

    def stop(self) -> dict[str, float]:
        """Why all is over: ftarget, maxfevals, or restarts when there are no more; empty otherwise."""
        result = self.result
        reasons: dict[str, float] = {}
        if result.fbest <= self._ftarget:
            reasons["ftarget"] = self._ftarget
        if result.evaluations >= self._maxfevals:
            reasons["maxfevals"] = self._maxfevals
        if self._es.stop() and self._regime != "small" and self._doublings >= self._restarts:
            reasons["restarts"] = self._restarts
        return reasons

    def _start_next(self) -> None:
        result = self.result
        evaluations = self._es.result.evaluations
        self._finished = result
        self._runs += 1
        if self._regime == "small":
            self._spent["small"] += evaluations
        else:
            self._last_large = evaluations
            if self._regime == "large":  # the first run belongs to neither regime
                self._spent["large"] += evaluations
        random = np.random.Generator(np.random.Philox(key=[self._seed, self._runs]))
        start = self._x0 + self._spread * random.standard_normal(self._x0.size)
        seed = int(random.integers(2**63))
        largest = self._first_popsize * 2**self._doublings
        popsize, sigma0, self._budget = 2 * largest, self._sigma0, math.inf
        small = self._scheme == "bipop" and self._doublings > 0 and self._spent["small"] < self._spent["large"]
        if small:
            self._regime = "small"
            u = random.random()
            ratio = 0.5 * largest / self._first_popsize
            popsize = int(self._first_popsize * ratio ** (u * u))
            sigma0 *= 10 ** (-2 * random.random())
            self._budget = self._last_large / 2
        else:
            self._regime = "large"
            self._doublings += 1
        self._es = CMAES(start, sigma0, popsize=popsize, seed=seed, ftarget=self._ftarget, **self._options)

    def state_dict(self) -> StateDict:
        """Everything needed to go on, as `CMAES.state_dict`; the present run is in it under `run.`."""
        best = self._finished
        state: StateDict = {
            "scheme": self._scheme,
            "restarts": self._restarts,
            "spread": self._spread,
            "seed": self._seed,
            "ftarget": np.array([self._ftarget]),
            "maxfevals": np.array([self._maxfevals]),
            "x0": self._x0,
            "sigma0": self._sigma0,
            "first_popsize": self._first_popsize,
            "runs": self._runs,
            "doublings": self._doublings,
            "spent_large": self._spent["large"],
            "spent_small": self._spent["small"],
            "regime": self._regime,
            "last_large": self._last_large,
            "budget": np.array([self._budget]),
            "xbest": np.zeros((0, self._x0.size)) if best is None or best.xbest is None else best.xbest[None],
            "fbest": np.array([math.inf if best is None else best.fbest]),
            "evaluations": 0 if best is None else best.evaluations,
            "iterations": 0 if best is None else best.iterations,
            "nonfinite": 0 if best is None else best.nonfinite,
        }
        return state | {_INNER + key: value for key, value in self._es.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; the `options` of the runs to come stay those given to this object.

        Raises:
            ValueError: a missing key, another N, or an array of the wrong shape. This object is then unchanged.
        """
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(f"state: expected the keys {missing}")
        scheme, regime = str(state["scheme"]), str(state["regime"])
        if scheme not in get_args(Scheme) or regime not in ("first", "large", "small"):
            raise ValueError(f"state: expected a known scheme and regime, got {scheme!r} and {regime!r}")
        counts = {name: check_integer(name, state[name], 0, 2**64 - 1) for name in _COUNTS}
        infinite = {name: float(state[name][0]) for name in ("ftarget", "maxfevals", "budget", "fbest")}
        x0, xbest = (np.array(state[name], dtype=np.float64) for name in ("x0", "xbest"))
        if x0.shape != self._x0.shape or xbest.shape not in ((0, x0.size), (1, x0.size)):
            raise ValueError(f"state: expected N = {self._x0.size}, got x0 {x0.shape} and xbest {xbest.shape}")
        spread, sigma0 = float(state["spread"]), float(state["sigma0"])
        self._es.load_state_dict(
            {key.removeprefix(_INNER): value for key, value in state.items() if key.startswith(_INNER)}
        )

        self._scheme, self._regime = cast(Scheme, scheme), regime
        self._restarts, self._seed = counts["restarts"], counts["seed"]
        self._spread, self._sigma0, self._x0 = spread, sigma0, x0
        self._ftarget, self._maxfevals = infinite["ftarget"], infinite["maxfevals"]
        self._first_popsize, self._runs = counts["first_popsize"], counts["runs"]
        self._doublings, self._last_large = counts["doublings"], counts["last_large"]
        self._spent = {"large": counts["spent_large"], "small": counts["spent_small"]}
        self._budget = infinite["budget"]
        self._finished = None
        if self._runs:
            self._finished = self._es.result._replace(
                xbest=xbest[0] if len(xbest) else None,
                fbest=infinite["fbest"],
                evaluations=counts["evaluations"],
                iterations=counts["iterations"],
                nonfinite=counts["nonfinite"],
            )
