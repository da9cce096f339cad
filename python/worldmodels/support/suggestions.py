"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Common names of the tasks.
_ALIASES = {"doom": "takecover", "vizdoom": "takecover", "take_cover": "takecover", "car_racing": "carracing"}


def closest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name most similar to a misspelt one, ignoring case; None if nothing is close."""
    by_case = {candidate.casefold(): candidate for candidate in known}
    wanted = name.casefold()
    wanted = _ALIASES.get(wanted.partition("-v")[0].replace("-", "_"), wanted)
    found = difflib.get_close_matches(wanted, by_case, n=1, cutoff=0.7)
    return by_case[found[0]] if found else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Format the closest known name as ``"; did you mean 'takecover'?"``, or as an empty string."""
    found = closest(name, known)
    return f"; did you mean {found!r}?" if found is not None else ""
