"""Records of measurements and stages: dataclasses that are stored as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from worldmodels.support.files import read_json, write_json

Item = TypeVar("Item")
NonEmpty = Annotated[list[Item], "not empty"]
Point = tuple[float, float]

_BASELINES = ("before", "random", "collecting")  # required players of results.json


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of records: a frozen dataclass with a JSON object of its fields.

    Types of fields are ``str``, ``int``, ``float`` (finite), ``Any``, records, pairs, and lists, dictionaries and
    ``None`` unions of these. A field whose default is None is omitted while it is None. Unknown keys are ignored.
    """

    def to_json(self) -> dict[str, Any]:
        """Convert to an object of JSON."""
        values = ((item, getattr(self, item.name)) for item in fields(self))
        return {item.name: _to_json(value) for item, value in values if value is not None or item.default is not None}

    @classmethod
    def from_json(cls, value: Any, name: str = "") -> Self:
        """Convert from an object of JSON.

        Args:
            value: Parsed JSON.
            name: Name of the value in errors.

        Raises:
            ValueError: A key is missing, or a value has another type or is not finite.
        """
        known, types = fields(cls), _types(cls)  # type: ignore[arg-type]
        required = [item.name for item in known if item.default is MISSING and item.default_factory is MISSING]
        expected = f"an object with {', '.join(required)}" if required else "an object"
        _check(isinstance(value, dict) and value.keys() >= set(required), name, expected, value)
        keys = (item.name for item in known if item.name in value)
        return cls(**{key: _parse(types[key], value[key], f"{name}.{key}" if name else key) for key in keys})

    @classmethod
    def from_lines(cls, lines: Iterable[Any]) -> list[Self]:
        """Convert lines of metrics or scores. Lines of another form are skipped."""
        records = []
        for line in lines:
            try:
                records.append(cls.from_json(line))
            except ValueError:
                continue
        return records

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged or holds something else; the error names it.
        """
        value = read_json(path)
        try:
            return cls.from_json(value)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write a file, atomically."""
        write_json(path, self.to_json())


@cache
def _types(record: type[Record]) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def _check(fits: bool, name: str, expected: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{name}{': ' if name else ''}expected {expected}, got {value!r:.100}")


def _parse(kind: Any, value: Any, name: str) -> Any:
    """Convert a value of JSON to the type of a field; ValueError if it has another form."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _parse(parts[0], value, name)
    if origin is Annotated:
        _check(isinstance(value, list) and len(value) > 0, name, "a list that is not empty", value)
        return _parse(parts[0], value, name)
    if origin is dict:
        _check(isinstance(value, dict), name, "an object", value)
        return {key: _parse(parts[1], part, f"{name}.{key}") for key, part in value.items()}
    if origin is list:
        _check(isinstance(value, list), name, "a list", value)
        return [_parse(parts[0], part, f"{name}[{index}]") for index, part in enumerate(value)]
    if origin is tuple:
        _check(isinstance(value, list) and len(value) == 2, name, "a pair", value)
        return tuple(_parse(parts[index], part, f"{name}[{index}]") for index, part in enumerate(value))
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_json(value, name)
    if kind is str:
        _check(isinstance(value, str), name, "a str", value)
    elif kind is int:
        _check(isinstance(value, int) and not isinstance(value, bool), name, "an integer", value)
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _check(number and abs(value) < 1e100 and math.isfinite(value), name, "a number below 1e100", value)
    return value


def _to_json(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _to_json(part) for key, part in value.items()}
    return [_to_json(part) for part in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class Scores(Record):
    """Score of every episode, with mean, sample standard deviation (n - 1) and 95 % interval of the mean."""

    scores: NonEmpty[float]
    mean: float
    std: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _Policy(Record):
    policy: str


@dataclass(frozen=True, kw_only=True)
class PlayerScores(Scores, _Policy):
    """Scores of a baseline, with the name of its ``policy``."""


@dataclass(frozen=True, kw_only=True)
class EvolvedScore(Record):
    """Score of C in its evolution, where ``evaluate_in`` is ``"dream"`` or ``"environment"``."""

    evaluate_in: str | None = None
    score: float | None = None
    generation: int | None = None

    @classmethod
    def from_json(cls, value: Any, name: str = "") -> Self:
        """See :meth:`Record.from_json`. Older files have the key ``inside`` for ``evaluate_in``."""
        if isinstance(value, dict) and "inside" in value:
            value = {"evaluate_in": value["inside"], **value}
        return super().from_json(value, name)


@dataclass(frozen=True, kw_only=True)
class DreamScores(Record):
    """Scores of C in its dream.

    Attributes:
        score: Score in the evolution; None if C was evolved in the real environment.
        temperature: Temperature of the dream.
        precision: Arithmetic of the evaluation.
        generation: Generation of C.
        evaluation: Scores on episodes not used for selection; None if M predicts no reward.
    """

    score: float | None = None
    temperature: float
    precision: str | None = None
    generation: int | None = None
    evaluation: Scores | None = field(default_factory=lambda: None)  # written as null


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Record):
    """Scores of an evaluated mean: ``dream`` in the evolution, ``game`` in the real environment."""

    generation: float
    dream: float | None = None
    game: Scores


@dataclass(frozen=True, kw_only=True)
class EnvironmentRecord(Record):
    """Real environment of an evaluation: the metadata of ``EnvSpec`` and the maximum episode length."""

    id: str | None = None
    variant: str | None = None
    resolution: str | None = None
    backend: str | None = None
    imports: str | None = None
    source: str | None = None
    action_repeat: int | None = None
    crop_top: int | None = None
    crop_bottom: int | None = None
    crop_left: int | None = None
    crop_right: int | None = None
    max_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Seeds(Record):
    """Seed of a run, and the seeds of its real episodes."""

    seed: int
    episodes: list[int]


@dataclass(frozen=True, kw_only=True)
class Results(Record):
    """Content of ``results.json``, in which every player is an entry of its own.

    Attributes:
        agent: Scores of the agent.
        players: Scores of the baselines by name: ``before`` (the first generation), ``random``, ``collecting`` and the
            other baselines of the task.
        evolved: Score of C in its evolution.
        curve: Scores of every evaluated mean, if they were measured.
        dream: Scores of C in its dream.
        environment: Real environment.
        versions: Versions by package.
        seeds: Seeds of the episodes.
        preset: Preset of the run.
    """

    agent: Scores
    players: dict[str, PlayerScores]
    evolved: EvolvedScore | None = None
    curve: list[CurvePoint] | None = None
    dream: DreamScores | None = None
    environment: EnvironmentRecord
    versions: dict[str, str]
    seeds: Seeds | None = None
    preset: str | None = None

    def to_json(self) -> dict[str, Any]:
        """See :meth:`Record.to_json`."""
        values = super().to_json()
        return {"agent": values.pop("agent"), **values.pop("players"), **values}

    @classmethod
    def from_json(cls, value: Any, name: str = "") -> Self:
        """See :meth:`Record.from_json`. Every entry with a policy is a player."""
        required = ("agent", *_BASELINES, "environment", "versions")
        fits = isinstance(value, dict) and value.keys() >= set(required)
        _check(fits, name, f"an object with {', '.join(required)}", value)
        own = {item.name for item in fields(cls)}
        others = {key: entry for key, entry in value.items() if key not in own}
        players = {
            key: PlayerScores.from_json(entry, f"{name}.{key}" if name else key)
            for key, entry in others.items()
            if key in _BASELINES or (isinstance(entry, dict) and "policy" in entry)
        }
        return replace(super().from_json({**value, "players": {}}, name), players=players)

    def labelled(self) -> list[tuple[str, Scores]]:
        """List the scores with their labels: ``agent``, then ``name (policy)``."""
        labels = [name if name == entry.policy else f"{name} ({entry.policy})" for name, entry in self.players.items()]
        return [("agent", self.agent), *zip(labels, self.players.values(), strict=True)]

    def evolved_score(self, evaluate_in: str) -> float:
        """Return C's mean return where its candidates were evaluated.

        Args:
            evaluate_in: Where the candidates were evaluated: ``"dream"`` or ``"environment"``.

        Raises:
            ValueError: The file lacks it.
        """
        name, part = ("dream", self.dream) if evaluate_in == "dream" else ("evolved", self.evolved)
        if part is None or part.score is None:
            raise ValueError(f"{name}: expected an object with score, got {part and part.to_json()!r:.100}")
        return part.score


@dataclass(frozen=True, kw_only=True)
class PolicyCheck(Record):
    """Scores of an open-loop policy in the dream and in the game."""

    dream: Scores
    game: Scores


@dataclass(frozen=True, kw_only=True)
class DreamCheck(Record):
    """Scores of open-loop policies in the dream and in the game, and warnings about model bias."""

    temperature: float
    policies: dict[str, PolicyCheck]
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class PixelQuality(Record):
    """V's reconstruction of one class of pixels.

    Attributes:
        share: Fraction of all pixels.
        error: Squared error per pixel, summed over channels in [0, 1]; None for an empty class.
        mean_picture: Error of the mean frame.
        explained: Fraction of ``mean_picture`` that V explains; None if it is 0.
    """

    share: float
    error: float | None
    mean_picture: float | None
    explained: float | None


@dataclass(frozen=True, kw_only=True)
class VAEQuality(Record):
    """Quality of V on held-out frames: their number, and the reconstruction by class of pixels."""

    frames: float
    pixels: dict[str, PixelQuality]


@dataclass(frozen=True, kw_only=True)
class CalibrationBin(Record):
    """Predicted probabilities of termination from ``low`` to ``high``.

    ``predicted`` is their mean, ``expected`` the mean with the positive-class weight removed, and ``observed`` the
    frequency of termination.
    """

    low: float
    high: float
    count: float
    predicted: float
    expected: float
    observed: float


@dataclass(frozen=True, kw_only=True)
class RolloutQuality(Record):
    """Errors of open-loop predictions at one horizon.

    Errors of z are mean squares per dimension. Those of frames, ``picture_*``, are squares per frame, summed over
    pixels with channels in [0, 1]; None without V and frames.

    Attributes:
        steps: Horizon in steps.
        count: Number of predictions.
        mean: Mean of the mixture.
        sample: Sample of the mixture, which includes V's sampling noise.
        stays: Persistence baseline: the latent, or the frame, at the start.
        average: Mean latent.
        picture_v: V's reconstruction, a lower bound.
    """

    steps: float
    count: float
    mean: float
    sample: float
    stays: float
    average: float
    picture_mean: float | None = None
    picture_sample: float | None = None
    picture_stays: float | None = None
    picture_v: float | None = None


@dataclass(frozen=True, kw_only=True)
class RNNQuality(Record):
    """Quality of M on held-out episodes.

    Attributes:
        z: Negative log-likelihood of the next latent, in nats per dimension.
        z_noise: Entropy of V's sampling noise, a lower bound of ``z``.
        z_dimensions: (Z,) ``z`` of each dimension.
        done: Calibration of termination, of every nonempty bin; None without a termination head.
        rollouts: Open-loop predictions at every horizon.
    """

    z: float
    z_noise: float
    z_dimensions: NonEmpty[float]
    done: list[CalibrationBin] | None = None
    rollouts: list[RolloutQuality]


@dataclass(frozen=True, kw_only=True)
class EpisodeTrace(Record):
    """Rewards of an episode, and its track and positions [x, y] if the environment reports them."""

    rewards: list[float]
    track: NonEmpty[Point] | None = None
    positions: NonEmpty[Point] | None = None


@dataclass(frozen=True, kw_only=True)
class StageRecord(Record):
    """Marker of a stage: the settings that determine its outputs, its summary, start time, duration and versions.

    Start and duration are those of all sessions. ``peak_memory_mb`` has the peak resident size of the process and of
    its largest child, in MiB. An incomplete stage has the values of ``Run.begin`` as its summary, and the duration so
    far.
    """

    stage: str | None = None
    settings: dict[str, Any]
    summary: dict[str, Any]
    began: str | None = None
    seconds: float | None = None
    peak_memory_mb: dict[str, int] | None = None
    versions: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class ProfileLine(Record):
    """Line of ``metrics.jsonl`` on the time of the stage ``of``: seconds per phase since its last such line."""

    of: str
    profile: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class GenerationLine(Record):
    """Line of ``metrics.jsonl`` on a generation of CMA-ES: scores of the population, step size and number of steps.

    ``evaluation`` is the score of the distribution's mean.
    """

    generation: float
    best: float
    mean: float
    worst: float
    sigma: float | None = None
    steps: float | None = None
    evaluation: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingLine(Record):
    """Line of ``metrics.jsonl`` on a training step: the losses of V or M that were logged at it."""

    step: float
    squared_error: float | None = None
    kl: float | None = None
    z: float | None = None
    done: float | None = None
    reward: float | None = None
    validation_squared_error: float | None = None
    validation_kl: float | None = None
    validation_z: float | None = None
    validation_done: float | None = None
    validation_reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpisodeScore(Record):
    """Line of cached scores."""

    episode: float
    score: float


@dataclass(frozen=True, kw_only=True)
class StudyResult(Record):
    """Result of one run of a study: scores of C in its dream (None if M predicts no reward) and in the game."""

    dream: Scores | None
    game: Scores
    generation: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class SweepResult(StudyResult):
    """Result of a ``temperature``."""

    temperature: float


@dataclass(frozen=True, kw_only=True)
class AblationResult(StudyResult):
    """Result of a ``variant``: the inputs of C (``features``) and where its candidates were evaluated."""

    variant: str
    features: str
    evaluate_in: str
