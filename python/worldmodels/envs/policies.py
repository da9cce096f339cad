"""Policies that look at nothing: to collect with, to calibrate a game, to ask whether a dream can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

Action = npt.NDArray[np.float32]
#: Makes the endless stream of one episode's actions, each (A,) float32, from the episode's own generator.
Policy = Callable[[np.random.Generator], Iterator[Action]]


def repeated(low: int, high: int, action_size: int = 1) -> Policy:
    """An action uniform in [-1, 1], held for a uniform number of ``low`` to ``high`` steps, then another."""
    if not 1 <= low <= high:
        raise ValueError(f"low, high: expected 1 <= low <= high, got {low}, {high}")

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        while True:
            action = rng.uniform(-1, 1, size=action_size).astype(np.float32)
            for _ in range(rng.integers(low, high + 1)):
                yield action

    return actions


def constant(*values: float) -> Policy:
    """The same action for ever."""

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        while True:
            yield np.array(values, np.float32)

    return actions


def brownian(step: float, action_size: int = 1) -> Policy:
    """A random walk that starts uniform in [-1, 1] and takes normal steps of the given size, held inside [-1, 1]."""
    if not 0 < step < float("inf"):
        raise ValueError(f"step: expected a finite number above zero, got {step}")

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        action = rng.uniform(-1, 1, size=action_size)
        while True:
            yield action.astype(np.float32)
            action = np.clip(action + step * rng.standard_normal(action_size), -1, 1)

    return actions


def ornstein_uhlenbeck(step: float, time_constant: float, action_size: int = 1) -> Policy:
    """An Ornstein-Uhlenbeck process: a random walk that decays towards zero by 1 / ``time_constant`` every step."""
    if not 0 < step < float("inf") or not 1 <= time_constant < float("inf"):
        raise ValueError(
            "step, time_constant: expected a finite step above zero and a time constant from 1, "
            f"got {step}, {time_constant}"
        )

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        action = rng.uniform(-1, 1, size=action_size)
        while True:
            yield action.astype(np.float32)
            action = np.clip(action * (1 - 1 / time_constant) + step * rng.standard_normal(action_size), -1, 1)

    return actions


def transformed(policy: Policy, function: Callable[[Action], Action]) -> Policy:
    """A policy whose every action is put through a function."""

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        return map(function, policy(rng))

    return actions


#: Collects as the authors did in CarRacing: V, M and C are noise, drawn anew for every episode.
RANDOM_AGENT = "random-weight agent"
#: What an agent can do while collecting: play; play with a controller near its own, another one every episode; play,
#: and now and then be pushed aside by an action held for a while.
AGENT = ("agent", "agent with parameter noise", "agent with action bursts")


def parse_policies(
    text: str, policies: Mapping[str, Policy], argument: str = "collect.policies"
) -> list[tuple[str, float]]:
    """Read 'repeat 1-10:4, left:1' as names with shares; the names are those of ``policies`` and of what an agent does.

    Raises:
        ValueError: An unknown name, or a share that is not a positive number.
    """
    known = (*policies, RANDOM_AGENT, *AGENT)
    parsed = []
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition(":"))
        try:
            weight = float(share or 1)
        except ValueError:
            weight = 0.0
        if name not in known or not 0 < weight < math.inf:
            raise ValueError(f"{argument}: expected '<name>:<share>, ...' of {', '.join(known)}, got {part.strip()!r}")
        parsed.append((name, weight))
    if math.isinf(sum(weight for _, weight in parsed)):
        raise ValueError(f"{argument}: expected shares with a finite sum, got {text!r}")
    return parsed
