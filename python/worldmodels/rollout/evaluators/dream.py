"""Candidates are tried in M's dream, by the native core or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.dream.gpu import TorchDream
from worldmodels.dream.native import Dream, DreamResult
from worldmodels.rollout.evaluators import Played, Told


class DreamEvaluator:
    """An :class:`worldmodels.rollout.evaluators.Evaluator` that dreams.

    Args:
        dream: M, the starts and the shape of C; native, or on a GPU.
        threads: of the native core; the results do not depend on it.
    """

    unit = "dream steps"

    def __init__(self, dream: Dream | TorchDream, threads: int) -> None:
        self.dream = dream
        self.controller = dream.controller
        self.about: dict[str, Any] = {"inside": "dream", "temperature": dream.temperature}
        if dream.done_weight is not None:
            self.about["ends"] = "expected" if dream.expected_returns else "chance"
        if isinstance(dream, TorchDream):
            on_gpu = dream.device.type == "cuda"  # the draws are those of the kind of device
            self.about["device"] = torch.cuda.get_device_name(dream.device) if on_gpu else "cpu"
        self._threads = threads

    def play(
        self, params: npt.NDArray[np.floating], episodes: int, *, seed: int, common_seeds: bool, told: Told
    ) -> Played:
        """As :class:`worldmodels.rollout.evaluators.Evaluator` says."""
        played: DreamResult
        if isinstance(self.dream, Dream):
            played = self.dream.rollout(
                params, episodes, seed=seed, num_threads=self._threads, common_seeds=common_seeds
            )
        else:
            played = self.dream.rollout(params, episodes, seed=seed, common_seeds=common_seeds)
        told(played.lengths.size, played.lengths.size, int(played.lengths.sum()))
        return Played(played.returns, played.lengths, {})

    def close(self) -> None:
        """As :class:`worldmodels.rollout.evaluators.Evaluator` says."""
        if isinstance(self.dream, TorchDream):
            self.dream.close()
