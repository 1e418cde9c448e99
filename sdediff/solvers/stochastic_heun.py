"""Heun's method on the Stratonovich form of an Itô process."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..diffusion import Diffusion
from ..noise import Stream
from ..sde import SDE, Semilinear
from .base import Advance, Orders, Solver
from .diffusions import DiffusionAt, diffusions, with_correction
from .runge_kutta import Heun


class StochasticHeun(Solver):
    r"""Heun's method, which converges to the Stratonovich solution, on the drift converted from Itô.

    .. math:: \tilde f = f \mp c, \qquad \tilde x = x_s + \tilde f_s h + G_s\Delta W, \qquad
              x_t = x_s + \tfrac12(\tilde f_s + \tilde f(\tilde x, t))\,h + \tfrac12(G_s + G(\tilde x, t))\,\Delta W,

    with h = t - s, minus on a rising and plus on a falling clock, and
    :math:`c_i = \tfrac12\sum_{jk}G_{jk}\partial_j G_{ik}`, for diagonal noise :math:`\tfrac12 g_i\,\partial_i g_i`. Two
    evaluations a step, both at grid times. Takes any noise; the strong order is 1 where the noises of different coordinates
    commute (each :math:`g_i` depends on :math:`x_i` alone, or G on no state), else 1/2. The weak order is 1, for additive
    noise 2.

    The derivatives are taken by automatic differentiation, where G depends on the state: d backward passes through g (with
    d coordinates), or m for a matrix (B, d, m).

    Source: Rümelin 1982, https://doi.org/10.1137/0719041; Kloeden and Platen 1992,
    https://doi.org/10.1007/978-3-662-12616-5, section 4.9 (the conversion).
    """

    orders = Orders(strong=1.0, strong_additive=1.0, weak=1.0, weak_additive=2.0, ode=2.0)

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The coefficients along the grid."""
        if process.direction == 0:
            return Heun().prepare(process, grid, noise)
        nodes, lengths = grid.tolist(), grid.diff().tolist()
        drifts, noises = process.drifts(grid), diffusions(process, grid)
        look = _additive if isinstance(process, Semilinear) else with_correction

        def advance(k: int, x: Tensor) -> Tensor:
            h = lengths[k]

            def fields(node: int, y: Tensor) -> tuple[Tensor, Diffusion]:
                g, c = look(noises[node], y)
                f = drifts[node](y)
                return f if c is None else torch.add(f, c, alpha=-math.copysign(0.5, h)), g

            f, g = fields(k, x)
            dw = noise.increment(nodes[k], nodes[k + 1], g.noise_shape(x))
            kick = g @ dw
            f_ahead, g_ahead = fields(k + 1, torch.add(x, f, alpha=h) + kick)
            return torch.add(x, f + f_ahead, alpha=0.5 * h) + 0.5 * (kick + g_ahead @ dw)

        return advance


def _additive(diffusion: DiffusionAt, x: Tensor) -> tuple[Diffusion, None]:
    return diffusion(x), None
