"""The report's HTML page: its sections in their order."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from worldmodels.analysis.quality import PIXELS
from worldmodels.analysis.stats import format_interval, format_number, scale_of
from worldmodels.data.records import (
    DreamCheck,
    Results,
    RNNQuality,
    StageRecord,
    VAEQuality,
)
from worldmodels.pipeline import page as html
from worldmodels.pipeline.dream_check import score_cells
from worldmodels.pipeline.evaluation import format_environment, score_rows
from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.rounds import ROUND_COLUMNS, RoundResult, round_rows
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stage import Stage
from worldmodels.pipeline.stages import STAGES
from worldmodels.pipeline.verdict import format_command, format_verdict

DREAM_PAGE = "dream.html"  # in the folder of the report


def render_page(
    run: Run,
    folder: Path,
    results: Results,
    check: DreamCheck,
    dreamed: int,
    quality: tuple[VAEQuality, RNNQuality] | None,
    rounds: Sequence[RoundResult],
) -> str:
    """Render the page.

    Args:
        run: Run.
        folder: Folder of the report, with its figures.
        results: Scores.
        check: Dream check.
        dreamed: Steps of the recorded dream.
        quality: Quality of V and M, if it is known.
        rounds: Results of the rounds; none in a run without them.
    """
    title = f"World Models: {run.config.task}, preset {run.config.preset}"
    failures = [
        html.notice(f"{stage.command}: {failure}.", "warning")
        for stage in STAGES
        if (failure := run.summary(stage.name).get("failure"))
    ]
    parts = [
        f"<h1>{title}</h1>",
        *_introduction(run),
        _play(run, folder),
        html.notice(_verdict(run, results), "verdict"),
        *failures,
        *_scores(run, folder, results),
        *(_rounds(run, folder, rounds) if rounds else []),
        *_episodes(run, folder, dreamed),
        *_reality_check(run, folder, check),
        *_evolution(run, folder),
        *_training(run, folder, quality),
        *_making(run, results),
    ]
    return html.page(title, parts)


def _introduction(run: Run) -> list[str]:
    """What is played, what V, M and C are, and how the page was made."""
    config = run.config
    where = "inside M's dream, without the game" if config.evolve.evaluate_in == "dream" else "in the real environment"
    preset = run.task.presets.get(config.preset)
    made = f"Made on {time.strftime('%Y-%m-%d')} by:"
    return [
        html.text(run.task.description or f"The task is {run.task.env_id}; the score is in {run.task.score}."),
        html.text(
            "V, a variational autoencoder, compresses each frame into a latent vector z. M, a recurrent network with a "
            "mixture density head, predicts the next z, and is played as a dream. C, a small controller, chooses "
            f"actions from z and M's state; CMA-ES evolves it {where}."
        ),
        *([html.text(made), html.code(format_command(run.given, run.folder))] if preset else []),
    ]


def _play(run: Run, folder: Path) -> str:
    """The link to the page of the dream, or the command that makes it."""
    if (folder / DREAM_PAGE).is_file():
        return html.link("Play inside the dream", DREAM_PAGE)
    return html.code(shlex.join(["worldmodels", "web", str(run.folder)]))


def _verdict(run: Run, results: Results) -> str:
    verdict, score = format_verdict(results, run.task), results.evolved_score(run.config.evolve.evaluate_in)
    if run.config.evolve.evaluate_in == "environment" or results.dream is None:
        return f"{verdict} Its controller was evolved in the real environment, to {format_number(score)}."
    details, scale = f"at temperature {results.dream.temperature}", abs(score)
    if results.dream.evaluation is not None:
        scores = results.dream.evaluation
        score, scale, interval = scores.mean, scale_of(scores), format_interval(scores)
        details += f" ({f'95 % interval {interval}, ' if interval else ''}{len(scores.scores)} dreams"
        details += f" of at most {run.config.evolve.max_steps:,} steps)"
    found = format_number(score, scale)
    return f"{verdict} Its controller was evolved in the dream alone, where it scores {found} {details}."


def _scores(run: Run, folder: Path, results: Results) -> list[str]:
    rows = score_rows(results, "\u00b1")
    paper = run.task.paper_score
    if paper is not None:
        rows.append(["the paper's agent", "100", f"{paper[0]} \u00b1 {paper[1]}", ""])
    return [
        html.heading("Scores in the real environment"),
        html.picture(
            folder / "scores.png",
            "Histograms of the scores of the agent, of the collecting policy and of random play",
            "Scores per episode; vertical lines are means. A good agent's histogram lies to the right of the others, "
            "and its interval does not overlap theirs.",
        ),
        html.table(
            f"{format_environment(results)}: {run.task.score}, mean \u00b1 standard deviation over episodes, 95 % "
            "interval of the mean (from 20 episodes on)",
            ["player", "episodes", "score", "95 % interval"],
            rows,
        ),
    ]


_REFINED = "The last round keeps V and M, and evolves C further in the real environment. "


def _rounds(run: Run, folder: Path, rounds: Sequence[RoundResult]) -> list[str]:
    parts = [
        html.heading("Rounds"),
        html.text(
            "Round 0 collects with open-loop policies. A round of own play, one round of the paper's iterative "
            "training procedure (section 5), adds episodes of the previous round's agent, trains "
            f"{'V and M' if run.given.rounds.vae_steps else 'M'} further on all of them, and evolves a new C. "
            f"{_REFINED if run.given.refine.generations else ''}The last round's C is the agent; the rest of this "
            "page is about it."
        ),
        html.table(
            f"Score ({run.task.score}) of every round's agent in its dream and in n games, mean \u00b1 standard "
            "deviation, 95 % interval (from 20 games on); episodes that V and M were trained on; on held-out episodes "
            "of the round, M's negative log-likelihood per latent dimension and the fraction of terminations that it "
            "predicts",
            ROUND_COLUMNS,
            round_rows(rounds, "\u00b1"),
        ),
        html.picture(
            folder / "rounds.png",
            "Scores of the agent of every round in its dream and in the game, with 95 % intervals",
            "Good rounds raise the game's score. Where dream and game have episodes of the same length, they bring the "
            "two scores together.",
        ),
    ]
    if rounds[-1].check.policies:
        parts.append(
            html.picture(
                folder / "round_checks.png",
                "Scores of open-loop policies in the dream of every round and in the game, with 95 % intervals",
                "Open-loop policies, in the dream of every round and in the same games. Good rounds keep the bars of a "
                "policy as high as the game's.",
            )
        )
    if run.task.survival:
        parts.append(
            html.picture(
                folder / "terminations.png",
                "Termination rate (per 1,000 steps) of every round's agent by episode step, in dream and game",
                "Termination rate by episode step, where at least 1,000 steps were played. With a good world model the "
                "two curves of a round agree at every episode step.",
            )
        )
    return parts


def _episodes(run: Run, folder: Path, dreamed: int) -> list[str]:
    parts = [
        html.heading("One episode in the game, one in the dream"),
        html.side_by_side(
            html.picture(
                run.path("evaluate", "episode.gif"),
                f"Recording of the agent in the real environment; actions: {', '.join(run.task.actions)}",
                "The game, and V's reconstruction of each frame: what moves and matters in the frame should be in the "
                "reconstruction.",
            ),
            html.picture(
                folder / "dream.gif",
                "Recording of the agent in M's dream",
                "The dream of the same agent, decoded by V: it should move as the game does.",
            ),
        ),
        html.picture(
            folder / "dream_strip.png",
            f"Frames of the dream from step 0 to step {dreamed}",
            f"The same dream from its first to its last of {dreamed:,} steps. Late frames should look like early ones.",
        ),
        html.picture(
            run.path("evaluate", "frames.png"),
            "Frames of the game above V's reconstructions of them",
            "Frames with the most motion, above V's reconstructions: what moves should not be missing.",
        ),
    ]
    if (folder / "episode.png").is_file() and not run.task.survival:
        parts.append(
            html.picture(
                folder / "episode.png",
                "Cumulative reward over the steps of the recorded episode",
                "Cumulative reward of the recorded episode, and its path where the environment gives a track. A good "
                "agent's curve keeps rising.",
            )
        )
    return parts


def _reality_check(run: Run, folder: Path, check: DreamCheck) -> list[str]:
    heading = html.heading("Agreement between dream and game")
    if not check.policies:
        return [heading, html.text("M predicts no reward: a dream has no score to compare.")]
    rule = (
        "No warning: for every open-loop policy the 95 % intervals of dream and game scores overlap, or the two "
        "means are close (survival tasks: within a factor of 1.5; others: within half the range of the policies' game "
        "scores)."
    )
    rows = [[name, *score_cells(scores, "\u00b1")] for name, scores in check.policies.items()]
    return [
        heading,
        *([html.notice(warning, "warning") for warning in check.warnings] or [html.text(rule)]),
        html.picture(
            folder / "reality_check.png",
            "Scores of open-loop policies in the dream and in the game, with 95 % intervals",
            "Open-loop policies: their actions do not depend on the frames. In a good world model the two bars of a "
            "policy are equally high; a policy that scores more in the dream shows model bias that C can exploit.",
        ),
        html.table(
            f"Scores of open-loop policies in episodes of at most {run.config.evolve.max_steps:,} steps, mean \u00b1 "
            "standard deviation",
            ["policy", "dream", "game", "difference"],
            rows,
        ),
    ]


def _evolution(run: Run, folder: Path) -> list[str]:
    return [
        html.heading("Evolution"),
        html.picture(
            folder / "evolution.png",
            "Best, mean and worst score of the population and the evaluated CMA-ES mean, by generation",
            "Scores of each generation. In a good run the best and the mean rise and flatten, and the CMA-ES mean "
            "ends well above the first generation's.",
        ),
        html.text(
            "Three scores differ: the best candidate is the maximum of many noisy scores and overestimates, the "
            "CMA-ES mean is evaluated on episodes of its own, and the game's score is lower than the dream's where "
            "M is biased. Where evolution uses shorter episodes than the game, the two are not comparable."
        ),
    ]


def _training(run: Run, folder: Path, quality: tuple[VAEQuality, RNNQuality] | None) -> list[str]:
    world_model = run.config.world_model
    parts = [html.heading("V and M")]
    if world_model:
        parts.append(html.text(f"V and M are those of the world model {world_model}; this run trained neither."))
    else:
        parts.append(
            html.picture(
                folder / "losses.png",
                "Training and validation losses of V and M",
                "Losses over training. In good training both curves fall and stay together; a rising validation curve "
                "is overfitting.",
            )
        )
    if quality is None:
        return [*parts, html.text("Quality on held-out episodes: not measured by the version that trained V and M.")]
    picture = html.picture(
        folder / "quality.png",
        "V's reconstruction error by motion of the pixels, M's open-loop prediction error by horizon, and "
        "calibration of M's termination probability",
        "On held-out episodes. Good: V's bars lie far below the mean frame's, above all for moving pixels; M's error "
        "is below both baselines; the points of termination lie on the diagonal once the positive-class weight is "
        "removed.",
    )
    return [*parts, picture, html.details("Quality in numbers", *quality_tables(*quality))]


def quality_tables(vae: VAEQuality, rnn: RNNQuality) -> list[str]:
    """Format the quality of V and M as tables."""

    def number(value: float | None, digits: int = 4) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    pixels = []
    for name, row in vae.pixels.items():
        label = f"{name} pixels" if name != "moving much" else f"moving by over {PIXELS[name][0]}/255"
        cells = (row.share, 3), (row.error, 5), (row.mean_picture, 5), (row.explained, 3)
        pixels.append([label, *(number(value, digits) for value, digits in cells)])
    tables = [
        html.table(
            f"V, {vae.frames:,} frames: squared error per pixel",
            ["pixels", "fraction of all", "V", "mean frame", "variance explained"],
            pixels,
        ),
        html.table(
            "M, one step ahead: negative log-likelihood, nats per latent dimension",
            ["", "nats"],
            [
                ["mean of the dimensions", number(rnn.z, 3)],
                ["V's sampling noise", number(rnn.z_noise, 3)],
                ["best dimension", number(min(rnn.z_dimensions), 3)],
                ["worst dimension", number(max(rnn.z_dimensions), 3)],
            ],
        ),
    ]
    if rnn.done:
        rows = [
            [
                f"{row.low:g} to {row.high:g}",
                f"{row.count:,}",
                *(number(value, 5) for value in (row.predicted, row.expected, row.observed)),
            ]
            for row in rnn.done
        ]
        header = ["M's probability", "steps", "mean", "mean, positive-class weight removed", "observed frequency"]
        tables.append(html.table("M: calibration of the termination probability per step", header, rows))
    kinds = {
        "M, open-loop prediction: squared error per dimension of z": ("", {"average": "mean latent"}),
        "M, open-loop prediction: squared error per frame": ("picture_", {"v": "V alone"}),
    }
    for caption, (prefix, last) in kinds.items():
        columns = {"mean": "M's mean", "sample": "M's sample", "stays": "persistence", **last}
        rows = [
            [f"{row.steps:g}", f"{row.count:g}", *(number(getattr(row, f"{prefix}{key}")) for key in columns)]
            for row in rnn.rollouts
            if all(getattr(row, f"{prefix}{key}") is not None for key in columns)
        ]
        if rows:
            tables.append(html.table(caption, ["steps ahead", "rollouts", *columns.values()], rows))
    return tables


def _making(run: Run, results: Results) -> list[str]:
    rounds = run.rounds
    durations = ([_duration(part, stage) for part in rounds] for stage in STAGES)
    times = [[stage.command, *cells] for stage, cells in zip(STAGES, durations, strict=True) if any(cells)]
    versions = [[name, value] for name, value in results.versions.items()]
    return [
        html.heading("How it was made"),
        html.table(
            "Duration of the stages",
            ["stage", *(["time"] if len(rounds) == 1 else [f"round {number}" for number in range(len(rounds))])],
            times,
        ),
        html.table("Versions", ["package", "version"], versions),
        html.text(f"Seed {run.config.seed}. All settings: config.json in the run folder."),
    ]


def _duration(part: RunFolder, stage: Stage) -> str:
    """Format the duration of a stage; empty if it is not complete."""
    if not part.marker(stage.name).is_file():
        return ""
    record = StageRecord.read(part.marker(stage.name))
    source = record.summary.get("world_model")
    return f"taken from {source}" if source else f"{record.seconds or 0:,.0f} s"
