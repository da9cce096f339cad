"""Coordinates in which CMA-ES searches for C: its parameters, or the principal components of what it sees.

A step of CMA-ES is as long in every coordinate at first, but what C sees is not: of TakeCover's [z, c, h] a few cells
of M's LSTM that grow with an episode's age hold nearly all of the mean square, so that a step in the parameters changes
an action by these few alone. Along principal components, each scaled to a mean square of 1, it does by all that C sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldmodels.models.controller import Controller

Floats = npt.NDArray[np.float64]

_DREAMS, _STEPS, _EVERY, _HELD = 256, 600, 10, 5  # that what C sees is learnt from; steps between two rows, and actions
_SMALLEST = 1e-9  # share of the largest mean square below which a direction is noise of the arithmetic


@dataclass(frozen=True)
class Coordinates:
    """An affine map from what CMA-ES searches to C's parameters.

    Attributes:
        controller: the shape of C.
        origin: (N,) float64, the parameters at zero.
        basis: (F, K) float64, what a coordinate adds to the weights of what C sees; None where the coordinates are C's
            parameters themselves.
    """

    controller: Controller
    origin: Floats
    basis: Floats | None = None

    @property
    def start(self) -> Floats:
        """Where the search begins: the coordinates of ``origin``."""
        return self.origin if self.basis is None else np.zeros(self.size)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        if self.basis is None:
            return self.controller.size
        rows, columns = self.controller.layer_shapes[0]
        return self.controller.size - rows * (columns - int(self.basis.shape[1]))

    def params(self, points: Floats) -> Floats:
        """The parameters (..., N) of points (..., size)."""
        if self.basis is None:
            return points
        rows, count = self.controller.layer_shapes[0][0], self.basis.shape[1]
        first = points[..., : rows * count].reshape(*points.shape[:-1], rows, count) @ self.basis.T
        rest = points[..., rows * count :]  # biases, and layers behind the first
        moved: Floats = np.concatenate([first.reshape(*points.shape[:-1], -1), rest], axis=-1)
        return self.origin + moved


def principal_components(features: npt.NDArray[np.floating], count: int) -> Floats:
    """The directions of the largest mean squares, each scaled so that its own is 1.

    Args:
        features: (B, F), samples of what C sees.
        count: K, how many.

    Returns:
        (F, K) float64.

    Raises:
        ValueError: the samples have fewer directions than that.
    """
    samples = features.astype(np.float64)
    squares, directions = np.linalg.eigh(samples.T @ samples / len(samples))  # ascending
    there = int((squares > _SMALLEST * squares[-1]).sum())
    if count > there:
        raise ValueError(f"evolve.components: expected at most {there}, the directions of what C sees, got {count}")
    largest = np.arange(len(squares))[::-1][:count]
    basis: Floats = directions[:, largest] / np.sqrt(squares[largest])
    return basis
