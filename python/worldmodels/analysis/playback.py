"""Show an agent in the real game, or in its dream: as a score, an animation or in a window."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worldmodels.analysis.stats import describe, format_interval
from worldmodels.dream.native import Dream
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvironmentConfig
from worldmodels.models.agent import Agent, Recorder, load_controller
from worldmodels.models.vae import ConvVAE, decode
from worldmodels.models.weights import load_model
from worldmodels.rollout.runner import Environments, episode_seed, record
from worldmodels.support.progress import Progress

Pictures = list[npt.NDArray[np.uint8]]
Actions = list[npt.NDArray[np.float32]]


def play(
    folder: Path, environment: EnvironmentConfig, episodes: int, *, seed: int, rules: Rules, slots: int = 16
) -> dict[str, Any]:
    """Plays the real game.

    Args:
        folder: of the agent.
        environment: the real environment.
        episodes: how many.
        seed: of the game and of the sampled latents.
        rules: Rules of the task.
        slots: environments played side by side.

    Returns:
        The scores as :func:`worldmodels.analysis.stats.describe` gives them.
    """
    scores: dict[int, float] = {}
    progress = Progress("play", episodes, "episodes")

    def finished(episode: int, score: float) -> None:
        scores[episode] = score
        progress.update(len(scores), f"mean {sum(scores.values()) / len(scores):.0f}")

    agent = Agent.load(folder)
    with Environments(environment, min(slots, episodes), rules=rules) as environments:
        environments.play(agent, range(episodes), seed=seed, purpose="play", finished=finished)
    progress.close(episodes)
    return describe([scores[episode] for episode in range(episodes)])


def record_play(folder: Path, environment: EnvironmentConfig, *, seed: int, rules: Rules) -> tuple[Pictures, Actions]:
    """Plays the first episode of :func:`play`: pictures of the frame beside V's reconstruction, and the actions."""
    agent = Agent.load(folder)
    recorder = Recorder(agent)
    record(environment, recorder, seed=seed, episode_seed=episode_seed(seed, "play", 0), rules=rules)
    return recorder.pictures(), recorder.actions


def record_dream(
    folder: Path, *, temperature: float, seed: int, max_steps: int = 2100, done_weight: float | None = None
) -> tuple[Pictures, Actions, float]:
    """Dreams one episode: V's pictures of the latents, the actions, and the return."""
    controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    dream = Dream.load(
        folder, controller=controller, temperature=temperature, max_steps=max_steps, done_weight=done_weight
    )
    trace = dream.trace(params, seed=seed)
    vae = load_model(folder / "vae" / "vae.safetensors", ConvVAE)
    return list(decode(vae, trace.z[:-1])), list(trace.action), float(trace.reward.sum())


def dream_scores(
    folder: Path,
    episodes: int,
    *,
    temperature: float,
    seed: int,
    max_steps: int = 2100,
    done_weight: float | None = None,
) -> dict[str, Any]:
    """Returns of the agent's controller over many dreams, as :func:`worldmodels.analysis.stats.describe` gives them."""
    controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    dream = Dream.load(
        folder, controller=controller, temperature=temperature, max_steps=max_steps, done_weight=done_weight
    )
    return describe(dream.rollout(params[None], episodes, seed=seed).returns[0].tolist())


def check_display() -> None:
    """Asks whether a window can be opened.

    Raises:
        RuntimeError: it cannot.
    """
    chosen = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "SDL_VIDEODRIVER")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in chosen):
        raise RuntimeError("--window: no display; use --gif FILE")  # SDL, if asked, complains on stderr too
    pygame = _pygame()
    try:
        pygame.display.init()
        driver = pygame.display.get_driver()
    except pygame.error as error:
        raise RuntimeError(f"--window: no display ({error}); use --gif FILE") from error
    finally:
        pygame.display.quit()
    if driver in ("dummy", "offscreen") and "SDL_VIDEODRIVER" not in os.environ:
        raise RuntimeError("--window: no display; use --gif FILE")


def _pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame

    return pygame


def window(
    pictures: Pictures,
    actions: Actions,
    title: str,
    scale: int = 6,
    *,
    frames_per_second: int = 35,
) -> None:
    """Shows pictures (64, W, 3) at the game's speed in a window; Escape or closing it ends the show."""
    pygame = _pygame()
    height, width = pictures[0].shape[0] * scale, pictures[0].shape[1] * scale
    pygame.display.init()
    try:
        screen = pygame.display.set_mode((width, height + 4 * scale * len(actions[0])))
        pygame.display.set_caption(title)
        _loop(pygame, screen, pictures, actions, scale, frames_per_second)
    finally:
        pygame.display.quit()


def _loop(pygame: Any, screen: Any, pictures: Pictures, actions: Actions, scale: int, frames_per_second: int) -> None:
    clock = pygame.time.Clock()
    height, width = pictures[0].shape[0] * scale, pictures[0].shape[1] * scale
    for picture, action in zip(pictures, actions, strict=True):
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                return
        surface = pygame.surfarray.make_surface(picture.swapaxes(0, 1))
        screen.blit(pygame.transform.scale(surface, (width, height)), (0, 0))
        screen.fill("#111318", (0, height, width, 4 * scale * len(action)))
        for number, value in enumerate(map(float, action)):
            left, right = sorted((width / 2, width / 2 * (1 + value)))
            screen.fill("#fbbf24", (left, height + (4 * number + 1) * scale, max(1, right - left), 2 * scale))
        pygame.display.flip()
        clock.tick(frames_per_second)


def report_scores(what: str, scores: dict[str, Any]) -> str:
    """Format scores in one line: mean, standard deviation and, from 20 episodes on, the interval of the mean."""
    count, interval = len(scores["scores"]), format_interval(scores)
    spread = f" +- {scores['std']:.0f}" if count > 1 else ""
    spread += f", 95 % interval {interval}" if interval else ""
    return f"{what}: {scores['mean']:.0f}{spread} ({count} episode{'s' if count > 1 else ''})"
