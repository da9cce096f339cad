"""Check the dream: fixed policies live in the dream and in the game, side by side, before anything is evolved."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from worldmodels.analysis.stats import describe, table
from worldmodels.dream.env import DreamVectorEnv
from worldmodels.dream.world_model import load_world_model
from worldmodels.envs.policies import Policy
from worldmodels.pipeline.evaluators import sampled
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.scores import kept_scores
from worldmodels.rollout.runner import Environments, OpenLoopPlayer
from worldmodels.support.files import write_json
from worldmodels.support.progress import Progress

PURPOSE = "check-dream"  # of the episodes: every policy plays the same ones
_SUSPICIOUS = 1.5  # ratio of the mean scores in the dream and in the game above which the dream is biased


def check(run: Run) -> dict[str, Any]:
    """Plays every fixed policy in both worlds at the temperature that C will be evolved at."""
    config, evolve = run.config.check_dream, run.config.evolve
    seed, task = run.config.seed, run.task
    policies = task.policies
    world = load_world_model(run.folder)
    if not task.dream_has_reward(world.mdnrnn):
        print("check-dream: M has no reward head, so that a dream has no score to compare", file=sys.stderr)
        path = run.path("check_dream", "check_dream.json")
        write_json(path, {"temperature": evolve.temperature, "policies": {}, "warnings": []})
        return {"warnings": []}
    dreams = DreamVectorEnv(
        *world,
        num_envs=config.dream_episodes,
        temperature=evolve.temperature,
        max_steps=evolve.max_steps,
        features="z",
        termination=sampled(evolve.termination),
    )
    progress = Progress("check-dream", len(policies), "policies")
    results = {}
    slots = min(config.num_envs, config.episodes)
    environment = run.config.environment
    with Environments(environment, slots, max_steps=evolve.max_steps, rules=task.rules) as environments:
        for number, (name, policy) in enumerate(policies.items()):
            dream = play_dreams(dreams, policy, seed=seed)
            game = kept_scores(
                run.path("check_dream", f"{name.replace(' ', '_')}.jsonl"),
                {"policy": name},
                OpenLoopPlayer(policy, PURPOSE),
                config.episodes,
                environments=environments,
                seed=seed,
                purpose=PURPOSE,
            )
            results[name] = {"dream": describe(dream), "game": describe(game)}
            progress.update(number + 1)
    progress.close(len(policies))
    means = [worlds["game"]["mean"] for worlds in results.values()]
    spread = None if task.survival else max(means) - min(means)
    warnings = [text for name, worlds in results.items() if (text := judge(name, worlds, task.score, spread))]
    write_json(
        run.path("check_dream", "check_dream.json"),
        {"temperature": evolve.temperature, "policies": results, "warnings": warnings},
    )
    print(format_table(results))
    for text in warnings:
        print(f"WARNING: {text}", file=sys.stderr)
    return {
        "warnings": warnings,
        **{name: {world: round(worlds[world]["mean"], 1) for world in worlds} for name, worlds in results.items()},
    }


def play_dreams(dreams: DreamVectorEnv, policy: Policy, *, seed: int) -> list[float]:
    """Return of one free-running dream in every environment of ``dreams``, played by a fixed policy."""
    count = dreams.num_envs
    streams = [policy(np.random.default_rng([seed, number])) for number in range(count)]
    returns = np.zeros(count)
    alive = np.ones(count, np.bool_)
    dreams.reset(seed=seed)
    while alive.any():
        actions = np.stack([next(stream) for stream in streams])
        _, rewards, terminated, truncated, _ = dreams.step(actions)
        returns += alive * rewards
        alive &= ~(terminated | truncated)
    return [float(value) for value in returns]


def judge(name: str, worlds: dict[str, Any], score: str, spread: float | None = None) -> str | None:
    """A warning if a policy fares differently in the dream than in the game, by more than chance explains.

    Args:
        name: of the policy.
        worlds: its scores in both.
        score: what they count.
        spread: how far apart the policies' scores in the game are: half of that is much. None where scores are
            steps survived, of which a factor of one and a half is much.
    """
    dream, game = worlds["dream"], worlds["game"]
    apart = dream["ci95"][0] > game["ci95"][1] or game["ci95"][0] > dream["ci95"][1]
    if spread is None:
        near = 1 / _SUSPICIOUS < dream["mean"] / game["mean"] < _SUSPICIOUS
    else:
        near = abs(dream["mean"] - game["mean"]) < spread / 2
    if not apart or near:
        return None
    both = f"policy '{name}': {dream['mean']:.0f} {score} in the dream and {game['mean']:.0f} in the game: "
    if dream["mean"] > game["mean"]:
        return both + (
            "the dream has a hole there that a controller can find. Collect more episodes in which that happens, train "
            "M longer, or raise the temperature."
        )
    return both + "the dream is harder than the game there. Train M longer, or lower the temperature."


def format_table(results: dict[str, Any]) -> str:
    """The table of scores for the terminal."""
    rows = []
    for name, worlds in results.items():
        cells = [f"{worlds[world]['mean']:.0f} +- {worlds[world]['std']:.0f}" for world in ("dream", "game")]
        rows.append([name, *cells, f"{worlds['dream']['mean'] - worlds['game']['mean']:+.0f}"])
    return table(["fixed policy", "dream", "game", "difference"], rows)
