"""The pictures of a run: frames, dreams, losses, evolution, survival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from worldmodels.analysis.stats import format_interval
from worldmodels.support.files import atomic_path

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

Pictures = npt.NDArray[np.uint8]

_INK, _MUTED, _GRID = "#22242a", "#6b7280", "#e5e7eb"
_BLUE, _ORANGE, _GREEN, _RED = "#2563eb", "#ea8a1f", "#15803d", "#c2410c"
_STYLE: Any = {
    "figure.dpi": 110,
    "font.size": 10,
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


def frames(path: Path, real: Pictures, drawn: Pictures) -> None:
    """Real frames (N, 64, 64, 3) above their reconstructions."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(2, len(real), figsize=(1.25 * len(real), 2.75), squeeze=False)
        for row, (pictures, label) in enumerate(((real, "real"), (drawn, "V"))):
            for column, picture in enumerate(pictures):
                axis = axes[row, column]
                axis.imshow(picture, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.grid(False)
                for spine in axis.spines.values():
                    spine.set_visible(False)
            axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center")
        figure.subplots_adjust(wspace=0.05, hspace=0.05)
        _save(figure, path)


def film_strip(path: Path, pictures: Pictures, steps: Sequence[int]) -> None:
    """Dreamed pictures (N, 64, 64, 3) in a row, with their step numbers."""
    columns = 12
    rows = -(-len(pictures) // columns)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(1.1 * columns, 1.3 * rows), squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, picture, step in zip(axes.flat, pictures, steps, strict=False):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(f"{step}", fontsize=8, fontweight="normal", color=_MUTED, loc="center", pad=2)
        figure.subplots_adjust(wspace=0.05, hspace=0.15)
        _save(figure, path)


def _columns(points: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Pairs as two lists; two empty ones of none."""
    return [x for x, _ in points], [y for _, y in points]


def losses(path: Path, vae: list[dict[str, Any]], rnn: list[dict[str, Any]]) -> None:
    """Loss curves of V and M, training and validation."""
    panels: list[tuple[str, list[dict[str, Any]], str, str]] = [
        ("V: squared error per frame", vae, "squared_error", "log"),
        ("V: KL (nats)", vae, "kl", "linear"),
        ("M: -log p(z) per dimension (nats)", rnn, "z", "linear"),
    ]
    for title, key in (("M: done loss", "done"), ("M: squared error of the reward", "reward")):
        if any((line.get(key) or 0) > 0 for line in rnn):  # M has that head
            panels.append((title, rnn, key, "log"))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(3.75 * len(panels), 3.2))
        for axis, (title, lines, key, scale) in zip(axes, panels, strict=True):
            train, valid = (
                [(line["step"], line[name]) for line in lines if line.get(name) is not None]
                for name in (key, f"validation_{key}")
            )
            axis.plot(*_columns(train), color=_BLUE, alpha=0.75, linewidth=1, label="training")
            axis.plot(*_columns(valid), color=_ORANGE, marker="o", markersize=3, label="held out")
            axis.set(title=title, xlabel="batches", yscale=scale)
            values = sorted(value for _, value in train)
            if scale == "linear" and len(values) > 20:
                low, high = values[0], values[int(0.97 * len(values))]
                axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axes[0].legend()
        figure.tight_layout()
        _save(figure, path)


def quality(path: Path, vae: dict[str, Any], rnn: dict[str, Any]) -> None:
    """V's error by how much pixels move, calibration of M's ends, and M's free-running error over the steps."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(15, 3.6))
        shown = {name: row for name, row in vae["pixels"].items() if None not in (row["error"], row["mean_picture"])}
        place = np.arange(len(shown))
        for shift, key, label, colour in ((-0.2, "error", "V", _BLUE), (0.2, "mean_picture", "mean picture", _MUTED)):
            axes[0].bar(place + shift, [row[key] for row in shown.values()], 0.38, color=colour, label=label)
        axes[0].set_xticks(place, list(shown))
        axes[0].grid(visible=False, axis="x")
        axes[0].set(title="V: squared error per pixel", yscale="log")
        bins = [row for row in (rnn.get("done") or []) if row["observed"] > 0]
        axes[1].plot([1e-4, 1], [1e-4, 1], color=_MUTED, linewidth=1)
        for key, label, colour in (("predicted", "as M says", _ORANGE), ("expected", "without the weight", _BLUE)):
            axes[1].plot([row[key] for row in bins], [row["observed"] for row in bins], "o-", color=colour, label=label)
        axes[1].set(
            title="M: probability of the end", xlabel="predicted", ylabel="observed", xscale="log", yscale="log"
        )
        steps = [row["steps"] for row in rnn["rollouts"]]
        lines = (("mean", "M", _BLUE), ("stays", "the last frame stays", _ORANGE), ("average", "average z", _MUTED))
        for key, label, colour in lines:
            axes[2].plot(steps, [row[key] for row in rnn["rollouts"]], "o-", color=colour, label=label)
        axes[2].set(title="M free-running: squared error of z", xlabel="steps", xscale="log")
        axes[2].set_ylim(bottom=0)
        for axis in axes:
            axis.legend()
        figure.tight_layout()
        _save(figure, path)


def evolution(path: Path, lines: list[dict[str, Any]], title: str, score: str, curve: list[dict[str, Any]]) -> None:
    """Best, mean and worst of the population, the evaluation of the mean over generations; and its real score."""
    generations = [line["generation"] for line in lines]
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(9, 4))
        axis.fill_between(
            generations, [x["worst"] for x in lines], [x["best"] for x in lines], color=_BLUE, alpha=0.08, linewidth=0
        )
        for key, colour in (("best", _GREEN), ("mean", _BLUE), ("worst", _RED)):
            axis.plot(
                generations, [line[key] for line in lines], color=colour, linewidth=1.4, label=f"population {key}"
            )
        evaluations = [(line["generation"], line["evaluation"]) for line in lines if line.get("evaluation") is not None]
        axis.plot(
            *_columns(evaluations),
            color=_INK,
            marker="o",
            markersize=4,
            linewidth=1.6,
            label="mean, evaluated",
        )
        if curve:
            axis.errorbar(
                [point["generation"] for point in curve],
                [point["game"]["mean"] for point in curve],
                yerr=_interval([point["game"] for point in curve]),
                color=_ORANGE,
                marker="s",
                markersize=4,
                capsize=3,
                label="mean, in the real environment",
            )
        axis.set(title=title, xlabel="generation", ylabel=score)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if all(line["worst"] >= 0 for line in lines):
            axis.set_ylim(bottom=0)
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _save(figure, path)


def _interval(entries: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Lengths of error bars, below and above the means, of the 95 % intervals: (2, N)."""
    return [
        [max(entry["mean"] - entry["ci95"][0], 0.0) for entry in entries],
        [max(entry["ci95"][1] - entry["mean"], 0.0) for entry in entries],
    ]


def reality_check(path: Path, policies: dict[str, Any], temperature: float, score: str) -> None:
    """Scores of fixed policies in the dream and in the game, with 95 % intervals."""
    names = list(policies)
    place = np.arange(len(names))
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(8, 3.6))
        for shift, world, colour in ((-0.2, "dream", _BLUE), (0.2, "game", _ORANGE)):
            means = [policies[name][world]["mean"] for name in names]
            bars = _interval([policies[name][world] for name in names])
            axis.bar(
                place + shift, means, 0.38, yerr=bars, color=colour, label=world, error_kw={"ecolor": _INK, "lw": 1}
            )
        axis.set_xticks(place, names)
        axis.grid(visible=False, axis="x")
        axis.set(title=f"Fixed policies in the dream (temperature {temperature}) and in the game", ylabel=score)
        axis.legend()
        _save(figure, path)


def sweep(path: Path, results: list[dict[str, Any]], paper: Mapping[float, Any], score: str) -> None:
    """Scores in the dream and in the game over temperature, ours with 95 % intervals and the paper's if it has any."""
    ours = sorted(results, key=lambda result: float(result["temperature"]))
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(8, 4))
        for index, (world, colour) in enumerate((("dream", _BLUE), ("game", _ORANGE))):
            x = [result["temperature"] for result in ours]
            y = [result[world]["mean"] for result in ours]
            error = _interval([result[world] for result in ours])
            axis.errorbar(x, y, yerr=error, color=colour, marker="o", markersize=5, capsize=3, label=f"{world}")
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
                label=f"{world}, the paper's",
            )
        axis.set(title="What a dream's temperature does", xlabel="temperature", ylabel=score)
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        axis.legend()
        _save(figure, path)


def scores(path: Path, results: dict[str, Any], score: str) -> None:
    """Histogram of scores in the real game: the agent, the random and the collecting policy."""
    shown = (
        ("random", f"random play ({results['random']['policy']})", _ORANGE),
        ("collecting", f"collecting ({results['collecting']['policy']})", _GREEN),
        ("agent", "agent", _BLUE),
    )
    top = max(max(results[name]["scores"]) for name, _, _ in shown)
    bottom = min(0, *(min(results[name]["scores"]) for name, _, _ in shown))
    bins = np.linspace(bottom, top + 1, 36).tolist()
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(8, 3.8))
        for name, label, colour in shown:
            entry = results[name]
            interval = format_interval(entry)
            axis.hist(
                entry["scores"],
                bins=bins,
                color=colour,
                alpha=0.5,
                label=f"{label}: {entry['mean']:.0f}" + (f" (95 %: {interval})" if interval else ""),
            )
            axis.axvline(entry["mean"], color=colour, linewidth=1.6)
        axis.set(
            title=f"Scores in the real game ({len(results['agent']['scores'])} episodes each)",
            xlabel=score,
            ylabel="episodes",
        )
        axis.legend()
        _save(figure, path)


def episode(path: Path, recorded: dict[str, Any], score: str) -> None:
    """The return of an episode as it adds up, and the way that was driven, where the environment says where one is.

    Args:
        path: where to.
        recorded: as :func:`worldmodels.rollout.runner.record` gives it.
        score: what a return counts.
    """
    driven = None not in (recorded.get("track"), recorded.get("positions"))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 1 + driven, figsize=(6 + 5 * driven, 4.2), squeeze=False)
        axis = axes[0, 0]
        axis.plot(np.cumsum(recorded["rewards"]), color=_BLUE, linewidth=1.6)
        axis.set(title="Return of one episode as it adds up", xlabel="step", ylabel=score)
        if driven:
            axis = axes[0, 1]
            track, way = np.array(recorded["track"]), np.array(recorded["positions"])
            axis.plot(*np.concatenate([track, track[:1]]).T, color=_GRID, linewidth=9, solid_joinstyle="round")
            axis.plot(*way.T, color=_BLUE, linewidth=1.4)
            axis.plot(*way[0], "o", color=_GREEN, label="start")
            axis.plot(*way[-1], "s", color=_RED, label="end")
            axis.set(title="The way that was driven", xticks=[], yticks=[])
            axis.set_aspect("equal")
            axis.grid(visible=False)
            axis.legend()
        figure.tight_layout()
        _save(figure, path)
