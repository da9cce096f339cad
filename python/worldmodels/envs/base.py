"""What a batch of real environments is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs.preprocessing import Frame

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Step = tuple[Frame, Floats, Bools, Bools]


class Batch(ABC):
    """Slots in which episodes are played side by side.

    An episode depends on its seed and on its actions, not on its slot and not on what else is played. Whoever plays
    resets a slot that is over; nothing is reset by itself, and a slot that is over is not stepped.

    Attributes:
        slots: number of them.
    """

    slots: int

    @property
    @abstractmethod
    def action_space(self) -> gymnasium.spaces.Box:
        """Action space of policies and of C, (A,)."""

    @property
    def scaling(self) -> str:
        """How actions are scaled to the bounds of the environment, in words; empty where they are not."""
        return ""

    def expect(self, seeds: Iterable[int]) -> None:  # noqa: B027 (most have nothing to prepare)
        """Says which episodes will be reset to, in about this order, and that all slots are given up until then.

        Only a hint: some back ends prepare the episodes.
        """

    @abstractmethod
    def reset(self, slots: npt.ArrayLike, seeds: Sequence[int]) -> Frame:
        """Starts episodes: (n,) different slots and their n seeds to first frames (n, 64, 64, 3) uint8."""

    @abstractmethod
    def send(self, slots: npt.ArrayLike, actions: Floats) -> None:
        """Starts one step in some slots; :meth:`receive` comes next.

        Args:
            slots: (n,) different slots.
            actions: (n, A) float32.
        """

    @abstractmethod
    def receive(self) -> Step:
        """Waits for the step that was started.

        Returns:
            frames (n, 64, 64, 3) uint8, rewards (n,) float32, terminated (n,) and truncated (n,) bool, in the order of
            the slots that were sent.
        """

    def step(self, slots: npt.ArrayLike, actions: Floats) -> Step:
        """Plays one step in some slots: :meth:`send` and :meth:`receive`."""
        self.send(slots, actions)
        return self.receive()

    @abstractmethod
    def close(self) -> None:
        """Ends the environments."""
