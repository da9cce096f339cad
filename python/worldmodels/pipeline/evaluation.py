"""Evaluation: the agent and the baselines in the real environment; every episode's score is cached."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.analysis import figures
from worldmodels.analysis.animation import save_gif
from worldmodels.analysis.recording import from_recorder
from worldmodels.analysis.stats import describe, format_interval, format_mean, table
from worldmodels.data.records import (
    CurvePoint,
    DreamScores,
    EnvironmentRecord,
    EvolvedScore,
    PlayerScores,
    Results,
    Seeds,
)
from worldmodels.envs.making import backend
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.agent import Agent, Population, Recorder, load_controller
from worldmodels.models.decoder import Decoder
from worldmodels.pipeline import tasks
from worldmodels.pipeline.evaluators import make_dream, playback_precision
from worldmodels.pipeline.evolution import Means, first_generation
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.scores import ScoredPlayer, cached_scores
from worldmodels.rollout.environments import Environments, describe_environment, record
from worldmodels.rollout.players import OpenLoopPlayer, Player, episode_seed
from worldmodels.support.cluster import active_cluster
from worldmodels.support.profile import phase
from worldmodels.support.versions import versions
from worldmodels.web.film import write_film

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
    players = _players(run, agent)
    num_envs = min(config.evaluate.num_envs, sum(player.episodes for player in players.values()))
    with Environments(
        environment,
        num_envs,
        rules=task.rules,
        cluster=active_cluster(),
        modules=tasks.modules(config),
    ) as environments:
        found = cached_scores(
            list(players.values()), environments=environments, seed=config.seed, purpose=PURPOSE, label="evaluate"
        )
    scores = dict(zip(players, found, strict=True))
    agent_scores = describe(scores["episodes"])
    policies = {"before": BEFORE, **task.baselines}
    in_dream, score, generation = config.evolve.evaluate_in == "dream", evolved["score"], evolved["generation"]
    results = Results(
        agent=agent_scores,
        players={
            name: PlayerScores(policy=policy, **vars(describe(scores[name]))) for name, policy in policies.items()
        },
        evolved=EvolvedScore(evaluate_in=config.evolve.evaluate_in, score=score, generation=generation),
        curve=_curve(run, scores["curve"]) if "curve" in scores else None,
        dream=DreamScores(
            score=score if in_dream else None,
            temperature=config.evolve.temperature,
            precision=playback_precision(run),
            generation=generation,
            evaluation=describe(dream_scores(run)) if task.dream_has_reward(agent.mdnrnn) else None,
        ),
        environment=EnvironmentRecord(
            **{**environment.metadata(), "backend": backend(environment), "max_steps": task.max_steps}
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
    described = {"agent": agent_scores, **results.players}
    run.rewind_metrics("evaluate", -1, key="episodes")
    run.log("evaluate", episodes=episodes, **{f"{name}_score": one.mean for name, one in described.items()})
    run.log_image("evaluate", "frames and reconstructions", run.path("evaluate", "frames.png"), episodes)
    return {name: {"mean": one.mean, "std": one.std, "ci95": list(one.ci95)} for name, one in described.items()}


def _players(run: Run, agent: Agent) -> dict[str, ScoredPlayer]:
    """List the players by the names of their caches in ``evaluate/``; controllers, which survive longer, come first."""
    config, task = run.config.evaluate, run.task
    players: dict[str, ScoredPlayer] = {}

    def add(name: str, player: Player, episodes: int, metadata: dict[str, Any]) -> None:
        players[name] = ScoredPlayer(run.path("evaluate", f"{name}.jsonl"), metadata, player, episodes)

    evolved = {"controller": run.summary("evolve")}
    add("episodes", Population(agent, agent.params[None]), config.episodes, evolved)
    if config.curve_episodes:
        means = _means(run)
        metadata = {"generations": means.generations, "scores": means.scores}
        add("curve", Population(agent, np.stack(means.params)), len(means.params) * config.curve_episodes, metadata)
    add("before", Population(agent, first_generation(run)), config.episodes, evolved)
    for name, policy in task.baselines.items():
        add(name, OpenLoopPlayer(task.policies[policy], PURPOSE), config.episodes, {"policy": policy})
    return players


def _means(run: Run) -> Means:
    return Means(run.path("evolve", "means.safetensors"), run.config.evolve.generations)


def _curve(run: Run, scores: list[float]) -> list[CurvePoint]:
    """Describe every evaluated mean by its scores in the real environment; the means play the episodes in turn."""
    means = _means(run)
    count = len(means.params)
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
    """Record episode 0: an animation with the actions, a film for the page, and frames above their reconstructions."""
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
    note = f"The recorded game is the first of the evaluation, with {len(recorder.frames):,} steps."
    write_film(run.path("evaluate", "film.webp"), np.stack(recorder.frames), task.frames_per_second, note=note)
    chosen = most_active_frames(recorder.frames, _FRAMES)
    decoded = Decoder(agent.vae)(np.stack([recorder.latents[index] for index in chosen]))
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
    stored = {name: value for name, value in vars(results.environment).items() if value is not None}
    return describe_environment(EnvSpec(**{"variant": "", "resolution": "", "id": "", **stored}))


def score_rows(results: Results, plus_minus: str) -> list[list[str]]:
    """Format the scores as rows of a table: player, episodes, mean and standard deviation, 95 % interval."""
    return [
        [label, str(len(entry.scores)), format_mean(entry, plus_minus), format_interval(entry)]
        for label, entry in results.labelled()
    ]


def format_table(results: Results) -> str:
    """Format the scores as a table for the terminal."""
    rows = score_rows(results, "+-")
    return f"{format_environment(results)}\n{table(['player', 'episodes', 'score', '95 % interval'], rows)}"
