"""evolve: CMA-ES evolves C in the dream, or in the real environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldmodels.pipeline.stage import INITIAL_STATES, M, Stage

if TYPE_CHECKING:
    from worldmodels.pipeline.run import Run


def evolve(run: Run) -> dict[str, Any]:
    """Evolve C, from the last checkpoint if there is one."""
    from worldmodels.pipeline.evolution import evolve_controller

    return evolve_controller(run)


STAGE = Stage(
    name="evolve",
    help="evolve C with CMA-ES in the dream or in the real environment",
    run=evolve,
    folder="evolve",
    clustered=True,
    inputs=(M, INITIAL_STATES),
    outputs=("evolve/{checkpoint,means,coordinates,controller}.safetensors", "evolve/controller.json"),
    packages=("gymnasium",),
    invalidates=("evaluate", "report"),
    extendable=("generations",),
    partial="*.safetensors",
    resumable=("generations",),
)
