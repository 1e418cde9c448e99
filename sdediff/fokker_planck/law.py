r"""What a grid knows of a law: the density in cells, and :math:`\log p` and its gradient between them.

:math:`\log p` at the centres is interpolated by cubic splines (not-a-knot) along each axis, in Hermite form, so that the score
is continuous and its error falls with the third power of the cell width, beside that of the density itself. In time,
:math:`\log p` runs through the up to four saved times around t, a cubic in t.

Far out in the tails the relative error of a density is large and so is that of its score: the steps in time leave tails that
fall as :math:`e^{-c|x|}`. Trust the score where p is above about 1e-8 of its peak; a sampler hardly comes elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from ..checks import Time, as_time, check_finite, check_like, check_number, check_parameter, check_state, per_sample
from ..densities import Density, as_density
from ..densities.base import host_generator
from .cells import Cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLOOR = 1e-290  # below it a cell is empty, by underflow


class GridDensity(Density):
    """A law on cells, as a density: ``log_prob``, ``score``, ``sample``.

    Args:
        cells: the box.
        p: cell averages of shape ``cells.count``.
        base: a density; see :meth:`GridLaw.relative`.

    ``log_prob`` is -inf outside the box; the score there is that of the nearest point inside. A sample is uniform within its
    cell.
    """

    dtype = torch.float64

    def __init__(self, cells: Cells, p: Tensor, base: _Base | None = None):
        if tuple(p.shape) != cells.count:
            raise ValueError(f"p has shape {tuple(p.shape)} for {cells.count} cells.")
        self.cells, self.p, self.base, self.event_shape = cells, p, base, cells.event_shape
        self._fields: Tensor | None = None

    @property
    def fields(self) -> Tensor:
        """log p and its derivatives at the centres in units of cells, (2, count) or (2, 2, n, m): derivative axes first.

        With a base, those of the ratio to it.
        """
        if self._fields is None:
            log_p = self.p.clamp_min(_FLOOR).log()
            self._fields = _with_slopes((log_p if self.base is None else log_p - self.base.logs).numpy())
        return self._fields

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,)."""
        return _value(self.fields, self.cells, self.base, check_finite(self._check(x)))

    def score(self, x: Tensor) -> Tensor:
        """The gradient of :meth:`log_prob`, of x's shape; finite everywhere."""
        return check_like(_gradient(self.fields, self.cells, self.base, check_finite(self._check(x))), x, "the score")

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """``n`` samples."""
        mass = self.p.flatten().cumsum(0)
        u = torch.rand(n, generator=generator, dtype=torch.float64) * mass[-1]
        index = torch.searchsorted(mass, u, right=True).clamp_max(len(mass) - 1)
        jitter = torch.rand(n, len(self.cells.count), generator=generator, dtype=torch.float64) - 0.5
        return self.cells.centres[index] + jitter * torch.tensor(self.cells.widths, dtype=torch.float64)


@dataclass(frozen=True)
class GridLaw:
    """The laws of a process at the saved times.

    Attributes:
        cells: the box.
        ts: the saved times, float64, (S,), in the order of the solve.
        p: cell averages, float64, (S, *cells.count).
        stats: what the solve says of itself; see :meth:`FokkerPlanck.solve`.

    ``law.score`` is a score like any other: ``sde.reverse(law.score)`` runs through these laws backwards.
    """

    cells: Cells
    ts: Tensor
    p: Tensor
    stats: dict[str, Any]
    base: _Base | None = None
    _kept: dict[int, GridDensity] = field(default_factory=dict, repr=False)
    _last: dict[float, Tensor] = field(default_factory=dict, repr=False)

    def relative(self, density: Density) -> GridLaw:
        """The same laws, interpolated by their ratio to a density, which is added again in closed form.

        For laws that vanish or grow like a power at a wall, whose log no polynomial follows: give the invariant law of the
        process, ``sde.invariant((1,))``.
        """
        density = as_density(density)
        averages = self.cells.averages(density)
        return replace(self, base=_Base(density, averages.clamp_min(_FLOOR).log()), _kept={}, _last={})

    def at(self, t: float) -> GridDensity:
        """The law at a saved time.

        Raises:
            ValueError: t was not saved.
        """
        t = check_number(t, "t")
        near = int((self.ts - t).abs().argmin())
        if abs(float(self.ts[near]) - t) > 1e-9 * float(self.ts.abs().max()):
            raise ValueError(f"t = {t:g} was not saved; the nearest is {float(self.ts[near]):g}: name it in save_at=.")
        return self._density(near)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """log p_t(x) in nats at x (B, d) and t, a number or (B,): shape (B,)."""
        return self._spread(_value, x, t)

    def score(self, x: Tensor, t: Time) -> Tensor:
        """The gradient of :meth:`log_prob`, of x's shape; finite everywhere."""
        return check_like(self._spread(_gradient, x, t), x, "the score")

    def marginal(self, axis: int, t: float) -> tuple[Tensor, Tensor]:
        """The centres along an axis and the marginal density on them at a saved time."""
        p, d = self.at(t).p, len(self.cells.count)
        if not isinstance(axis, int) or axis not in range(d):
            raise ValueError(f"axis = {axis!r} is none of the axes 0 ... {d - 1}.")
        across = [i for i in range(d) if i != axis]
        weight = self.cells.volume / self.cells.widths[axis]
        return self.cells.axis(axis), (p.sum(across) if across else p) * weight

    def sample(self, n: int, t: float, *, seed: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """``n`` samples of the law at a saved time, (n, d), uniform within each cell."""
        return self.at(t).sample(n, generator=host_generator(seed, generator))

    def total_variation(self, density: Any, t: float) -> float:
        r"""The distance :math:`\tfrac12\sum|P_k - Q_k|` to a density over the cells' masses, its mass outside included."""
        exact = self.cells.averages(as_density(density))
        inside = 0.5 * float((self.at(t).p - exact).abs().sum()) * self.cells.volume
        return inside + 0.5 * max(0.0, 1 - float(exact.sum()) * self.cells.volume)

    def plot(self, times: Sequence[float] | None = None) -> Figure:
        """The density at up to six of the saved times: lines on one panel, or one panel each in the plane."""
        every = self.ts[:: max(1, -(-len(self.ts) // 6))]
        chosen = (every if times is None else check_parameter(times, "times").reshape(-1)).tolist()
        from ..plot.style import COLOURS, canvas, quiet, shades

        if len(self.cells.count) == 1:
            figure, (ax,) = canvas(5, 3)
            for k, t in enumerate(chosen):
                ax.plot(self.cells.axis(0), self.at(t).p, color=COLOURS[k % 6], linewidth=1.4, label=f"t = {t:.3g}")
            ax.set_ylim(bottom=0)
            ax.legend(fontsize=7, frameon=False)
            quiet(ax)
            return figure
        figure, axes = canvas(2.4 * len(chosen), 2.6, 1, len(chosen))
        (left, bottom), (right, top) = self.cells.low, self.cells.high
        for ax, t in zip(axes, chosen, strict=True):
            ax.imshow(self.at(t).p.T, origin="lower", extent=(left, right, bottom, top), cmap=shades(), aspect="auto")
            quiet(ax, f"t = {t:.3g}")
        return figure

    def _density(self, k: int) -> GridDensity:
        if k not in self._kept:
            while len(self._kept) >= 16:  # a solve passes the times in order
                self._kept.pop(next(iter(self._kept)))
            self._kept[k] = GridDensity(self.cells, self.p[k], self.base)
        return self._kept[k]

    def _spread(self, view: Any, x: Tensor, t: Time) -> Tensor:
        """A view of log p at times between the saved ones, one or one per sample."""
        t = as_time(t, check_state(x))
        if tuple(x.shape[1:]) != self.cells.event_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; this law needs states (B, {len(self.cells.count)}).")
        check_finite(x)
        if t.ndim == 0:
            return view(self._between(float(t)), self.cells, self.base, x)
        times, index = per_sample(t, x.double()).cpu().unique(return_inverse=True)
        found = [(rows := (index == k).nonzero().flatten(), view(self._between(float(u)), self.cells, self.base, x[rows]))
                 for k, u in enumerate(times)]  # fmt: skip
        return torch.cat([part for _, part in found])[torch.cat([rows for rows, _ in found]).argsort()]

    def _between(self, t: float) -> Tensor:
        """The fields at t: a polynomial through the saved times around it."""
        if t not in self._last:
            self._last.clear()
            first, nodes = self._window(t)
            weights = [
                float(np.prod([(t - v) / (u - v) for j, v in enumerate(nodes) if j != i])) for i, u in enumerate(nodes)
            ]
            self._last[t] = sum(
                (w * self._density(first + i).fields for i, w in enumerate(weights) if w != 0),
                torch.zeros(()),
            )
        return self._last[t]

    def _window(self, t: float) -> tuple[int, list[float]]:
        """The first of the saved times around t, and they."""
        ts = self.ts.tolist()
        sign = 1.0 if ts[-1] >= ts[0] else -1.0
        low, high = min(ts[0], ts[-1]), max(ts[0], ts[-1])
        slack = 1e-6 * max(high, 1e-300)
        if not low - slack <= t <= high + slack:
            raise ValueError(f"t = {t:g} lies outside the saved times, {low:g} to {high:g}.")
        after = int(np.searchsorted(sign * np.array(ts), sign * t, side="right"))
        first = min(max(after - 2, 0), max(len(ts) - 4, 0))
        return first, ts[first : first + 4]


def _with_slopes(values: np.ndarray) -> Tensor:
    """Values at the centres with their spline slopes: a new leading axis of two for each axis of the grid."""
    fields = values
    for i in range(values.ndim):
        axis = fields.ndim - values.ndim + i
        nodes = np.arange(values.shape[i])
        fields = np.stack([fields, CubicSpline(nodes, fields, axis=axis)(nodes, 1)])
    return torch.from_numpy(np.ascontiguousarray(fields))


@dataclass(frozen=True)
class _Base:
    """A density, and the logs of its cell averages."""

    density: Density
    logs: Tensor


def _value(fields: Tensor, cells: Cells, base: _Base | None, x: Tensor) -> Tensor:
    """log p at x (B, d), (B,); -inf outside."""
    (log_p,) = _interpolated(fields, cells, x, gradient=False)
    log_p = log_p if base is None else log_p + base.density.log_prob(x.double())
    low, high = (torch.tensor(c, dtype=torch.float64, device=x.device) for c in (cells.low, cells.high))
    inside = ((x >= low) & (x <= high)).all(1)
    return torch.where(inside, log_p, -torch.inf).to(x.dtype)


def _gradient(fields: Tensor, cells: Cells, base: _Base | None, x: Tensor) -> Tensor:
    """Its gradient, (B, d)."""
    widths = torch.tensor(cells.widths, dtype=torch.float64, device=x.device)
    slope = torch.stack(_interpolated(fields, cells, x, gradient=True), 1) / widths
    return (slope if base is None else slope + base.density.score(x.double())).to(x.dtype)


def _interpolated(fields: Tensor, cells: Cells, x: Tensor, *, gradient: bool) -> list[Tensor]:
    """The Hermite interpolant at x (B, d), float64, or its derivative along each axis in units of cells."""
    d, fields = len(cells.count), fields.to(x.device)
    corners, local = [], []
    for i, (a, b, n) in enumerate(zip(cells.low, cells.high, cells.count, strict=True)):
        place = (x[:, i].double().clamp(a, b) - a) * (n / (b - a)) - 0.5
        corner = place.detach().floor().clamp(0, n - 2)
        corners.append(corner.long())
        local.append(place - corner)
    views = [[i == axis for i in range(d)] for axis in range(d)] if gradient else [[False] * d]
    bases = [{slope: _hermite(u, slope) for slope in (False, True)} for u in local]
    totals = [torch.zeros_like(local[0]) for _ in views]
    for steps in product((0, 1), repeat=d):  # the corners of a cell
        at = tuple(corners[i] + steps[i] for i in range(d))
        for orders in product((0, 1), repeat=d):  # values and slopes there
            # the axis that was differentiated last stands first
            where: tuple[Any, ...] = (*reversed(orders), *at)
            known = fields[where]
            for k, view in enumerate(views):
                weight = torch.ones_like(local[0])
                for i in range(d):
                    weight = weight * bases[i][view[i]][2 * steps[i] + orders[i]]
                totals[k] = totals[k] + weight * known
    return totals


def _hermite(u: Tensor, slope: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cubic Hermite basis on [0, 1], (value, slope) at 0 and at 1, or its derivative."""
    if slope:
        return 6 * u * (u - 1), (1 - u) * (1 - 3 * u), 6 * u * (1 - u), u * (3 * u - 2)
    return (1 + 2 * u) * (1 - u) ** 2, u * (1 - u) ** 2, u * u * (3 - 2 * u), u * u * (u - 1)
