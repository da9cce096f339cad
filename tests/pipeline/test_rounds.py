"""Rounds of own play at toy size: one run folder, one command, resumable anywhere."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from conftest import copy_linked, interrupt, metrics, toy_config
from worldmodels import Controller
from worldmodels.analysis.stats import describe
from worldmodels.cli import main
from worldmodels.cmaes.cmaes import CMAES
from worldmodels.data.episodes import EpisodeStore
from worldmodels.data.records import DreamCheck, Results
from worldmodels.models.agent import Agent, load_controller
from worldmodels.models.weights import load_tensors
from worldmodels.pipeline import evaluation, report, tasks
from worldmodels.pipeline import rounds as rounds_of_play
from worldmodels.pipeline.collection import player_metadata
from worldmodels.pipeline.config import RefineConfig, RoundsConfig, override, round_config
from worldmodels.pipeline.evolution import save_controller
from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.rounds import RoundResult, round_results, run_all
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.stages import NAMES, get
from worldmodels.rollout import environments as play
from worldmodels.rollout.players import OpenLoopPlayer
from worldmodels.training.trainer import Trainer

ROUNDS = {
    "rounds": 2,
    "episodes": 3,
    "policies": "agent, agent with parameter noise",
    "vae_steps": 2,
    "vae_lr": 1e-6,
    "rnn_steps": 4,
    "rnn_lr": 1e-6,
    "generations": 1,
    "evaluate_episodes": 1,
}
GET = tasks.get
TOY_ROUNDS = {
    "collect": {"num_workers": 1, "shard_episodes": 3},
    "evolve": {"pca_components": 3},
    "evaluate": {"episodes": 2},
    "rounds": ROUNDS,
}


def rounds_config(**changes):
    return override(override(toy_config(seed=5), TOY_ROUNDS), changes)


@pytest.fixture(scope="module")
def two_baselines():
    """The baselines that no run can do without, so that fewer games are played."""
    task = tasks.get("takecover")
    baselines = {name: task.baselines[name] for name in ("random", "collecting")}
    policies = {name: task.policies[name] for name in baselines.values()}
    smaller = dataclasses.replace(task, baselines=baselines, policies=policies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "get", lambda name: smaller if name == "takecover" else GET(name))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, two_baselines):
    """A complete run of two rounds of own play, and the open-loop episodes that were played for scores."""
    folder, played = tmp_path_factory.mktemp("rounds") / "run", []
    real = play.Environments.play_all

    def spy(environments, assignments, **options):
        for player, episodes, _ in assignments:
            if isinstance(player, OpenLoopPlayer):
                played.extend((options["purpose"], player._policy, number) for number in episodes)
        real(environments, assignments, **options)

    with pytest.MonkeyPatch.context() as patch, Run(folder, rounds_config()) as run:
        patch.setattr(play.Environments, "play_all", spy)
        report_only_in(patch, folder)
        run_all(run)
    return folder, played


def report_only_in(patch, folder):
    """No recording and no report of other rounds, to save time."""
    report, record = get("report").run, evaluation._record
    patch.setitem(vars(get("report")), "run", lambda run: report(run) if run.folder == folder else {})
    patch.setattr(evaluation, "_record", lambda run: record(run) if run.folder == folder else None)


def outcome(folder):
    """What a run has computed, in all of its rounds."""
    run, found = RunFolder(folder, Run.stored_config(folder)), []
    for part in run.rounds:
        for path in sorted(part.folder.glob("*/*.safetensors")):
            found.append((path.relative_to(folder).as_posix(), path.read_bytes()))
        results = Results.read(part.path("results.json"))
        found.append(dataclasses.replace(results, versions={}))
        found.append([metrics(part, stage) for stage in ("train-vae", "train-rnn")])
    return found


@pytest.mark.slow
def test_the_run_folder_is_the_last_round(made):
    folder, _ = made
    assert sorted(path.name for path in (folder / "rounds").iterdir()) == ["0", "1"]
    config = Run.stored_config(folder)
    assert config == rounds_config()
    run = RunFolder(folder, config)
    assert [len(part.summary("collect")["policies"]) > 0 for part in run.rounds] == [True] * 3
    found = round_results(run)
    assert [(one.number, one.episodes, len(one.game.scores)) for one in found] == [(0, 6, 1), (1, 9, 1), (2, 12, 2)]
    assert found[-1].game == Results.read(folder / "results.json").agent
    assert Results.read(folder / "results.json").seeds.seed == 5
    for number, (part, own) in enumerate(zip(run.rounds, ([], ["agent"] * 3, ["agent"] * 6), strict=True)):
        assert all(part.is_done(name) for name in NAMES)
        store = EpisodeStore(part.path("episodes"))
        episodes = list(store.episodes())
        store.close()
        assert [episode.policy.split()[0] for episode in episodes[6:]] == own
        seeds = [seed for path in sorted(part.path("episodes").glob("*.h5")) for seed in h5py.File(path)["seeds"]]
        assert len(set(seeds)) == len(seeds) == len(episodes)  # although all rounds have the seed of the run
        assert part.summary("evolve")["parameters"] == 20
        assert part.path("evolve", "coordinates.safetensors").is_file() == (number == 2)
    agent = Agent.load(folder)
    _, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
    np.testing.assert_array_equal(agent.params, params)


def test_a_round_continues_the_models_of_the_one_before_it(made):
    folder, _ = made
    parts = [part.folder for part in RunFolder(folder, Run.stored_config(folder)).rounds]
    for previous, part in itertools.pairwise(parts):
        for name in ("vae/vae", "rnn/rnn"):  # a few steps at a tiny rate
            before, _ = load_tensors(previous / f"{name}.safetensors")
            after, _ = load_tensors(part / f"{name}.safetensors")
            assert any((before[key] != after[key]).any() for key in before)
            assert all((before[key] - after[key]).abs().max() < 1e-4 for key in before)
        assert RunFolder(part, Run.stored_config(part)).summary("collect")["player"] == player_metadata(previous)


def test_open_loop_policies_play_once_for_all_rounds(made):
    _, played = made
    assert len(played) == len(set(played)) == 2 * 2 + 2 * 2  # two policies, two games each, for two purposes


def test_the_report_has_the_rounds(made):
    page = (made[0] / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<h2>Rounds</h2>") == 1 and 'scope="row">2</th>' in page and "round 1</th>" in page
    for name in ("rounds", "round_checks", "terminations"):
        assert (made[0] / "report" / f"{name}.png").stat().st_size > 5_000
    captions = re.findall(r'alt="([^"]+)"><figcaption>([^<]+)</figcaption>', page)
    assert len(captions) == page.count("<img") == 12 and all(len(alt) > 20 for alt, _ in captions)
    assert all(re.search("good|should|Good", caption) for _, caption in captions)
    assert "<span>--rounds.rounds</span> <span>2</span>" in page


def test_info_has_a_table_of_every_round(made, capsys):
    assert main(["info", str(made[0])]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
    assert heads == [
        f"round {number} of 2: {made[0] / part}" for number, part in enumerate(("rounds/0", "rounds/1", ""))
    ]


def test_dreams_truncated_in_an_earlier_round_are_no_terminations(tmp_path, monkeypatch):
    run, drawn = (
        RunFolder(tmp_path, rounds_config(rounds={"rounds": 1, "first_max_steps": 300}, evolve={"max_steps": 500})),
        [],
    )
    monkeypatch.setattr(report.figures, "rounds", lambda *_: None)
    monkeypatch.setattr(report.figures, "terminations", lambda _, edges, rates: drawn.extend(rates))
    check = DreamCheck(temperature=1.0, policies={}, warnings=[])
    results = [
        RoundResult(number, 10, check, describe([300.0] * 64), describe([500.0] * 64), 1.0, None) for number in (0, 1)
    ]
    report._draw_rounds(run, tmp_path, results)
    assert [max(filter(None, dream), default=0) > 0 for dream, _ in drawn] == [False, True]


@pytest.mark.slow
def test_an_interrupted_run_ends_like_one_that_was_not(made, tmp_path, two_baselines, capsys):
    """In M's training of round 1, before the last round, and in its evolution; in a copy of round 0."""
    folder = tmp_path / "run"
    copy_linked(made[0] / "rounds" / "0", folder / "rounds" / "0")
    for owner, name, call in ((Trainer, "checkpoint", 2), (rounds_of_play, "share_scores", 2), (CMAES, "tell", 2)):
        with pytest.MonkeyPatch.context() as patch, Run(folder, rounds_config()) as run:
            report_only_in(patch, None)
            interrupt(patch, owner, name, call, after=True)
            with pytest.raises(KeyboardInterrupt):
                run_all(run)
    with pytest.MonkeyPatch.context() as patch, Run(folder) as run:
        report_only_in(patch, None)
        run_all(run)
    assert outcome(folder) == outcome(made[0])
    err = capsys.readouterr().err
    assert "round 1 of 2:    train-rnn  " in err and "round 0 of 2: already complete" in err


@pytest.fixture
def copied(made, two_baselines, tmp_path):
    """A copy of the run, next to the original."""
    return copy_linked(made[0], tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": {"episodes": 4}}, r"rounds/1: collect is complete with other settings \(rounds\.episodes\)"),
        ({"rounds": {"rnn_lr": 1e-5}}, r"rounds/1: train-rnn is complete with other settings \(rounds\.rnn_lr\)"),
        ({"rounds": {"generations": 2}}, r"rounds/0: evolve is complete with other settings \(rounds\.generations\)"),
        (
            {"rounds": {"evolve_from": "previous"}},
            r"rounds/1: evolve is complete with other settings \(rounds\.evolve_from\)",
        ),
        ({"collect": {"episodes": 7}}, r"rounds/0: collect is complete with other settings \(episodes\)"),
        ({"train_rnn": {"steps": 7}}, r"rounds/0: train-rnn is complete with other settings \(steps\)"),
        (
            {"evolve": {"pca_components": 4}},
            r"copy: evolve is complete with other settings \(pca_components\); .*--force",
        ),
        ({"rounds": {"rounds": 3}}, r"copy: stages have run with other settings \(rounds\.rounds 2, got 3\)"),
        ({"rounds": {"rounds": 0}}, r"copy: stages have run with other settings \(rounds\.rounds 2, got 0\)"),
    ],
)
def test_settings_of_a_round_that_was_made_are_refused_by_name(copied, changes, said):
    with pytest.raises(ValueError, match=said) as refusal:
        Run(copied, rounds_config(**changes))
    assert ("--force" in str(refusal.value)) == ("copy: evolve" in str(refusal.value))  # no later round builds on it
    assert Run.stored_config(copied) == rounds_config()


def test_a_command_does_not_change_the_settings_of_a_round(copied, capsys):
    before = (copied / "rounds" / "0" / "evolve" / "controller.safetensors").read_bytes()
    for flags in (["--generations", "5"], ["--popsize", "9", "--force"]):
        assert main(["evolve", "--out", str(copied / "rounds" / "0"), *flags]) == 1
        assert (
            f"rounds/0: expected the settings of round 0 of {copied}, got others for evolve" in capsys.readouterr().err
        )
    assert (copied / "rounds" / "0" / "evolve" / "controller.safetensors").read_bytes() == before


def test_rounds_may_be_added_until_the_last_one_has_begun(made, two_baselines, tmp_path):
    copy_linked(made[0] / "rounds" / "0", tmp_path / "rounds" / "0")
    for count in (2, 3, 1):
        with Run(tmp_path, rounds_config(rounds={"rounds": count})) as run:
            assert [part.folder.name for part in run.rounds[:-1]] == [str(number) for number in range(count)]
            assert all(map(run.rounds[0].is_done, NAMES))
    with pytest.raises(ValueError, match=r"rounds\.rounds 1, got 0"):
        Run(tmp_path, rounds_config(rounds={"rounds": 0}))


def test_the_last_round_is_changed_by_the_commands_of_the_stages(copied, monkeypatch, capsys):
    """The last round may be extended by a generation and a game."""
    before = (copied / "rounds" / "1" / "evolve" / "controller.safetensors").read_bytes()
    assert main(["evolve", "--out", str(copied), "--generations", "3"]) == 0
    assert "already complete" not in capsys.readouterr().err
    report_only_in(monkeypatch, None)
    assert main(["run", "takecover", "--out", str(copied), "--evaluate.episodes", "3"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("2 of 24 stages left in 3 rounds\nround 0 of 2: already complete\n")
    assert "round 2 of 2:       evolve  already complete" in err
    results = Results.read(copied / "results.json")
    assert len(results.agent.scores) == 3
    lines = out.splitlines()
    assert (
        lines[-1] == f"The agent scores {results.agent.mean:.0f} steps survived in the real environment (3 episodes)."
    )
    assert lines[0] == f"round 2 of 2: {copied}"
    assert [line.split()[:2] for line in lines if line[:1] in "012"] == [["0", "6"], ["1", "9"], ["2", "12"]]
    assert (copied / "rounds" / "1" / "evolve" / "controller.safetensors").read_bytes() == before


def test_iterate_is_run_with_rounds(copied, tmp_path, monkeypatch, capsys):
    flags = ["--from-scratch", "--rounds.episodes", "7"]
    given = {}
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "get", GET)
        patch.setattr(rounds_of_play, "run_all", lambda run: given.update({run.folder.name: run.given}))
        assert main(["run", "takecover", "--preset", "full", "--out", str(tmp_path / "full")]) == 0
        assert capsys.readouterr().err == "24 stages in 3 rounds, about 77 minutes on 2 cores of an AMD EPYC (Zen 5)\n"
        assert main(["run", "takecover", *flags, "--rounds.rounds", "3", "--out", str(tmp_path / "run")]) == 0
        flags = ["--from-scratch", "--episodes", "7"]
        assert main(["iterate", "takecover", *flags, "--rounds", "3", "--out", str(tmp_path / "iterate")]) == 0
        assert main(["iterate", "takecover", "--out", str(tmp_path / "one")]) == 0
        assert main(["iterate", "carracing", "--preset", "dream", "--out", str(tmp_path / "dream")]) == 0
        capsys.readouterr()
    assert given["full"] == tasks.preset("takecover", "full") and given["full"].rounds.rounds == 2
    assert given["run"] == given["iterate"] and given["run"].rounds == RoundsConfig(rounds=3, episodes=7)
    assert given["one"].rounds.rounds == given["dream"].rounds.rounds == 1
    assert main(["iterate", "takecover", "--out", str(copied)]) == 0
    assert capsys.readouterr().err.count("already complete") == 2 + len(NAMES)


def test_a_stage_alone_needs_the_rounds_before_it(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["collect", "--preset", "full", "--out", str(out)]) == 1
    assert (
        f"`worldmodels collect` needs the agent of {out}/rounds/0; `worldmodels run takecover"
        in capsys.readouterr().err
    )
    assert not out.exists()


def test_a_round_of_another_agent_is_refused(copied, capsys):
    _, params, _ = load_controller(copied / "rounds" / "0" / "evolve" / "controller.safetensors")
    with Run(copied / "rounds" / "0") as run:
        save_controller(run, Controller(4, 8, 1), params, {"generation": 7, "score": 6.0})
    assert main(["run", "takecover", "--out", str(copied)]) == 1
    said = (
        r"rounds/1: expected a round that builds on the C of .*rounds/0, generation 7, got its generation 1; .*--force"
    )
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": {"policies": "agent pertubed"}}, r"^rounds\.policies: expected .*, got 'agent pertubed'"),
        (
            {"rounds": {"pca_components": 21}},
            r"^rounds\.pca_components: expected at most 20, the features of C, got 21",
        ),
        ({"rounds": {"evaluate_episodes": 10**9}}, r"^rounds\.evaluate_episodes: expected at most 10000000"),
        (
            {"evolve": {"pca_components": 21}},
            r"^evolve\.pca_components: expected at most 20, the features of C, got 21",
        ),
        ({"evolve": {"evaluate_in": "environment"}}, r"^evolve\.evaluate_in: expected dream for rounds of own play"),
    ],
)
def test_settings_of_all_rounds_are_checked_before_any_work(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        Run(tmp_path / "run", rounds_config(**changes))
    assert not (tmp_path / "run").exists()


def test_the_settings_of_a_round():
    config = rounds_config(rounds={"evolve_from": "previous"}, evaluate={"curve_episodes": 3})
    first, middle, last = (round_config(config, number, Path("run")) for number in range(3))
    assert (first.collect, first.train_vae, first.train_rnn) == (config.collect, config.train_vae, config.train_rnn)
    assert first.rounds == middle.rounds == RoundsConfig() and last.rounds == config.rounds
    assert [one.evolve.generations for one in (first, middle, last)] == [1, 1, 2]
    assert [one.evolve.pca_components for one in (first, middle, last)] == [0, 0, 3]
    assert [one.evaluate.episodes for one in (first, middle, last)] == [1, 1, 2]
    assert [one.evaluate.curve_episodes for one in (first, middle, last)] == [0, 0, 3]
    sources = [str(Path("run/rounds", name).absolute()) for name in "01"]
    for one, source in zip((middle, last), sources, strict=True):
        assert one.collect.agent == one.collect.include == source
        assert one.train_vae.init_from == one.train_rnn.init_from == one.evolve.init_from == source
        assert (one.collect.episodes, one.train_vae.steps, one.train_rnn.steps) == (3, 2, 4)
    assert {one.seed for one in (first, middle, last)} == {5}
    assert round_config(toy_config(), 0, Path("run")) == toy_config()


REFINE = {"generations": 1, "popsize": 3, "episodes": 1, "max_steps": 20, "evaluate_every": 1, "evaluate_episodes": 2}


def refined_config(**changes):
    """One round of dreams and a refinement."""
    flat = {"rounds": {"evaluate_episodes": 1}, "refine": REFINE, "evolve": {"pca_components": 0}}
    return override(override(rounds_config(), {"rounds": {"rounds": 0}}), {**flat, **changes})


@pytest.fixture(scope="module")
def refined(made, tmp_path_factory, two_baselines):
    """A complete run with a refinement, on the round 0 of the other run."""
    folder = tmp_path_factory.mktemp("refined") / "run"
    copy_linked(made[0] / "rounds" / "0", folder / "rounds" / "0")
    with pytest.MonkeyPatch.context() as patch, Run(folder, refined_config()) as run:
        report_only_in(patch, folder)
        run_all(run)
    return folder


def test_a_refinement_keeps_the_world_model_and_continues_c_in_the_environment(refined):
    first, last = RunFolder(refined, Run.stored_config(refined)).rounds
    assert last.folder == refined and all(last.is_done(name) for name in NAMES)
    for name in ("vae/vae.safetensors", "rnn/rnn.safetensors"):
        assert last.path(name).read_bytes() == first.path(name).read_bytes()
    assert not last.path("episodes").exists()
    evolved = last.summary("evolve")
    assert evolved["evaluate_in"] == "environment" and evolved["generation"] == 1
    assert [line["generation"] for line in last.metrics("evolve")] == [1]
    _, before, _ = load_controller(first.path("evolve", "controller.safetensors"))
    tensors, _ = load_tensors(last.path("evolve", "checkpoint.safetensors"))
    np.testing.assert_array_equal(tensors["origin"].numpy().astype(np.float32), before)
    _, after, _ = load_controller(last.path("evolve", "controller.safetensors"))
    assert 0 < np.abs(after - before).max() < 10 * RefineConfig().sigma0
    results = round_results(last)
    assert [(one.number, one.episodes, len(one.game.scores)) for one in results] == [(0, 6, 1), (1, 6, 2)]
    assert results[0].rnn_loss == results[1].rnn_loss
    page = (refined / "report" / "index.html").read_text(encoding="utf-8")
    assert "keeps V and M, and evolves C further in the real environment" in page


def test_a_refinement_of_another_agent_is_refused(refined, tmp_path, capsys):
    copied = shutil.copytree(refined, tmp_path / "copied")
    _, params, _ = load_controller(copied / "rounds" / "0" / "evolve" / "controller.safetensors")
    with Run(copied / "rounds" / "0") as run:
        save_controller(run, Controller(4, 8, 1), params, {"generation": 7, "score": 6.0})
    assert main(["run", "takecover", "--out", str(copied)]) == 1
    said = r"copied: expected a round that builds on the C of .*rounds/0, generation 7, got its generation \d+; "
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"refine": {**REFINE, "popsize": 4}}, r"evolve is complete with other settings \(refine\.popsize\)"),
        ({"refine": {"generations": 0}}, r"stages have run with other settings \(refine\.generations 1, got 0\)"),
        ({"rounds": {"rounds": 1}}, r"stages have run with other settings \(rounds\.rounds 0, got 1\)"),
        (
            {"evolve": {"popsize": 5, "pca_components": 0}},
            r"rounds/0: evolve is complete with other settings \(popsize\)",
        ),
    ],
)
def test_settings_of_a_refined_run_are_refused_by_name(refined, changes, said):
    with pytest.raises(ValueError, match=said):
        Run(refined, refined_config(**changes))


def test_a_refinement_is_checked_before_any_work(tmp_path):
    for changes, said in (
        ({"evolve": {"evaluate_in": "environment"}}, r"^evolve\.evaluate_in: expected dream for a refinement"),
        ({"refine": {**REFINE, "popsize": 1}}, r"^refine\.popsize: expected"),
        ({"refine": {**REFINE, "pca_components": 21}}, r"^refine\.pca_components: expected at most 20"),
    ):
        with pytest.raises(ValueError, match=said):
            Run(tmp_path / "run", refined_config(**changes))
    assert not (tmp_path / "run").exists()


def test_round_0_may_have_shorter_dreams_than_the_others():
    rounds = {"rounds": {"max_steps_without_reward": 7, "first_max_steps": 9, "first_temperature": 0.5}}
    config = rounds_config(**rounds)
    first, middle, last = (round_config(config, number, Path("run")) for number in range(3))
    assert (first.evolve.max_steps, first.evolve.temperature) == (9, 0.5)
    for one in (middle, last):
        assert (one.evolve.max_steps, one.evolve.temperature) == (config.evolve.max_steps, config.evolve.temperature)
        assert one.collect.max_steps_without_reward == 7
    assert first.collect.max_steps_without_reward == config.collect.max_steps_without_reward
    alone = override(config, {"rounds": {"rounds": 0}})
    assert round_config(alone, 0, Path("run")).evolve == config.evolve


def test_the_settings_of_a_refinement():
    config = refined_config(rounds={"rounds": 1})
    dreams, own_play, last = (round_config(config, number, Path("run")) for number in range(3))
    assert [one.evolve.evaluate_in for one in (dreams, own_play, last)] == ["dream", "dream", "environment"]
    assert [one.evolve.generations for one in (dreams, own_play, last)] == [1, 2, 1]
    assert [one.evaluate.episodes for one in (dreams, own_play, last)] == [1, 1, 2]
    source = str(Path("run/rounds/1").absolute())
    assert last.world_model == last.evolve.init_from == source and own_play.world_model == ""
    assert (last.evolve.popsize, last.evolve.max_steps, last.evolve.sigma0) == (3, 20, RefineConfig().sigma0)
    assert last.evolve.features == config.evolve.features and last.collect == config.collect


@pytest.mark.parametrize("flag", ["--rounds", "--rounds.rounds"])
def test_iterate_has_at_least_one_round(tmp_path, capsys, flag):
    """Its own flags may have the prefix that they have in `run`."""
    assert main(["iterate", "takecover", "--out", str(tmp_path / "run"), flag, "0"]) == 1
    assert "worldmodels: --rounds: expected at least 1, got 0; `worldmodels run` runs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
