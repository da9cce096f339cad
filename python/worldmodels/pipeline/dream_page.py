"""The browser page of an agent: a pretrained one, or that of a run folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from worldmodels.data.records import Results, Scores
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.agent import load_controller
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.folder import making
from worldmodels.pipeline.stage import C, M, V
from worldmodels.web.bundle import BundledAgent, bundle
from worldmodels.web.film import Film
from worldmodels.web.page import WASM, WEIGHTS, Page, read_wasm
from worldmodels.web.scores import SCORES, AgentScores, Summary

AGENT, EXPLOITED = "agent", "exploited"  # names of the controllers
#: Evolution in the browser: small enough for generations of seconds.
_EVOLUTION = {"episodes": 2, "sigma0": 0.1, "maxSteps": 700}
_MAX_STEPS = 2**20


def make_page(folder: Path, config: Config) -> Page:
    """Collect the page of an agent.

    Args:
        folder: Run folder with V and M, or folder of a pretrained agent. Without C, only the reader plays. Without
            recordings of C, the page lacks the demonstrations that show them.
        config: Settings of the run.

    Raises:
        FileNotFoundError: The run has no V or no M, or dream.wasm was not built.
        ValueError: V is not a ConvVAE, or a file is damaged.
    """
    wasm, task = read_wasm(), tasks.of(config)
    for model, file, stage in (("V", V, "train_vae"), ("M", M, "train_rnn")):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{folder}: expected a run with {model}, got one without {file}; "
                f"`{making(config, folder, stage)}` trains it"
            )
    vae, world = load_model(folder / V, ConvVAE), load_world_model(folder)
    agents: dict[str, BundledAgent] = {}
    data = {WASM: wasm}
    films: dict[str, Any] = {}
    exploited = None
    if (folder / C).is_file():
        controller, params, _ = load_controller(folder / C)
        agents[AGENT] = BundledAgent(controller, params, config.evolve.temperature)
        films[AGENT] = _add_film(folder / "evaluate" / "film.webp", "agent.webp", data)
    if (folder / EXPLOITED / "controller.safetensors").is_file():
        controller, params, about = load_controller(folder / EXPLOITED / "controller.safetensors")
        agents[EXPLOITED] = BundledAgent(controller, params, about["temperature"])
        films[EXPLOITED] = _add_film(folder / EXPLOITED / "film.webp", "exploited.webp", data)
        scores = AgentScores.read(folder / EXPLOITED / SCORES).to_json()
        exploited = {
            "agent": EXPLOITED,
            "temperature": about["temperature"],
            "termination": about["termination"],
            **scores,
        }
    max_steps = min(task.max_steps, _MAX_STEPS)
    data[WEIGHTS] = bundle(
        vae,
        world,
        agents,
        task=task.name,
        termination=config.evolve.termination if world.mdnrnn.done_head else "threshold",
        temperature=config.evolve.temperature,
        max_steps=max_steps,
    )
    title, colon, rules = task.description.partition(": ")
    if not colon:
        title = task.name
    about = {
        "task": task.name,
        "description": f"In {title}, {rules}" if colon else task.description,
        "actions": list(task.actions),
        "keys": dict(task.keys),
        "squash": task.squash,
        "frames_per_second": task.frames_per_second,
        "score": task.score,
        "survival": task.survival,
        "films": films,
        "scores": _scores(folder).to_json(),
        "exploited": exploited,
        "has_reward": task.dream_has_reward(world.mdnrnn),
        "evolution": {
            **_EVOLUTION,
            "maxSteps": min(_EVOLUTION["maxSteps"], max_steps),
            "features": config.evolve.features,
            "squash": task.squash,
        },
    }
    return Page(title, about, data)


def _add_film(path: Path, name: str, data: dict[str, bytes]) -> dict[str, Any] | None:
    """Add a recording to the data of a page and return its description; None if there is none."""
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        return None
    film = Film.read(path.with_suffix(".json"))
    data[name] = path.read_bytes()
    return {**asdict(film), "file": name}


def _scores(folder: Path) -> AgentScores:
    """Read the scores of the agent: those of a pretrained one, or of the run's ``results.json``."""
    if (folder / SCORES).is_file():
        return AgentScores.read(folder / SCORES)
    if not (folder / "results.json").is_file():
        return AgentScores()
    results = Results.read(folder / "results.json")
    dreamed = results.dream.evaluation if results.dream else None
    return AgentScores(dream=_summary(dreamed) if dreamed else None, game=_summary(results.agent))


def _summary(scores: Scores) -> Summary:
    return Summary(mean=scores.mean, std=scores.std, ci95=scores.ci95, n=len(scores.scores))
