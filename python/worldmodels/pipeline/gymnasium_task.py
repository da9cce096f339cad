"""Task of any Gymnasium environment, made from the probe in a run's settings; does not import Gymnasium."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from worldmodels.envs.policies import Policy, brownian, constant, repeated, repeated_choices
from worldmodels.envs.spec import EnvSpec
from worldmodels.models.controller import Squash
from worldmodels.pipeline.config import (
    CheckDreamConfig,
    CollectConfig,
    Config,
    EvaluateConfig,
    EvolveConfig,
    ProbeConfig,
    RoundsConfig,
    TrainRNNConfig,
    TrainVAEConfig,
)
from worldmodels.pipeline.tasks import Task

_HORIZON = 500  # longest dream, in actions
_FEWEST, _MOST = 20, 5_000  # episodes to collect
_REWARD_RANGE = 5.0  # largest reward that M is trained on, in mean absolute rewards; its loss is squared
_PLAYERS = 5  # the agent and the baselines of an evaluation
_MOST_PARAMETERS, _SEARCHED = 3_300, 1_200  # of C; beyond the first, that many are searched
#: Words of action names by arrow key.
_ARROWS = {
    "left": ("left", "move left", "turn left"),
    "right": ("right", "move right", "turn right"),
    "up": ("up", "forward", "move forward"),
    "down": ("down", "backward", "move backward"),
}


def names(text: str) -> tuple[str, ...]:
    """Split a list separated by commas."""
    return tuple(part.strip() for part in text.split(","))


def action_kind(probe: ProbeConfig) -> tuple[Squash, tuple[int, ...]]:
    """Return the squash of a probed task, and the number of values of each discrete action."""
    return ("argmax", tuple(map(int, names(probe.choices)))) if probe.choices else ("tanh", ())


def gymnasium_task(env_id: str, probe: ProbeConfig) -> Task:
    """Make the task of an environment.

    Args:
        env_id: Gymnasium id, the name of the task.
        probe: What the probe found.
    """
    actions = names(probe.actions)
    squash, choices = action_kind(probe)
    return Task(
        name=env_id,
        env_id=env_id,
        actions=actions,
        max_steps=probe.max_steps,
        policies=policies(len(actions), choices),
        baselines={"random": "uniform", "collecting": "repeat 1-10", "noop": "noop"},
        presets=_presets(env_id, probe),
        score="points",
        description=f"{env_id}: the score is the sum of the rewards of an episode.",
        frames_per_second=probe.frames_per_second,
        keys=_keys(actions, choices),
        squash=squash,
        choices=choices,
    )


def policies(action_size: int, choices: tuple[int, ...]) -> dict[str, Policy]:
    """Return the open-loop policies of an action space.

    Args:
        action_size: Length of an action.
        choices: Number of values of each discrete action; empty for a Box.
    """
    if not choices:
        return {
            "uniform": repeated(1, 1, action_size),
            "repeat 1-10": repeated(1, 10, action_size),
            "repeat 1-40": repeated(1, 40, action_size),
            "repeat 1-200": repeated(1, 200, action_size),
            "brownian": brownian(0.3, action_size),
            "noop": constant(*[0.0] * action_size),
        }
    first = [float(value == 0) for count in choices for value in range(count)]
    return {
        "uniform": repeated_choices(1, 1, choices),
        "repeat 1-10": repeated_choices(1, 10, choices),
        "repeat 1-40": repeated_choices(1, 40, choices),
        "repeat 1-200": repeated_choices(1, 200, choices),
        "noop": constant(*first),
    }


def _components(actions: int, inputs: int) -> int:
    """Return the number of principal components of C's inputs along which CMA-ES searches; 0 for its parameters.

    The covariance matrix of all parameters takes seconds per generation where actions are many: 18 of Atari's make
    5,202 parameters, a matrix of 216 MB.
    """
    return 0 if actions * (inputs + 1) <= _MOST_PARAMETERS else max(1, _SEARCHED // actions)


def _keys(actions: tuple[str, ...], choices: tuple[int, ...]) -> Mapping[str, tuple[float, ...]]:
    """Return the actions of the arrow keys: by the names of one discrete action, or -1 and 1 of a Box."""
    if not choices:
        return {"left": (-1.0,), "right": (1.0,)}
    found = {}
    for key, words in _ARROWS.items():
        index = next((actions.index(word) for word in words if word in actions), None)
        if len(choices) == 1 and index is not None:
            found[key] = tuple(float(index == other) for other in range(len(actions)))
    return found


def _presets(env_id: str, probe: ProbeConfig) -> dict[str, Config]:
    """Size the presets by the length of an episode and by the speed of the environment."""
    length, speed = max(probe.episode_length, 1), max(probe.steps_per_second, 1)

    def episodes(frames: int, seconds: float) -> int:
        """Return the number of episodes with about ``frames`` frames, fewer if they take more than ``seconds``."""
        number = math.ceil(min(frames, seconds * speed) / length)
        return min(max(number, _FEWEST), _MOST)

    def evaluated(number: int, seconds: float) -> int:
        return max(10, min(number, int(seconds * speed / (_PLAYERS * length))))

    vae = TrainVAEConfig(
        latent_size=32,
        steps=3_000,
        batch_size=32,
        lr=1e-3,
        schedule="cosine",
        kl_weight=0.03,
        quartic_weight=30.0,
        mean_output=True,
    )
    rnn = TrainRNNConfig(
        hidden_size=256,
        done_head=probe.terminates,
        reward_head=True,
        reward_clip=_REWARD_RANGE * probe.reward_scale,
        steps=8_000,
        batch_size=32,
        sequence_length=64,
        lr=1.5e-3,
        schedule="cosine",
    )
    horizon = min(probe.max_steps, _HORIZON)
    components = _components(len(names(probe.actions)), vae.latent_size + rnn.hidden_size)
    evolve = EvolveConfig(
        features="zh",
        temperature=1.0,
        termination="expected" if probe.terminates else "threshold",
        initial_states="random" if length > horizon else "first",
        max_steps=horizon,
        popsize=64,
        episodes=16,
        generations=100,
        common_random_numbers=True,
        pca_components=components,
        scale_inputs=components == 0,
        evaluate_every=10,
        evaluate_episodes=128,
    )

    def config(preset: str, collected: int, sections: Mapping[str, Any]) -> Config:
        return Config(
            task=env_id,
            preset=preset,
            environment=EnvSpec(
                id=env_id, variant="", resolution="", source=probe.source, action_repeat=probe.action_repeat
            ),
            probe=probe,
            collect=CollectConfig(
                episodes=collected,
                policies="repeat 1-10:3, repeat 1-40:1, repeat 1-200:1, uniform:1",
                min_length=1,
                shard_episodes=min(25, math.ceil(collected / 4)),
            ),
            **{"train_vae": vae, "train_rnn": rnn, "evolve": evolve, **sections},
        )

    quick = config(
        "quick",
        episodes(100_000, 240),
        {
            "check_dream": CheckDreamConfig(episodes=evaluated(20, 60), dream_episodes=64, num_envs=4),
            "evaluate": EvaluateConfig(episodes=evaluated(20, 300), num_envs=10),
        },
    )
    collected = episodes(250_000, 600)
    small = config(
        "small",
        collected,
        {
            "train_vae": replace(vae, steps=6_000),
            "train_rnn": replace(rnn, steps=12_000),
            "check_dream": CheckDreamConfig(episodes=evaluated(40, 120), dream_episodes=128, num_envs=8),
            "evolve": replace(evolve, generations=200),
            "evaluate": EvaluateConfig(episodes=evaluated(100, 1_200), num_envs=16),
            "rounds": RoundsConfig(
                rounds=2,
                episodes=max(_FEWEST, collected // 4),
                vae_steps=1_500,
                vae_lr=5e-4,
                rnn_steps=3_000,
                generations=100,
                pca_components=components,
                evaluate_episodes=evaluated(20, 240),
            ),
        },
    )
    return {"quick": quick, "small": small}
