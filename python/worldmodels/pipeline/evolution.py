"""Evolution of C: CMA-ES proposes candidates, an evaluator scores them, and every generation is checkpointed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worldmodels import pretrained
from worldmodels.analysis.stats import format_number
from worldmodels.cmaes.cmaes import CMAES
from worldmodels.cmaes.search_space import SearchSpace
from worldmodels.data.records import GenerationLine
from worldmodels.models import agent
from worldmodels.models.agent import load_controller
from worldmodels.models.controller import Controller
from worldmodels.models.weights import checkpoint_errors, load_tensors, save_tensors
from worldmodels.pipeline.config import EvolveConfig
from worldmodels.pipeline.evaluators import make_evaluator
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.search_space import make_search_space
from worldmodels.rollout.evaluators import Evaluator, OnProgress
from worldmodels.support.cpu import default_threads
from worldmodels.support.profile import phase
from worldmodels.support.progress import Progress

Params = npt.NDArray[np.float64]


def evolve_controller(run: Run) -> dict[str, Any]:
    """Evolve C for ``generations``, from the last checkpoint if there is one, and export the best evaluated mean."""
    evaluator = make_evaluator(run)
    try:
        return _evolve(run, evaluator)
    finally:
        evaluator.close()


def _evolve(run: Run, evaluator: Evaluator) -> dict[str, Any]:
    config, seed = run.config.evolve, run.config.seed
    controller = evaluator.controller
    checkpoint = _checkpoint(run)
    tensors, metadata = _read_checkpoint(run)
    space = _search_space(run, controller, tensors)
    es = _make_search(config, space.start, seed)
    first = 0
    if tensors:
        with checkpoint_errors(checkpoint, "evolve"):
            evaluated_with = metadata["evaluator"]
        if evaluated_with != evaluator.metadata:
            raise ValueError(f"{checkpoint}: expected to resume with {evaluated_with}, got {evaluator.metadata}")
        with checkpoint_errors(checkpoint, "evolve"):
            first = metadata["generation"]
            state = {name: tensor.numpy() for name, tensor in tensors.items() if name not in ("origin", "best")}
            es.load_state_dict({**state, **metadata["es"]})
    means = Means(run.path("evolve", "means.safetensors"), first)
    if config.generations > first:
        means.drop_off_grid(config.evaluate_every)  # the last mean of a shorter evolution
    minimum = first if means.scores else first + 1  # without an evaluated mean there is no C yet
    if config.generations < minimum:
        raise ValueError(
            f"evolve.generations: expected at least {minimum}, as {first} are complete, got {config.generations}"
        )
    run.rewind_metrics("evolve", first, key="generation")
    run.invalidate_dependents("evolve")

    progress = Progress("evolve", config.generations, "generations", start=first)
    clock = 0.0
    for generation in range(first + 1, config.generations + 1):
        with phase("ask"):
            candidates = es.ask()  # (popsize, size of the search space)
        with phase("rollout"):
            played = evaluator.play(
                space.params(candidates),
                config.episodes,
                seed=_seed(seed, "dream", generation),
                common_random_numbers=config.common_random_numbers,
                on_progress=_progress_callback(progress, generation, evaluator, clock),
            )
        scores = played.returns.mean(axis=1, dtype=np.float64)  # (popsize,)
        with phase("tell"):
            es.tell(candidates, -scores)
        steps = int(played.lengths.sum())
        speed = steps / max(progress.seconds - clock, 1e-9)
        score = None
        if generation % config.evaluate_every == 0 or generation == config.generations:
            mean = space.params(es.mean)
            with phase("evaluation"):
                callback = _progress_callback(progress, generation, evaluator)
                score = evaluate_mean(evaluator, mean, config, seed, callback)
            means.add(generation, score, mean)
        elapsed, clock = progress.seconds - clock, progress.seconds
        line = GenerationLine(
            generation=generation,
            best=float(scores.max()),
            mean=float(scores.mean()),
            worst=float(scores.min()),
            sigma=float(es.sigma),
            steps=steps,
            evaluation=score,
            seconds=round(elapsed, 3),
        )
        run.log("evolve", **line.to_json())
        with phase("storing"):
            _save(checkpoint, es, generation, space.origin, evaluator.metadata)
        run.log_profile("evolve")
        found = f"best {format_number(line.best)}, mean {format_number(line.mean)}"
        progress.update(generation, f"{found}, {speed:,.0f} {evaluator.unit}/s")
    if config.generations not in means.generations:  # the search stopped before its last mean was evaluated
        mean = space.params(es.mean)
        means.add(config.generations, evaluate_mean(evaluator, mean, config, seed), mean)
    best = int(np.argmax(means.scores))
    score, generation = means.scores[best], means.generations[best]
    progress.close(config.generations, f"best mean {format_number(score)}, generation {generation}")
    metadata = {"score": score, "generation": generation, **evaluator.metadata}
    save_controller(run, controller, means.params[best], metadata)
    return {"parameters": controller.size, **metadata}


def _checkpoint(run: Run) -> Path:
    return run.path("evolve", "checkpoint.safetensors")


def _read_checkpoint(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of the checkpoint; both are empty before the first generation."""
    path = _checkpoint(run)
    return load_tensors(path) if path.is_file() else ({}, {})


def _search_space(run: Run, controller: Controller, checkpoint: dict[str, Tensor]) -> SearchSpace:
    """Create the search space of the settings; a resumed search keeps the origin of its checkpoint."""
    config = run.config.evolve
    if checkpoint:
        with checkpoint_errors(_checkpoint(run), "evolve"):
            origin = checkpoint["origin"].numpy().astype(np.float64)
    else:
        origin = initial_mean(config, controller)
    if origin.shape != (controller.size,):
        raise ValueError(f"{_checkpoint(run)}: expected an origin of ({controller.size},), got {origin.shape}")
    return make_search_space(
        run.folder, controller, origin, config.pca_components, run.config.seed, scaled=config.scale_inputs
    )


def first_generation(run: Run) -> npt.NDArray[np.float32]:
    """Sample the candidates of the first generation, (popsize, N) float32."""
    controller, _, _ = load_controller(run.path("evolve", "controller.safetensors"))
    space = _search_space(run, controller, _read_checkpoint(run)[0])
    search = _make_search(run.config.evolve, space.start, run.config.seed)
    return space.params(search.ask()).astype(np.float32)


def _make_search(config: EvolveConfig, start: Params, seed: int) -> CMAES:
    """Create CMA-ES before the first generation.

    Args:
        config: Settings.
        start: Initial mean in the search space.
        seed: Seed of the run.
    """
    return CMAES(
        start,
        config.sigma0,
        popsize=config.popsize,
        seed=_seed(seed, "cma", 0),
        num_threads=config.num_threads or default_threads(),
        weight_decay=config.weight_decay,
    )


class Means:
    """Evaluated means of the search distribution, in ``evolve/means.safetensors``.

    Args:
        path: Path of the file.
        last: Generation to resume from; later ones are dropped.

    Attributes:
        generations: Generation of each mean.
        scores: Score of each mean.
        params: Parameters of each mean, (N,) float32.
    """

    def __init__(self, path: Path, last: int) -> None:
        self._path = path
        self.generations: list[int] = []
        self.scores: list[float] = []
        self.params: list[npt.NDArray[np.float32]] = []
        if path.is_file():
            tensors, metadata = load_tensors(path)
            with checkpoint_errors(path, "evolve"):
                for values in zip(metadata["generations"], metadata["scores"], tensors["params"].numpy(), strict=True):
                    if values[0] <= last:
                        self._append(*values)

    def drop_off_grid(self, every: int) -> None:
        """Drop the means of generations that are not multiples of ``every``."""
        kept = [index for index, generation in enumerate(self.generations) if generation % every == 0]
        self.generations = [self.generations[index] for index in kept]
        self.scores = [self.scores[index] for index in kept]
        self.params = [self.params[index] for index in kept]

    def _append(self, generation: int, score: float, params: npt.NDArray[np.float32]) -> None:
        self.generations.append(generation)
        self.scores.append(score)
        self.params.append(params)

    def add(self, generation: int, score: float, mean: Params) -> None:
        """Append a mean, (N,), and its score."""
        self._append(generation, score, mean.astype(np.float32))
        params = torch.from_numpy(np.stack(self.params))  # (G, N)
        save_tensors(self._path, {"params": params}, {"generations": self.generations, "scores": self.scores})


def _progress_callback(
    progress: Progress, generation: int, evaluator: Evaluator, began: float | None = None
) -> OnProgress:
    """Create the callback of a generation, which began at ``began``, or of the evaluation of its mean."""
    start = progress.seconds if began is None else began
    what = "evaluation of the mean" if began is None else f"generation {generation}"

    def on_progress(ended: int, total: int, steps: int) -> None:
        if ended < total:
            speed = steps / max(progress.seconds - start, 1e-9)
            progress.update(generation - 1, f"{what}: {ended}/{total} episodes, {speed:,.0f} {evaluator.unit}/s")

    return on_progress


def initial_mean(config: EvolveConfig, controller: Controller) -> Params:
    """Return the initial mean of CMA-ES: zeros, or the C of ``init_from``."""
    if not config.init_from:
        return np.zeros(controller.size)
    path = pretrained.resolve(config.init_from) / "evolve" / "controller.safetensors"
    found, params, _ = load_controller(path)
    if found != controller:
        raise ValueError(f"evolve.init_from: expected {controller}, got {found} in {path}")
    return params.astype(np.float64)


def evaluate_mean(
    evaluator: Evaluator, mean: Params, config: EvolveConfig, seed: int, on_progress: OnProgress = lambda *_: None
) -> float:
    """Evaluate the distribution's mean; return its mean return. Every generation uses the same episodes."""
    played = evaluator.play(
        mean[None],
        config.evaluate_episodes,
        seed=_seed(seed, "evaluate", 0),
        common_random_numbers=False,
        on_progress=on_progress,
    )
    return float(played.returns.mean(dtype=np.float64))


def _seed(seed: int, purpose: str, generation: int) -> int:
    words = np.random.SeedSequence([seed, *purpose.encode(), generation]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _save(
    path: Any,
    es: CMAES,
    generation: int,
    origin: Params,
    evaluator: dict[str, Any],
) -> None:
    """Write a checkpoint: the state of CMA-ES, its origin and the metadata of the evaluator."""
    state = es.state_dict()
    arrays = {name: torch.from_numpy(value) for name, value in state.items() if isinstance(value, np.ndarray)}
    metadata = {
        "generation": generation,
        "evaluator": evaluator,
        "es": {name: value for name, value in state.items() if not isinstance(value, np.ndarray)},
    }
    save_tensors(path, {**arrays, "origin": torch.from_numpy(origin)}, metadata)


def save_controller(
    run: Run, controller: Controller, params: npt.NDArray[np.floating], metadata: dict[str, Any]
) -> None:
    """Write ``evolve/controller.safetensors`` and its JSON: the agent's C."""
    agent.save_controller(run.path("evolve", "controller.safetensors"), controller, params, **metadata)
