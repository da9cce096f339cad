"""Policies that look at nothing: to collect with, to calibrate a game, to ask whether a dream can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Action = npt.NDArray[np.float32]
#: Makes the endless stream of one episode's actions, each (1,) float32, from the episode's own generator.
Policy = Callable[[np.random.Generator], Iterator[Action]]


def held(low: int, high: int) -> Policy:
    """An action uniform in [-1, 1], held for a uniform number of ``low`` to ``high`` steps, then another."""
    if not 1 <= low <= high:
        raise ValueError(f"low, high: expected 1 <= low <= high, got {low}, {high}")

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        while True:
            action = rng.uniform(-1, 1, size=1).astype(np.float32)
            for _ in range(rng.integers(low, high + 1)):
                yield action

    return actions


def constant(value: float) -> Policy:
    """The same action for ever."""

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        while True:
            yield np.full(1, value, np.float32)

    return actions


#: The fixed policies of TakeCover by name.
FIXED: dict[str, Policy] = {
    "uniform": held(1, 1),
    "held 1-10": held(1, 10),
    "held 1-60": held(1, 60),
    "never": constant(0.0),
    "left": constant(-1.0),
    "right": constant(1.0),
}
#: What an agent can do while collecting: play; play with a controller near its own, another one every episode; play,
#: and now and then be pushed aside by an action held for a while.
AGENT = ("agent", "agent perturbed", "agent interrupted")
#: The paper's collecting policy, and random play.
HOLDING, RANDOM = "held 1-10", "uniform"
