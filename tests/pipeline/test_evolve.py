"""Evolving C: a run that is cut off anywhere ends with the same controller, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from conftest import command, interrupt, make_mdnrnn, mark_done, metrics, start, toy_config, write_world
from worldmodels.cli import main
from worldmodels.cmaes.cmaes import CMAES
from worldmodels.dream.gpu import TorchDream
from worldmodels.dream.native import Dream
from worldmodels.models.agent import load_controller
from worldmodels.models.controller import Controller
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.weights import load_model, load_tensors, save_model, save_tensors
from worldmodels.pipeline import evolution as evolve
from worldmodels.pipeline.config import override
from worldmodels.pipeline.evaluators import dream_evaluator, make_dream, resolve_precision
from worldmodels.pipeline.run import Run
from worldmodels.rollout.evaluators.dream import DreamEvaluator
from worldmodels.support.progress import Progress

SETTINGS = {
    "generations": 7,
    "popsize": 6,
    "episodes": 3,
    "max_steps": 60,
    "evaluate_every": 3,
    "evaluate_episodes": 16,
}


def prepare(folder, **changes):
    """A run folder in which evolve is next."""
    experiment = Run(folder, toy_config(evolve={**SETTINGS, **changes}))
    write_world(experiment)
    return experiment


def outcome(experiment):
    """The controller's very bytes, the logged lines, what the stage reports and the evaluated means."""
    weights, means = (experiment.path("evolve", f"{name}.safetensors").read_bytes() for name in ("controller", "means"))
    return weights, metrics(experiment, "evolve"), experiment.summary("evolve"), means


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with prepare(tmp_path_factory.mktemp("whole")) as experiment:
        experiment.run_stage("evolve")
        return outcome(experiment)


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        (Dream, "rollout", 1, False),  # before anything is known
        (CMAES, "ask", 4, True),
        (CMAES, "tell", 4, True),
        (evolve, "evaluate_mean", 1, False),
        (evolve, "evaluate_mean", 2, True),
        (Run, "log", 4, True),  # logged, but not in the checkpoint
        (evolve, "save_tensors", 4, False),
        (evolve, "save_tensors", 3, True),
        (Progress, "close", 1, True),  # everything but the controller
        (evolve, "save_controller", 1, True),  # everything but the marker
    ],
)
def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, uninterrupted, owner, name, call, after):
    with prepare(tmp_path) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, owner, name, call, after=after)
            experiment.run_stage("evolve")
        assert not experiment.is_done("evolve")
        experiment.run_stage("evolve")
        assert outcome(experiment) == uninterrupted


def whole_and_cut(folder, owner, name, call, **changes):
    """Outcomes of a run that was not interrupted and of one that was, in the folder ``cut``."""
    outcomes = []
    for run in ("whole", "cut"):
        with prepare(folder / run, **changes) as experiment:
            if run == "cut":
                with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    interrupt(patch, owner, name, call)
                    experiment.run_stage("evolve")
            experiment.run_stage("evolve")
            outcomes.append(outcome(experiment))
    return outcomes


def test_along_principal_components_too(tmp_path, uninterrupted):
    whole, cut = whole_and_cut(tmp_path, CMAES, "tell", 4, pca_components=5)
    assert whole == cut != uninterrupted
    with Run(tmp_path / "cut") as experiment:
        basis = load_tensors(experiment.path("evolve", "coordinates.safetensors"))[0]["basis"].numpy()
        _, params, _ = load_controller(experiment.path("evolve", "controller.safetensors"))
        first = evolve.first_generation(experiment)
    for found in (params, *first):  # nothing but the components
        left = found - basis @ np.linalg.lstsq(basis, found, rcond=None)[0]
        assert np.abs(left).max() < 1e-5 * np.abs(found).max()


def test_dreams_on_a_gpu_are_those_of_pytorch(tmp_path, monkeypatch):
    """All of the stage but the device itself: PyTorch's dream, on the CPU here."""
    monkeypatch.setattr("worldmodels.pipeline.evaluators.gpu", lambda: torch.device("cpu"))
    whole, cut = whole_and_cut(
        tmp_path, TorchDream, "rollout", 4, device="cuda", termination="expected", common_random_numbers=True
    )
    assert whole == cut
    assert whole[2]["termination"] == "expected" and whole[2]["device"] == "cpu"  # what it ran on
    with prepare(tmp_path / "native", termination="expected", common_random_numbers=True) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, Dream, "rollout", 4)
            experiment.run_stage("evolve")
    config = override(experiment.config, {"evolve": {"device": "cuda"}})
    with pytest.raises(ValueError, match=r"evolve has partial outputs with other settings \(device\)"):
        Run(tmp_path / "native", config)
    (tmp_path / "native" / "stages" / "evolve.begun.json").unlink()  # as another machine's "cuda" is no other setting
    with (
        Run(tmp_path / "native", config) as experiment,
        pytest.raises(
            ValueError, match=r"expected to resume with \{.*'termination': 'expected'.*\}, got .*'device': 'cpu'"
        ),
    ):
        experiment.run_stage("evolve")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_gpu_that_is_not_there_is_missed_before_anything_is_dreamt(tmp_path):
    with (
        prepare(tmp_path, device="cuda") as experiment,
        pytest.raises(ValueError, match=r"evolve\.device: expected cpu, as there is no CUDA device here, got cuda"),
    ):
        experiment.run_stage("evolve")


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"evaluate_in": "environment"}])
def test_what_a_gpu_cannot_do_is_refused_when_a_run_begins(tmp_path, changes):
    with pytest.raises(ValueError, match=r"evolve\.device: expected cpu with evolve.precision .*, got cuda"):
        prepare(tmp_path, device="cuda", **changes)


def test_along_principal_components_from_another_c(tmp_path, uninterrupted):
    with prepare(tmp_path / "before") as experiment:
        experiment.run_stage("evolve")
    _, params, _ = load_controller(tmp_path / "before" / "evolve" / "controller.safetensors")
    with prepare(tmp_path / "after", pca_components=5, init_from=str(tmp_path / "before"), sigma0=1e-9) as experiment:
        experiment.run_stage("evolve")
    _, found, _ = load_controller(tmp_path / "after" / "evolve" / "controller.safetensors")
    np.testing.assert_allclose(found, params, atol=1e-5)


def test_the_number_of_threads_changes_nothing(tmp_path, uninterrupted):
    with prepare(tmp_path, num_threads=2) as experiment:
        experiment.run_stage("evolve")
        assert outcome(experiment) == uninterrupted


def test_the_seed_changes_everything(tmp_path, uninterrupted):
    with Run(tmp_path, toy_config(seed=1, evolve=SETTINGS)) as experiment:
        write_world(experiment)
        experiment.run_stage("evolve")
        assert outcome(experiment)[0] != uninterrupted[0]
        assert [a["mean"] != b["mean"] for a, b in zip(outcome(experiment)[1], uninterrupted[1], strict=True)] == [
            True
        ] * 7


def wait_for_lines(path, count, process):
    """Waits until metrics.jsonl has ``count`` lines."""
    deadline = time.monotonic() + 60
    while not path.is_file() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(tmp_path):
    generations = 400
    with prepare(tmp_path / "whole", generations=generations) as experiment:
        shutil.copytree(tmp_path / "whole", tmp_path / "killed")
        experiment.run_stage("evolve")
        expected = outcome(experiment)
    folder = tmp_path / "killed"
    for lines in (50, 150):
        process = start("evolve", "--out", folder, cwd=tmp_path)
        wait_for_lines(folder / "metrics.jsonl", lines, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (folder / "stages" / "evolve.json").exists()
    done = command("evolve", "--out", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Run(folder) as experiment:
        assert outcome(experiment) == expected


def test_metrics_say_what_the_dream_gave(tmp_path, uninterrupted):
    """Played again with the public API: CMA-ES asks, the dream answers; the best evaluated mean is kept."""
    weights, lines, summary, _ = uninterrupted
    assert [line["generation"] for line in lines] == list(range(1, 8))
    assert [line["generation"] for line in lines if "evaluation" in line] == [3, 6, 7]
    best = max((line["evaluation"], -line["generation"]) for line in lines if "evaluation" in line)
    assert (summary["score"], summary["generation"]) == (best[0], -best[1])
    assert summary["parameters"] == 4 + 2 * 8

    with prepare(tmp_path) as experiment:
        dream, config = make_dream(experiment), experiment.config.evolve
    es = CMAES(np.zeros(20), config.sigma0, popsize=6, seed=evolve._seed(0, "cma", 0), weight_decay=config.weight_decay)
    means = {}
    for line in lines:
        candidates = es.ask()
        result = dream.rollout(candidates, 3, seed=evolve._seed(0, "dream", line["generation"]), num_threads=1)
        scores = result.returns.astype(np.float64).mean(axis=1)
        assert (line["best"], line["mean"], line["worst"]) == (scores.max(), scores.mean(), scores.min())
        assert line["steps"] == result.lengths.sum()
        es.tell(candidates, -scores)
        assert line["sigma"] == es.sigma
        means[line["generation"]] = es.mean.astype(np.float32)
    (tmp_path / "c.safetensors").write_bytes(weights)
    np.testing.assert_array_equal(load_controller(tmp_path / "c.safetensors")[1], means[summary["generation"]])
    assert len({line["best"] for line in lines}) > 1


def test_the_controller_is_the_mean_that_was_evaluated(tmp_path, uninterrupted):
    (tmp_path / "c.safetensors").write_bytes(uninterrupted[0])
    controller, params, about = load_controller(tmp_path / "c.safetensors")
    assert controller == Controller(4, 8, 1)
    assert params.shape == (20,)
    assert about["score"] == uninterrupted[2]["score"]
    with prepare(tmp_path / "run") as experiment:
        dream, config = make_dream(experiment), experiment.config.evolve
    again = evolve.evaluate_mean(DreamEvaluator(dream, 1), params.astype(np.float64), config, 0)
    assert again == about["score"]


def test_sampled_termination_is_corrected_for_the_weight_that_M_was_trained_with(tmp_path, capsys):
    with prepare(tmp_path, termination="sample") as experiment:
        path = experiment.path("rnn", "rnn.safetensors")
        assert make_dream(experiment).termination == "sample"
        weights = load_model(path, MDNRNN).state_dict()
        lengths = []
        for weight in (1.0, 30.0):
            model = make_mdnrnn(done_pos_weight=weight)
            model.load_state_dict(weights)
            save_model(path, model)
            lengths.append(make_dream(experiment).rollout(np.zeros((8, 20)), 64, seed=0).lengths.mean())
        assert lengths[1] > 2 * lengths[0]
        experiment.run_stage("evolve")
        assert experiment.summary("evolve")["termination"] == "sample"
        _, params, _ = load_controller(experiment.path("evolve", "controller.safetensors"))
        expected = make_dream(experiment).rollout(params[None], 5, seed=0).lengths[0].mean()
    assert main(["dream", str(tmp_path), "--episodes", "5"]) == 0
    assert f": {expected:.0f} +- " in capsys.readouterr().out
    with Run(tmp_path, toy_config(evolve={**SETTINGS, "termination": "sample", "generations": 8})) as experiment:
        experiment.run_stage("evolve")
    with prepare(tmp_path / "other") as experiment:
        assert make_dream(experiment).termination == "threshold"


def test_expected_returns_are_scores_alone(tmp_path):
    """CMA-ES maximizes them; dreams that are played step by step have sampled termination."""
    with prepare(tmp_path, termination="expected") as experiment:
        assert make_dream(experiment).termination == "sample"
        assert dream_evaluator(experiment).dream.termination == "expected"
        experiment.run_stage("evolve")
        summary = experiment.summary("evolve")
        _, params, _ = load_controller(experiment.path("evolve", "controller.safetensors"))
        dream = make_dream(experiment, termination="expected")
    assert summary["termination"] == "expected"
    again = evolve.evaluate_mean(DreamEvaluator(dream, 1), params.astype(np.float64), experiment.config.evolve, 0)
    assert again == summary["score"]


def test_selection_makes_dreams_longer(tmp_path):
    """Against the same number of controllers that are drawn and never selected."""
    with prepare(tmp_path, generations=30, popsize=16, episodes=8, max_steps=100, sigma0=0.5) as experiment:
        experiment.run_stage("evolve")
        lines = experiment.metrics("evolve")
        dream = make_dream(experiment)
    drawn = np.random.default_rng(0).normal(0, 0.5, (200, 20))
    random = dream.rollout(drawn, 8, seed=1, num_threads=1).returns.mean(axis=1)
    late = np.mean([line["mean"] for line in lines[-5:]])
    assert late > random.mean() + 2 * random.std()


def test_common_random_numbers_are_common(tmp_path):
    """Equal candidates score the same under common random numbers, and not under their own."""
    for common in (True, False):
        settings = {"generations": 1, "popsize": 6, "sigma0": 1e-12}  # all candidates are the mean
        with prepare(tmp_path / str(common), common_random_numbers=common, **settings) as experiment:
            experiment.run_stage("evolve")
            (line,) = experiment.metrics("evolve")
        assert (line["best"] == line["worst"]) == common


def test_weight_decay_keeps_the_weights_small(tmp_path):
    """The released code has the sign the other way round."""
    sizes = {}
    for decay in (0.0, 1e4):
        with prepare(tmp_path / str(decay), weight_decay=decay, generations=30) as experiment:
            experiment.run_stage("evolve")
            weights = load_controller(experiment.path("evolve", "controller.safetensors"))[1]
            sizes[decay] = float(np.mean(weights**2))
    assert sizes[1e4] < 0.5 * sizes[0.0]


@pytest.mark.parametrize("first", [6, 5])
def test_more_generations_go_on_from_the_checkpoint(tmp_path, first):
    """The longer run is the one that would have been; only the line of the last generation had a score more."""
    with prepare(tmp_path / "long", generations=9) as experiment:
        experiment.run_stage("evolve")
        expected = outcome(experiment)
    with prepare(tmp_path / "short", generations=first) as experiment:
        experiment.run_stage("evolve")
        config = override(experiment.config, {"evolve": {"generations": 9}})
    with Run(tmp_path / "short", config) as experiment:
        experiment.run_stage("evolve")
        weights, lines, *rest = outcome(experiment)
    if first % 3:
        del lines[first - 1]["evaluation"]
    assert (weights, lines, *rest) == expected


@pytest.mark.parametrize(("cut", "least"), [(2, 3), (4, 4)])
def test_fewer_generations_than_have_run_are_refused(tmp_path, cut, least):
    """A mean is evaluated after the third; before it there is no C. The last one is evaluated."""
    with prepare(tmp_path) as experiment, pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, CMAES, "ask", cut + 1)
        experiment.run_stage("evolve")
    config = override(experiment.config, {"evolve": {"generations": least - 1}})
    said = rf"^evolve\.generations: expected at least {least}, as {cut} are complete, got {least - 1}"
    with Run(tmp_path, config) as experiment, pytest.raises(ValueError, match=said):
        experiment.run_stage("evolve")
    with Run(tmp_path, override(config, {"evolve": {"generations": least}})) as experiment:
        experiment.run_stage("evolve")
        found = load_tensors(experiment.path("evolve", "means.safetensors"))[1]["generations"]
        assert found == [generation for generation in (3, 4) if generation <= least]


def test_an_extension_that_cannot_run_keeps_the_results(tmp_path):
    with prepare(tmp_path) as experiment:
        experiment.run_stage("evolve")
        mark_done(experiment, "evaluate")
        experiment.path("results.json").touch()
        config = override(experiment.config, {"evolve": {"generations": 9}})
    checkpoint = tmp_path / "evolve" / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-1])
    with Run(tmp_path, config) as experiment:
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors"):
            experiment.run_stage("evolve")
        assert experiment.path("results.json").exists() and experiment.is_done("evaluate")
        checkpoint.write_bytes(whole)
        experiment.run_stage("evolve")
        assert not experiment.path("results.json").exists() and not experiment.is_done("evaluate")


def test_c_continues_one_of_its_own_architecture(tmp_path):
    """Without z or without c, C has as many parameters."""
    with prepare(tmp_path / "first", features="zh") as experiment:
        experiment.run_stage("evolve")
    said = r"^evolve\.init_from: expected Controller.*features='zc'.*, got Controller.*features='zh'"
    with pytest.raises(ValueError, match=said):
        prepare(tmp_path / "second", features="zc", init_from=str(tmp_path / "first"))


def test_where_a_search_began_is_kept(tmp_path):
    """The first generation can be asked for again when the run it began from is gone, or is another by now."""
    with prepare(tmp_path / "before") as experiment:
        experiment.run_stage("evolve")
    with prepare(tmp_path / "after", init_from=str(tmp_path / "before")) as experiment:
        experiment.run_stage("evolve")
        expected = evolve.first_generation(experiment)
        shutil.rmtree(tmp_path / "before")
        np.testing.assert_array_equal(evolve.first_generation(experiment), expected)


def test_a_damaged_checkpoint_is_named(tmp_path):
    with prepare(tmp_path) as experiment:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, evolve, "save_tensors", 2, after=True)
            experiment.run_stage("evolve")
        checkpoint = experiment.path("evolve", "checkpoint.safetensors")
        tensors, metadata = load_tensors(checkpoint)
        del tensors["origin"]
        save_tensors(checkpoint, tensors, metadata)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors: expected a checkpoint of .* got KeyError"):
            experiment.run_stage("evolve")
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors: expected safetensors"):
            experiment.run_stage("evolve")


def test_lines_are_json_with_a_time(tmp_path, uninterrupted):
    with prepare(tmp_path) as experiment:
        experiment.run_stage("evolve")
        text = experiment.path("metrics.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if line["stage"] != "profile"]
    assert len(lines) == 7
    for line in lines:
        assert line["stage"] == "evolve"
        assert line["seconds"] >= 0
        assert line["best"] >= line["mean"] >= line["worst"]


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_precision_auto_is_bfloat16_where_the_cpu_has_native_support(monkeypatch, has_bfloat16):
    there = ["float32", "bfloat16"] if has_bfloat16 else ["float32"]
    monkeypatch.setattr("worldmodels.pipeline.evaluators.precisions", lambda: there)
    assert resolve_precision("auto") == there[-1]
    assert [resolve_precision(precision) for precision in ("float32", "bfloat16")] == ["float32", "bfloat16"]
