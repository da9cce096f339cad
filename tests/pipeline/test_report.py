"""The report page: tables, alt texts, captions, dark mode, its command; and what `run` prints before and after."""

import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import mark_done, toy_config, write_world
from measurements import MEASURED
from worldmodels.analysis import figures
from worldmodels.analysis.animation import save_gif
from worldmodels.analysis.recording import Recording
from worldmodels.cli import arguments, stages
from worldmodels.models.controller import Controller
from worldmodels.models.weights import save_tensors
from worldmodels.pipeline import page, report, tasks
from worldmodels.pipeline.config import RoundsConfig, override
from worldmodels.pipeline.report import PAGE, write_report
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.verdict import format_command
from worldmodels.support.files import write_json
from worldmodels.web.page import wasm_is_built


class Page(HTMLParser):
    """Elements of a page with those around them; an element that is not closed is an error."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        assert self.open == ["html"]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag == "html":
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag):
        return [(attrs, above) for name, attrs, above in self.elements if name == tag]


def write_run(folder, *, task="takecover", check=MEASURED["check"], results=None, **about):
    """A run with the files that its report reads, and its report."""
    if task == "takecover":
        config = replace(toy_config(), preset="paper", **about)
    else:
        config = replace(tasks.preset(task, "quick"), rounds=RoundsConfig())
    with Run(folder, config) as run:
        write_world(run)
        actions = len(run.task.actions)
        controller = Controller(4, 8, 1, features=config.evolve.features, bias=config.evolve.bias)
        path = run.path("evolve", "controller.safetensors")
        save_tensors(path, {"params": torch.zeros(controller.size)}, {"config": dict(vars(controller))})
        mark_done(run, "check_dream", "evolve", "evaluate")
        write_json(run.path("results.json"), {**MEASURED["results"], **(results or {})})
        write_json(run.path("check_dream", "check_dream.json"), check)
        write_json(run.path("evaluate", "episode.json"), MEASURED["episode"])
        write_json(run.path("vae", "quality.json"), MEASURED["vae"])
        write_json(run.path("rnn", "quality.json"), MEASURED["rnn"])
        pictures = np.zeros((3, 64, 64, 3), np.uint8)
        recording = Recording({"game": pictures}, np.zeros((3, actions), np.float32), names=run.task.actions)
        save_gif(run.path("evaluate", "episode.gif"), recording)
        figures.frames(run.path("evaluate", "frames.png"), pictures, pictures)
        run.log("evolve", generation=1, best=30, mean=20, worst=10)
        write_report(run)
    return Page((folder / PAGE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, write_run(folder)


def test_tables_are_tables_that_scroll_in_their_own_container(made):
    _, shown = made
    assert not shown.all("pre")
    tables = shown.all("table")
    assert len(tables) >= 8
    containers = [attrs for attrs, _ in shown.all("div") if attrs.get("class") == "scroll"]
    assert len(containers) == len(tables) and all(
        attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in containers
    )
    assert {attrs["scope"] for attrs, _ in shown.all("th")} == {"row", "col"}
    words = "".join(shown.text)
    for title in (
        "95 % interval",
        "the paper's agent",
        "1092 \u00b1 556",
        "random (uniform)",
        "difference",
        "Versions",
    ):
        assert title in words


def test_raw_numbers_are_hidden_until_they_are_asked_for(made):
    hidden = [above for _, above in made[1].all("table") if "details" in above]
    assert len(hidden) == 5 and len(made[1].all("details")) == 1
    assert "calibration of the termination probability" in "".join(made[1].text)


def test_every_picture_has_an_alternative_text_and_a_caption_that_says_what_good_looks_like(made):
    _, shown = made
    pictures = shown.all("img")
    assert len(pictures) == 9
    texts = [attrs["alt"] for attrs, _ in pictures]
    assert len(set(texts)) == len(texts) and all(len(text) > 20 for text in texts)
    assert all(above[-1] == "figure" for _, above in pictures)
    captions = re.findall(r'alt="[^"]+"><figcaption>([^<]+)</figcaption>', (made[0] / PAGE).read_text(encoding="utf-8"))
    assert len(captions) == len(pictures)
    assert all(re.search("good|should|Good", caption) for caption in captions), captions


def test_the_game_and_the_dream_are_next_to_each_other(made):
    row = [attrs for attrs, above in made[1].all("img") if ("div" in above and "figure" in above)]
    assert [attrs["src"][:14] for attrs in row] == ["data:image/gif"] * 2


def test_the_page_is_light_and_dark_and_fetches_nothing(made):
    text = (made[0] / PAGE).read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text and '<meta name="color-scheme" content="light dark">' in text
    assert not re.search(r'(src|href)="(?!data:|dream.html")', text) and "<script" not in text and "@import" not in text
    light, dark = (set(re.findall(r"(--\w+): ", part)) for part in text.split("prefers-color-scheme: dark")[:2])
    assert light and light == dark


def test_the_dream_can_be_played(made, tmp_path, monkeypatch):
    page = made[0] / "report" / "dream.html"
    if wasm_is_built():
        assert [attrs["href"] for attrs, _ in made[1].all("a")] == [page.name]
        assert "Play inside the dream" in "".join(made[1].text) and "TakeCover" in page.read_text()[:2000]
    monkeypatch.setattr(report, "wasm_is_built", lambda: False)
    shown = write_run(tmp_path / "run")
    assert not shown.all("a") and f"worldmodels web {tmp_path / 'run'}" in "".join(shown.text)


def test_the_first_lines_say_what_is_shown(made):
    words = "".join(made[1].text).split("Scores in the real environment")[0]
    for part in (
        "dodges fireballs",
        "V, a variational",
        "M, a recurrent",
        "C, a small controller",
        "CMA-ES",
        "Made on 20",
    ):
        assert part in words
    assert "Three scores differ" in "".join(made[1].text)


def test_words_of_the_field(made):
    words = "".join(made[1].text).replace(MEASURED["check"]["warnings"][0], "").lower()
    for word in (
        "stands beside",
        "liveliest",
        "fares",
        "without the weight",
        "looks at nothing",
        "stays",
        "makes of it",
    ):
        assert word not in words
    for word in ("open-loop", "reconstruction", "termination probability"):
        assert word in words


def test_a_survival_task_has_no_picture_of_its_step_number(made, tmp_path):
    """The cumulative reward of TakeCover is y = x; that of a task with other rewards is drawn."""
    assert not (made[0] / "report" / "episode.png").exists()
    shown = write_run(tmp_path, task="pendulum", check={**MEASURED["check"], "policies": {}, "warnings": []})
    assert (tmp_path / "report" / "episode.png").is_file()
    words = "".join(shown.text)
    assert "Cumulative reward" in words and "M predicts no reward" in words and "the paper" not in words


def test_generations_of_an_abandoned_extension_are_not_drawn(tmp_path, monkeypatch):
    write_run(tmp_path)
    drawn = []
    monkeypatch.setattr(figures, "evolution", lambda path, generations, *_: drawn.extend(generations))
    with Run(tmp_path) as run:
        for generation in range(2, run.config.evolve.generations + 3):
            run.log("evolve", generation=generation, best=30, mean=20, worst=10)
        write_report(run)
        assert [line.generation for line in drawn] == list(range(1, run.config.evolve.generations + 1))


def test_what_comes_from_files_is_escaped(tmp_path):
    check = {**MEASURED["check"], "warnings": ["<script>alert(1)</script> & more"]}
    shown = write_run(tmp_path, check=check, results={"versions": {"<b>numpy": '"2"'}})
    assert not shown.all("script") and not shown.all("b")
    assert "<script>alert(1)</script> & more" in "".join(shown.text)


def test_figures_are_narrow_enough_for_a_phone(made):
    """At 390 pixels nothing is smaller than half of its size at full width."""
    for path in (made[0] / "report").glob("*.png"):
        with Image.open(path) as image:
            assert image.size[0] <= 1000, path
    with Image.open(made[0] / "report" / "quality.png") as image:
        assert image.size[1] > 1.5 * image.size[0]  # its three plots are stacked


def test_the_command_of_a_run_makes_its_settings(tmp_path):
    """What the page names, parsed again, is the run's configuration."""
    preset = tasks.preset("takecover", "pretrained")
    config = replace(
        preset,
        seed=7,
        evolve=replace(preset.evolve, temperature=0.1, bias=True, common_random_numbers=False),
        check_dream=replace(preset.check_dream, dream_episodes=3),
    )
    words = shlex.split(format_command(config, tmp_path / "a run"))
    assert words[0] == "worldmodels"
    options = arguments.parse(words[1:])
    changes = {}
    for key, value in vars(options).items():
        section, dot, name = key.partition(".")
        if dot:
            changes.setdefault(section, {})[name] = value
    assert override(stages._config(options, tmp_path / "new", {}), changes) == config
    assert options.out == str(tmp_path / "a run")
    assert shlex.split(format_command(preset, tmp_path))[1:] == [
        "run", "takecover", "--preset", "pretrained", "--out", str(tmp_path),
    ]  # fmt: skip


def test_text_is_escaped_in_every_element():
    bad = '<i>"&'
    made = [page.text(bad), page.notice(bad, "warning"), page.heading(bad), page.details(bad), page.code(bad)]
    made.append(page.table(bad, [bad], [[bad, bad]]))
    for element in made:
        assert "<i>" not in element and "&lt;i&gt;" in element


@pytest.mark.parametrize(
    ("done", "preset", "change", "said"),
    [
        ((), "pretrained", {}, "8 stages, about 4 minutes on 2 cores of an AMD EPYC (Zen 5)"),
        ((), "pretrained", {"seed": 3}, "8 stages, about 4 minutes on 2 cores of an AMD EPYC (Zen 5)"),
        ((), "pretrained", {"generations": 400},
         "8 stages (all 8 with the settings of preset pretrained: about 4 minutes on 2 cores of an AMD EPYC (Zen 5))"),
        (("collect", "train_vae", "encode"), "quick", {},
         "5 of 8 stages left (all 8 with the settings of preset quick: about 19 minutes on 2 cores of an AMD EPYC "
         "(Zen 5))"),
        ((), "small", {}, "8 stages, about 28 minutes on 2 cores of an AMD EPYC (Zen 5)"),
        ((), "paper", {}, "8 stages"),
    ],
)  # fmt: skip
def test_a_run_says_how_long_it_takes(tmp_path, capsys, done, preset, change, said):
    config = tasks.preset("takecover", preset)
    if "generations" in change:
        config = replace(config, evolve=replace(config.evolve, **change))
    else:
        config = replace(config, **change)
    with Run(tmp_path, config) as run:
        mark_done(run, *done)
        capsys.readouterr()
        stages._print_estimate(run)
    captured = capsys.readouterr()
    assert captured.err == said + "\n" and captured.out == ""


def test_tasks_name_minutes_of_presets_that_they_have():
    for name in tasks.names():
        task = tasks.get(name)
        assert set(task.durations) <= set(task.presets)
        assert all(
            re.fullmatch(r"\d+ minutes on (one core|\d+ cores)( of an? [^.]+)?", text)
            for text in task.durations.values()
        )
        assert task.description.endswith(".")
