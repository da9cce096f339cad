"""The page: template, scripts, wasm, weights and recordings as one HTML file or as the files of a folder."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldmodels.support.files import atomic_path
from worldmodels.web.embedding import compress, compress_float16, embed

ASSETS = Path(__file__).parent / "assets"
WASM, WEIGHTS = "dream.wasm", "dream.safetensors"

#: Modules of the page, each after those that it imports.
_MODULES = ("worldmodels.js", "ui.js", "play.js", "pair.js", "vision.js", "memory.js", "evolve.js", "app.js")
_BLOCK = 256 * 1024  # characters of data; blocks that have arrived are the progress while the file loads
_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:function|class|const) ([$\w]+)", re.MULTILINE)
_EXPORT_WORD = re.compile(r"^export ", re.MULTILINE)
_COMMON_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: Name of the game.
        about: What the scripts know of the task; JSON.
        data: wasm, weights and recordings by file name.
    """

    title: str
    about: Mapping[str, Any]
    data: Mapping[str, bytes]

    @property
    def policy(self) -> str:
        """Content-Security-Policy of the files of :meth:`folder`."""
        return (
            f"{_COMMON_POLICY}; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; "
            "worker-src 'self'; img-src blob: data:"
        )

    def folder(self) -> dict[str, bytes]:
        """Return the files of the page as a folder, by name."""
        about = {**self.about, "files": {name: len(content) for name, content in self.data.items()}}
        index = _fill(
            policy=self.policy,
            title=self.title,
            style='<link rel="stylesheet" href="style.css">',
            data=_json_block(about),
            script='<script type="module" src="app.js"></script>',
        )
        scripts = {name: (ASSETS / name).read_bytes() for name in (*_MODULES, "style.css")}
        return {"index.html": index.encode(), **scripts, **self.data}

    def single(self) -> bytes:
        """Return the page as one HTML file."""
        style, script = (ASSETS / "style.css").read_text(encoding="utf-8"), _one_script()
        packed = {name: _pack(name, content) for name, content in self.data.items()}
        texts = {name: embed(content) for name, content in packed.items()}
        blocks = {
            name: {
                "count": -(-len(text) // _BLOCK),
                "size": len(self.data[name]),
                "packedSize": len(packed[name]),
                "gzip": not _is_picture(name),
                "float16": name == WEIGHTS,
            }
            for name, text in texts.items()
        }
        policy = (
            f"{_COMMON_POLICY}; script-src '{_hash(script)}' 'wasm-unsafe-eval'; style-src '{_hash(style)}'; "
            "worker-src blob:; img-src blob: data:"
        )
        parts = [
            f'<script type="text/plain" class="block" data-file="{name}">{text[start : start + _BLOCK]}</script>'
            for name, text in texts.items()
            for start in range(0, len(text), _BLOCK)
        ]
        # A module would wait for the end of the file. A blob of the same source is the worker's module.
        return _fill(
            policy=policy,
            title=self.title,
            style=f"<style>{style}</style>",
            data=_json_block({**self.about, "blocks": blocks}) + f'<script id="app">{script}</script>',
            script="\n".join([*parts, '<meta id="end">']),
        ).encode()


def check_folder(name: str, out: Path) -> None:
    """Check a folder for the files of a page before any work: a new one, or one that holds nothing but a page.

    Raises:
        OSError: The path is a file, its parent does not exist, or the folder holds other files.
    """
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{name}: no such folder: {out.parent}")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{name}: expected a folder, got a file: {out}")
    known = {"index.html", "style.css", *_MODULES, WASM, WEIGHTS}
    others = sorted(file.name for file in out.glob("*") if file.name not in known and file.suffix != ".webp")
    if others:
        raise FileExistsError(f"{name}: expected a new folder or one of a page, got {out} with {others[0]}")


def write_page(page: Page, out: Path, *, split: bool) -> int:
    """Write a page as one file, or as the files of a folder; each file atomically. Returns the number of bytes."""
    files = {out / name: content for name, content in page.folder().items()} if split else {out: page.single()}
    for path, content in files.items():
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return sum(map(len, files.values()))


def _fill(**parts: str) -> str:
    """Fill the template. The Content-Security-Policy precedes all content that it governs."""
    text = (ASSETS / "index.html").read_text(encoding="utf-8")
    parts["policy"] = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(parts["policy"])}">'
    parts["title"] = html.escape(parts["title"])
    for name, content in parts.items():
        text = text.replace(f"<!--{name}-->", content)
    return text


def _json_block(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="about">{text}</script>'


def _one_script() -> str:
    """Join the modules: each becomes a function that returns its exports."""
    parts = ['"use strict";', "{", "const modules = {};"]
    for name in _MODULES:
        source = (ASSETS / name).read_text(encoding="utf-8")
        exports = ", ".join(_EXPORT.findall(source))
        body = _IMPORT.sub(r'const {\1} = modules["\2"];', _EXPORT_WORD.sub("", source))
        parts.append(f'modules["{name}"] = (() => {{\n{body}\nreturn {{ {exports} }};\n}})();')
    return "\n".join([*parts, "}", ""])


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _is_picture(name: str) -> bool:
    return name.endswith(".webp")


def _pack(name: str, content: bytes) -> bytes:
    if _is_picture(name):
        return content
    return compress_float16(content) if name == WEIGHTS else compress(content)


def wasm_is_built() -> bool:
    """Whether the build of this package had a compiler for the native core for browsers."""
    return (ASSETS / WASM).is_file()


def read_wasm() -> bytes:
    """Read the native core for browsers.

    Raises:
        FileNotFoundError: The build of this package had no compiler for it.
    """
    path = ASSETS / WASM
    if not wasm_is_built():
        raise FileNotFoundError(
            f"{path}: not built; `pip install ziglang` and install worldmodels again with --no-build-isolation"
        )
    return path.read_bytes()
