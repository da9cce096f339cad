"""report: figures and one HTML page of everything the run measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldmodels.pipeline.stage import INITIAL_STATES, C, M, Stage, V

if TYPE_CHECKING:
    from worldmodels.pipeline.run import Run


def report(run: Run) -> dict[str, Any]:
    """Draw the figures and write the page."""
    from worldmodels.pipeline.report import write_report

    return write_report(run)


STAGE = Stage(
    name="report",
    help="draw the figures and write the report page",
    run=report,
    folder="report",
    inputs=(V, M, INITIAL_STATES, C, "results.json", "check_dream/check_dream.json"),
    outputs=(
        "report/index.html",
        "report/dream.{gif,html}",
        "report/{dream_strip,losses,quality,evolution,reality_check,scores,episode}.png",
        "report/{rounds,round_checks,terminations}.png",
    ),
    packages=("matplotlib", "PIL"),
    after=("collect", "train_vae", "encode", "train_rnn", "check_dream", "evolve", "evaluate"),
    leaf=True,
)
