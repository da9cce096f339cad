"""M as a Gymnasium environment, one dream or many at once, stepped by the native core."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from worldmodels import _core
from worldmodels.dream.native import check_temperature
from worldmodels.models.controller import Features
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.native_model import native_model
from worldmodels.support.forks import Lock
from worldmodels.support.simd import Precision, check_precision
from worldmodels.support.validation import MOST_SEED, check_integer, check_seed, check_threads, float_array

Array = npt.NDArray[Any]


class _Dreams:
    """N dreams that step together; each plays episodes 0, 1, 2, ... of a seed and a candidate of ``Dream.rollout``."""

    def __init__(
        self,
        mdnrnn: MDNRNN,
        initial_mu: npt.ArrayLike,
        initial_logvar: npt.ArrayLike,
        num_envs: int,
        temperature: float,
        max_steps: int,
        features: Features,
        action_low: npt.ArrayLike,
        action_high: npt.ArrayLike,
        num_threads: int | None,
        precision: Precision,
        done_weight: float | None,
    ) -> None:
        if features not in get_args(Features):
            raise ValueError(f"features: expected one of {', '.join(get_args(Features))}, got {features!r}")
        self.num_envs = check_integer("num_envs", num_envs, 1, 2**24)
        self.threads = check_threads(num_threads)
        self.temperature = check_temperature(temperature)
        self.max_steps = check_integer("max_steps", max_steps, 1, 2**31 - 1)
        self.use_c, self.use_h = "c" in features, "h" in features
        check_precision(precision)
        self.precision = precision
        self.lock = Lock()  # a call of the environment is several of the stepper
        self._model = native_model(mdnrnn, initial_mu, initial_logvar, precision, done_weight=done_weight)
        self._stepper = _core.DreamStepper(self._model.core, self.num_envs)
        self.latent_size, self.hidden_size = mdnrnn.latent_size, mdnrnn.hidden_size
        self.action_size = mdnrnn.action_size
        self.seeded = False
        self._seeds = np.zeros(self.num_envs, np.uint64)
        self._candidates = np.zeros(self.num_envs, np.uint32)
        self._episodes = np.zeros(self.num_envs, np.uint32)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self.action_space = _action_space(mdnrnn.action_size, action_low, action_high)
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (mdnrnn.latent_size + mdnrnn.hidden_size * (len(features) - 1),), np.float32
        )

    def __getstate__(self) -> dict[str, Any]:
        arrays = {name: value.copy() for name, value in self.__dict__.items() if isinstance(value, np.ndarray)}
        return {**self.__dict__, **arrays, "_stepper": self._stepper.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=Lock())
        self._stepper = _core.DreamStepper(self._model.core, self.num_envs)
        self._stepper.set_state(state["_stepper"])

    def seed(self, which: npt.NDArray[np.bool_], seeds: Any, candidates: Any) -> None:
        """Gives the masked dreams a seed and a candidate, (N,) or one for all: their next reset plays episode 0."""
        self._seeds[which] = np.broadcast_to(np.asarray(seeds, np.uint64), self.num_envs)[which]
        self._candidates[which] = np.broadcast_to(np.asarray(candidates, np.uint32), self.num_envs)[which]
        self._episodes[which] = np.uint32(2**32 - 1)  # one before 0
        self.seeded = True

    def reset(self, which: npt.NDArray[np.bool_]) -> None:
        """Starts the next episode of the masked dreams."""
        self._episodes[which] += np.uint32(1)
        self._lengths[which] = 0
        self._stepper.reset(self._seeds, self._candidates, self._episodes, which)

    def step(self, actions: Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Steps all: rewards, terminations, truncations, each (N,)."""
        rewards, done = self._stepper.step(self.temperature, self._clipped(np.asarray(actions)), self.threads)
        self._lengths += 1
        return rewards, done, ~done & (self._lengths >= self.max_steps)

    def _clipped(self, actions: Array) -> npt.NDArray[np.float32]:
        """(N, A) float32: finite actions, clipped to the action space."""
        shape = (self.num_envs, self.action_size)
        if actions.shape != shape or actions.dtype.kind not in "fiu":
            raise ValueError(f"actions: expected {shape} float32, got {actions.shape} {actions.dtype}")
        if not (finite := np.isfinite(actions)).all():
            index = int(np.argmin(finite))
            raise ValueError(f"actions: expected finite numbers, got {actions.flat[index]} at flat index {index}")
        low, high = self.action_space.low, self.action_space.high
        return float_array("actions", np.clip(actions, low, high), shape)  # in the wider of the two dtypes

    def observe(self) -> npt.NDArray[np.float32]:
        """[z, c, h] of every dream, those wanted: (N, F) float32."""
        return self._stepper.observe(self.use_c, self.use_h, self.threads)


class _Snapshots:
    """Pickles and copies of an environment: its state between two calls, whatever other threads do."""

    _dreams: _Dreams

    def __getstate__(self) -> dict[str, Any]:
        with self._dreams.lock:
            changing = {
                name: copy.deepcopy(value)
                for name, value in self.__dict__.items()
                if isinstance(value, np.ndarray | np.random.Generator)
            }
            return {**self.__dict__, **changing, "_dreams": copy.copy(self._dreams)}


def _temperature(options: Mapping[str, Any] | None, *others: str) -> float | None:
    """The temperature of reset's options, if there is one; ``others`` may be among them too."""
    known = ("temperature", *others)
    unknown = set(options or {}) - set(known)
    if unknown:
        names = " and ".join(map(repr, known))
        raise ValueError(f"options: expected only {names}, got {', '.join(sorted(map(repr, unknown)))}")
    return check_temperature(options["temperature"]) if options and "temperature" in options else None


def _is_many(seed: Any) -> bool:
    """Whether reset's seed is one of each environment."""
    return hasattr(seed, "__iter__") and not isinstance(seed, str | bytes) and getattr(seed, "ndim", 1) > 0


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


class DreamEnv(_Snapshots, gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """One dream. Plays the streams of candidate 0 of ``Dream.rollout`` with the same seed.

    Observation: [z, c, h] (those of ``features``), float32. Reward: M's reward head, or 1 a step. Terminated
    when M says done, truncated at ``max_steps``. ``reset(options={"temperature": t})`` changes the
    temperature from then on. Without a seed, ``reset`` goes on to the next episode of the last one.

    Actions are clipped to the action space, integers are converted, numbers that are not finite are refused. A pickle
    or a deep copy is independent of its original and continues in the middle of an episode with the same bits.

    Args:
        mdnrnn: M; its weights are copied.
        initial_mu: (K, Z) float32, means of the latents an episode may start from.
        initial_logvar: (K, Z) float32, their log variances.
        temperature: of the sampling, at least 0.
        max_steps: the longest episode, in steps.
        features: "z", "zh", "zc" or "zch".
        action_low: scalar or (A,), the lowest actions; -inf for no bound.
        action_high: scalar or (A,), the highest actions; inf for no bound.
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
            mdnrnn,
            initial_mu,
            initial_logvar,
            1,
            temperature,
            max_steps,
            features,
            action_low,
            action_high,
            1,
            precision,
            done_weight,
        )
        self.observation_space = self._dreams.observation_space
        self.action_space: gymnasium.spaces.Box = self._dreams.action_space  # type: ignore[assignment]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Starts the next episode, or episode 0 of ``seed``: the observation (F,) and an empty info."""
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
            return dreams.observe()[0], {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Plays one step.

        Args:
            action: (A,) float32, clipped to the action space.

        Returns:
            The observation (F,), the reward, terminated, truncated and an empty info.

        Raises:
            ValueError: the action has another shape or is not finite.
        """
        with self._dreams.lock:
            if not self._dreams.seeded:
                raise gymnasium.error.ResetNeeded("call reset before step")
            rewards, terminated, truncated = self._dreams.step(np.asarray(action)[None])
            return self._dreams.observe()[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}


class DreamVectorEnv(
    _Snapshots, gymnasium.vector.VectorEnv[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[Any]]
):
    """Many dreams stepped by one native call.

    ``reset(seed=s)``: environment i plays candidate i of ``Dream.rollout(seed=s)``. ``reset(seed=[s_0, s_1, ...])``:
    environment i plays what ``DreamEnv.reset(seed=s_i)`` plays; with None it plays the next episode of its seed, or of
    one drawn from ``np_random`` if it has none yet. After its first episode an environment continues with the next
    ones of its seed. ``reset(options={"reset_mask": mask})``, (N,) bool, resets the masked environments alone. It
    combines with seeds and with the temperature, which is that of all environments.

    Autoreset is one of Gymnasium's modes. ``NEXT_STEP``: the step after an episode's end ignores the action, starts
    the next episode and returns its first observation with reward 0. ``SAME_STEP``: the step that ends an episode
    returns the first observation of the next one, and the last one in ``info["final_obs"]``, (N, F) float32 with
    the mask ``info["_final_obs"]``, next to an empty ``info["final_info"]``. ``DISABLED``: the caller resets, by
    ``reset_mask``. Otherwise as :class:`DreamEnv`.

    Args:
        mdnrnn: M; its weights are copied.
        initial_mu: (K, Z) float32, means of the latents an episode may start from.
        initial_logvar: (K, Z) float32, their log variances.
        num_envs: number N of dreams.
        temperature: of the sampling, at least 0.
        max_steps: the longest episode, in steps.
        features: "z", "zh", "zc" or "zch".
        action_low: scalar or (A,), the lowest actions; -inf for no bound.
        action_high: scalar or (A,), the highest actions; inf for no bound.
        precision: "float32" or "bfloat16", as for ``Dream``.
        done_weight: None for ends where M's done logit is above 0, or a number for ends by chance, as for ``Dream``.
        num_threads: None for as many as there are cores, or OMP_NUM_THREADS if that is less.
        autoreset_mode: one of ``AutoresetMode``, or its value.
        max_episode_steps: another name of ``max_steps``, which ``gymnasium.make_vec`` uses; the smaller one counts.

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
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        try:
            self._mode = AutoresetMode(autoreset_mode)
        except ValueError:
            names = ", ".join(mode.name for mode in AutoresetMode)
            raise ValueError(f"autoreset_mode: expected one of {names}, got {autoreset_mode!r}") from None
        if max_episode_steps is not None:
            max_steps = min(
                check_integer("max_steps", max_steps, 1, 2**31 - 1),
                check_integer("max_episode_steps", max_episode_steps, 1, 2**31 - 1),
            )
        self.metadata = {**self.metadata, "autoreset_mode": self._mode}
        self._dreams = _Dreams(
            mdnrnn,
            initial_mu,
            initial_logvar,
            num_envs,
            temperature,
            max_steps,
            features,
            action_low,
            action_high,
            num_threads,
            precision,
            done_weight,
        )
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
        """Starts the next episodes, or episode 0 of the seeds.

        Args:
            seed: Seed of all environments, or (N,) one of each with None to keep the one it has.
            options: ``"temperature"``, and ``"reset_mask"``: (N,) bool, the environments to reset.

        Returns:
            Observations of all environments (N, F), and an empty info.

        Raises:
            TypeError, ValueError: an argument does not fit; nothing has been reset.
            gymnasium.error.ResetNeeded: a mask leaves out environments that were never reset.
        """
        temperature = _temperature(options, "reset_mask")
        which = self._masked(options)
        dreams = self._dreams
        seeds = self._checked_seeds(seed) if _is_many(seed) else None
        single = check_seed(seed) if seeds is None and seed is not None else None
        with dreams.lock:
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
        """(N,): the environments that are reset."""
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
        """A seed of every environment, None for a fresh one."""
        shape = np.shape(seeds) if isinstance(seeds, np.ndarray) else (len(seeds),)
        if shape != (self.num_envs,):
            raise ValueError(f"seed: expected ({self.num_envs},) integers or None, got {shape}")
        return [None if one is None else check_integer("seed", one, 0, MOST_SEED) for one in seeds]

    def step(
        self, actions: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Plays one step; with NEXT_STEP, environments whose episode has ended start their next one instead.

        Args:
            actions: (N, A) float32, clipped to the action space.

        Returns:
            Observations (N, F) float32, rewards (N,) float32, terminations and truncations (N,) bool, and the
            info: empty, or with SAME_STEP the last observations of the episodes that ended.

        Raises:
            ValueError: the actions have another shape or are not finite.
            gymnasium.error.ResetNeeded: no reset yet, or with DISABLED, none since an episode's end.
        """
        with self._dreams.lock:
            return self._step(actions)

    def _step(
        self, actions: Array
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        dreams, starting = self._dreams, self._ended
        if not dreams.seeded:
            raise gymnasium.error.ResetNeeded("call reset before step")
        if self._mode is AutoresetMode.DISABLED and starting.any():
            raise gymnasium.error.ResetNeeded(
                f"the episodes of environments {np.flatnonzero(starting).tolist()} have ended: reset them with "
                "options={'reset_mask': mask} before the next step"
            )
        rewards, terminated, truncated = dreams.step(actions)
        if starting.any():
            dreams.reset(starting)
            rewards[starting] = 0
            terminated[starting] = truncated[starting] = False
        ended = terminated | truncated
        observations = dreams.observe()
        info: dict[str, Any] = {}
        if self._mode is not AutoresetMode.SAME_STEP:
            self._ended = ended
        elif ended.any():
            final = np.where(ended[:, None], observations, np.float32(0))
            info = {"final_obs": final, "_final_obs": ended, "final_info": {}, "_final_info": ended.copy()}
            dreams.reset(ended)
            observations = dreams.observe()
        return observations, rewards, terminated, truncated, info
