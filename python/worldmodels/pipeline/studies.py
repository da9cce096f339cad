"""Studies: temperature sweep and ablations, over whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodels.analysis import figures
from worldmodels.analysis.stats import format_interval, format_mean, table
from worldmodels.data.records import AblationResult, Results, Scores, StudyResult, SweepResult
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config, RoundsConfig, override, round_config
from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.preflight import check_config, evolves_in_dream
from worldmodels.pipeline.rounds import run_earlier_rounds
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.scores import share_scores
from worldmodels.pipeline.stage import M
from worldmodels.pipeline.stages import NAMES, STAGES, get
from worldmodels.pipeline.tasks import Temperatures
from worldmodels.support.files import link, write_json
from worldmodels.support.validation import check_integer, check_real

#: Stages that train V and M.
_WORLD_MODEL_STAGES = tuple(stage.name for stage in STAGES if stage.world_model)


def sweep(
    folder: Path,
    config: Config,
    temperatures: Sequence[float],
    *,
    force: bool = False,
    only: int | None = None,
    log_to: Sequence[str] = (),
) -> list[SweepResult]:
    """Evolve one controller per temperature in the same M, and play the game with each.

    Writes ``temperatures/<temperature>/`` (run folders), ``temperatures/sweep.json`` and ``temperatures/sweep.png``.

    Args:
        folder: Run folder; incomplete stages up to ``train-rnn`` run first.
        config: Settings of the run.
        temperatures: Temperatures of the dreams.
        force: Whether stages may build on a model that failed its quality check.
        only: Number of one temperature, from 1 on, that runs alone; several processes may run different ones at once. 0
            for the stages up to ``train-rnn`` alone. Nothing is written outside of their run folders.
        log_to: Names of the sinks that get the metrics too.

    Returns:
        One result per temperature, in the order given; none with ``only``.

    Raises:
        ValueError: There are no temperatures, one is negative or repeated, or C is not evolved in the dream or is
            refined; there is no temperature ``only``.
        FileNotFoundError: With ``only`` above 0, the stages up to ``train-rnn`` are not complete.
    """
    _check_evolves_in_dream(config, "sweep")
    if not temperatures or len(set(temperatures)) != len(temperatures):
        raise ValueError(f"--temperatures: expected distinct numbers, got {list(temperatures)}")
    for value in temperatures:
        check_real("--temperatures", value, 0)
    names = [f"{value:g}" for value in temperatures]
    if len(set(names)) != len(names):
        raise ValueError(f"--temperatures: expected numbers distinct in six digits, got {list(temperatures)}")
    variants = {f"{value:g}": {"evolve": {"temperature": float(value)}} for value in temperatures}
    if only is not None:
        _one_variant(folder, config, variants, check_integer("--only", only, 0, len(variants)), force, log_to)
        return []
    found = _variants(folder, config, "temperatures", variants, force, log_to)
    results = [
        SweepResult(temperature=float(value), **vars(result)) for value, result in zip(temperatures, found, strict=True)
    ]
    _write(folder / "temperatures" / "sweep.json", results)
    task = tasks.of(config)
    figures.sweep(folder / "temperatures" / "sweep.png", results, task.paper_scores, task.score)
    print(sweep_table(results, task.paper_scores))
    return results


def sweep_table(results: Sequence[SweepResult], paper: Temperatures) -> str:
    """Format the scores by temperature as a table, next to the paper's scores if there are any."""
    heads, rows = ["temperature", "dream", "game", "95 % interval"], []
    for result in results:
        cells = [f"{result.temperature:g}", _mean_and_std(result.dream), *_score_cells(result.game)]
        paper_cells = [f"{mean} +- {std}" for mean, std in paper.get(result.temperature, ())] or ["", ""]
        rows.append([*cells, *(paper_cells if paper else [])])
    return table([*heads, *(["paper: dream", "paper: game"] if paper else [])], rows)


def ablate(folder: Path, config: Config, *, force: bool = False, log_to: Sequence[str] = ()) -> list[AblationResult]:
    """Evolve a controller for each ablation of the task, and play the game with each.

    Variants share the outputs of every stage whose settings they do not change. Writes ``ablations/<variant>/`` (run
    folders) and ``ablations/ablate.json``.

    Args:
        folder: Run folder; incomplete stages up to ``train-rnn`` run first.
        config: Settings of the run.
        force: Whether stages may build on a model that failed its quality check.
        log_to: Names of the sinks that get the metrics too.

    Returns:
        One result per variant.

    Raises:
        ValueError: The task has no ablations, or C is refined.
    """
    ablations = tasks.of(config).ablations
    if not ablations:
        raise ValueError(f"task: expected a task with ablations, got {config.task!r}, which has none")
    variants = {
        name: {section: dict(values) for section, values in changes.items()} for name, changes in ablations.items()
    }
    found = _variants(folder, config, "ablations", variants, force, log_to)
    results = []
    for (name, changes), result in zip(variants.items(), found, strict=True):
        evolve = override(config, changes).evolve
        results.append(
            AblationResult(variant=name, features=evolve.features, evaluate_in=evolve.evaluate_in, **vars(result))
        )
    _write(folder / "ablations" / "ablate.json", results)
    rows = [
        [r.variant, str(r.parameters), r.evaluate_in, _mean_and_std(r.dream), *_score_cells(r.game)] for r in results
    ]
    print(table(["inputs of C", "parameters", "evolved in", "dream", "game", "95 % interval"], rows))
    return results


def _check_evolves_in_dream(config: Config, study: str) -> None:
    """Check that a study of dreams evolves C in the dream."""
    if config.evolve.evaluate_in != "dream":
        raise ValueError(evolves_in_dream(study, config))


def branch(base: Path, child: Path, stages: Sequence[str]) -> None:
    """Link the outputs of complete stages into a new run folder (copy them to another file system)."""
    for stage in stages:
        marker = base / "stages" / f"{stage}.json"
        outputs = [path for path in sorted((base / get(stage).folder).rglob("*")) if path.is_file()]
        for path in [*outputs, marker]:
            target = child / path.relative_to(base)
            if target.exists() or path.name.endswith(".tmp"):
                continue
            link(path, target)


def _variants(
    folder: Path,
    config: Config,
    kind: str,
    changes: dict[str, dict[str, dict[str, Any]]],
    force: bool,
    log_to: Sequence[str],
) -> list[StudyResult]:
    """Run each variant; variants share the stages that train V and M up to the first whose settings differ."""
    last, variants = _settings(folder, config, changes)
    _check_children({_child(folder, kind, name): settings for name, settings in variants.items()})
    with Run(folder, config, force=force, log_to=log_to) as run:
        _run_shared(run)
        results = []
        scored = folder
        for name, settings in variants.items():
            child = _child(folder, kind, name)
            results.append(_variant(folder, child, f"{kind}: {name}", last, settings, scored, force, log_to))
            scored = child
    return results


def _one_variant(
    folder: Path,
    config: Config,
    changes: dict[str, dict[str, dict[str, Any]]],
    number: int,
    force: bool,
    log_to: Sequence[str],
) -> None:
    """Run one variant of a sweep, without the lock of the run folder; or, for number 0, what all share."""
    last, variants = _settings(folder, config, changes)
    if number == 0:
        with Run(folder, config, force=force, log_to=log_to) as run:
            _run_shared(run)
        return
    base = RunFolder(folder, config)
    for stage in _WORLD_MODEL_STAGES:
        if not base.is_done(stage):
            raise FileNotFoundError(
                f"{folder}: --only {number} needs the outputs of `worldmodels {get(stage).command}`; "
                "`worldmodels sweep --only 0` makes them"
            )
    name, settings = list(variants.items())[number - 1]
    _variant(folder, _child(folder, "temperatures", name), f"temperature {name}", last, settings, folder, force, log_to)


def _settings(
    folder: Path, config: Config, changes: dict[str, dict[str, dict[str, Any]]]
) -> tuple[Config, dict[str, Config]]:
    """Return the settings of the last round and those of each variant, checked.

    Raises:
        ValueError: A setting is invalid, or the run has a refinement, which is not part of a study.
    """
    if config.refine.generations:
        raise ValueError(
            f"refine.generations: expected 0, as variants are not refined in the real environment, got "
            f"{config.refine.generations}; use --refine.generations 0 and an --out of its own"
        )
    last = replace(round_config(config, config.last_round, folder), rounds=RoundsConfig())
    variants = {name: override(last, changed) for name, changed in changes.items()}
    for settings in variants.values():
        copied = settings.world_model and (folder / M).is_file()
        given = replace(settings, world_model=str(folder.absolute())) if copied else settings
        check_config(given, ("evolve", "evaluate"), sources_exist=config.last_round == 0)
    return last, variants


def _run_shared(run: Run) -> None:
    """Run the stages that train V and M."""
    run_earlier_rounds(run)
    for stage in _WORLD_MODEL_STAGES:
        run.run_stage(stage)


def _check_children(children: dict[Path, Config]) -> None:
    """Check that no variant was made with other settings, before any model is trained."""
    found = {}
    for child, settings in children.items():
        try:
            RunFolder(child, settings).check_settings()
        except ValueError as error:
            found[child] = error
    if found:
        raise ValueError(
            f"{', '.join(map(str, found))}: made with other settings: {next(iter(found.values()))}. To make these "
            "variants again, remove their folders"
        )


def _child(folder: Path, kind: str, name: str) -> Path:
    """Return the run folder of a variant."""
    return folder / kind / name.replace(", ", "_").replace(" ", "-")


def _variant(
    folder: Path,
    child: Path,
    title: str,
    last: Config,
    settings: Config,
    scored: Path,
    force: bool,
    log_to: Sequence[str],
) -> StudyResult:
    """Run one variant.

    Args:
        folder: Run folder of the study.
        child: Run folder of the variant.
        title: Title above its output.
        last: Settings of the study's last round.
        settings: Settings of the variant.
        scored: Run folder with scores of open-loop policies.
        force: Whether stages may build on a model that failed its quality check.
        log_to: Names of the sinks that get the metrics too.
    """
    same = [getattr(settings, stage) == getattr(last, stage) for stage in _WORLD_MODEL_STAGES]
    shared = [stage for number, stage in enumerate(_WORLD_MODEL_STAGES, 1) if all(same[:number])]
    branch(folder, child, shared)
    share_scores(scored, child, tasks.of(settings).baselines)
    print(title)
    with Run(child, settings, force=force, log_to=log_to) as variant:
        for stage in NAMES[:-1]:  # all but the report
            if stage != "check_dream" or settings.evolve.evaluate_in == "dream":
                variant.run_stage(stage)
        return _result(variant)


def _result(run: Run) -> StudyResult:
    results, evolved = Results.read(run.path("results.json")), run.summary("evolve")
    return StudyResult(
        dream=results.dream.evaluation if results.dream else None,
        game=results.agent,
        generation=evolved["generation"],
        parameters=evolved["parameters"],
    )


def _write(path: Path, results: Sequence[StudyResult]) -> None:
    write_json(path, [result.to_json() for result in results])


def _mean_and_std(scores: Scores | None) -> str:
    """Format mean and standard deviation; empty if there are no scores."""
    return "" if scores is None else format_mean(scores)


def _score_cells(scores: Scores) -> list[str]:
    return [_mean_and_std(scores), format_interval(scores)]
