"""Evaluate: the agent in the real game beside policies that look at nothing; every score is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from worldmodels.config import EnvironmentConfig
from worldmodels.data.atomic import atomic_path, write_json
from worldmodels.envs.batch import backend
from worldmodels.envs.play import describe_environment, episode_seed, play_agent, play_policy, record
from worldmodels.evaluators.dream import make_dream
from worldmodels.experiment import Experiment, versions
from worldmodels.figures import save_animation
from worldmodels.models.agent import Agent, Recorder, load_controller
from worldmodels.progress import Progress
from worldmodels.stats import describe, table

PURPOSE = "evaluate"  # keeps these episodes apart from those of other stages


def run(experiment: Experiment) -> dict[str, Any]:
    """Plays the agent's episodes (those that were not played before), then the policies', and writes results.json."""
    config, task = experiment.config, experiment.task
    environment = _environment(experiment)
    scores = _agent_scores(experiment)
    results: dict[str, Any] = {"agent": describe(scores)}
    for name, policy in task.beside.items():
        returns = play_policy(
            environment,
            task.policies[policy],
            config.evaluate.episodes,
            seed=config.seed,
            purpose=PURPOSE,
            slots=config.evaluate.environments,
        )
        results[name] = {"policy": policy, **describe(returns)}
    evolved = experiment.summary("evolve")
    scored = task.dreams_are_scored(config)
    results["evolved"] = {
        "inside": config.evolve.inside,
        "score": evolved["score"],
        "generation": evolved["generation"],
    }
    results["dream"] = {
        **({"score": evolved["score"]} if config.evolve.inside == "dream" else {}),
        "temperature": config.evolve.temperature,
        "generation": evolved["generation"],
        "evaluation": describe(dream_scores(experiment)) if scored else None,
    }
    results["environment"] = {**vars(environment), "backend": backend(environment), "max_steps": task.max_steps}
    results["versions"] = versions()
    seeds = [episode_seed(config.seed, PURPOSE, episode) for episode in range(config.evaluate.episodes)]
    results["seeds"] = {"seed": config.seed, "episodes": seeds}
    results["preset"] = config.preset
    write_json(experiment.path("results.json"), results)
    _record(experiment)
    print(format_table(results))
    return {name: {key: results[name][key] for key in ("mean", "std", "ci95")} for name in ("agent", *task.beside)}


def dream_scores(experiment: Experiment) -> list[float]:
    """Returns of the agent's C in the dream it was evolved in, in episodes that chose nothing."""
    _, params, _ = load_controller(experiment.path("evolve", "controller.safetensors"))
    dream = make_dream(experiment)
    episodes = experiment.config.evolve.evaluate_episodes
    seed = episode_seed(experiment.config.seed, "evaluate in the dream", 0)
    scores: list[float] = dream.rollout(params[None], episodes, seed=seed).returns[0].tolist()
    return scores


def _environment(experiment: Experiment) -> EnvironmentConfig:
    """The real environment to play: the one that was collected in, unless the settings say otherwise."""
    config = experiment.config
    return replace(
        config.environment,
        variant=config.evaluate.variant or config.environment.variant,
        resolution=config.evaluate.resolution or config.environment.resolution,
    )


def _agent_scores(experiment: Experiment) -> list[float]:
    """Scores of the agent's episodes; each is written down as soon as it is known."""
    config = experiment.config
    path = experiment.path("evaluate", "episodes.jsonl")
    path.parent.mkdir(exist_ok=True)
    environment = _environment(experiment)
    played = {**vars(environment), "backend": backend(environment)}
    about = {"environment": played, "seed": config.seed, "controller": experiment.summary("evolve")}
    known = _read_scores(path, about)
    wanted = range(config.evaluate.episodes)
    todo = [episode for episode in wanted if episode not in known]
    progress = Progress("evaluate", len(wanted), "episodes", start=len(wanted) - len(todo))
    lines = [about, *({"episode": episode, "score": score} for episode, score in known.items())]
    with atomic_path(path) as temporary:  # without a line that a crash has cut off
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    with path.open("a", encoding="utf-8") as file:

        def finished(episode: int, score: float) -> None:
            known[episode] = score
            file.write(json.dumps({"episode": episode, "score": score}) + "\n")
            file.flush()
            progress.update(len(known), f"mean {sum(known.values()) / len(known):.0f}")

        if todo:
            play_agent(
                environment,
                Agent.load(experiment.folder),
                todo,
                seed=config.seed,
                purpose=PURPOSE,
                slots=config.evaluate.environments,
                finished=finished,
            )
    scores = [known[episode] for episode in wanted]
    progress.close(len(wanted), f"mean {sum(scores) / len(scores):.0f}")
    return scores


def _record(experiment: Experiment) -> None:
    """Plays episode 0 once more, alone, and draws it: the frame, V's reconstruction and the action."""
    config, task = experiment.config, experiment.task
    recorder = Recorder(Agent.load(experiment.folder))
    number = episode_seed(config.seed, PURPOSE, 0)
    recorded = record(_environment(experiment), recorder, seed=config.seed, episode_seed=number)
    write_json(experiment.path("evaluate", "episode.json"), recorded)
    steps = config.evaluate.gif_steps
    save_animation(
        experiment.path("evaluate", "episode.gif"),
        recorder.pictures(steps),
        recorder.actions[:steps],
        frames_per_second=task.frames_per_second,
        threshold=task.threshold,
    )


def _read_scores(path: Any, about: dict[str, Any]) -> dict[int, float]:
    """Scores that an earlier run wrote down for the same agent, game and seed."""
    if not path.is_file():
        return {}
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break  # cut off by a crash
    if not lines or lines[0] != json.loads(json.dumps(about)):
        return {}
    return {int(line["episode"]): float(line["score"]) for line in lines[1:]}


_SHOWN = ("id", "variant", "resolution", "backend")


def format_table(results: dict[str, Any]) -> str:
    """The table of scores for the terminal."""
    rows = []
    players = {name: entry for name, entry in results.items() if name == "agent" or "policy" in entry}
    for name, entry in players.items():
        low, high = entry["ci95"]
        policy = entry.get("policy", name)
        label = name if policy == name else f"{name} ({policy})"
        rows.append(
            [label, str(len(entry["scores"])), f"{entry['mean']:.0f} +- {entry['std']:.0f}", f"{low:.0f} to {high:.0f}"]
        )
    environment = results["environment"]
    title = describe_environment(EnvironmentConfig(**{key: environment.get(key, "") for key in _SHOWN}))
    return f"{title}\n{table(['player', 'episodes', 'score', '95 % interval'], rows)}"
