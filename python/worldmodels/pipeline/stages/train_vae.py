"""train-vae: V learns to reconstruct the collected frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldmodels.pipeline.stage import Stage

if TYPE_CHECKING:
    from worldmodels.pipeline.run import Run

#: Settings of training that do not change the course of its steps so far.
TRAINING_RESUMABLE = ("steps", "lr", "schedule", "precision", "checkpoint_every", "patience", "keep")


def train(run: Run) -> dict[str, Any]:
    """Train V, from the last checkpoint if there is one."""
    from worldmodels.training.vae import train_vae

    return train_vae(run, run.config.train_vae, run.config.seed)


STAGE = Stage(
    name="train_vae",
    help="train V (ConvVAE, a variational autoencoder)",
    run=train,
    folder="vae",
    inputs=("episodes/*.h5",),
    outputs=("vae/{checkpoint,best,vae}.safetensors", "vae/{best,vae,quality}.json", "vae/sheets/epoch_*.png"),
    packages=("h5py", "PIL"),
    partial="checkpoint.safetensors",
    resumable=TRAINING_RESUMABLE,
    distributed=True,
    world_model=True,
    exports=("vae.safetensors",),
    optional_exports=("vae.json", "quality.json"),
)
