"""The real VizDoom TakeCover: dodge fireballs by moving left or right."""

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
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import numpy.typing as npt
import vizdoom

from worldmodels.envs import GameLostError
from worldmodels.envs.preprocessing import Frame, resize
from worldmodels.envs.screen_env import ScreenEnv
from worldmodels.support.processes import Owned, block_sigint

Variant = Literal["paper", "modern"]

MAX_STEPS = 2100
#: Actions below -threshold move left, above +threshold right; others stay.
THRESHOLD = 1 / 3
_HUD_FREE = 400 / 480  # fraction of the screen's rows above the status bar
_PATIENCE = 300.0  # seconds until a call counts as hung
_GRACE = 30.0  # seconds until a call must have noticed that its engine died
#: Script that starts an engine in its own folder; its name in /proc is that of the engine.
_STARTER = Path(__file__).resolve().with_name("engine") / "vizdoom"
_LOCKS: dict[int, threading.Lock] = {}  # by process: a forked one does not wait for its parent's lock


def _starting() -> threading.Lock:
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


def _remove_folder(folder: Path, owner: int) -> None:
    """Remove an engine's folder, in the process that created it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _engines() -> set[int]:
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
            _remove_folder(folder, os.getpid())
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


_REAPER = _Reaper()


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
            with _starting():
                if self._owner != os.getpid():
                    self._calls = {}  # calls of the parent
                    threading.Thread(target=self._run, args=(self._calls,), daemon=True).start()
                    self._owner = os.getpid()
        self._calls.update({engine: [0, 0] for engine in engines})
        try:
            yield
        except (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException) as error:
            raise GameLostError(f"TakeCover: the game's process has died or hung: {error}") from error
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
                found[1] += engine not in _engines()
                if found[1] * pause > _GRACE:
                    print(
                        "TakeCover: the game's process was killed and vizdoom waits for it forever; this process "
                        "exits. The same worldmodels command resumes the run",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)


_WATCH = _Watch()
_GAMES: weakref.WeakSet[vizdoom.DoomGame] = weakref.WeakSet()
_INHERITED: list[vizdoom.DoomGame] = []


def _after_fork() -> None:
    """Keep the parent's games alive in a forked process (their destructors would end them) and leave its reaper."""
    _INHERITED.extend(_GAMES)
    _REAPER.leave()


os.register_at_fork(after_in_child=_after_fork)


class TakeCoverEnv(ScreenEnv):
    """``worldmodels/TakeCover-v0``: survive as long as possible. The reward is 1 per step, for at most 2100 steps.

    Observation: (64, 64, 3) uint8 RGB. Action: (1,) float32 in [-1, 1]; left below -1/3, right above 1/3, else stay.
    A step is one game tic, 1/35 s. Terminated on death, truncated after 2100 steps. The terminal step has no screen and
    repeats the last one.

    A copy, by pickle or :func:`copy.deepcopy`, is a new environment with the same arguments and its own engine. It must
    be reset. In a process forked from the one that created the environment, calls raise a RuntimeError.

    Args:
        variant: Variant of the game. ``"paper"``: the original code's game, with skill 4 (the original code asks for 5,
            which its engine clips to 4), the rows of the HUD cut off, without crosshair, weapon, decals and particles,
            starting at tic 14. ``"modern"``: take_cover.cfg of the vizdoom wheel, with the whole screen, without HUD,
            starting at tic 1. Both have the limit of 2100 steps.
        resolution: Size of the rendered screen, which is resized to 64x64: ``"160x120"``, ``"320x240"``, ``"640x480"``
            (original code) or any other 4:3 size of VizDoom. It does not change the game.
        render_mode: ``"rgb_array"`` if :meth:`render` is to return the whole screen; or None.

    Raises:
        ValueError: The variant, resolution or render mode is unknown.
        OSError: There is no writable folder for temporary files, which the engine needs.
        GameLostError: In :meth:`reset` and :meth:`step`: the game's process died or did not answer for 300 s. If it was
            killed in the middle of a message, vizdoom never returns, and the whole process exits with code 1.

    Source: Ha & Schmidhuber (2018), section 4; the original code's doomreal.py.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 35, "threads": True}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, variant: Variant = "paper", resolution: str = "160x120", render_mode: str | None = None) -> None:
        self.check_options(variant, resolution)
        arguments = {"variant": variant, "resolution": resolution, "render_mode": render_mode}
        super().__init__(gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32), arguments, render_mode)
        screen = getattr(vizdoom.ScreenResolution, f"RES_{resolution.upper()}")
        width, height = (int(side) for side in resolution.split("x"))
        self.variant = variant
        self.resolution = resolution
        self._game = self._start(screen)
        self._buttons = [button.name for button in self._game.get_available_buttons()]
        self._screen: Frame = np.zeros((height, width, 3), np.uint8)

    @staticmethod
    def check_options(variant: str = "paper", resolution: str = "160x120") -> None:
        """Check the constructor's options without starting an engine.

        Raises:
            ValueError: The variant or resolution is unknown.
        """
        if variant not in get_args(Variant):
            raise ValueError(f"variant: expected one of {', '.join(get_args(Variant))}, got {variant!r}")
        screen = getattr(vizdoom.ScreenResolution, f"RES_{resolution.upper()}", None)
        width, height = (int(side) for side in resolution.split("x")) if screen is not None else (0, 0)
        if screen is None or width * 3 != height * 4:
            raise ValueError(f"resolution: expected a 4:3 size of VizDoom such as '160x120', got {resolution!r}")

    def _start(self, screen: vizdoom.ScreenResolution) -> vizdoom.DoomGame:
        game = vizdoom.DoomGame()
        scenarios = Path(vizdoom.scenarios_path).resolve()
        if self.variant == "modern":
            game.load_config(str(scenarios / "take_cover.cfg"))
        else:
            game.set_doom_scenario_path(str(scenarios / "take_cover.wad"))
            game.set_doom_map("map01")
            game.set_doom_skill(4)
            game.set_available_buttons([vizdoom.Button.MOVE_RIGHT, vizdoom.Button.MOVE_LEFT])
            game.set_episode_start_time(14)
            game.set_living_reward(1)
            game.set_render_hud(True)
            game.set_render_crosshair(False)
            game.set_render_weapon(False)
            game.set_render_decals(False)
            game.set_render_particles(False)
        game.set_doom_config_path(os.devnull)  # the engine writes its settings back on exit
        game.set_episode_timeout(MAX_STEPS)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_screen_resolution(screen)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        if not os.access(_STARTER, os.X_OK):
            raise PermissionError(f"{_STARTER}: expected a script that can be executed; install worldmodels again")
        game.set_vizdoom_path(str(_STARTER))
        with _starting(), block_sigint(), _REAPER.engine_folder() as folder:
            before = _engines()
            game.init()
            self._engines = _engines() - before
        self._ownership = Owned("TakeCoverEnv")
        self._remove_folder = weakref.finalize(game, _remove_folder, folder, os.getpid())
        _GAMES.add(game)
        return game

    def _observe(self) -> Frame:
        state = self._game.get_state()
        if state is not None:
            self._screen = state.screen_buffer
        rows = self._screen.shape[0]
        if self.variant == "paper":
            rows = round(rows * _HUD_FREE)
        return resize(self._screen[:rows])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode; the same seed and actions give the same frames."""
        self._check_open("reset")
        self._ownership.check_owner()
        super().reset(seed=seed)
        self._game.set_seed(int(self.np_random.integers(2**31)))
        with _WATCH.over(self._engines):
            self._game.new_episode()
        self._phase = "playing"
        return self._observe(), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Step for one game tic."""
        self._check_playing("step")
        self._ownership.check_owner()
        value = self._check_action(action, np.float64)
        pressed = {"MOVE_LEFT": value[0] < -THRESHOLD, "MOVE_RIGHT": value[0] > THRESHOLD}
        with _WATCH.over(self._engines):
            reward = self._game.make_action([bool(pressed[button]) for button in self._buttons])
        terminated = self._game.is_player_dead()
        truncated = not terminated and self._game.is_episode_finished()
        return self._observe(), float(reward), terminated, truncated, {}

    def render(self) -> Frame | None:
        """Render the whole screen, (height, width, 3) uint8, in mode ``"rgb_array"``."""
        if self.render_mode is None:
            return None
        self._check_playing("render")
        return np.array(self._screen)

    def close(self) -> None:
        """End the game's process, except in a process forked from its owner."""
        self._phase = "closed"
        if self._ownership.owned:
            self._game.close()
            self._remove_folder()
