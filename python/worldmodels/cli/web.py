"""`worldmodels web`."""

from __future__ import annotations

import argparse
from pathlib import Path

from worldmodels.cli.outputs import check_output
from worldmodels.pipeline.run import Run


def make_web_page(options: argparse.Namespace) -> None:
    """Serve or write the page of an agent's dream."""
    if options.split and not options.out:
        raise ValueError("--split: expected --out FOLDER next to it")
    if options.out and not options.split:
        check_output("--out", options.out, ".html")
    folder, config = Run.find(options.agent)

    from worldmodels.pipeline.dream_page import make_page
    from worldmodels.web.page import check_folder, write_page
    from worldmodels.web.server import serve

    if options.out and options.split:
        check_folder("--out", Path(options.out))
    page = make_page(folder, config)
    if not options.out:
        serve(page.folder(), page.policy)
        return
    size = write_page(page, Path(options.out), split=options.split)
    print(f"page: {options.out} ({size / 1e6:.1f} MB)")
