"""The agent: V, M and C acting on batches of real frames."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from worldmodels import pretrained
from worldmodels.models.controller import Controller, chosen_values
from worldmodels.models.decoder import Decoder
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import LSTMState
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.sharing import Shared
from worldmodels.models.vae import ConvVAE
from worldmodels.models.weights import load_model, load_tensors, save_tensors
from worldmodels.support.cpu import available_cpus
from worldmodels.support.files import write_json
from worldmodels.support.forks import Lock
from worldmodels.support.profile import phase
from worldmodels.support.validation import any_array, check_integer, check_seed, distinct_env_ids, exact_array

_CHANGING = ("_lstm_state", "_generators", "_restart", "_slot_params", "z")  # attributes that acting modifies


class AgentState(NamedTuple):
    """State of :meth:`Agent.predict` between two calls, of B environments.

    Attributes:
        h: (B, H) float32 hidden states of M.
        c: (B, H) float32 cell states of M.
        episode: (B,) int64 number of each environment's episode, from 0.
        step: (B,) int64 number of frames of the episode so far.
    """

    h: npt.NDArray[np.float32]
    c: npt.NDArray[np.float32]
    episode: npt.NDArray[np.int64]
    step: npt.NDArray[np.int64]


class Agent(Shared):
    """V, M and C acting on batches of real frames, with one LSTM state per environment.

    Every step V encodes the frame, C acts on [z, c, h], and M's LSTM advances by z and the action. A pickle or a deep
    copy is independent of its original and continues an episode with the same actions. Concurrent calls are
    serialized.

    Args:
        vae: V.
        mdnrnn: M; its latent size is V's.
        controller: Architecture of C.
        params: (controller.size,) float32 or float64 parameters of C, finite.

    Raises:
        ValueError: Sizes do not match, or ``params`` are not finite.

    Source: Ha & Schmidhuber (2018), section 2.4 and figure 8.
    """

    _FILES = ("vae/vae.safetensors", "rnn/rnn.safetensors", "evolve/controller.safetensors")

    def __init__(self, vae: ConvVAE, mdnrnn: MDNRNN, controller: Controller, params: npt.NDArray[np.floating]) -> None:
        sizes = (controller.latent_size, controller.hidden_size, controller.action_size)
        wanted = (vae.latent_size, mdnrnn.hidden_size, mdnrnn.action_size)
        if sizes != wanted or mdnrnn.latent_size != vae.latent_size:
            raise ValueError(f"controller: expected (latent, hidden, action) sizes {wanted} of V and M, got {sizes}")
        self.vae, self.mdnrnn, self.controller = vae, mdnrnn.eval(), controller
        self.params = _checked_params(params, controller.size)
        threads = min(torch.get_num_threads(), available_cpus())
        self._encoder = Encoder(vae, torch.device("cpu"), block=1, num_threads=threads)
        self._lstm_state = LSTMState(mdnrnn, 1, threads)
        self._lock = Lock()
        self.reset(1)

    def __repr__(self) -> str:
        of = self.controller
        return (
            f"Agent(latent_size={of.latent_size}, hidden_size={of.hidden_size}, action_size={of.action_size}, "
            f"parameters={of.size}, batch={len(self._restart)})"
        )

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            changing = {name: copy.deepcopy(getattr(self, name)) for name in _CHANGING}
            return {**self.__dict__, **changing}

    def _check_savable(self) -> None:
        self.vae._check_savable()
        self.mdnrnn._check_savable()
        json.dumps(asdict(self.controller))
        _checked_params(self.params, self.controller.size)

    def _save(self, folder: Path) -> None:
        self.vae._save(folder)
        self.mdnrnn._save(folder)
        save_controller(folder / self._FILES[2], self.controller, self.params)

    @classmethod
    def _load(cls, folder: Path) -> Self:
        vae = load_model(folder / "vae" / "vae.safetensors", ConvVAE)
        mdnrnn = load_model(folder / "rnn" / "rnn.safetensors", MDNRNN)
        controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
        return cls(vae, mdnrnn, controller, params)

    @classmethod
    def load(cls, run_folder: str | Path) -> Self:
        """Load the agent of a run folder or a pretrained agent.

        Args:
            run_folder: Folder of a run in which the stage ``evolve`` has exported a controller, or name of a pretrained
                agent.

        Raises:
            FileNotFoundError: The run has no controller yet.
            ValueError: A file is damaged.
            RuntimeError: This process was forked from one that had used PyTorch's threads.
        """
        return cls._load(pretrained.find("run_folder", run_folder))

    @classmethod
    def pretrained(cls, name: str) -> Agent:
        """Load a pretrained agent.

        Args:
            name: Name of the agent, ``"takecover"`` or ``"carracing"``.

        Raises:
            ValueError: There is no such agent, or a file is damaged.
        """
        return cls._load(pretrained.folder(name))

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """Reset all LSTM states; ``batch`` episodes start.

        Args:
            batch: Number of environments.
            seed: Seed of the sampled latents.
        """
        batch, seed = check_integer("batch", batch, 1, 2**20), check_seed(seed)
        with self._lock:
            self._seed = seed
            self._lstm_state.reset(batch)
            self._generators = [_generator(seed, env_id) for env_id in range(batch)]
            self._restart = np.ones(batch, np.bool_)
            self._slot_params: dict[int, npt.NDArray[np.float32]] = {}
            self.z = np.zeros((batch, self.vae.latent_size), np.float32)  # latest latents, for observers

    def set_params(self, env_id: int, params: npt.NDArray[np.floating] | None) -> None:
        """Set the controller of one environment until the next reset.

        Args:
            env_id: Index of the environment.
            params: (controller.size,) parameters, which are copied; None for those of the agent.

        Raises:
            TypeError, ValueError: An argument is invalid; the controllers are unchanged.
        """
        env_id = check_integer("env_id", env_id, 0, len(self._restart) - 1)
        if params is not None:
            params = _checked_params(params, self.controller.size)
        with self._lock:
            if params is None:
                self._slot_params.pop(env_id, None)
            else:
                self._slot_params[env_id] = params

    def act(
        self,
        frames: npt.NDArray[np.uint8],
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        forced_actions: npt.NDArray[np.float32] | None = None,
        env_ids: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Compute an action for every frame and advance the LSTM states.

        Args:
            frames: (B, 64, 64, 3) uint8 frames.
            restart: (B,) bool flags of the first frame of an episode; None if episodes start only at resets.
            episodes: (B,) indices of the episodes. Where ``restart`` is set, the index selects the random stream of
                the sampled latents. None for the environment indices.
            forced_actions: (B, A) float32 actions that replace the agent's own, NaN where the agent decides.
            env_ids: (B,) distinct indices of the environments that act; None for all.

        Returns:
            (B, A) float32 actions.

        Raises:
            TypeError: An argument is not an array.
            ValueError: A shape, dtype or value is invalid. The LSTM states are unchanged.
        """
        with self._lock:
            return self._act(frames, restart, episodes, forced_actions, env_ids)

    def predict(
        self,
        observation: npt.NDArray[np.uint8],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], AgentState]:
        """Compute actions from frames and a given state, with the signature of Stable-Baselines3's ``predict``.

        The agent is not modified. Latents are sampled with the seed of :meth:`reset`, or 0 if it was not called.

        Args:
            observation: (B, 64, 64, 3) uint8 frames, or one frame (64, 64, 3).
            state: State that the call for the previous frames returned; None if all episodes start.
            episode_start: (B,) bool flags of the first frame of an episode; None for none.
            deterministic: Whether z is V's mean, instead of sampled as in :meth:`act`.

        Returns:
            Actions, and the state for the next call. Actions are (B, A) float32, or int64 for a C of discrete actions:
            (B,) for one and (B, k) for k of them. For a single frame there is no axis B.

        Raises:
            TypeError: The state was not returned by this method, or an argument is not an array.
            ValueError: A shape, dtype or value is invalid.
        """
        frames = any_array("observation", observation)
        single = frames.ndim == 3
        frames = frames[None] if single else frames
        with self._lock:
            actions, after = self._predict(frames, state, episode_start, deterministic)
        if self.controller.choices:
            values = chosen_values(actions, self.controller.choices)
            return (values[:, 0] if len(self.controller.choices) == 1 else values)[0 if single else slice(None)], after
        return actions[0 if single else slice(None)], after

    def _predict(
        self,
        frames: npt.NDArray[np.uint8],
        state: tuple[npt.NDArray[Any], ...] | None,
        episode_start: npt.NDArray[np.bool_] | None,
        deterministic: bool,
    ) -> tuple[npt.NDArray[np.float32], AgentState]:
        batch = len(frames) if frames.ndim else 0
        frames = exact_array("observation", frames, (batch, 64, 64, 3), np.uint8)
        before = self._checked_state(state, batch)
        begins = np.zeros(batch, np.bool_) if state is not None else np.ones(batch, np.bool_)
        if episode_start is not None:
            begins |= exact_array("episode_start", episode_start, (batch,), np.bool_)
        episode, step = before.episode + begins, np.where(begins, 0, before.step)
        z, logvar = self._encoder(frames)
        if not deterministic:
            keys = zip(range(batch), episode.tolist(), step.tolist(), strict=True)
            streams = [_generator(self._seed, *key) for key in keys]
            z = z + np.exp(0.5 * logvar) * np.stack([one.standard_normal(z.shape[1], np.float32) for one in streams])
        keep = ~begins[:, None]
        features = self.controller.join(z, before.c * keep, before.h * keep)
        actions = self.controller.act_each(np.tile(self.params, (batch, 1)), features)
        h, c = self._lstm_state.advance(z, actions, begins, before.h, before.c)
        return actions, AgentState(h, c, episode, step + 1)

    def _checked_state(self, state: tuple[npt.NDArray[Any], ...] | None, batch: int) -> AgentState:
        """Validate a state, or create that before the first episodes."""
        floats = (batch, self.controller.hidden_size)
        if state is None:
            h, c = np.zeros((2, *floats), np.float32)
            return AgentState(h, c, np.full(batch, -1), np.zeros(batch, np.int64))
        if not isinstance(state, tuple) or len(state) != len(AgentState._fields):
            raise TypeError(f"state: expected None or a state that predict has returned, got {state!r:.100}")
        h, c, episode, step = state
        found = AgentState(
            exact_array("state.h", h, floats, np.float32),
            exact_array("state.c", c, floats, np.float32),
            exact_array("state.episode", episode, (batch,), np.int64),
            exact_array("state.step", step, (batch,), np.int64),
        )
        for name in ("h", "c"):
            if not np.isfinite(getattr(found, name)).all():
                raise ValueError(f"state.{name}: expected finite numbers, got NaN or infinity")
        for name in ("episode", "step"):
            if (getattr(found, name) < 0).any():
                raise ValueError(f"state.{name}: expected integers of at least 0, got {getattr(found, name).min()}")
        return found

    def _act(
        self,
        frames: npt.NDArray[np.uint8],
        restart: npt.NDArray[np.bool_] | None,
        episodes: npt.NDArray[np.int64] | None,
        forced_actions: npt.NDArray[np.float32] | None,
        env_ids: npt.NDArray[np.int64] | None,
    ) -> npt.NDArray[np.float32]:
        total = len(self._restart)
        busy = np.arange(total) if env_ids is None else distinct_env_ids(env_ids, total)
        batch = len(busy)
        frames = exact_array("frames", frames, (batch, 64, 64, 3), np.uint8)
        if episodes is not None:
            episodes = _numbers("episodes", episodes, batch)
        if forced_actions is not None:
            forced_actions = _actions("forced_actions", forced_actions, (batch, self.controller.action_size))
        if restart is not None:
            self._restart[busy] |= exact_array("restart", restart, (batch,), np.bool_)
        begins = self._restart[busy]
        for first in np.flatnonzero(begins):
            episode = int(busy[first] if episodes is None else episodes[first])
            self._generators[busy[first]] = _generator(self._seed, episode)

        with phase("V"):
            mu, logvar = self._encoder(frames)
            noise = np.stack([self._generators[env_id].standard_normal(mu.shape[1], np.float32) for env_id in busy])
            z = mu + np.exp(0.5 * logvar) * noise
        self.z[busy] = z

        with phase("C"):
            keep = ~begins[:, None]
            features = self.controller.join(z, self._lstm_state.c[busy] * keep, self._lstm_state.h[busy] * keep)
            params = np.stack([self._slot_params.get(env_id, self.params) for env_id in busy.tolist()])
            actions = self.controller.act_each(params, features)
            if forced_actions is not None:
                actions = np.where(np.isnan(forced_actions), actions, forced_actions)
        with phase("M"):
            self._lstm_state.step(busy, z, actions, begins)
        self._restart[busy] = False
        return actions


def _generator(seed: int, *key: int) -> np.random.Generator:
    """Create the generator of a key of up to three integers; zeros at its end make no difference."""
    if seed < 2**32:
        return np.random.default_rng([seed, *key])
    # the words of a larger seed in such a list would be those of a smaller one and its key
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(*key, 0, 0)[:3]))


def _checked_params(params: npt.ArrayLike, size: int) -> npt.NDArray[np.float32]:
    """Validate (size,) finite parameters and copy them to float32."""
    array = any_array("params", params)
    if array.shape != (size,) or array.dtype.kind not in "fiu":
        raise ValueError(f"params: expected ({size},) finite numbers, got {array.shape} {array.dtype}")
    with np.errstate(over="ignore"):  # numbers beyond float32 become inf
        copied = array.astype(np.float32)
    if not (finite := np.isfinite(copied)).all():
        index = int(np.argmin(finite))
        raise ValueError(f"params: expected ({size},) finite numbers, got {copied[index]} at [{index}]")
    return copied


def _numbers(name: str, given: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """Validate (count,) integers >= 0."""
    array = any_array(name, given)
    if array.shape != (count,) or array.dtype.kind not in "iu" or (array < 0).any():
        raise ValueError(f"{name}: expected ({count},) integers of at least 0, got {array!r:.200}")
    return array


def _actions(name: str, given: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Convert actions to float32 and check that each is finite or NaN."""
    array = any_array(name, given)
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(f"{name}: expected {shape} float32, got {array.shape} {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become inf
        array = array.astype(np.float32)
    if np.isinf(array).any():
        raise ValueError(f"{name}: expected finite numbers or NaN, got inf")
    return array


class Population:
    """V and M with one controller per episode.

    Args:
        agent: Agent that provides V, M and the architecture of C.
        params: (P, agent.controller.size) float32 parameters; episode e is played with row e % P.
    """

    def __init__(self, agent: Agent, params: npt.NDArray[np.float32]) -> None:
        self._agent, self._params = agent, params

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """See :meth:`Agent.reset`."""
        self._agent.reset(batch, seed=seed)

    def act(
        self,
        frames: npt.NDArray[np.uint8],
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        env_ids: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """See :meth:`Agent.act`; ``restart`` and ``episodes`` are required."""
        assert restart is not None and episodes is not None
        for row in np.flatnonzero(restart):
            env_id = int(row if env_ids is None else env_ids[row])
            self._agent.set_params(env_id, self._params[episodes[row] % len(self._params)])
        return self._agent.act(frames, restart, episodes, env_ids=env_ids)


class Recorder:
    """Agent in one environment that records its frames, latents and actions."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.frames: list[npt.NDArray[np.uint8]] = []
        self.latents: list[npt.NDArray[np.float32]] = []
        self.actions: list[npt.NDArray[np.float32]] = []

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """See :meth:`Agent.reset`."""
        self.agent.reset(batch, seed=seed)

    def act(
        self,
        frames: npt.NDArray[np.uint8],
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        env_ids: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """See :meth:`Agent.act`; records environment 0, which must act in every call."""
        actions = self.agent.act(frames, restart, episodes, env_ids=env_ids)
        self.frames.append(frames[0].copy())
        self.latents.append(self.agent.z[0].copy())
        self.actions.append(actions[0])
        return actions

    def reconstructions(self, steps: int | None = None) -> npt.NDArray[np.uint8]:
        """Return V's reconstructions of the first ``steps`` frames: (T, 64, 64, 3) uint8."""
        return Decoder(self.agent.vae)(np.stack(self.latents[:steps]))


def save_controller(path: Path, controller: Controller, params: npt.NDArray[np.floating], **metadata: Any) -> None:
    """Write a controller with its ``config`` and ``metadata``, and the same metadata as a JSON file.

    Args:
        path: File of the controller.
        controller: Its shape.
        params: (controller.size,) parameters; stored in float32.
        metadata: JSON values to store next to them.
    """
    about = {"model": "Controller", "config": asdict(controller), **metadata}
    save_tensors(path, {"params": torch.from_numpy(np.array(params, np.float32))}, about)
    write_json(path.with_suffix(".json"), about)


def load_controller(path: Path) -> tuple[Controller, npt.NDArray[np.float32], dict[str, Any]]:
    """Load a controller.

    Args:
        path: File of the controller.

    Returns:
        Its shape, its (N,) float32 parameters and its metadata.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged or has other contents.
    """
    tensors, metadata = load_tensors(path)
    try:
        controller, params = Controller(**metadata["config"]), tensors["params"].float().numpy()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a controller, got {error!r:.500}") from error
    if params.shape != (controller.size,):
        raise ValueError(f"{path}: expected ({controller.size},) parameters as its config implies, got {params.shape}")
    return controller, params, metadata
