"""What a run found, in sentences: its score, how it compares with the baselines, and the command that makes it."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from worldmodels.analysis.stats import compare, format_interval, format_number, scale_of
from worldmodels.data.records import Results
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import PROBE, SECTIONS, Config
from worldmodels.pipeline.stage import command
from worldmodels.pipeline.tasks import Task

_OUTCOMES = {"better": "better than", "worse": "worse than", "not distinguishable": "not distinguishable from"}


def read_results(path: Path, evaluate_in: str) -> Results:
    """Read the results of a run whose candidates were evaluated in the dream or in the environment.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or lacks the score of the evolution.
    """
    results = Results.read(path)
    try:
        results.evolved_score(evaluate_in)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return results


def format_score(results: Results, task: Task) -> str:
    """State the agent's score, its interval and the number of episodes."""
    agent, interval = results.agent, format_interval(results.agent)
    count = f"{len(agent.scores)} episode{'s' if len(agent.scores) > 1 else ''}"
    details = f"95 % interval {interval}, {count}" if interval else count
    mean = format_number(agent.mean, scale_of(agent))
    return f"The agent scores {mean} {task.score} in the real environment ({details})."


def format_verdict(results: Results, task: Task) -> str:
    """State the agent's score and how it compares with the baselines, each by the interval of the difference.

    Args:
        results: The content of ``results.json``.
        task: The task, for the unit of a score and the paper's score.
    """
    sentences = [format_score(results, task)]
    if task.paper_score is not None:
        mean, std = task.paper_score
        sentences.append(f"The paper reports {mean} +- {std} over 100 episodes.")
    labels = {"random": "random play", "collecting": "the collecting policy", "before": "the first generation"}
    found: dict[str, list[str]] = {}
    for name, label in labels.items():
        other = results.players[name]
        policy = f"'{other.policy}', " if name != "before" else ""
        outcome = _OUTCOMES[compare(results.agent.scores, other.scores).outcome]
        found.setdefault(outcome, []).append(f"{label} ({policy}{format_number(other.mean, scale_of(other))})")
    sentences += [f"The agent is {outcome} {' and '.join(others)}." for outcome, others in found.items()]
    return " ".join(sentences)


def format_command(config: Config, folder: Path) -> str:
    """The command that makes a run: its preset, its seed and the settings that differ from the preset's."""
    preset = tasks.portable_preset(config)
    words = ["worldmodels", "run", config.task, "--preset", config.preset, "--out", str(folder)]
    if config.seed != preset.seed:
        words += ["--seed", str(config.seed)]
    if config.world_model != preset.world_model:
        words += ["--world-model", config.world_model]
    for section in SECTIONS:
        if section == PROBE:
            continue
        now, then = (asdict(getattr(one, section)) for one in (config, preset))
        for name in now:
            if now[name] == then[name]:
                continue
            flag = f"{command(section)}.{command(name)}"
            if isinstance(now[name], bool):
                words.append(f"--{flag}" if now[name] else f"--no-{flag}")
            else:
                words += [f"--{flag}", str(now[name])]
    return shlex.join(words)
