"""Profile of a thread's work: seconds per phase."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")

#: Phase of the time outside of all blocks.
OTHER = "other"


class _Clock:
    """Seconds per phase of a thread, and its present phase."""

    __slots__ = ("name", "seconds", "since")

    def __init__(self) -> None:
        self.seconds: dict[str | None, float] = {}
        self.name: str | None = OTHER
        self.since = perf_counter()

    def switch(self, name: str | None) -> None:
        """End the present phase and begin another one."""
        now, seconds, ended = perf_counter(), self.seconds, self.name
        seconds[ended] = seconds.get(ended, 0.0) + now - self.since
        self.name, self.since = name, now


class _Local(threading.local):
    def __init__(self) -> None:
        self.clock = _Clock()


_LOCAL = _Local()


class phase:
    """Context manager that adds the duration of its block to a phase, without the duration of inner blocks.

    It measures the calling thread. Work of other threads, of other processes and of a GPU counts where this thread
    waits for it.

    Args:
        name: Name of the phase; None to leave the block out of the profile.
    """

    __slots__ = ("_clock", "_name", "_outer")

    def __init__(self, name: str | None) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._clock = clock = _LOCAL.clock
        self._outer = clock.name
        clock.switch(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock.switch(self._outer)


def phase_of(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; the time to produce them is added to a phase."""
    iterator, end = iter(items), object()
    while True:
        with phase(name):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]


def add_to_profile(profile: Mapping[str, float]) -> None:
    """Add the seconds per phase of another process to those of this thread."""
    clock = _LOCAL.clock
    for name, seconds in profile.items():
        clock.seconds[name] = clock.seconds.get(name, 0.0) + seconds


def take_profile() -> dict[str, float]:
    """Return the seconds per phase since the last call, or since the thread's first phase."""
    clock = _LOCAL.clock
    clock.switch(clock.name)
    seconds, clock.seconds = clock.seconds, {}
    return {name: round(value, 4) for name, value in seconds.items() if name is not None}


def add_profiles(profiles: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add profiles, phase by phase."""
    total: dict[str, float] = {}
    for profile in profiles:
        for name, seconds in profile.items():
            total[name] = total.get(name, 0.0) + seconds
    return total
