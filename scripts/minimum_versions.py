"""Prints pip constraints that pin every dependency to the oldest version that pyproject.toml declares.

python scripts/minimum_versions.py test > minimum.txt && pip install -c minimum.txt ".[test]"
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict[str, object], extras: list[str]) -> list[str]:
    """The requirements of the package and of its extras, and of the extras that those name."""
    optional = project["optional-dependencies"]
    found, todo = list(project["dependencies"]), list(extras)
    while todo:
        for requirement in optional[todo.pop()]:
            own = re.fullmatch(rf"{project['name']}\[([\w,]+)\]", requirement)
            if own:
                todo += own[1].split(",")
            else:
                found.append(requirement)
    return found


def main() -> None:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {}
    for requirement in requirements(project, sys.argv[1:]):
        match = re.match(r"([\w-]+)(?:\[[\w,]+\])?\s*(?:>=|==)\s*([\w.]+)", requirement)
        if match is None:
            raise SystemExit(f"pyproject.toml: expected name>=version or name==version, got {requirement!r}")
        pins[match[1]] = match[2]
    print("\n".join(f"{name}=={version}" for name, version in sorted(pins.items())))


if __name__ == "__main__":
    main()
