"""Runs of recordings: V and M are trained on episodes of others, without an environment."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodels.data.episodes import EpisodeShard, EpisodeWriter, shard_path
from worldmodels.envs.spec import EnvSpec
from worldmodels.hub.minari import MinariRecordings
from worldmodels.hub.recordings import POLICY, Recordings
from worldmodels.pipeline.collection import summarize
from worldmodels.pipeline.config import CollectConfig, Config, EvolveConfig, TrainRNNConfig, TrainVAEConfig
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.tasks import Task, is_recordings
from worldmodels.support.progress import Progress


def recordings_task(name: str) -> Task:
    """Return the task of recordings. It has no environment; a dream ends after 1000 steps at the latest.

    Args:
        name: ``recordings-A`` with A dimensions of the action.

    Raises:
        ValueError: The name has another form.
    """
    if not is_recordings(name):
        raise ValueError(f"task: expected recordings-A with A from 1 to 999 dimensions of the action, got {name!r}")
    return Task(
        name=name,
        env_id="",
        actions=tuple(f"action {index}" for index in range(int(name.rpartition("-")[2]))),
        max_steps=1000,
        policies={},
        baselines={},
        presets={"quick": _quick(name)},
        score="return",
        frames_per_second=20,
        description="Recorded episodes: there is no environment to play in.",
    )


def _quick(name: str) -> Config:
    return Config(
        task=name,
        preset="quick",
        environment=EnvSpec(id="", variant="", resolution=""),
        collect=CollectConfig(policies=POLICY, min_length=1),
        train_vae=TrainVAEConfig(
            latent_size=32, steps=4_000, batch_size=32, lr=1e-3, schedule="cosine", kl_weight=0.03, quartic_weight=30.0
        ),
        train_rnn=TrainRNNConfig(
            hidden_size=256, steps=4_000, batch_size=32, sequence_length=64, lr=1.5e-3, schedule="cosine"
        ),
        evolve=EvolveConfig(max_steps=1000, generations=20, episodes=8, common_random_numbers=True, evaluate_every=5),
    )


def open_recordings(source: str) -> Recordings | MinariRecordings:
    """Open a folder of recordings, or the Minari data set of this id where there is no such folder."""
    return Recordings(source) if Path(source).is_dir() else MinariRecordings(source)


def recordings_config(source: str) -> Config:
    """Return the settings of a new run of recordings: heads of M for what the recordings have.

    Args:
        source: Folder of recordings, or id of a Minari data set.

    Raises:
        FileNotFoundError: There is no such folder, or an episode lacks a file.
        ValueError: A table is damaged.
    """
    found = open_recordings(source)
    config = recordings_task(f"recordings-{len(found.names)}").presets["quick"]
    return replace(
        config,
        collect=replace(config.collect, source=source, episodes=len(found)),
        train_rnn=replace(config.train_rnn, reward_head=found.has_rewards, done_head=found.has_termination),
    )


def check_source(config: Config) -> None:
    """Check the settings of a run of recordings against its source.

    Raises:
        FileNotFoundError: There is no such folder, or an episode lacks a file.
        ValueError: The run is of an environment, or the source has fewer than two episodes or others than the settings.
    """
    source = config.collect.source
    if not is_recordings(config.task):
        raise ValueError(f"collect.source: expected a new run folder, as this run is of {config.task}, got {source}")
    found = open_recordings(source)
    if len(found) < 2:
        raise ValueError(
            f"collect.source: expected at least 2 episodes, to hold one out for validation, got 1 in {source}"
        )
    size = int(config.task.rpartition("-")[2])
    if len(found.names) != size:
        raise ValueError(f"collect.source: expected actions of {size} dimensions, got {len(found.names)} in {source}")
    if len(found) != config.collect.episodes:
        raise ValueError(
            f"collect.source: expected {config.collect.episodes} episodes, got {len(found)} in {source}; use "
            f"--episodes {len(found)}, or --force to convert all of them again"
        )


def check_recordings(config: Config) -> None:
    """Read every recording once, before the episodes that were made of them are discarded.

    Raises:
        ValueError: A file is damaged.
    """
    source = open_recordings(config.collect.source)
    progress = Progress("collect", len(source), "recordings checked")
    for index in range(len(source)):
        source.read(index)
        progress.update(index + 1)
    progress.close(len(source))


def convert_recordings(run: Run) -> dict[str, Any]:
    """Write the recordings to the episode store; shards with the same number of episodes are kept.

    Returns:
        Summary, as of :func:`worldmodels.pipeline.collection.collect_episodes`.

    Raises:
        ValueError: A file of the recordings is damaged, or the store has more episodes than they.
    """
    config = run.config.collect
    source, folder = open_recordings(config.source), run.path("episodes")
    folder.mkdir(exist_ok=True)
    shards = {
        shard_path(folder, number): range(first, min(first + config.shard_episodes, len(source)))
        for number, first in enumerate(range(0, len(source), config.shard_episodes))
    }
    others = sorted(set(folder.glob("*.h5")) - shards.keys())
    if others:
        raise ValueError(
            f"collect.episodes: expected a number that fits {others[0]}, got {len(source)}; use `worldmodels collect "
            "--force` to convert all of them again"
        )
    todo = {path: episodes for path, episodes in shards.items() if _episodes_in(path) != len(episodes)}
    if isinstance(source, Recordings):
        names = [path.name for path in source.folders]
        before = run.begun_summary.get("recordings", names)
        kept = itertools.chain.from_iterable(shards[path] for path in shards.keys() - todo.keys())
        moved = sorted(index for index in kept if names[index] != before[index])
        if moved:
            raise ValueError(
                f"collect.source: expected {before[moved[0]]} as episode {moved[0]} of {config.source}, as it was "
                f"converted, got {names[moved[0]]}; use `worldmodels collect --force` to convert all of them again"
            )
        run.begin(recordings=names)
    done = len(source) - sum(map(len, todo.values()))
    progress = Progress("collect", len(source), "episodes", start=done)
    for path, episodes in todo.items():
        with EpisodeWriter(path, len(source.names)) as writer:
            for index in episodes:
                writer.append(source.read(index))
                done += 1
                progress.update(done)
    progress.close(done)
    return summarize(folder, config)


def _episodes_in(path: Path) -> int:
    """Count the episodes of a shard, 0 if it does not exist."""
    if not path.is_file():
        return 0
    shard = EpisodeShard(path)
    shard.close()
    return len(shard.lengths)
