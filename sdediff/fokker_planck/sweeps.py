r"""One step of the Fokker-Planck equation along the lines of a grid: positive, conservative, of second order.

Along a line of cells k, mass moves between neighbours at rates :math:`r_k` (from k to k + 1) and :math:`l_k` (back):

.. math:: \dot p = Lp, \qquad (Lp)_k = r_{k-1}p_{k-1} + l_k p_{k+1} - (r_k + l_{k-1})\,p_k .

**Rates.** For a flux :math:`Bp - a\,\partial p` between two centres, in units of cells, the exponential fitting of Scharfetter
and Gummel (in this field: Chang and Cooper) takes

.. math:: r = a\,\mathcal B(-B/a), \quad l = a\,\mathcal B(B/a), \qquad \mathcal B(z) = z/(e^z - 1),

never negative and exact for a stationary law of constant B/a. Beside the central flux :math:`\tfrac12B(p_k + p_{k+1})` it has
a diffusion of its own, :math:`e = a(\tfrac z2\coth\tfrac z2 - 1)` with :math:`z = |B|/a`: of second order in the cell width
where the noise outweighs the drift, but |B|/2, upwind and of first order, where there is none. So a part that depends on p is
added to the rate of the cell that mass comes from. With :math:`u, v` the steps of p behind it and ahead,

.. math:: \bigl[\,e\,v + \tfrac16|B|(u - v)\bigr] / p ,

the central flux with its error of third order taken out. Where u and v differ in sign it is 0, and its size is kept to
:math:`|B|\min(|u|, |v|)/p`, which no rate becomes negative by (van Leer's limits).

**Time.** No Runge-Kutta method of order two keeps every such equation positive at every step; a method whose weights depend on
the solution can. The modified Patankar scheme used here takes

.. math:: (I - \tau L_p)\,q = p, \qquad
          \bigl(I - \tfrac12\tau(L_p\,\mathrm{diag}\,p/q + L_q)\bigr)\,p^+ = p .

Both matrices are M-matrices whose columns sum to 1, so p⁺ is positive and its mass that of p, at any step; the order is two.
Elimination without pivoting keeps the signs in floating point as well.

Sources: Scharfetter and Gummel 1969, https://doi.org/10.1109/T-ED.1969.16566; Chang and Cooper 1970,
https://doi.org/10.1016/0021-9991(70)90001-X; van Leer 1974, https://doi.org/10.1016/0021-9991(74)90019-9; Burchard,
Deleersnijder and Meister 2003, https://doi.org/10.1016/S0168-9274(03)00101-6; Bolley and Crouzeix 1978,
https://doi.org/10.1051/m2an/1978120302371, for the barrier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg.lapack import dgtsv

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Lines:
    """The lines of a grid in one direction.

    Args:
        order: the cells (N,), line after line.
        linked: (N - 1,), 1 where two that follow each other are neighbours on a line, 0 at the end of one.
    """

    order: NDArray[np.int64]
    linked: Array

    @staticmethod
    def along(offset: tuple[int, ...], count: tuple[int, ...]) -> Lines:
        """The lines with steps of ``offset``: one cell along an axis, or along a diagonal of the plane."""
        index = np.indices(count).reshape(len(count), -1)
        if len(count) == 1:
            place, line = index[0], np.zeros_like(index[0])
        elif 0 in offset:
            place, line = index[offset.index(1)], index[offset.index(0)]
        else:
            place, line = index[0], index[1] - offset[1] * index[0]
        order = np.lexsort((place, line))
        return Lines(order, np.diff(line[order]) == 0)


@dataclass(frozen=True)
class Rates:
    """The rates along the lines of one direction, between consecutive cells of ``lines.order``: each (N - 1,).

    Args:
        forth, back: the linear part.
        flux: B, whose sign says where mass comes from; 0 adds nothing to the linear part.
        excess: e, the diffusion that the linear part adds to the noise's own.
    """

    lines: Lines
    forth: Array
    back: Array
    flux: Array
    excess: Array

    @staticmethod
    def fitted(lines: Lines, drift: Array, diffusion: Array) -> Rates:
        """From drift b and diffusion D at the centres, in units of cells: dx = b dt + √D dW along the lines."""
        b, d = drift[lines.order], diffusion[lines.order]
        a = 0.25 * (d[1:] + d[:-1])
        flux = (0.5 * (b[1:] + b[:-1]) - 0.5 * (d[1:] - d[:-1])) * lines.linked
        size, a = np.abs(flux), a * lines.linked
        mixed = a * _bernoulli(np.divide(size, a, out=np.zeros_like(a), where=a > 0))
        excess = np.maximum(mixed + 0.5 * size - a, 0)
        return Rates(lines, mixed + np.maximum(flux, 0), mixed + np.maximum(-flux, 0), flux, excess)

    @staticmethod
    def diffusive(lines: Lines, diffusion: Array) -> Rates:
        """½ ∂²(Dp) alone: a cell gives ½D to either side."""
        d = 0.5 * diffusion[lines.order]
        return Rates(lines, d[:-1] * lines.linked, d[1:] * lines.linked, *np.zeros((2, len(d) - 1)))

    def step(self, p: Array, tau: float) -> Array:
        """The law (N,) after a time tau."""
        p = p[self.lines.order]
        forth, back = self._at(p)
        q = _solved(tau * forth, tau * back, p)
        later_forth, later_back = self._at(q)
        half = 0.5 * np.divide(p, q, out=np.ones_like(p), where=q > 0)  # q vanishes by underflow alone
        new = np.empty_like(p)
        new[self.lines.order] = _solved(
            tau * (half[:-1] * forth + 0.5 * later_forth), tau * (half[1:] * back + 0.5 * later_back), p
        )
        return new

    def matrix(self) -> sparse.csr_array:
        """The linear part as a sparse matrix (N, N): columns sum to 0, no negative entry off the diagonal."""
        here, there = self.lines.order[:-1], self.lines.order[1:]
        rows = np.concatenate([there, here, here, there])
        columns = np.concatenate([here, there, here, there])
        values = np.concatenate([self.forth, self.back, -self.forth, -self.back])
        n = len(self.lines.order)
        return sparse.coo_array((values, (rows, columns)), shape=(n, n)).tocsr()

    def _at(self, p: Array) -> tuple[Array, Array]:
        """The rates at the law p, in the order of the lines."""
        if not self.flux.any():
            return self.forth, self.back
        steps, size, rising = np.diff(p) * self.lines.linked, np.abs(self.flux), self.flux > 0
        behind = np.where(rising, np.append(0.0, steps[:-1]), -np.append(steps[1:], 0.0))
        ahead, source = np.where(rising, steps, -steps), np.where(rising, p[:-1], p[1:])
        added = self.excess * ahead + size / 6 * (behind - ahead)
        most = np.where(behind * ahead > 0, size * np.minimum(np.abs(behind), np.abs(ahead)), 0)
        added = np.divide(np.clip(added, -most, most), source, out=np.zeros_like(size), where=source > 0)
        forth, back = self.forth + np.where(rising, added, 0), self.back + np.where(rising, 0, added)
        return np.maximum(forth, 0), np.maximum(back, 0)  # against rounding


def _solved(forth: Array, back: Array, p: Array) -> Array:
    """(I - L)⁻¹ p for rates that include the time step."""
    stay = np.ones_like(p)
    stay[:-1] += forth
    stay[1:] += back
    *_, x, info = dgtsv(-forth, stay, -back, p)
    if info != 0:  # cannot be for finite rates: the columns are strictly dominated by their diagonals
        raise FloatingPointError(f"A tridiagonal system is singular (LAPACK says {info}).")
    return x


def _bernoulli(z: Array) -> Array:
    """z/(e^z - 1) for z >= 0."""
    z = np.minimum(z, 700.0)
    return np.divide(z, np.expm1(z), out=np.ones_like(z), where=z > 0)
