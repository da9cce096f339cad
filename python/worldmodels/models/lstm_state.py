"""LSTM state of M for many episodes at once, advanced by the native core."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels import _core
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.native_model import native_model
from worldmodels.support.forks import Lock
from worldmodels.support.native import Native
from worldmodels.support.validation import (
    any_array,
    check_integer,
    check_threads,
    distinct_env_ids,
    exact_array,
    float_array,
)

Floats = npt.NDArray[np.float32]


class LSTMState:
    """LSTM state of every environment, advanced by given latents and actions. The MDN head is not evaluated.

    The arithmetic is float32, and the bits of a row depend on that row alone. Concurrent steps are serialized.

    Args:
        mdnrnn: M; its weights are copied.
        num_envs: Number N of environments.
        num_threads: Number of threads; None for all available CPUs, at most ``OMP_NUM_THREADS``.

    Attributes:
        h: (N, H) float32 hidden states.
        c: (N, H) float32 cell states.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of range, or a weight is not finite.
    """

    def __init__(self, mdnrnn: MDNRNN, num_envs: int, num_threads: int | None = None) -> None:
        if not isinstance(mdnrnn, MDNRNN):
            raise TypeError(f"mdnrnn: expected an MDNRNN, got {type(mdnrnn).__name__}")
        unused = np.zeros((1, mdnrnn.latent_size), np.float32)  # initial states of dreams
        self._core = Native(_lstm_state, model=native_model(mdnrnn, unused, unused))
        self._lock = Lock()
        self._latent_size, self._action_size = mdnrnn.latent_size, mdnrnn.action_size
        self._hidden_size, self._threads = mdnrnn.hidden_size, check_threads(num_threads)
        self.reset(num_envs)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {**self.__dict__, "h": self.h.copy(), "c": self.c.copy()}

    def reset(self, num_envs: int) -> None:
        """Zero all states and set the number of environments."""
        num_envs = check_integer("num_envs", num_envs, 1, 2**20)
        with self._lock:
            self.h, self.c = np.zeros((2, num_envs, self._hidden_size), np.float32)

    def step(self, env_ids: npt.NDArray[np.int64], z: Floats, actions: Floats, restart: npt.NDArray[np.bool_]) -> None:
        """Advance the states of some environments by [z, action, restart flag].

        Args:
            env_ids: (n,) distinct indices of environments, n > 0.
            z: (n, Z) float32 latents.
            actions: (n, A) float32 actions.
            restart: (n,) bool flags of starting episodes, whose states are zeroed first.

        Raises:
            TypeError: An argument is not an array.
            ValueError: A shape or dtype is invalid, an index is out of range, or a number is not finite.
        """
        with self._lock:
            env_ids = distinct_env_ids(env_ids, len(self.h))
            count = len(env_ids)
            restart = exact_array("restart", restart, (count,), np.bool_)
            h, c = self._advance(z, actions, restart, self.h[env_ids], self.c[env_ids])
            self.h[env_ids], self.c[env_ids] = h, c

    def advance(
        self, z: Floats, actions: Floats, restart: npt.NDArray[np.bool_], h: Floats, c: Floats
    ) -> tuple[Floats, Floats]:
        """Advance given states by [z, action, restart flag]; those of the environments are not used.

        Args:
            z: (n, Z) float32 latents, n > 0.
            actions: (n, A) float32 actions.
            restart: (n,) bool flags of starting episodes, whose states are zeroed first.
            h: (n, H) float32 hidden states.
            c: (n, H) float32 cell states.

        Returns:
            The hidden and cell states that follow, (n, H) float32 each.

        Raises:
            TypeError: An argument is not an array.
            ValueError: A shape or dtype is invalid, or a number is not finite.
        """
        count = len(any_array("z", z))
        shape = (count, self._hidden_size)
        restart = exact_array("restart", restart, (count,), np.bool_)
        h, c = float_array("h", h, shape).copy(), float_array("c", c, shape).copy()
        with self._lock:
            return self._advance(z, actions, restart, h, c)

    def _advance(
        self, z: Floats, actions: Floats, restart: npt.NDArray[np.bool_], h: Floats, c: Floats
    ) -> tuple[Floats, Floats]:
        """See :meth:`advance`; ``h`` and ``c`` are overwritten."""
        h[restart] = c[restart] = 0
        latents = float_array("z", z, (len(h), self._latent_size))
        taken = float_array("actions", actions, (len(h), self._action_size))
        return self._core.core.advance(latents, taken, restart, h, c, self._threads)


def _lstm_state(model: Native[_core.WorldModel]) -> _core.LstmState:
    return _core.LstmState(model.core)
