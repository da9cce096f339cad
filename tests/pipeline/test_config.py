"""Settings: every field has a help text, every preset goes through JSON, every bad value is named."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Literal, get_args

import pytest

from worldmodels.envs.policies import RANDOM_AGENT
from worldmodels.models.controller import Features
from worldmodels.models.native_model import Termination
from worldmodels.pipeline import tasks
from worldmodels.pipeline.collection import parse_policies
from worldmodels.pipeline.config import SECTIONS, Config, from_dict, override, to_dict
from worldmodels.pipeline.stages import NAMES
from worldmodels.pipeline.tasks import preset
from worldmodels.support import settings

ALL = [(task, name) for task in tasks.names() for name in tasks.get(task).presets]


def test_there_is_a_section_for_every_stage():
    assert set(SECTIONS) == {"environment", "probe", "refine", "rounds", *NAMES}
    assert set(tasks.get("takecover").presets) == {"pretrained", "quick", "small", "full", "paper"}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_has_a_help_text(section):
    kind = type(getattr(Config(), section))
    texts = {name: setting.help for name, setting in settings.declared(kind).items()}
    assert list(texts) == [field.name for field in dataclasses.fields(kind)]
    assert all(len(text) > 5 for text in texts.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(getattr(Config(), section), next(iter(texts)), 1)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_declared_with_a_kind_that_its_default_has(section):
    kind = type(getattr(Config(), section))
    for name in settings.declared(kind):
        assert settings.kind(kind, name) in (int, float, bool, str)
        settings.check(kind, name, getattr(kind(), name), name)
        for wrong in ([], None, {}, b"1"):
            with pytest.raises(ValueError, match=rf"^label: expected {settings.kind(kind, name).__name__}, got "):
                settings.check(kind, name, wrong, "label")
        for choice in settings.choices(kind, name):
            settings.check(kind, name, choice, name)


@dataclasses.dataclass(frozen=True)
class Toy:
    count: int = settings.setting(3, "how many", zero=True, machine=True)
    fraction: float = settings.setting(0.5, "which part", below=1)
    mode: Literal["", "fast"] = settings.setting("", "how", location=False)
    source: str = settings.setting("", "where from", location=True)


def test_a_setting_is_declared_once_with_all_that_is_known_of_it():
    declared = settings.declared(Toy)
    assert list(declared) == ["count", "fraction", "mode", "source"]
    assert declared["count"] == settings.Setting("how many", zero=True, machine=True)
    assert declared["fraction"] == settings.Setting("which part", below=1)
    assert declared["source"].location and not declared["mode"].location
    assert [settings.kind(Toy, name) for name in declared] == [int, float, str, str]
    assert [settings.choices(Toy, name) for name in declared] == [(), (), ("", "fast"), ()]
    for name, value in (("count", 0), ("fraction", 0.999), ("fraction", 5e-324), ("mode", ""), ("source", "a/b")):
        settings.check(Toy, name, value, "toy")
    for name, value, message in (
        ("count", -1, "toy: expected zero or more, got -1"),
        ("count", True, "toy: expected int, got True"),
        ("fraction", 0, "toy: expected more than zero, got 0"),
        ("fraction", 1, "toy: expected less than 1, got 1"),
        ("mode", "slow", "toy: expected one of (empty), fast, got 'slow'"),
        ("amount", 1, "toy: no such setting; expected one of count, fraction, mode, source"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            settings.check(Toy, name, value, "toy")


@pytest.mark.parametrize(("task", "name"), ALL)
def test_presets_go_through_json(task, name):
    config = preset(task, name)
    assert (config.task, config.preset) == (task, name)
    assert from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False))) == config
    known = tasks.get(task).policies
    assert {policy for policy, _ in parse_policies(config.collect.policies, known)} <= {*known, RANDOM_AGENT}


def test_the_paper_preset_has_the_papers_numbers():
    config = preset("takecover", "paper")
    assert config.collect.episodes == 10_000
    assert config.collect.policies == "repeat 1-10"
    assert config.collect.min_length == 101  # episodes of 100 frames or fewer are dropped
    vae, rnn, evolve = config.train_vae, config.train_rnn, config.evolve
    assert (vae.latent_size, vae.lr, vae.batch_size, vae.kl_tolerance, vae.kl_weight) == (64, 1e-4, 100, 0.5, 1.0)
    assert (rnn.hidden_size, rnn.num_mixtures, rnn.grad_clip) == (512, 5, 1.0)
    assert (rnn.batch_size, rnn.sequence_length) == (100, 500)
    assert (rnn.lr, rnn.lr_end, rnn.lr_decay, rnn.done_pos_weight, rnn.steps) == (1e-3, 1e-5, 0.99999, 10.0, 24_400)
    assert (rnn.restart_input, rnn.done_head, rnn.reward_head) == (True, True, False)
    assert (evolve.popsize, evolve.episodes, evolve.sigma0, evolve.temperature) == (64, 16, 0.1, 1.15)
    assert (evolve.evaluate_every, evolve.evaluate_episodes, evolve.max_steps) == (25, 1024, 2100)
    assert (evolve.features, evolve.bias, evolve.hidden_units, evolve.weight_decay) == ("zch", False, 0, 0.01)


def test_override_changes_what_it_is_told_and_nothing_else():
    before = preset("takecover", "quick")
    after = override(
        before, {"evolve": {"popsize": 8, "sigma0": 1, "weight_decay": 0.0}, "collect": {"num_workers": 0}}
    )
    assert (after.evolve.popsize, after.evolve.sigma0, after.evolve.weight_decay) == (8, 1, 0.0)
    assert dataclasses.replace(after, evolve=before.evolve) == before
    assert from_dict(to_dict(after)) == after


@pytest.mark.parametrize(
    ("section", "name", "value", "wanted"),
    [
        ("evolve", "popsise", 8, "no such setting; expected one of evaluate_in, features, bias"),
        ("evolve", "popsize", 8.0, "expected int, got 8.0"),
        ("evolve", "popsize", "8", "expected int, got '8'"),
        ("evolve", "popsize", True, "expected int, got True"),
        ("evolve", "popsize", 0, "expected more than zero, got 0"),
        ("evolve", "popsize", -4, "expected more than zero, got -4"),
        ("evolve", "sigma0", "big", "expected float, got 'big'"),
        ("evolve", "sigma0", float("nan"), "expected more than zero, got nan"),
        ("evolve", "temperature", -0.1, "expected zero or more, got -0.1"),
        ("evolve", "temperature", float("inf"), "expected a finite number, got inf"),
        ("evolve", "sigma0", 10**400, "expected a finite number, got an integer beyond float64"),
        ("evolve", "bias", 1, "expected bool, got 1"),
        ("evolve", "termination", "chance", "expected one of threshold, sample, expected, got 'chance'"),
        ("evolve", "initial_states", "midway", "expected one of first, random, got 'midway'"),
        ("evolve", "evaluate_in", "game", "expected one of dream, environment, got 'game'"),
        ("evolve", "features", "hz", "expected one of z, zh, zc, zch, got 'hz'"),
        ("evolve", "features", None, "expected str, got None"),
        ("evolve", "common_random_numbers", "same", "expected bool, got 'same'"),
        ("train_vae", "batch_size", 0, "expected more than zero, got 0"),
        ("train_vae", "schedule", "linear", "expected one of constant, cosine"),
        ("train_vae", "keep", "worst", "expected one of best, last, got 'worst'"),
        ("train_rnn", "patience", -1, "expected zero or more, got -1"),
        ("train_vae", "micro_batch_size", -1, "expected zero or more, got -1"),
        ("train_rnn", "micro_batch_steps", -1, "expected zero or more, got -1"),
        ("train_vae", "compile", 1, "expected bool, got 1"),
        ("train_rnn", "done_pos_weight", 0.0, "expected more than zero, got 0.0"),
        ("train_rnn", "done_lookahead", -1, "expected zero or more, got -1"),
        ("train_rnn", "validation_fraction", 1.0, "expected less than 1, got 1.0"),
        ("train_rnn", "schedule", "constant", "expected one of exponential, cosine"),
        ("train_rnn", "precision", "float64", "expected one of auto, float32, bfloat16"),
        ("collect", "num_workers", -1, "expected zero or more, got -1"),
        ("environment", "variant", "hard", "expected one of (empty), paper, modern, got 'hard'"),
    ],
)
def test_bad_settings_are_named(section, name, value, wanted):
    for attempt in (
        lambda: override(Config(), {section: {name: value}}),
        lambda: from_dict({**to_dict(Config()), section: {name: value}}),
    ):
        with pytest.raises(ValueError, match=rf"^{section}\.{name}: ") as caught:
            attempt()
        assert wanted in str(caught.value)


@pytest.mark.parametrize("values", [{"evolv": {}}, {"evolve": 3}, {"evolve": [1]}, [], None])
def test_bad_shapes_of_a_config_are_refused(values):
    with pytest.raises(ValueError, match=r"expected (the keys|fields and values)"):
        from_dict(values)


def test_choices_exist_and_hold_the_defaults():
    found = {
        (section, name): choices
        for section, kind in ((section, type(getattr(Config(), section))) for section in SECTIONS)
        for name in settings.declared(kind)
        if (choices := settings.choices(kind, name))
    }
    assert found["evolve", "termination"] == ("threshold", "sample", "expected") == get_args(Termination)
    assert found["evolve", "features"] == get_args(Features)
    for (section, name), choices in found.items():
        assert all(getattr(getattr(preset(*which), section), name) in choices for which in ALL)


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("pong", "paper", "task: expected one of .*takecover.*, got 'pong'"),
        ("takecover", "tiny", "preset: expected one of pretrained, quick, small, full, paper, got 'tiny'"),
    ],
)
def test_unknown_presets_are_named(task, name, message):
    with pytest.raises(ValueError, match=message):
        preset(task, name)


def test_settings_of_older_runs_are_read():
    values = to_dict(preset("takecover", "quick"))
    assert from_dict({**values, "iterate": {"rounds": 2}}) == preset("takecover", "quick")
