r"""The Fokker-Planck equation of any SDE on a grid.

.. math:: \partial_t p = -\nabla\cdot(fp) + \tfrac12\nabla\nabla:(Dp), \qquad D = GG^\top .

Space is cut into cells; a step follows the directions of the grid one after another and back again (Strang's splitting),
along the lines of each by :class:`~sdediff.fokker_planck.sweeps.Rates`. With :math:`\tilde D_{ij} = D_{ij}/h_ih_j` and
:math:`v_\pm = (1, \pm1)`, matrix noise is written without a mixed derivative,

.. math:: \nabla\nabla:(Dp) = \sum_i \partial_i^2\bigl[(\tilde D_{ii} - c)p\bigr]
          + \sum_\pm \partial_{v_\pm}^2\bigl[\tfrac12(c \pm \tilde D_{12})\,p\bigr], \qquad
          |\tilde D_{12}| \le c \le \min(\tilde D_{11}, \tilde D_{22}),

so that all of it is mass moving between neighbours; c varies as smoothly as D does. Guaranteed at every step size:
:math:`p \ge 0`, and mass to rounding.
Of second order in the step and in the cell width, without noise as well.

Walls let nothing through. The method is for laws that the box holds, or that the process itself keeps inside.

Sources: Strang 1968, https://doi.org/10.1137/0705041; Weickert 1998, "Anisotropic Diffusion in Image Processing",
for the directions; and those of :mod:`~sdediff.fokker_planck.sweeps`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..checks import check_count, check_number
from ..densities import as_density
from ..errors import SolveError
from ..grids import check_steps, ends, saved_times
from ..sde import SDE
from ..solve import Times
from .cells import Cells
from .law import GridLaw
from .sweeps import Array, Lines, Rates

_BLOCK = 2**15


class FokkerPlanck:
    """The law of a process on a grid of cells.

    Args:
        sde: any SDE with states (B, 1) or (B, 2): its own drift and diffusion, dependent on state and time; forward, or a
            reversal, which runs towards falling t.
        cells: the box.

    Raises:
        TypeError: ``sde`` is no SDE, or ``cells`` are no :class:`Cells`.
    """

    def __init__(self, sde: SDE, cells: Cells):
        if not isinstance(sde, SDE):
            raise TypeError(f"sde must be an SDE, got {type(sde).__name__}.")
        if not isinstance(cells, Cells):
            raise TypeError(f"cells must be Cells(low, high, count), got {type(cells).__name__}.")
        self.sde, self.cells = sde, cells
        offsets = [(1,)] if len(cells.count) == 1 else [(1, 0), (0, 1)]
        self._axes = [Lines.along(offset, cells.count) for offset in offsets]
        self._diagonals = [Lines.along((1, s), cells.count) for s in (1, -1)] if len(cells.count) == 2 else []
        self._centres = cells.centres

    def solve(
        self,
        initial: Any,
        *,
        t0: float | None = None,
        t1: float | None = None,
        tolerance: float | None = None,
        steps: int | None = None,
        save_at: Times | None = None,
        max_steps: int = 10_000,
    ) -> GridLaw:
        """Carry a law from t0 to t1.

        Args:
            initial: a density (anything with ``log_prob``), samples (B, d), or cell averages of shape ``cells.count``.
            t0, t1: as in :func:`~sdediff.solve`.
            tolerance: of the total variation that time steps add over the whole way; they adapt to it by step doubling.
                3e-4 where neither it nor ``steps`` is given. What cells add is not in it: halve them to see.
            steps: instead, so many equal steps.
            save_at: times at which to keep the law; they become nodes. By default the ends of all steps are kept, which a score
                at every t needs.
            max_steps: the most steps that adapting may take.

        Returns:
            A :class:`GridLaw`, whose ``stats`` say: ``steps``, ``rejected``, ``time_error`` (the sum of the local estimates,
            which bounds the total variation added, since the equation contracts it; NaN for equal steps), ``mass_error``,
            ``outside`` (mass of the initial density beyond the box), ``at_walls`` (the most mass saved in the outermost
            cells: what the box cuts off), ``seconds``.

        Raises:
            ValueError: the box misses a hundredth of the initial mass or more, the coefficients are not finite on it, or
                noise is so correlated that its diagonal stencil would be negative.
            SolveError: max_steps are used up.
        """
        t0, t1 = ends(self.sde, t0, t1, None)
        if tolerance is not None and steps is not None:
            raise ValueError("Give tolerance=, or steps= for equal steps, not both.")
        tolerance = 3e-4 if tolerance is None else check_number(tolerance, "tolerance")
        check_count(max_steps, "max_steps")
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance = {tolerance} is a total variation, between 0 and 1.")
        p, outside = self._start(initial)
        clock = _Clock(t0, t1, saved_times(save_at, t0, t1) if save_at is not None else None)
        started = time.perf_counter()
        p = p * self.cells.volume
        walk = (
            self._adapted(p, clock, tolerance, max_steps)
            if steps is None
            else self._equal(p, clock, check_steps(steps))
        )
        ts = torch.tensor(walk.ts, dtype=torch.float64)
        masses = torch.from_numpy(np.stack(walk.laws)).reshape(-1, *self.cells.count)
        stats = {
            "steps": walk.steps, "rejected": walk.rejected, "time_error": walk.error,
            "mass_error": float((masses.flatten(1).sum(1) - 1).abs().max()), "outside": outside,
            "at_walls": float(_wall_mass(masses).max()), "seconds": time.perf_counter() - started,
        }  # fmt: skip
        return GridLaw(self.cells, ts, masses / self.cells.volume, stats)

    def generator(self, t: float) -> sparse.csr_array:
        """The operator on cell averages at t, on the process's own clock: sparse (N, N), columns that sum to 0.

        No entry off the diagonal is negative, so that ``scipy.sparse.linalg.expm_multiply`` of it is the law of a Markov
        chain on the cells; where the drift outweighs the noise, |f| h > D for cells of width h, this chain is upwind and of
        first order. :meth:`solve` splits it by directions, and takes that error out with rates that depend on the law.
        """
        return sum((r.matrix() for r in self._rates(t)), sparse.csr_array((len(self._centres),) * 2)).tocsr()

    def _start(self, initial: Any) -> tuple[Array, float]:
        """Cell averages with unit mass, flat, and the mass that the box misses."""
        if isinstance(initial, Tensor) and tuple(initial.shape) == self.cells.count and initial.ndim == 2:
            averages = initial.detach().double()
            if not bool((averages.isfinite() & (averages >= 0)).all()):
                raise ValueError("Cell averages must be finite and not negative.")
        elif isinstance(initial, Tensor):
            averages = self.cells.counts(initial)
        else:
            averages = self.cells.averages(as_density(initial))
        mass = float(averages.sum()) * self.cells.volume
        if abs(mass - 1) > 0.01:
            raise ValueError(
                f"The box from {self.cells.low} to {self.cells.high} holds a mass of {mass:.4g} of the initial law instead of "
                "1: enlarge it, take narrower cells, or normalise the density."
            )
        return (averages / mass).reshape(-1).numpy(), 1 - mass

    def _rates(self, t: float) -> list[Rates]:
        """Along each direction, the rates of mass moving between cells."""
        drift, gram = self._coefficients(t)
        if gram.shape[1] == 1:
            return [Rates.fitted(self._axes[0], drift[:, 0], gram[:, 0, 0])]
        first, second, mixed = gram[:, 0, 0], gram[:, 1, 1], gram[:, 0, 1]
        if not mixed.any():
            return [Rates.fitted(self._axes[i], drift[:, i], d) for i, d in enumerate((first, second))]
        _check_dominant(gram, t, self.cells.widths)
        share = _shared(first, second, mixed)
        along = [
            Rates.fitted(self._axes[i], drift[:, i], np.maximum(d - share, 0)) for i, d in enumerate((first, second))
        ]
        across = [
            Rates.diffusive(lines, np.maximum(0.5 * (share + sign * mixed), 0))
            for lines, sign in zip(self._diagonals, (1, -1), strict=True)
        ]
        return along + across

    def _coefficients(self, t: float) -> tuple[Array, Array]:
        """Drift (N, d) and D (N, d, d) at the centres in units of cells, along the direction in which the noise flows."""
        widths = torch.tensor(self.cells.widths, dtype=torch.float64)
        drifts, grams = [], []
        with torch.no_grad():
            for x in self._centres.split(_BLOCK):
                drifts.append(self.sde.drift(x, t) / widths)
                grams.append(self.sde.diffusion(x, t).gram_matrix(x) / (widths * widths[:, None]))
        drift, gram = torch.cat(drifts), torch.cat(grams)
        for name, value in (("drift", drift), ("diffusion", gram)):
            bad = ~value.flatten(1).isfinite().all(1)
            if bool(bad.any()):
                raise ValueError(
                    f"The {name} of {type(self.sde).__name__} is NaN or infinite at t = {t:g} in {int(bad.sum())} cells, such "
                    f"as x = {self._centres[bad][0].tolist()}: move the walls of the box, or the ends of the solve."
                )
        return (drift if self.sde.direction >= 0 else -drift).numpy(), gram.numpy()

    def _strang(self, p: Array, t: float, h: float) -> Array:
        """One step from t by h (signed), the coefficients held at its middle."""
        *first, last = self._rates(t + 0.5 * h)
        tau = abs(h)
        for rates in first:
            p = rates.step(p, 0.5 * tau)
        p = last.step(p, tau)
        for rates in reversed(first):
            p = rates.step(p, 0.5 * tau)
        return p

    def _equal(self, p: Array, clock: _Clock, steps: int) -> _Walk:
        walk = _Walk(clock, p, error=math.nan)
        nodes = np.linspace(clock.t0, clock.t1, steps + 1)
        extra = () if clock.wanted is None else clock.wanted
        nodes = np.unique(np.concatenate([nodes, extra]))  # a saved time is a node
        nodes = nodes if clock.t1 > clock.t0 else nodes[::-1]
        for s, t in zip(nodes[:-1].tolist(), nodes[1:].tolist(), strict=True):
            p = self._strang(p, s, t - s)
            walk.keep(t, p)
        return walk

    def _adapted(self, p: Array, clock: _Clock, tolerance: float, max_steps: int) -> _Walk:
        """Two steps are held against one of twice the length; they err by a third of the difference."""
        walk, t, span = _Walk(clock, p), clock.t0, clock.t1 - clock.t0
        share = 1e-3
        while t != clock.t1:
            if walk.steps + walk.rejected >= max_steps:
                raise SolveError(
                    f"The Fokker-Planck equation of {type(self.sde).__name__} took {max_steps} steps from {clock.t0:g} to "
                    f"t = {t:g}: raise tolerance or max_steps, or start from a law that is wider than a cell."
                )
            stop = clock.next(t, t + share * span)
            h = stop - t
            whole = self._strang(p, t, h)
            halves = self._strang(p, t, 0.5 * h)
            halves = self._strang(halves, t + 0.5 * h, 0.5 * h)
            error = float(np.abs(halves - whole).sum()) / 6
            allowed = tolerance * abs(h / span)
            # The error of a step goes with its third power, what it may be with the first.
            factor = min(4.0, max(0.2, 0.85 * math.sqrt(allowed / max(error, 1e-300))))
            taken = abs(h / span)
            if error <= allowed:
                t, p = stop, halves
                walk.steps, walk.error = walk.steps + 2, walk.error + error
                walk.keep(t, p)
            else:
                walk.rejected += 2
            # A step that was cut short to hit a saved time says nothing against longer ones.
            share = factor * taken if factor < 1 else max(share, factor * taken)
        return walk


@dataclass
class _Clock:
    """From where to where, and which times are wanted on the way (None: all)."""

    t0: float
    t1: float
    wanted: Any

    def next(self, t: float, end: float) -> float:
        """The end of a step meant to go from t to ``end``: no later than the next wanted time, and no sliver left before it."""
        sign = 1.0 if self.t1 > self.t0 else -1.0
        stops = [self.t1] if self.wanted is None else [*self.wanted.tolist(), self.t1]
        target = min((s for s in stops if sign * (s - t) > 0), key=lambda s: sign * s)
        left = sign * (target - t)
        h = sign * (end - t)
        return target if h >= 0.999 * left else t + sign * min(h, 0.5 * left if 2 * h > left else h)


class _Walk:
    """What was kept on the way."""

    def __init__(self, clock: _Clock, p: Array, error: float = 0.0):
        self.clock, self.steps, self.rejected, self.error = clock, 0, 0, error
        self.wanted = None if clock.wanted is None else set(clock.wanted.tolist())
        self.ts: list[float] = []
        self.laws: list[Array] = []
        if self.wanted is None or clock.t0 in self.wanted:
            self._append(clock.t0, p)

    def keep(self, t: float, p: Array) -> None:
        """Keep the law at t if it is wanted; the last one always is."""
        self.steps += math.isnan(self.error)
        if self.wanted is None or t in self.wanted or t == self.clock.t1:
            self._append(t, p)

    def _append(self, t: float, p: Array) -> None:
        self.ts.append(t)
        self.laws.append(p)


def _shared(first: Array, second: Array, mixed: Array) -> Array:
    """c between |D_12| and the smaller of D_11 and D_22: |D_12| itself has a kink, and its stencil no order there."""
    left, det = np.minimum(first, second) ** 2 - mixed**2, first * second - mixed**2
    slack = 0.5 * max(0.0, float(np.divide(left, det, out=np.ones_like(det), where=det > 0).min()))
    return np.sqrt(mixed**2 + slack * np.maximum(det, 0))


def _check_dominant(gram: Array, t: float, widths: tuple[float, ...]) -> None:
    """Raise unless |D_12| <= D_11 and D_22, but for rounding."""
    own = [gram[:, i, i] - np.abs(gram[:, 0, 1]) for i in (0, 1)]
    worst = min(float((part / np.maximum(np.abs(gram).max((1, 2)), 1e-300)).min()) for part in own)
    if worst < -1e-12:
        size = np.sqrt(gram.max(0))
        ratio = widths[0] / widths[1] * size[0, 0] / size[1, 1]
        raise ValueError(
            f"At t = {t:g} the noise is so correlated that mass would have to move further than to the next cell: "
            f"|D_12|/h_1h_2 exceeds D_11/h_1² or D_22/h_2² (by {-worst:.3g} of it). Cells with h_1/h_2 near {ratio:.3g} may "
            "do; else turn the coordinates so that D becomes diagonal."
        )


def _wall_mass(masses: Tensor) -> Tensor:
    """The mass in the outermost cells at each saved time (S, *count)."""
    inner = masses[:, 1:-1] if masses.ndim == 2 else masses[:, 1:-1, 1:-1]
    return masses.flatten(1).sum(1) - inner.flatten(1).sum(1)
