"""What do open-loop policies score in each TakeCover variant, and how does the rendering size change the frames?

python analysis_scripts/calibrate_take_cover.py --episodes 300
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import numpy.typing as npt

from worldmodels.analysis.stats import describe, table
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.take_cover import TakeCoverEnv
from worldmodels.pipeline.tasks.takecover import POLICIES
from worldmodels.rollout.environments import play_policy

RESOLUTIONS = ("640x480", "320x240", "160x120")


def scores(episodes: int) -> None:
    """Print the scores of every open-loop policy in both variants."""
    rows = []
    for name, policy in POLICIES.items():
        cells = []
        for variant in ("paper", "modern"):
            environment = EnvSpec(variant=variant)
            lengths = play_policy(environment, policy, episodes, seed=0, purpose="calibrate", num_envs=4)
            result = describe(lengths)
            cells.append(f"{result.mean:.0f} +- {result.std:.0f}")
        rows.append([name, *cells])
    print(table(["policy", "paper", "modern"], rows))


def play(resolution: str, seed: int) -> tuple[npt.NDArray[np.float64], float]:
    """Play one episode of ``repeat 1-10``: frames (T, 64, 64, 3) and seconds."""
    env = TakeCoverEnv(resolution=resolution)
    actions = POLICIES["repeat 1-10"](np.random.default_rng(seed))
    frames = [env.reset(seed=seed)[0]]
    began, over = time.perf_counter(), False
    while not over:
        frame, _, terminated, truncated, _ = env.step(next(actions))
        over = terminated or truncated
        frames.append(frame)
    seconds = time.perf_counter() - began
    env.close()
    return np.stack(frames).astype(np.float64), seconds


def pictures(episodes: int) -> None:
    """Print the difference of the 64x64 frames of each rendering size from those of 640x480, and frames per second."""
    reference = [play("640x480", seed) for seed in range(episodes)]
    moving = np.mean([np.abs(np.diff(frames, axis=0)).mean() for frames, _ in reference])
    rows = []
    for resolution in RESOLUTIONS:
        played = reference if resolution == "640x480" else [play(resolution, seed) for seed in range(episodes)]
        if any(len(a) != len(b) for (a, _), (b, _) in zip(played, reference, strict=True)):
            raise AssertionError(f"{resolution}: the same seed and actions gave another episode")
        difference = np.mean([np.abs(a - b).mean() for (a, _), (b, _) in zip(played, reference, strict=True)])
        rate = sum(len(frames) for frames, _ in played) / sum(seconds for _, seconds in played)
        rows.append([resolution, f"{difference:.2f}", f"{difference / moving:.2f}", f"{rate:,.0f}"])
    print(table(["rendered at", "mean abs difference (0-255)", "per frame-to-frame change", "frames/s"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=300, help="episodes per policy and variant")
    parser.add_argument("--pictures", type=int, default=10, help="episodes for the comparison of rendering sizes")
    options = parser.parse_args()
    pictures(options.pictures)
    scores(options.episodes)
