"""Results of a player that is no agent of a run, as a JSON file of docs/results: helper of the other scripts."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

from worldmodels.envs.take_cover import MAX_STEPS
from worldmodels.support.files import write_json
from worldmodels.support.versions import versions

TAKE_COVER = {
    "id": "worldmodels/TakeCover-v0",
    "variant": "paper",
    "resolution": "160x120",
    "max_steps": MAX_STEPS,
}


def write_results(path, scores, seed, episodes, seconds, note, environment=TAKE_COVER):
    """Write the scores of a player, with the command of this process as their provenance.

    Args:
        path: JSON file to write.
        scores: Scores of the games.
        seed: Seed of the command.
        episodes: Seeds of the games.
        seconds: Duration of the games, and of the training.
        note: Remark in the provenance.
        environment: Description of the environment.
    """
    results = {
        "agent": scores.to_json(),
        "environment": environment,
        "versions": versions(),
        "seeds": {"seed": seed, "episodes": episodes},
        "provenance": {
            "command": "python " + " ".join(sys.argv),
            "date": datetime.date.today().isoformat(),
            "seconds": round(seconds),
            "note": note,
        },
    }
    write_json(Path(path), results)
