r"""Make a GIF of recordings next to each other: agents in the game and in their dreams.

A recording is `AGENT:game` or `AGENT:dream`, where AGENT is a pretrained agent (takecover) or a run folder; a seed may
follow (`takecover:game:3`). The GIF is at most 3 MB; a recording that has ended shows its last step.

The pretrained agent in the game, next to its dream. Half a minute on two cores:

    python examples/film.py docs/images/takecover.gif takecover:game takecover:dream:5 --first 230

An agent that exploits its dream: C evolved for two generations at temperature 0.1. Six minutes:

    worldmodels run takecover --out runs/cold --evolve.temperature 0.1 --evolve.termination threshold \
        --evolve.generations 2
    python examples/film.py docs/images/cold_dream.gif runs/cold:dream runs/cold:game
"""

import argparse
from pathlib import Path

from worldmodels.analysis.animation import save_gif
from worldmodels.analysis.playback import record_dream, record_play
from worldmodels.analysis.recording import Recording
from worldmodels.pipeline import tasks
from worldmodels.pipeline.evaluators import sampled
from worldmodels.pipeline.run import Run


def record(text: str) -> Recording:
    """Record the first episode of a seed, without V's reconstructions of the game."""
    name, where, seed = [*text.split(":"), "0"][:3]
    folder, config = Run.agent(name)
    task = tasks.of(config)
    if where == "game":
        recording = record_play(folder, config.environment, seed=int(seed), rules=task.rules, **task.look)
        return recording.select(game="the game")
    evolve = config.evolve
    return record_dream(
        folder,
        temperature=evolve.temperature,
        seed=int(seed),
        max_steps=evolve.max_steps,
        termination=sampled(evolve.termination),
        **task.look,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="GIF to write")
    parser.add_argument("recordings", nargs="+", help="AGENT:game or AGENT:dream, with :SEED")
    parser.add_argument("--first", type=int, default=0, help="first step to show")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration")
    parser.add_argument("--scale", type=int, default=5, help="pixels of the GIF per pixel of a frame")
    options = parser.parse_args()
    steps = round(100 * options.seconds)  # more than are shown
    recordings = [record(text).cut(options.first, steps) for text in options.recordings]
    save_gif(options.file, *recordings, seconds=options.seconds, scale=options.scale, max_bytes=3_000_000)
    print(f"{options.file}: {options.file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
