"""Documentation: one schema of results, tables that agree with their files, sizes, links, and code that fits a page."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = sorted((DOCS / "results").glob("*.json"))
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NOTES = sorted((DOCS / "lab_notes").glob("*.md"))
PLAYERS = {"before", "random", "collecting", "noop", "left", "right", "full gas"}
KEYS = {"agent", "dream", "environment", "versions", "seeds", "preset", "provenance", *PLAYERS}
# A figure and the column it stands in: 817 +- 445, 691 to 944, 1,100.
NUMBER = r"-?[\d,]+"
LINK = re.compile(r"\(([./]*results/([\w.]+\.json))\)")


def named(path):
    return str(path.relative_to(ROOT))


def number(text):
    return int(text.replace(",", ""))


def load(path):
    with path.open() as file:
        return json.load(file)


def check_scores(entry, known):
    """Scores and the figures that follow from them; without scores, the figures and the number of episodes."""
    assert set(entry) <= {"scores", "mean", "std", "ci95", "policy", "episodes"} | known
    if "scores" not in entry:
        assert math.isfinite(entry["mean"]) and entry["std"] > 0
        assert entry.get("episodes", 1) > 0
        return
    scores = np.array(entry["scores"], float)
    half = student.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / len(scores) ** 0.5
    interval = [max(scores.mean() - half, scores.min()), min(scores.mean() + half, scores.max())]
    assert entry["mean"] == pytest.approx(scores.mean(), abs=1e-2)
    assert entry["std"] == pytest.approx(scores.std(ddof=1), abs=1e-2)
    assert entry["ci95"] == pytest.approx(interval, abs=1e-2)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_fit_one_schema(path):
    results = load(path)
    assert {"agent", "provenance"} <= set(results) <= KEYS
    for name in {"agent", *PLAYERS} & set(results):
        check_scores(results[name], set())
        assert ("policy" in results[name]) == (name != "agent")
    if "dream" in results:
        assert set(results["dream"]) <= {"score", "temperature", "precision", "generation", "evaluation"}
        check_scores(results["dream"].get("evaluation") or {"mean": 0.0, "std": 1.0}, set())
    if "environment" in results:
        assert re.fullmatch(r"(?:[\w-]+/)?[A-Z]\w+-v\d+", results["environment"]["id"])
    provenance = results["provenance"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", provenance["date"]) and provenance["command"]
    assert set(provenance) <= {
        *("command", "date", "cpu", "training_seed", "seconds", "stage_seconds"),
        *("evolve_seconds", "weights", "note"),
    }


def cited_rows():
    """Table rows that link to a file of results: page, row by column title, and the file."""
    for page in PAGES:
        titles = None
        for line in page.read_text().splitlines():
            if not line.startswith("|"):
                titles = None
                continue
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if titles is None:
                titles = cells
            elif link := LINK.search(line):
                yield page, dict(zip(titles, cells, strict=True)), link.group(2)


ROWS = list(cited_rows())


@pytest.mark.parametrize(
    ("page", "row", "name"), ROWS, ids=[f"{named(page)}:{name}:{index}" for index, (page, _, name) in enumerate(ROWS)]
)
def test_tables_agree_with_their_files(page, row, name):
    results = load(DOCS / "results" / name)
    agent = results["agent"]
    score = row.get("score") or row["in the game"]
    found = re.search(rf"({NUMBER})(?: \+- ({NUMBER}))?", LINK.sub("", score))
    assert found and number(found.group(1)) == round(agent["mean"])
    if found.group(2):
        assert number(found.group(2)) == round(agent["std"])
    low, high = re.fullmatch(rf"({NUMBER}) to ({NUMBER})", row["95 % interval"]).groups()
    assert [number(low), number(high)] == [round(bound) for bound in agent["ci95"]]
    assert number(row["n"]) == (len(agent["scores"]) if "scores" in agent else agent["episodes"])
    dream = row.get("in the dream", "")
    if "+-" in dream:
        evaluation = results["dream"]["evaluation"]
        assert [number(part) for part in dream.split(" +- ")] == [round(evaluation["mean"]), round(evaluation["std"])]


def test_scores_in_sentences_are_those_of_a_table():
    rows = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("|")]
    stated = [
        (page, *found.groups())
        for page in PAGES
        for found in re.finditer(r"\*\*(\d+)\*\* \((\d+ to \d+)[,)]", " ".join(page.read_text().split()))
    ]
    assert len(stated) > 2
    for page, mean, interval in stated:
        assert any(re.search(rf"\b{mean}\b", row) and interval in row for row in rows), (page, mean, interval)


def test_every_file_of_results_is_cited():
    assert len(ROWS) > len(RESULTS) > 30
    text = "".join(page.read_text() for page in PAGES)
    assert [path.name for path in RESULTS if f"results/{path.name}" not in text] == []


def test_readme_tables_agree_with_the_files():
    text = (ROOT / "README.md").read_text()
    names = [f"takecover_quick_5000_episodes{seed}.json" for seed in ("", "_seed_1", "_seed_2", "_seed_3", "_seed_4")]
    means = [load(DOCS / "results" / name)["agent"]["mean"] for name in names]
    assert f"training seeds of `quick`; the five average {sum(means) / 5:.0f}." in text
    for name in ["pretrained_agent", "pretrained", "full", "quick_5000_episodes"]:
        agent = load(DOCS / "results" / f"takecover_{name}.json")["agent"]
        low, high = (f"{bound:.0f}" for bound in agent["ci95"])
        figures = f"{agent['mean']:.0f} +- {agent['std']:.0f} | {low} to {high} | {len(agent['scores']):,} |"
        assert figures in text
    results = load(DOCS / "results" / "takecover_pretrained.json")
    for name in ("agent", "before", "collecting"):
        low, high = (f"{bound:.0f}" for bound in results[name]["ci95"])
        assert f"| {results[name]['mean']:.0f} | {low} to {high} |" in text


def test_the_readme_fits_a_few_screens():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_files_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        # The animation of the README is drawn by hand from a recorded game.
        if "://" not in target and not target.endswith("takecover.gif"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES[1:], ids=named)
def test_code_fits_a_page_of_1280_pixels(page):
    fenced = False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or (line.startswith("    ") and not line.lstrip().startswith(("-", "*", "|"))):
            assert len(line) <= 84, line  # 80 characters and Markdown's indentation


@pytest.mark.parametrize("page", NOTES, ids=named)
def test_lab_notes_are_not_searched_and_open_with_question_and_answer(page):
    text = page.read_text()
    assert text.startswith("---\nsearch:\n  exclude: true\n---\n")
    if page.stem != "index":
        opening = text.split("\n\n")[2]
        assert re.match(r"\*\d{4}-\d\d-\d\d\.\* \*\*Question:\*\* .+\?\s+\*\*Answer:\*\* ", opening, re.DOTALL)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in PAGES[1:] if str(page.relative_to(DOCS)) not in text] == []
