"""Probe: a few episodes of random play in an environment, before a run of it starts."""

from __future__ import annotations

import enum
import math
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np

from worldmodels.envs import ContractError
from worldmodels.envs.actions import choices_of, is_discrete
from worldmodels.envs.any_gymnasium import AdaptedEnv, describe_error
from worldmodels.envs.frames import find_source
from worldmodels.envs.making import entry_point, import_packages, make
from worldmodels.envs.rules import Rules
from worldmodels.envs.spec import EnvSpec
from worldmodels.pipeline.config import Config, ProbeConfig, override
from worldmodels.pipeline.gymnasium_task import gymnasium_task, policies
from worldmodels.pipeline.tasks import Task
from worldmodels.support.validation import one_line

_SECONDS, _EPISODES = 8.0, 5  # longest probe with an episode that ended
_PATIENCE = 30.0  # seconds without an episode that ended
_LONGEST, _ENDLESS = 27_000, 1_000  # longest episode without a time limit, and without an end in the probe
_FRAMES_PER_SECOND = 20.0  # of recordings, where the environment names no speed
_VIZDOOM_REPEAT = 4  # VizDoom's ids step a 35th of a second
_SOURCES = {"observation": "observations", "screen": "the observations' entry 'screen'", "render": "rendered images"}


def probed_task(env_id: str, chosen: Mapping[str, Any]) -> Task:
    """Make the task of an environment by a probe, and describe the probe on stderr.

    Args:
        env_id: Gymnasium id.
        chosen: Settings of the environment by name.

    Raises:
        ValueError: Gymnasium does not know the id, or a setting is invalid.
        ContractError: The environment does not fit; the message has the reason.
        ModuleNotFoundError: A package of the environment is not installed.
    """
    given = {"variant": "", "resolution": "", **chosen, "id": env_id}
    environment = override(Config(), {"environment": given}).environment
    probe = probe_environment(environment, chosen)
    repeat = chosen.get("action_repeat", probe.action_repeat)
    repeated = f", each taken {repeat} times" if repeat > 1 else ""
    names = probe.actions.split(", ")
    shown = ", ".join([*names[:6], *(["..."] if len(names) > 6 else [])])
    print(
        f"{env_id}: frames from {_SOURCES[probe.source]}; actions {shown}{repeated}; {probe.episode_length:,} steps "
        f"per episode, at most {environment.max_steps or probe.max_steps:,}; {probe.steps_per_second:,} steps/s",
        file=sys.stderr,
    )
    return gymnasium_task(env_id, probe)


def probe_environment(environment: EnvSpec, chosen: Collection[str] = ()) -> ProbeConfig:
    """Play an environment for seconds with random actions, and check the contract at every step.

    Args:
        environment: Specification of the environment.
        chosen: Names of the settings that the probe takes from the specification: without ``source`` it finds the
            source of the frames, without ``action_repeat`` it takes that of the presets.

    Raises:
        ValueError: Gymnasium does not know the id.
        ContractError: The environment does not fit.
        ModuleNotFoundError: A package of the environment is not installed.
    """
    import_packages(environment)
    usual = _VIZDOOM_REPEAT if entry_point(environment.id).__module__.startswith("vizdoom.") else 1
    if "action_repeat" not in chosen:
        environment = replace(environment, action_repeat=usual)
    try:
        return replace(_probe(environment, "source" not in chosen), action_repeat=usual)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ModuleNotFoundError(f"{environment.id}: {error}", name="gymnasium") from error
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise ContractError(f"{environment.id}: the environment failed: {describe_error(error)}") from error


def _probe(environment: EnvSpec, find: bool) -> ProbeConfig:
    source, choices = _inspect(environment)
    environment = replace(environment, source=source if find else environment.source)
    rules = Rules("argmax" if choices else "tanh", _ENDLESS, choices)
    env = make(environment, rules=rules)
    try:
        played = _play(env, environment.max_steps or _LONGEST)
        if played.lengths and max(played.lengths) == 1:
            raise ContractError(f"{environment.id}: expected episodes of several steps, got only episodes of one")
        limit = getattr(env.spec, "max_episode_steps", None)
        longest = -(-limit // environment.action_repeat) if limit else played.limit
        max_steps = min(longest, environment.max_steps or longest)
        return ProbeConfig(
            actions=", ".join(_action_names(env)),
            choices=", ".join(map(str, choices)),
            source=environment.source,
            max_steps=max_steps,
            episode_length=min(played.mean_length, max_steps),
            steps_per_second=max(1, round(played.steps / played.seconds)),
            terminates=played.terminated or not played.lengths,
            frames_per_second=_frames_per_second(env, environment.action_repeat),
            reward_scale=played.reward_scale,
        )
    finally:
        env.close()


def _inspect(environment: EnvSpec) -> tuple[Any, tuple[int, ...]]:
    """Return the source of an environment's frames, and the number of values of each discrete action.

    Raises:
        ContractError: There is no image, or the actions are of another kind.
    """
    try:
        env: gymnasium.Env[Any, Any] = gymnasium.make(environment.id, disable_env_checker=True)
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError):
        raise
    except (Exception, SystemExit) as error:
        raise ContractError(
            f"{environment.id}: expected gymnasium.make to make it, got {describe_error(error)}"
        ) from error
    try:
        source, space = find_source(env), env.action_space
        if source is None:
            raise ContractError(
                f"{environment.id}: expected an image as its observation, or the render mode rgb_array, got the "
                f"observation space {one_line(env.observation_space)}"
            )
        if not isinstance(space, gymnasium.spaces.Box) and not is_discrete(space):
            raise ContractError(
                f"{environment.id}: expected a Box, Discrete, MultiDiscrete or MultiBinary as its action space, got "
                f"{one_line(space)}"
            )
        return source, _checked_choices(environment.id, space) if is_discrete(space) else ()
    finally:
        env.close()


def _checked_choices(env_id: str, space: Any) -> tuple[int, ...]:
    choices = choices_of(space)
    if not choices:
        raise ContractError(
            f"{env_id}: expected discrete actions of one dimension, of two or more values each, got {one_line(space)}"
        )
    return choices


@dataclass
class _Played:
    """Random play: lengths of the episodes that ended, rewards, whether one terminated, and all steps and seconds."""

    lengths: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    steps: int = 0
    seconds: float = 0.0

    @property
    def reward_scale(self) -> float:
        """Mean absolute value of the rewards that are not 0, to two digits."""
        sizes = [abs(reward) for reward in self.rewards if reward]
        return float(f"{np.mean(sizes):.2g}") if sizes else 0.0

    @property
    def mean_length(self) -> int:
        return round(float(np.mean(self.lengths))) if self.lengths else max(self.steps, 1)

    @property
    def limit(self) -> int:
        """Longest episode of the task, for an environment without a time limit."""
        return min(_LONGEST, max(_ENDLESS, 10 * max(self.lengths))) if self.lengths else _ENDLESS


def _play(env: AdaptedEnv, max_steps: int) -> _Played:
    """Play random episodes, until there are enough or the time is over."""
    policy = policies(env.actions.size, env.actions.choices)["uniform"]
    played = _Played()
    start = time.perf_counter()
    for seed in range(_EPISODES):
        env.reset(seed=seed)
        for length, action in enumerate(policy(np.random.default_rng(seed)), start=1):
            _, reward, terminated, truncated, _ = env.step(action)
            played.rewards.append(reward)
            played.steps += 1
            played.seconds = time.perf_counter() - start
            played.terminated |= terminated
            if terminated or truncated or length >= max_steps:
                played.lengths.append(length)
                break
            if played.seconds > (_SECONDS if played.lengths else _PATIENCE):
                return played
    return played


def _action_names(env: AdaptedEnv) -> list[str]:
    """Return the names of the values of an environment's discrete actions, or of the numbers of a Box."""
    choices, game = env.actions.choices, env.unwrapped
    if not choices:
        size = env.actions.size
        return [f"action {index}" for index in range(size)] if size > 1 else ["action"]
    if len(choices) > 1:
        return [f"{part}: {value}" for part, count in enumerate(choices) for value in range(count)]
    found = list(map(_readable, _meanings(game)))
    plain = all(found) and len(set(found)) == choices[0] == len(found)
    return found if plain else [f"action {index}" for index in range(choices[0])]


def _meanings(game: Any) -> list[str]:
    """Names of a Discrete's actions, where an environment has them, as ALE, MiniGrid and VizDoom do."""
    if callable(getattr(game, "get_action_meanings", None)):
        return [str(name) for name in game.get_action_meanings()]
    actions = getattr(game, "actions", None)
    if isinstance(actions, type) and issubclass(actions, enum.Enum):
        return [one.name for one in actions]
    if hasattr(game, "button_map") and hasattr(game, "game"):
        buttons = [button.name for button in game.game.get_available_buttons()]
        pressed = ([name for name, on in zip(buttons, row, strict=True) if on] for row in game.button_map)
        return [" + ".join(row) or "noop" for row in pressed]
    return []


def _readable(name: str) -> str:
    return name.replace("_", " ").replace(",", " ").strip().lower()


def _frames_per_second(env: AdaptedEnv, repeat: int) -> int:
    speed = env.metadata.get("render_fps")
    if not isinstance(speed, int | float) or not 0 < speed < math.inf:
        speed = _FRAMES_PER_SECOND
    return max(1, round(speed / repeat))
