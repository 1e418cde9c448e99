"""What a check says: a table of rows, each with what was measured, what it could have seen, and a verdict."""

from __future__ import annotations

import html
import json
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from ..jsonable import jsonable
from .statistics import Outcome, retry

Panel = Callable[[int, int], Mapping[str, Outcome]]
"""``panel(n, seed)``: the outcomes of all tests of a check on n fresh samples, by name."""


@dataclass(frozen=True)
class Row:
    """One line of a report.

    Args:
        what: what was compared.
        statistic: what was measured.
        floor: the same where all is right: rounding for an exact check, one standard error or a median for a test.
        limit: for an exact check the largest statistic that passes; for a test what p must exceed.
        p: the p-value of a test, None for an exact check.
        detectable: the smallest effect that a test sees with probability 0.99; for an exact check the limit.
        unit: of the statistic and the effect; ``FACT`` where something either holds or does not.
        passed: the verdict.
        detail: of a row that failed, what was seen and what to do about it, where that is known.
    """

    what: str
    statistic: float
    floor: float
    limit: float
    p: float | None
    detectable: float
    unit: str
    passed: bool
    detail: str = ""

    @property
    def verdict(self) -> str:
        """PASS or FAIL."""
        return "PASS" if self.passed else "FAIL"

    @property
    def excess(self) -> float:
        """The evidence against, in powers of ten: above 0 is beyond the limit."""
        if self.unit == FACT:
            return -math.inf if self.passed else math.inf
        ratio = self.statistic / self.limit if self.p is None else self.limit / max(self.p, 1e-300)
        return math.inf if math.isnan(ratio) else math.log10(max(ratio, 1e-300))


@dataclass(frozen=True)
class Report:
    """The result of a check: ``print`` it, ``plot`` it, ask whether it ``passed``.

    Args:
        title: what was checked.
        rows: the checks.
        notes: how it was checked, in sentences.
        unchecked: what could not be checked, and why, in sentences.
    """

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True where every row passed; False for a report without rows, which has shown nothing."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def __str__(self) -> str:
        cells = [_HEADER, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[k]) for line in cells) for k in range(len(_HEADER))]
        lines = [
            "  ".join(_aligned(c, w, k) for k, (c, w) in enumerate(zip(line, widths, strict=True))) for line in cells
        ]
        lines = [line.rstrip() for line in lines]
        width = max(map(len, lines))
        rule = "─" * width
        below = [
            textwrap.fill(text, max(width, 60), initial_indent="  ", subsequent_indent="    ") for text in self._below
        ]
        return "\n".join([self.title, rule, lines[0], rule, *lines[1:], rule, *below, self.summary])

    @property
    def _below(self) -> list[str]:
        """What stands below the table: why rows failed, how it was checked, and what was not."""
        reasons = [f"{row.what}: {row.detail}" for row in self.rows if row.detail and not row.passed]
        return [*reasons, *self.notes, *(f"Not checked: {text}" for text in self.unchecked)]

    @property
    def summary(self) -> str:
        """The last line: PASS, or FAIL with the rows that failed."""
        failed = [row.what for row in self.rows if not row.passed]
        if self.passed:
            return f"PASS: all {len(self.rows)} checks."
        return f"FAIL: {len(failed)} of {len(self.rows)} checks: {'; '.join(failed)}."

    def to_json(self) -> str:
        """The report as JSON; a number that is not finite becomes null."""
        content = jsonable({"title": self.title, "passed": self.passed, **asdict(self)})
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)

    def to_html(self) -> str:
        """The report as an HTML fragment."""
        header = "".join(f"<th>{html.escape(c)}</th>" for c in _HEADER)
        body = "\n".join(_html_row(row) for row in self.rows)
        notes = "".join(f"<p>{html.escape(text)}</p>" for text in self._below)
        return (
            f'<section><h3>{html.escape(self.title)}</h3>\n<div class="scroll"><table>\n<tr>{header}</tr>\n{body}\n</table>'
            "</div>\n"
            f"{notes}<p><strong>{html.escape(self.summary)}</strong></p></section>"
        )

    _repr_html_ = to_html

    def to_page(self) -> str:
        """The report with its plot as one HTML file that needs no other; see :func:`~sdediff.verify.page.page`."""
        from .page import page

        return page([self])

    def plot(self) -> Any:
        """A matplotlib Figure: how far each row lies from its limit, in powers of ten; to the right of it is failure."""
        from matplotlib.figure import Figure

        count = len(self.rows)
        figure = Figure(figsize=(8.5, 1.3 + 0.3 * count), layout="constrained")
        axes = figure.subplots()
        lengths = [min(max(row.excess, -_REACH), _REACH) for row in self.rows]
        colours = ["#2a7f9e" if row.passed else "#c8452f" for row in self.rows]
        axes.barh(range(count), lengths, color=colours, height=0.62)
        for k, (row, length) in enumerate(zip(self.rows, lengths, strict=True)):
            label = _measured(row) if row.p is None else f"p = {row.p:.2g}"
            side, align = (4, "left") if length > 0 else (-4, "right")
            axes.annotate(
                label, (length, k), xytext=(side, 0), textcoords="offset points", va="center", ha=align, fontsize=8
            )
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(count), [row.what for row in self.rows], fontsize=8)
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_xlim(-1.2 * _REACH, 1.2 * _REACH)
        axes.set_xlabel(
            r"passes   $\leftarrow$   $\log_{10}$(residual / limit) or $\log_{10}$(limit / p)   $\rightarrow$   fails",
            fontsize=8,
        )
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{self.title}: {'PASS' if self.passed else 'FAIL'}", fontsize=10)
        return figure


def exact_row(what: str, residual: float, tolerance: float, detail: str = "") -> Row:
    """A row that passes where the residual, a relative error in float64, is at most the tolerance; NaN fails."""
    return Row(what, residual, 2.2e-16, tolerance, None, tolerance, "relative", residual <= tolerance, detail)


def fact_row(what: str, problem: str = "") -> Row:
    """A row for something that holds or does not: it fails where there is a ``problem``, which says what was seen."""
    return Row(what, float(bool(problem)), 0.0, 0.0, None, 0.0, FACT, not problem, problem)


def judge(panel: Panel, n: int, seed: int, level: float) -> tuple[Row, ...]:
    """The verdicts of a panel of tests, at false-alarm rate ``level`` for all of them together.

    Each test has its share of the level (Bonferroni) and the retry rule: where one is in doubt, the panel is run once more
    with 4 n fresh samples, and the doubtful tests are decided, and reported, by that.
    """
    first = panel(n, seed)
    share = level / max(len(first), 1)
    again = cache(lambda: panel(4 * n, seed + 1_000_003))
    rows = []
    for what, outcome in first.items():
        decided, limit = retry(outcome, lambda what=what: again()[what], share)  # type: ignore[misc]
        effect, passed = decided.detectable(0.5 * share), decided.p > limit
        seen = (decided.statistic, decided.floor, limit, decided.p, effect, decided.unit, passed, decided.detail)
        rows.append(Row(what, *seen))
    return tuple(rows)


FACT = "fact"
"""The unit of a row without a number."""

_HEADER = ("check", "measured", "noise floor", "p", "limit", "detects", "verdict")
_REACH = 16  # powers of ten that the plot shows on either side of the limit


def _measured(row: Row) -> str:
    if row.unit == FACT:
        return "holds" if row.passed else "broken"
    return f"{row.statistic:.2g}"


def _cells(row: Row) -> tuple[str, ...]:
    if row.unit == FACT:
        return row.what, _measured(row), "", "", "", "", row.verdict
    p, limit = ("", f"≤ {row.limit:.0e}") if row.p is None else (f"{row.p:.2g}", f"p > {row.limit:.1e}")
    detects = f"{row.detectable:.2g} {row.unit}".rstrip()
    return row.what, _measured(row), f"{row.floor:.2g}", p, limit, detects, row.verdict


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if 0 < column < 4 else cell.ljust(width)


def _html_row(row: Row) -> str:
    cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row))
    return f'<tr class="{row.verdict.lower()}">{cells}</tr>'
