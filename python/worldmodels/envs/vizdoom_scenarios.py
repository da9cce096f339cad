"""Gymnasium environments of the package vizdoom, with the engine's process in a folder of its own and watched over."""

from __future__ import annotations

import os
import weakref
from typing import Any

import gymnasium

from worldmodels.envs import vizdoom_process
from worldmodels.support.processes import Owned, block_sigint


class ScenarioEnv(Owned, gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that starts the engine at the first reset, and ends it with this process.

    Args:
        env: Environment of :mod:`vizdoom.gymnasium_wrapper`, whose engine has not started.

    Raises:
        GameLostError: In :meth:`reset` and :meth:`step`, the engine died or hung.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        Owned.__init__(self, "ScenarioEnv")
        gymnasium.Wrapper.__init__(self, env)
        self._game = env.unwrapped.game  # type: ignore[attr-defined]
        self._game.set_doom_config_path(os.devnull)  # the engine writes its settings back on exit
        self._game.set_vizdoom_path(str(vizdoom_process.STARTER))
        self._engines: set[int] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self.check_owner()
        if self._engines is None:
            return self._start(seed, options)
        with vizdoom_process.WATCH.over(self._engines):
            return self.env.reset(seed=seed, options=options)

    def _start(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        with vizdoom_process.starting(), block_sigint(), vizdoom_process.REAPER.engine_folder() as folder:
            before = vizdoom_process.engines()
            started = self.env.reset(seed=seed, options=options)
            self._engines = vizdoom_process.engines() - before
        self._remove_folder = weakref.finalize(self._game, vizdoom_process.remove_folder, folder, os.getpid())
        vizdoom_process.GAMES.add(self._game)
        return started

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        self.check_owner()
        with vizdoom_process.WATCH.over(self._engines or set()):
            return self.env.step(action)

    def close(self) -> None:
        """End the engine, except in a process forked from its owner."""
        if not self.owned:
            return
        with vizdoom_process.WATCH.over(self._engines or set()):
            self.env.close()
        if self._engines is not None:
            self._remove_folder()
