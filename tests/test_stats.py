"""Numbers for people: scores, tables, progress."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from worldmodels.progress import Progress
from worldmodels.stats import describe, table


@pytest.mark.parametrize("count", [2, 5, 100])
def test_describe_equals_scipy(count):
    scores = np.random.default_rng(count).gamma(2, 100, count)
    found = describe(scores.tolist())
    assert found["scores"] == scores.tolist()
    assert found["mean"] == pytest.approx(np.mean(scores))
    assert found["std"] == pytest.approx(stats.tstd(scores))
    low, high = stats.t.interval(0.95, count - 1, loc=scores.mean(), scale=stats.sem(scores))
    assert found["ci95"] == pytest.approx([low, high])


def test_the_interval_covers_the_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = describe(rng.normal(3, 2, 6).tolist())["ci95"]
        hits += low < 3 < high
    assert abs(hits / 2000 - 0.95) < 0.015  # three standard errors


def test_a_single_score_has_no_width():
    assert describe([7]) == {"scores": [7.0], "mean": 7.0, "std": 0.0, "ci95": [7.0, 7.0]}


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")], [[1.0], [2.0]]])
def test_bad_scores_are_named(scores):
    with pytest.raises(ValueError, match=r"scores: expected \(N,\) finite numbers"):
        describe(scores)


def test_table_lines_up():
    lines = table(["who", "score"], [["a", "1"], ["longer", "1000"]]).split("\n")
    assert lines == ["who     score", "-------------", "a           1", "longer   1000"]


def test_progress_says_rate_and_time_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress("collect", 1000, "episodes", start=200)
    now[0] += 10
    progress.update(300)  # too soon to say it
    assert capsys.readouterr().err == ""
    now[0] += 30
    progress.update(600, "fine")  # 400 in 40 s
    assert capsys.readouterr().err == "     collect  600/1,000 episodes  10/s  0:40 left  fine\n"
    now[0] += 3600
    progress.close(1000)
    assert "1,000/1,000 episodes  0.22/s  in 1:00:40" in capsys.readouterr().err
