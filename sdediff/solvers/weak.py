"""Platen's explicit method of weak order 2."""

from __future__ import annotations

import torch
from torch import Tensor

from ..noise import Stream
from ..sde import SDE
from .base import Advance, Orders, Solver
from .diffusions import check_own, diffusions
from .runge_kutta import Heun


class Weak2(Solver):
    r"""Platen's explicit method of weak order 2, for diagonal noise: expectations err by :math:`O(h^2)`.

    .. math::

        \Upsilon = x + f h + g\,\Delta W, \qquad \Upsilon_\pm = x + f h \pm g\sqrt{|h|}, \qquad g_\pm = g(\Upsilon_\pm, t), \\
        x_t = x + \tfrac12(f + f(\Upsilon, t))\,h + \tfrac14(g_+ + g_- + 2g)\,\Delta W
              + \frac{g_+ - g_-}{4\sqrt{|h|}}\,(\Delta W^2 - |h|)

    with h = t - s signed, f and g at (x, s). Two evaluations a step, both at grid times, and no :math:`\Delta Z`. Paths
    converge with Milstein's order 1. Each :math:`g_i` may depend on :math:`x_i` alone, which is checked on the first two
    states; Dense noise is refused. On an ODE this is Heun's method.

    Source: Kloeden and Platen 1992, https://doi.org/10.1007/978-3-662-12616-5, section 15.1.
    """

    orders = Orders(strong=1.0, strong_additive=1.0, weak=2.0, weak_additive=2.0, ode=2.0)

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The coefficients along the grid."""
        if process.direction == 0:
            return Heun().prepare(process, grid, noise)
        nodes, lengths = grid.tolist(), grid.diff().tolist()
        drifts, noises = process.drifts(grid), diffusions(process, grid)

        def advance(k: int, x: Tensor) -> Tensor:
            if k < 2:
                check_own(self, noises[k], x)
            h, root = lengths[k], abs(lengths[k]) ** 0.5
            f, g = drifts[k](x), noises[k](x)
            dw = noise.increment(nodes[k], nodes[k + 1])
            kick, spread = g @ dw, g @ torch.full_like(x, root)
            drifted = torch.add(x, f, alpha=h)
            plus, minus = noises[k + 1](drifted + spread), noises[k + 1](drifted - spread)
            outer = (dw * dw - abs(h)) / root
            kicked = 0.5 * kick + 0.25 * (plus @ (dw + outer) + minus @ (dw - outer))
            return torch.add(x, f + drifts[k + 1](drifted + kick), alpha=0.5 * h) + kicked

        return advance
