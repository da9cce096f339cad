"""encode: V encodes every collected frame as mu and logvar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldmodels.pipeline.stage import Stage, V

if TYPE_CHECKING:
    from worldmodels.pipeline.run import Run


def encode(run: Run) -> dict[str, Any]:
    """Encode the shards of the store that are not encoded yet."""
    from worldmodels.pipeline.encoding import encode_episodes

    return encode_episodes(run)


STAGE = Stage(
    name="encode",
    help="encode every frame with V",
    run=encode,
    folder="latents",
    clustered=True,
    inputs=("episodes/*.h5", V),
    outputs=("latents/[0-9][0-9][0-9][0-9][0-9].safetensors",),
    packages=("h5py",),
    partial="*.safetensors",
    resumable=("batch_size",),
    world_model=True,
)
