"""Reports as one HTML file: tables, plots inside, readable in light and dark and on a phone."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

from .report import Report

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2a41; --soft: #56627a; --paper: #f6f8fa; --card: #fff; --line: #dfe5ec;
  --good: #e4f2f0; --bad: #f8dcd6; --pass: #1c7a5e; --fail: #b83a25; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --soft: #9fabbd; --paper: #10151d; --card: #171e29;
  --line: #2a3443; --good: #17302c; --bad: #46211b; --pass: #6bcaa6; --fail: #f08a75; }
  .plot svg { filter: invert(1) hue-rotate(180deg); } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 1.6rem 1rem 3rem; }
h1 { font-size: 1.7rem; margin: 0 0 0.3rem; }
.verdict { font-weight: 600; margin: 0 0 1.2rem; } .verdict.pass { color: var(--pass); } .verdict.fail { color: var(--fail); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem; margin: 1rem 0; }
section h3 { margin: 0 0 0.8rem; } section p { color: var(--soft); font-size: 0.9rem; margin: 0.5rem 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); border-bottom: 2px solid var(--line); white-space: nowrap; }
th, td { padding: 0.35rem 0.7rem 0.35rem 0.4rem; } td { border-bottom: 1px solid var(--line); white-space: nowrap; }
tr.pass { background: var(--good); } tr.fail { background: var(--bad); }
.plot svg { width: 100%; height: auto; }
"""


def page(reports: Sequence[Report], title: str = "") -> str:
    """One HTML document with these reports and their plots in it; it needs no other file.

    Args:
        reports: at least one.
        title: the heading; by default that of the first report.
    """
    passed = all(report.passed for report in reports)
    kind, word = ("pass", "PASS") if passed else ("fail", "FAIL")
    heading = html.escape(title or reports[0].title)
    parts = "\n".join(f"{report.to_html()}\n<section class='plot'>{_svg(report)}</section>" for report in reports)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}: {word}</title><style>{_STYLE}</style></head>
<body><main><h1>{heading}</h1><p class="verdict {kind}">{word}</p>
{parts}
</main></body></html>
"""


def _svg(report: Report) -> str:
    """The plot as an SVG element."""
    if not report.rows:
        return ""
    buffer = io.StringIO()
    report.plot().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
