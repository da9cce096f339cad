"""Commands that run stages: one, all of them, or a study."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodels.cli.arguments import ALL_STAGES, default_preset
from worldmodels.cli.imports import import_torch
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config, override
from worldmodels.pipeline.config_file import ConfigFile, format_config, read_config_file
from worldmodels.pipeline.folder import RunFolder, default_folder
from worldmodels.pipeline.inputs import check_inputs, require_earlier
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.sinks import check_sinks
from worldmodels.pipeline.stage import command
from worldmodels.pipeline.stages import NAMES, STAGES
from worldmodels.pipeline.status import stage_statuses
from worldmodels.support.cluster import use_cluster
from worldmodels.support.launch import check_launch
from worldmodels.support.processes import keep_sigint
from worldmodels.support.validation import MAX_SEED, check_integer


def run_stages(options: argparse.Namespace) -> None:
    """Run the stages of a command in a run folder."""
    cluster = None if vars(options).get("dry_run") else vars(options).get("cluster")
    check_launch(os.environ, on_cluster=cluster is not None)
    with use_cluster(cluster), keep_sigint():
        if vars(options).get("dry_run"):
            with redirect_stdout(sys.stderr):  # what packages print must not get into the plan
                out, config = _settings(options)
                run = Run.check(out, config)
            _print_plan(options, run)
        else:
            _work(options, *_settings(options))


def _settings(options: argparse.Namespace) -> tuple[Path, Config]:
    """Return the run folder and the settings of a command."""
    file = read_config_file(Path(options.config)) if options.config else ConfigFile()
    chosen = vars(options)
    chosen |= {name: value for name, value in file.top.items() if chosen.get(name) is None}
    if options.command in ALL_STAGES and options.task is None:
        raise ValueError(f"{options.config}: expected a task, as the command has none")
    changes = {section: dict(values) for section, values in file.changes.items()}
    for key, value in chosen.items():
        section, dot, name = key.partition(".")
        if dot:
            changes.setdefault(section, {})[name] = value
    out = Path(chosen.get("out") or _folder(options))
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out: expected a folder, got a file: {out}")
    config = override(_config(options, out, changes), changes)
    if options.command == "collect" and changes.get("collect", {}).get("source"):  # also if the stage is complete
        from worldmodels.pipeline.recordings import check_source

        check_source(config)
    stage = options.command.replace("-", "_")
    trained = [one.name for one in STAGES if one.world_model and (one.name in changes or one.name == stage)]
    if config.world_model and trained:
        raise ValueError(
            f"{command(trained[0])}: nothing to do in {out}, a run with the world model {config.world_model}; use "
            "another --out, and --from-scratch with `worldmodels run`"
        )

    if options.command == "iterate" and config.rounds.rounds == 0:
        if changes.get("rounds", {}).get("rounds") == 0:
            raise ValueError("--rounds: expected at least 1, got 0; `worldmodels run` runs without rounds")
        config = override(config, {"rounds": {"rounds": 1}})
    check_sinks(options.log)
    if config.evolve.device == "cuda" and options.command in (*ALL_STAGES, "evolve"):
        import_torch()
        from worldmodels.pipeline.evaluators import gpu

        gpu()  # raises before V and M are trained
    return out, config


def _work(options: argparse.Namespace, out: Path, config: Config) -> None:
    """Run the stages of a command."""
    stage = options.command.replace("-", "_")
    import_torch()
    if options.command in ("sweep", "ablate"):
        from worldmodels.pipeline import studies

        if options.command == "sweep":
            temperatures, only = options.temperatures, vars(options).get("only")
            studies.sweep(out, config, temperatures, force=options.force, only=only, log_to=options.log)
        else:
            studies.ablate(out, config, force=options.force, log_to=options.log)
        return
    if options.command in ALL_STAGES:
        from worldmodels.pipeline.rounds import run_all

        with Run(out, config, force=options.force, log_to=options.log) as run:
            _print_estimate(run)
            done = run.is_done("report")
            run_all(run)
            if run.ranks.is_main:
                _print_results(run, done)
        return
    require_earlier(RunFolder(out, config), stage)
    if options.force:
        check_inputs(out, stage)
    with Run(out, config, rerun=stage if options.force else None, force=options.force, log_to=options.log) as run:
        run.run_stage(stage)


def _print_plan(options: argparse.Namespace, run: RunFolder) -> None:
    """Print what a command would run, as a file of settings for --config with the stages as comments."""
    print(f"# worldmodels {options.command} {run.given.task}, in {run.folder}")
    for number, part in enumerate(run.rounds):
        if run.given.last_round:
            print(f"# round {number} of {run.given.last_round}: {part.folder}")
        for stage, status in zip(STAGES, stage_statuses(part), strict=True):
            state = f"{status.state}{f' ({status.progress})' if status.progress else ''}"
            if status.state == "to do" and stage.is_taken(part.config):
                state = f"taken from {part.config.world_model}"
            print(f"# {status.name:>12}  {state}")
    print(f"# {_estimate(run) or 'nothing to do'}\n")
    print(format_config(run.given, tasks.portable_preset(run.given)), end="")


def _print_estimate(run: Run) -> None:
    """Print the number of incomplete stages and the duration of all stages."""
    text = _estimate(run)
    if text and run.ranks.is_main:
        print(text, file=sys.stderr)


def _estimate(run: RunFolder) -> str:
    """Format the number of incomplete stages and the duration of all stages; empty if all are complete."""
    rounds = run.rounds
    total, left = len(NAMES) * len(rounds), sum(not part.is_done(name) for part in rounds for name in NAMES)
    if left == 0:
        return ""
    text = f"{left} stages" if left == total else f"{left} of {total} stages left"
    text += f" in {len(rounds)} rounds" if len(rounds) > 1 else ""
    lasts, preset = run.task.durations.get(run.config.preset), run.task.presets.get(run.config.preset)
    if lasts is not None and preset is not None:
        duration = f"about {lasts}"
        usual = left == total and replace(preset, seed=run.given.seed) == run.given
        number = len(NAMES) * (preset.last_round + 1)
        text += f", {duration}" if usual else f" (all {number} with the settings of preset {preset.preset}: {duration})"
    return text


def _print_results(run: Run, reported: bool) -> None:
    """Print the results of the rounds, the page of a report that was complete before, and the agent's score."""
    if not run.path("results.json").is_file():
        return
    from worldmodels.analysis.stats import table
    from worldmodels.data.records import Results
    from worldmodels.pipeline.rounds import ROUND_COLUMNS, round_results, round_rows
    from worldmodels.pipeline.verdict import format_score

    if run.given.last_round:
        print(table(ROUND_COLUMNS, round_rows(round_results(run), "+-")))
    if reported:  # else the stage has printed it
        print(f"report: {run.path('report', 'index.html')}")
    print(format_score(Results.read(run.path("results.json")), run.task))


def _folder(options: argparse.Namespace) -> Path:
    """Return the default run folder."""
    return default_folder(options.task, getattr(options, "preset", "quick" if options.from_scratch else ""))


def _config(options: argparse.Namespace, out: Path, changes: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return the settings of the run folder, or of the preset for a new run folder, without changes.

    Those of the environment are for the probe of a Gymnasium id, and the source of recordings names their task.
    """
    chosen = vars(options)
    all_stages, scratch = options.command in ALL_STAGES, chosen.get("from_scratch", False)
    given: dict[str, Any] = {key: chosen[key] for key in ("task", "preset", "world_model") if key in chosen}
    stored = Run.stored_config(out)
    source = changes.get("collect", {}).get("source")
    if stored is None and source:
        from worldmodels.pipeline.recordings import recordings_config

        if given:
            raise ValueError(f"--from: expected no {', '.join(f'--{command(key)}' for key in given)} next to it")
        config = recordings_config(source)
    elif stored is None:
        task = tasks.find(given.get("task", "takecover"), changes.get("environment"))
        default = default_preset(task, options.command, from_scratch=scratch)
        config = task.config(given.get("preset", default))
        config = replace(config, world_model=given.get("world_model", config.world_model))
        if not all_stages and "preset" not in given:
            print(f"{out}: new run folder of task {task.name}, preset {default}", file=sys.stderr)
    else:
        config = stored
        for key, value in given.items():
            if key == "world_model" and stored.world_model and value:  # the stages that used it check it
                config = replace(config, world_model=value)
            elif getattr(stored, key) != value:
                flag = key if all_stages and key == "task" else f"--{command(key)}"
                raise ValueError(f"{flag}: {out} holds a run of {key} {getattr(stored, key)!r}, got {value!r}")
        source = source or stored.collect.source
        is_new = options.command == "collect" and (options.force or not any((out / "episodes").glob("*.h5")))
        if is_new and source and tasks.is_recordings(stored.task):
            from worldmodels.pipeline.recordings import open_recordings

            config = replace(config, collect=replace(config.collect, episodes=len(open_recordings(source))))
    if scratch and config.world_model:
        raise ValueError(
            f"--from-scratch: expected a run that trains V and M, got one with the world model {config.world_model}"
        )
    if "seed" in chosen:
        config = replace(config, seed=check_integer("--seed", chosen["seed"], 0, MAX_SEED))
    return config
