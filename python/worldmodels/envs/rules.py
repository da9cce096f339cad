"""The rules by which a task plays its environment; imports no Gymnasium."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodels.models.controller import Squash


@dataclass(frozen=True)
class Rules:
    """How a task plays its environment.

    Attributes:
        squash: actions of the task's policies and of C. ``"tanh"``: [-1, 1] in every dimension, scaled to the bounds
            of the environment. ``"carracing"``: steering, gas and brake.
        max_steps: longest episode, in steps; a longer one is truncated.
    """

    squash: Squash
    max_steps: int

    def limit(self, max_steps: int | None) -> int:
        """The smaller of two limits of an episode's length, where there are two."""
        return self.max_steps if max_steps is None else min(max_steps, self.max_steps)
