"""Evolve C: CMA-ES asks, an evaluator answers, generation by generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels import pretrained
from worldmodels.cmaes.cmaes import CMAES
from worldmodels.cmaes.search_space import Coordinates
from worldmodels.models.agent import load_controller
from worldmodels.models.controller import Controller
from worldmodels.models.weights import load_tensors, save_model, save_tensors, taking_up
from worldmodels.pipeline.config import EvolveConfig
from worldmodels.pipeline.evaluators import make_evaluator
from worldmodels.pipeline.run import Experiment
from worldmodels.pipeline.search_space import make_coordinates
from worldmodels.rollout.evaluators import Evaluator, Told
from worldmodels.support.cpu import default_threads
from worldmodels.support.progress import Progress

Params = npt.NDArray[np.float64]


def run(experiment: Experiment) -> dict[str, Any]:
    """Evolves for ``generations``, from the last checkpoint if there is one; keeps the best evaluated mean."""
    evaluator = make_evaluator(experiment)
    try:
        return _evolve(experiment, evaluator)
    finally:
        evaluator.close()


def _evolve(experiment: Experiment, evaluator: Evaluator) -> dict[str, Any]:
    config, seed = experiment.config.evolve, experiment.config.seed
    controller = evaluator.controller
    coordinates = _coordinates(experiment, controller)
    es = _make_search(config, coordinates.start, seed)
    checkpoint = experiment.path("evolve", "checkpoint.safetensors")
    best, best_score, best_generation, first = np.zeros(controller.size), -np.inf, 0, 0
    if checkpoint.is_file():
        tensors, about = load_tensors(checkpoint)
        played_with = about.get("evaluator", evaluator.about)
        if played_with != evaluator.about:
            raise ValueError(f"{checkpoint}: expected to go on with {played_with}, got {evaluator.about}")
        tensors.pop("origin", None)
        with taking_up(checkpoint, "evolve"):
            best = tensors.pop("best").numpy()
            best_score, best_generation, first = about["best_score"], about["best_generation"], about["generation"]
            es.load_state_dict({**{name: tensor.numpy() for name, tensor in tensors.items()}, **about["es"]})
    least = first if best_generation else first + 1  # where no mean was evaluated, there is no C yet
    if config.generations < least:
        raise ValueError(
            f"evolve.generations: expected at least {least}, as {first} have run already, got {config.generations}"
        )
    experiment.rewind_metrics("evolve", first, key="generation")

    means = Means(experiment.path("evolve", "means.safetensors"), first)
    progress = Progress("evolve", config.generations, "generations", start=first)
    clock = 0.0
    for generation in range(first + 1, config.generations + 1):
        candidates = es.ask()  # (popsize, size of the coordinates)
        played = evaluator.play(
            coordinates.params(candidates),
            config.episodes,
            seed=_seed(seed, "dream", generation),
            common_seeds=config.seeds == "common",
            told=_teller(progress, generation, evaluator, clock),
        )
        scores = played.returns.mean(axis=1, dtype=np.float64)  # (popsize,)
        es.tell(candidates, -scores)
        line: dict[str, Any] = {
            "best": float(scores.max()),
            "mean": float(scores.mean()),
            "worst": float(scores.min()),
            "sigma": float(es.sigma),
            "steps": int(played.lengths.sum()),
        }
        speed = line["steps"] / max(progress.seconds - clock, 1e-9)
        if played.profile:
            line["profile"] = {name: round(seconds, 2) for name, seconds in played.profile.items()}
            line["profile"][f"{evaluator.unit}/s"] = round(speed)
        if generation % config.evaluate_every == 0 or generation == config.generations:
            mean = coordinates.params(es.mean)
            score = evaluate_mean(evaluator, mean, config, seed, _teller(progress, generation, evaluator))
            line["evaluation"] = score
            means.add(generation, score, mean)
            if score > best_score:
                best, best_score, best_generation = mean.copy(), score, generation
        elapsed, clock = progress.seconds - clock, progress.seconds
        experiment.log("evolve", generation=generation, **line, seconds=round(elapsed, 3))
        _save(checkpoint, es, generation, coordinates.origin, best, best_score, best_generation, evaluator.about)
        progress.update(
            generation, f"best {line['best']:.0f}, mean {line['mean']:.0f}, {speed:,.0f} {evaluator.unit}/s"
        )
    progress.close(config.generations, f"best mean {best_score:.0f}, of generation {best_generation}")
    about = {"score": best_score, "generation": best_generation, **evaluator.about}
    save_controller(experiment, controller, best, about)
    return {"parameters": controller.size, **about}


def _coordinates(experiment: Experiment, controller: Controller) -> Coordinates:
    """Those that the settings choose; nothing is played for them, and no other run is read, where a run goes on."""
    config = experiment.config.evolve
    origin = _kept_origin(experiment, controller)
    if origin is None:
        origin = first_mean(config, controller)
    return make_coordinates(experiment.folder, controller, origin, config.components, experiment.config.seed)


def _kept_origin(experiment: Experiment, controller: Controller) -> Params | None:
    """The parameters that the search began at, as its checkpoint has them; None where there is none."""
    path = experiment.path("evolve", "checkpoint.safetensors")
    tensors = load_tensors(path)[0] if path.is_file() else {}
    if "origin" not in tensors:
        return None
    origin: Params = tensors["origin"].numpy().astype(np.float64)
    if origin.shape != (controller.size,):
        raise ValueError(f"{path}: expected an origin of ({controller.size},), got {origin.shape}")
    return origin


def first_generation(experiment: Experiment) -> npt.NDArray[np.float32]:
    """(popsize, N) the candidates that the evolution began with."""
    controller, _, _ = load_controller(experiment.path("evolve", "controller.safetensors"))
    coordinates = _coordinates(experiment, controller)
    search = _make_search(experiment.config.evolve, coordinates.start, experiment.config.seed)
    return coordinates.params(search.ask()).astype(np.float32)


def _make_search(config: EvolveConfig, start: Params, seed: int) -> CMAES:
    """CMA-ES as it is before the first generation, at the first mean's coordinates."""
    return CMAES(
        start,
        config.sigma,
        popsize=config.popsize,
        seed=_seed(seed, "cma", 0),
        num_threads=config.threads or default_threads(),
        weight_decay=config.weight_decay,
    )


class Means:
    """The means that were evaluated, in ``evolve/means.safetensors``: what the distribution believed over time.

    Args:
        path: the file.
        last: the generation that is gone on from; later ones are dropped.
    """

    def __init__(self, path: Path, last: int) -> None:
        self._path = path
        self.generations: list[int] = []
        self.scores: list[float] = []
        self.params: list[npt.NDArray[np.float32]] = []
        if path.is_file():
            tensors, about = load_tensors(path)
            with taking_up(path, "evolve"):
                for values in zip(about["generations"], about["scores"], tensors["params"].numpy(), strict=True):
                    if values[0] <= last:
                        self._append(*values)

    def _append(self, generation: int, score: float, params: npt.NDArray[np.float32]) -> None:
        self.generations.append(generation)
        self.scores.append(score)
        self.params.append(params)

    def add(self, generation: int, score: float, mean: Params) -> None:
        """Keeps a mean, (N,), and its score in the dream."""
        self._append(generation, score, mean.astype(np.float32))
        params = torch.from_numpy(np.stack(self.params))  # (G, N)
        save_tensors(self._path, {"params": params}, {"generations": self.generations, "scores": self.scores})


def _teller(progress: Progress, generation: int, evaluator: Evaluator, began: float | None = None) -> Told:
    """Shows how far a generation is, or the evaluation behind it."""
    start = progress.seconds if began is None else began
    what = "evaluation of the mean" if began is None else f"generation {generation}"

    def told(ended: int, total: int, steps: int) -> None:
        if ended < total:
            speed = steps / max(progress.seconds - start, 1e-9)
            progress.update(generation - 1, f"{what}: {ended}/{total} episodes, {speed:,.0f} {evaluator.unit}/s")

    return told


def first_mean(config: EvolveConfig, controller: Controller) -> Params:
    """Where CMA-ES starts: at zero, or at the C of the run that ``start`` names."""
    if not config.start:
        return np.zeros(controller.size)
    path = pretrained.resolve(config.start) / "evolve" / "controller.safetensors"
    found, params, _ = load_controller(path)
    if found.size != controller.size:
        raise ValueError(f"evolve.start: expected a C of {controller.size} parameters, got {found.size} in {path}")
    return params.astype(np.float64)


def evaluate_mean(
    evaluator: Evaluator, mean: Params, config: EvolveConfig, seed: int, told: Told = lambda *_: None
) -> float:
    """Mean return of the distribution's mean; the same episodes every time, so that means compare."""
    played = evaluator.play(
        mean[None], config.evaluate_episodes, seed=_seed(seed, "evaluate", 0), common_seeds=False, told=told
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
    best: Params,
    best_score: float,
    best_generation: int,
    evaluator: dict[str, Any],
) -> None:
    """Writes one checkpoint: all of CMA-ES, where it began, the best mean so far and whom they were played with."""
    state = es.state_dict()
    arrays = {name: torch.from_numpy(value) for name, value in state.items() if isinstance(value, np.ndarray)}
    about = {
        "generation": generation,
        "best_score": best_score,
        "best_generation": best_generation,
        "evaluator": evaluator,
        "es": {name: value for name, value in state.items() if not isinstance(value, np.ndarray)},
    }
    save_tensors(path, {**arrays, "origin": torch.from_numpy(origin), "best": torch.from_numpy(best)}, about)


def save_controller(experiment: Experiment, controller: Controller, params: Params, about: dict[str, Any]) -> None:
    """Writes ``evolve/controller.safetensors``: the agent's C."""
    save_model(experiment.path("evolve", "controller.safetensors"), _Weights(controller, params), **about)


class _Weights(torch.nn.Module):
    """A controller's parameters in the form that weights are saved in."""

    def __init__(self, controller: Controller, params: Params) -> None:
        super().__init__()
        self.config = dict(vars(controller))
        self.params = torch.nn.Parameter(torch.from_numpy(params.astype(np.float32)), requires_grad=False)
