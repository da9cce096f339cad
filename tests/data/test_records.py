"""Records: the JSON that they are stored as, and errors of other JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from measurements import MEASURED, read
from worldmodels.data.records import DreamScores, EvolvedScore, GenerationLine, PlayerScores, Results, StageRecord
from worldmodels.support.files import write_json

DOCS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", MEASURED)
def test_a_record_is_stored_as_it_was_read(tmp_path, name):
    write_json(tmp_path / "some.json", MEASURED[name])
    record = read(name, tmp_path / "some.json")
    record.write(tmp_path / "other.json")
    assert json.loads((tmp_path / "other.json").read_text()) == MEASURED[name]
    assert read(name, tmp_path / "other.json") == record


def test_what_is_not_measured_is_omitted_or_null():
    line = {"generation": 1, "best": 2.0, "mean": 1.5, "worst": 1}
    assert GenerationLine.from_json(line).to_json() == line
    assert DreamScores(temperature=1.0).to_json() == {"temperature": 1.0, "evaluation": None}
    assert DreamScores.from_json({"temperature": 1.0}) == DreamScores(temperature=1.0)


def test_lines_of_another_form_are_skipped():
    good = {"generation": 1, "best": 2.0, "mean": 1.5, "worst": 1}
    lines = [good, {**good, "best": float("inf")}, {"generation": 1}, {**good, "evaluation": "x"}, 3]
    assert GenerationLine.from_lines(lines) == [GenerationLine.from_json(good)]


def test_players_are_entries_of_their_own():
    entry = {"policy": "full gas", **MEASURED["results"]["agent"]}
    values = {**MEASURED["results"], "full gas": entry, "provenance": {"date": "2026-01-01"}}
    results = Results.from_json(values)
    assert list(results.players) == ["before", "random", "collecting", "full gas"]
    assert results.players["full gas"] == PlayerScores.from_json(entry)
    assert [label for label, _ in results.labelled()] == [
        "agent", "before (uniform)", "random (uniform)", "collecting (uniform)", "full gas",
    ]  # fmt: skip
    assert results.to_json() == {key: values[key] for key in values if key != "provenance"}


def test_the_key_inside_of_older_files_is_read():
    assert EvolvedScore.from_json({"inside": "dream", "score": 1.0}) == EvolvedScore(evaluate_in="dream", score=1.0)


@pytest.mark.parametrize("name", ["quick", "pretrained", "width_512"])
def test_results_of_the_documentation_are_read(name):
    values = json.loads((DOCS / f"takecover_{name}.json").read_text())
    assert Results.read(DOCS / f"takecover_{name}.json").to_json() == {
        key: values[key] for key in values if key != "provenance"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": None}, "settings: expected an object, got None"),
        ({"versions": {"numpy": 2}}, r"versions\.numpy: expected a str, got 2"),
        ({"peak_memory_mb": {"process": 1.5}}, r"peak_memory_mb\.process: expected an integer, got 1\.5"),
        ({"seconds": True}, "seconds: expected a number below 1e100, got True"),
    ],
)
def test_errors_name_file_and_key(tmp_path, change, message):
    path = tmp_path / "collect.json"
    write_json(path, {"settings": {}, "summary": {}, **change})
    with pytest.raises(ValueError, match=rf"collect\.json: {message}"):
        StageRecord.read(path)
    write_json(path, [])
    with pytest.raises(ValueError, match=r"collect\.json: expected an object with settings, summary, got \[\]"):
        StageRecord.read(path)
