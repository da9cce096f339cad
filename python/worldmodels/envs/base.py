"""Interface of vectors of real environments."""

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


class VectorEnv(ABC):
    """Vector of real environments, stepped by index.

    An episode depends on its seed and its actions alone, not on its index or on concurrent episodes. The caller resets
    environments whose episode is over; there is no autoreset.

    Attributes:
        num_envs: Number of environments.
    """

    num_envs: int

    @property
    @abstractmethod
    def action_space(self) -> gymnasium.spaces.Box:
        """Action space of policies and of C, (A,)."""

    @property
    def scaling(self) -> str:
        """Description of the scaling of actions to the bounds of the environment; empty without scaling."""
        return ""

    def prefetch(self, seeds: Iterable[int]) -> None:  # noqa: B027 (most back ends have nothing to prepare)
        """Announce the seeds of the next resets, roughly in this order. Running episodes are abandoned.

        This is a hint, with which some back ends prepare the episodes.
        """

    @abstractmethod
    def reset(self, env_ids: npt.ArrayLike, seeds: Sequence[int]) -> Frame:
        """Start episodes.

        Args:
            env_ids: (n,) distinct indices of environments.
            seeds: n seeds.

        Returns:
            (n, 64, 64, 3) uint8 first frames.

        Raises:
            ContractError: The environment violates the contract of docs/tutorials/own_environment.md.
            GameLostError: A game's process or a worker died.
            RuntimeError: The environment failed in a worker, or this process was forked from the one that created it.
        """

    @abstractmethod
    def send(self, env_ids: npt.ArrayLike, actions: Floats) -> None:
        """Start a step in some environments; :meth:`recv` must follow.

        Args:
            env_ids: (n,) distinct indices of environments.
            actions: (n, A) float32 actions.

        Raises:
            ContractError: The actions have another shape or are not finite.
            GameLostError: A worker died.
            RuntimeError: This process was forked from the one that created the environments.
        """

    @abstractmethod
    def recv(self) -> Step:
        """Wait for the step started by :meth:`send`.

        Returns:
            Frames (n, 64, 64, 3) uint8, rewards (n,) float32, terminated (n,) and truncated (n,) bool, in the order of
            the indices sent.

        Raises:
            ContractError: The environment violates the contract of docs/tutorials/own_environment.md.
            GameLostError: A game's process or a worker died.
            RuntimeError: See :meth:`reset`.
        """

    def step(self, env_ids: npt.ArrayLike, actions: Floats) -> Step:
        """Step some environments: :meth:`send` and :meth:`recv`, whose errors it raises."""
        self.send(env_ids, actions)
        return self.recv()

    @abstractmethod
    def close(self) -> None:
        """Close the environments."""
