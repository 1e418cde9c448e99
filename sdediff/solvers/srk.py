r"""Stochastic Runge-Kutta methods of strong order 1.5, each given by its tableau.

With h = t - s signed, :math:`l = |h|`, the increment :math:`\Delta W` over the step and its integral :math:`\Delta Z` (see
:meth:`~sdediff.noise.Stream.with_integral`), and :math:`I = \tfrac12(\Delta W^2 - l)`, :math:`J = \tfrac16(\Delta W^3 -
3l\Delta W)`,

.. math::

    X_i = x + h\sum_j a_{ij}f(X_j, s + c_j h) + \frac{\Delta Z}{l}\sum_j b_{ij}\,g(Y_j, s + c^1_j h), \\
    Y_i = x + h\sum_j a^1_{ij}f(X_j, s + c_j h) + \sqrt l\,\sum_j b^1_{ij}\,g(Y_j, s + c^1_j h), \\
    x_t = x + h\sum_i\alpha_i f(X_i, s + c_i h) + \sum_i\Bigl(\beta_{1i}\Delta W + \beta_{2i}\frac{I}{\sqrt l}
          + \beta_{3i}\frac{\Delta Z}{l} + \beta_{4i}\frac{J}{l}\Bigr)g(Y_i, s + c^1_i h).

Only f costs score evaluations, as many as there are X. A method with :math:`b^1, \beta_2, \beta_4 = 0` is for additive noise.

Source: Rößler 2010, https://doi.org/10.1137/09076636X.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion import Diagonal, Diffusion
from ..noise import Stream
from ..sde import SDE
from .base import Advance, Orders, Solver
from .diffusions import DiffusionAt, check_additive, check_own, diffusions
from .runge_kutta import RungeKutta

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Tableau:
    """The coefficients of the module's formula, n stages X and m stages Y. The times c of X are the row sums of a.

    Every row may be shorter than i, its number from 0: what is left out is 0.

    Args:
        a: n rows: f in X.
        b: n rows: g in X.
        alpha: n weights of f.
        c1: m times of Y, in steps.
        beta: four rows of m weights of g.
        a1: m rows: f in Y; none where g ignores the state.
        b1: m rows: g in Y; none where g ignores the state.

    Raises:
        ValueError: a row is too long, rows or weights are too few or too many, or the method is not consistent.
    """

    a: Rows
    b: Rows
    alpha: Sequence[float]
    c1: Sequence[float]
    beta: Rows
    a1: Rows = ()
    b1: Rows = ()

    def __post_init__(self) -> None:
        n, m = len(self.alpha), len(self.c1)
        wanted = (("a", self.a, n, False), ("b", self.b, n, False), ("a1", self.a1, m, True), ("b1", self.b1, m, True))
        for name, rows, count, may_be_empty in wanted:
            if len(rows) != count and not (may_be_empty and not rows):
                raise ValueError(f"{name} has {len(rows)} rows; it needs {count}.")
            if any(len(row) > i for i, row in enumerate(rows)):
                raise ValueError(f"{name} is not explicit: its row i, from 0, may have i entries at most.")
        if len(self.beta) != 4 or any(len(row) != m for row in self.beta):
            raise ValueError(f"beta needs four rows of {m} weights, one per time in c1.")
        if self.additive and any((*self.beta[1], *self.beta[3])):
            raise ValueError(
                "beta 2 and beta 4 belong to a g that depends on the state: give a1 and b1, or set them to 0."
            )
        for name, row in (("alpha", self.alpha), ("beta 1", self.beta[0])):
            if abs(sum(row) - 1) > 1e-12:
                raise ValueError(f"The weights {name} sum to {sum(row):g}; a consistent method needs 1.")

    @property
    def additive(self) -> bool:
        """True where Y is the state itself: for a g that ignores it."""
        return not self.a1 and not self.b1


class SRK(Solver):
    """A method given by its tableau: for diagonal noise or, if the tableau is additive, for any additive noise.

    For diagonal noise each :math:`g_i` may depend on :math:`x_i` alone, which is checked on the first two states. As many
    evaluations a step as the tableau has weights alpha. On an ODE it is the Runge-Kutta method (a, alpha).

    Args:
        tableau: the coefficients.
        orders: the orders of convergence claimed.
    """

    def __init__(self, tableau: Tableau, orders: Orders):
        self.tableau, self.orders = tableau, orders

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """Drift and diffusion at every stage of every step are prepared at once."""
        tableau = self.tableau
        a = [[*row, *[0.0] * (i - len(row))] for i, row in enumerate(tableau.a)]
        if process.direction == 0:
            return RungeKutta(a, tableau.alpha, self.orders.ode or 1.0).prepare(process, grid, noise)
        nodes, n, m = grid.tolist(), len(tableau.alpha), len(tableau.c1)
        drifts = process.drifts(_stage_times(grid, [sum(row) for row in a]))
        noises = diffusions(process, _stage_times(grid, tableau.c1))
        check = check_additive if tableau.additive else check_own

        def advance(k: int, x: Tensor) -> Tensor:
            f, g = drifts[k * n : (k + 1) * n], noises[k * m : (k + 1) * m]
            if k < 2:
                check(self, g[0], x)
            first = g[0](x)
            dw, dz = noise.with_integral(nodes[k], nodes[k + 1], first.noise_shape(x))
            return _step(tableau, f, g, x, first, nodes[k + 1] - nodes[k], dw, dz)

        return advance


def _step(
    tableau: Tableau,
    drifts: Sequence[Callable[[Tensor], Tensor]],
    noises: Sequence[DiffusionAt],
    x: Tensor,
    first: Diffusion,
    h: float,
    dw: Tensor,
    dz: Tensor,
) -> Tensor:
    """The module's formula; ``first`` is g at Y_1 = x."""
    length, ones = abs(h), torch.ones_like(dw)
    mean = dz / length
    slopes: list[Tensor] = []  # f(X_i)
    fields: list[Diffusion] = []  # g(Y_i)
    for i in range(max(len(drifts), len(noises))):
        if i < len(noises):
            y = x
            if not tableau.additive:
                y = _kicked(_pushed(x, tableau.a1[i], slopes, h), tableau.b1[i], fields, ones, length**0.5)
            fields.append(noises[i](y) if i else first)
        if i < len(drifts):
            slopes.append(drifts[i](_kicked(_pushed(x, tableau.a[i], slopes, h), tableau.b[i], fields, mean)))
    x = _pushed(x, tableau.alpha, slopes, h)
    x = _kicked(_kicked(x, tableau.beta[0], fields, dw), tableau.beta[2], fields, mean)
    if tableau.additive:
        return x
    double, triple = dw * dw - length, dw * (dw * dw - 3 * length)
    x = _kicked(x, tableau.beta[1], fields, double, 0.5 / length**0.5)
    return _kicked(x, tableau.beta[3], fields, triple, 1 / (6 * length))


def _pushed(x: Tensor, weights: Sequence[float], slopes: Sequence[Tensor], h: float) -> Tensor:
    """x + h times the weighted sum of the slopes; weights that are left out are 0."""
    for weight, slope in zip(weights, slopes, strict=False):
        if weight:
            x = torch.add(x, slope, alpha=h * weight)
    return x


def _kicked(x: Tensor, weights: Sequence[float], fields: Sequence[Diffusion], z: Tensor, scale: float = 1.0) -> Tensor:
    """x + the weighted sum of the fields, applied to z and scaled; weights that are left out are 0."""
    for weight, g in zip(weights, fields, strict=False):
        if weight and isinstance(g, Diagonal) and isinstance(g.value, float):
            x = torch.add(x, z, alpha=scale * weight * g.value)
        elif weight:
            x = torch.add(x, g @ z, alpha=scale * weight)
    return x


def _stage_times(grid: Tensor, c: Sequence[float]) -> Tensor:
    """s + c h for every step and stage, (N stages,), the ends of steps exact."""
    fractions = torch.tensor(c, dtype=grid.dtype)
    times = torch.lerp(grid[:-1, None], grid[1:, None], fractions)
    return torch.where(fractions == 1, grid[1:, None], times).reshape(-1)


class SRA1(SRK):
    """Strong order 1.5 and weak order 2 for additive noise, diagonal or dense; two evaluations a step."""

    def __init__(self) -> None:
        tableau = Tableau(
            a=[[], [3 / 4]],
            b=[[], [3 / 2]],
            alpha=[1 / 3, 2 / 3],
            c1=[1, 0],
            beta=[[1, 0], [0, 0], [-1, 1], [0, 0]],
        )
        super().__init__(tableau, Orders(strong_additive=1.5, weak_additive=2.0, ode=2.0))


class SRIW1(SRK):
    """Strong order 1.5 for diagonal noise; two evaluations a step, and four of g.

    Its weak order is 1.5 as well, or 2 for additive noise: for expectations under diagonal noise take :class:`Weak2`.
    """

    def __init__(self) -> None:
        tableau = Tableau(
            a=[[], [3 / 4]],
            b=[[], [3 / 2]],
            alpha=[1 / 3, 2 / 3],
            a1=[[], [1 / 4], [1], [1 / 4]],
            b1=[[], [1 / 2], [-1, 0], [-5, 3, 1 / 2]],
            c1=[0, 1 / 4, 1, 1 / 4],
            beta=[[-1, 4 / 3, 2 / 3, 0], [-1, 4 / 3, -1 / 3, 0], [2, -4 / 3, -2 / 3, 0], [-2, 5 / 3, -2 / 3, 1]],
        )
        super().__init__(tableau, Orders(strong=1.5, strong_additive=1.5, weak=1.5, weak_additive=2.0, ode=2.0))


class SRI2(SRK):
    """As :class:`SRIW1` with three evaluations a step, and order 3 where the noise is small or none."""

    def __init__(self) -> None:
        tableau = Tableau(
            a=[[], [1], [1 / 4, 1 / 4]],
            b=[[], [0], [1, 1 / 2]],
            alpha=[1 / 6, 1 / 6, 2 / 3],
            a1=[[], [1 / 4], [1, 0], [0, 0, 1 / 4]],
            b1=[[], [-1 / 2], [1, 0], [2, -1, 1 / 2]],
            c1=[0, 1 / 4, 1, 1 / 4],
            beta=[[-1, 4 / 3, 2 / 3, 0], [1, -4 / 3, 1 / 3, 0], [2, -4 / 3, -2 / 3, 0], [-2, 5 / 3, -2 / 3, 1]],
        )
        super().__init__(tableau, Orders(strong=1.5, strong_additive=1.5, weak=1.5, weak_additive=2.0, ode=3.0))
