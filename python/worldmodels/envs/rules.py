"""Rules of a task for its environment; does not import Gymnasium."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodels.models.controller import Squash


@dataclass(frozen=True)
class Rules:
    """Rules of a task for its environment.

    Attributes:
        squash: Action convention of the task's policies and of C. ``"tanh"``: [-1, 1] in every dimension, scaled to the
            bounds of the environment. ``"carracing"``: steering, gas and brake. ``"argmax"``: one-hot vectors of
            discrete actions.
        max_steps: Maximum length of an episode, in steps; longer ones are truncated.
        choices: Number of values of each discrete action, with squash ``"argmax"``.
    """

    squash: Squash
    max_steps: int
    choices: tuple[int, ...] = ()

    def limit(self, max_steps: int | None) -> int:
        """Return the smaller of ``max_steps`` and the task's limit."""
        return self.max_steps if max_steps is None else min(max_steps, self.max_steps)
