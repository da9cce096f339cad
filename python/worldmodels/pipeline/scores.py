"""Scores of real episodes, kept in a file as they come: what is known of the same player is not played again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worldmodels.envs.vector import backend
from worldmodels.pipeline.records import SCORE, misfit
from worldmodels.rollout.runner import Environments, Player
from worldmodels.support.files import atomic_path, read_lines
from worldmodels.support.progress import Progress


def kept_scores(
    path: Path,
    about: dict[str, Any],
    player: Player,
    episodes: int,
    *,
    environments: Environments,
    seed: int,
    purpose: str,
    label: str = "",
) -> list[float]:
    """Plays what is not known yet; each score goes to the file as soon as it is known.

    Args:
        path: of the file: a line that says who plays what, then a line per episode.
        about: who plays. Scores of anybody else, or of another environment, length, seed or purpose, are dropped.
        player: plays them.
        episodes: how many are wanted.
        environments: where they are played.
        seed: of the run.
        purpose: keeps these episodes apart from others of the same seed.
        label: of the progress; empty for none.

    Returns:
        Score of every episode.
    """
    path.parent.mkdir(exist_ok=True)
    environment = environments.environment
    played = {**vars(environment), "backend": backend(environment)}
    about = {"environment": played, "seed": seed, "purpose": purpose, **about}
    if environments.max_steps is not None:
        about["max_steps"] = environments.max_steps
    known = read_scores(path, about)
    todo = [episode for episode in range(episodes) if episode not in known]
    progress = Progress(label, episodes, "episodes", start=episodes - len(todo), shown=bool(label))
    lines = [about, *({"episode": episode, "score": score} for episode, score in known.items())]
    with atomic_path(path) as temporary:  # without a line that a crash has cut off
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    with path.open("a", encoding="utf-8") as file:

        def finished(episode: int, score: float) -> None:
            known[episode] = score
            file.write(json.dumps({"episode": episode, "score": score}) + "\n")
            file.flush()
            progress.update(len(known), f"mean {sum(known.values()) / len(known):.0f}")

        environments.play(player, todo, seed=seed, purpose=purpose, finished=finished)
    scores = [known[episode] for episode in range(episodes)]
    progress.close(episodes, f"mean {sum(scores) / len(scores):.0f}")
    return scores


def read_scores(path: Path, about: dict[str, Any]) -> dict[int, float]:
    """Scores that an earlier run wrote down ``about`` the same."""
    if not path.is_file():
        return {}
    lines = read_lines(path)
    if not lines or lines[0] != json.loads(json.dumps(about)):
        return {}
    return {int(line["episode"]): float(line["score"]) for line in lines[1:] if misfit(line, SCORE) is None}
