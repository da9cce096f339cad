"""Show an agent in the real game, or in its dream: as a score or a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldmodels.analysis.recording import Recording, from_dream, from_recorder
from worldmodels.analysis.stats import describe, format_interval, format_mean, format_number, scale_of
from worldmodels.data.records import Scores
from worldmodels.dream.native import Dream
from worldmodels.dream.world_model import load_world_model
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.agent import Agent, Recorder, load_controller
from worldmodels.models.native_model import Termination
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model
from worldmodels.rollout.environments import Environments, record
from worldmodels.rollout.players import episode_seed
from worldmodels.support.cluster import active_cluster
from worldmodels.support.progress import Progress


def play(
    folder: Path,
    environment: EnvSpec,
    episodes: int,
    *,
    seed: int,
    rules: Rules,
    num_envs: int = 16,
    modules: tuple[str, ...] = (),
) -> Scores:
    """Play the real game, on the cluster if there is one.

    Args:
        folder: Run folder, or folder of a pretrained agent.
        environment: Real environment.
        episodes: Number of episodes.
        seed: Seed of the game and of the sampled latents.
        rules: Rules of the task.
        num_envs: Number of environments stepped at once.
        modules: Modules that register the environment, for the workers of a cluster.
    """
    scores: dict[int, float] = {}
    progress = Progress("play", episodes, "episodes")

    def finished(episode: int, score: float) -> None:
        scores[episode] = score
        progress.update(len(scores), f"mean {format_number(sum(scores.values()) / len(scores))}")

    agent = Agent.load(folder)
    with Environments(
        environment, min(num_envs, episodes), rules=rules, cluster=active_cluster(), modules=modules
    ) as environments:
        environments.play(agent, range(episodes), seed=seed, purpose="play", finished=finished)
    progress.close(episodes)
    return describe([scores[episode] for episode in range(episodes)])


def record_play(folder: Path, environment: EnvSpec, *, seed: int, rules: Rules, **look: Any) -> Recording:
    """Record the first episode of :func:`play`; ``look`` are fields of the recording.

    The episode is played in Gymnasium, whose tracks of CarRacing differ from EnvPool's.
    """
    recorder = Recorder(Agent.load(folder))
    record(environment, recorder, seed=seed, episode_seed=episode_seed(seed, "play", 0), rules=rules)
    return from_recorder(recorder, **look)


def record_dream(
    folder: Path,
    *,
    temperature: float,
    seed: int,
    max_steps: int = 2100,
    termination: Termination = "threshold",
    **look: Any,
) -> Recording:
    """Record the first episode of :func:`dream_scores`; ``look`` are fields of the recording."""
    controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    world_model = load_world_model(folder)
    dream = Dream(*world_model, controller, temperature=temperature, max_steps=max_steps, termination=termination)
    trace = dream.trace(params, seed=seed, max_steps=min(max_steps, 2**20))
    vae = load_model(folder / "vae" / "vae.safetensors", ConvVAE)
    return from_dream(dream, trace, vae, world_model.mdnrnn.done_pos_weight, **look)


def dream_scores(
    folder: Path,
    episodes: int,
    *,
    temperature: float,
    seed: int,
    max_steps: int = 2100,
    termination: Termination = "threshold",
) -> Scores:
    """Compute the returns of the agent's controller over many dreams."""
    controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    dream = Dream.load(
        folder, controller=controller, temperature=temperature, max_steps=max_steps, termination=termination
    )
    return describe(dream.rollout(params[None], episodes, seed=seed).returns[0].tolist())


def report_scores(label: str, scores: Scores) -> str:
    """Format scores in one line: mean, standard deviation and, from 20 episodes on, the interval of the mean."""
    count, interval = len(scores.scores), format_interval(scores)
    found = format_mean(scores) if count > 1 else format_number(scores.mean, scale_of(scores))
    found += f", 95 % interval {interval}" if interval else ""
    return f"{label}: {found} ({count} episode{'s' if count > 1 else ''})"
