"""Export the pretrained V, M, initial states and C of a run folder to the package, in float16, with hashes and quality.

    python scripts/ship_world.py runs/small takecover

The model card (README.md next to the weights) is written by hand.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from worldmodels.models.decoder import compact_weights
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model, load_tensors, save_tensors
from worldmodels.pipeline import tasks
from worldmodels.pipeline.folder import read_config
from worldmodels.pretrained import DREAM, HASHES, sha256
from worldmodels.support.files import write_json

MEASURED = ("vae/quality.json", "rnn/quality.json")
V = "vae/vae.safetensors"
FILES = (V, "rnn/rnn.safetensors", "rnn/initial.safetensors", "evolve/controller.safetensors")


def main(run: Path, name: str) -> None:
    to = Path(__file__).parents[1] / "python" / "worldmodels" / "pretrained" / name
    for file in FILES:
        tensors, about = load_tensors(run / file)
        if file == V:
            tensors = compact_weights(load_model(run / file, ConvVAE))
        half = {key: tensor.to(torch.float16) for key, tensor in tensors.items()}
        if not all(tensor.isfinite().all() for tensor in half.values()):
            raise ValueError(f"{run / file}: a weight is too large for float16")
        save_tensors(to / file, half, about)
        write_json((to / file).with_suffix(".json"), about)
    for file in MEASURED:
        shutil.copyfile(run / file, to / file)
    config = read_config(run / "config.json")
    write_json(to / DREAM, {"termination": config.evolve.termination, "max_steps": tasks.of(config).max_steps})
    write_json(to / HASHES, {file: sha256(to / file) for file in FILES})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
