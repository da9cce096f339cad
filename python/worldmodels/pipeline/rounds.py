"""Rounds of own play, the iterative training procedure of the paper (section 5): collect, train V and M, evolve C."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from worldmodels.analysis.stats import format_interval, format_mean
from worldmodels.data.records import DreamCheck, Results, Scores
from worldmodels.pipeline.folder import RunFolder
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.scores import share_scores
from worldmodels.pipeline.stages import NAMES
from worldmodels.support.progress import context


@dataclass(frozen=True)
class RoundResult:
    """Result of a complete round.

    Attributes:
        number: Number of the round.
        episodes: Number of episodes that V and M were trained on, those of earlier rounds included; 0 in a run with a
            given world model.
        check: Scores of open-loop policies in its dream and in the game.
        dream: Scores of C in its dream; None if M predicts no reward.
        game: Scores of the agent in the real environment.
        rnn_loss: Negative log-likelihood of the next latent on M's held-out episodes, in nats per dimension; None in a
            run with a given world model.
        done_recall: Fraction of the held-out terminations that M predicts; None without a termination head, training or
            such terminations.
    """

    number: int
    episodes: int
    check: DreamCheck
    dream: Scores | None
    game: Scores
    rnn_loss: float | None
    done_recall: float | None


def run_all(run: Run) -> None:
    """Run all rounds, or the stages of a run without rounds. What is complete is skipped."""
    run_earlier_rounds(run)
    last = run.given.last_round
    with _round(last, last, run) if last else nullcontext():
        for name in NAMES:
            run.run_stage(name)


def run_earlier_rounds(run: Run) -> None:
    """Run every round before the last, in a run folder of its own, and prepare the run folder for the last one.

    Raises:
        ValueError: The agent of a round has changed since the next round collected its episodes.
    """
    last, previous = run.given.last_round, None
    for number, part in enumerate(run.rounds[:-1]):
        if all(map(part.is_done, NAMES)):
            _follow(part, previous)
            print(f"round {number} of {last}: already complete", file=sys.stderr)
        else:
            with (
                _round(number, last, part),
                Run(part.folder, part.config, force=run.force, log_to=run.log_to) as earlier,
            ):
                _follow(earlier, previous)
                for name in NAMES:
                    earlier.run_stage(name)
        previous = part
    _follow(run, previous)


@contextmanager
def _round(number: int, last: int, part: RunFolder) -> Iterator[None]:
    """Print which round runs, above its tables and in front of its progress."""
    text = f"round {number} of {last}"
    if not all(map(part.is_done, NAMES)):
        print(f"{text}: {part.folder}")
    with context(text):
        yield


def _follow(run: RunFolder, previous: RunFolder | None) -> None:
    """Check that a round's episodes were played by the present C of the previous one, and link that one's scores."""
    if previous is None:
        return
    from worldmodels.pipeline.collection import player_metadata

    player, present = run.summary("collect").get("player"), player_metadata(previous.folder)
    if player is not None and player != present:
        raise ValueError(
            f"{run.folder}: expected a round that builds on the C of {previous.folder}, generation "
            f"{present['generation']}, got its generation {player['generation']}; use another --out, or rerun "
            f"the round with `worldmodels collect --out {shlex.quote(str(run.folder))} --force`"
        )
    share_scores(previous.folder, run.folder, run.task.baselines)


def round_results(run: RunFolder) -> list[RoundResult]:
    """Read the results of the rounds of a run, all of which are complete.

    The refinement has the V and M, and thus the episodes and the losses, of the round before it.
    """
    found: list[RoundResult] = []
    trained: dict[str, Any] = {}
    policies: dict[str, Any] = {}
    for number, part in enumerate(run.rounds):
        results = Results.read(part.path("results.json"))
        if not part.config.world_model:
            trained, policies = part.summary("train_rnn"), part.summary("collect")["policies"]
        found.append(
            RoundResult(
                number=number,
                episodes=sum(entry["episodes"] for entry in policies.values()),
                check=DreamCheck.read(part.path("check_dream", "check_dream.json")),
                dream=results.dream.evaluation if results.dream else None,
                game=results.agent,
                rnn_loss=trained.get("z"),
                done_recall=trained.get("done_recall"),
            )
        )
    return found


#: Header of the rows of :func:`round_rows`.
ROUND_COLUMNS = ("round", "episodes", "M's NLL (nats/dim)", "termination recall", "dream", "game", "95 % interval", "n")


def round_rows(results: Sequence[RoundResult], plus_minus: str) -> list[list[str]]:
    """Format the results of rounds as rows of a table."""
    return [
        [
            str(one.number),
            f"{one.episodes:,}" if one.episodes else "",
            "" if one.rnn_loss is None else f"{one.rnn_loss:.3f}",
            "" if one.done_recall is None else f"{100 * one.done_recall:.0f} %",
            *("" if played is None else format_mean(played, plus_minus) for played in (one.dream, one.game)),
            format_interval(one.game),
            str(len(one.game.scores)),
        ]
        for one in results
    ]
