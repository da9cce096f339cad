"""Every setting of every stage, as frozen dataclasses. The line under a field is its help text."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import sys
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_type_hints

from worldmodels.envs.spec import EnvironmentConfig


@dataclass(frozen=True)
class CollectConfig:
    """Episodes of real play."""

    episodes: int = 10_000
    """number of episodes to keep"""
    policies: str = "held 1-10"
    """names of policies and their shares, such as 'held 1-10:4, left:1, agent:2, agent perturbed:1'"""
    agent: str = ""
    """whose agent the policies 'agent', 'agent perturbed' and 'agent interrupted' are: a run folder, or takecover"""
    include: str = ""
    """run folder whose episodes come first in the store, beside those that are played"""
    ignore_done: bool = False
    """play on where the environment would end the episode (CarRacing in Gymnasium, as the authors do)"""
    min_length: int = 101
    """shorter episodes are dropped and played again with another seed"""
    patience: int = 0
    """steps without a reward above zero after which an episode is cut; 0 for never"""
    shard_episodes: int = 25
    """episodes in one file of the store"""
    workers: int = 0
    """processes that play; 0 for one per core"""


@dataclass(frozen=True)
class TrainVAEConfig:
    """V, the ConvVAE."""

    latent_size: int = 64
    """length of z"""
    steps: int = 30_000
    """batches to train on; 0 for a V that stays as it was initialised, or as it comes from start"""
    batch: int = 100
    """frames in a batch (under torchrun of all processes together)"""
    micro_batch: int = 0
    """frames whose gradient is computed at once, to bound memory; 0 for the whole batch; the gradient is the same"""
    lr: float = 1e-4
    """Adam's learning rate (its peak, with schedule 'cosine')"""
    schedule: str = "constant"
    """learning rate over the steps: constant, or cosine (warm-up, then down to 2 % of lr)"""
    kl_tolerance: float = 0.5
    """nats per latent dimension that cost nothing"""
    kl_weight: float = 1.0
    """weight of the KL term; the paper's is 1"""
    quartic_weight: float = 0.0
    """weight of the errors' fourth powers beside their squares: small bright things come before large faint ones"""
    start: str = ""
    """run folder, or takecover, whose V to go on from; empty for a new one"""
    validation: int = 2_000
    """frames of held-out episodes to validate on"""
    checkpoint_every: int = 250
    """steps between checkpoints; each comes with a validation and a sheet of reconstructions"""
    patience: int = 0
    """validations without a new best after which training stops; 0 for never"""
    keep: str = "best"
    """which weights are handed on: the best by validation, or the last"""
    precision: str = "auto"
    """bfloat16 (autocast), float32, or auto: bfloat16 where the device computes in it, float32 elsewhere"""
    compile: bool = False
    """torch.compile V: a minute at the start, fewer kernels afterwards; for GPUs"""
    workers: int = 0
    """processes that read frames ahead; 0 for a thread of this one; the batches are the same"""
    tensorboard: bool = False
    """write TensorBoard files beside metrics.jsonl, into tensorboard/ of the run folder"""


@dataclass(frozen=True)
class EncodeConfig:
    """mu and logvar of every frame."""

    batch: int = 256
    """frames encoded at once"""
    precision: str = "auto"
    """bfloat16 (autocast), float32, or auto: bfloat16 where the device computes in it, float32 elsewhere"""


@dataclass(frozen=True)
class TrainRNNConfig:
    """M, the MDN-RNN."""

    hidden_size: int = 512
    """LSTM size"""
    mixtures: int = 5
    """Gaussians per latent dimension"""
    restart_input: bool = True
    """feed the flag that marks an episode's first frame"""
    done_head: bool = True
    """predict the end of the episode"""
    reward_head: bool = False
    """predict the reward"""
    steps: int = 24_400
    """batches to train on; 0 for an M that stays as it was initialised, or as it comes from start"""
    batch: int = 100
    """streams of concatenated episodes in a batch (under torchrun of all processes together)"""
    sequence: int = 500
    """steps of every stream in a batch; the state is carried on from batch to batch"""
    micro_steps: int = 5_000
    """steps whose gradient is computed at once, to bound memory; a batch's gradients add up to the same"""
    lr: float = 1e-3
    """Adam's learning rate at the start (its peak, with schedule 'cosine')"""
    lr_end: float = 1e-5
    """learning rate at the end"""
    lr_decay: float = 0.99999
    """schedule 'exponential': lr = (lr - lr_end) * lr_decay^step + lr_end"""
    schedule: str = "exponential"
    """learning rate over the steps: exponential (the paper's) or cosine (warm-up, then down to lr_end)"""
    clip: float = 1.0
    """gradients are clipped to this absolute value"""
    done_weight: float = 10.0
    """weight of the steps at which the episode ends, in the done loss"""
    done_lead: int = 0
    """steps that M is to say an end ahead of time; the frames in between are left out of the training"""
    reward_limit: float = 0.0
    """rewards are cut at plus and minus this before M learns them; 0 for as they are"""
    start: str = ""
    """run folder, or takecover, whose M to go on from; empty for a new one"""
    validation: float = 0.05
    """share of the episodes that is held out"""
    checkpoint_every: int = 250
    """steps between checkpoints; each comes with a validation and a sheet of dreams beside reality"""
    patience: int = 0
    """validations without a new best after which training stops; 0 for never"""
    keep: str = "best"
    """which weights are handed on: the best by validation, or the last"""
    precision: str = "auto"
    """bfloat16 (autocast), float32, or auto: bfloat16 on a CPU that computes in it, float32 elsewhere"""
    tensorboard: bool = False
    """write TensorBoard files beside metrics.jsonl, into tensorboard/ of the run folder"""


@dataclass(frozen=True)
class CheckDreamConfig:
    """Fixed policies in the dream and in the game, before anything is evolved."""

    episodes: int = 100
    """real episodes per policy"""
    dream_episodes: int = 256
    """dream episodes per policy"""
    environments: int = 8
    """real environments played side by side"""


@dataclass(frozen=True)
class EvolveConfig:
    """C, evolved by CMA-ES inside the dream, or in the real environment."""

    inside: str = "dream"
    """where candidates are tried: dream or environment (the real one)"""
    features: str = "zch"
    """what C sees: z, zh, zc or zch"""
    bias: bool = False
    """whether C has a bias"""
    hidden_units: int = 0
    """width of a hidden layer in C; 0 for none"""
    temperature: float = 1.15
    """temperature of the dream (the reality check uses it too)"""
    ends: str = "threshold"
    """when dreams end: threshold (where M's done logit is above 0, as in the paper), chance (as likely as M says) or
    expected (as by chance, but the mean over all ends takes the place of drawing one: scores of less noise)"""
    starts: str = "first"
    """where dreams start: first (the first frames of recorded episodes) or anywhere (half of them midway)"""
    max_steps: int = 2100
    """longest episode, dreamed or real"""
    generations: int = 2_000
    """generations of CMA-ES"""
    popsize: int = 64
    """candidates in a generation"""
    episodes: int = 16
    """episodes per candidate"""
    sigma: float = 0.1
    """initial step size"""
    start: str = ""
    """run folder, or takecover, whose C is the first mean; empty for all zero"""
    components: int = 0
    """principal components of what C sees that are searched, scaled alike; 0 to search C's parameters themselves"""
    seeds: str = "independent"
    """episode seeds in a generation: common (all candidates play under the same) or independent"""
    weight_decay: float = 0.01
    """penalty weight_decay * mean(x^2) on the cost (the released code subtracts it: a slip of sign)"""
    evaluate_every: int = 25
    """generations between evaluations of the distribution's mean; the best mean is kept"""
    evaluate_episodes: int = 1024
    """episodes in such an evaluation"""
    device: str = "cpu"
    """where dreams are computed: cpu (the native core) or cuda (PyTorch; for thousands of episodes at once)"""
    precision: str = "float32"
    """arithmetic of the dream"""
    threads: int = 0
    """threads of the dream, or workers of the real environment; 0 for one per core"""
    environments: int = 64
    """real environments stepped side by side, where inside is environment"""
    patience: int = 0
    """steps without a reward above zero that end a real episode, whose rest pays as its last step; 0 for never"""


@dataclass(frozen=True)
class EvaluateConfig:
    """The agent in the real environment."""

    episodes: int = 100
    """episodes of the agent and of every policy beside it"""
    environments: int = 16
    """real environments played side by side"""
    variant: str = ""
    """rule set to play; empty for the one that was collected in"""
    resolution: str = ""
    """screen to render; empty for the one that was collected in"""
    curve_episodes: int = 0
    """episodes that every evaluated mean plays in the real environment too, for the curve over generations"""
    gif_steps: int = 700
    """longest recording of one episode (evaluate/episode.gif)"""


@dataclass(frozen=True)
class ReportConfig:
    """The pictures."""

    dream_steps: int = 240
    """longest animation of the dream"""


@dataclass(frozen=True)
class IterateConfig:
    """Rounds of play, training and evolution (worldmodels iterate)."""

    rounds: int = 2
    """rounds after the first run"""
    episodes: int = 1_000
    """new episodes in a round"""
    policies: str = "agent:2, agent perturbed:1, agent interrupted:1"
    """who plays them"""
    vae_steps: int = 3_000
    """batches that V goes on for; 0 for the V of the first run"""
    vae_lr: float = 3e-4
    """V's learning rate"""
    rnn_steps: int = 1_500
    """batches that M goes on for"""
    rnn_lr: float = 1e-3
    """M's learning rate"""
    generations: int = 60
    """generations of C in the new dream, from nothing"""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    experiment: str = "takecover"
    preset: str = "paper"
    seed: int = 0
    world: str = ""  # a world of the package, or a run folder, whose V and M are taken; empty to train them
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    train_vae: TrainVAEConfig = field(default_factory=TrainVAEConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    train_rnn: TrainRNNConfig = field(default_factory=TrainRNNConfig)
    check_dream: CheckDreamConfig = field(default_factory=CheckDreamConfig)
    evolve: EvolveConfig = field(default_factory=EvolveConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    iterate: IterateConfig = field(default_factory=IterateConfig)


TOP = ("experiment", "preset", "seed", "world")
SECTIONS = tuple(item.name for item in fields(Config) if dataclasses.is_dataclass(item.default_factory))
CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("environment", "variant"): ("", "paper", "modern"),
    ("evaluate", "variant"): ("", "paper", "modern"),
    ("train_vae", "schedule"): ("constant", "cosine"),
    ("train_rnn", "schedule"): ("exponential", "cosine"),
    ("environment", "backend"): ("", "gymnasium", "envpool"),
    ("evolve", "inside"): ("dream", "environment"),
    ("evolve", "features"): ("z", "zh", "zc", "zch"),
    ("evolve", "seeds"): ("common", "independent"),
    ("evolve", "ends"): ("threshold", "chance", "expected"),
    ("evolve", "starts"): ("first", "anywhere"),
    ("evolve", "device"): ("cpu", "cuda"),
    ("evolve", "precision"): ("float32", "bfloat16"),
    **{(stage, "keep"): ("best", "last") for stage in ("train_vae", "train_rnn")},
    **{(stage, "precision"): ("auto", "float32", "bfloat16") for stage in ("train_vae", "encode", "train_rnn")},
}
_MAY_BE_ZERO = {
    "workers",
    "threads",
    "hidden_units",
    "components",
    "done_lead",
    "weight_decay",
    "min_length",
    "temperature",
    "kl_tolerance",
    "quartic_weight",
    "micro_batch",
    "patience",
    "curve_episodes",
    "reward_limit",
    "vae_steps",
}


@functools.cache
def _texts() -> dict[str, dict[str, str]]:
    """The line under every field, by the name of its dataclass."""
    found: dict[str, dict[str, str]] = {}
    for item in ast.parse(inspect.getsource(sys.modules[__name__])).body:
        if isinstance(item, ast.ClassDef):
            found[item.name] = {
                statement.target.id: str(following.value.value)
                for statement, following in itertools.pairwise(item.body)
                if isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            }
    return found


def field_help(section: type) -> dict[str, str]:
    """The docstring line under every field of a dataclass of this module."""
    return _texts()[section.__name__]


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of :func:`to_dict`.

    Raises:
        ValueError: unknown names, wrong types or values out of range.
    """
    known = {item.name for item in fields(Config)}
    if not isinstance(values, dict) or not set(values) <= known:
        raise ValueError(f"config: expected the keys {sorted(known)}, got {values!r:.200}")
    top = {name: values[name] for name in TOP if name in values}
    for name, value in top.items():
        kind = int if name == "seed" else str
        empty = value == "" and name != "world"
        within = kind is str or (isinstance(value, int) and 0 <= value < 2**64)
        if not isinstance(value, kind) or isinstance(value, bool) or empty or not within:
            wanted = "an integer from 0 to 2**64 - 1" if name == "seed" else "a name"
            raise ValueError(f"{name}: expected {wanted}, got {value!r:.100}")
    config = Config(**top)
    return override(config, {name: values[name] for name in SECTIONS if name in values})


def override(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    """Replaces fields: ``{"evolve": {"generations": 10}}``.

    Raises:
        ValueError: an unknown field, a wrong type or a value out of range.
    """
    for section, values in changes.items():
        if section not in SECTIONS:
            raise ValueError(f"{section}: no such section; expected one of {', '.join(SECTIONS)}")
        current = getattr(config, section)
        hints = get_type_hints(type(current))
        if not isinstance(values, dict):
            raise ValueError(f"{section}: expected fields and values, got {values!r:.200}")
        for name, value in values.items():
            _check(section, name, value, hints)
        config = replace(config, **{section: replace(current, **values)})
    return config


def _check(section: str, name: str, value: Any, hints: dict[str, type]) -> None:
    if name not in hints:
        raise ValueError(f"{section}.{name}: no such setting; expected one of {', '.join(hints)}")
    kind = hints[name]
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{section}.{name}: expected {kind.__name__}, got {value!r}")
    allowed = CHOICES.get((section, name))
    if allowed and value not in allowed:
        raise ValueError(
            f"{section}.{name}: expected one of {', '.join(name or '(empty)' for name in allowed)}, got {value!r}"
        )
    if (section, name) == ("train_rnn", "validation") and value >= 1:
        raise ValueError(f"{section}.{name}: expected a share below 1, got {value!r}")
    if kind is float and isinstance(value, int) and abs(value) > 2**1000:
        raise ValueError(f"{section}.{name}: expected a finite number, got an integer beyond float64")
    zero = name in _MAY_BE_ZERO or (section, name) in {("train_vae", "steps"), ("train_rnn", "steps")}
    if kind in (int, float) and not (value > 0 or (zero and value == 0)):
        low = "zero or more" if zero else "more than zero"
        raise ValueError(f"{section}.{name}: expected {low}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{section}.{name}: expected a finite number, got {value!r}")
