"""Search spaces of CMA-ES for C: its parameters, scaled or not, or whitened principal components of its features.

CMA-ES starts with the same step size in every coordinate, but the features of C differ in scale. In TakeCover, a few
LSTM cells that grow with an episode's age have nearly all of the mean square of [z, c, h], so that steps in the
parameters change actions through these few alone. With scaled parameters or along whitened principal components, all
features contribute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worldmodels.models.controller import Controller
from worldmodels.support.validation import check_integer

Floats = npt.NDArray[np.float64]

_MIN_STD = 1e-3  # of a feature; C's inputs are of order 1
_MIN_SHARE = 1e-9  # of the largest mean square; directions below it are rounding noise


@dataclass(frozen=True)
class SearchSpace:
    """Affine map from the coordinates of CMA-ES to C's parameters.

    Attributes:
        controller: Architecture of C.
        origin: (N,) float64 parameters at the zero of the search space.
        basis: (F, K) float64 directions in the features, one per coordinate; (F,) factors of the parameters of each
            feature; None if the coordinates are C's parameters.
    """

    controller: Controller
    origin: Floats
    basis: Floats | None = None

    @property
    def start(self) -> Floats:
        """Coordinates of ``origin``, the initial mean of the search."""
        return self.origin if self.basis is None else np.zeros(self.size)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        if self.basis is None or self.basis.ndim == 1:
            return self.controller.size
        rows, columns = self.controller.layer_shapes[0]
        return self.controller.size - rows * (columns - int(self.basis.shape[1]))

    def params(self, points: Floats) -> Floats:
        """Map points (..., size) to parameters (..., N)."""
        if self.basis is None:
            return points
        rows, count = self.controller.layer_shapes[0][0], self.basis.shape[-1]
        first = points[..., : rows * count].reshape(*points.shape[:-1], rows, count)
        first = first * self.basis if self.basis.ndim == 1 else first @ self.basis.T
        rest = points[..., rows * count :]  # biases and later layers
        moved: Floats = np.concatenate([first.reshape(*points.shape[:-1], -1), rest], axis=-1)
        return self.origin + moved


def feature_scales(features: npt.NDArray[np.floating]) -> Floats:
    """Compute the factor of each feature's parameters that gives a step in any of them the same effect.

    Args:
        features: (B, F) samples of C's features.

    Returns:
        (F,) float64 reciprocals of the standard deviations, of which those below 0.001 count as 0.001.
    """
    scales: Floats = 1 / np.maximum(features.std(axis=0, dtype=np.float64), _MIN_STD)
    return scales


def principal_components(features: npt.NDArray[np.floating], count: int) -> Floats:
    """Compute the directions of largest mean square, scaled to a mean square of 1.

    Args:
        features: (B, F) samples of C's features.
        count: Number K of directions, from 1 to F.

    Returns:
        (F, K) float64 directions.

    Raises:
        TypeError: ``count`` is not an integer.
        ValueError: ``features`` are not finite, ``count`` is out of range, or the samples span fewer directions.
    """
    if features.ndim != 2 or features.size == 0 or not np.isfinite(features).all():
        raise ValueError(f"features: expected (B, F) finite numbers, got {features.shape} {features.dtype}")
    count = check_integer("count", count, 1, features.shape[1])
    samples = features.astype(np.float64)
    squares, directions = np.linalg.eigh(samples.T @ samples / len(samples))  # ascending
    rank = int((squares > _MIN_SHARE * squares[-1]).sum())
    if count > rank:
        raise ValueError(f"count: expected at most {rank}, the rank of the features, got {count}")
    largest = np.arange(len(squares))[::-1][:count]
    basis: Floats = directions[:, largest] / np.sqrt(squares[largest])
    return basis
