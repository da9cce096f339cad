"""The real VizDoom TakeCover: dodge fireballs by moving left or right."""

from __future__ import annotations

import os
import re
import weakref
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import numpy.typing as npt

try:
    import vizdoom
except ModuleNotFoundError as missing:
    if missing.name != "vizdoom":
        raise
    raise ModuleNotFoundError(
        "worldmodels/TakeCover-v0: vizdoom is not installed (extra takecover)", name="vizdoom"
    ) from missing

from worldmodels.envs import vizdoom_process
from worldmodels.envs.preprocessing import Frame, resize
from worldmodels.envs.screen_env import ScreenEnv
from worldmodels.support.processes import Owned, block_sigint

Variant = Literal["paper", "modern"]

MAX_STEPS = 2100
#: Actions below -threshold move left, above +threshold right; others stay.
THRESHOLD = 1 / 3
_HUD_FREE = 400 / 480  # fraction of the screen's rows above the status bar


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
        is_size = re.fullmatch(r"[0-9]+x[0-9]+", str(resolution)) is not None
        screen = getattr(vizdoom.ScreenResolution, f"RES_{resolution}".upper(), None) if is_size else None
        width, height = (int(side) for side in resolution.split("x")) if screen is not None else (0, 0)
        if screen is None or width * 3 != height * 4:
            raise ValueError(f"resolution: expected a 4:3 size of VizDoom such as '160x120', got {resolution!r}")

    def _configure(self, game: vizdoom.DoomGame, screen: vizdoom.ScreenResolution) -> None:
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

    def _start(self, screen: vizdoom.ScreenResolution) -> vizdoom.DoomGame:
        game = vizdoom.DoomGame()
        self._configure(game, screen)
        if not os.access(vizdoom_process.STARTER, os.X_OK):
            raise PermissionError(
                f"{vizdoom_process.STARTER}: expected a script that can be executed; install worldmodels again"
            )
        game.set_vizdoom_path(str(vizdoom_process.STARTER))
        with vizdoom_process.starting(), block_sigint(), vizdoom_process.REAPER.engine_folder() as folder:
            before = vizdoom_process.engines()
            game.init()
            self._engines = vizdoom_process.engines() - before
        self._ownership = Owned("TakeCoverEnv")
        self._remove_folder = weakref.finalize(game, vizdoom_process.remove_folder, folder, os.getpid())
        vizdoom_process.GAMES.add(game)
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
        with vizdoom_process.WATCH.over(self._engines):
            self._game.new_episode()
        self._phase = "playing"
        return self._observe(), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Step for one game tic."""
        self._check_playing("step")
        self._ownership.check_owner()
        value = self._check_action(action, np.float64)
        pressed = {"MOVE_LEFT": value[0] < -THRESHOLD, "MOVE_RIGHT": value[0] > THRESHOLD}
        with vizdoom_process.WATCH.over(self._engines):
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
            with vizdoom_process.WATCH.over(self._engines):
                self._game.close()
            self._remove_folder()
