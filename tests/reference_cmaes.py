"""The tutorial (Hansen, arXiv 1604.00772) in NumPy, slow and obvious: what the native CMA-ES is held to."""

from __future__ import annotations

import math

import numpy as np


def parameters(n, popsize, separable=False):
    """Table 1, as a dictionary; separable learns C (n + 2) / 3 times as fast."""
    raw = np.log((popsize + 1) / 2) - np.log(np.arange(1, popsize + 1))
    mu = popsize // 2
    mueff = raw[:mu].sum() ** 2 / (raw[:mu] ** 2).sum()
    negative = raw[mu:]
    mueff_negative = negative.sum() ** 2 / (negative**2).sum() if (negative**2).sum() > 0 else 0.0
    cs = (mueff + 2) / (n + mueff + 5)
    c1 = 2 / ((n + 1.3) ** 2 + mueff)
    cmu = min(1 - c1, 2 * (1 / 4 + mueff + 1 / mueff - 2) / ((n + 2) ** 2 + mueff))
    if separable:
        c1 *= (n + 2) / 3
        cmu = min(1 - c1, cmu * (n + 2) / 3)
    least = min(1 + c1 / cmu, 1 + 2 * mueff_negative / (mueff + 2), (1 - c1 - cmu) / (n * cmu))
    weights = np.where(raw >= 0, raw / raw[raw > 0].sum(), 0.0)
    if negative.sum() < 0:
        weights = np.where(raw >= 0, weights, least * raw / -negative.sum())
    return {
        "weights": weights,
        "mu": mu,
        "mueff": mueff,
        "cs": cs,
        "damps": 1 + 2 * max(0, math.sqrt((mueff - 1) / (n + 1)) - 1) + cs,
        "cc": (4 + mueff / n) / (n + 4 + 2 * mueff / n),
        "c1": c1,
        "cmu": cmu,
        "chiN": math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2)),
    }


class ReferenceCMAES:
    """The update of Figure 6, decomposing C every generation; solutions come from outside.

    separable keeps the diagonal of C alone (Ros and Hansen 2008).
    """

    def __init__(self, x0, sigma0, popsize, separable=False):
        self.n = len(x0)
        self.separable = separable
        self.p = parameters(self.n, popsize, separable)
        self.mean = np.array(x0, dtype=float)
        self.sigma = float(sigma0)
        self.C = np.eye(self.n)
        self.pc = np.zeros(self.n)
        self.ps = np.zeros(self.n)
        self.generation = 0

    def tell(self, x, values):
        p, n = self.p, self.n
        eigenvalues, B = np.linalg.eigh(self.C)
        inverse_root = B @ np.diag(eigenvalues**-0.5) @ B.T
        y = (x[np.argsort(values, kind="stable")] - self.mean) / self.sigma
        w = p["weights"]
        y_w = w[: p["mu"]] @ y[: p["mu"]]
        self.mean = self.mean + self.sigma * y_w
        self.ps = (1 - p["cs"]) * self.ps + math.sqrt(p["cs"] * (2 - p["cs"]) * p["mueff"]) * inverse_root @ y_w
        length = np.linalg.norm(self.ps)
        self.sigma *= math.exp(p["cs"] / p["damps"] * (length / p["chiN"] - 1))
        settled = math.sqrt(1 - (1 - p["cs"]) ** (2 * (self.generation + 1)))
        h = 1.0 if length / settled < (1.4 + 2 / (n + 1)) * p["chiN"] else 0.0
        self.pc = (1 - p["cc"]) * self.pc + h * math.sqrt(p["cc"] * (2 - p["cc"]) * p["mueff"]) * y_w
        squares = (y @ inverse_root @ inverse_root * y).sum(axis=1)
        w_circle = np.where(w >= 0, w, w * n / squares)
        delta = (1 - h) * p["cc"] * (2 - p["cc"])
        self.C = (
            (1 + p["c1"] * delta - p["c1"] - p["cmu"] * w.sum()) * self.C
            + p["c1"] * np.outer(self.pc, self.pc)
            + p["cmu"] * (y.T * w_circle) @ y
        )
        if self.separable:
            self.C = np.diag(np.diag(self.C))
        self.generation += 1


def philox4x32(counter, key):
    """Philox4x32-10 on Python integers. Returns four 32-bit words."""
    c, k = list(counter), [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [right >> 32 ^ c[1] ^ k[0], right & 0xFFFFFFFF, left >> 32 ^ c[3] ^ k[1], left & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def normals(seed, generation, row, n):
    """(n,) what row `row` of a generation's z is."""
    out = []
    for pair in range((n + 1) // 2):
        a, b, c, d = philox4x32([pair, row, generation & 0xFFFFFFFF, generation >> 32], seed)
        u = ((a << 32 | b) >> 12) * 2.0**-52 + 2.0**-53
        v = ((c << 32 | d) >> 12) * 2.0**-52
        radius = math.sqrt(-2 * math.log(u))
        out += [radius * math.cos(2 * math.pi * v), radius * math.sin(2 * math.pi * v)]
    return np.array(out[:n])


# The functions of the table: (popsize, N) -> (popsize,)


def sphere(x):
    return (x**2).sum(axis=1)


def ellipsoid(x):
    return (10 ** (6 * np.arange(x.shape[1]) / (x.shape[1] - 1)) * x**2).sum(axis=1)


def rosenbrock(x):
    return (100 * (x[:, :-1] ** 2 - x[:, 1:]) ** 2 + (1 - x[:, :-1]) ** 2).sum(axis=1)


def cigar(x):
    return x[:, 0] ** 2 + 1e6 * (x[:, 1:] ** 2).sum(axis=1)


def tablet(x):
    return 1e6 * x[:, 0] ** 2 + (x[:, 1:] ** 2).sum(axis=1)


def different_powers(x):
    return (np.abs(x) ** (2 + 10 * np.arange(x.shape[1]) / (x.shape[1] - 1))).sum(axis=1)
