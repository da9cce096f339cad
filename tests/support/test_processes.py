"""Ctrl-C that Python drops, and in child processes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from worldmodels.support.processes import Terminated, check_sigint, keep_sigint
from worldmodels.support.progress import Progress


class _Interrupted:
    """An object in whose destructor Ctrl-C is pressed."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def drop_an_interrupt(monkeypatch):
    dropped = []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda error: dropped.append(error.exc_type))
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
    check_sigint()
    with keep_sigint():
        check_sigint()


class Terminal(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self):
        return True

    def fileno(self):
        return 2


def test_a_line_that_is_rewritten_fits_the_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    progress = Progress("evolve", 4000, "generations")
    progress.update(1234, "best 861, mean 702, 123,456 dream steps/s, and more of it")
    assert len(terminal.getvalue()) == 80 and terminal.getvalue().startswith("\r      evolve  1,234/4,000 generations")
    progress.close(1236, "x" * 80)
    assert terminal.getvalue().endswith("x" * 80 + "\n")


def test_a_dropped_keyboard_interrupt_is_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: printed.append(error.exc_type))
    hook = sys.unraisablehook
    with keep_sigint():
        _Interrupted()
        with pytest.raises(KeyboardInterrupt):
            check_sigint()
        sys.unraisablehook(SimpleNamespace(exc_type=OSError, exc_value=OSError()))
    assert printed == [OSError] and sys.unraisablehook is hook


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


def test_the_first_spawned_process_has_sigint_blocked(tmp_path):
    script = tmp_path / "first.py"
    script.write_text(
        "import multiprocessing, signal\n"
        "from worldmodels.support.processes import spawn\n"
        "def masked(pipe):\n"
        "    pipe.send(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set()))\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    ours, theirs = context.Pipe()\n"
        "    process = context.Process(target=masked, args=(theirs,))\n"
        "    spawn(process)\n"
        "    theirs.close()\n"
        "    print(ours.recv(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set()))\n"
        "    process.join()\n"
    )
    told = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert told.stdout.split() == ["True", "False"], told.stderr
