"""Report: everything the run made and measured, as pictures and one HTML page that can be sent to someone."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import numpy as np

from worldmodels.analysis import figures, quality
from worldmodels.analysis.recording import from_dream, save_gif
from worldmodels.analysis.stats import compare, format_interval
from worldmodels.dream.world_model import load_world_model
from worldmodels.models.agent import load_controller
from worldmodels.models.vae import ConvVAE, decode
from worldmodels.models.weights import load_model
from worldmodels.pipeline import records as measured
from worldmodels.pipeline.evaluators import make_dream, playback_precision
from worldmodels.pipeline.run import STAGES, Experiment, command
from worldmodels.pipeline.stages.check_dream import format_table as dream_table
from worldmodels.pipeline.stages.evaluate import format_table as score_table
from worldmodels.pipeline.tasks import Task
from worldmodels.support.files import atomic_path


def run(experiment: Experiment) -> dict[str, Any]:
    """Draws the pictures into ``report/`` and binds them into ``report/index.html``."""
    results = measured.read_results(experiment.path("results.json"), experiment.config.evolve.evaluate_in)
    check = measured.read_measured(experiment.path("check_dream", "check_dream.json"), measured.CHECK)
    folder = experiment.path("report")
    folder.mkdir(exist_ok=True)
    dreamed = _draw_dream(experiment, folder / "dream_strip.png", folder / "dream.gif")
    config, score = experiment.config, experiment.task.score
    if not config.world_model:
        lines = (experiment.metrics(f"train-{name}", measured.STEP) for name in ("vae", "rnn"))
        figures.losses(folder / "losses.png", *lines)
    goodness = _quality(experiment)
    if goodness:
        figures.quality(folder / "quality.png", *goodness)
    where = f"inside the dream (temperature {config.evolve.temperature})"
    if config.evolve.evaluate_in == "environment":
        where = "in the real environment"
    generations = experiment.metrics("evolve", measured.GENERATION)
    curve = results.get("curve") or []
    figures.evolution(folder / "evolution.png", generations, f"Evolution of C {where}", score, curve)
    if check["policies"]:
        figures.reality_check(folder / "reality_check.png", check["policies"], check["temperature"], score)
    figures.scores(folder / "scores.png", results, score)
    recorded = experiment.path("evaluate", "episode.json")
    if recorded.is_file():
        figures.episode(folder / "episode.png", measured.read_measured(recorded, measured.EPISODE), score)
    page = _page(experiment, folder, results, check, dreamed, goodness)
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"report: {folder / 'index.html'}")
    return {"page": "report/index.html", "dreamed_steps": dreamed}


def _draw_dream(experiment: Experiment, strip: Path, animation: Path) -> int:
    """One dream of the evolved controller, as a strip and as an animation; returns its length."""
    config = experiment.config
    _, params, _ = load_controller(experiment.path("evolve", "controller.safetensors"))
    dream = make_dream(experiment, precision=playback_precision(experiment))
    trace = dream.trace(params, seed=config.seed, max_steps=min(config.evolve.max_steps, 2**20))
    vae = load_model(experiment.path("vae", "vae.safetensors"), ConvVAE)
    length = len(trace.action)
    steps = np.unique(np.linspace(0, length, 24).astype(int))
    figures.film_strip(strip, decode(vae, trace.z[steps]), [int(step) for step in steps])
    weight = load_world_model(experiment.folder).mdnrnn.done_pos_weight
    recording = from_dream(dream, trace, vae, weight, config.report.dream_steps, **experiment.task.look)
    save_gif(animation, recording)
    return length


def _quality(experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What train-vae and train-rnn measured of V and of M; None for a run that is older than these measures."""
    paths = experiment.path("vae", "quality.json"), experiment.path("rnn", "quality.json")
    if not all(path.is_file() for path in paths):
        return None
    shapes = measured.VAE_QUALITY, measured.RNN_QUALITY
    vae, rnn = (measured.read_measured(path, shape) for path, shape in zip(paths, shapes, strict=True))
    return vae, rnn


_OUTCOMES = {"better": "better than", "worse": "worse than", "not distinguishable": "not distinguishable from"}


def format_verdict(results: dict[str, Any], task: Task) -> str:
    """State the agent's score and how it compares with the baselines, each by the interval of the difference.

    Args:
        results: The content of ``results.json``.
        task: The task, for the unit of a score and the paper's score.
    """
    agent, interval = results["agent"], format_interval(results["agent"])
    count = f"{len(agent['scores'])} episode{'s' if len(agent['scores']) > 1 else ''}"
    about = f"95 % interval {interval}, {count}" if interval else count
    sentences = [f"The agent scores {agent['mean']:.0f} {task.score} in the real environment ({about})."]
    if task.paper_score is not None:
        mean, std = task.paper_score
        sentences.append(f"The paper reports {mean} +- {std} over 100 episodes.")
    labels = {"random": "random play", "collecting": "the collecting policy", "before": "the first generation"}
    found: dict[str, list[str]] = {}
    for name, label in labels.items():
        other = results[name]
        policy = f"'{other['policy']}', " if name != "before" else ""
        outcome = _OUTCOMES[compare(agent["scores"], other["scores"]).outcome]
        found.setdefault(outcome, []).append(f"{label} ({policy}{other['mean']:.0f})")
    sentences += [f"It is {outcome} {' and '.join(others)}." for outcome, others in found.items()]
    return " ".join(sentences)


def _page(
    experiment: Experiment,
    folder: Path,
    results: dict[str, Any],
    check: dict[str, Any],
    dreamed: int,
    goodness: tuple[dict[str, Any], dict[str, Any]] | None,
) -> str:
    config = experiment.config
    dream = results["dream"]
    verdict = format_verdict(results, experiment.task)
    if config.evolve.evaluate_in == "dream":
        verdict += (
            f" Its controller was evolved in the dream alone, where it scores {dream['score']:.0f} at temperature "
            f"{dream['temperature']}."
        )
    else:
        verdict += f" Its controller was evolved in the real environment, to {results['evolved']['score']:.0f}."
    warnings = "".join(f"<p class=warning>{html.escape(text)}</p>" for text in check["warnings"])
    failures = [
        f"<p class=warning>{html.escape(f'{command(stage)}: {failure}')}.</p>"
        for stage in STAGES
        if (failure := experiment.summary(stage).get("failure"))
    ]
    times = []
    for stage in STAGES:
        if experiment.marker(stage).is_file():
            marker = measured.read_measured(experiment.marker(stage), measured.MARKER)
            times.append(f"{command(stage):<12} {marker['seconds']:8.0f} s")
    versions = "\n".join(f"{name:<12} {value}" for name, value in results["versions"].items())

    def picture(path: Path, text: str) -> str:
        kind = path.suffix[1:]
        data = base64.b64encode(path.read_bytes()).decode()
        return (
            f'<figure><img src="data:image/{kind};base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )

    actions = ", ".join(experiment.task.actions)
    parts = [
        f"<h1>World Models: {html.escape(config.task)}, preset {html.escape(config.preset)}</h1>",
        f"<p class=verdict>{html.escape(verdict)}</p>",
        *failures,
        "<h2>In the real game</h2>",
        picture(folder / "scores.png", "Scores of the agent, of the policy that collected and of random play."),
        f"<pre>{html.escape(score_table(results))}</pre>",
        picture(
            experiment.path("evaluate", "episode.gif"),
            f"One episode: what the agent sees, what V makes of it, and its actions ({actions}).",
        ),
        *(
            [
                picture(
                    folder / "episode.png", "The same episode: its return as it adds up, and the way where it is known."
                )
            ]
            if (folder / "episode.png").is_file()
            else []
        ),
        "<h2>What V sees</h2>",
        picture(experiment.path("evaluate", "frames.png"), "Its liveliest real frames above what V makes of them."),
        "<h2>The dream</h2>",
        picture(folder / "dream.gif", "The evolved controller in its dream; no game is running."),
        picture(folder / "dream_strip.png", f"The same dream from its first to its last of {dreamed} steps."),
        "<h2>Can the dream be trusted?</h2>",
        *(
            [
                warnings
                or "<p>No warning: for every open-loop policy the 95 % intervals of dream and game scores overlap, "
                "or the two means are close (survival tasks: within a factor of 1.5; others: within half the range of "
                "the policies' game scores).</p>",
                picture(folder / "reality_check.png", "Policies that look at nothing, in both worlds, 95 % intervals."),
                f"<pre>{html.escape(dream_table(check['policies']))}</pre>",
            ]
            if check["policies"]
            else ["<p>M predicts no reward, so that there is no score of a dream to compare.</p>"]
        ),
        "<h2>Evolution</h2>",
        picture(folder / "evolution.png", "What every generation of CMA-ES scores."),
        "<h2>Training</h2>",
        f"<p>V and M were taken from the world {html.escape(config.world_model)}.</p>"
        if config.world_model
        else picture(folder / "losses.png", "Losses of V and of M, in training and on held-out episodes."),
        "<h2>How good V and M are on episodes they have not seen</h2>",
        *(
            [
                picture(
                    folder / "quality.png",
                    "V's error on pixels that move; how often the end follows at each predicted level; M running free.",
                ),
                f"<pre>{html.escape(quality.format_tables(*goodness))}</pre>",
            ]
            if goodness
            else ["<p>Not measured: V and M were trained by an earlier version.</p>"]
        ),
        "<h2>How it was made</h2>",
        f"<pre>{'<br>'.join(times)}\n\n{html.escape(versions)}\n\nseed {config.seed}; settings: config.json</pre>",
    ]
    return _FRAME.format(title=f"World Models: {html.escape(config.task)}", body="\n".join(parts))


_FRAME = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #22242a; max-width: 60rem; margin: 3rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.7rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #e5e7eb; }}
.verdict {{ font-size: 1.1rem; background: #f3f6fc; border-left: 4px solid #2563eb; padding: .8rem 1rem; }}
.warning {{ background: #fff7ed; border-left: 4px solid #c2410c; padding: .6rem 1rem; }}
figure {{ margin: 1rem 0; }} img {{ max-width: 100%; }} figcaption {{ color: #6b7280; font-size: .9rem; }}
pre {{ background: #f8f9fb; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }}
</style>
{body}
</html>
"""
