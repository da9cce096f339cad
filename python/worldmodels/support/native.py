"""Objects of the native core that can be pickled and copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Native(Generic[T]):
    """A native object that never changes, and what it was built from.

    A pickle builds it again; copies share it.

    Args:
        build: Class or function of a module.
        **arguments: Arguments of ``build``, which nobody else changes.

    Attributes:
        core: What ``build`` returned.
    """

    def __init__(self, build: Callable[..., T], **arguments: Any) -> None:
        self._build, self._arguments = build, arguments
        self.core = build(**arguments)

    def __reduce__(self) -> tuple[Callable[..., Native[T]], tuple[Callable[..., T], dict[str, Any]]]:
        return _built, (self._build, self._arguments)

    def __copy__(self) -> Native[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Native[T]:
        return self


def _built(build: Callable[..., T], arguments: dict[str, Any]) -> Native[T]:
    return Native(build, **arguments)
