"""How fast is the dream on the CPU and on a GPU, and do the mean returns of one controller agree?

python analysis_scripts/compare_devices.py                     the pretrained world model and its agent
python analysis_scripts/compare_devices.py runs/small --popsize 64 --episodes 16
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from worldmodels import Dream, pretrained
from worldmodels.analysis.stats import table
from worldmodels.dream.gpu import TorchDream
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.agent import load_controller


def timed(play):
    """Measure the mean return with its standard error, and steps per second, in the second call."""
    play(0)
    began = time.perf_counter()
    played = play(1)
    seconds = time.perf_counter() - began
    one = played.returns[0]  # the same controller in every row
    return f"{one.mean():.1f} +- {one.std() / len(one) ** 0.5:.1f}", f"{played.lengths.sum() / seconds:,.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", nargs="?", default="takecover", help="pretrained world model or run folder")
    parser.add_argument("--popsize", type=int, default=256, help="candidates")
    parser.add_argument("--episodes", type=int, default=64, help="dreams per candidate")
    parser.add_argument("--temperature", type=float, default=1.15, help="temperature of the dream")
    parser.add_argument("--max-steps", type=int, default=2100, help="longest dream")
    options = parser.parse_args()
    folder = pretrained.resolve(options.world)
    world = load_world_model(folder)
    controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    settings = {
        "temperature": options.temperature,
        "max_steps": options.max_steps,
        "termination": "expected",
    }
    if not torch.cuda.is_available():
        parser.error("no CUDA device")
    device = torch.device("cuda")
    gpu, native = TorchDream(*world, controller, device=device, **settings), Dream(*world, controller, **settings)
    name = torch.cuda.get_device_name(device)
    rows = []
    for count, episodes, where, dream in (
        (1, 2048, name, gpu),
        (options.popsize, options.episodes, name, gpu),
        (1, 1024, "native", native),
    ):
        same = np.repeat(params[None], count, axis=0)
        played = timed(
            lambda seed, same=same, e=episodes, d=dream: d.rollout(same, e, seed=seed, common_random_numbers=True)
        )
        rows.append([f"{count} x {episodes}", where, *played])
    print(table(["shape", "dream", "mean return", "steps/s"], rows))


if __name__ == "__main__":
    main()
