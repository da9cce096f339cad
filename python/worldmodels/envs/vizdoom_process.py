"""Processes of the ViZDoom engine: their folders, a watchdog, and a reaper that outlives this process."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import vizdoom

from worldmodels.envs import GameLostError

_PATIENCE = 300.0  # seconds until a call counts as hung
_GRACE = 30.0  # seconds until a call must have noticed that its engine died
#: Script that starts an engine in its own folder; its name in /proc is that of the engine.
STARTER = Path(__file__).resolve().with_name("engine") / "vizdoom"
_LOCKS: dict[int, threading.Lock] = {}  # by process: a forked one does not wait for its parent's lock


def starting() -> threading.Lock:
    """Return the lock of this process: two engines started at once can wait for each other forever."""
    return _LOCKS.setdefault(os.getpid(), threading.Lock())


def _temporary_place() -> str:
    """Return Python's folder for temporary files; the working directory only if TMPDIR names it.

    Raises:
        OSError: There is no writable folder.
    """
    wanted = "TMPDIR: expected a folder to write to, for the engine of ViZDoom"
    names = [os.environ.get(name) or "/tmp" for name in ("TMPDIR", "TEMP", "TMP")]
    chosen = [Path(path) for path in (*names, "/tmp", "/var/tmp", "/usr/tmp")]
    try:
        place = Path(tempfile.gettempdir())
        if place.samefile(os.curdir) and not any(path.is_dir() and path.samefile(place) for path in chosen):
            raise OSError(f"{wanted}, got none but the working directory, {place}")
        if not os.access(place, os.W_OK | os.X_OK):
            raise OSError(f"{wanted}, got {place}, which is read-only")
    except FileNotFoundError as error:
        raise OSError(f"{wanted}, got none: {error}") from error
    return str(place)


def remove_folder(folder: Path, owner: int) -> None:
    """Remove an engine's folder, in the process that created it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def engines() -> set[int]:
    """List the ids of the running engines that this process started, if there is a /proc."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().rpartition(") ")
            state, parent = rest.split()[:2]
            if name.endswith("(vizdoom") and int(parent) == os.getpid() and state != "Z":
                found.add(int(folder.name))
    return found


_MARK = "WORLDMODELS_PLAYER"  # environment variable of an engine: its owner
_FOLDER, _ENGINE = "WORLDMODELS_ENGINE_FOLDER", "WORLDMODELS_ENGINE"  # environment variables for the start script
_REAP = """
read -r looks
for look in ${looks:-1 2 3}; do
  for engine in $(grep -lsx vizdoom /proc/[0-9]*/comm); do
    engine=${engine%/comm}
    tr '\\0' '\\n' < $engine/environ | grep -qx "$1" && kill -9 ${engine#/proc/}
  done 2>/dev/null
  [ "$looks" ] || sleep 1
done
rm -rf -- "$2"-*
"""


class _Reaper:
    """Shell that outlives this process, kills its engines and removes their folders.

    An engine whose parent was killed waits for it forever.
    """

    def __init__(self) -> None:
        self._shell: subprocess.Popen[str] | None = None
        self._owner = 0
        self._mark = ""

    def _watch_over_this_process(self, place: str) -> None:
        if self._owner == os.getpid():
            return
        self.leave()  # the reaper of the parent, in a forked process
        self._owner = os.getpid()
        self._mark = f"{self._owner}-{time.time_ns()}"
        line = ["/bin/sh", "-c", _REAP, "reaper", f"{_MARK}={self._mark}", f"{place}/worldmodels-{self._mark}"]
        path = {"PATH": os.defpath}
        self._shell = subprocess.Popen(
            line, stdin=subprocess.PIPE, text=True, env=path, start_new_session=True, cwd="/"
        )
        atexit.register(self._end)

    @contextlib.contextmanager
    def engine_folder(self) -> Iterator[Path]:
        """Mark the engine started in the block as one of this process and create its folder.

        Raises:
            OSError: The folder cannot be created.
        """
        place = _temporary_place()
        self._watch_over_this_process(place)
        folder = Path(tempfile.mkdtemp(prefix=f"worldmodels-{self._mark}-", dir=place))
        os.environ.update({_MARK: self._mark, _FOLDER: str(folder), _ENGINE: _engine_path()})
        try:
            yield folder
        except BaseException:
            remove_folder(folder, os.getpid())
            raise
        finally:
            for name in (_MARK, _FOLDER, _ENGINE):
                del os.environ[name]

    def leave(self) -> None:
        """Close the pipe inherited by a forked process: the parent's shell waits until all copies are closed."""
        if self._shell is not None and self._shell.stdin is not None and self._owner != os.getpid():
            with contextlib.suppress(OSError):
                self._shell.stdin.close()
            self._shell.returncode = 0  # not a child of this process
            self._shell = None

    def _end(self) -> None:
        if self._shell is not None and self._owner == os.getpid():
            self._shell.communicate("1\n")
            self._shell = None


REAPER = _Reaper()


def _engine_path() -> str:
    return str(Path(vizdoom.__file__).resolve().with_name("vizdoom"))


class _Watch:
    """Watchdog that kills engines which do not answer, so that the waiting call raises an error.

    An engine killed in the middle of a message can leave the condition variable it shares with vizdoom broken. The
    waiting call then never returns, not even on Ctrl-C, and the watchdog ends the process.
    """

    def __init__(self) -> None:
        self._calls: dict[int, list[int]] = {}  # engine -> [looks during its call, looks that found it dead]
        self._owner = 0  # process of the thread, which a forked process does not have

    @contextlib.contextmanager
    def over(self, engines: set[int]) -> Iterator[None]:
        """Watch the engines during the block; errors of vizdoom become :class:`GameLostError`."""
        if self._owner != os.getpid():
            with starting():
                if self._owner != os.getpid():
                    self._calls = {}  # calls of the parent
                    threading.Thread(target=self._run, args=(self._calls,), daemon=True).start()
                    self._owner = os.getpid()
        self._calls.update({engine: [0, 0] for engine in engines})
        try:
            yield
        except (
            vizdoom.ViZDoomErrorException,
            vizdoom.ViZDoomUnexpectedExitException,
            vizdoom.ViZDoomIsNotRunningException,
        ) as error:
            raise GameLostError(f"VizDoom: the game's process has died or hung: {error}") from error
        finally:
            for engine in engines:
                self._calls.pop(engine, None)

    def _run(self, calls: dict[int, list[int]]) -> None:
        looks = 20  # counted instead of timed, because the clock runs on while this process is stopped
        while True:
            pause = _PATIENCE / looks
            time.sleep(pause)
            for engine, found in list(calls.items()):
                found[0] += 1
                if found[0] > looks:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(engine, signal.SIGKILL)
                found[1] += engine not in engines()
                if found[1] * pause > _GRACE:
                    print(
                        "VizDoom: the game's process was killed and vizdoom waits for it forever; this process "
                        "exits. The same worldmodels command resumes the run",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)


WATCH = _Watch()
GAMES: weakref.WeakSet[vizdoom.DoomGame] = weakref.WeakSet()
_INHERITED: list[vizdoom.DoomGame] = []


def _after_fork() -> None:
    """Keep the parent's games alive in a forked process (their destructors would end them) and leave its reaper."""
    _INHERITED.extend(GAMES)
    REAPER.leave()


os.register_at_fork(after_in_child=_after_fork)
