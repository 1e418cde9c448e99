r"""An implicit exponential trapezoidal rule for reversals with noise: one evaluation a step, solved by a secant.

At :math:`\eta = 1` the data prediction :math:`\hat x_0 = \mathrm E[x_0 \mid x_u]` is a martingale of the reversal: its future
has no trend that earlier values could tell, only the noise to come. Extrapolating it, as multistep rules do, carries the noise
of one step into the next. The trapezoidal rule takes it linear in log(alpha/sigma) from its value at t to that at s,

.. math:: x_s = \Psi x_t + T\,\hat x_0(x_t) + W\bigl(\hat x_0(x_s) - \hat x_0(x_t)\bigr) + R\,z ,

with the matrices of :mod:`~sdediff.solvers.exponential.propagators` (and, where the process has an offset, x less it), and so
answers the noise of its own step. A prediction :math:`\tilde x` in place of :math:`\hat x_0(x_s)` gives :math:`x_s'`; the
score there, :math:`e = \hat x_0(x_s') - \tilde x` and one Newton step give

.. math:: \hat x_0(x_s) = \tilde x + (I - JW)^{-1}e , \qquad x_s = x_s' + W\,(I - JW)^{-1}e ,

where the next step starts without another evaluation. J is that of data which are Gaussian about here with precision
:math:`\lambda`,

.. math:: J = (\lambda I + \Phi^\top C^{-1}\Phi)^{-1}\Phi^\top C^{-1} ,

and two evaluations tell :math:`\lambda`: as :math:`\Phi^\top s = \mathrm E[\nabla\log p_0(x_0) \mid x]`, it is
:math:`|\Delta\,\Phi^\top s| / |\Delta\hat x_0|`, for each sample its own, and at least that of data of standard deviation
``max_std``. On isotropic Gaussian data the rule is solved exactly.

Sources: Zhang et al. 2022, https://arxiv.org/abs/2206.05564, for the propagators; Barzilai and Borwein 1988,
https://doi.org/10.1093/imanum/8.1.141, for secants of one number (this is the geometric mean of their two).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...blocks import act, like, product, solve
from ...checks import check_positive
from ...noise import Stream
from ...score import Score
from ...sde import SDE, CoupledSemilinear
from ..base import Advance, Orders, Remembering, Solver
from .propagators import steps_of
from .rules import in_log_snr

# Of the last change of the data prediction: what its guess adds. Tuned on the ring, at 10 to 20 evaluations.
_AHEAD = 0.5


class CoupledTrapezoid(Solver):
    r"""The exponential trapezoidal rule with matrix propagators, for reversals with noise; one evaluation a step.

    The solver for critically damped Langevin and other processes with matrix coefficients where :math:`\eta > 0`. Meant for
    steps that shorten towards the data, such as ``grids.Power(n, 3.0)``. On a flow :class:`~sdediff.CoupledMultistep`, of a
    higher order, is better. Of critically damped Langevin it gets the positions, which are the data: velocities, which the
    last step throws about, converge later.

    Args:
        max_std: the widest local Gaussian, in units of the data: half as wide again as data of standard deviation 1, since
            between modes the posterior is wide. No change of the prediction that is extrapolated is longer either. It keeps
            the errors of a learned score near t_max, where two predictions may differ by anything, from being carried on.

    Raises:
        ValueError: it is not positive.
    """

    requires = CoupledSemilinear
    instead = "use SASolver for the reversal of a LinearSDE, EulerMaruyama for any SDE"
    orders = Orders(weak=2.0, ode=2.0)

    def __init__(self, max_std: float = 1.5):
        self.max_std = check_positive(max_std, "max_std")

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """All matrices of the grid at once; a step then is the prediction, a secant and a few products."""
        assert isinstance(process, CoupledSemilinear)
        sde, steps = process.sde, steps_of(process, grid)
        ends = [steps.weights(in_log_snr, sde, k, range(k + 1, k - 1, -1))[0] for k in range(len(grid) - 1)]
        newton = _Newton(sde, grid, torch.stack(ends), self.max_std)
        spread = steps.spread()
        predict = process.score.along(grid[:-1], Score.data)
        nodes = grid.tolist()
        memory: list[Tensor] = []  # guess and start of the last step's prediction, and the last evaluation's two

        def advance(k: int, x: Tensor) -> Tensor:
            y, p = sde.split(x), sde.split(predict[k](x))
            pull = newton.pull(k, y, p)
            data = guess = p
            if memory:
                wanted, before, p_before, pull_before = memory
                change = newton.solve(k, p - wanted, p - p_before, pull - pull_before)
                data = wanted + change
                y = y + act(like(ends[k - 1], y), change)
                guess = data + newton.limited(_AHEAD * (data - before))
            memory[:] = [guess, data, p, pull]
            y = steps.linear(k, y) + act(like(steps.total[k], y), data) + act(like(ends[k], y), guess - data)
            if spread is not None:
                y = y + act(like(spread[k], y), sde.split(noise.unit(nodes[k], nodes[k + 1])))
            return sde.join(y, x.shape)

        return Remembering(advance, memory)


class _Newton:
    r"""The Newton step at each node, in the directions that data have.

    Args:
        sde, grid: the process and the nodes.
        ends: W of each step, (N, m, k, k).
        max_std: of a local Gaussian.
    """

    def __init__(self, sde: Any, grid: Tensor, ends: Tensor, max_std: float):
        self.max_std = max_std
        kernel = sde.scales(grid[:-1]).kernel
        basis = _range(sde.data_covariance())
        self.basis, self.scale, self.shift = basis, kernel.scale, kernel.shift
        self.gain = product(product(basis.mT, kernel.scale.mT), torch.linalg.inv(kernel.covariance))  # BᵀΦᵀC⁻¹
        self.known = product(self.gain, product(kernel.scale, basis))
        self.moved = product(self.gain[1:], product(ends[:-1], basis))

    def pull(self, k: int, y: Tensor, p: Tensor) -> Tensor:
        r""":math:`\Phi^\top s` at node k, from the state and its data prediction."""
        return act(like(self.gain[k], y), act(like(self.scale[k], y), p) + like(self.shift[k], y) - y)

    def solve(self, k: int, e: Tensor, change: Tensor, pulled: Tensor) -> Tensor:
        r""":math:`(I - JW)^{-1}e`, from the changes of prediction and pull between the last two evaluations."""
        basis = like(self.basis, e)
        inside, change = act(basis.mT, e), act(basis.mT, change)
        # lambda is the quotient of two lengths; multiplied by its denominator nothing here can be infinite
        top, bottom = (torch.linalg.vector_norm(v, dim=(-2, -1)).reshape(-1, 1, 1, 1) for v in (pulled, change))
        top = torch.maximum(top, self.max_std**-2 * bottom) + torch.finfo(e.dtype).tiny
        eye = torch.eye(basis.shape[-1], dtype=e.dtype, device=e.device)
        local = top * eye + bottom * like(self.known[k], e)
        solved = solve(local - bottom * like(self.moved[k - 1], e), act(local, inside))
        return e + self.limited(act(basis, solved - inside))

    def limited(self, change: Tensor) -> Tensor:
        """A change of the prediction that no evaluation has seen, its root mean square at most ``max_std``."""
        length = torch.linalg.vector_norm(change, dim=(-2, -1), keepdim=True) / math.sqrt(change[0].numel())
        return change * (self.max_std / length.clamp_min(self.max_std))


def _range(covariance: Tensor) -> Tensor:
    """Orthonormal directions B (m, k, r) of a covariance (m, k, k); 0 in a block that has fewer than others."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-12 * values.max()
    return (vectors * kept.unsqueeze(-2))[..., kept.any(0)]
