"""Real environments, alone and as vectors; :mod:`worldmodels.envs.registration` registers them with Gymnasium."""

from __future__ import annotations


class GameLostError(RuntimeError):
    """The process that plays a game has died, or hung and was ended."""


class ContractError(ValueError):
    """An environment, or a policy, breaks the contract of docs/tutorials/own_environment.md."""
