"""The agent: V encodes real frames, C acts on them and on M's memory, M moves its memory on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worldmodels import pretrained
from worldmodels.models.controller import Controller
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import Memory
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.vae import ConvVAE, decode
from worldmodels.models.weights import load_model, load_tensors
from worldmodels.support.cpu import cores
from worldmodels.support.forks import Lock
from worldmodels.support.validation import any_array, check_integer, check_seed, different_slots, exact_array

_CHANGING = ("_memory", "_generators", "_restart", "_own", "z")  # what acting changes


class Agent:
    """V, M and C acting on batches of real frames, one memory per slot of the batch.

    A pickle or a deep copy is independent of its original and continues in the middle of an episode with the same
    actions. Calls from several threads take turns.

    Args:
        vae: V.
        mdnrnn: M; its latent size is V's.
        controller: C's shape.
        params: (controller.size,) C's parameters.

    Raises:
        ValueError: sizes do not fit or ``params`` are not finite.

    Source: Ha & Schmidhuber (2018), section 2.4 and figure 8.
    """

    def __init__(self, vae: ConvVAE, mdnrnn: MDNRNN, controller: Controller, params: npt.NDArray[np.floating]) -> None:
        sizes = (controller.latent_size, controller.hidden_size, controller.action_size)
        wanted = (vae.latent_size, mdnrnn.hidden_size, mdnrnn.action_size)
        if sizes != wanted or mdnrnn.latent_size != vae.latent_size:
            raise ValueError(f"controller: expected (latent, hidden, action) sizes {wanted} of V and M, got {sizes}")
        params = np.array(params, np.float32)
        if params.shape != (controller.size,) or not np.isfinite(params).all():
            raise ValueError(f"params: expected ({controller.size},) finite numbers, got {params.shape}")
        self.vae, self.mdnrnn, self.controller, self.params = vae, mdnrnn.eval(), controller, params
        threads = min(torch.get_num_threads(), cores())
        self._encoder = Encoder(vae, torch.device("cpu"), block=1, num_threads=threads)
        self._memory = Memory(mdnrnn, 1, threads)
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

    @classmethod
    def load(cls, run_folder: str | Path) -> Agent:
        """Loads the agent of a run folder.

        Raises:
            FileNotFoundError: the run has not evolved a controller yet.
            ValueError: a file is damaged.
            RuntimeError: this process was forked from one that had used PyTorch's threads.
        """
        folder = Path(run_folder)
        vae = load_model(folder / "vae" / "vae.safetensors", ConvVAE)
        mdnrnn = load_model(folder / "rnn" / "rnn.safetensors", MDNRNN)
        controller, params, _ = load_controller(folder / "evolve" / "controller.safetensors")
        return cls(vae, mdnrnn, controller, params)

    @classmethod
    def pretrained(cls, name: str) -> Agent:
        """Loads the agent that comes with the package: ``"takecover"``.

        Raises:
            ValueError: there is no such agent, or a file is damaged.
        """
        return cls.load(pretrained.folder(name))

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """Forgets everything: ``batch`` episodes begin.

        Args:
            batch: slots.
            seed: of the sampled latents.
        """
        batch, seed = check_integer("batch", batch, 1, 2**20), check_seed(seed)
        with self._lock:
            self._seed = seed
            self._memory.forget(batch)
            self._generators = [self._generator(slot) for slot in range(batch)]
            self._restart = np.ones(batch, np.bool_)
            self._own: dict[int, npt.NDArray[np.float32]] = {}
            self.z = np.zeros((batch, self.vae.latent_size), np.float32)  # the latest latents, for those who look on

    def assign(self, slot: int, params: npt.NDArray[np.float32] | None) -> None:
        """Gives a slot a controller of its own, (controller.size,) float32, until the next reset; None: the agent's."""
        slot = check_integer("slot", slot, 0, len(self._restart) - 1)
        if params is not None:
            params = exact_array("params", params, (self.controller.size,), np.float32)
        with self._lock:
            if params is None:
                self._own.pop(slot, None)
            else:
                self._own[slot] = params

    def _generator(self, episode: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, episode])

    def act(
        self,
        frames: npt.NDArray[np.uint8],
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        overrule: npt.NDArray[np.float32] | None = None,
        slots: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Acts on a frame per slot and remembers it.

        Args:
            frames: (B, 64, 64, 3) uint8.
            restart: (B,) bool: slots whose frame is the first of an episode; None for only those just reset.
            episodes: (B,) numbers of the episodes that are played; where ``restart`` is True they choose the random
                stream of the sampled latents. None for the numbers of the slots.
            overrule: (B, A) float32 actions to take and remember instead of the agent's own; NaN where it decides.
            slots: (B,) different slots that act, the others rest; None for all of them.

        Returns:
            (B, A) float32 actions.

        Raises:
            TypeError: an argument is no array.
            ValueError: another shape or dtype, or a number that does not fit; nothing has been remembered.
        """
        with self._lock:
            return self._act(frames, restart, episodes, overrule, slots)

    def _act(
        self,
        frames: npt.NDArray[np.uint8],
        restart: npt.NDArray[np.bool_] | None,
        episodes: npt.NDArray[np.int64] | None,
        overrule: npt.NDArray[np.float32] | None,
        slots: npt.NDArray[np.int64] | None,
    ) -> npt.NDArray[np.float32]:
        total = len(self._restart)
        busy = np.arange(total) if slots is None else different_slots(slots, total)
        batch = len(busy)
        frames = exact_array("frames", frames, (batch, 64, 64, 3), np.uint8)
        if episodes is not None:
            episodes = _numbers("episodes", episodes, batch)
        if overrule is not None:
            overrule = _actions("overrule", overrule, (batch, self.controller.action_size))
        if restart is not None:
            self._restart[busy] |= exact_array("restart", restart, (batch,), np.bool_)
        begins = self._restart[busy]
        for first in np.flatnonzero(begins):
            self._generators[busy[first]] = self._generator(int(busy[first] if episodes is None else episodes[first]))

        mu, logvar = self._encoder(frames)
        noise = np.stack([self._generators[slot].standard_normal(mu.shape[1], np.float32) for slot in busy])
        z = mu + np.exp(0.5 * logvar) * noise
        self.z[busy] = z

        keep = ~begins[:, None]
        features = self.controller.join(z, self._memory.c[busy] * keep, self._memory.h[busy] * keep)
        params = np.stack([self._own.get(slot, self.params) for slot in busy.tolist()])
        actions = self.controller.act_each(params, features)
        if overrule is not None:
            actions = np.where(np.isnan(overrule), actions, overrule)
        self._memory.step(busy, z, actions, begins)
        self._restart[busy] = False
        return actions


def _numbers(name: str, given: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """(count,) integers of at least 0."""
    array = any_array(name, given)
    if array.shape != (count,) or array.dtype.kind not in "iu" or (array < 0).any():
        raise ValueError(f"{name}: expected ({count},) integers of at least 0, got {array!r:.200}")
    return array


def _actions(name: str, given: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Actions in float32, each finite or NaN."""
    array = any_array(name, given)
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(f"{name}: expected {shape} float32, got {array.shape} {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # too large becomes inf; any NaN is one
        array = array.astype(np.float32)
    if np.isinf(array).any():
        raise ValueError(f"{name}: expected finite numbers or NaN, got inf")
    return array


class Candidates:
    """V and M with a controller of its own in every episode.

    Args:
        agent: of the V, the M and the shape of C.
        params: (P, agent.controller.size) float32; episode e is played with row e % P.
    """

    def __init__(self, agent: Agent, params: npt.NDArray[np.float32]) -> None:
        self._agent, self._params = agent, params

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """As the agent's."""
        self._agent.reset(batch, seed=seed)

    def act(
        self,
        frames: npt.NDArray[np.uint8],
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        slots: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """As the agent's; ``restart`` and ``episodes`` are needed."""
        assert restart is not None and episodes is not None
        for row in np.flatnonzero(restart):
            slot = int(row if slots is None else slots[row])
            self._agent.assign(slot, self._params[episodes[row] % len(self._params)])
        return self._agent.act(frames, restart, episodes, slots=slots)


class Recorder:
    """An agent that plays in one slot and whose frames, latents and actions are kept."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.frames: list[npt.NDArray[np.uint8]] = []
        self.latents: list[npt.NDArray[np.float32]] = []
        self.actions: list[npt.NDArray[np.float32]] = []

    def reset(self, batch: int, *, seed: int = 0) -> None:
        """As the agent's."""
        self.agent.reset(batch, seed=seed)

    def act(
        self,
        frames: npt.NDArray[np.uint8],
        restart: npt.NDArray[np.bool_] | None = None,
        episodes: npt.NDArray[np.int64] | None = None,
        *,
        slots: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """As the agent's; kept is what slot 0 does, which always acts."""
        actions = self.agent.act(frames, restart, episodes, slots=slots)
        self.frames.append(frames[0].copy())
        self.latents.append(self.agent.z[0].copy())
        self.actions.append(actions[0])
        return actions

    def reconstructions(self, steps: int | None = None) -> npt.NDArray[np.uint8]:
        """V's reconstructions of the first ``steps`` frames: (T, 64, 64, 3) uint8."""
        return decode(self.agent.vae, np.stack(self.latents[:steps]))


def load_controller(path: Path) -> tuple[Controller, npt.NDArray[np.float32], dict[str, Any]]:
    """Reads a controller: its shape, its (N,) float32 parameters and what is known about it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds something else.
    """
    tensors, about = load_tensors(path)
    try:
        controller, params = Controller(**about["config"]), tensors["params"].float().numpy()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a controller, got {error!r:.500}") from error
    if params.shape != (controller.size,):
        raise ValueError(f"{path}: expected ({controller.size},) parameters as its config says, got {params.shape}")
    return controller, params, about
