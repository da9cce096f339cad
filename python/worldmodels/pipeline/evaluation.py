"""Evaluate: the agent in the real game beside policies that look at nothing; every score is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.analysis import figures
from worldmodels.analysis.recording import from_recorder, save_gif
from worldmodels.analysis.stats import describe, format_interval, table
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.vector import backend
from worldmodels.models.agent import Agent, Population, Recorder, load_controller
from worldmodels.models.vae import decode
from worldmodels.pipeline.evaluators import make_dream, playback_precision
from worldmodels.pipeline.evolution import Means, first_generation
from worldmodels.pipeline.records import players
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.scores import kept_scores
from worldmodels.rollout.runner import Environments, OpenLoopPlayer, Player, describe_environment, episode_seed, record
from worldmodels.support.files import write_json
from worldmodels.support.versions import versions

PURPOSE = "evaluate"  # keeps these episodes apart from those of other stages
BEFORE = "first generation"  # what the entry "before" of results.json plays
_PICTURES = 12  # frames that are drawn beside what V makes of them


def evaluate_agent(run: Run) -> dict[str, Any]:
    """Plays the agent's episodes (those that were not played before), then those beside it; writes results.json.

    Beside it: controllers of the first generation, one an episode, that is, before anything was evolved; policies that
    look at nothing; and, with ``curve_episodes``, every mean that was evaluated on the way.
    """
    config, task = run.config, run.task
    environment = _environment(run)
    episodes = config.evaluate.episodes
    agent = Agent.load(run.folder)
    evolved = run.summary("evolve")
    slots = min(config.evaluate.num_envs, episodes)
    with Environments(environment, slots, rules=task.rules) as environments:
        games = _Games(run, environments)
        results: dict[str, Any] = {"agent": describe(games.of_controllers("episodes", agent, episodes))}
        first = Population(agent, first_generation(run))
        results["before"] = {"policy": BEFORE, **describe(games.of_controllers("before", first, episodes))}
        for name, policy in task.baselines.items():
            returns = games.scores(name, OpenLoopPlayer(task.policies[policy], PURPOSE), episodes, {"policy": policy})
            results[name] = {"policy": policy, **describe(returns)}
        curve = _curve(games, agent) if config.evaluate.curve_episodes else None
    scored = task.dream_has_reward(agent.mdnrnn)
    results["evolved"] = {
        "inside": config.evolve.evaluate_in,
        "score": evolved["score"],
        "generation": evolved["generation"],
    }
    if curve is not None:
        results["curve"] = curve
    results["dream"] = {
        **({"score": evolved["score"]} if config.evolve.evaluate_in == "dream" else {}),
        "temperature": config.evolve.temperature,
        "precision": playback_precision(run),
        "generation": evolved["generation"],
        "evaluation": describe(dream_scores(run)) if scored else None,
    }
    results["environment"] = {**vars(environment), "backend": backend(environment), "max_steps": task.max_steps}
    results["versions"] = versions()
    seeds = [episode_seed(config.seed, PURPOSE, episode) for episode in range(episodes)]
    results["seeds"] = {"seed": config.seed, "episodes": seeds}
    results["preset"] = config.preset
    write_json(run.path("results.json"), results)
    _record(run)
    print(format_table(results))
    played = ("agent", "before", *task.baselines)
    return {name: {key: results[name][key] for key in ("mean", "std", "ci95")} for name in played}


class _Games:
    """What the players of one run score in the real environment, kept in ``evaluate/``."""

    def __init__(self, run: Run, environments: Environments) -> None:
        self.run = run
        self._environments = environments

    def scores(self, name: str, player: Player, episodes: int, about: dict[str, Any]) -> list[float]:
        """Scores of a player, in ``evaluate/<name>.jsonl``."""
        return kept_scores(
            self.run.path("evaluate", f"{name}.jsonl"),
            about,
            player,
            episodes,
            environments=self._environments,
            seed=self.run.config.seed,
            purpose=PURPOSE,
            label="evaluate" if name == "episodes" else f"evaluate, {name}",
        )

    def of_controllers(self, name: str, player: Player, episodes: int) -> list[float]:
        """Scores of the agent's C, or of others of its run."""
        return self.scores(name, player, episodes, {"controller": self.run.summary("evolve")})

    def of_means(self, agent: Agent, means: Means, episodes: int) -> list[float]:
        """Scores of the evaluated means in turn."""
        about = {"generations": means.generations, "scores": means.scores}
        return self.scores("curve", Population(agent, np.stack(means.params)), episodes, about)


def _curve(games: _Games, agent: Agent) -> list[dict[str, Any]]:
    """Every evaluated mean in the real environment: ``generation``, ``dream`` (its score there) and ``game``."""
    run = games.run
    means = Means(run.path("evolve", "means.safetensors"), run.config.evolve.generations)
    count, episodes = len(means.params), run.config.evaluate.curve_episodes
    scores = games.of_means(agent, means, count * episodes)
    return [
        {"generation": generation, "dream": score, "game": describe(scores[index::count])}
        for index, (generation, score) in enumerate(zip(means.generations, means.scores, strict=True))
    ]


def dream_scores(run: Run) -> list[float]:
    """Returns of the agent's C in the dream it was evolved in, in episodes that chose nothing."""
    _, params, _ = load_controller(run.path("evolve", "controller.safetensors"))
    dream = make_dream(run, precision=playback_precision(run))
    episodes = run.config.evolve.evaluate_episodes
    seed = episode_seed(run.config.seed, "evaluate in the dream", 0)
    scores: list[float] = dream.rollout(params[None], episodes, seed=seed).returns[0].tolist()
    return scores


def _environment(run: Run) -> EnvSpec:
    """The real environment to play: the one that was collected in, unless the settings say otherwise."""
    config = run.config
    return replace(
        config.environment,
        variant=config.evaluate.variant or config.environment.variant,
        resolution=config.evaluate.resolution or config.environment.resolution,
    )


def _record(run: Run) -> None:
    """Plays episode 0 once more, alone, and draws it: its frames, V's reconstructions and the actions."""
    config, task = run.config, run.task
    agent = Agent.load(run.folder)
    recorder = Recorder(agent)
    number = episode_seed(config.seed, PURPOSE, 0)
    environment = _environment(run)
    recorded = record(environment, recorder, seed=config.seed, episode_seed=number, rules=task.rules)
    write_json(run.path("evaluate", "episode.json"), recorded)
    recording = from_recorder(recorder, config.evaluate.recording_steps, **task.look)
    save_gif(run.path("evaluate", "episode.gif"), recording)
    chosen = liveliest(recorder.frames, _PICTURES)
    drawn = decode(agent.vae, np.stack([recorder.latents[index] for index in chosen]))
    figures.frames(run.path("evaluate", "frames.png"), np.stack([recorder.frames[i] for i in chosen]), drawn)


def liveliest(frames: list[npt.NDArray[np.uint8]], count: int) -> list[int]:
    """Of every one of ``count`` stretches of an episode, the frame that differs most from the one before it."""
    parts = np.array_split(np.arange(1, len(frames)), min(count, max(len(frames) - 1, 1)))
    moved = [np.abs(now.astype(np.int16) - before).mean() for before, now in itertools.pairwise(frames)]
    return [int(part[np.argmax([moved[index - 1] for index in part])]) for part in parts if len(part)] or [0]


_SHOWN = ("id", "variant", "resolution", "backend")


def format_table(results: dict[str, Any]) -> str:
    """The table of scores for the terminal."""
    rows = []
    for name, entry in players(results).items():
        policy = entry.get("policy", name)
        label = name if policy == name else f"{name} ({policy})"
        rows.append(
            [label, str(len(entry["scores"])), f"{entry['mean']:.0f} +- {entry['std']:.0f}", format_interval(entry)]
        )
    environment = results["environment"]
    title = describe_environment(EnvSpec(**{key: environment.get(key) or "" for key in _SHOWN}))
    return f"{title}\n{table(['player', 'episodes', 'score', '95 % interval'], rows)}"
