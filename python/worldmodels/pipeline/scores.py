"""Cached scores of real episodes: a file per player, to which every finished episode adds a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from worldmodels.data.records import EpisodeScore
from worldmodels.envs.making import backend
from worldmodels.rollout.environments import Assignment, Environments
from worldmodels.rollout.players import Player
from worldmodels.support.files import atomic_path, link, read_lines
from worldmodels.support.progress import Progress


@dataclass(frozen=True)
class ScoredPlayer:
    """Player whose scores are cached.

    Attributes:
        path: JSON lines: a header with the metadata, then a line per episode.
        metadata: Metadata of the player. Cached scores with other metadata, or of another environment, maximum length,
            seed or purpose, are discarded.
        player: Player of the episodes.
        episodes: Number of episodes.
    """

    path: Path
    metadata: dict[str, Any]
    player: Player
    episodes: int


def cached_scores(
    players: Sequence[ScoredPlayer], *, environments: Environments, seed: int, purpose: str, label: str
) -> list[list[float]]:
    """Play the episodes that are not in the caches yet, all players in one pool, and append their scores.

    Args:
        players: Players, those with the longest episodes first.
        environments: Real environments.
        seed: Seed of the run.
        purpose: Name that separates the episodes from others of the same seed.
        label: Label of the progress line.

    Returns:
        Score of every episode, by player.
    """
    environment = environments.environment
    described = {**environment.metadata(), "backend": backend(environment)}
    common: dict[str, Any] = {"environment": described, "seed": seed, "purpose": purpose}
    limit = {} if environments.max_steps is None else {"max_steps": environments.max_steps}
    known = [_open_cache(one.path, {**common, **one.metadata, **limit}) for one in players]
    todo = [[e for e in range(one.episodes) if e not in cached] for one, cached in zip(players, known, strict=True)]
    total = sum(one.episodes for one in players)
    done = total - sum(map(len, todo))
    progress = Progress(label, total, "episodes", start=done)

    def add(file: TextIO, cached: dict[int, float], episode: int, score: float) -> None:
        nonlocal done
        cached[episode] = score
        file.write(json.dumps({"episode": episode, "score": score}) + "\n")
        file.flush()
        done += 1
        progress.update(done)

    with ExitStack() as stack:
        files = [stack.enter_context(one.path.open("a", encoding="utf-8")) for one in players]
        assignments = [
            Assignment(one.player, episodes, partial(add, file, cached))
            for one, episodes, file, cached in zip(players, todo, files, known, strict=True)
        ]
        environments.play_all(assignments, seed=seed, purpose=purpose)
    progress.close(total)
    return [[cached[episode] for episode in range(one.episodes)] for one, cached in zip(players, known, strict=True)]


def _open_cache(path: Path, metadata: dict[str, Any]) -> dict[int, float]:
    """Read the cached scores by episode. The file is rewritten without others and without a truncated line."""
    path.parent.mkdir(exist_ok=True)
    known = read_scores(path, metadata)
    lines = [metadata, *({"episode": episode, "score": score} for episode, score in known.items())]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return known


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
