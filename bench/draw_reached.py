"""Dream and game over the generations of three evolutions, and the shipped agent's games, for docs/results.md.

python bench/draw_reached.py docs/results/takecover_reached.json --out docs/images/reached.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GAMES = {  # evolution, generation -> what was played of it
    (0, 50): "ahead, generation 50",
    (1, 90): "M4, generation 90",
    (1, 210): "M4, generation 210",
    (2, 90): "M5, generation 90",
    (2, 140): "M5, generation 140 (shipped)",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=Path("reached.png"))
    options = parser.parse_args()
    found = json.loads(options.results.read_text())
    figure, (curve, games) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    before = 0
    for number, evolution in enumerate(found["C"].values()):
        label = "in its dream" if number == 0 else None
        curve.plot(
            [before + g for g in evolution["generations"]],
            evolution["dream"],
            color="tab:blue",
            marker=".",
            label=label,
        )
        for (which, generation), name in GAMES.items():
            if which == number:
                played = found["game"][name]
                low, high = played["ci95"]
                curve.errorbar(
                    before + generation,
                    played["mean"],
                    [[played["mean"] - low], [high - played["mean"]]],
                    color="tab:orange",
                    marker="o",
                    capsize=3,
                    label="in the game, 95 %" if (number, generation) == (0, 50) else None,
                )
        before += len(evolution["sigma"])
        if number < 2:
            curve.axvline(before, color="0.8", linewidth=1, zorder=0)
    curve.axhline(1092, color="0.4", linestyle=":", label="the paper's agent, in the game")
    curve.set(xlabel="generation (a line: M learns from the agent's play)", ylabel="steps survived", ylim=(700, 1400))
    curve.legend(frameon=False, loc="lower right")
    scores = found["shipped"]["scores"]
    games.hist(scores, bins=42, range=(0, 2100), color="tab:orange")
    games.axvline(found["shipped"]["mean"], color="0.2", label=f"mean {found['shipped']['mean']:.0f}")
    games.set(xlabel="steps survived, the shipped agent", ylabel=f"of {len(scores):,} games")
    games.legend(frameon=False)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
