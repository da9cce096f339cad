"""Play the real environment or a dream in a window, by keys or by the agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from worldmodels.analysis.playback import report_scores
from worldmodels.analysis.recording import unweighted_probability
from worldmodels.analysis.stats import describe
from worldmodels.dream.env import DreamEnv
from worldmodels.dream.native import check_fits, check_temperature
from worldmodels.dream.world_model import load_world_model
from worldmodels.envs.making import make
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.agent import Agent, load_controller
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN, State
from worldmodels.models.native_model import Termination
from worldmodels.rollout.players import episode_seed
from worldmodels.support.display import Window, load_pygame

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

_HELP = "arrows: play   m: agent   r: restart   space: pause   .: step"
_TEMPERATURE_STEP = 0.1


class Outcome(NamedTuple):
    """Outcome of one step.

    Attributes:
        frame: (64, 64, 3) uint8 next frame.
        reward: Reward.
        over: Whether the episode ends with this step.
        termination: M's predicted probability that the episode terminates with this step; None without a termination
            head.
    """

    frame: Picture
    reward: float
    over: bool
    termination: float | None


class Game(Protocol):
    """Environment with its agent, which plays whenever no action is given.

    Attributes:
        temperature: Temperature of a dream, which may be set at any time; None for the real environment.
        action_size: Length of an action.
    """

    temperature: float | None
    action_size: int

    def restart(self) -> Picture:
        """Start the next episode. Returns its first frame, (64, 64, 3) uint8."""

    def step(self, action: Floats | None) -> Outcome:
        """Step with an action (A,) float32, or with the agent's."""

    def close(self) -> None:
        """Close the environment."""


class _TerminationPredictor:
    """M's predicted termination probability, step by step, as :func:`termination_probability` of a recording has it."""

    def __init__(self, mdnrnn: MDNRNN) -> None:
        self._mdnrnn = mdnrnn
        self._state: State | None = None

    def restart(self) -> None:
        self._state = None

    def step(self, z: Floats, action: Floats) -> float | None:
        if not self._mdnrnn.done_head:
            return None
        latent, taken = (torch.from_numpy(np.array(array))[None, None] for array in (z, action))
        with torch.inference_mode():
            first = torch.tensor([[float(self._state is None)]])
            out, self._state = self._mdnrnn(latent, taken, first, self._state)
        return unweighted_probability(out.done_logit.numpy(), self._mdnrnn.done_pos_weight).item()


def _one_hot(controller: Controller, action: Floats) -> Floats:
    """Convert an action of several keys to one that C could take: of discrete actions, the first one pressed."""
    return controller.squashed(action) if controller.squash == "argmax" else action


class DreamGame:
    """The agent's dream. Episode e has the random numbers of episode e of ``Dream.rollout`` with the same seed.

    While the agent alone plays, the first steps agree up to rounding: C is computed in NumPy instead of natively. The
    differences grow, so that later steps, returns and lengths may be others.

    Args:
        folder: Run folder, or folder of a pretrained agent.
        temperature: Temperature of the dream.
        seed: Seed of the episodes.
        max_steps: Maximum length of an episode, in steps.
        termination: "threshold" or "sample".
    """

    def __init__(
        self, folder: Path, *, temperature: float, seed: int, max_steps: int, termination: Termination
    ) -> None:
        self._controller, self._params, _ = load_controller(folder / "evolve" / "controller.safetensors")
        mdnrnn = load_world_model(folder).mdnrnn
        check_fits(self._controller, mdnrnn)
        self._predictor = _TerminationPredictor(mdnrnn)
        self._latent_size, self.action_size = mdnrnn.latent_size, mdnrnn.action_size
        self._env = DreamEnv(
            world=folder,
            temperature=temperature,
            max_steps=max_steps,
            termination=termination,
            features=self._controller.features,
            render_mode="rgb_array",
        )
        self._seed: int | None = seed

    @property
    def temperature(self) -> float | None:
        """Temperature of the sampling."""
        return self._env.temperature

    @temperature.setter
    def temperature(self, value: float | None) -> None:
        self._env.temperature = check_temperature(value)

    def restart(self) -> Picture:
        """See :meth:`Game.restart`."""
        self._observation, _ = self._env.reset(seed=self._seed)
        self._seed = None  # the next reset starts the next episode of the seed
        self._predictor.restart()
        return self._frame()

    def _frame(self) -> Picture:
        frame = self._env.render()
        assert frame is not None
        return frame

    def step(self, action: Floats | None) -> Outcome:
        """See :meth:`Game.step`."""
        if action is None:
            action = self._controller.act(self._params, self._observation)
        action = _one_hot(self._controller, action)
        termination = self._predictor.step(self._observation[: self._latent_size], action)
        self._observation, reward, terminated, truncated, _ = self._env.step(action)
        return Outcome(self._frame(), reward, terminated or truncated, termination)

    def close(self) -> None:
        """See :meth:`Game.close`."""
        self._env.close()


class RealGame:
    """The real environment. While the agent alone plays, episode e is that of ``worldmodels play`` in Gymnasium.

    Args:
        folder: Run folder, or folder of a pretrained agent.
        environment: Real environment, played in Gymnasium whatever its back end; EnvPool's tracks of CarRacing differ.
        seed: Seed of the episodes and of the sampled latents.
        rules: Rules of the task.
    """

    temperature: float | None = None

    def __init__(self, folder: Path, environment: EnvSpec, *, seed: int, rules: Rules) -> None:
        self._agent = Agent.load(folder)
        self._agent.reset(1, seed=seed)
        self.action_size = self._agent.controller.action_size
        self._predictor = _TerminationPredictor(self._agent.mdnrnn)
        self._seed, self._max_steps = seed, rules.limit(environment.max_steps or None)
        self._episode, self._steps = -1, 0
        self._env = make(environment, rules=rules)

    def restart(self) -> Picture:
        """See :meth:`Game.restart`."""
        self._episode, self._steps = self._episode + 1, 0
        self._predictor.restart()
        self._frame, _ = self._env.reset(seed=episode_seed(self._seed, "play", self._episode))
        return self._frame

    def step(self, action: Floats | None) -> Outcome:
        """See :meth:`Game.step`."""
        if action is None:
            forced = np.full(self.action_size, np.nan, np.float32)
        else:
            forced = _one_hot(self._agent.controller, action)
        first, episode = np.array([self._steps == 0]), np.array([self._episode])
        (taken,) = self._agent.act(self._frame[None], first, episode, forced[None])
        termination = self._predictor.step(self._agent.z[0], taken)
        self._frame, reward, terminated, truncated, _ = self._env.step(taken)
        self._steps += 1
        over = terminated or truncated or self._steps >= self._max_steps
        return Outcome(self._frame, reward, over, termination)

    def close(self) -> None:
        """See :meth:`Game.close`."""
        self._env.close()


@dataclass
class Episode:
    """An episode that was played in a window.

    Attributes:
        score: Sum of the rewards.
        steps: Number of steps.
        over: Whether it has ended; False for one that was left by a restart or by closing the window.
        players: Who chose actions: "you", "the agent".
        temperatures: Temperatures at which it was played.
    """

    score: float = 0.0
    steps: int = 0
    over: bool = False
    players: set[str] = field(default_factory=set)
    temperatures: set[float] = field(default_factory=set)

    def describe(self, game: str) -> str:
        """Describe the game, the temperatures and the players."""
        low, high = (f"{bound(self.temperatures, default=0):g}" for bound in (min, max))
        at = f" at temperature {low}" if low == high else f" at temperatures from {low} to {high}"
        return f"{game}{at if self.temperatures else ''}, {' and '.join(sorted(self.players, reverse=True))}"


class Player:
    """Play episodes in a window.

    Arrow keys play, ``m`` toggles the agent, ``r`` starts the next episode, ``+`` and ``-`` change the temperature of a
    dream, space pauses, ``.`` makes a single step, Escape or closing the window ends.

    Args:
        game: Environment with its agent.
        keys: Action of each arrow key, see :class:`worldmodels.pipeline.tasks.Task`.
        title: Title of the window.

    Attributes:
        episodes: Episodes that were played, the current one last.
    """

    def __init__(self, game: Game, keys: Mapping[str, Sequence[float]], title: str) -> None:
        self._pygame = load_pygame()
        self._game = game
        self._actions = {
            getattr(self._pygame, f"K_{name.upper()}"): np.pad(action, (0, game.action_size - len(action)))
            for name, action in keys.items()
        }
        self.window = Window(title, lines=3)
        self.episodes: list[Episode] = []
        self._held: set[int] = set()
        self._pressed: set[int] = set()  # since the last step, perhaps released already
        self._agent_plays = self._paused = self._single_step = False
        self._restart()
        self._draw()

    def frame(self) -> bool:
        """Handle the events, step once unless paused, and draw. Returns False at the end."""
        for event in self._pygame.event.get():
            if not self._handle(event):
                return False
        if not self.episodes[-1].over and (self._single_step or not self._paused):
            self._step()
        self._single_step = False
        self._draw()
        return True

    def _handle(self, event: Any) -> bool:
        pygame = self._pygame
        if event.type == pygame.QUIT:
            return False
        if event.type == pygame.KEYUP:
            self._held.discard(event.key)
        if event.type != pygame.KEYDOWN:
            return True
        if event.key == pygame.K_ESCAPE:
            return False
        if event.key in self._actions:
            self._held.add(event.key)
            self._pressed.add(event.key)
        elif event.key == pygame.K_m:
            self._agent_plays = not self._agent_plays
        elif event.key == pygame.K_r:
            self._restart()
        elif event.key == pygame.K_SPACE:
            self._paused = not self._paused
        elif event.key in (pygame.K_PERIOD, pygame.K_KP_PERIOD):
            self._paused = self._single_step = True
        elif event.key in (pygame.K_PLUS, pygame.K_EQUALS, pygame.K_KP_PLUS):
            self._change_temperature(_TEMPERATURE_STEP)
        elif event.key in (pygame.K_MINUS, pygame.K_KP_MINUS):
            self._change_temperature(-_TEMPERATURE_STEP)
        return True

    def _change_temperature(self, change: float) -> None:
        if self._game.temperature is not None:
            self._game.temperature = max(0.0, round(self._game.temperature + change, 6))

    def _restart(self) -> None:
        self.episodes.append(Episode())
        self._frame = self._game.restart()
        self._termination: float | None = None

    def _step(self) -> None:
        action = None if self._agent_plays else self._action()
        self._pressed.clear()
        self._frame, reward, over, self._termination = self._game.step(action)
        episode = self.episodes[-1]
        episode.score, episode.steps, episode.over = episode.score + reward, episode.steps + 1, over
        episode.players.add("the agent" if action is None else "you")
        if self._game.temperature is not None:
            episode.temperatures.add(self._game.temperature)

    def _action(self) -> Floats:
        """Return the action of the pressed keys."""
        action = np.zeros(self._game.action_size, np.float32)
        for key in self._held | self._pressed:
            action += self._actions[key]
        return np.clip(action, -1, 1)

    def captions(self) -> list[str]:
        """Captions of the current step."""
        episode = self.episodes[-1]
        player = "the agent plays" if self._agent_plays else "you play"
        state = "over, r restarts" if episode.over else f"{player}, paused" if self._paused else player
        numbers, temperature = [], self._game.temperature
        if temperature is not None:
            numbers.append(f"temperature {temperature:g} (+ or -)")
        if self._termination is not None:
            numbers.append(f"termination probability {self._termination:.2f}")
        return [f"step {episode.steps:,}   return {episode.score:,.0f}   {state}", "   ".join(numbers), _HELP]

    def _draw(self) -> None:
        self.window.show(self._frame, self.captions())


def play(game: Game, keys: Mapping[str, Sequence[float]], name: str, frames_per_second: float) -> list[str]:
    """Play episodes in a window until it is closed.

    Args:
        game: Environment with its agent; it is closed.
        keys: Action of each arrow key, see :class:`worldmodels.pipeline.tasks.Task`.
        name: Name of the game, for the title and the scores.
        frames_per_second: Steps per second.

    Returns:
        Scores in words, one line for each player and temperature, then one for each unfinished episode.
    """
    try:
        player = Player(game, keys, name)
        try:
            while player.frame():
                player.window.wait(frames_per_second)
        finally:
            player.window.close()
    finally:
        game.close()
    return report_episodes(name, player.episodes)


def report_episodes(name: str, episodes: Sequence[Episode]) -> list[str]:
    """Format the scores of episodes; see :func:`play`."""
    scores: dict[str, list[float]] = {}
    unfinished = []
    for episode in episodes:
        if episode.over:
            scores.setdefault(episode.describe(name), []).append(episode.score)
        elif episode.steps:
            label = episode.describe(name)
            unfinished.append(f"{label}: {episode.score:.0f} after {episode.steps:,} steps, unfinished")
    return [report_scores(label, describe(values)) for label, values in scores.items()] + unfinished
