"""M as a Gymnasium environment, one dream or many at once, stepped by the native core."""

from __future__ import annotations

from typing import Any, get_args

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from worldmodels.checks import check_integer, check_seed, check_threads
from worldmodels.dream import (
    Precision,
    check_precision,
    check_temperature,
    float_array,
    native_model,
)
from worldmodels.models.controller import Features
from worldmodels.models.mdnrnn import MDNRNN

Array = npt.NDArray[Any]


class _Dreams:
    """N dreams that step together; dream i plays the streams of candidate i, as ``Dream.rollout`` does."""

    def __init__(
        self,
        mdnrnn: MDNRNN,
        initial_mu: npt.ArrayLike,
        initial_logvar: npt.ArrayLike,
        num_envs: int,
        temperature: float,
        max_steps: int,
        features: Features,
        num_threads: int | None,
        precision: Precision,
        done_weight: float | None,
    ) -> None:
        from worldmodels import _core

        if features not in get_args(Features):
            raise ValueError(f"features: expected one of {', '.join(get_args(Features))}, got {features!r}")
        self.num_envs = check_integer("num_envs", num_envs, 1, 2**24)
        self.threads = check_threads(num_threads)
        self.temperature = check_temperature(temperature)
        self.max_steps = check_integer("max_steps", max_steps, 1, 2**31 - 1)
        self.use_c, self.use_h = "c" in features, "h" in features
        check_precision(precision)
        model = native_model(mdnrnn, initial_mu, initial_logvar, precision, done_weight=done_weight)
        self.stepper = _core.DreamStepper(model, self.num_envs)
        self.action_size = mdnrnn.action_size
        self.seed = 0
        self.episodes = np.zeros(self.num_envs, dtype=np.uint32)
        self.lengths = np.zeros(self.num_envs, dtype=np.int64)
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (mdnrnn.latent_size + mdnrnn.hidden_size * (len(features) - 1),), np.float32
        )

    def seed_all(self, seed: int) -> None:
        """Starts again at episode 0 of a seed; the next reset of a dream plays it."""
        self.seed = check_seed(seed)
        self.episodes[:] = np.uint32(2**32 - 1)  # one before 0

    def set_options(self, options: dict[str, Any] | None) -> None:
        """Takes the temperature of reset's options."""
        unknown = set(options or {}) - {"temperature"}
        if unknown:
            raise ValueError(f"options: expected only 'temperature', got {', '.join(sorted(map(repr, unknown)))}")
        if options and "temperature" in options:
            self.temperature = check_temperature(options["temperature"])

    def reset(self, mask: npt.NDArray[np.bool_]) -> None:
        """Starts the next episode of the masked dreams."""
        self.episodes[mask] += np.uint32(1)
        self.lengths[mask] = 0
        self.stepper.reset(self.seed, self.episodes, mask)

    def step(self, actions: Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Steps all: rewards, terminations, truncations, each (N,)."""
        actions = np.asarray(actions)
        fits = actions.dtype == np.float32 and actions.shape == (self.num_envs, self.action_size)
        if not (fits and actions.flags.c_contiguous):
            if np.issubdtype(actions.dtype, np.integer):
                actions = actions.astype(np.float32)
            actions = float_array("actions", actions, (self.num_envs, self.action_size))
        rewards, done = self.stepper.step(self.seed, self.temperature, actions, self.threads)
        self.lengths += 1
        return rewards, done, ~done & (self.lengths >= self.max_steps)

    def observe(self) -> npt.NDArray[np.float32]:
        """[z, c, h] of every dream, those wanted: (N, F) float32."""
        return self.stepper.observe(self.use_c, self.use_h, self.threads)


def _action_space(action_size: int, low: npt.ArrayLike, high: npt.ArrayLike) -> gymnasium.spaces.Box:
    bounds = []
    for name, bound in (("action_low", low), ("action_high", high)):
        array = np.asarray(bound, dtype=np.float32)
        if array.shape not in ((), (action_size,)) or np.isnan(array).any():
            raise ValueError(f"{name}: expected a number or ({action_size},) of them, got {bound!r}")
        bounds.append(np.broadcast_to(array, (action_size,)))
    if (bounds[0] > bounds[1]).any():
        raise ValueError(f"action_low: expected at most action_high, got {low!r} and {high!r}")
    return gymnasium.spaces.Box(bounds[0], bounds[1], (action_size,), np.float32)


class DreamEnv(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """One dream. Plays the streams of candidate 0 of ``Dream.rollout`` with the same seed.

    Observation: [z, c, h] (those of ``features``), float32. Reward: M's reward head, or 1 a step. Terminated
    when M says done, truncated at ``max_steps``. ``reset(options={"temperature": t})`` changes the
    temperature from then on. Without a seed, ``reset`` goes on to the next episode of the last one.

    Args:
        mdnrnn: M; its weights are copied.
        initial_mu: (K, Z) float32, means of the latents an episode may start from.
        initial_logvar: (K, Z) float32, their log variances.
        temperature: of the sampling, at least 0.
        max_steps: the longest episode, in steps.
        features: "z", "zh", "zc" or "zch".
        action_low: scalar or (A,), the lowest actions.
        action_high: scalar or (A,), the highest actions.
        precision: "float32" or "bfloat16", as for ``Dream``.
        done_weight: None for ends where M's done logit is above 0, or a number for ends by chance, as for ``Dream``.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        mdnrnn: MDNRNN,
        initial_mu: npt.ArrayLike,
        initial_logvar: npt.ArrayLike,
        *,
        temperature: float = 1.0,
        max_steps: int = 2100,
        features: Features = "zch",
        action_low: npt.ArrayLike = -1.0,
        action_high: npt.ArrayLike = 1.0,
        precision: Precision = "float32",
        done_weight: float | None = None,
        render_mode: None = None,
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode: expected None (a dream has no pictures without V), got {render_mode!r}")
        self.render_mode = None
        self._dreams = _Dreams(
            mdnrnn, initial_mu, initial_logvar, 1, temperature, max_steps, features, 1, precision, done_weight
        )
        self.observation_space = self._dreams.observation_space
        self.action_space: gymnasium.spaces.Box = _action_space(mdnrnn.action_size, action_low, action_high)  # type: ignore[assignment]
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Starts the next episode, or episode 0 of ``seed``: the observation (F,) and an empty info."""
        super().reset(seed=seed)
        self._dreams.set_options(options)
        if seed is not None or not self._seeded:
            self._dreams.seed_all(seed if seed is not None else int(self.np_random.integers(2**63)))
            self._seeded = True
        self._dreams.reset(np.ones(1, dtype=np.bool_))
        return self._dreams.observe()[0], {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Plays one step.

        Args:
            action: (A,) float32.

        Returns:
            The observation (F,), the reward, terminated, truncated and an empty info.
        """
        if not self._seeded:
            raise gymnasium.error.ResetNeeded("call reset before step")
        rewards, terminated, truncated = self._dreams.step(np.asarray(action)[None])
        return self._dreams.observe()[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}


class DreamVectorEnv(gymnasium.vector.VectorEnv[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[Any]]):
    """Many dreams stepped by one native call; environment i plays ``Dream.rollout``'s candidate i.

    Autoreset is Gymnasium's ``NEXT_STEP`` (the step after an episode's end ignores the action, starts the next
    episode and returns its first observation with reward 0) or ``SAME_STEP`` (the step that ends an episode
    returns the first observation of the next one, and the last one in ``info["final_obs"]``, (N, F) float32 with
    the mask ``info["_final_obs"]``). Otherwise as :class:`DreamEnv`.

    Args:
        mdnrnn: M; its weights are copied.
        initial_mu: (K, Z) float32, means of the latents an episode may start from.
        initial_logvar: (K, Z) float32, their log variances.
        num_envs: number N of dreams.
        temperature: of the sampling, at least 0.
        max_steps: the longest episode, in steps.
        features: "z", "zh", "zc" or "zch".
        action_low: scalar or (A,), the lowest actions.
        action_high: scalar or (A,), the highest actions.
        precision: "float32" or "bfloat16", as for ``Dream``.
        done_weight: None for ends where M's done logit is above 0, or a number for ends by chance, as for ``Dream``.
        num_threads: None for all cores this process may use.
        autoreset_mode: ``AutoresetMode.NEXT_STEP`` or ``AutoresetMode.SAME_STEP``.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        mdnrnn: MDNRNN,
        initial_mu: npt.ArrayLike,
        initial_logvar: npt.ArrayLike,
        *,
        num_envs: int = 1,
        temperature: float = 1.0,
        max_steps: int = 2100,
        features: Features = "zch",
        action_low: npt.ArrayLike = -1.0,
        action_high: npt.ArrayLike = 1.0,
        precision: Precision = "float32",
        done_weight: float | None = None,
        num_threads: int | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        if autoreset_mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            raise ValueError(f"autoreset_mode: expected NEXT_STEP or SAME_STEP, got {autoreset_mode!r}")
        self.metadata = {**self.metadata, "autoreset_mode": autoreset_mode}
        self._same_step = autoreset_mode is AutoresetMode.SAME_STEP
        self._dreams = _Dreams(
            mdnrnn,
            initial_mu,
            initial_logvar,
            num_envs,
            temperature,
            max_steps,
            features,
            num_threads,
            precision,
            done_weight,
        )
        self.num_envs = self._dreams.num_envs
        self.single_observation_space = self._dreams.observation_space
        self.single_action_space = _action_space(mdnrnn.action_size, action_low, action_high)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Starts the next episodes, or episode 0 of ``seed``: observations (N, F) and an empty info."""
        super().reset(seed=seed)
        self._dreams.set_options(options)
        if seed is not None or not self._seeded:
            self._dreams.seed_all(seed if seed is not None else int(self.np_random.integers(2**63)))
            self._seeded = True
        self._ended[:] = False
        self._dreams.reset(np.ones(self.num_envs, dtype=np.bool_))
        return self._dreams.observe(), {}

    def step(
        self, actions: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Plays one step; with NEXT_STEP, environments whose episode has ended start their next one instead.

        Args:
            actions: (N, A) float32.

        Returns:
            Observations (N, F) float32, rewards (N,) float32, terminations and truncations (N,) bool, and the
            info: empty, or with SAME_STEP the last observations of the episodes that ended.
        """
        if not self._seeded:
            raise gymnasium.error.ResetNeeded("call reset before step")
        starting = self._ended
        rewards, terminated, truncated = self._dreams.step(actions)
        if starting.any():
            self._dreams.reset(starting)
            rewards[starting] = 0
            terminated[starting] = truncated[starting] = False
        ended = terminated | truncated
        observations = self._dreams.observe()
        info: dict[str, Any] = {}
        if not self._same_step:
            self._ended = ended
        elif ended.any():
            info = {"final_obs": np.where(ended[:, None], observations, np.float32(0)), "_final_obs": ended}
            self._dreams.reset(ended)
            observations = self._dreams.observe()
        return observations, rewards, terminated, truncated, info
