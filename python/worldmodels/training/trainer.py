"""Trainer of V and M: checkpoints, best weights, early stopping, metrics and quality check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from worldmodels import pretrained
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.weights import (
    checkpoint_errors,
    load_model,
    load_tensors,
    restore_training,
    save_model,
    save_tensors,
    training_state,
)
from worldmodels.support.profile import phase
from worldmodels.training.distributed import Ranks
from worldmodels.training.optim import LossGuard
from worldmodels.training.settings import TrainRNNConfig, TrainVAEConfig

Model = TypeVar("Model", bound=nn.Module)

LOG_EVERY = 25
_GRID_EVERY = 200  # least number of steps between image grids that belong to no checkpoint
#: Training frames of V, or steps of M, below which a failed quality check is only a warning.
MIN_FOR_GATE = {"frames": 1_000, "steps": 10_000}


class TrainingRun(Protocol):
    """Run of a training stage: folder, processes and metrics."""

    ranks: Ranks

    @property
    def seconds(self) -> float:
        """Seconds that the stage has taken so far, in all its sessions."""

    def path(self, *parts: str) -> Path:
        """Return a path in the run folder."""

    def log(self, stage: str, **values: Any) -> None:
        """Append a line to the metrics of a stage."""

    def log_image(self, stage: str, name: str, path: Path, step: int) -> None:
        """Log an image file of a stage."""

    def log_profile(self, stage: str) -> None:
        """Append the seconds per phase since the last profile."""

    def rewind_metrics(self, stage: str, last: int, key: str = "step") -> None:
        """Remove a stage's lines whose ``key`` is greater than ``last``."""


class Trainer(Generic[Model]):
    """State of a training run, in memory and on disk.

    Files in ``folder``: ``checkpoint.safetensors`` (the last weights, Adam's state, the position in the data),
    ``best.safetensors`` (the weights with the lowest validation loss) and, at the end, ``<folder>.safetensors``.
    A new trainer restores the checkpoint if there is one; otherwise it loads the weights of ``config.init_from``.

    Args:
        run: Run of the stage.
        stage: Name of the stage on the command line.
        folder: Name of the stage's folder in the run folder.
        model: Model, without a wrapper.
        optimizer: Optimizer of the model.
        config: Settings of the stage.

    Attributes:
        model: Model, without a wrapper.
        optimizer: Optimizer of the model.
        ranks: Processes of the launch.
        step: Number of completed steps.
        position: Position in the data, as stored in the checkpoint.
        tensors: Additional tensors of the checkpoint.
        metrics: Metrics of the last validation.
        guard: Detects divergence.
        grid_step: Step of the last image grid.

    Raises:
        ValueError: The checkpoint or the model of ``config.init_from`` does not match the settings.
    """

    def __init__(
        self,
        run: TrainingRun,
        stage: str,
        folder: str,
        model: Model,
        optimizer: torch.optim.Optimizer,
        config: TrainVAEConfig | TrainRNNConfig,
    ) -> None:
        self.model, self.optimizer, self.ranks = model, optimizer, run.ranks
        self._run, self._stage, self._folder, self._config = run, stage, folder, config
        self.step = 0
        self.position: dict[str, int] = {}
        self.tensors: dict[str, Tensor] = {}
        self.metrics: dict[str, float] = {}
        self._best: dict[str, Any] = {}  # step, loss and metrics of the best validation
        self._stale = 0  # validations without improvement
        self.guard = LossGuard(stage)
        if self._path("checkpoint").is_file():
            self._restore()
        elif config.init_from:
            self._load_initial_weights()
        self.grid_step = self.step  # every checkpoint has an image grid
        run.rewind_metrics(stage, self.step)

    def _path(self, name: str) -> Path:
        return self._run.path(self._folder, f"{name}.safetensors")

    def _load_initial_weights(self) -> None:
        path = pretrained.resolve(self._config.init_from) / self._folder / f"{self._folder}.safetensors"
        model: Any = self.model
        found: Any = load_model(path, type(model))
        expected, got = _architecture(model.config), _architecture(found.config)
        if expected != got:
            section = self._stage.replace("-", "_")
            raise ValueError(f"{section}.init_from: expected {expected} as in the settings, got {got} in {path}")
        model.load_state_dict(found.state_dict())
        if self._config.steps == 0 and isinstance(model, MDNRNN):
            model.done_pos_weight = found.done_pos_weight

    def _restore(self) -> None:
        tensors, metadata = load_tensors(self._path("checkpoint"))
        self.tensors = {name: tensors.pop(name) for name in list(tensors) if name.startswith("state.")}
        with checkpoint_errors(self._path("checkpoint"), self._stage):
            restore_training(self.model, self.optimizer, tensors)
            self.step = int(metadata["step"])
        if self.step > self._config.steps:
            section = self._stage.replace("-", "_")
            raise ValueError(
                f"{section}.steps: expected at least {self.step}, as that many are complete, got {self._config.steps}; "
                f"`worldmodels {self._stage} --force` starts over"
            )
        self.position = metadata.get("place", {})
        self.metrics = metadata.get("figures", {})
        self._best = metadata.get("best", {})
        self._stale = metadata.get("stale", 0)
        self.guard = LossGuard(self._stage, initial=metadata.get("initial_loss"))
        if self.ranks.is_main and self._best.get("step") == self.step:
            self._save_best()  # a run that was killed after the checkpoint has not

    def _save_best(self) -> None:
        save_model(self._path("best"), self.model, steps=self.step, validation=self.metrics)

    @property
    def finished(self) -> bool:
        """Whether all steps are complete, or early stopping applies."""
        return self.step >= self._config.steps or 0 < self._config.patience <= self._stale

    def is_due(self, every: int) -> bool:
        """Check whether the number of completed steps is a multiple of ``every`` or the last step."""
        return self.step % every == 0 or self.step == self._config.steps

    @property
    def epoch_has_grid(self) -> bool:
        """Whether an epoch that ends here has an image grid: ``_GRID_EVERY`` steps or more after the previous one."""
        return self.step - self.grid_step >= _GRID_EVERY

    def log(self, **values: Any) -> None:
        """Log the metrics of this step."""
        self._run.log(self._stage, step=self.step, **values)

    def checkpoint(self, metrics: dict[str, float], loss: float, position: dict[str, int], **tensors: Tensor) -> None:
        """Save a checkpoint, and the best weights if the validation loss is the lowest so far.

        Args:
            metrics: Validation metrics, for the log.
            loss: Validation loss that ranks the weights.
            position: Position in the data.
            **tensors: Additional tensors of the checkpoint; their names start with ``state.``.
        """
        self.metrics = metrics
        self.log(**{f"validation_{name}": value for name, value in metrics.items()})
        improved = loss < self._best.get("loss", float("inf"))
        if improved:
            self._best, self._stale = {"step": self.step, "loss": loss, "figures": metrics}, 0
        else:
            self._stale += 1
        if not self.ranks.is_main:
            return
        record = {"step": self.step, "place": position, "figures": metrics, "best": self._best, "stale": self._stale}
        record["initial_loss"] = self.guard.initial
        with phase("storing"):
            save_tensors(self._path("checkpoint"), {**training_state(self.model, self.optimizer), **tensors}, record)
            if improved:
                self._save_best()
        self._run.log_profile(self._stage)

    def load_selected(self) -> dict[str, Any]:
        """Load the selected weights (``config.keep``: best or last) into the model.

        Returns:
            ``steps`` (completed), ``kept_step`` (of the selected weights) and the metrics of their validation.
        """
        step, metrics = self.step, self.metrics
        if self._config.keep == "best" and self._best and self._best["step"] != self.step:
            step, metrics = self._best["step"], self._best["figures"]
            self.model.load_state_dict(load_model(self._path("best"), type(self.model)).state_dict())
        return {"steps": self.step, "kept_step": step, **metrics}

    def export(self, summary: dict[str, Any]) -> None:
        """Write the model to ``<folder>.safetensors``, with the summary as metadata."""
        save_model(self._path(self._folder), self.model, steps=summary["kept_step"], validation=summary)


def _architecture(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "done_pos_weight"}


def gate(stage: str, failure: str | None, trained: int, unit: str) -> dict[str, str]:
    """Apply the quality check. After little training, a failure is only a warning.

    Args:
        stage: Name of the stage on the command line.
        failure: Failed criterion, or None.
        trained: Number of frames or steps in training.
        unit: ``"frames"`` or ``"steps"``.

    Returns:
        Entry of the stage's summary: ``{"failure": failure}``, which stops the run, or nothing.
    """
    if failure is None:
        return {}
    if trained < MIN_FOR_GATE[unit]:
        print(f"WARNING: {stage}: after {trained} {unit} of training, {failure}", file=sys.stderr)
        return {}
    return {"failure": failure}
