"""The figures of a run: frames, dreams, losses, evolution, scores. All are narrow enough for a phone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from worldmodels.analysis.stats import format_interval, format_number, scale_of
from worldmodels.data.records import (
    CurvePoint,
    EpisodeTrace,
    GenerationLine,
    PolicyCheck,
    Results,
    RNNQuality,
    Scores,
    SweepResult,
    TrainingLine,
    VAEQuality,
)
from worldmodels.support.files import atomic_path

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

Pictures = npt.NDArray[np.uint8]

_INK, _MUTED, _GRID = "#22242a", "#6b7280", "#e5e7eb"
_BLUE, _ORANGE, _GREEN, _RED = "#2563eb", "#ea8a1f", "#15803d", "#c2410c"
_STYLE: Any = {
    "figure.dpi": 160,
    "font.size": 11,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
}


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")
    plt.close(figure)


_WIDTH = 5.4  # of every figure, in inches
_ACROSS = 6  # pictures in a row


def frames(path: Path, real: Pictures, drawn: Pictures) -> None:
    """Real frames (N, 64, 64, 3), each row of them above their reconstructions."""
    groups = -(-len(real) // _ACROSS)
    columns = min(len(real), _ACROSS)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(2 * groups, columns, figsize=(_WIDTH, _WIDTH / 6 * 2.2 * groups), squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for number, pair in enumerate(zip(real, drawn, strict=True)):
            for row, picture in enumerate(pair):
                axes[2 * (number // _ACROSS) + row, number % _ACROSS].imshow(picture, interpolation="nearest")
        for row in range(2 * groups):
            axes[row, 0].text(
                -0.1, 0.5, ("game", "V")[row % 2], transform=axes[row, 0].transAxes, ha="right", va="center"
            )
        figure.subplots_adjust(wspace=0.05, hspace=0.05)
        _save(figure, path)


def film_strip(path: Path, pictures: Pictures, steps: Sequence[int]) -> None:
    """Pictures of a dream (N, 64, 64, 3) in rows, with their step numbers."""
    rows = -(-len(pictures) // _ACROSS)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, _ACROSS, figsize=(_WIDTH, _WIDTH / 6 * 1.3 * rows), squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, picture, step in zip(axes.flat, pictures, steps, strict=False):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(f"{step:,}", fontsize=10, fontweight="normal", color=_MUTED, loc="center", pad=2)
        figure.subplots_adjust(wspace=0.05, hspace=0.25)
        _save(figure, path)


def _columns(points: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Pairs as two lists; two empty ones of none."""
    return [x for x, _ in points], [y for _, y in points]


def losses(path: Path, vae: Sequence[TrainingLine], rnn: Sequence[TrainingLine]) -> None:
    """Loss curves of V and M, training and validation, one above the other."""
    panels = [
        ("V: reconstruction", "squared error per frame", vae, "squared_error", "log"),
        ("V: KL divergence", "nats per frame", vae, "kl", "linear"),
        ("M: next latent", "nats per dimension", rnn, "z", "linear"),
    ]
    for title, unit, key in (("M: termination", "cross entropy", "done"), ("M: reward", "squared error", "reward")):
        if any((getattr(line, key) or 0) > 0 for line in rnn):  # M has that head
            panels.append((title, unit, rnn, key, "log"))
    panels = [panel for panel in panels if panel[2]] or panels  # a round of own play may keep V
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(len(panels), 1, figsize=(_WIDTH, 2.6 * len(panels)), squeeze=False)
        for axis, (title, unit, lines, key, scale) in zip(axes[:, 0], panels, strict=True):
            train, valid = (
                [(line.step, value) for line in lines if (value := getattr(line, name)) is not None]
                for name in (key, f"validation_{key}")
            )
            axis.plot(*_columns(train), color=_BLUE, alpha=0.75, linewidth=1, label="training")
            axis.plot(*_columns(valid), color=_ORANGE, marker="o", markersize=3, label="held-out episodes")
            axis.set(title=title, xlabel="optimizer steps", ylabel=unit, yscale=scale)
            values = sorted(value for _, value in train)
            if scale == "linear" and len(values) > 20:
                low, high = values[0], values[int(0.97 * len(values))]
                axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axes[0, 0].legend()
        figure.tight_layout()
        _save(figure, path)


def quality(path: Path, vae: VAEQuality, rnn: RNNQuality) -> None:
    """Draw V's error by pixel motion, M's open-loop error and the calibration of its termination probability."""
    bins = [row for row in rnn.done or [] if row.observed > 0]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(2 + bool(bins), 1, figsize=(_WIDTH, 3.1 * (2 + bool(bins))))
        shown = {name: row for name, row in vae.pixels.items() if None not in (row.error, row.mean_picture)}
        position = np.arange(len(shown))
        for shift, key, label, colour in ((-0.2, "error", "V", _BLUE), (0.2, "mean_picture", "mean frame", _MUTED)):
            axes[0].bar(
                position + shift, [getattr(row, key) for row in shown.values()], 0.38, color=colour, label=label
            )
        axes[0].set_xticks(position, list(shown))
        axes[0].grid(visible=False, axis="x")
        axes[0].set(title="V: reconstruction error", xlabel="pixels", ylabel="squared error per pixel", yscale="log")
        steps = [row.steps for row in rnn.rollouts]
        lines = (("mean", "M", _BLUE), ("stays", "persistence", _ORANGE), ("average", "mean latent", _MUTED))
        for key, label, colour in lines:
            axes[1].plot(steps, [getattr(row, key) for row in rnn.rollouts], "o-", color=colour, label=label)
        axes[1].set(
            title="M: open-loop prediction", xlabel="steps ahead", ylabel="squared error per dimension", xscale="log"
        )
        axes[1].set_xticks(steps, [f"{step:g}" for step in steps], minor=False)
        axes[1].minorticks_off()
        axes[1].set_ylim(bottom=0)
        if bins:
            axis = axes[2]
            axis.plot([1e-4, 1], [1e-4, 1], color=_MUTED, linewidth=1, label="perfect calibration")
            for key, label, colour in (
                ("predicted", "M's output", _ORANGE),
                ("expected", "positive-class weight removed", _BLUE),
            ):
                found = [(getattr(row, key), row.observed) for row in bins]
                axis.plot(*_columns(found), "o-", color=colour, label=label)
            axis.set(
                title="M: calibration of termination",
                xlabel="predicted probability per step",
                ylabel="observed frequency",
                xscale="log",
                yscale="log",
            )
        for axis in axes:
            axis.legend(fontsize=9)
        figure.tight_layout()
        _save(figure, path)


def _legend_below(axis: Any) -> None:
    """Two columns below the axis: beside it, a phone has no room."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=2, fontsize=9)


def evolution(path: Path, lines: Sequence[GenerationLine], title: str, score: str, curve: Sequence[CurvePoint]) -> None:
    """Best, mean and worst of the population, and scores of the CMA-ES mean, by generation."""
    generations = [line.generation for line in lines]
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(_WIDTH, 3.6))
        axis.fill_between(
            generations, [x.worst for x in lines], [x.best for x in lines], color=_BLUE, alpha=0.08, linewidth=0
        )
        for key, colour in (("best", _GREEN), ("mean", _BLUE), ("worst", _RED)):
            axis.plot(
                generations,
                [getattr(line, key) for line in lines],
                color=colour,
                linewidth=1.4,
                label=f"population {key}",
            )
        evaluations = [(line.generation, line.evaluation) for line in lines if line.evaluation is not None]
        axis.plot(
            *_columns(evaluations),
            color=_INK,
            marker="o",
            markersize=4,
            linewidth=1.6,
            label="CMA-ES mean, evaluated",
        )
        if curve:
            axis.errorbar(
                [point.generation for point in curve],
                [point.game.mean for point in curve],
                yerr=_interval([point.game for point in curve]),
                color=_ORANGE,
                marker="s",
                markersize=4,
                capsize=3,
                label="CMA-ES mean, in the real environment",
            )
        axis.set(title=title, xlabel="generation", ylabel=score)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if all(line.worst >= 0 for line in lines):
            axis.set_ylim(bottom=0)
        _legend_below(axis)
        _save(figure, path)


def _interval(entries: Sequence[Scores]) -> list[list[float]]:
    """Lengths of error bars, below and above the means, of the 95 % intervals: (2, N)."""
    return [
        [max(entry.mean - entry.ci95[0], 0.0) for entry in entries],
        [max(entry.ci95[1] - entry.mean, 0.0) for entry in entries],
    ]


def reality_check(path: Path, policies: Mapping[str, PolicyCheck], temperature: float, score: str) -> None:
    """Scores of open-loop policies in the dream and in the game, with 95 % intervals."""
    position = np.arange(len(policies))
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(_WIDTH, 3.4))
        for shift, label, colour in ((-0.2, "dream", _BLUE), (0.2, "game", _ORANGE)):
            played = [getattr(policy, label) for policy in policies.values()]
            means, bars = [scores.mean for scores in played], _interval(played)
            axis.bar(
                position + shift, means, 0.38, yerr=bars, color=colour, label=label, error_kw={"ecolor": _INK, "lw": 1}
            )
        axis.set_xticks(position, list(policies), rotation=25, ha="right")
        axis.grid(visible=False, axis="x")
        axis.set(title=f"Open-loop policies (dream: temperature {temperature})", ylabel=score)
        axis.legend()
        _save(figure, path)


def rounds(path: Path, dream: Sequence[Scores | None], game: Sequence[Scores], score: str) -> None:
    """Scores of the agent of every round in its dream and in the game, with 95 % intervals."""
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(_WIDTH, 3.2))
        for label, entries, colour in (("dream", dream, _BLUE), ("game", game, _ORANGE)):
            shown = [(number, entry) for number, entry in enumerate(entries) if entry is not None]
            axis.errorbar(
                [number for number, _ in shown],
                [entry.mean for _, entry in shown],
                yerr=_interval([entry for _, entry in shown]),
                color=colour,
                marker="o",
                markersize=5,
                capsize=3,
                label=label,
            )
        axis.set(title="Agent of every round", xlabel="round", ylabel=score)
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend()
        _save(figure, path)


def round_checks(path: Path, checks: Sequence[Mapping[str, PolicyCheck]], score: str) -> None:
    """Scores of open-loop policies in the dream of every round and in the game, with 95 % intervals."""
    game = {name: check.game for name, check in checks[-1].items()}
    bars = [
        *((f"dream of round {number}", {name: one.dream for name, one in check.items()}, _BLUE)
          for number, check in enumerate(checks)),
        ("game", game, _ORANGE),
    ]  # fmt: skip
    width = 0.8 / len(bars)
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(_WIDTH, 3.6))
        for index, (label, entries, colour) in enumerate(bars):
            axis.bar(
                np.arange(len(game)) + (index - (len(bars) - 1) / 2) * width,
                [entry.mean for entry in entries.values()],
                0.95 * width,
                yerr=_interval(list(entries.values())),
                color=colour,
                alpha=1.0 if index >= len(checks) else (index + 1) / len(checks),
                label=label,
                error_kw={"ecolor": _INK, "lw": 1},
            )
        axis.set_xticks(np.arange(len(game)), list(game), rotation=25, ha="right")
        axis.grid(visible=False, axis="x")
        axis.set(title="Open-loop policies in every round", ylabel=score)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1.08), ncol=2, fontsize=9)
        _save(figure, path)


def terminations(
    path: Path, edges: Sequence[float], rates: Sequence[tuple[Sequence[float | None], Sequence[float | None]]]
) -> None:
    """Termination rate (per 1,000 steps) of every round's agent by episode step.

    Args:
        path: File to write.
        edges: (B + 1,) edges of the bins of episode steps.
        rates: (B,) rates in the dream and in the game by round; None where they are unknown.
    """
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            len(rates), 1, figsize=(_WIDTH, 2.2 * len(rates) + 0.4), sharex=True, sharey=True, squeeze=False
        )
        for number, (axis, pair) in enumerate(zip(axes.flat, rates, strict=True)):
            for label, found, colour in zip(("dream", "game"), pair, (_BLUE, _ORANGE), strict=True):
                points = [(x, y) for x, y in zip(middles, found, strict=True) if y is not None]
                axis.plot(*_columns(points), "o-", color=colour, markersize=4, label=label)
            axis.set(title=f"Termination rate of round {number}'s agent", ylabel="per 1,000 steps")
        axes[0, 0].set(xlim=(edges[0], edges[-1]), ylim=(0, None))
        axes[0, 0].legend()
        axes[-1, 0].set_xlabel("episode step")
        figure.tight_layout()
        _save(figure, path)


def sweep(path: Path, results: Sequence[SweepResult], paper: Mapping[float, Any], score: str) -> None:
    """Scores in the dream and in the game over temperature, ours with 95 % intervals and the paper's if it has any."""
    ours = sorted(results, key=lambda result: result.temperature)
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(_WIDTH, 3.6))
        for index, (label, colour) in enumerate((("dream", _BLUE), ("game", _ORANGE))):
            x = [result.temperature for result in ours]
            played = [getattr(result, label) for result in ours]
            y, error = [scores.mean for scores in played], _interval(played)
            axis.errorbar(x, y, yerr=error, color=colour, marker="o", markersize=5, capsize=3, label=label)
            if not paper:
                continue
            axis.plot(
                list(paper),
                [values[index][0] for values in paper.values()],
                color=colour,
                linestyle=":",
                marker="s",
                markersize=4,
                alpha=0.7,
                label=f"{label}, paper",
            )
        axis.set(title="Temperature of the dream", xlabel="temperature", ylabel=score)
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        axis.legend()
        _save(figure, path)


def scores(path: Path, results: Results, score: str, paper: float | None = None) -> None:
    """Histograms of scores in the real environment: agent, random and collecting policy; the paper's mean as a line."""
    random, collecting = results.players["random"], results.players["collecting"]
    shown = (
        (random, f"random ({random.policy})", _ORANGE),
        (collecting, f"collecting ({collecting.policy})", _GREEN),
        (results.agent, "agent", _BLUE),
    )
    top = max(max(entry.scores) for entry, _, _ in shown)
    bottom = min(0, *(min(entry.scores) for entry, _, _ in shown))
    bins = np.linspace(bottom, top + 1, 36).tolist()
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(_WIDTH, 3.4))
        for entry, label, colour in shown:
            interval = format_interval(entry)
            axis.hist(
                entry.scores,
                bins=bins,
                color=colour,
                alpha=0.5,
                label=f"{label}: {format_number(entry.mean, scale_of(entry))}"
                + (f" (95 %: {interval})" if interval else ""),
            )
            axis.axvline(entry.mean, color=colour, linewidth=1.6)
        if paper is not None:
            axis.axvline(paper, color=_INK, linewidth=1.4, linestyle="--", label=f"paper: {format_number(paper)}")
        axis.set(
            title=f"Scores in the real environment ({len(results.agent.scores)} episodes each)",
            xlabel=score,
            ylabel="episodes",
        )
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=9)
        _save(figure, path)


def episode(path: Path, trace: EpisodeTrace, score: str) -> None:
    """The cumulative reward of an episode, and the driven path where the environment gives a track.

    Args:
        path: File to write.
        trace: Recorded episode.
        score: Unit of the return.
    """
    driven = None not in (trace.track, trace.positions)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1 + driven, 1, figsize=(_WIDTH, 3.2 + 4.2 * driven), squeeze=False)
        axis = axes[0, 0]
        axis.plot(np.cumsum(trace.rewards), color=_BLUE, linewidth=1.6)
        axis.set(title="Cumulative reward of one episode", xlabel="step", ylabel=score)
        if driven:
            axis = axes[1, 0]
            track, path_driven = np.array(trace.track), np.array(trace.positions)
            axis.plot(*np.concatenate([track, track[:1]]).T, color=_GRID, linewidth=9, solid_joinstyle="round")
            axis.plot(*path_driven.T, color=_BLUE, linewidth=1.4)
            axis.plot(*path_driven[0], "o", color=_GREEN, label="start")
            axis.plot(*path_driven[-1], "s", color=_RED, label="end")
            axis.set(title="Path of the same episode", xticks=[], yticks=[])
            axis.set_aspect("equal")
            axis.grid(visible=False)
            axis.legend()
        figure.tight_layout()
        _save(figure, path)
