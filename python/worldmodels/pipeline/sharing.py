"""Runs on the Hugging Face Hub: the files that load the models, the results, and a model card made of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from worldmodels.analysis.stats import format_interval, format_number, scale_of
from worldmodels.data.records import DreamCheck, Results, Scores
from worldmodels.models.sharing import CARD, CONFIG, header, import_hub, upload, usage
from worldmodels.pipeline import tasks
from worldmodels.pipeline.folder import RunFolder, default_folder
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stage import INITIAL_STATES, C, M, V
from worldmodels.pipeline.stages import STAGES
from worldmodels.support.files import link

_RESULTS, _RECORDING = "results.json", "evaluate/episode.gif"
#: Files of a run folder that are pushed, if they exist: enough to load the models and to play with them.
FILES = (
    CONFIG,
    _RESULTS,
    *(name for weights in (V, M, INITIAL_STATES, C) for name in (weights, weights.replace(".safetensors", ".json"))),
    "rnn/midway.safetensors",
    "vae/quality.json",
    "rnn/quality.json",
    "check_dream/check_dream.json",
    _RECORDING,
)


def push(folder: str | Path, repo_id: str, *, private: bool | None = None, license_id: str = "mit") -> str:
    """Upload a run's models, settings and results to the Hugging Face Hub, with a model card.

    Args:
        folder: Run folder with an agent.
        repo_id: Repository (``"user/name"``); created if necessary.
        private: Whether a new repository is private; None for the default of the account.
        license_id: License of the weights, an identifier of the Hub.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: The folder is not a run folder, or the run has no agent yet.
        ModuleNotFoundError: The extra ``hub`` is not installed.
        OSError: The Hub refused the request, or does not answer.
    """
    import_hub("push")
    run = _run_with_agent(folder)
    card = model_card(folder, repo_id, license_id)
    with tempfile.TemporaryDirectory() as temporary:  # the run folder may have a README of its own
        for name in FILES:
            if run.path(name).is_file():
                link(run.path(name), Path(temporary, name))
        Path(temporary, CARD).write_text(card, encoding="utf-8")
        return upload(Path(temporary), repo_id, message=f"Run {run.folder.name}", private=private)


def _run_with_agent(folder: str | Path) -> RunFolder:
    config = Run.stored_config(folder)
    if config is None:
        raise FileNotFoundError(f"{folder}: expected a run folder with {CONFIG}, got none")
    run = RunFolder(folder, config)
    for name in (V, M, INITIAL_STATES, C):
        if not run.path(name).is_file():
            raise FileNotFoundError(f"{folder}: expected a run with an agent, got one without {name}")
    return run


def model_card(folder: str | Path, repo_id: str, license_id: str = "mit") -> str:
    """Write the model card of a run: metadata for the Hub, scores, the command that repeats the run, and limits.

    Args:
        folder: Run folder with an agent.
        repo_id: Repository, for the title and the code that loads the models.
        license_id: License of the weights, an identifier of the Hub.

    Returns:
        Text of README.md.

    Raises:
        FileNotFoundError: The folder is not a run folder, or the run has no agent yet.
        ValueError: A file of the run is damaged.
    """
    run = _run_with_agent(folder)
    config, task = run.config, run.task
    path = run.path(_RESULTS)
    results = Results.read(path) if path.is_file() else None
    title = repo_id.rpartition("/")[2]
    env_id = config.environment.id or task.name
    lines = [
        *header(license_id, [task.name, "cma-es"]),
        *(_model_index(title, env_id, results.agent) if results else []),
        "---",
        "",
        f"# {title}",
        "",
        f"World model (V, M) and agent (C) for `{env_id}`, trained with "
        "[worldmodels](https://pypi.org/project/worldmodels-rl), an implementation of *World Models* (Ha & "
        "Schmidhuber, 2018).",
        *([task.description] if task.description else []),
        "",
        *_scores(results, task),
        *([f"![The agent in the real environment]({_RECORDING})", ""] if run.path(_RECORDING).is_file() else []),
        *usage(repo_id, ["Agent", "WorldModel", "ConvVAE"]),
        *_training(run, task, results),
        *_limits(run, task, results),
    ]
    return "\n".join(lines)


def _model_index(title: str, env_id: str, agent: Scores) -> list[str]:
    """Metadata of the agent's score, in YAML; strings are quoted as in JSON, which YAML contains."""
    interval = format_interval(agent, digits=2, fewest=1)
    return [
        "model-index:",
        f"- name: {json.dumps(title)}",
        "  results:",
        "  - task:",
        "      type: reinforcement-learning",
        "      name: reinforcement-learning",
        "    dataset:",
        f"      name: {json.dumps(env_id)}",
        f"      type: {json.dumps(env_id)}",
        "    metrics:",
        "    - type: mean_reward",
        f"      value: {format_number(agent.mean, scale_of(agent), digits=2)}",
        f'      name: "mean_reward, {len(agent.scores)} episodes, 95 % interval {interval}"',
        "      verified: false",
    ]


def _scores(results: Results | None, task: tasks.Task) -> list[str]:
    """Table of the players' scores."""
    if results is None:
        return ["## Scores", "", "The run has no results: `worldmodels evaluate` was not run.", ""]
    rows = []
    for label, one in results.labelled():
        mean, std = (format_number(value, scale_of(one), digits=1) for value in (one.mean, one.std))
        interval = format_interval(one, digits=1, fewest=1)
        rows.append(f"| {label} | {mean} | {std} | {interval} | {len(one.scores)} |")
    environment = results.environment
    variant = ", ".join(filter(None, [environment.variant, environment.resolution, environment.backend]))
    where = f"`{environment.id}`" + (f" ({variant})" if variant else "")
    return [
        "## Scores",
        "",
        f"Returns per episode in {where}, in {task.score}.",
        "",
        "| player | mean | standard deviation | 95 % interval of the mean | episodes |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _training(run: RunFolder, task: tasks.Task, results: Results | None) -> list[str]:
    """The command that repeats the run, and the versions of the packages."""
    from worldmodels.pipeline.verdict import format_command

    given = run.given
    lines = ["## Training", ""]
    if given.preset in task.presets and task.env_id:
        line = format_command(given, default_folder(task.name))
        lines += ["```bash", line, "```", ""]
    used = ", ".join(f"{name} {number}" for name, number in results.versions.items()) if results else ""
    return [*lines, f"Seed {given.seed}." + (f" Versions: {used}." if used else ""), ""]


def _limits(run: RunFolder, task: tasks.Task, results: Results | None) -> list[str]:
    """What the models cannot do."""
    evolve = run.config.evolve
    where = f"the dream at temperature {evolve.temperature:g}" if evolve.evaluate_in == "dream" else "the environment"
    found = [
        f"V reads frames of 64x64 RGB of `{run.config.environment.id or task.name}` only.",
        f"C was evolved in {where}. A dream's return is M's prediction, not a score.",
        "One training run with one seed. Another seed gives another agent.",
    ]
    if results:
        count = len(results.agent.scores)
        found.append(f"The interval covers the choice of the {count} episodes, not that of the training seed.")
    failures = ((stage.command, run.summary(stage.name).get("failure")) for stage in STAGES)
    found += [f"{command}: {failure}" for command, failure in failures if failure]
    check = run.path("check_dream", "check_dream.json")
    found += DreamCheck.read(check).warnings if check.is_file() else []
    return ["## Limits", "", *(f"- {text}" for text in found), ""]
