"""What the stages measure, as JSON of every kind, and all that the report makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldmodels.analysis import figures, quality
from worldmodels.analysis.stats import describe
from worldmodels.data.records import DreamCheck, EpisodeTrace, Record, Results, RNNQuality, VAEQuality
from worldmodels.pipeline.dream_check import format_table as dream_table
from worldmodels.pipeline.evaluation import format_table as score_table
from worldmodels.pipeline.report_page import quality_tables
from worldmodels.pipeline.verdict import read_results

_GAME = describe([10.0, 30.0, 50.0]).to_json()
_ERRORS = {"mean": 0.5, "sample": 0.7, "stays": 0.9}
#: Good files by name.
MEASURED: dict[str, dict[str, Any]] = {
    "results": {
        "agent": _GAME,
        **{name: {"policy": "uniform", **_GAME} for name in ("before", "random", "collecting")},
        "evolved": {"evaluate_in": "dream", "score": 70.0, "generation": 2},
        "dream": {"score": 70.0, "temperature": 1.15, "generation": 2, "evaluation": _GAME},
        "curve": [{"generation": 1, "dream": 60.0, "game": _GAME}],
        "environment": {"id": "worldmodels/TakeCover-v0", "variant": "paper", "resolution": "", "backend": ""},
        "versions": {"numpy": "2.0"},
    },
    "check": {"temperature": 1.15, "policies": {"left": {"dream": _GAME, "game": _GAME}}, "warnings": ["a hole"]},
    "vae": {
        "frames": 3,
        "pixels": {
            name: {"share": 0.5, "error": 0.1, "mean_picture": 0.2, "explained": 0.5} for name in quality.PIXELS
        },
    },
    "rnn": {
        "z": 1.2,
        "z_noise": 1.1,
        "z_dimensions": [1.0, 1.4],
        "done": [{"low": 0, "high": 0.1, "count": 9, "predicted": 0.05, "expected": 0.04, "observed": 0.1}],
        "rollouts": [
            {"steps": 1, "count": 2, "average": 1.0, **_ERRORS}
            | {f"picture_{name}": 3.0 for name in ("mean", "sample", "stays", "v")}
        ],
    },
    "episode": {"rewards": [1.0, -0.1], "track": [[0, 0], [1, 0], [1, 1]], "positions": [[0, 0], [0.5, 0]]},
}


_VAE, _RNN = VAEQuality.from_json(MEASURED["vae"]), RNNQuality.from_json(MEASURED["rnn"])


def read(name: str, path: Path) -> Record:
    """Reads a file of a kind as the report does."""
    kinds: dict[str, type[Record]] = {
        "check": DreamCheck,
        "vae": VAEQuality,
        "rnn": RNNQuality,
        "episode": EpisodeTrace,
    }
    return read_results(path, "dream") if name == "results" else kinds[name].read(path)


def write_out(value: Record) -> str:
    """The text that the report makes of it."""
    match value:
        case Results():
            return f"{score_table(value)} {value.evolved_score('dream'):.0f}"
        case DreamCheck():
            return dream_table(value.policies)
        case VAEQuality():
            return "".join(quality_tables(value, _RNN))
        case RNNQuality():
            return "".join(quality_tables(_VAE, value))
    return ""


def draw(value: Record, path: Path) -> None:
    """The picture that the report makes of it."""
    match value:
        case Results():
            figures.scores(path, value, "steps")
            if value.curve:
                figures.evolution(path, [], "Evolution", "steps", value.curve)
        case DreamCheck():
            figures.reality_check(path, value.policies, value.temperature, "steps")
        case VAEQuality():
            figures.quality(path, value, _RNN)
        case RNNQuality():
            figures.quality(path, _VAE, value)
        case EpisodeTrace():
            figures.episode(path, value, "steps")
