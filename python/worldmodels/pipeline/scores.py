"""Cached scores of real episodes: a file per player, to which every finished episode adds a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worldmodels.data.records import EpisodeScore
from worldmodels.envs.vector import backend
from worldmodels.rollout.runner import Environments, Player
from worldmodels.support.files import atomic_path, link, read_lines
from worldmodels.support.progress import Progress


def cached_scores(
    path: Path,
    metadata: dict[str, Any],
    player: Player,
    episodes: int,
    *,
    environments: Environments,
    seed: int,
    purpose: str,
    label: str = "",
) -> list[float]:
    """Play the episodes that are not in the cache yet, and append their scores to it.

    Args:
        path: JSON lines: a header with the metadata, then a line per episode.
        metadata: Metadata of the player. Cached scores with other metadata, or of another environment, maximum length,
            seed or purpose, are discarded.
        player: Player of the episodes.
        episodes: Number of episodes.
        environments: Real environments.
        seed: Seed of the run.
        purpose: Name that separates the episodes from others of the same seed.
        label: Label of the progress line; empty for no line.

    Returns:
        Score of every episode.
    """
    path.parent.mkdir(exist_ok=True)
    environment = environments.environment
    described = {**vars(environment), "backend": backend(environment)}
    metadata = {"environment": described, "seed": seed, "purpose": purpose, **metadata}
    if environments.max_steps is not None:
        metadata["max_steps"] = environments.max_steps
    known = read_scores(path, metadata)
    todo = [episode for episode in range(episodes) if episode not in known]
    progress = Progress(label, episodes, "episodes", start=episodes - len(todo), shown=bool(label))
    lines = [metadata, *({"episode": episode, "score": score} for episode, score in known.items())]
    with atomic_path(path) as temporary:  # drops a line that a crash truncated
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


def read_scores(path: Path, metadata: dict[str, Any]) -> dict[int, float]:
    """Read the cached scores by episode; none if the file is missing or its header has other metadata."""
    if not path.is_file():
        return {}
    lines = read_lines(path)
    if not lines or lines[0] != json.loads(json.dumps(metadata)):
        return {}
    return {int(line.episode): float(line.score) for line in EpisodeScore.from_lines(lines[1:])}


def share_scores(source: Path, target: Path, baselines: Iterable[str]) -> None:
    """Link the cached scores of open-loop policies into another run folder, unless it has its own.

    Args:
        source: Run folder with the scores.
        target: Run folder.
        baselines: Names of the baselines that are evaluated next to the agent.
    """
    for path in [*source.glob("check_dream/*.jsonl"), *(source / "evaluate" / f"{name}.jsonl" for name in baselines)]:
        linked = target / path.relative_to(source)
        if path.is_file() and not linked.exists():
            link(path, linked)
