"""EnvPool's CarRacing as a batch: the same game in C++, twenty times as fast as Gymnasium's."""

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
from worldmodels.envs.any_gymnasium import ActionMap
from worldmodels.envs.base import Batch, Floats, Step
from worldmodels.envs.preprocessing import Frame, shrink
from worldmodels.envs.rules import Rules
from worldmodels.support.processes import Owned

#: Our environments that EnvPool has: its name of them, and how many of the screen's rows are looked at.
TASKS = {"worldmodels/CarRacing-v0": ("CarRacing-v3", 84)}

_BOUNDS = {"CarRacing-v3": ((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
_CHUNK = 128  # episodes whose games are made at once; each takes 3 MB from its start until the last of them has ended


def installed() -> bool:
    """Whether EnvPool is there."""
    return find_spec("envpool") is not None


@dataclass
class _Pool:
    """Games that were made together: game i plays one episode, that of ``seeds[i]``."""

    games: Any
    free: dict[int, list[int]]  # seed -> games that have not begun
    running: set[int] = field(default_factory=set)

    @property
    def over(self) -> bool:
        return not self.running and not any(self.free.values())


_Sent = tuple[_Pool, list[int], npt.NDArray[np.int32]]  # a pool, rows of the request, their games


class EnvPoolBatch(Owned, Batch):
    """A :class:`worldmodels.envs.base.Batch` on EnvPool.

    EnvPool fixes the seeds of its games when they are made, and a game's step behind an episode's end only resets it.
    So every episode has a game of its own here, which is left at its end: one seed is one track, whatever else is
    played, and no short episode is counted twice. It is not the track that Gymnasium makes of the same seed.

    Args:
        env_id: one of :data:`TASKS`.
        slots: episodes at a time.
        workers: threads.
        rules: Rules of the task; None where actions are those of the environment.

    Raises:
        ContractError: the action space does not fit the rules; from :meth:`receive`, a reward is not finite.
    """

    def __init__(self, env_id: str, slots: int, workers: int, rules: Rules | None = None) -> None:
        super().__init__("EnvPoolBatch")
        self.slots = slots
        self._id = env_id
        self._seeds, self._steps = np.zeros((2, slots), np.int64)
        self._name, self._rows = TASKS[env_id]
        self._workers = workers
        self._expected: list[int] = []
        self._pools: list[_Pool] = []
        self._where: list[tuple[_Pool, int] | None] = [None] * slots
        self._sent: list[_Sent] = []
        self._busy: list[int] = []
        self._low, self._high = (np.array(bound, np.float32) for bound in _BOUNDS[self._name])
        given = gymnasium.spaces.Box(self._low, self._high)
        self._actions = ActionMap(env_id, given, rules.squash if rules else None)

    def _make(self, seeds: Sequence[int]) -> Any:
        import envpool

        threads = min(self._workers, len(seeds))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its spaces are float64
            return envpool.make(
                self._name, env_type="gymnasium", num_envs=len(seeds), num_threads=threads, seed=list(map(int, seeds))
            )

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """As :class:`worldmodels.envs.base.Batch` says."""
        return self._actions.space

    @property
    def scaling(self) -> str:
        """As :class:`worldmodels.envs.base.Batch` says."""
        return self._actions.scaling

    def expect(self, seeds: Iterable[int]) -> None:
        """Says which episodes will be reset to, in about this order, so that their games are made together.

        What is being played is given up.
        """
        self.check_owner()
        self._expected = list(seeds)[::-1]
        for slot in range(self.slots):  # whatever is played there has been given up
            self._leave(slot)
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
        """A game of a seed that has not begun."""
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

    def _leave(self, slot: int) -> None:
        place = self._where[slot]
        if place is not None:
            place[0].running.discard(place[1])
            self._where[slot] = None

    def reset(self, slots: npt.ArrayLike, seeds: Sequence[int]) -> Frame:
        """Starts episodes: (n,) slots and their seeds to (n, 64, 64, 3) uint8."""
        self.check_owner()
        chosen = [int(slot) for slot in np.asarray(slots)]
        for slot, seed in zip(chosen, seeds, strict=True):
            self._leave(slot)
            self._where[slot] = self._take(int(seed))
            self._seeds[slot], self._steps[slot] = seed, 0
        for pool in [pool for pool in self._pools if pool.over]:
            pool.games.close()
            self._pools.remove(pool)
        frames = np.empty((len(chosen), 64, 64, 3), np.uint8)
        for pool, rows, games in self._grouped(chosen):
            screens, _ = pool.games.reset(games)
            self._look(screens, rows, frames)
        return frames

    def _grouped(self, slots: list[int]) -> list[_Sent]:
        """(pool, rows of the request, its games), the games in ascending order as EnvPool answers them."""
        groups = []
        for pool in self._pools:
            found = [
                (place[1], row) for row, slot in enumerate(slots) if (place := self._where[slot]) and place[0] is pool
            ]
            if found:
                games, rows = zip(*sorted(found), strict=True)
                groups.append((pool, list(rows), np.array(games, np.int32)))
        return groups

    def _look(self, screens: Frame, rows: Sequence[int], frames: Frame) -> None:
        for row, screen in zip(rows, screens, strict=True):
            frames[row] = shrink(screen[: self._rows])

    def send(self, slots: npt.ArrayLike, actions: Floats) -> None:
        """As :class:`worldmodels.envs.base.Batch` says."""
        self.check_owner()
        chosen = [int(slot) for slot in np.asarray(slots)]
        actions = np.clip(self._actions(actions), self._low, self._high)
        self._steps[chosen] += 1
        self._busy, self._sent = chosen, self._grouped(chosen)
        for pool, rows, games in self._sent:
            pool.games.send(actions[rows], games)

    def receive(self) -> Step:
        """As :class:`worldmodels.envs.base.Batch` says."""
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
            slot = self._busy[row]
            where = f"at step {self._steps[slot]} of the episode with seed {self._seeds[slot]}"
            raise ContractError(f"{self._id}: expected a finite reward, got {rewards[row]} {where}")
        return frames, rewards, ends[0], ends[1] & ~ends[0]

    def close(self) -> None:
        """Ends all games; in a forked process, leaves them alone."""
        if not self.owned:
            return
        for pool in self._pools:
            pool.games.close()
        self._pools, self._where = [], [None] * self.slots
