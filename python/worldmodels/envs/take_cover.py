"""The real VizDoom TakeCover: fireballs fly, step left or right, survive."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import numpy.typing as npt
import vizdoom

from worldmodels.envs import GameLostError
from worldmodels.envs.screen import Frame, shrink
from worldmodels.processes import deaf_to_interrupts

Variant = Literal["paper", "modern"]

MAX_STEPS = 2100
#: Actions below -threshold step left, above +threshold right, in between stay.
THRESHOLD = 1 / 3
_HUD_FREE = 400 / 480  # share of the screen's rows above the status bar
_PATIENCE = 300.0  # seconds for one call, after which the engine is taken to hang
_GRACE = 30.0  # seconds for a call to notice that its engine has died
_STARTING = threading.Lock()  # two engines started by one process at the same moment can wait for each other for ever


@contextlib.contextmanager
def _engine_folder() -> Iterator[None]:
    """Keeps the empty folder ``_vizdoom`` in the working directory while an engine starts.

    The engine makes it where it is started, crashes where another process's engine makes or removes it meanwhile, and
    leaves it behind. So it is made beforehand, and removed once no process is starting an engine there.
    """
    folder, here = Path("_vizdoom"), os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(here, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):  # where nothing can be written, the engine says so
            folder.mkdir(exist_ok=True)
        yield
        with contextlib.suppress(OSError):  # another one is starting: it will remove the folder
            fcntl.flock(here, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.rmdir()
    finally:
        os.close(here)


def _engines() -> set[int]:
    """Ids of the engines that this process has started and that have not ended, where /proc tells."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().rpartition(") ")
            state, parent = rest.split()[:2]
            if name.endswith("(vizdoom") and int(parent) == os.getpid() and state != "Z":
                found.add(int(folder.name))
    return found


_MARK = "WORLDMODELS_PLAYER"  # in an engine's environment: whose it is
_REAP = """
read -r looks
for look in ${looks:-1 2 3}; do
  for engine in $(grep -lsx vizdoom /proc/[0-9]*/comm); do
    engine=${engine%/comm}
    tr '\\0' '\\n' < $engine/environ | grep -qx "$1" && kill -9 ${engine#/proc/}
  done 2>/dev/null
  [ "$looks" ] || sleep 1
done
"""


class _Reaper:
    """A shell that outlives this process and ends its engines: one whose player was killed waits for it for ever."""

    def __init__(self) -> None:
        self._shell: subprocess.Popen[str] | None = None
        self._owner = 0

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """An engine that is started meanwhile is this process's."""
        if self._owner != os.getpid():  # none yet, or that of a process which this was forked from
            self._owner = os.getpid()
            self._mark = f"{self._owner}-{time.time_ns()}"
            line = ["/bin/sh", "-c", _REAP, "reaper", f"{_MARK}={self._mark}"]
            path = {"PATH": os.defpath}
            self._shell = subprocess.Popen(line, stdin=subprocess.PIPE, text=True, env=path, start_new_session=True)
            atexit.register(self._end)
        os.environ[_MARK] = self._mark
        try:
            yield
        finally:
            del os.environ[_MARK]

    def _end(self) -> None:
        if self._shell is not None and self._owner == os.getpid():
            self._shell.communicate("1\n")


_REAPER = _Reaper()


class _Watch:
    """Ends engines that do not answer: whoever waits for one, in vizdoom's code and for ever, gets an error then.

    An engine that is killed in the middle of a message can leave the condition variable that it shares with vizdoom's
    code broken. Whoever waits on that one is never woken, nor does Ctrl-C reach him: the process ends itself.
    """

    def __init__(self) -> None:
        self._calls: dict[int, list[int]] = {}  # engine -> [looks that found it waited for, that found it dead]
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, engines: set[int]) -> Iterator[None]:
        """Watches while the block calls an engine; what vizdoom raises becomes a :class:`GameLostError`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._calls.update({engine: [0, 0] for engine in engines})
        try:
            yield
        except (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException) as error:
            raise GameLostError(f"TakeCover: the game's process has died or hung: {error}") from error
        finally:
            for engine in engines:
                self._calls.pop(engine, None)

    def _run(self) -> None:
        looks = 20  # counted, for time goes on while this process itself is stopped
        while True:
            pause = _PATIENCE / looks
            time.sleep(pause)
            for engine, found in list(self._calls.items()):
                found[0] += 1
                if found[0] > looks:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(engine, signal.SIGKILL)
                found[1] += engine not in _engines()
                if found[1] * pause > _GRACE:
                    print(
                        "TakeCover: the game's process was killed and vizdoom waits for it for ever; this process "
                        "ends. The same worldmodels command goes on where it was",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)


_WATCH = _Watch()


class TakeCoverEnv(gymnasium.Env[Frame, npt.NDArray[np.float32]]):
    """``worldmodels/TakeCover-v0``: survive as long as you can; one point per tic, at most 2100.

    Observation: (64, 64, 3) uint8 RGB. Action: (1,) float32 in [-1, 1]; left below -1/3, right above 1/3, else stay.
    Terminated on death, truncated after 2100 tics. The terminal step has no screen of its own: it repeats the last one.

    Args:
        variant: ``"paper"``: the authors' game (skill 4, which is what their engine made of the 5 they asked for; HUD
            on and its rows cut off; no crosshair, weapon, decals or particles; starts at tic 14). ``"modern"``: the
            take_cover.cfg of the vizdoom wheel (starts at tic 1, no HUD, full screen) with the limit of 2100.
        resolution: the screen that is rendered before it is resized to 64x64: ``"160x120"``, ``"320x240"``,
            ``"640x480"`` (the authors') or any other 4:3 size of VizDoom. The game itself is the same at all of them.
        render_mode: ``"rgb_array"``: :meth:`render` returns the whole screen; or None.

    Raises:
        ValueError: unknown variant, resolution or render mode.
        GameLostError: from :meth:`reset` and :meth:`step`: the game's process has died, or has not answered for 300 s.
            Where it was killed in the middle of a message, vizdoom never returns: the whole process ends with code 1.

    Source: Ha & Schmidhuber (2018), section 4; the released code's doomreal.py.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 35, "threads": True}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, variant: Variant = "paper", resolution: str = "160x120", render_mode: str | None = None) -> None:
        self.check_options(variant, resolution)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}")
        screen = getattr(vizdoom.ScreenResolution, f"RES_{resolution.upper()}")
        width, height = (int(side) for side in resolution.split("x"))
        self.variant = variant
        self.resolution = resolution
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._game = self._start(screen)
        self._buttons = [button.name for button in self._game.get_available_buttons()]
        self._screen: Frame = np.zeros((height, width, 3), np.uint8)

    @staticmethod
    def check_options(variant: str = "paper", resolution: str = "160x120") -> None:
        """Refuses what the constructor refuses, without starting an engine.

        Raises:
            ValueError: Unknown variant or resolution.
        """
        if variant not in get_args(Variant):
            raise ValueError(f"variant: expected one of {', '.join(get_args(Variant))}, got {variant!r}")
        screen = getattr(vizdoom.ScreenResolution, f"RES_{resolution.upper()}", None)
        width, height = (int(side) for side in resolution.split("x")) if screen is not None else (0, 0)
        if screen is None or width * 3 != height * 4:
            raise ValueError(f"resolution: expected a 4:3 size of VizDoom such as '160x120', got {resolution!r}")

    def _start(self, screen: vizdoom.ScreenResolution) -> vizdoom.DoomGame:
        game = vizdoom.DoomGame()
        scenarios = Path(vizdoom.scenarios_path)
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
        with _STARTING, _engine_folder(), deaf_to_interrupts(), _REAPER.marking():
            before = _engines()
            game.init()
            self._engines = _engines() - before
        return game

    def _observe(self) -> Frame:
        state = self._game.get_state()
        if state is not None:
            self._screen = state.screen_buffer
        rows = self._screen.shape[0]
        if self.variant == "paper":
            rows = round(rows * _HUD_FREE)
        return shrink(self._screen[:rows])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Starts an episode; the same seed and actions give the same frames."""
        super().reset(seed=seed)
        self._game.set_seed(int(self.np_random.integers(2**31)))
        with _WATCH.over(self._engines):
            self._game.new_episode()
        return self._observe(), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Plays one tic."""
        value = np.asarray(action, dtype=np.float64)
        if value.shape != (1,) or not np.isfinite(value).all():
            raise ValueError(f"action: expected (1,) finite numbers, got {action!r}")
        pressed = {"MOVE_LEFT": value[0] < -THRESHOLD, "MOVE_RIGHT": value[0] > THRESHOLD}
        with _WATCH.over(self._engines):
            reward = self._game.make_action([bool(pressed[button]) for button in self._buttons])
        terminated = self._game.is_player_dead()
        truncated = not terminated and self._game.is_episode_finished()
        return self._observe(), float(reward), terminated, truncated, {}

    def render(self) -> Frame | None:
        """The whole screen, (height, width, 3) uint8, in mode ``"rgb_array"``."""
        return np.array(self._screen) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Ends the game's process."""
        self._game.close()
