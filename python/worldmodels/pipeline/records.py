"""What the stages measured, read back from JSON: of the shape that the report and the studies go by, or refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from worldmodels.support.files import read_json

# A shape is float (a finite number), another type, a dict of shapes by key ({str: shape} for any keys), a list of one
# shape, [shape, ...] for one that is not empty, [shape, shape] for a pair, type | None for what may be null, or
# (shape, None) for what may be missing too.
SCORES = {"scores": [float, ...], "mean": float, "std": float, "ci95": [float, float]}
PLAYER = {"policy": str, **SCORES}
RESULTS = {
    "agent": SCORES,
    **dict.fromkeys(("before", "random", "collecting"), PLAYER),
    "environment": dict.fromkeys(("id", "variant", "resolution", "backend"), (str, None)),
    "versions": {str: str},
    "evolved": ({"score": (float, None)}, None),
    "dream": {"score": (float, None), "temperature": float, "evaluation": (SCORES, None)},
    "curve": ([{"generation": float, "game": SCORES}], None),
}
CHECK = {"temperature": float, "policies": {str: {"dream": SCORES, "game": SCORES}}, "warnings": [str]}
VAE_QUALITY = {
    "frames": float,
    "pixels": {str: {"share": float, **dict.fromkeys(("error", "mean_picture", "explained"), float | None)}},
}
RNN_QUALITY = {
    "z": float,
    "z_noise": float,
    "z_dimensions": [float, ...],
    "done": ([dict.fromkeys(("low", "high", "count", "predicted", "expected", "observed"), float)], None),
    "rollouts": [
        {
            **dict.fromkeys(("steps", "count", "mean", "sample", "stays", "average"), float),
            **{f"picture_{key}": (float, None) for key in ("mean", "sample", "stays", "v")},
        }
    ],
}
EPISODE = {"rewards": [float], "track": ([[float, float], ...], None), "positions": ([[float, float], ...], None)}
MARKER = {"seconds": float}
GENERATION = dict.fromkeys(("generation", "best", "mean", "worst"), float) | {"evaluation": (float, None)}
_LOSSES = ("squared_error", "kl", "z", "done", "reward")
STEP = {
    "step": float,
    **{f"{which}{key}": (float, None) for which in ("", "validation_") for key in _LOSSES},
}
SCORE = {"episode": float, "score": float}


def misfit(value: Any, shape: Any, name: str = "") -> str | None:
    """What is wrong with a value from JSON, ``"place: expected this, got that"``; None if it has the shape."""
    if isinstance(shape, tuple | UnionType):
        if value is None:
            return None
        shape = shape[0] if isinstance(shape, tuple) else get_args(shape)[0]
    parts: Any = ()
    if isinstance(shape, dict):
        needed = [key for key, part in shape.items() if key is not str and not isinstance(part, tuple)]
        wanted = f"an object with {', '.join(needed)}" if needed else "an object"
        fits = isinstance(value, dict) and value.keys() >= set(needed)
        if fits:
            keys = value if str in shape else shape
            parts = ((f"{name}.{key}" if name else key, value.get(key), shape.get(str, shape.get(key))) for key in keys)
    elif isinstance(shape, list):
        pair, most = len(shape) == 2 and shape[1] is not ..., len(value) if isinstance(value, list) else 0
        wanted = "a pair" if pair else "a list" if len(shape) == 1 else "a list that is not empty"
        fits = isinstance(value, list) and (most == 2 if pair else most >= len(shape) - 1)
        if fits:
            kinds = shape if pair else itertools.repeat(shape[0])
            parts = ((f"{name}[{place}]", *both) for place, both in enumerate(zip(value, kinds, strict=False)))
    elif shape is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits, wanted = number and abs(value) < 1e100 and math.isfinite(value), "a number below 1e100"
    else:
        fits, wanted = isinstance(value, shape), f"a {shape.__name__}"
    if not fits:
        return f"{name or 'value'}: expected {wanted}, got {value!r:.100}"
    return next((found for part in parts if (found := misfit(part[1], part[2], part[0]))), None)


def read_measured(path: Path, shape: Any) -> Any:
    """Reads JSON of a shape.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds something else.
    """
    value = read_json(path)
    found = misfit(value, shape)
    if found:
        raise ValueError(f"{path}: {found}")
    return value


def players(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those who played, by name: the agent, and whoever names a policy."""
    named = {name: entry for name, entry in results.items() if isinstance(entry, dict) and "policy" in entry}
    return {"agent": results["agent"], **named}


def read_results(path: Path, inside: str) -> dict[str, Any]:
    """Reads results.json of a run whose C was evolved ``inside`` the dream or the environment.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds something else.
    """
    results: dict[str, Any] = read_measured(path, RESULTS)
    needed = {"dream" if inside == "dream" else "evolved": {"score": float}}
    others = {name: PLAYER for name in players(results) if name != "agent"}
    found = misfit(results, needed | others)
    if found:
        raise ValueError(f"{path}: {found}")
    return results
