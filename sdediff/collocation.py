r"""Gauss-Legendre quadrature, the polynomials through its nodes, and panels that are halved until nothing changes.

The values :math:`y_q` of a function at the nodes :math:`u_q` of [0, 1] determine a polynomial p, with

.. math:: \int_0^1 p = \sum_q w_q\,y_q, \qquad \int_{u_i}^1 p = \sum_q a_{iq}\,y_q .

The first is exact for polynomials of degree 2Q - 1; collocation is to solve with the second. A long interval is cut into
panels of equal length, and an integral over it is tabulated at their ends.

Source: Hairer, Nørsett and Wanner 1993, https://doi.org/10.1007/978-3-540-78862-1, section II.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-11
"""The relative change that halving the panels may still make."""

_MOST = 1024
"""Panels that are tried in any case."""
_FURTHEST = 16_384
"""And as long as each halving gains much: rates that are large beside 1/t_max ask for that."""
_GAIN = 8.0  # a jump gains a factor of 2, a kink 4

Table = TypeVar("Table")


class Legendre:
    """The rule with Q nodes on [0, 1], float64 on the host.

    Args:
        count: Q.

    Attributes:
        nodes: u, (Q,).
        weights: w, (Q,).
        after: a, (Q, Q): row i integrates from node i to 1.
    """

    def __init__(self, count: int):
        nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(count))
        self.nodes, self.weights = 0.5 * (nodes + 1), 0.5 * weights
        self.after = self.moments(1)[0, 1:]

    def moments(self, count: int) -> Tensor:
        r"""Weights (count, 1 + Q, Q) of the values in :math:`\int_{x_i}^1\bigl(\frac{x - m_i}{1 - x_i}\bigr)^k p\,dx`.

        k counts from 0, x_i is 0 or a node, and m_i the middle of [x_i, 1].
        """
        starts = torch.cat([self.nodes.new_zeros(1), self.nodes])
        length = (1 - starts).unsqueeze(1)
        x = starts.unsqueeze(1) + length * self.nodes  # (1 + Q, R)
        powers = torch.stack([(self.nodes - 0.5) ** k for k in range(count)])  # (K, R)
        return torch.einsum("kr,ir,irq->kiq", powers * self.weights, length.expand_as(x), self._lagrange(x))

    def _lagrange(self, x: Tensor) -> Tensor:
        """The polynomials that are 1 at one node and 0 at the others, at x: (*x, Q)."""
        basis = []
        for q, node in enumerate(self.nodes):
            others = torch.cat([self.nodes[:q], self.nodes[q + 1 :]])
            basis.append(((x.unsqueeze(-1) - others) / (node - others)).prod(-1))
        return torch.stack(basis, -1)


def refined(
    tabulate: Callable[[int], Table],
    change: Callable[[Table, Table], float],
    t_max: float,
    cure: str,
    furthest: int = _FURTHEST,
) -> Table:
    """The first table that halving the panels leaves as it is.

    Args:
        tabulate: the table of an integral over [0, t_max] for a number of panels.
        change: the largest relative change at the ends they share, from (fine, coarse), where fine has twice the panels.
        t_max: the end of the interval.
        cure: what to do where there is none; completes the message.
        furthest: panels beyond which memory does not go.

    Raises:
        ValueError: halving still changes the table by more than ``TOLERANCE``, at 1,024 panels and by nearly as much as
            before, or at ``furthest``.
    """
    panels, coarse, before, error = 16, tabulate(16), math.inf, math.inf
    while panels < _MOST or (2 * panels <= furthest and error < before / _GAIN):
        panels, before = 2 * panels, error
        fine = tabulate(panels)
        error = change(fine, coarse)
        if error < TOLERANCE:
            return fine
        coarse = fine
    raise ValueError(
        f"The kernel of this process could not be derived from its coefficients: with {panels:,} panels the relative error is "
        f"{error:.1e}. A coefficient that jumps, or is infinite or very large in [0, {t_max:g}] does this{cure}."
    )


def panel_of(t: Tensor, t_max: float, panels: int) -> Tensor:
    """The number of the panel of [0, t_max] in which each t lies."""
    return (t.detach() / t_max * panels).long().clamp(0, panels - 1)


def relative(a: Tensor, b: Tensor, size: Tensor) -> float:
    """The largest difference of a from b beside ``size``; infinite where a is not finite."""
    error = (a - b).abs() / size.clamp_min(1e-300)
    error = torch.where(a == b, torch.zeros_like(error), error)
    return float(torch.where(torch.isfinite(a), error, torch.inf).max())
