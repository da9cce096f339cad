"""Open-loop policies: for collecting episodes, calibrating a game, and checking dreams against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from worldmodels.models.controller import one_hot

Action = npt.NDArray[np.float32]
#: Open-loop policy: maps the generator of an episode to an endless stream of actions, each (A,) float32.
Policy = Callable[[np.random.Generator], Iterator[Action]]


def repeated(low: int, high: int, action_size: int = 1) -> Policy:
    """Create the policy of a random action in [-1, 1], repeated for a random number of ``low`` to ``high`` steps.

    Raises:
        ValueError: The numbers of steps are out of order.
    """
    if not 1 <= low <= high:
        raise ValueError(f"low, high: expected 1 <= low <= high, got {low}, {high}")

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        while True:
            action = rng.uniform(-1, 1, size=action_size).astype(np.float32)
            for _ in range(rng.integers(low, high + 1)):
                yield action

    return actions


def repeated_choices(low: int, high: int, choices: tuple[int, ...]) -> Policy:
    """Create the policy of random discrete actions, repeated for a random number of ``low`` to ``high`` steps.

    Args:
        low: Fewest steps.
        high: Most steps.
        choices: Number of values of each discrete action; all are equally likely.

    Returns:
        Policy of concatenated one-hot vectors.

    Raises:
        ValueError: The numbers of steps are out of order.
    """
    if not 1 <= low <= high:
        raise ValueError(f"low, high: expected 1 <= low <= high, got {low}, {high}")

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        while True:
            action = one_hot(rng.uniform(size=sum(choices)), choices)
            for _ in range(rng.integers(low, high + 1)):
                yield action

    return actions


def constant(*values: float) -> Policy:
    """Create the policy of a constant action."""

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        while True:
            yield np.array(values, np.float32)

    return actions


def sweeping(crossing: int, slowest: int) -> Policy:
    """Create the policy of sweeps in alternating directions at random speeds.

    The action of a sweep is -1 or 1 in every k-th step, and 0 in between; k is log-uniform in 1 to ``slowest``. A sweep
    lasts for 0.3 to 1.2 times the k * ``crossing`` steps in which it crosses the range.

    Args:
        crossing: Pushes that cross the range of positions.
        slowest: Largest number of steps per push.

    Raises:
        ValueError: A number is not positive.
    """
    if crossing < 1 or slowest < 1:
        raise ValueError(f"crossing, slowest: expected positive numbers, got {crossing}, {slowest}")

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        push, pause = np.array([rng.choice([-1, 1])], np.float32), np.zeros(1, np.float32)
        while True:
            per_push = float(slowest ** rng.uniform())
            owed = 0.0
            for _ in range(math.ceil(rng.uniform(0.3, 1.2) * crossing * per_push)):
                owed += 1 / per_push
                yield push if owed >= 1 else pause
                owed %= 1
            push = -push

    return actions


def brownian(step: float, action_size: int = 1) -> Policy:
    """Create a random walk that starts uniform in [-1, 1], with normal steps of scale ``step``, clipped to [-1, 1].

    Raises:
        ValueError: The step is not a finite number above zero.
    """
    if not 0 < step < float("inf"):
        raise ValueError(f"step: expected a finite number above zero, got {step}")

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        action = rng.uniform(-1, 1, size=action_size)
        while True:
            yield action.astype(np.float32)
            action = np.clip(action + step * rng.standard_normal(action_size), -1, 1)

    return actions


def ornstein_uhlenbeck(step: float, time_constant: float, action_size: int = 1) -> Policy:
    """Create an Ornstein-Uhlenbeck process: a random walk that decays to zero by 1 / ``time_constant`` per step.

    Raises:
        ValueError: The step is not a finite number above zero, or the time constant is not a finite one from 1.
    """
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
    """Apply a function to every action of a policy."""

    def actions(rng: np.random.Generator) -> Iterator[Action]:
        return map(function, policy(rng))

    return actions


#: Policy of the original code for CarRacing: V, M and C with random weights, sampled for every episode.
RANDOM_AGENT = "random-weight agent"
#: Policies of a trained agent: unchanged; with noise on C's parameters, sampled for every episode; with bursts of a
#: repeated random action.
AGENT = ("agent", "agent with parameter noise", "agent with action bursts")


def parse_policies(
    text: str, policies: Mapping[str, Policy], argument: str = "collect.policies"
) -> list[tuple[str, float]]:
    """Parse 'repeat 1-10:4, left:1' into names and weights.

    Args:
        text: Policies and their weights; a missing weight is 1.
        policies: Open-loop policies by name; the policies of agents are known as well.
        argument: Name of the setting in error messages.

    Raises:
        ValueError: A name is unknown, or a weight is not a positive number.
    """
    known = (*policies, RANDOM_AGENT, *AGENT)
    parsed = []
    for part in text.split(","):
        name, _, number = (half.strip() for half in part.partition(":"))
        try:
            weight = float(number or 1)
        except ValueError:
            weight = 0.0
        if name not in known or not 0 < weight < math.inf:
            raise ValueError(f"{argument}: expected '<name>:<weight>, ...' of {', '.join(known)}, got {part.strip()!r}")
        parsed.append((name, weight))
    if math.isinf(sum(weight for _, weight in parsed)):
        raise ValueError(f"{argument}: expected weights with a finite sum, got {text!r}")
    return parsed
