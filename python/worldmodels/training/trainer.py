"""What the training loops of V and M share: checkpoints, the best weights so far, early stop, lines of metrics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol, TypeVar

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
from worldmodels.training.distributed import Ranks
from worldmodels.training.settings import TrainRNNConfig, TrainVAEConfig

Model = TypeVar("Model", bound=nn.Module)

LOG_EVERY = 25
#: Training on fewer frames of V, or fewer steps of M, is a trial: what it makes is not judged, only warned of.
MIN_JUDGED = {"frames": 1_000, "steps": 10_000}


class TrainingRun(Protocol):
    """What training needs of a run: its folder, its processes and its metrics."""

    ranks: Ranks

    def path(self, *parts: str) -> Path:
        """A path in the run folder."""

    def log(self, stage: str, **values: Any) -> None:
        """Append a line to the metrics."""

    def rewind_metrics(self, stage: str, last: int, key: str = "step") -> None:
        """Drop a stage's lines after ``last``."""


class Loop:
    """Where a training run stands, in memory and on disk.

    Files in ``folder``: ``checkpoint.safetensors`` (the last weights, Adam's state, the place in the data),
    ``best.safetensors`` (the weights with the lowest validation loss) and, at the end, ``<folder>.safetensors``.

    Args:
        run: Run that is trained in.
        stage: name of the stage on the command line.
        folder: where its files lie.
        model: without a wrapper.
        optimizer: of the model.
        config: settings of the stage.

    Attributes:
        step: batches done.
        place: where the data go on, as the checkpoint says it.
        tensors: further tensors of the checkpoint.
        figures: of the last validation.
    """

    def __init__(
        self,
        run: TrainingRun,
        stage: str,
        folder: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainVAEConfig | TrainRNNConfig,
    ) -> None:
        self._run, self._stage, self._folder = run, stage, folder
        self._model, self._optimizer, self._config = model, optimizer, config
        self.step = 0
        self.place: dict[str, int] = {}
        self.tensors: dict[str, Tensor] = {}
        self.figures: dict[str, float] = {}
        self._best: dict[str, Any] = {}  # step, loss and figures of the best validation
        self._stale = 0  # validations since then
        if self._path("checkpoint").is_file():
            self._restore()
        elif config.init_from:
            start = pretrained.resolve(config.init_from) / folder / f"{folder}.safetensors"
            found: Any = load_model(start, type(model))
            wanted, got = _architecture(model.config), _architecture(found.config)
            if wanted != got:
                section = stage.replace("-", "_")
                raise ValueError(f"{section}.init_from: expected {wanted}, as the settings say, got {got} in {start}")
            model.load_state_dict(found.state_dict())
            if config.steps == 0 and isinstance(model, MDNRNN):
                model.done_pos_weight = found.done_pos_weight
        run.rewind_metrics(stage, self.step)
        self._board = _board(run, stage, self.step) if config.tensorboard and run.ranks.first else None

    def _path(self, name: str) -> Path:
        return self._run.path(self._folder, f"{name}.safetensors")

    def _restore(self) -> None:
        tensors, about = load_tensors(self._path("checkpoint"))
        self.tensors = {name: tensors.pop(name) for name in list(tensors) if name.startswith("state.")}
        with checkpoint_errors(self._path("checkpoint"), self._stage):
            restore_training(self._model, self._optimizer, tensors)
            self.step = int(about["step"])
        self.place = about.get("place", {})
        self.figures = about.get("figures", {})
        self._best = about.get("best", {})
        self._stale = about.get("stale", 0)

    @property
    def over(self) -> bool:
        """Whether all steps are done, or patience is."""
        return self.step >= self._config.steps or 0 < self._config.patience <= self._stale

    def due(self, every: int) -> bool:
        """Whether something is to be done after this step that is done every so many steps and at the end."""
        return self.step % every == 0 or self.step == self._config.steps

    def log(self, **values: Any) -> None:
        """A line of metrics of this step."""
        self._run.log(self._stage, step=self.step, **values)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{self._stage}/{name}", value, self.step)

    def validated(self, figures: dict[str, float], loss: float, place: dict[str, int], **tensors: Tensor) -> None:
        """Keeps the weights of now: as the last, and as the best if their loss is the lowest so far."""
        self.figures = figures
        self.log(**{f"validation_{name}": value for name, value in figures.items()})
        better = loss < self._best.get("loss", float("inf"))
        if better:
            self._best, self._stale = {"step": self.step, "loss": loss, "figures": figures}, 0
        else:
            self._stale += 1
        if not self._run.ranks.first:
            return
        if better:
            save_model(self._path("best"), self._model, steps=self.step, validation=figures)
        about = {"step": self.step, "place": place, "figures": figures, "best": self._best, "stale": self._stale}
        save_tensors(self._path("checkpoint"), {**training_state(self._model, self._optimizer), **tensors}, about)

    def choose(self) -> dict[str, Any]:
        """Puts the weights that are handed on into the model; returns their figures and where training stopped."""
        step, figures = self.step, self.figures
        if self._config.keep == "best" and self._best and self._best["step"] != self.step:
            step, figures = self._best["step"], self._best["figures"]
            self._model.load_state_dict(load_model(self._path("best"), type(self._model)).state_dict())
        if self._board is not None:
            self._board.close()
        return {"steps": self.step, "kept_step": step, **figures}

    def hand_on(self, summary: dict[str, Any], **about: Any) -> None:
        """Writes the chosen weights, and what else is to be known of them: the stage is complete."""
        save_model(self._path(self._folder), self._model, steps=summary["kept_step"], validation=summary, **about)


def _architecture(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "done_pos_weight"}


def failed(stage: str, failure: str | None, seen: int, unit: str) -> dict[str, str]:
    """Turn the failure of a trained model into its stage's summary: it stops the run there.

    Args:
        stage: Name of the stage on the command line.
        failure: Why the model failed its purpose, or None.
        seen: Frames or steps that it has been trained on; after a few, the failure is a warning alone.
        unit: ``"frames"`` or ``"steps"``.

    Returns:
        ``{"failure": reason}``, or nothing.
    """
    if failure is None:
        return {}
    if seen < MIN_JUDGED[unit]:
        print(f"WARNING: {stage}: after {seen} {unit} of training, {failure}", file=sys.stderr)
        return {}
    return {"failure": failure}


def _board(run: TrainingRun, stage: str, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RuntimeError(
            f"{stage}: the setting tensorboard needs the package: pip install 'worldmodels-rl[tensorboard]' ({error})"
        ) from error
    return SummaryWriter(str(run.path("tensorboard")), purge_step=step + 1)
