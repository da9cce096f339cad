"""Ctrl-C that Python drops."""

from __future__ import annotations

import signal
import sys

import pytest

from worldmodels.support.processes import Terminated, check_sigint, keep_sigint
from worldmodels.support.progress import Progress


class _Interrupted:
    """An object in whose destructor Ctrl-C is pressed."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def drop_an_interrupt(monkeypatch):
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: dropped.append(error.exc_type))
    _Interrupted()
    assert dropped == [KeyboardInterrupt]


def test_a_dropped_keyboard_interrupt_is_raised_by_the_next_progress(monkeypatch):
    progress = Progress("stage", 2, "units", shown=False)
    with keep_sigint():
        progress.update(1)
        drop_an_interrupt(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            progress.update(2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_was_dropped_before_is_forgotten(monkeypatch):
    with keep_sigint():
        drop_an_interrupt(monkeypatch)
    with keep_sigint():
        check_sigint()


def test_an_ignored_sigint_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with keep_sigint():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_is_an_interruption_of_its_own():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # tests of clusters leave Ray's handler
    try:
        with keep_sigint():
            with pytest.raises(Terminated):
                signal.raise_signal(signal.SIGTERM)
            with pytest.raises(Terminated):  # as if it had been dropped
                check_sigint()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_of_sigterm_is_kept():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with keep_sigint():
            signal.raise_signal(signal.SIGTERM)
            check_sigint()
    finally:
        signal.signal(signal.SIGTERM, before)
