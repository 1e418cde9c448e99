"""Solvers compared in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .style import COLOURS, GREY, INK, panel, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def solver_table(
    rows: Sequence[tuple[str, int, float]],
    *,
    quantity: str = "error",
    floor: float | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """One line per solver, one dot per budget, on a logarithmic scale; the best at its largest budget on top.

    Args:
        rows: (solver, evaluations, error), in any order; errors positive.
        quantity: what the error is, with its unit.
        floor: the error of exact samples, drawn as the limit of what can be seen.
        title: above the panel.
        ax: a panel to draw into.

    Raises:
        ValueError: there is no row, or an error is not positive and finite.
    """
    if not rows or not all(0 < error < float("inf") for _, _, error in rows):
        raise ValueError(f"rows must be (solver, evaluations, positive error), got {list(rows)}.")
    budgets = sorted({budget for _, budget, _ in rows})
    names = sorted({name for name, _, _ in rows}, key=lambda name: _final(rows, name))
    figure, ax = panel(ax, 6.2, 1.0 + 0.34 * len(names))
    for k, name in enumerate(names):
        errors = [error for solver, _, error in rows if solver == name]
        ax.plot([min(errors), max(errors)], [k, k], color=GREY, linewidth=1.2, alpha=0.6, zorder=1)
    for budget, colour in zip(budgets, _scale(len(budgets)), strict=True):
        errors = [error for _, seen, error in rows if seen == budget]
        lines = [names.index(name) for name, seen, _ in rows if seen == budget]
        ax.scatter(errors, lines, s=42, color=colour, zorder=2, linewidths=0, label=f"{budget}")
    if floor is not None:
        ax.axvspan(0, floor, color=GREY, alpha=0.18, linewidth=0, zorder=0)
        ax.axvline(floor, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        # At the bottom, where the worst solvers are, whose dots are far to the right of it.
        ax.annotate(
            "exact samples",
            (floor, 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 4),
            textcoords="offset points",
            color=GREY,
            fontsize=7,
            rotation=90,
            ha="right",
            va="bottom",
        )
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel(quantity, fontsize=8, color=INK)
    ax.grid(axis="x", which="major", color=GREY, alpha=0.25, linewidth=0.6)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    quiet(ax, title)
    ax.tick_params(axis="y", labelsize=8, labelcolor=INK, length=0)
    ax.legend(
        title="evaluations",
        fontsize=7,
        title_fontsize=7,
        labelcolor=INK,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )
    return figure


def _final(rows: Sequence[tuple[str, int, float]], name: str) -> tuple[int, float]:
    """Sort key: the error at the largest budget that this solver was given."""
    budget, error = max((budget, error) for solver, budget, error in rows if solver == name)
    return (-budget, error)


def _scale(count: int) -> list[str]:
    """Colours for budgets, from light to dark."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    ramp = LinearSegmentedColormap.from_list("budgets", ["#e0a030", "#c8452f", "#7b2d56", "#1b2a41"])
    return [to_hex(ramp(k / max(count - 1, 1))) for k in range(count)] if count > 1 else [COLOURS[0]]
