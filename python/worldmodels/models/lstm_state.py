"""M's memory in the real world: its LSTM, stepped by the native core for many episodes side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels import _core
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.native_model import native_model
from worldmodels.support.forks import Lock
from worldmodels.support.native import Native
from worldmodels.support.validation import check_integer, check_threads, different_slots, exact_array, float_array

Floats = npt.NDArray[np.float32]


class Memory:
    """The LSTM's state in every slot, moved on by latents and actions that come from outside; M's head is not asked.

    In float32; a row's bits depend on that row alone. Steps from several threads take turns.

    Args:
        mdnrnn: M; its weights are copied.
        slots: episodes side by side.
        num_threads: None for as many as there are cores, or OMP_NUM_THREADS if that is less.

    Attributes:
        h: (slots, H) float32, the hidden state.
        c: (slots, H) float32, the cell state.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a number does not fit, or a weight is not finite.
    """

    def __init__(self, mdnrnn: MDNRNN, slots: int, num_threads: int | None = None) -> None:
        if not isinstance(mdnrnn, MDNRNN):
            raise TypeError(f"mdnrnn: expected an MDNRNN, got {type(mdnrnn).__name__}")
        nowhere = np.zeros((1, mdnrnn.latent_size), np.float32)  # a dream would start there
        self._core = Native(_memory, model=native_model(mdnrnn, nowhere, nowhere))
        self._lock = Lock()
        self._latent_size, self._action_size = mdnrnn.latent_size, mdnrnn.action_size
        self._hidden_size, self._threads = mdnrnn.hidden_size, check_threads(num_threads)
        self.forget(slots)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {**self.__dict__, "h": self.h.copy(), "c": self.c.copy()}

    def forget(self, slots: int) -> None:
        """All slots are empty; from now on there are ``slots`` of them."""
        slots = check_integer("slots", slots, 1, 2**20)
        with self._lock:
            self.h, self.c = np.zeros((2, slots, self._hidden_size), np.float32)

    def step(self, slots: npt.NDArray[np.int64], z: Floats, actions: Floats, restart: npt.NDArray[np.bool_]) -> None:
        """Takes [z, action, restart flag] in some slots.

        Args:
            slots: (n,) different slots, n > 0.
            z: (n, Z) float32.
            actions: (n, A) float32.
            restart: (n,) bool: whether an episode begins there; its memory is emptied first.

        Raises:
            TypeError: an argument is no array.
            ValueError: a shape or dtype does not fit, a slot is not there, or a number is not finite.
        """
        with self._lock:
            slots = different_slots(slots, len(self.h))
            count = len(slots)
            restart = exact_array("restart", restart, (count,), np.bool_)
            h, c = self.h[slots], self.c[slots]
            h[restart] = c[restart] = 0
            latents = float_array("z", z, (count, self._latent_size))
            taken = float_array("actions", actions, (count, self._action_size))
            self.h[slots], self.c[slots] = self._core.core.advance(latents, taken, restart, h, c, self._threads)


def _memory(model: Native[_core.WorldModel]) -> _core.LstmState:
    return _core.LstmState(model.core)
