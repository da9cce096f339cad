"""train-rnn: M learns to predict the next latent, termination and the reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldmodels import pretrained
from worldmodels.pipeline.stage import Stage, V
from worldmodels.pipeline.stages.train_vae import TRAINING_RESUMABLE

if TYPE_CHECKING:
    from worldmodels.pipeline.config import Config
    from worldmodels.pipeline.run import Run


def train(run: Run) -> dict[str, Any]:
    """Train M from the last checkpoint, if any; with a given world model, write an untrained M (ablation)."""
    from worldmodels.training.rnn import train_rnn, untrained_rnn

    if run.config.world_model:
        untrained_rnn(run, pretrained.resolve(run.config.world_model), run.config.seed)
        return {"world_model": run.config.world_model, "steps": 0}
    return train_rnn(run, run.config.train_rnn, run.config.seed)


def _is_untrained(config: Config) -> bool:
    return config.train_rnn.steps == 0


STAGE = Stage(
    name="train_rnn",
    help="train M (MDN-RNN)",
    run=train,
    folder="rnn",
    inputs=("latents/*.safetensors",),
    optional_inputs=(V,),  # for image grids
    outputs=(
        "rnn/{checkpoint,best,rnn,initial,midway}.safetensors",
        "rnn/{best,rnn,quality}.json",
        "rnn/sheets/epoch_*.png",
    ),
    packages=("h5py", "PIL"),
    partial="checkpoint.safetensors",
    resumable=(*TRAINING_RESUMABLE, "lr_end", "lr_decay", "grad_clip"),
    distributed=True,
    world_model=True,
    exports=("rnn.safetensors", "initial.safetensors"),
    optional_exports=("rnn.json", "midway.safetensors", "quality.json"),
    runs_with_world_model=_is_untrained,
)
