"""Dream check: scores of open-loop policies in the dream and in the real environment, before C is evolved."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from worldmodels.analysis.stats import describe, format_mean, format_number, scale_of, table
from worldmodels.data.records import DreamCheck, PolicyCheck
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.dream.world_model import load_world_model
from worldmodels.envs.policies import Policy
from worldmodels.pipeline import tasks
from worldmodels.pipeline.evaluators import sampled
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.scores import ScoredPlayer, cached_scores
from worldmodels.rollout.environments import Environments
from worldmodels.rollout.players import OpenLoopPlayer
from worldmodels.support.cluster import active_cluster
from worldmodels.support.profile import phase

PURPOSE = "check-dream"  # purpose of the real episodes, the same for every policy
_MAX_RATIO = 1.5  # of mean steps survived in the dream and in the real environment; above it, the dream is biased


def check(run: Run) -> dict[str, Any]:
    """Play every open-loop policy in the dream, at ``evolve.temperature``, and in the real environment.

    Returns:
        Summary: ``warnings``, and the mean scores of every policy.
    """
    config, evolve = run.config.check_dream, run.config.evolve
    seed, task = run.config.seed, run.task
    policies = task.policies
    path = run.path("check_dream", "check_dream.json")
    world = load_world_model(run.folder)
    if not task.dream_has_reward(world.mdnrnn):
        print("check-dream: skipped, as dreams have no score without train_rnn.reward_head", file=sys.stderr)
        DreamCheck(temperature=evolve.temperature, policies={}, warnings=[]).write(path)
        return {"warnings": []}
    dreams = DreamVectorEnv(
        *world,
        num_envs=config.dream_episodes,
        temperature=evolve.temperature,
        max_steps=evolve.max_steps,
        features="z",
        termination=sampled(evolve.termination),
    )
    with phase("dream"):
        dreamed = [play_dreams(dreams, policy, seed=seed) for policy in policies.values()]
    players = [
        ScoredPlayer(
            run.path("check_dream", f"{name.replace(' ', '_')}.jsonl"),
            {"policy": name},
            OpenLoopPlayer(policy, PURPOSE),
            config.episodes,
        )
        for name, policy in policies.items()
    ]
    num_envs = min(config.num_envs, config.episodes * len(players))
    environment = run.config.environment
    with Environments(
        environment,
        num_envs,
        evolve.max_steps,
        rules=task.rules,
        cluster=active_cluster(),
        modules=tasks.modules(run.config),
    ) as environments:
        games = cached_scores(players, environments=environments, seed=seed, purpose=PURPOSE, label="check-dream")
    results = {
        name: PolicyCheck(dream=describe(dream), game=describe(game))
        for name, dream, game in zip(policies, dreamed, games, strict=True)
    }
    means = [scores.game.mean for scores in results.values()]
    spread = None if task.survival else max(means) - min(means)
    warnings = [text for name, scores in results.items() if (text := bias_warning(name, scores, task.score, spread))]
    DreamCheck(temperature=evolve.temperature, policies=results, warnings=warnings).write(path)
    run.rewind_metrics("check-dream", -1, key="episodes")
    logged: dict[str, float] = {}
    for name, scores in results.items():
        key = name.replace(" ", "_")
        logged |= {f"{key}_dream": scores.dream.mean, f"{key}_game": scores.game.mean}
    run.log("check-dream", episodes=config.episodes, **logged)
    print(format_table(results))
    for text in warnings:
        print(f"WARNING: {text}", file=sys.stderr)
    rounded = {
        name: {"dream": round(scores.dream.mean, 1), "game": round(scores.game.mean, 1)}
        for name, scores in results.items()
    }
    return {"warnings": warnings, **rounded}


def play_dreams(dreams: DreamVectorEnv, policy: Policy, *, seed: int) -> list[float]:
    """Play one dream episode of an open-loop policy in every environment.

    Args:
        dreams: Dream environments.
        policy: Open-loop policy; every environment has its own generator.
        seed: Seed of the dreams and of the policy.

    Returns:
        Return of every environment.
    """
    count = dreams.num_envs
    action_streams = [policy(np.random.default_rng([seed, index])) for index in range(count)]
    returns = np.zeros(count)
    alive = np.ones(count, np.bool_)
    dreams.reset(seed=seed)
    while alive.any():
        actions = np.stack([next(stream) for stream in action_streams])
        _, rewards, terminated, truncated, _ = dreams.step(actions)
        returns += alive * rewards
        alive &= ~(terminated | truncated)
    return [float(value) for value in returns]


def bias_warning(name: str, scores: PolicyCheck, unit: str, spread: float | None = None) -> str | None:
    """Compare the scores of a policy in the dream and in the game.

    Args:
        name: Name of the policy.
        scores: Scores of the policy.
        unit: Unit of the scores.
        spread: Difference between the best and the worst policy's mean in the game; the tolerance is half of it. None
            if scores are steps survived; the tolerance is then a ratio of 1.5.

    Returns:
        Warning about model bias, or None if the 95 % intervals overlap or the means are within the tolerance.
    """
    dream, game = scores.dream, scores.game
    apart = dream.ci95[0] > game.ci95[1] or game.ci95[0] > dream.ci95[1]
    if spread is None:
        near = 1 / _MAX_RATIO < dream.mean / game.mean < _MAX_RATIO
    else:
        near = abs(dream.mean - game.mean) < spread / 2
    if not apart or near:
        return None
    dreamed, played = (format_number(scores.mean, scale_of(dream, game)) for scores in (dream, game))
    both = f"policy '{name}': {dreamed} {unit} in the dream, {played} in the game. "
    if dream.mean > game.mean:
        return both + (
            "M is too optimistic for these actions, which C can exploit. Collect more episodes of this policy, train M "
            "longer, or raise the temperature."
        )
    return both + (
        "M is too pessimistic for these actions, which C will avoid. Collect more episodes of this policy, train M "
        "longer, or lower the temperature."
    )


def format_table(policies: dict[str, PolicyCheck]) -> str:
    """Format the scores as a table for the terminal."""
    rows = [[name, *score_cells(scores, "+-")] for name, scores in policies.items()]
    return table(["open-loop policy", "dream", "game", "difference"], rows)


def score_cells(scores: PolicyCheck, plus_minus: str) -> list[str]:
    """Format mean and standard deviation in the dream and in the game, and the difference of the means."""
    dream, game = scores.dream, scores.game
    difference = format_number(dream.mean - game.mean, scale_of(dream, game), sign="+")
    return [format_mean(dream, plus_minus), format_mean(game, plus_minus), difference]
