"""Settings of all stages, as frozen dataclasses. The defaults are those of the preset ``paper`` of TakeCover."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from worldmodels.envs.spec import EnvSpec, Source
from worldmodels.support.settings import check, setting
from worldmodels.training.settings import TorchPrecision
from worldmodels.training.settings import TrainRNNConfig as TrainRNNConfig
from worldmodels.training.settings import TrainVAEConfig as TrainVAEConfig

_NUM_ENVS = "real environments stepped at once"


@dataclass(frozen=True)
class CollectConfig:
    """Collect episodes of the real environment."""

    episodes: int = setting(10_000, "episodes to keep", common=True)
    policies: str = setting(
        "repeat 1-10",
        "policies and their weights, such as 'repeat 1-10:4, left:1, agent:2, agent with parameter noise:1'",
    )
    agent: str = setting("", "run folder or pretrained agent that the policies 'agent ...' play", location=True)
    include: str = setting("", "run folder whose episodes come first in the store", location=True)
    source: str = setting("", "folder of recordings, or Minari data set, to convert instead of playing", location=True)
    ignore_done: bool = setting(False, "continue past termination (the original code does in CarRacing)")
    min_length: int = setting(101, "shorter episodes are discarded and replaced", zero=True)
    max_steps_without_reward: int = setting(
        0, "truncate an episode after this many steps without a positive reward; 0 for never", zero=True
    )
    shard_episodes: int = setting(25, "episodes per file of the store")
    num_workers: int = setting(0, "worker processes; 0 for one per core", zero=True, machine=True)


@dataclass(frozen=True)
class EncodeConfig:
    """Encode every frame with V."""

    batch_size: int = setting(256, "frames per forward pass")
    precision: TorchPrecision = setting(
        "auto", "float32, bfloat16 (autocast), or auto: bfloat16 on a GPU that supports it, float32 on a CPU"
    )
    mirror: bool = setting(False, "also encode the mirror image of every episode, which doubles the episodes of M")


@dataclass(frozen=True)
class CheckDreamConfig:
    """Compare open-loop policies in the dream and in the real environment."""

    episodes: int = setting(100, "real episodes per policy")
    dream_episodes: int = setting(256, "dream episodes per policy")
    num_envs: int = setting(8, _NUM_ENVS, machine=True)


@dataclass(frozen=True)
class EvolveConfig:
    """Evolve C with CMA-ES."""

    evaluate_in: Literal["dream", "environment"] = setting("dream", "where candidates are evaluated")
    features: Literal["z", "zh", "zc", "zch"] = setting(
        "zch", "inputs of C: latent z, LSTM hidden state h, cell state c"
    )
    bias: bool = setting(False, "give C a bias")
    hidden_units: int = setting(0, "units of a hidden layer in C; 0 for a linear C", zero=True)
    temperature: float = setting(1.15, "temperature of the dream, also of check-dream", zero=True, common=True)
    termination: Literal["threshold", "sample", "expected"] = setting(
        "threshold",
        "threshold (termination logit above 0), sample (with M's probability), or expected (no sampling: rewards "
        "weighted by the survival probability)",
    )
    initial_states: Literal["first", "random"] = setting(
        "first", "where dreams start: first frames of episodes, or half of them at burned-in states of random frames"
    )
    max_steps: int = setting(2100, "longest episode")
    generations: int = setting(2_000, "generations of CMA-ES", common=True)
    popsize: int = setting(64, "candidates per generation", common=True)
    episodes: int = setting(16, "episodes per candidate")
    sigma0: float = setting(0.1, "initial step size")
    init_from: str = setting(
        "", "run folder or pretrained agent whose C is the initial mean; empty for zeros", location=True
    )
    pca_components: int = setting(
        0, "search along this many whitened principal components of C's inputs; 0 for C's parameters", zero=True
    )
    scale_inputs: bool = setting(
        False, "search the weights of C's inputs divided by their standard deviations (in dreams of random actions)"
    )
    common_random_numbers: bool = setting(False, "evaluate all candidates of a generation with common random numbers")
    weight_decay: float = setting(0.01, "penalty weight_decay * mean(x^2)", zero=True)
    evaluate_every: int = setting(
        25, "generations between evaluations of the distribution's mean; the best mean becomes C"
    )
    evaluate_episodes: int = setting(1024, "episodes per evaluation of the mean")
    device: Literal["cpu", "cuda"] = setting("cpu", "cpu (native) or cuda (PyTorch; for thousands of episodes at once)")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "arithmetic of the dream: float32, bfloat16, or auto: bfloat16 where the CPU has native support for it"
    )
    num_threads: int = setting(
        0, "threads of the dream, or environment workers; 0 for one per core", zero=True, machine=True
    )
    num_envs: int = setting(64, _NUM_ENVS + ", with evaluate_in environment", machine=True)
    max_steps_without_reward: int = setting(
        0,
        "truncate a real episode after so many steps without positive reward; the remaining steps are credited "
        "with the last step's reward; 0: never",
        zero=True,
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """Play the real environment with the agent and the baselines."""

    episodes: int = setting(100, "episodes of the agent and of each baseline", common=True)
    num_envs: int = setting(16, _NUM_ENVS, machine=True)
    variant: Literal["", "paper", "modern"] = setting(
        "", "rules of TakeCover; empty for the variant of the collected episodes"
    )
    resolution: str = setting("", "size of the rendered screen; empty for that of the collected episodes")
    curve_episodes: int = setting(0, "real episodes per evaluated mean, for the learning curve; 0 for none", zero=True)
    recording_steps: int = setting(700, "longest recording (evaluate/episode.gif)")


@dataclass(frozen=True)
class ReportConfig:
    """Draw the figures and the page."""

    dream_steps: int = setting(700, "longest animation of the dream")


@dataclass(frozen=True)
class RoundsConfig:
    """Rounds of own play: collect with the agent, train M (and V) further, evolve C in the new dream."""

    rounds: int = setting(
        0,
        "rounds of own play (paper, section 5) after round 0, which collects with open-loop policies",
        zero=True,
        below=1_000,
        common=True,
    )
    episodes: int = setting(1_000, "new episodes per round of own play")
    policies: str = setting(
        "agent:2, agent with parameter noise:1, agent with action bursts:1",
        "policies of the new episodes, and their weights",
    )
    max_steps_without_reward: int = setting(
        0, "truncate a new episode after this many steps without a positive reward; 0 for never", zero=True
    )
    vae_steps: int = setting(3_000, "further optimizer steps of V per round; 0 keeps V", zero=True)
    vae_lr: float = setting(3e-4, "learning rate of V in rounds of own play")
    rnn_steps: int = setting(1_500, "further optimizer steps of M per round")
    rnn_lr: float = setting(1e-3, "learning rate of M in rounds of own play")
    evolve_from: Literal["zeros", "previous"] = setting(
        "zeros", "initial mean of CMA-ES in rounds of own play: zeros, or the C of the previous round"
    )
    generations: int = setting(60, "generations of CMA-ES in each round before the last")
    pca_components: int = setting(
        0, "whitened principal components in each round before the last; 0 for C's parameters", zero=True
    )
    first_max_steps: int = setting(0, "longest dream of round 0; 0 for evolve.max_steps", zero=True)
    first_temperature: float = setting(0.0, "temperature of round 0; 0 for evolve.temperature", zero=True)
    evaluate_episodes: int = setting(20, "episodes of the agent and of each baseline in each round before the last")


@dataclass(frozen=True)
class RefineConfig:
    """Evolve C further in the real environment, in a last round that keeps V and M."""

    generations: int = setting(0, "generations of CMA-ES in the real environment; 0 for no such round", zero=True)
    popsize: int = setting(48, "candidates per generation")
    episodes: int = setting(2, "real episodes per candidate")
    sigma0: float = setting(0.03, "initial step size")
    pca_components: int = setting(
        0, "search along this many whitened principal components of C's inputs; 0 for C's parameters", zero=True
    )
    common_random_numbers: bool = setting(False, "evaluate all candidates of a generation with common random numbers")
    max_steps: int = setting(2100, "longest episode")
    max_steps_without_reward: int = setting(
        0,
        "truncate an episode after so many steps without positive reward; the remaining steps are credited "
        "with the last step's reward; 0: never",
        zero=True,
    )
    evaluate_every: int = setting(
        4, "generations between evaluations of the distribution's mean; the best mean becomes C"
    )
    evaluate_episodes: int = setting(64, "real episodes per evaluation of the mean")


@dataclass(frozen=True)
class ProbeConfig:
    """Result of probing a Gymnasium environment; ``actions`` is empty if there was no probe."""

    actions: str = setting("", "names of the actions, separated by commas; for discrete actions, one per value")
    choices: str = setting("", "number of values of each discrete action, separated by commas; empty for a Box")
    source: Source = setting("observation", "source of a frame")
    action_repeat: int = setting(1, "steps of the environment per action in the presets")
    max_steps: int = setting(0, "longest episode, in actions", zero=True)
    episode_length: int = setting(0, "mean length of episodes of random play, in actions", zero=True)
    steps_per_second: int = setting(0, "actions per second of one process", zero=True)
    terminates: bool = setting(True, "whether an episode terminated, or none ended")
    frames_per_second: int = setting(20, "actions per second of recordings")
    reward_scale: float = setting(0.0, "mean absolute value of the rewards that are not 0", zero=True)


@dataclass(frozen=True)
class Config:
    """The settings of one run.

    With rounds of own play, ``collect``, ``train_vae`` and ``train_rnn`` are the settings of round 0, ``evolve`` those
    of the last dream, and ``rounds`` has those of the other rounds. ``refine`` adds a round in the real environment,
    with the V and M of the round before it. ``evaluate`` has the settings of the last round (:func:`round_config`).
    """

    task: str = "takecover"
    preset: str = "paper"
    seed: int = 0
    world_model: str = ""  # pretrained world model, or run folder, whose V and M are used; empty to train them
    environment: EnvSpec = field(default_factory=EnvSpec)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    train_vae: TrainVAEConfig = field(default_factory=TrainVAEConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    train_rnn: TrainRNNConfig = field(default_factory=TrainRNNConfig)
    check_dream: CheckDreamConfig = field(default_factory=CheckDreamConfig)
    evolve: EvolveConfig = field(default_factory=EvolveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)

    @property
    def last_round(self) -> int:
        """Number of the last round: 0 without rounds of own play and refinement."""
        return self.rounds.rounds + (self.refine.generations > 0)


TOP = ("task", "preset", "seed", "world_model")
#: Section without flags: it is measured.
PROBE = "probe"
SECTIONS = tuple(item.name for item in fields(Config) if dataclasses.is_dataclass(item.default_factory))


def to_dict(config: Config) -> dict[str, Any]:
    """Convert the settings to nested dictionaries for JSON, with the probe only where there was one."""
    values = dataclasses.asdict(config)
    if config.probe == ProbeConfig():
        del values[PROBE]
    return values


def from_dict(values: dict[str, Any]) -> Config:
    """Convert the dictionaries of :func:`to_dict` back to settings.

    Raises:
        ValueError: A name is unknown, a type is wrong or a value is out of range.
    """
    known = {item.name for item in fields(Config)}
    if isinstance(values, dict):
        values = _without_older_settings(values)
    if not isinstance(values, dict) or not set(values) <= known:
        raise ValueError(f"config: expected the keys {sorted(known)}, got {values!r:.200}")
    top = {name: values[name] for name in TOP if name in values}
    for name, value in top.items():
        kind = int if name == "seed" else str
        empty = value == "" and name != "world_model"
        within = kind is str or (isinstance(value, int) and 0 <= value < 2**64)
        if not isinstance(value, kind) or isinstance(value, bool) or empty or not within:
            expected = "an integer from 0 to 2**64 - 1" if name == "seed" else "a name"
            raise ValueError(f"{name}: expected {expected}, got {value!r:.100}")
    config = Config(**top)
    return override(config, {name: values[name] for name in SECTIONS if name in values})


def _without_older_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Drop what only older versions wrote."""
    values = {name: value for name, value in values.items() if name != "iterate"}
    for section in ("train_vae", "train_rnn"):
        if isinstance(values.get(section), dict):
            values[section] = {name: value for name, value in values[section].items() if name != "tensorboard"}
    return values


def override(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    """Replace settings.

    Args:
        config: Settings.
        changes: New values by section and name: ``{"evolve": {"generations": 10}}``.

    Raises:
        ValueError: A section or setting is unknown, a type is wrong or a value is out of range.
    """
    for section, values in changes.items():
        if section not in SECTIONS:
            raise ValueError(f"{section}: no such section; expected one of {', '.join(SECTIONS)}")
        current = getattr(config, section)
        if not isinstance(values, dict):
            raise ValueError(f"{section}: expected fields and values, got {values!r:.200}")
        for name, value in values.items():
            check(type(current), name, value, f"{section}.{name}")
        config = replace(config, **{section: replace(current, **values)})
    return config


#: Settings of rounds of own play, by the setting of ``rounds``.
_OWN_PLAY = {
    "episodes": "collect.episodes",
    "policies": "collect.policies",
    "max_steps_without_reward": "collect.max_steps_without_reward",
    "vae_steps": "train_vae.steps",
    "vae_lr": "train_vae.lr",
    "rnn_steps": "train_rnn.steps",
    "rnn_lr": "train_rnn.lr",
    "evolve_from": "evolve.init_from",
}
#: Settings of round 0 unless they are 0, by the setting of ``rounds``.
_FIRST = {"first_max_steps": "evolve.max_steps", "first_temperature": "evolve.temperature"}
#: Settings of every dream before the last, by the setting of ``rounds``.
_BEFORE_LAST_DREAM = {"generations": "evolve.generations", "pca_components": "evolve.pca_components"}
#: Settings of every round before the last, by the setting of ``rounds``.
_BEFORE_LAST = {"evaluate_episodes": "evaluate.episodes"}
#: Settings of the refinement, by the setting of ``refine``.
_REFINEMENT = {item.name: f"evolve.{item.name}" for item in fields(RefineConfig)}


def round_settings(config: Config, number: int) -> dict[str, str]:
    """Map the settings of a round, such as ``"collect.episodes"``, to those of other sections they come from."""
    if number > config.rounds.rounds:
        return {target: f"refine.{name}" for name, target in _REFINEMENT.items()}
    is_first = number == 0 < config.rounds.rounds
    names = {
        **{name: target for name, target in _FIRST.items() if is_first and getattr(config.rounds, name)},
        **(_OWN_PLAY if number > 0 else {}),
        **(_BEFORE_LAST_DREAM if number < config.rounds.rounds else {}),
        **(_BEFORE_LAST if number < config.last_round else {}),
    }
    return {target: f"rounds.{name}" for name, target in names.items()}


def round_folder(config: Config, number: int, folder: Path) -> Path:
    """Return the folder of a round: the run folder itself for the last one, ``rounds/<number>`` for the others."""
    return folder if number == config.last_round else folder / "rounds" / str(number)


def round_config(config: Config, number: int, folder: Path) -> Config:
    """Return the settings of a round.

    A round before the last is a run of its own, without rounds. A round of own play adds episodes of the previous
    round's agent to its episodes, and initializes V and M from its models. The refinement keeps V and M, and evolves
    the previous round's C.

    Args:
        config: Settings of the run.
        number: Number of the round, from 0 to ``config.last_round``.
        folder: Run folder.
    """
    changes: dict[str, dict[str, Any]] = {}
    for target, name in round_settings(config, number).items():
        (section, setting), (origin, _, given) = target.split("."), name.partition(".")
        changes.setdefault(section, {})[setting] = getattr(getattr(config, origin), given)
    source = str(round_folder(config, number - 1, folder).absolute()) if number > 0 else ""
    if number > config.rounds.rounds:
        changes["evolve"] |= {"evaluate_in": "environment", "init_from": source}
        config = replace(config, world_model=source)
    elif number > 0:
        changes["collect"] |= {"min_length": 1, "agent": source, "include": source}
        changes["train_vae"]["init_from"] = changes["train_rnn"]["init_from"] = source
        changes["evolve"]["init_from"] = source if config.rounds.evolve_from == "previous" else ""
    if number < config.last_round:
        changes["evaluate"]["curve_episodes"] = 0
        config = replace(config, rounds=RoundsConfig(), refine=RefineConfig())
    return override(config, changes)


def section_names() -> list[str]:
    """List the sections of the settings that have flags, the environment first."""
    return [item.name for item in fields(Config) if item.name not in (*TOP, PROBE)]
