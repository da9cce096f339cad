"""Evaluation of candidates in M's dream, in the native core or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.dream.gpu import TorchDream
from worldmodels.dream.native import Dream, DreamResult
from worldmodels.rollout.evaluators import EvalResult, OnProgress

#: Episodes that fill the SIMD vectors of a thread: fewer at once cost more per step.
DREAMS_PER_THREAD = 64


class DreamEvaluator:
    """:class:`worldmodels.rollout.evaluators.Evaluator` in a dream.

    Args:
        dream: Native dream or dream on a GPU.
        num_threads: Number of threads of the native core; changes no result.
    """

    unit = "dream steps"

    def __init__(self, dream: Dream | TorchDream, num_threads: int) -> None:
        self.dream = dream
        self.controller = dream.controller
        self.metadata: dict[str, Any] = {
            "evaluate_in": "dream",
            "temperature": dream.temperature,
            "termination": dream.termination,
            "precision": dream.precision if isinstance(dream, Dream) else "float32",
        }
        if isinstance(dream, TorchDream):
            on_gpu = dream.device.type == "cuda"  # random numbers depend on the kind of device
            self.metadata["device"] = torch.cuda.get_device_name(dream.device) if on_gpu else "cpu"
        self._num_threads = num_threads

    def play(
        self,
        params: npt.NDArray[np.floating],
        episodes: int,
        *,
        seed: int,
        common_random_numbers: bool,
        on_progress: OnProgress,
        first_candidate: int = 0,
        first_episode: int = 0,
    ) -> EvalResult:
        """See :meth:`worldmodels.rollout.evaluators.Evaluator.play`.

        Raises:
            ValueError: A part of an evaluation is requested of a dream on a GPU, whose random numbers are those of the
                whole.
        """
        result: DreamResult
        if isinstance(self.dream, Dream):
            result = self.dream.rollout(
                params,
                episodes,
                seed=seed,
                num_threads=self._num_threads,
                common_random_numbers=common_random_numbers,
                first_candidate=first_candidate,
                first_episode=first_episode,
            )
        elif first_candidate or first_episode:
            first = f"{first_candidate}, {first_episode}"
            raise ValueError(f"first_candidate, first_episode: expected 0, 0 for a dream on a GPU, got {first}")
        else:
            result = self.dream.rollout(params, episodes, seed=seed, common_random_numbers=common_random_numbers)
        on_progress(result.lengths.size, result.lengths.size, int(result.lengths.sum()))
        return EvalResult(result.returns, result.lengths)

    def close(self) -> None:
        """See :meth:`worldmodels.rollout.evaluators.Evaluator.close`."""
        if isinstance(self.dream, TorchDream):
            self.dream.close()
