"""Studies: temperature sweep, ablations, and iterative training over whole runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from worldmodels.analysis import figures
from worldmodels.analysis.stats import format_interval, table
from worldmodels.data.records import AblationResult, Results, RoundResult, Scores, StudyResult, SweepResult
from worldmodels.envs.policies import parse_policies
from worldmodels.pipeline import tasks
from worldmodels.pipeline.collection import player_metadata
from worldmodels.pipeline.config import Config, override
from worldmodels.pipeline.preflight import check_config
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES, STAGES, get
from worldmodels.pipeline.tasks import Temperatures
from worldmodels.support.files import link, write_json
from worldmodels.support.validation import MAX_SEED

#: Stages that train V and M.
_WORLD_MODEL_STAGES = tuple(stage.name for stage in STAGES if stage.world_model)


def sweep(folder: Path, config: Config, temperatures: Sequence[float], *, force: bool = False) -> list[SweepResult]:
    """Evolve one controller per temperature in the same M, and play the game with each.

    Writes ``temperatures/<temperature>/`` (run folders), ``temperatures/sweep.json`` and ``temperatures/sweep.png``.

    Args:
        folder: Run folder; incomplete stages up to ``train-rnn`` run first.
        config: Settings of the run.
        temperatures: Temperatures of the dreams.
        force: Whether stages may build on a model that failed its quality gate.

    Returns:
        One result per temperature, in the order given.

    Raises:
        ValueError: There are no temperatures, a temperature is repeated, or C is not evolved in the dream.
    """
    _check_evolves_in_dream(config, "sweep")
    if not temperatures or len(set(temperatures)) != len(temperatures):
        raise ValueError(f"--temperatures: expected distinct numbers, got {list(temperatures)}")
    names = [f"{value:g}" for value in temperatures]
    if len(set(names)) != len(names):
        raise ValueError(f"--temperatures: expected numbers distinct in six digits, got {list(temperatures)}")
    variants = {f"{value:g}": override(config, {"evolve": {"temperature": float(value)}}) for value in temperatures}
    found = _variants(folder, config, "temperatures", variants, force)
    results = [
        SweepResult(temperature=float(value), **vars(result)) for value, result in zip(temperatures, found, strict=True)
    ]
    _write(folder / "temperatures" / "sweep.json", results)
    task = tasks.get(config.task)
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


def ablate(folder: Path, config: Config, *, force: bool = False) -> list[AblationResult]:
    """Evolve a controller for each ablation of the task, and play the game with each.

    Variants share the outputs of every stage whose settings they do not change. Writes ``ablations/<variant>/`` (run
    folders) and ``ablations/ablate.json``.

    Args:
        folder: Run folder; incomplete stages up to ``train-rnn`` run first.
        config: Settings of the run.
        force: Whether stages may build on a model that failed its quality gate.

    Returns:
        One result per variant.

    Raises:
        ValueError: The task has no ablations.
    """
    ablations = tasks.get(config.task).ablations
    if not ablations:
        raise ValueError(f"task: expected a task with ablations, got {config.task!r}, which has none")
    variants = {
        name: override(config, {section: dict(values) for section, values in changes.items()})
        for name, changes in ablations.items()
    }
    found = _variants(folder, config, "ablations", variants, force)
    results = [
        AblationResult(variant=name, features=evolve.features, evaluate_in=evolve.evaluate_in, **vars(result))
        for (name, evolve), result in zip(((name, v.evolve) for name, v in variants.items()), found, strict=True)
    ]
    _write(folder / "ablations" / "ablate.json", results)
    rows = [
        [r.variant, str(r.parameters), r.evaluate_in, _mean_and_std(r.dream), *_score_cells(r.game)] for r in results
    ]
    print(table(["inputs of C", "parameters", "evolved in", "dream", "game", "95 % interval"], rows))
    return results


def iterate(folder: Path, config: Config, *, force: bool = False) -> list[RoundResult]:
    """Run the iterative training procedure of the paper (section 5): collect with C, train V and M further, evolve C.

    Round 0 is the run folder itself. Round N is the run folder ``rounds/N``: its episodes are those of the previous
    round and new ones played by the previous agent, its V and M are initialized from the previous ones, and its C is
    evolved from zeros, because further training changes the meaning of M's hidden state. C is evolved in dreams only.
    Writes ``rounds/rounds.json``.

    Args:
        folder: Run folder; incomplete stages run first.
        config: Settings of the run; ``config.iterate`` has those of the rounds.
        force: Whether stages may build on a model that failed its quality gate.

    Returns:
        One result per round, starting with round 0.

    Raises:
        ValueError: The run has a given world model or does not evolve C in the dream, a policy of the rounds is
            unknown, or the C of the previous round has changed since a round collected its episodes.
    """
    if config.world_model:
        raise ValueError(
            f"iterate: expected a run that trains V and M, got one with the world model {config.world_model}"
        )
    _check_evolves_in_dream(config, "iterate")
    settings = config.iterate
    if config.seed + settings.rounds > MAX_SEED:
        raise ValueError(
            f"--seed: expected at most 2**64 - 1 in the last of {settings.rounds} rounds, got {config.seed}"
        )
    parse_policies(settings.policies, tasks.get(config.task).policies, "iterate.policies")
    results = []
    previous = folder
    for number in range(settings.rounds + 1):
        current = folder / "rounds" / str(number) if number else folder
        with Run(current, _round_config(config, number, previous) if number else config, force=force) as run:
            if number > 0:
                _check_player(run, previous)
            for name in NAMES:
                run.run_stage(name)
            results.append(RoundResult(round=number, episodes=_episodes(run), **vars(_result(run))))
        _write(folder / "rounds" / "rounds.json", results)
        previous = current
    rows = [[str(r.round), f"{r.episodes:,}", _mean_and_std(r.dream), *_score_cells(r.game)] for r in results]
    print(table(["round", "episodes", "dream", "game", "95 % interval"], rows))
    return results


def _round_config(config: Config, number: int, previous: Path) -> Config:
    """Return the settings of a round after the first.

    Args:
        config: Settings of the run.
        number: Number of the round.
        previous: Run folder of the previous round.
    """
    settings, source = config.iterate, str(previous.absolute())
    return override(
        replace(config, seed=config.seed + number),
        {
            "collect": {
                "episodes": settings.episodes,
                "policies": settings.policies,
                "min_length": 1,
                "agent": source,
                "include": source,
            },
            "train_vae": {"steps": settings.vae_steps, "lr": settings.vae_lr, "init_from": source},
            "train_rnn": {"steps": settings.rnn_steps, "lr": settings.rnn_lr, "init_from": source},
            "evolve": {"generations": settings.generations, "init_from": ""},
        },
    )


def _check_evolves_in_dream(config: Config, study: str) -> None:
    """Check that a study of dreams evolves C in the dream."""
    if config.evolve.evaluate_in != "dream":
        presets = tasks.get(config.task).presets.items()
        dreaming = " or ".join(f"--preset {name}" for name, preset in presets if preset.evolve.evaluate_in == "dream")
        raise ValueError(
            f"evolve.evaluate_in: expected dream for {study}{dreaming and f' ({dreaming})'}, got "
            f"{config.evolve.evaluate_in}"
        )


def _check_player(run: Run, previous: Path) -> None:
    """Check that a round's episodes were played by the present C of the previous round."""
    player = run.summary("collect").get("player")
    present = player_metadata(previous)
    if player is not None and player != present:
        raise ValueError(
            f"{run.folder}: expected episodes of the C of {previous}, generation {present['generation']}, got episodes "
            f"of its generation {player['generation']}; use another --out, or rerun the round with "
            f"`worldmodels collect --out {run.folder} --force`"
        )


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


def _share_scores(base: Path, child: Path, baselines: Iterable[str]) -> None:
    """Link the cached scores of open-loop policies into another run folder."""
    for path in [*base.glob("check_dream/*.jsonl"), *(base / "evaluate" / f"{name}.jsonl" for name in baselines)]:
        target = child / path.relative_to(base)
        if path.is_file() and not target.exists():
            link(path, target)


def _variants(folder: Path, config: Config, kind: str, variants: dict[str, Config], force: bool) -> list[StudyResult]:
    """Run each variant; variants share the stages that train V and M up to the first whose settings differ."""
    for settings in variants.values():
        check_config(settings, ("evolve", "evaluate"))
    with Run(folder, config, force=force) as run:
        for stage in _WORLD_MODEL_STAGES:
            run.run_stage(stage)
        results = []
        scored = folder
        for name, settings in variants.items():
            child = folder / kind / name.replace(", ", "_").replace(" ", "-")
            same = [getattr(settings, stage) == getattr(config, stage) for stage in _WORLD_MODEL_STAGES]
            shared = [stage for number, stage in enumerate(_WORLD_MODEL_STAGES, 1) if all(same[:number])]
            branch(folder, child, shared)
            _share_scores(scored, child, run.task.baselines)
            print(f"{kind}: {name}")
            with Run(child, settings, force=force) as variant:
                for stage in NAMES[:-1]:  # all but the report
                    if stage != "check_dream" or settings.evolve.evaluate_in == "dream":
                        variant.run_stage(stage)
                results.append(_result(variant))
            scored = child
    return results


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


def _episodes(run: Run) -> int:
    from worldmodels.data.episodes import EpisodeStore

    store = EpisodeStore(run.path("episodes"))
    count = len(store.lengths)
    store.close()
    return count


def _mean_and_std(scores: Scores | None) -> str:
    """Format mean and standard deviation; empty if there are no scores."""
    return "" if scores is None else f"{scores.mean:.0f} +- {scores.std:.0f}"


def _score_cells(scores: Scores) -> list[str]:
    return [_mean_and_std(scores), format_interval(scores)]
