"""Dreams as Gymnasium environments, one or a vector, stepped by the native core."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from worldmodels.dream.native import check_temperature
from worldmodels.dream.settings import DreamSettings, load_decoder, resolve_world
from worldmodels.dream.stepping import DreamBatch
from worldmodels.models.decoder import Decoder
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.support.display import Window, check_display
from worldmodels.support.processes import defer_sigint
from worldmodels.support.validation import (
    MAX_SEED,
    check_integer,
    check_seed,
)

Array = npt.NDArray[Any]


class _DreamBase:
    """Construction, rendering and copying shared by both kinds of environment."""

    metadata: dict[str, Any]
    render_mode: str | None
    _dreams: DreamBatch
    _decoder: Decoder | None

    def _build(
        self, arrays: Mapping[str, Any], settings: DreamSettings, num_envs: int | None, num_threads: int | None
    ) -> None:
        """Build the dreams; ``arrays`` are mdnrnn, initial_mu and initial_logvar, all of them or none."""
        world = resolve_world(arrays, settings)
        known = self.metadata["render_modes"]
        self._decoder = load_decoder(world, settings.render_mode, known, num_threads)
        self._dreams = DreamBatch(world, settings, num_envs, num_threads)
        self.render_mode = settings.render_mode
        renders = world.vae_path is not None and world.vae_path.is_file()
        windows = settings.render_mode == "human" or _may_have_display()
        modes = [mode for mode in known if renders and (windows or mode != "human")]
        self.metadata = {**self.metadata, "render_modes": modes}

    @property
    def temperature(self) -> float:
        """Temperature of the sampling; a new value applies from the next step. Wrappers: ``set_wrapper_attr``."""
        return self._dreams.temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        checked = check_temperature(temperature)
        with self._dreams.lock:
            self._dreams.temperature = checked

    def _frames(self) -> npt.NDArray[np.uint8] | None:
        """Decode the current latents to frames (N, 64, 64, 3); None without a render mode."""
        if self._decoder is None:
            return None
        with self._dreams.lock:
            if not self._dreams.seeded:
                raise gymnasium.error.ResetNeeded("call reset before render")
            latents = self._dreams.latents()
        return self._decoder(latents)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state between two calls, whatever other threads do."""
        with self._dreams.lock:
            changing = {
                name: copy.deepcopy(value)
                for name, value in self.__dict__.items()
                if isinstance(value, np.ndarray | np.random.Generator)
            }
            return {**self.__dict__, **changing, "_dreams": copy.copy(self._dreams)}


def _temperature(options: Mapping[str, Any] | None, *others: str) -> float | None:
    """Read the temperature from the options of reset, or None; ``others`` are the other known options."""
    known = ("temperature", *others)
    unknown = set(options or {}) - set(known)
    if unknown:
        names = " and ".join(map(repr, known))
        raise ValueError(f"options: expected only {names}, got {', '.join(sorted(map(repr, unknown)))}")
    return check_temperature(options["temperature"]) if options and "temperature" in options else None


def _is_many(seed: Any) -> bool:
    """Check whether the seed of reset is a sequence, one seed per environment."""
    return (
        isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str | bytes) and getattr(seed, "ndim", 1) > 0
    )


def _may_have_display() -> bool:
    """Check whether a display is announced, without trying to open a window."""
    announced = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    return sys.platform != "linux" or any(os.environ.get(variable) for variable in announced)


class DreamEnv(_DreamBase, gymnasium.Env[npt.NDArray[np.float32], Any]):
    """``worldmodels/Dream-v0``: one dream, with the random stream of candidate 0 of ``Dream.rollout``.

        env = gymnasium.make("worldmodels/Dream-v0", world="takecover", render_mode="rgb_array")

    Observation: (F,) float32, the members of [z, c, h] selected by ``features``. Reward: that of M's reward head, or 1
    per step. Terminated by M, truncated at ``max_steps``. ``reset(options={"temperature": t})`` or the attribute
    ``temperature`` sets the temperature. A ``reset`` without a seed starts the next episode of the current seed.

    Continuous actions are clipped to the action space. Integers are converted; values that are not finite are rejected.
    ``choices=(n,)`` makes the action space Discrete, for an M of discrete actions. A pickle or a deep copy is
    independent of its original and continues an episode bit-identically.

    Args:
        mdnrnn: M; its weights are copied. ``mdnrnn``, ``initial_mu`` and ``initial_logvar`` are given together, or
            ``world`` replaces them.
        initial_mu: (K, Z) float32 means of the initial latents.
        initial_logvar: (K, Z) float32 log variances of the initial latents.
        **settings: Fields of :class:`DreamSettings`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is invalid.
        FileNotFoundError: The run folder has no M yet.
        RuntimeError: ``render_mode`` is "human" and there is no display.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 35}  # noqa: RUF012
    _window: Window | None = None

    def __init__(
        self,
        mdnrnn: MDNRNN | None = None,
        initial_mu: npt.ArrayLike | None = None,
        initial_logvar: npt.ArrayLike | None = None,
        **settings: Any,
    ) -> None:
        arrays = {"mdnrnn": mdnrnn, "initial_mu": initial_mu, "initial_logvar": initial_logvar}
        self._build(arrays, DreamSettings(**settings), None, 1)
        if self.render_mode == "human":
            check_display("render_mode='human'", "render_mode='rgb_array'")
        self.observation_space = self._dreams.observation_space
        self.action_space = self._dreams.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start the next episode, or episode 0 of ``seed``.

        Args:
            seed: Seed of the episodes; None for the current one.
            options: ``"temperature"``.

        Returns:
            The observation (F,) and an empty info.

        Raises:
            TypeError: The seed or the temperature is not a number.
            ValueError: The seed or the temperature is out of range.
        """
        temperature = _temperature(options)
        seed = None if seed is None else check_seed(seed)
        dreams, one = self._dreams, np.ones(1, dtype=np.bool_)
        with dreams.lock:
            super().reset(seed=seed)
            if temperature is not None:
                dreams.temperature = temperature
            if seed is not None or not dreams.seeded:
                dreams.seed(one, int(self.np_random.integers(2**63)) if seed is None else seed, 0)
            dreams.reset(one)
            observation = dreams.observe()[0]
        self._show()
        return observation, {}

    def step(self, action: npt.ArrayLike) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Step the dream.

        Args:
            action: (A,) float32 action, clipped to the action space; with ``choices``, an integer or (k,) integers.

        Returns:
            The observation (F,), the reward, terminated, truncated and an empty info.

        Raises:
            TypeError: The action cannot be converted to an array.
            ValueError: The action has another shape, is not finite, or is not a value of a discrete action.
            KeyboardInterrupt: Ctrl-C was pressed; raised before or after the step.
        """
        with self._dreams.lock:
            if not self._dreams.seeded:
                raise gymnasium.error.ResetNeeded("call reset before step")
            observations, rewards, terminated, truncated = self._dreams.step(action)
        self._show()
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Decode the current z with V, (64, 64, 3) uint8, in mode ``"rgb_array"``; "human" shows every step."""
        frames = self._frames()
        return frames[0] if frames is not None and self.render_mode == "rgb_array" else None

    def _show(self) -> None:
        """Show the current z in the window, in mode ``"human"``."""
        if self.render_mode == "human" and (frames := self._frames()) is not None:
            if self._window is None:
                self._window = Window("worldmodels/Dream-v0")
            self._window.show(frames[0])
            self._window.wait(self.metadata["render_fps"])

    def close(self) -> None:
        """Close the window."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def __getstate__(self) -> dict[str, Any]:
        """See :class:`_DreamBase`; a copy opens its own window."""
        return {**super().__getstate__(), "_window": None}


class DreamVectorEnv(
    _DreamBase, gymnasium.vector.VectorEnv[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any]]
):
    """Vector of dreams, stepped by one native call.

        envs = gymnasium.make_vec("worldmodels/Dream-v0", num_envs=1024, world="takecover")

    ``reset(seed=s)``: environment i plays candidate i of ``Dream.rollout(seed=s)``. ``reset(seed=[s_0, s_1, ...])``:
    environment i plays the episodes of ``DreamEnv.reset(seed=s_i)``. With None it plays the next episode of its seed,
    or of one drawn from ``np_random`` if it has none. Later episodes continue the seed.
    ``reset(options={"reset_mask": mask})``, (N,) bool, resets the masked environments alone. A mask combines with seeds
    and with the temperature, which applies to all environments.

    Autoreset is one of Gymnasium's modes. ``NEXT_STEP``: the step after an episode's end only checks the action, starts
    the next episode and returns its first observation with reward 0. ``SAME_STEP``: the step that ends an episode
    returns the first observation of the next one, and the last one in ``info["final_obs"]``, (N, F) float32 with
    the mask ``info["_final_obs"]``, next to an empty ``info["final_info"]``. ``DISABLED``: the caller resets, by
    ``reset_mask``. All else is as in :class:`DreamEnv`.

    Args:
        mdnrnn: M, see :class:`DreamEnv`.
        initial_mu: (K, Z) float32 means of the initial latents.
        initial_logvar: (K, Z) float32 log variances of the initial latents.
        num_envs: Number N of dreams.
        num_threads: Number of threads; None for all available CPUs, at most ``OMP_NUM_THREADS``.
        autoreset_mode: Member of ``AutoresetMode``, or its value.
        max_episode_steps: Alias of ``max_steps`` for ``gymnasium.make_vec``; the smaller of the two applies.
        **settings: Fields of :class:`DreamSettings`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is invalid.
        FileNotFoundError: The run folder has no M yet.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 35,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        mdnrnn: MDNRNN | None = None,
        initial_mu: npt.ArrayLike | None = None,
        initial_logvar: npt.ArrayLike | None = None,
        *,
        num_envs: int = 1,
        num_threads: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        try:
            self._mode = AutoresetMode(autoreset_mode)
        except ValueError:
            names = ", ".join(mode.name for mode in AutoresetMode)
            raise ValueError(f"autoreset_mode: expected one of {names}, got {autoreset_mode!r}") from None
        chosen = DreamSettings(**settings)
        if max_episode_steps is not None:
            most = check_integer("max_episode_steps", max_episode_steps, 1, 2**31 - 1)
            longest = most if chosen.max_steps is None else check_integer("max_steps", chosen.max_steps, 1, 2**31 - 1)
            chosen = replace(chosen, max_steps=min(longest, most))
        self.metadata = {**self.metadata, "autoreset_mode": self._mode}
        arrays = {"mdnrnn": mdnrnn, "initial_mu": initial_mu, "initial_logvar": initial_logvar}
        self._build(arrays, chosen, num_envs, num_threads)
        self.num_envs = self._dreams.num_envs
        self.single_observation_space = self._dreams.observation_space
        self.single_action_space = self._dreams.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)

    def __repr__(self) -> str:
        of = self._dreams
        return (
            f"DreamVectorEnv(num_envs={self.num_envs}, latent_size={of.latent_size}, hidden_size={of.hidden_size}, "
            f"action_size={of.action_size}, temperature={of.temperature!r}, max_steps={of.max_steps}, "
            f"precision={of.precision!r})"
        )

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | npt.NDArray[np.integer] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start the next episodes, or episode 0 of the seeds.

        Args:
            seed: Seed of all environments, or (N,) seeds with None for environments that keep theirs.
            options: ``"temperature"``, and ``"reset_mask"``, (N,) bool, for the environments to reset.

        Returns:
            Observations of all environments (N, F), and an empty info.

        Raises:
            TypeError, ValueError: An argument is invalid; no environment was reset.
            gymnasium.error.ResetNeeded: The mask omits environments that were never reset.
        """
        temperature = _temperature(options, "reset_mask")
        which = self._masked(options)
        dreams = self._dreams
        seeds = self._checked_seeds(seed) if _is_many(seed) else None
        single = check_seed(seed) if seeds is None and seed is not None else None
        with dreams.lock, defer_sigint():
            if not dreams.seeded and not which.all():
                raise gymnasium.error.ResetNeeded("reset_mask: expected all environments, as none has been reset yet")
            if seeds is not None:
                new = np.array([one is not None or not dreams.seeded for one in seeds])
                drawn = [int(self.np_random.integers(2**63)) if one is None else one for one in seeds]
                dreams.seed(which & new, drawn, 0)
            else:
                super().reset(seed=single)
                if single is not None or not dreams.seeded:
                    one = int(self.np_random.integers(2**63)) if single is None else single
                    dreams.seed(which, one, np.arange(self.num_envs))
            if temperature is not None:
                dreams.temperature = temperature
            self._ended = self._ended & ~which
            dreams.reset(which)
            return dreams.observe(), {}

    def _masked(self, options: Mapping[str, Any] | None) -> npt.NDArray[np.bool_]:
        """Return the mask of the environments to reset, (N,)."""
        if not options or "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray):
            raise TypeError(f"reset_mask: expected a NumPy array, got {type(mask).__name__}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask: expected ({self.num_envs},) bool, got {mask.shape} {mask.dtype}")
        if mask.dtype != np.bool_:
            raise TypeError(f"reset_mask: expected ({self.num_envs},) bool, got {mask.shape} {mask.dtype}")
        if not mask.any():
            raise ValueError("reset_mask: expected at least one True, got none")
        return mask.copy()

    def _checked_seeds(self, seeds: Any) -> list[int | None]:
        """Validate the seeds of all environments; None keeps a seed."""
        shape = np.shape(seeds) if isinstance(seeds, np.ndarray) else (len(seeds),)
        if shape != (self.num_envs,):
            raise ValueError(f"seed: expected ({self.num_envs},) integers or None, got {shape}")
        return [None if one is None else check_integer("seed", one, 0, MAX_SEED) for one in seeds]

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Step all dreams. With NEXT_STEP, environments whose episode has ended start the next one instead.

        Args:
            actions: (N, A) float32 actions, clipped to the action space; with ``choices``, (N,) or (N, k) integers.

        Returns:
            Observations (N, F) float32, rewards (N,) float32, terminations and truncations (N,) bool, and the
            info: empty, or with SAME_STEP the last observations of the episodes that ended.

        Raises:
            TypeError: The actions cannot be converted to an array.
            ValueError: The actions have another shape, are not finite, or are not values of discrete actions.
            KeyboardInterrupt: Ctrl-C was pressed; raised after the step.
            gymnasium.error.ResetNeeded: There was no reset, or, with DISABLED, none since an episode's end.
        """
        with self._dreams.lock, defer_sigint():
            return self._step(actions)

    def _step(
        self, actions: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        dreams, starting = self._dreams, self._ended
        if not dreams.seeded:
            raise gymnasium.error.ResetNeeded("call reset before step")
        if self._mode is AutoresetMode.DISABLED and starting.any():
            raise gymnasium.error.ResetNeeded(
                f"the episodes of environments {np.flatnonzero(starting).tolist()} have ended: reset them with "
                "options={'reset_mask': mask} before the next step"
            )
        observations, rewards, terminated, truncated = dreams.step(actions)
        if starting.any():
            dreams.restart(starting, observations)
            rewards[starting] = 0
            terminated[starting] = truncated[starting] = False
        ended = terminated | truncated
        info: dict[str, Any] = {}
        if self._mode is not AutoresetMode.SAME_STEP:
            self._ended = ended
        elif ended.any():
            final = np.where(ended[:, None], observations, np.float32(0))
            info = {"final_obs": final, "_final_obs": ended, "final_info": {}, "_final_info": ended.copy()}
            dreams.restart(ended, observations)
        return observations, rewards, terminated, truncated, info

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Decode the current z of every environment with V, N frames (64, 64, 3) uint8, in mode ``"rgb_array"``."""
        frames = self._frames()
        return None if frames is None else tuple(frames)
