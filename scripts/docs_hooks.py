"""Hook of MkDocs: the page of the pretrained dream becomes a file of the site."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGE = "play/dream.html"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page. Without the native core for browsers, a build that is not strict has no page."""
    from worldmodels.pipeline.dream_page import make_page
    from worldmodels.pipeline.run import Run
    from worldmodels.web.page import wasm_is_built

    if wasm_is_built():
        files.append(File.generated(config, PAGE, content=make_page(*Run.find("takecover")).single()))
    elif config.strict:
        raise SystemExit(f"{PAGE}: dream.wasm was not built; install ziglang and worldmodels again")
    return files
