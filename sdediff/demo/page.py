"""The report: one HTML file with everything in it, for any screen, light or dark, on line or off."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .chapter import Chapter, Picture

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2a41; --soft: #56627a; --paper: #f6f8fa; --card: #ffffff; --line: #dfe5ec;
  --accent: #1f7391; --good: #1c7a5e; --bad: #b83a25; --tint: #e8f2f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf2; --soft: #9fabbd; --paper: #10151d; --card: #171e29; --line: #2a3443; --accent: #6cc0d8;
    --good: #6bcaa6; --bad: #f08a75; --tint: #1d2a38; }
  img.plot { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
  img.photo { filter: brightness(0.9); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 2.2rem 1.1rem 4rem; }
header h1 { font-size: clamp(1.9rem, 5vw, 2.9rem); line-height: 1.12; letter-spacing: -0.02em; margin: 0 0 0.6rem; }
header p { color: var(--soft); font-size: 1.1rem; max-width: 42rem; margin: 0 0 1.2rem; }
h2 { font-size: clamp(1.35rem, 3.4vw, 1.8rem); letter-spacing: -0.01em; margin: 3.2rem 0 0.6rem; }
h3 { font-size: 1.05rem; margin: 0 0 0.8rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(max(30%, 150px), 1fr)); gap: 0.8rem;
  margin: 1.4rem 0 0; }
.fact { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 0.8rem 1rem; }
.fact b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.fact span { color: var(--soft); font-size: 0.84rem; line-height: 1.35; display: block; }
.good { color: var(--good); } .bad { color: var(--bad); }
figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; margin: 1.2rem 0; padding: 1rem; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px; }
figure.small img { max-width: 460px; margin: 0 auto; }
@media (max-width: 640px) { figure:not(.small) img { width: 640px; max-width: none; }
  figure:not(.small) figcaption::before { content: "⇄  "; } }
figcaption { color: var(--soft); font-size: 0.93rem; line-height: 1.5; margin-top: 0.7rem; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); white-space: nowrap; }
th, td { padding: 0.42rem 0.8rem 0.42rem 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); white-space: nowrap; }
tr.apart td { background: var(--tint); }
.note { color: var(--soft); font-size: 0.88rem; line-height: 1.5; margin: 0.8rem 0 0; }
details { margin-top: 2rem; } summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; font-size: 0.78rem; line-height: 1.45; }
footer { color: var(--soft); font-size: 0.88rem; margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
"""


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", notes: str = "", apart: int = 0
) -> str:
    """A table as HTML that scrolls by itself on a narrow screen; the last ``apart`` rows are set off.

    Cells that say PASS or FAIL, or end in a tick, are coloured.
    """
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = []
    for k, row in enumerate(rows):
        kind = ' class="apart"' if k >= len(rows) - apart else ""
        body.append(f"<tr{kind}>{''.join(map(_cell, row))}</tr>")
    above = f"<h3>{html.escape(title)}</h3>" if title else ""
    below = f'<p class="note">{html.escape(notes)}</p>' if notes else ""
    return f'{above}<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>{below}'


def _cell(text: str) -> str:
    kind = ' class="good"' if text == "PASS" or text.endswith("✓") else ' class="bad"' if text == "FAIL" else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def page(
    title: str, lead: str, facts: Sequence[tuple[str, str, str]], chapters: Sequence[Chapter], about: Any, out: Path
) -> str:
    """The report.

    Args:
        title, lead: the heading and the sentence below it.
        facts: (number, what it is, class) to be seen at once; the class is "good", "bad" or "".
        chapters: the parts.
        about: everything else, shown as JSON.
        out: where the pictures are.
    """
    tiles = "".join(
        f'<div class="fact"><b class="{kind}">{html.escape(number)}</b><span>{html.escape(what)}</span></div>'
        for number, what, kind in facts
    )
    numbers = html.escape(json.dumps(about, indent=2, ensure_ascii=False))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body><main>
<header><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p><div class="facts">{tiles}</div></header>
{"".join(_chapter(chapter, out) for chapter in chapters)}
<details><summary>All numbers, versions and seeds</summary><pre>{numbers}</pre></details>
<footer>Everything here was computed by <code>sdediff demo</code>; the pictures lie beside this page.</footer>
</main></body></html>
"""


def _chapter(chapter: Chapter, out: Path) -> str:
    blocks = (
        f'<div class="card">{block}</div>' if isinstance(block, str) else _figure(block, out)
        for block in chapter.blocks
    )
    title, lead = html.escape(chapter.title), html.escape(chapter.lead)
    return f"<section><h2>{title}</h2><p>{lead}</p>{''.join(blocks)}</section>"


def _figure(picture: Picture, out: Path) -> str:
    path = out / picture.name
    data = base64.b64encode(path.read_bytes()).decode()
    kind, small = path.suffix[1:], ' class="small"' if path.suffix == ".gif" else ""
    look = "plot" if picture.plot else "photo"
    alt = html.escape(picture.caption, quote=True)
    return (
        f'<figure{small}><div class="scroll"><img class="{look}" src="data:image/{kind};base64,{data}" alt="{alt}"></div>'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )
