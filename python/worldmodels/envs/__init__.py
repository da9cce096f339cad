"""Real environments and vectors of them; :mod:`worldmodels.envs.registration` registers them with Gymnasium."""

from __future__ import annotations


class GameLostError(RuntimeError):
    """The process of a game died, or hung and was killed."""


class ContractError(ValueError):
    """An environment or a policy violates the contract of docs/tutorials/own_environment.md."""
