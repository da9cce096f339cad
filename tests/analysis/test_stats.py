"""Numbers for people: scores, tables, progress."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from worldmodels.analysis.stats import (
    compare,
    describe,
    format_interval,
    format_mean,
    format_number,
    table,
    termination_rates,
)
from worldmodels.data.records import EnvironmentRecord, PlayerScores, Results, Scores
from worldmodels.pipeline.tasks import get
from worldmodels.pipeline.verdict import format_verdict
from worldmodels.support.progress import Progress


@pytest.mark.parametrize("count", [2, 5, 100])
def test_describe_equals_scipy(count):
    scores = np.random.default_rng(count).gamma(2, 100, count)
    found = describe(scores.tolist())
    assert found.scores == scores.tolist()
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.std == pytest.approx(stats.tstd(scores))
    low, high = stats.t.interval(0.95, count - 1, loc=scores.mean(), scale=stats.sem(scores))
    assert list(found.ci95) == pytest.approx([max(low, scores.min()), min(high, scores.max())])


def test_the_interval_covers_the_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = describe(rng.normal(3, 2, 20).tolist()).ci95
        hits += low < 3 < high
    assert abs(hits / 2000 - 0.95) < 0.015  # three standard errors


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_an_interval_stays_inside_what_is_possible(count):
    """One early death among episodes that reach the limit of 2,100 steps."""
    low, high = describe([2100.0] * (count - 1) + [979.0]).ci95
    assert 979 <= low < high <= 2100


def test_few_episodes_have_no_printed_interval():
    assert format_interval(describe(list(range(19)))) == ""
    assert format_interval(describe(list(range(20)))) == "6.7 to 12.3"


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [
        (822.4, None, "822"), (-30.2, None, "-30"), (9.6, None, "9.6"), (0.24, None, "0.24"), (-0.0341, None, "-0.034"),
        (0.0, None, "0"), (0.24, 900.0, "0"), (0.24, 5.0, "0.2"), (0.0, 0.05, "0"),
        (float("nan"), None, "nan"), (float("-inf"), None, "-inf"),
    ],
)  # fmt: skip
def test_the_digits_of_a_score_come_from_its_scale(value, scale, text):
    assert format_number(value, scale) == text


def test_scores_below_1_are_not_rounded_to_it():
    scores = describe([0.2, 0.3] * 10)
    assert format_mean(scores) == "0.25 +- 0.05" and format_interval(scores) == "0.23 to 0.27"
    assert format_mean(describe([822.0, 600.0])) == "711 +- 157"
    assert format_number(0.25, sign="+") == "+0.25" and format_number(50.5, digits=2) == "50.50"


@pytest.mark.parametrize(
    ("mean", "outcome"), [(300, "better"), (-300, "worse"), (20, "not distinguishable"), (-20, "not distinguishable")]
)
def test_two_players_are_compared_by_the_interval_of_their_difference(mean, outcome):
    rng = np.random.default_rng(3)
    first, second = rng.normal(500 + mean, 100, 30), rng.normal(500, 250, 40)
    found = compare(first.tolist(), second.tolist())
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert found.ci95 == pytest.approx((theirs.low, theirs.high))
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.outcome == outcome


def test_a_comparison_without_spread_or_with_one_episode():
    assert compare([5.0, 5.0], [4.0, 4.0]) == (1.0, (1.0, 1.0), "better")
    assert compare([5.0, 5.0], [5.0, 5.0]) == (0.0, (0.0, 0.0), "not distinguishable")
    assert compare([5000.0], [4.0, 4.0, 4.0]).outcome == "not distinguishable"


def test_equal_scores_of_another_number_are_not_distinguishable():
    """The mean of n equal scores depends on n, by rounding."""
    assert compare([0.1] * 100, [0.1] * 10) == (0.0, (0.0, 0.0), "not distinguishable")
    for count in (1, 2, 3, 10, 100):
        assert describe([0.1] * count) == Scores(scores=[0.1] * count, mean=0.1, std=0.0, ci95=(0.1, 0.1))


def player(mean, std, count, policy):
    rng = np.random.default_rng(round(abs(mean)))
    scores = rng.normal(size=count)
    scores = mean + std * (scores - scores.mean()) / scores.std(ddof=1)
    return PlayerScores(policy=policy, **vars(describe(scores.tolist())))


@pytest.mark.parametrize(
    ("task", "agent", "random", "said"),
    [
        ("takecover", (817, 445), (239, 150), ["95 % interval 691 to 943, 50", "1092 +- 556", "is better than random"]),
        (
            "pendulum",
            (-1466, 209),
            (-1240, 200),
            ["-1466 points", "is worse than random play ('uniform', -1240)"],
        ),
        ("carracing", (-40, 60), (-30, 60), ["906 +- 21", "not distinguishable from random play ('uniform', -30)"]),
    ],
)
def test_the_verdict_of_the_report_follows_the_intervals(task, agent, random, said):
    results = Results(
        agent=player(*agent, 50, "agent"),
        players={
            "random": player(*random, 50, "uniform"),
            "collecting": player(random[0] - 900, 20, 50, "held"),
            "before": player(random[0], 40, 50, "first generation"),
        },
        environment=EnvironmentRecord(),
        versions={},
    )
    text = format_verdict(results, get(task))
    assert all(part in text for part in said), text
    assert "the collecting policy ('held', " in text.split("better than")[1]
    assert ("paper" in text) == (task != "pendulum")


def test_a_single_score_has_no_width():
    assert describe([7]) == Scores(scores=[7.0], mean=7.0, std=0.0, ci95=(7.0, 7.0))


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


def test_terminations_by_age_are_counted_step_by_step():
    rng = np.random.default_rng(3)
    lengths = np.minimum(rng.geometric(0.004, 300), 600).tolist()  # truncated at 600
    edges = [0, 50, 200, 600, 700]
    steps, ended = np.zeros(4), np.zeros(4)
    for length in lengths:
        for step in range(1, length + 1):
            age = np.searchsorted(edges, step) - 1
            steps[age] += 1
            ended[age] += step == length and length < 600
    expected = [1000 * e / s if s >= 1000 else None for e, s in zip(ended, steps, strict=True)]
    assert expected[-1] is None and min(expected[:3]) > 1
    assert termination_rates(lengths, edges, 600) == pytest.approx(expected)
    assert termination_rates([], edges, 600) == [None] * 4
