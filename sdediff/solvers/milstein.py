"""Milstein's method for diagonal noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..noise import Stream
from ..sde import SDE, Semilinear
from .base import Advance, Orders, Solver
from .diffusions import check_own, diffusions, with_derivative
from .onestep import EulerMaruyama


class Milstein(Solver):
    r"""Milstein's method: strong order 1 for diagonal noise, one evaluation a step, g' by automatic differentiation.

    .. math:: x_t = x_s + f\,(t - s) + g\,\Delta W + \tfrac12 g\,g'\,(\Delta W^2 - |t - s|)

    on either clock. Each :math:`g_i` may depend on :math:`x_i` alone, which is checked on the first two states; Dense noise is
    refused. Where g ignores the state, and on an ODE, this is Euler-Maruyama.

    Source: Milstein 1975, https://doi.org/10.1137/1119062; Kloeden and Platen 1992,
    https://doi.org/10.1007/978-3-662-12616-5, section 10.3.
    """

    orders = Orders(strong=1.0, strong_additive=1.0, weak=1.0, weak_additive=1.0, ode=1.0)

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The coefficients along the grid."""
        if process.direction == 0 or isinstance(process, Semilinear):
            return EulerMaruyama().prepare(process, grid, noise)
        nodes, lengths = grid.tolist(), grid.diff().tolist()
        drifts, noises = process.drifts(grid[:-1]), diffusions(process, grid[:-1])

        def advance(k: int, x: Tensor) -> Tensor:
            if k < 2:
                check_own(self, noises[k], x)
            g, slope = with_derivative(noises[k], x)
            dw = noise.increment(nodes[k], nodes[k + 1])
            if slope is not None:  # g dW + g g'(dW² - |h|)/2 = g (dW + g'(dW² - |h|)/2)
                dw = dw + 0.5 * slope * (dw * dw - abs(lengths[k]))
            return torch.add(x, drifts[k](x), alpha=lengths[k]) + g @ dw

        return advance
