"""HTML of the report: tables, figures with captions, and the frame of the page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path


def text(content: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(content)}</p>"


def notice(content: str, kind: str) -> str:
    """A paragraph of a kind, ``verdict`` or ``warning``."""
    return f'<p class="{kind}">{html.escape(content)}</p>'


def heading(content: str) -> str:
    """The heading of a section."""
    return f"<h2>{html.escape(content)}</h2>"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls in its own container where it is wider than the page; the first column names the rows."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    title = html.escape(caption)
    return (
        f'<figure class="table"><figcaption>{title}</figcaption>'
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>"
    )


def picture(path: Path, alt: str, caption: str) -> str:
    """A figure with its file inside the page.

    Args:
        path: PNG or GIF.
        alt: What the picture shows, for readers who do not see it.
        caption: What it shows, and what good looks like.
    """
    kind = path.suffix[1:]
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure class="{kind}"><img src="data:image/{kind};base64,{data}" alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def side_by_side(*figures: str) -> str:
    """Figures next to each other, or below each other on a narrow screen."""
    return f'<div class="row">{"".join(figures)}</div>'


def details(summary: str, *content: str) -> str:
    """Content that is hidden until it is asked for."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(content)}</details>"


def code(content: str) -> str:
    """A command; it wraps between its words."""
    words = " ".join(f"<span>{html.escape(word)}</span>" for word in content.split(" "))
    return f"<p><code>{words}</code></p>"


def link(content: str, target: str) -> str:
    """A link that looks like a button, in a paragraph of its own."""
    return f'<p><a class="button" href="{html.escape(target)}">{html.escape(content)}</a></p>'


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page."""
    return _FRAME.format(title=html.escape(title), body="\n".join(parts))


_FRAME = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --ink: #22242a; --page: #fff; --muted: #5b6270; --line: #d9dce3;
  --note: #f3f6fc; --warn: #fff7ed; --code: #f3f4f6; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e5e7eb; --page: #14161b; --muted: #a3aab8; --line: #363b46;
    --note: #1c2536; --warn: #33241a; --code: #22262f; }}
}}
body {{ font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 56rem;
  margin: 2.5rem auto; padding: 0 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; }}
h2 {{ font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }}
.verdict {{ font-size: 1.1rem; background: var(--note); border-left: 4px solid #2563eb; padding: .8rem 1rem; }}
.warning {{ background: var(--warn); border-left: 4px solid #c2410c; padding: .6rem 1rem; }}
figure {{ margin: 1.2rem 0; }}
figcaption {{ color: var(--muted); font-size: .9rem; max-width: 44rem; margin-top: .4rem; }}
img {{ max-width: 100%; height: auto; display: block; border-radius: 6px; }}
.png img {{ background: #fff; padding: .6rem; box-sizing: border-box; width: 42rem; border: 1px solid var(--line); }}
.gif img {{ image-rendering: pixelated; }}
.row {{ display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: flex-start; }}
.row figure {{ flex: 1 1 16rem; min-width: 0; }}
.row figure:first-child {{ flex-grow: 2; flex-basis: 22rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
th:first-child {{ text-align: left; padding-left: 0; font-weight: 500; }}
thead th {{ font-weight: 600; }}
code {{ background: var(--code); padding: .15rem .35rem; border-radius: 4px; font-size: .88rem;
  overflow-wrap: anywhere; -webkit-box-decoration-break: clone; box-decoration-break: clone; }}
code span {{ display: inline-block; max-width: 100%; }}
@media (max-width: 30rem) {{
  table {{ font-size: .82rem; }}
  th, td {{ padding: .25rem .4rem; }}
  th:first-child {{ white-space: normal; }}
}}
.button {{ display: inline-block; background: #2563eb; color: #fff; font-weight: 600; text-decoration: none;
  padding: .5rem 1.1rem; border-radius: 8px; }}
summary {{ cursor: pointer; margin: 1rem 0; }}
</style>
{body}
</html>
"""
