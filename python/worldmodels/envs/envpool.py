"""EnvPool's CarRacing in C++, twenty times as fast as Gymnasium's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from worldmodels.envs import ContractError
from worldmodels.envs.actions import ActionMap
from worldmodels.envs.base import Floats, Step, VectorEnv
from worldmodels.envs.preprocessing import Frame, resize
from worldmodels.envs.rules import Rules
from worldmodels.support.processes import Owned
from worldmodels.support.validation import check_integer

#: Environments available in EnvPool: EnvPool's name and the number of screen rows to keep.
TASKS = {"worldmodels/CarRacing-v0": ("CarRacing-v3", 84)}

_BOUNDS = {"CarRacing-v3": ((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
_CHUNK = 128  # games created at once; each takes 3 MB until the last of them ends


def installed() -> bool:
    """Check whether EnvPool is installed."""
    return find_spec("envpool") is not None


def _checked(seeds: Iterable[int]) -> list[int]:
    return [check_integer("seed", seed, 0, 2**31 - 1) for seed in seeds]


@dataclass
class _Pool:
    """Games created together; game i plays the episode of ``seeds[i]``."""

    games: Any
    free: dict[int, list[int]]  # seed -> games that have not started
    running: set[int] = field(default_factory=set)

    @property
    def over(self) -> bool:
        return not self.running and not any(self.free.values())


_Sent = tuple[_Pool, list[int], npt.NDArray[np.int32]]  # pool, rows of the request, games


class EnvPoolVectorEnv(Owned, VectorEnv):
    """:class:`worldmodels.envs.base.VectorEnv` on EnvPool.

    EnvPool fixes the seeds of its games at creation, and the step after an episode's end only resets a game. Here every
    episode has its own game, which is left at the episode's end. A seed thus determines the track, and no short episode
    is counted twice. The track differs from Gymnasium's for the same seed.

    Args:
        gym_id: Gymnasium id, one of :data:`TASKS`.
        num_envs: Number of concurrent episodes.
        num_workers: Number of threads.
        rules: Rules of the task; None for the actions of the environment.

    Raises:
        ContractError: The action space does not match the rules; in :meth:`recv`, a reward is not finite.
        ValueError: In :meth:`prefetch` and :meth:`reset`, a seed is not from 0 to 2**31 - 1.
        gymnasium.error.ResetNeeded: In :meth:`send`, an environment has no episode.
    """

    def __init__(self, gym_id: str, num_envs: int, num_workers: int, rules: Rules | None = None) -> None:
        super().__init__("EnvPoolVectorEnv")
        self.num_envs = num_envs
        self._id = gym_id
        self._seeds, self._steps = np.zeros((2, num_envs), np.int64)
        self._name, self._rows = TASKS[gym_id]
        self._workers = num_workers
        self._expected: list[int] = []
        self._pools: list[_Pool] = []
        self._where: list[tuple[_Pool, int] | None] = [None] * num_envs
        self._sent: list[_Sent] = []
        self._busy: list[int] = []
        self._low, self._high = (np.array(bound, np.float32) for bound in _BOUNDS[self._name])
        given = gymnasium.spaces.Box(self._low, self._high)
        self._actions = ActionMap(gym_id, given, rules.squash if rules else None)

    def _make(self, seeds: Sequence[int]) -> Any:
        import envpool

        threads = min(self._workers, len(seeds))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EnvPool warns that its spaces are float64
            return envpool.make(
                self._name, env_type="gymnasium", num_envs=len(seeds), num_threads=threads, seed=list(map(int, seeds))
            )

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """See :attr:`worldmodels.envs.base.VectorEnv.action_space`."""
        return self._actions.space

    @property
    def scaling(self) -> str:
        """See :attr:`worldmodels.envs.base.VectorEnv.scaling`."""
        return self._actions.scaling

    def prefetch(self, seeds: Iterable[int]) -> None:
        """Announce the seeds of the next resets, whose games are created in chunks. Running episodes are abandoned."""
        self.check_owner()
        self._expected = _checked(seeds)[::-1]
        for env_id in range(self.num_envs):  # abandon running episodes
            self._leave(env_id)
        for pool in self._pools:
            pool.games.close()
        self._pools = []

    def _add_pool(self, seeds: list[int]) -> _Pool:
        free: dict[int, list[int]] = {}
        for game, seed in enumerate(seeds):
            free.setdefault(seed, []).append(game)
        self._pools.append(_Pool(self._make(seeds), free))
        return self._pools[-1]

    def _take(self, seed: int) -> tuple[_Pool, int]:
        """Return a game of a seed that has not started; create it if necessary."""
        for pool in self._pools:
            if pool.free.get(seed):
                break
        else:
            chunk: list[int] = []
            while self._expected and len(chunk) < _CHUNK:
                chunk.append(self._expected.pop())
            pool = self._add_pool(chunk if seed in chunk else [seed])
            if seed not in chunk:
                self._expected += chunk[::-1]
        game = pool.free[seed].pop(0)
        pool.running.add(game)
        return pool, game

    def _leave(self, env_id: int) -> None:
        place = self._where[env_id]
        if place is not None:
            place[0].running.discard(place[1])
            self._where[env_id] = None

    def reset(self, env_ids: npt.ArrayLike, seeds: Sequence[int]) -> Frame:
        """See :meth:`worldmodels.envs.base.VectorEnv.reset`."""
        self.check_owner()
        chosen = [int(env_id) for env_id in np.asarray(env_ids)]
        for env_id, seed in zip(chosen, _checked(seeds), strict=True):
            self._leave(env_id)
            self._where[env_id] = self._take(seed)
            self._seeds[env_id], self._steps[env_id] = seed, 0
        for pool in [pool for pool in self._pools if pool.over]:
            pool.games.close()
            self._pools.remove(pool)
        frames = np.empty((len(chosen), 64, 64, 3), np.uint8)
        for pool, rows, games in self._grouped(chosen):
            screens, _ = pool.games.reset(games)
            self._look(screens, rows, frames)
        return frames

    def _grouped(self, env_ids: list[int]) -> list[_Sent]:
        """Group a request by pool: (pool, rows of the request, games), games in EnvPool's ascending order."""
        groups = []
        for pool in self._pools:
            found = [
                (place[1], row)
                for row, env_id in enumerate(env_ids)
                if (place := self._where[env_id]) and place[0] is pool
            ]
            if found:
                games, rows = zip(*sorted(found), strict=True)
                groups.append((pool, list(rows), np.array(games, np.int32)))
        return groups

    def _look(self, screens: Frame, rows: Sequence[int], frames: Frame) -> None:
        for row, screen in zip(rows, screens, strict=True):
            frames[row] = resize(screen[: self._rows])

    def send(self, env_ids: npt.ArrayLike, actions: Floats) -> None:
        """See :meth:`worldmodels.envs.base.VectorEnv.send`."""
        self.check_owner()
        chosen = [int(env_id) for env_id in np.asarray(env_ids)]
        for env_id in chosen:
            if self._where[env_id] is None:
                raise gymnasium.error.ResetNeeded(f"{self._id}: expected reset before a step of environment {env_id}")
        actions = np.clip(self._actions(actions), self._low, self._high)
        self._steps[chosen] += 1
        self._busy, self._sent = chosen, self._grouped(chosen)
        for pool, rows, games in self._sent:
            pool.games.send(actions[rows], games)

    def recv(self) -> Step:
        """See :meth:`worldmodels.envs.base.VectorEnv.recv`."""
        self.check_owner()
        count = sum(len(rows) for _, rows, _ in self._sent)
        frames = np.empty((count, 64, 64, 3), np.uint8)
        rewards = np.empty(count, np.float32)
        ends = np.empty((2, count), np.bool_)
        for pool, rows, games in self._sent:
            screens, reward, terminated, truncated, info = pool.games.recv()
            order = np.argsort(info["env_id"])
            assert np.array_equal(info["env_id"][order], games)
            self._look(screens[order], rows, frames)
            rewards[rows], ends[0, rows], ends[1, rows] = reward[order], terminated[order], truncated[order]
        for row in np.flatnonzero(~np.isfinite(rewards)):
            env_id = self._busy[row]
            where = f"at step {self._steps[env_id]} of the episode with seed {self._seeds[env_id]}"
            raise ContractError(f"{self._id}: expected a finite reward, got {rewards[row]} {where}")
        return frames, rewards, ends[0], ends[1] & ~ends[0]

    def close(self) -> None:
        """Close all games, except in a forked process."""
        if not self.owned:
            return
        for pool in self._pools:
            pool.games.close()
        self._pools, self._where = [], [None] * self.num_envs
