"""Studies over whole runs: a sweep of temperatures, what C may see, and the article's iterative procedure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodels.analysis import figures
from worldmodels.analysis.stats import format_interval, table
from worldmodels.envs.policies import parse_policies
from worldmodels.pipeline import tasks
from worldmodels.pipeline.collection import player_of
from worldmodels.pipeline.config import Config, override
from worldmodels.pipeline.preflight import check_config
from worldmodels.pipeline.records import read_results
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES, STAGES, get
from worldmodels.pipeline.tasks import Temperatures
from worldmodels.support.files import link, write_json
from worldmodels.support.validation import MAX_SEED

Result = dict[str, Any]
#: Stages that build V and M.
_BUILDERS = tuple(stage.name for stage in STAGES if stage.world_model)


def sweep(folder: Path, config: Config, temperatures: Sequence[float], *, force: bool = False) -> list[Result]:
    """Evolves one controller per temperature in the same M and plays the game with each.

    Writes ``temperatures/<temperature>/`` (run folders), ``temperatures/sweep.json`` and ``temperatures/sweep.png``.

    Args:
        folder: the run folder; stages up to ``train-rnn`` are run if they are not done.
        config: its settings.
        temperatures: of the dreams.
        force: Whether stages may build on one that failed its purpose.

    Returns:
        One result per temperature, in their order: ``temperature``, ``dream`` and ``game`` (each ``mean``, ``std``,
        ``ci95``, ``scores``), ``generation``.

    Raises:
        ValueError: there are no temperatures, or one twice, or C is not evolved in the dream.
    """
    _check_inside(config, "sweep")
    if not temperatures or len(set(temperatures)) != len(temperatures):
        raise ValueError(f"--temperatures: expected different numbers, got {list(temperatures)}")
    names = [f"{value:g}" for value in temperatures]
    if len(set(names)) != len(names):
        raise ValueError(f"--temperatures: expected numbers that differ in six digits, got {list(temperatures)}")
    variants = {f"{value:g}": override(config, {"evolve": {"temperature": float(value)}}) for value in temperatures}
    results = _variants(folder, config, "temperatures", variants, force)
    for value, result in zip(temperatures, results, strict=True):
        result["temperature"] = float(value)
    write_json(folder / "temperatures" / "sweep.json", results)
    task = tasks.get(config.task)
    figures.sweep(folder / "temperatures" / "sweep.png", results, task.paper_scores, task.score)
    print(sweep_table(results, task.paper_scores))
    return results


def sweep_table(results: Sequence[Result], paper: Temperatures) -> str:
    """Scores by temperature, the paper's beside them if it has any."""
    heads, rows = ["temperature", "dream", "game", "95 % interval"], []
    for result in results:
        theirs = [f"{mean} +- {std}" for mean, std in paper.get(result["temperature"], ())] or ["", ""]
        ours = [f"{result['temperature']:g}", _spread(result["dream"]), *_scores(result["game"])]
        rows.append([*ours, *(theirs if paper else [])])
    return table([*heads, *(["paper: dream", "paper: game"] if paper else [])], rows)


def ablate(folder: Path, config: Config, *, force: bool = False) -> list[Result]:
    """Evolves the kinds of controllers that the run compares, and plays the game with each.

    Variants share every stage that they do not change; one with an untrained M has an M of its own. Writes
    ``ablations/<variant>/`` (run folders) and ``ablations/ablate.json``.

    Returns:
        One result per variant: ``variant``, ``features``, ``parameters``, ``inside``, ``dream`` (None where M predicts
        no reward), ``game``, ``generation``.

    Raises:
        ValueError: the run compares nothing.
    """
    kinds = tasks.get(config.task).ablations
    if not kinds:
        raise ValueError(f"run: expected one with ablations, got {config.task!r}, which names none")
    variants = {
        name: override(config, {section: dict(values) for section, values in changes.items()})
        for name, changes in kinds.items()
    }
    results = _variants(folder, config, "ablations", variants, force)
    for (name, settings), result in zip(variants.items(), results, strict=True):
        result |= {"variant": name, "features": settings.evolve.features, "inside": settings.evolve.evaluate_in}
    write_json(folder / "ablations" / "ablate.json", results)
    rows = [
        [
            r["variant"],
            str(r["parameters"]),
            r["inside"],
            _spread(r["dream"]),
            *_scores(r["game"]),
        ]
        for r in results
    ]
    print(table(["C sees", "parameters", "evolved in", "dream", "game", "95 % interval"], rows))
    return results


def iterate(folder: Path, config: Config, *, force: bool = False) -> list[Result]:
    """The article's iterative procedure: play with C, train V and M further on everything, evolve C in the new dream.

    Round 0 is the run folder itself; round N is the run folder ``rounds/N``, whose episodes are those of the round
    before and new ones played by its agent. V and M go on from those of the round before; C begins anew, as what it
    read in M's memory means something else in an M that has trained further. It is never evolved anywhere but in a
    dream. Writes ``rounds/rounds.json``.

    Args:
        folder: the run folder; its stages are run if they are not done.
        config: its settings; ``config.iterate`` are those of the rounds.
        force: Whether stages may build on one that failed its purpose.

    Returns:
        One result per round, 0 first: ``round``, ``episodes``, ``dream``, ``game``, ``generation``.

    Raises:
        ValueError: the run takes V and M from another one or evolves C elsewhere, the policies of the rounds have no
            such name, or a round was played by another C than the round before it has now.
    """
    if config.world_model:
        raise ValueError(
            f"iterate: expected a run that trains V and M, got one that takes them from {config.world_model}"
        )
    _check_inside(config, "iterate")
    settings = config.iterate
    if config.seed + settings.rounds > MAX_SEED:
        raise ValueError(
            f"--seed: expected at most 2**64 - 1 in the last of {settings.rounds} rounds, got {config.seed}"
        )
    parse_policies(settings.policies, tasks.get(config.task).policies, "iterate.policies")
    results = []
    previous = folder
    for number in range(settings.rounds + 1):
        here, wanted = folder, config
        if number > 0:
            here = folder / "rounds" / str(number)
            before = str(previous.absolute())
            wanted = override(
                replace(config, seed=config.seed + number),
                {
                    "collect": {
                        "episodes": settings.episodes,
                        "policies": settings.policies,
                        "min_length": 1,
                        "agent": before,
                        "include": before,
                    },
                    "train_vae": {"steps": settings.vae_steps, "lr": settings.vae_lr, "init_from": before},
                    "train_rnn": {"steps": settings.rnn_steps, "lr": settings.rnn_lr, "init_from": before},
                    "evolve": {"generations": settings.generations, "init_from": ""},
                },
            )
        with Run(here, wanted, force=force) as run:
            if number > 0:
                _check_player(run, previous)
            for name in NAMES:
                run.run_stage(name)
            results.append({"round": number, "episodes": _episodes(run), **_result(run)})
        write_json(folder / "rounds" / "rounds.json", results)
        previous = here
    rows = [[str(r["round"]), f"{r['episodes']:,}", _spread(r["dream"]), *_scores(r["game"])] for r in results]
    print(table(["round", "episodes", "dream", "game", "95 % interval"], rows))
    return results


def _check_inside(config: Config, study: str) -> None:
    """Refuses a study of dreams where C is evolved elsewhere."""
    if config.evolve.evaluate_in != "dream":
        presets = tasks.get(config.task).presets.items()
        dreaming = " or ".join(f"--preset {name}" for name, preset in presets if preset.evolve.evaluate_in == "dream")
        raise ValueError(
            f"evolve.evaluate_in: expected dream for {study}{dreaming and f' ({dreaming})'}, got "
            f"{config.evolve.evaluate_in}"
        )


def _check_player(run: Run, previous: Path) -> None:
    """Refuses a round whose episodes were played by a C that the round before it does not have any more."""
    played = run.summary("collect").get("player")
    now = player_of(previous)
    if played is not None and played != now:
        raise ValueError(
            f"{run.folder}: its episodes were played by the C of generation {played['generation']} of "
            f"{previous}, which has that of generation {now['generation']} now; use another --out, or "
            f"`worldmodels collect --out {run.folder} --force` to do the round anew"
        )


def branch(base: Path, child: Path, stages: Sequence[str]) -> None:
    """Gives a new run folder what completed stages of another one made, as hard links (copies, on another disk)."""
    for stage in stages:
        marker = base / "stages" / f"{stage}.json"
        made = [path for path in sorted((base / get(stage).folder).rglob("*")) if path.is_file()]
        for path in [*made, marker]:
            to = child / path.relative_to(base)
            if to.exists() or path.name.endswith(".tmp"):
                continue
            link(path, to)


def _share_scores(one: Path, other: Path, beside: Iterable[str]) -> None:
    """Gives a run folder the scores of another's policies that look at nothing, which need not be played again."""
    for path in [*one.glob("check_dream/*.jsonl"), *(one / "evaluate" / f"{name}.jsonl" for name in beside)]:
        to = other / path.relative_to(one)
        if path.is_file() and not to.exists():
            link(path, to)


def _variants(folder: Path, config: Config, kind: str, variants: dict[str, Config], force: bool) -> list[Result]:
    """Runs what is left to run with each of the settings, on the stages before that they have in common."""
    for settings in variants.values():
        check_config(settings, ("evolve", "evaluate"))
    with Run(folder, config, force=force) as run:
        for stage in _BUILDERS:
            run.run_stage(stage)
        results = []
        played = folder
        for name, settings in variants.items():
            child = folder / kind / name.replace(", ", "_").replace(" ", "-")
            same = [getattr(settings, stage) == getattr(config, stage) for stage in _BUILDERS]
            shared = [stage for number, stage in enumerate(_BUILDERS, 1) if all(same[:number])]
            branch(folder, child, shared)
            _share_scores(played, child, run.task.baselines)
            print(f"{kind}: {name}")
            with Run(child, settings, force=force) as variant:
                for stage in NAMES[:-1]:  # without the report
                    if stage != "check_dream" or settings.evolve.evaluate_in == "dream":
                        variant.run_stage(stage)
                results.append(_result(variant))
            played = child
    return results


def _result(run: Run) -> Result:
    scores = read_results(run.path("results.json"), run.config.evolve.evaluate_in)
    evolved = run.summary("evolve")
    return {
        "dream": scores["dream"]["evaluation"],
        "game": scores["agent"],
        "generation": evolved["generation"],
        "parameters": evolved["parameters"],
    }


def _episodes(run: Run) -> int:
    from worldmodels.data.episodes import EpisodeStore

    store = EpisodeStore(run.path("episodes"))
    count = len(store.lengths)
    store.close()
    return count


def _spread(scores: Result | None) -> str:
    """Mean and standard deviation; empty where a dream has no score."""
    return "" if scores is None else f"{scores['mean']:.0f} +- {scores['std']:.0f}"


def _scores(scores: Result) -> list[str]:
    return [_spread(scores), format_interval(scores)]
