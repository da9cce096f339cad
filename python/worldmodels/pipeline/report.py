"""Report: figures of everything the run measured, and one HTML page that can be sent to someone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodels.analysis import figures
from worldmodels.analysis.animation import save_gif
from worldmodels.analysis.recording import from_dream
from worldmodels.analysis.stats import termination_rates
from worldmodels.data.records import (
    DreamCheck,
    EpisodeTrace,
    GenerationLine,
    RNNQuality,
    TrainingLine,
    VAEQuality,
)
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.agent import load_controller
from worldmodels.models.decoder import Decoder
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model
from worldmodels.pipeline.dream_page import make_page
from worldmodels.pipeline.evaluators import make_dream, playback_precision
from worldmodels.pipeline.report_page import DREAM_PAGE, render_page
from worldmodels.pipeline.rounds import RoundResult, round_results
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.verdict import read_results
from worldmodels.support.files import atomic_path
from worldmodels.support.profile import phase
from worldmodels.web.page import wasm_is_built, write_page

PAGE = "report/index.html"
#: Edges of the bins of episode steps in :func:`_draw_rounds`, as fractions of the longest episode.
_AGES = (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1)


def write_report(run: Run) -> dict[str, Any]:
    """Draw the figures into ``report/`` and write ``report/index.html``."""
    results = read_results(run.path("results.json"), run.config.evolve.evaluate_in)
    check = DreamCheck.read(run.path("check_dream", "check_dream.json"))
    folder = run.path("report")
    folder.mkdir(exist_ok=True)
    config, task = run.config, run.task
    with phase("dream"):
        dreamed = _draw_dream(run, folder / "dream_strip.png", folder / "dream.gif")
    with phase("figures"):
        if not config.world_model:
            lines = (TrainingLine.from_lines(run.metrics(f"train-{name}")) for name in ("vae", "rnn"))
            figures.losses(folder / "losses.png", *lines)
        quality = _quality(run)
        if quality:
            figures.quality(folder / "quality.png", *quality)
        where = "in the real environment"
        if config.evolve.evaluate_in == "dream":
            where = f"in the dream (temperature {config.evolve.temperature})"
        evolved = [line for line in run.metrics("evolve") if line["generation"] <= config.evolve.generations]
        generations = GenerationLine.from_lines(evolved)
        figures.evolution(
            folder / "evolution.png", generations, f"Evolution of C {where}", task.score, results.curve or []
        )
        if check.policies:
            figures.reality_check(folder / "reality_check.png", check.policies, check.temperature, task.score)
        rounds = round_results(run) if run.given.last_round else []
        if rounds:
            _draw_rounds(run, folder, rounds)
        figures.scores(folder / "scores.png", results, task.score, task.paper_score[0] if task.paper_score else None)
        recorded = run.path("evaluate", "episode.json")
        if recorded.is_file() and not task.survival:  # the cumulative reward of a survival task is its step number
            figures.episode(folder / "episode.png", EpisodeTrace.read(recorded), task.score)
    with phase("page"):
        _write_dream(run, folder / DREAM_PAGE)
    with atomic_path(run.path(PAGE)) as temporary:
        temporary.write_text(render_page(run, folder, results, check, dreamed, quality, rounds), encoding="utf-8")
    print(f"report: {run.path(PAGE)}")
    return {"page": PAGE, "dreamed_steps": dreamed}


def _draw_dream(run: Run, strip: Path, animation: Path) -> int:
    """One dream of the evolved controller, as a strip and as a GIF; returns its length in steps."""
    config = run.config
    _, params, _ = load_controller(run.path("evolve", "controller.safetensors"))
    dream = make_dream(run, precision=playback_precision(run))
    trace = dream.trace(params, seed=config.seed, max_steps=min(config.evolve.max_steps, 2**20))
    vae = load_model(run.path("vae", "vae.safetensors"), ConvVAE)
    length = len(trace.action)
    steps = np.unique(np.linspace(0, length, 24).astype(int))
    figures.film_strip(strip, Decoder(vae)(trace.z[steps]), [int(step) for step in steps])
    weight = load_world_model(run.folder).mdnrnn.done_pos_weight
    save_gif(animation, from_dream(dream, trace, vae, weight, config.report.dream_steps, **run.task.look))
    return length


def _write_dream(run: Run, path: Path) -> None:
    """Write the page of the run's dream, if the native core for browsers was built."""
    path.unlink(missing_ok=True)
    if wasm_is_built():
        write_page(make_page(run.folder, run.config), path, split=False)


def _quality(run: Run) -> tuple[VAEQuality, RNNQuality] | None:
    """Read the quality of V and M; None for world models without it."""
    vae, rnn = run.path("vae", "quality.json"), run.path("rnn", "quality.json")
    return (VAEQuality.read(vae), RNNQuality.read(rnn)) if vae.is_file() and rnn.is_file() else None


def _draw_rounds(run: Run, folder: Path, rounds: Sequence[RoundResult]) -> None:
    """Draw the scores of the agents, of the open-loop policies and, for survival tasks, termination rates by step."""
    task, unit = run.task, run.task.score
    figures.rounds(folder / "rounds.png", [one.dream for one in rounds], [one.game for one in rounds], unit)
    if rounds[-1].check.policies:
        figures.round_checks(folder / "round_checks.png", [one.check.policies for one in rounds], unit)
    if task.survival:  # a score is the length of an episode
        edges = [fraction * task.max_steps for fraction in _AGES]
        rates = [
            (
                termination_rates(one.dream.scores if one.dream else [], edges, part.config.evolve.max_steps),
                termination_rates(one.game.scores, edges, task.max_steps),
            )
            for one, part in zip(rounds, run.rounds, strict=True)
        ]
        figures.terminations(folder / "terminations.png", edges, rates)
