"""Pictures in the plane at one time: a density, a vector field over it, samples over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .plane import Extent, Law, around, draw, host, log_density, mass_levels, mesh
from .style import INK, TEAL, VERMILION, dots, panel, quiet, shades, square, wheel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def density(
    law: Law,
    *,
    t: float | None = None,
    extent: Extent | None = None,
    resolution: int = 220,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A density on the plane as filled contours that hold 25, 50, 70, 85, 95 and 99 % of its mass; on the line, its graph.

    Args:
        law: a density on states of shape (2,), () or (1,), or an ``ExactScore`` for p_t.
        t: the time, for an ``ExactScore``.
        extent: (left, right, bottom, top); by default around the mass.
        resolution: points along one side.
        title: above the panel; by default the time, where there is one.
        ax: a panel to draw into.

    Returns:
        The figure.

    Raises:
        ValueError: a time is missing or out of place, or the states have another shape.
    """
    if law.event_shape in ((), (1,)):
        return _graph(law, t, extent, title, ax)
    _in_the_plane(law)
    figure, ax = panel(ax)
    extent = extent or around(draw(law, t))
    fill(ax, log_density(law, t), extent, resolution)
    square(ax, extent, _title(title, t))
    return figure


def vector_field(
    field: Callable[[Tensor], Tensor],
    law: Law | None = None,
    *,
    t: float | None = None,
    extent: Extent | None = None,
    arrows: int = 22,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Arrows of a field, over the contours of a law.

    Lengths go with the square root of the field's size, so that weak and strong places show together; the longest arrow is
    as long as 1.4 times the distance between two.

    Args:
        field: x (N, 2), float64 -> (N, 2), e.g. ``lambda x: sde.drift(x, 0.3)`` or ``density.score``.
        law: drawn behind it, as in :func:`density`; needed where there is no extent.
        t: the time of an ``ExactScore``.
        extent: (left, right, bottom, top).
        arrows: along one side.
        title: above the panel.
        ax: a panel to draw into.
    """
    if law is None and extent is None:
        raise ValueError("Give extent=(left, right, bottom, top), or a law to show the field around.")
    figure, ax = panel(ax)
    if law is not None:
        _in_the_plane(law)
        extent = extent or around(draw(law, t), 0.2)
        fill(ax, log_density(law, t), extent)
    assert extent is not None
    inner = _shrunk(extent, 0.5 / arrows)
    _, _, at = mesh(inner, arrows)
    v = field(at).detach()
    if v.shape != at.shape:
        raise ValueError(f"field returned shape {tuple(v.shape)} for x of shape {tuple(at.shape)}: it must be equal.")
    size = v.norm(dim=1, keepdim=True)
    step = (inner[1] - inner[0]) / max(arrows - 1, 1)
    scaled = v / size.clamp_min(1e-300).sqrt() / size.max().clamp_min(1e-300).sqrt() * 1.4 * step
    ax.quiver(
        at[:, 0],
        at[:, 1],
        scaled[:, 0],
        scaled[:, 1],
        color=INK,
        alpha=0.85,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.0032,
        zorder=3,
    )
    square(ax, extent, _title(title, t))
    return figure


def samples(
    x: Tensor,
    law: Law | None = None,
    *,
    t: float | None = None,
    extent: Extent | None = None,
    colour: Tensor | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Samples as dots, over the contours of the law that they should have; on the line, a histogram under its graph.

    Args:
        x: (B, 2), or (B,) or (B, 1).
        law: as in :func:`density`.
        t: the time of an ``ExactScore``.
        extent: (left, right, bottom, top).
        colour: (B,) values that colour the dots, by default one colour.
        title: above the panel.
        ax: a panel to draw into.
    """
    if x.ndim == 1 or x.shape[1:] == (1,):
        figure, ax = panel(ax, 5, 3)
        bins = min(80, max(10, round(len(x) ** 0.5)))
        ax.hist(x.detach().flatten().double().cpu().numpy(), bins=bins, density=True, color=TEAL, alpha=0.45)
        quiet(ax, _title(title, t))
        return figure if law is None else _graph(law, t, extent, title, ax)
    x = host(x)
    figure, ax = panel(ax)
    extent = extent or around(x if law is None else torch.cat([x, draw(law, t, len(x))]))
    if law is not None:
        fill(ax, log_density(law, t), extent)
    scatter(ax, x, colour, over=law is not None)
    square(ax, extent, _title(title, t))
    return figure


def fill(ax: Axes, log_p: Callable[[Tensor], Tensor], extent: Extent, resolution: int = 180) -> None:
    """The filled contours of a law, the densest darkest."""
    x, y, at = mesh(extent, resolution)
    p = log_p(at)
    p = (p - p.max()).exp().reshape(resolution, resolution)
    levels = mass_levels(p)
    colours = shades()([(k + 1) / (len(levels) - 1) for k in range(len(levels) - 1)])
    ax.contourf(x.numpy(), y.numpy(), p.numpy(), levels=levels, colors=colours, zorder=0)


def scatter(ax: Axes, x: Tensor, colour: Tensor | None, *, over: bool, size: float = 1.0) -> None:
    """Particles: one dark colour over a density, or coloured by values on the wheel."""
    look = dots(len(x), size)
    if colour is None:
        look |= {"color": INK if over else TEAL}
    else:
        look |= {"c": colour.detach().double().cpu().numpy(), "cmap": wheel()}
    ax.scatter(x[:, 0].numpy(), x[:, 1].numpy(), zorder=2, **look)


def _graph(law: Law, t: float | None, extent: Extent | None, title: str | None, ax: Axes | None) -> Figure:
    figure, ax = panel(ax, 5, 3)
    x = draw(law, t).flatten()
    middle, half = float(x.mean()), 1.15 * float((x - x.mean()).abs().max())
    left, right = (middle - half, middle + half) if extent is None else (extent[0], extent[1])
    at = torch.linspace(left, right, 800, dtype=torch.float64)
    p = log_density(law, t)(at.reshape(-1, *(law.event_shape or ()))).exp()
    ax.fill_between(at.numpy(), p.numpy(), color=TEAL, alpha=0.18, linewidth=0)
    ax.plot(at.numpy(), p.numpy(), color=VERMILION if len(ax.patches) else TEAL, linewidth=1.4)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom=0)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    quiet(ax, _title(title, t))
    return figure


def _in_the_plane(law: Law) -> None:
    if law.event_shape != (2,):
        raise ValueError(f"This law has states of shape {law.event_shape}; a picture of it needs (2,), (1,) or ().")


def _title(title: str | None, t: float | None) -> str:
    return title if title is not None else ("" if t is None else f"t = {t:g}")


def _shrunk(extent: Extent, share: float) -> Extent:
    dx, dy = share * (extent[1] - extent[0]), share * (extent[3] - extent[2])
    return extent[0] + dx, extent[1] - dx, extent[2] + dy, extent[3] - dy
