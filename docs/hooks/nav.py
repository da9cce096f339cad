"""Adds to the navigation the pages that other work brings, where they are there at build time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: title -> (page, the title it comes before)
PAGES = {
    "Results": ("results.md", "How the native dream works"),
    "Add an environment": ("add_environment.md", "Questions"),
}


def on_config(config: Any) -> Any:
    """Called by MkDocs before it builds."""
    for title, (page, before) in PAGES.items():
        if (Path(config["docs_dir"]) / page).is_file():
            titles = [next(iter(entry)) for entry in config["nav"]]
            config["nav"].insert(titles.index(before), {title: page})
    return config
