"""Pictures through time: snapshots of particles, and the paths of a few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..exact import ExactScore
from .fields import fill, scatter
from .plane import Extent, around, draw, host, log_density
from .style import GREY, INK, VERMILION, canvas, panel, quiet, shades, square, wheel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Run(Protocol):
    """What a solve saved: a :class:`~sdediff.Solution`, or anything with its times (S,) and states (S, B, *event)."""

    @property
    def ts(self) -> Tensor: ...
    @property
    def xs(self) -> Tensor: ...


def particles(
    run: Run,
    score: ExactScore | None = None,
    *,
    panels: int = 6,
    colour: Tensor | None = None,
    extent: Extent | None = None,
    title: str = "",
) -> Figure:
    """Snapshots of the particles side by side, each over the contours of p_t at its time.

    Args:
        run: a solution with saved times, states (S, B, 2).
        score: the exact score whose p_t is drawn behind; none for bare particles.
        panels: at most so many snapshots, spread over the saved ones, the first and last included.
        colour: (B,) values that colour the particles, the same ones in all panels.
        extent: (left, right, bottom, top), one for all panels; by default each is framed by itself where the first and
            last spread differ more than eightfold.
        title: above all.
    """
    ts, xs = run.ts.cpu(), host(run.xs)
    if xs.ndim != 3 or len(ts) != len(xs):
        raise ValueError(f"ts has shape {tuple(ts.shape)} and xs {tuple(xs.shape)}: they must be (S,) and (S, B, 2).")
    chosen = torch.linspace(0, len(ts) - 1, min(panels, len(ts))).round().long().unique().tolist()
    spreads = xs[chosen].flatten(2).std(1).norm(dim=1)
    if extent is None and spreads.max() < 8 * spreads.min():
        extent = around(xs[chosen].reshape(-1, 2))
    figure, axes = canvas(2.1 * len(chosen), 2.45 + 0.25 * bool(title), 1, len(chosen))
    for ax, k in zip(axes, chosen, strict=True):
        t = float(ts[k])
        frame = extent or around(xs[k])
        if score is not None and score.sde.sigma(t) > 0:
            fill(ax, log_density(score, t), frame, 140)
        scatter(ax, xs[k], colour, over=score is not None, size=0.5)
        square(ax, frame, f"t = {t:.3g}", ticks=False)
    if title:
        figure.suptitle(title, fontsize=10, color=INK, x=0.003, ha="left")
    return figure


def trajectories(
    run: Run,
    score: ExactScore | None = None,
    *,
    count: int = 40,
    extent: Extent | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """The paths of the first particles: in the plane from open dot to full dot, on the line against time.

    Args:
        run: a solution with saved times, states (S, B, 2), (S, B, 1) or (S, B).
        score: the exact score; in the plane p_t at the last time is drawn behind, on the line p_t at all times.
        count: how many paths.
        extent: (left, right, bottom, top).
        title: above the panel.
        ax: a panel to draw into.
    """
    xs = run.xs.detach().double().cpu()
    if len(run.ts) < 2 or len(run.ts) != len(xs):
        raise ValueError(f"A path needs at least two saved times, got {len(run.ts)}: solve with save_at=.")
    if xs.ndim == 2 or xs.shape[2:] == (1,):
        return _over_time(run.ts.double().cpu(), xs.reshape(*xs.shape[:2])[:, :count], score, extent, title, ax)
    xs = host(xs)[:, :count]
    figure, ax = panel(ax)
    t = float(run.ts[-1])
    law = [] if score is None else [draw(score, t)]
    extent = extent or around(torch.cat([xs.reshape(-1, 2), *law]))
    if score is not None:
        fill(ax, log_density(score, t), extent)
    _lines(ax, xs.transpose(0, 1))
    ax.scatter(
        xs[0][:, 0].numpy(), xs[0][:, 1].numpy(), s=9, facecolors="white", edgecolors=GREY, linewidths=0.7, zorder=3
    )
    ax.scatter(xs[-1][:, 0].numpy(), xs[-1][:, 1].numpy(), s=10, color=VERMILION, linewidths=0, zorder=4)
    square(ax, extent, title or f"t = {float(run.ts[0]):.3g} to {t:.3g}")
    return figure


def _over_time(
    ts: Tensor, xs: Tensor, score: ExactScore | None, extent: Extent | None, title: str, ax: Axes | None
) -> Figure:
    figure, ax = panel(ax, 6, 3.2)
    low, high = (float(q) for q in (xs.min(), xs.max()))
    margin = 0.08 * (high - low)
    left, right, bottom, top = extent or (float(ts[0]), float(ts[-1]), low - margin, high + margin)
    if score is not None:
        at = torch.linspace(bottom, top, 240, dtype=torch.float64)
        times = torch.linspace(left, right, 160, dtype=torch.float64).clamp(score.sde.t_min, score.sde.t_max).tolist()
        columns = [log_density(score, t)(at.reshape(-1, *score.density.event_shape)).exp() for t in times]
        # Each column by its own top: p_t falls by orders of magnitude on its way to noise.
        picture = torch.stack([c / c.max() for c in columns], 1).numpy()
        ax.imshow(picture, extent=(left, right, bottom, top), origin="lower", aspect="auto", cmap=shades(), zorder=0)
    _lines(ax, torch.stack([ts.unsqueeze(1).expand_as(xs), xs], 2).transpose(0, 1))
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set_xlabel("t", fontsize=8, color=INK)
    quiet(ax, title)
    return figure


def _lines(ax: Axes, paths: Tensor) -> None:
    """Paths (B, S, 2), each in its own colour of the wheel."""
    from matplotlib.collections import LineCollection

    colours = wheel()([k / len(paths) for k in range(len(paths))])
    ax.add_collection(LineCollection(list(paths.numpy()), colors=colours, linewidths=0.8, alpha=0.8, zorder=2))
