"""Evaluation: the agent and the baselines in the real environment; every episode's score is cached."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.analysis import figures
from worldmodels.analysis.recording import from_recorder, save_gif
from worldmodels.analysis.stats import describe, format_interval, table
from worldmodels.data.records import (
    CurvePoint,
    DreamScores,
    EnvironmentRecord,
    EvolvedScore,
    PlayerScores,
    Results,
    Seeds,
)
from worldmodels.envs.spec import EnvSpec
from worldmodels.envs.vector import backend
from worldmodels.models.agent import Agent, Population, Recorder, load_controller
from worldmodels.models.vae import decode
from worldmodels.pipeline.evaluators import make_dream, playback_precision
from worldmodels.pipeline.evolution import Means, first_generation
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.scores import cached_scores
from worldmodels.rollout.runner import Environments, OpenLoopPlayer, Player, describe_environment, episode_seed, record
from worldmodels.support.profile import phase
from worldmodels.support.versions import versions

PURPOSE = "evaluate"  # purpose of the episodes, distinct from that of other stages
BEFORE = "first generation"  # policy of the entry "before" of results.json
_FRAMES = 12  # frames shown with their reconstructions


def evaluate_agent(run: Run) -> dict[str, Any]:
    """Play the episodes of the agent and of the baselines that are not cached yet, and write ``results.json``.

    The baselines are the controllers of the first generation (one per episode) and the open-loop policies of the task.
    With ``curve_episodes``, every evaluated mean of the evolution plays too.

    Returns:
        Summary: ``mean``, ``std`` and ``ci95`` of every player.
    """
    config, task = run.config, run.task
    environment = _environment(run)
    episodes = config.evaluate.episodes
    agent = Agent.load(run.folder)
    evolved = run.summary("evolve")
    num_envs = min(config.evaluate.num_envs, episodes)
    with Environments(environment, num_envs, rules=task.rules) as environments:
        games = _Games(run, environments)
        scores = describe(games.controller_scores("episodes", agent, episodes))
        first = Population(agent, first_generation(run))
        returns = {"before": (BEFORE, games.controller_scores("before", first, episodes))}
        for name, policy in task.baselines.items():
            player = OpenLoopPlayer(task.policies[policy], PURPOSE)
            returns[name] = policy, games.scores(name, player, episodes, {"policy": policy})
        curve = _curve(games, agent) if config.evaluate.curve_episodes else None
    in_dream, score, generation = config.evolve.evaluate_in == "dream", evolved["score"], evolved["generation"]
    results = Results(
        agent=scores,
        players={
            name: PlayerScores(policy=policy, **vars(describe(found))) for name, (policy, found) in returns.items()
        },
        evolved=EvolvedScore(evaluate_in=config.evolve.evaluate_in, score=score, generation=generation),
        curve=curve,
        dream=DreamScores(
            score=score if in_dream else None,
            temperature=config.evolve.temperature,
            precision=playback_precision(run),
            generation=generation,
            evaluation=describe(dream_scores(run)) if task.dream_has_reward(agent.mdnrnn) else None,
        ),
        environment=EnvironmentRecord(
            **{**vars(environment), "backend": backend(environment), "max_steps": task.max_steps}
        ),
        versions=versions(),
        seeds=Seeds(
            seed=config.seed, episodes=[episode_seed(config.seed, PURPOSE, episode) for episode in range(episodes)]
        ),
        preset=config.preset,
    )
    results.write(run.path("results.json"))
    with phase("recording"):
        _record(run)
    print(format_table(results))
    players = {"agent": scores, **results.players}
    return {name: {"mean": one.mean, "std": one.std, "ci95": list(one.ci95)} for name, one in players.items()}


class _Games:
    """Scores of a run's players in the real environment, cached in ``evaluate/``."""

    def __init__(self, run: Run, environments: Environments) -> None:
        self.run = run
        self._environments = environments

    def scores(self, name: str, player: Player, episodes: int, metadata: dict[str, Any]) -> list[float]:
        """Compute the scores of a player, cached in ``evaluate/<name>.jsonl``."""
        return cached_scores(
            self.run.path("evaluate", f"{name}.jsonl"),
            metadata,
            player,
            episodes,
            environments=self._environments,
            seed=self.run.config.seed,
            purpose=PURPOSE,
            label="evaluate" if name == "episodes" else f"evaluate, {name}",
        )

    def controller_scores(self, name: str, player: Player, episodes: int) -> list[float]:
        """Compute the scores of controllers of the run."""
        return self.scores(name, player, episodes, {"controller": self.run.summary("evolve")})

    def mean_scores(self, agent: Agent, means: Means, episodes: int) -> list[float]:
        """Compute the scores of the evaluated means, which play the episodes in turn."""
        metadata = {"generations": means.generations, "scores": means.scores}
        return self.scores("curve", Population(agent, np.stack(means.params)), episodes, metadata)


def _curve(games: _Games, agent: Agent) -> list[CurvePoint]:
    """Score every evaluated mean in the real environment."""
    run = games.run
    means = Means(run.path("evolve", "means.safetensors"), run.config.evolve.generations)
    count, episodes = len(means.params), run.config.evaluate.curve_episodes
    scores = games.mean_scores(agent, means, count * episodes)
    return [
        CurvePoint(generation=generation, dream=score, game=describe(scores[index::count]))
        for index, (generation, score) in enumerate(zip(means.generations, means.scores, strict=True))
    ]


def dream_scores(run: Run) -> list[float]:
    """Compute returns of C in its training dream, on episodes not used for selection."""
    _, params, _ = load_controller(run.path("evolve", "controller.safetensors"))
    dream = make_dream(run, precision=playback_precision(run))
    episodes = run.config.evolve.evaluate_episodes
    seed = episode_seed(run.config.seed, "evaluate in the dream", 0)
    with phase("dream"):
        scores: list[float] = dream.rollout(params[None], episodes, seed=seed).returns[0].tolist()
    return scores


def _environment(run: Run) -> EnvSpec:
    """Return the environment of the collected episodes, with the variant and resolution of the evaluation."""
    config = run.config
    return replace(
        config.environment,
        variant=config.evaluate.variant or config.environment.variant,
        resolution=config.evaluate.resolution or config.environment.resolution,
    )


def _record(run: Run) -> None:
    """Record episode 0: an animation with the actions, and frames above their reconstructions."""
    config, task = run.config, run.task
    agent = Agent.load(run.folder)
    recorder = Recorder(agent)
    environment = _environment(run)
    trace = record(
        environment,
        recorder,
        seed=config.seed,
        episode_seed=episode_seed(config.seed, PURPOSE, 0),
        rules=task.rules,
    )
    trace.write(run.path("evaluate", "episode.json"))
    recording = from_recorder(recorder, config.evaluate.recording_steps, **task.look)
    save_gif(run.path("evaluate", "episode.gif"), recording)
    chosen = most_active_frames(recorder.frames, _FRAMES)
    decoded = decode(agent.vae, np.stack([recorder.latents[index] for index in chosen]))
    figures.frames(run.path("evaluate", "frames.png"), np.stack([recorder.frames[i] for i in chosen]), decoded)


def most_active_frames(frames: list[npt.NDArray[np.uint8]], count: int) -> list[int]:
    """Select the frame with the largest change in each of ``count`` equal segments of an episode.

    Args:
        frames: (64, 64, 3) uint8 frames.
        count: Number of segments.

    Returns:
        Indices of the frames; the change is the mean absolute difference from the previous frame.
    """
    segments = np.array_split(np.arange(1, len(frames)), min(count, max(len(frames) - 1, 1)))
    change = [np.abs(frame.astype(np.int16) - previous).mean() for previous, frame in itertools.pairwise(frames)]
    return [int(part[np.argmax([change[index - 1] for index in part])]) for part in segments if len(part)] or [0]


def format_environment(results: Results) -> str:
    """Describe the environment of an evaluation."""
    return describe_environment(EnvSpec(**{name: getattr(results.environment, name) or "" for name in vars(EnvSpec())}))


def score_rows(results: Results, plus_minus: str) -> list[list[str]]:
    """Format the scores as rows of a table: player, episodes, mean and standard deviation, 95 % interval."""
    return [
        [label, str(len(entry.scores)), f"{entry.mean:.0f} {plus_minus} {entry.std:.0f}", format_interval(entry)]
        for label, entry in results.labelled()
    ]


def format_table(results: Results) -> str:
    """Format the scores as a table for the terminal."""
    rows = score_rows(results, "+-")
    return f"{format_environment(results)}\n{table(['player', 'episodes', 'score', '95 % interval'], rows)}"
