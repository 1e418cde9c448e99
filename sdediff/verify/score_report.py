"""A report on a score: the verdicts, and how far it is from the truth by t, as numbers and as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .report import Report

_TINY = 1e-17  # what 0 is drawn as


@dataclass(frozen=True)
class ErrorAt:
    """The error of a score at one time.

    Attributes:
        t: the time.
        log_snr: there; NaN for a process that is not linear.
        error: the root mean square error of a coordinate of the noise prediction (of the score, for a process that is not
            linear); NaN where the law is not known.
        low, high: an interval for it: of 95 % where the law is known, else a lower and an upper bound, each of 97.5 %.
        relative: R, the error of the score relative to the norm of the true one in L²(p_t); NaN where the law is not known.
        data_error: the root mean square error of a coordinate of the data prediction, in units of the data; likewise.
        loss: the denoising loss of the noise prediction per coordinate; NaN where the noise is not known.
        least_loss: the smallest that any score has; where the law is not known, a lower bound of it.
    """

    t: float
    log_snr: float
    error: float
    low: float
    high: float
    relative: float = math.nan
    data_error: float = math.nan
    loss: float = math.nan
    least_loss: float = math.nan


@dataclass(frozen=True)
class ScoreReport(Report):
    """A :class:`Report` that also holds the error by t.

    Attributes:
        errors: one entry per time, from data to noise.
    """

    errors: tuple[ErrorAt, ...] = ()

    def plot_errors(self) -> Any:
        """A matplotlib Figure: the error by log SNR with its interval, and the loss beside the least that is possible."""
        from ..plot.style import INK, canvas

        by_snr = not any(math.isnan(e.log_snr) for e in self.errors)
        known = all(math.isfinite(e.error) for e in self.errors)
        at = [e.log_snr if by_snr else e.t for e in self.errors]
        losses = not all(math.isnan(e.loss) for e in self.errors)
        figure, panels = canvas(7.8 if losses else 4.2, 3.1, 1, 2 if losses else 1)
        self._draw_errors(panels[0], at, known, "noise prediction" if by_snr else "score")
        if losses:
            self._draw_losses(panels[1], at, "least possible" if known else "no score is below")
        for ax in panels:
            ax.set_xlabel("log SNR (noise to the left, data to the right)" if by_snr else "t", fontsize=8, color=INK)
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.legend(fontsize=7, frameon=False, labelcolor=INK)
        figure.suptitle(self.title, fontsize=9, x=0.01, ha="left")
        return figure

    def _draw_errors(self, ax: Any, at: list[float], known: bool, what: str) -> None:
        from ..plot.style import COLOURS, GREY, quiet

        low, high = (
            [max(v, _TINY) for v in side] for side in ([e.low for e in self.errors], [e.high for e in self.errors])
        )
        ax.fill_between(
            at, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="95 %" if known else "in between"
        )
        line = [max(e.error, _TINY) for e in self.errors] if known else low
        ax.plot(at, line, "o-", color=COLOURS[0], markersize=4, label=f"of the {what}" if known else "at least")
        if known:
            relative = [max(e.relative, _TINY) for e in self.errors]
            ax.plot(at, relative, "s:", color=COLOURS[2], markersize=3, label="of the score, relative")
        ax.set_yscale("log")
        visible = [v for v in (*line, *high) if v > _TINY]
        ax.set_ylim(bottom=0.3 * max(min(visible, default=_TINY), 1e-4 * max(visible, default=1.0)))
        quiet(ax, f"rms error of the {what}, per coordinate")
        ax.tick_params(axis="y", which="minor", labelsize=6, labelcolor=GREY, color=GREY, width=0.4, length=1.5)

    def _draw_losses(self, ax: Any, at: list[float], bound: str) -> None:
        from ..plot.style import COLOURS, INK, quiet

        ax.plot(at, [e.loss for e in self.errors], "o-", color=COLOURS[1], markersize=4, label="this score")
        ax.plot(at, [e.least_loss for e in self.errors], "o--", color=INK, markersize=3, label=bound)
        quiet(ax, "denoising loss, per coordinate")
