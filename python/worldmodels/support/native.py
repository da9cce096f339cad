"""Pickling and copying of objects of the native core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Native(Generic[T]):
    """Immutable native object with the arguments it was built from.

    Unpickling builds it again. Copies share it.

    Args:
        build: Class or function of a module.
        **arguments: Arguments of ``build``, never modified.

    Attributes:
        core: Return value of ``build``.
    """

    def __init__(self, build: Callable[..., T], **arguments: Any) -> None:
        self._build, self._arguments = build, arguments
        self.core = build(**arguments)

    def __reduce__(self) -> tuple[Callable[..., Native[T]], tuple[Callable[..., T], dict[str, Any]]]:
        return _rebuild, (self._build, self._arguments)

    def __copy__(self) -> Native[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Native[T]:
        return self


def _rebuild(build: Callable[..., T], arguments: dict[str, Any]) -> Native[T]:
    return Native(build, **arguments)
