r"""One-step solvers that are affine in the state and in one prediction of the score.

On a reversed linear SDE every classical one-step sampler reads

.. math:: x_t = A\,x_s + B\,p(x_s, s) + C\,z,

with p the score (or the data prediction) and A, B, C fixed by the grid alone. They are computed once, in float64; a
step is then the score, the random numbers and three kernels.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..noise import Stream
from ..score import Score, View
from ..sde import SDE, Linear, Semilinear
from .base import Advance, Orders, Solver

Coefficients = tuple[Tensor, Tensor, Tensor]


class AffineStep(Solver):
    """Base of the solvers that are given by A, B and C on a grid."""

    requires = Semilinear
    instead = "use EulerMaruyama, which takes any SDE"
    view: View = staticmethod(Score.__call__)
    """The prediction p that B multiplies."""

    @abstractmethod
    def coefficients(self, process: Semilinear, grid: Tensor) -> Coefficients:
        """(A, B, C), each (N,), float64, for the N steps of the grid."""

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The step with its coefficients looked up."""
        assert isinstance(process, Semilinear)
        a, b, c = self.coefficients(process, grid)
        check_coefficients(process, grid, a, b, c)
        return affine_steps(process, grid, self.view, (a, b, c), noise)


def affine_steps(process: Semilinear, grid: Tensor, view: View, coefficients: Coefficients, noise: Stream) -> Advance:
    """x -> A x + B p + C z along a grid; no numbers are drawn where C = 0."""
    a, b, c = coefficients
    nodes, spread = grid.tolist(), c.tolist()
    drifted = process.score.combined(grid[:-1], a, b, view)
    fresh = (a != 0).tolist()  # else the prediction itself may have come back, which is not ours to write on

    def advance(k: int, x: Tensor) -> Tensor:
        new = drifted[k](x)
        if not spread[k]:
            return new
        z = noise.unit(nodes[k], nodes[k + 1])
        return new.add_(z, alpha=spread[k]) if fresh[k] else torch.add(new, z, alpha=spread[k])

    return advance


def check_coefficients(process: SDE, grid: Tensor, *coefficients: Tensor) -> None:
    """Raise where a coefficient is not finite, as at the noise end of a process whose alpha vanishes there."""
    bad = ~torch.isfinite(torch.stack(coefficients)).all(0)
    if bool(bad.any()):
        t = float(grid[int(bad.nonzero()[0])])
        raise ValueError(
            f"The step of {type(process).__name__} from t = {t:g} has infinite coefficients: f and g are not finite there. "
            "Start a little nearer to the data (t0 = 0.999 t_max), or use Ancestral or an ODE solver on the "
            "probability flow, which are finite."
        )


class EulerMaruyama(Solver):
    r"""Euler-Maruyama: :math:`x_t = x_s + f(x_s, s)(t - s) + G(x_s, s)\,\Delta W`. Euler's method on an ODE.

    One evaluation a step. Takes any SDE. Source: Maruyama 1955, https://doi.org/10.1007/BF02846028.
    """

    orders = Orders(strong=0.5, strong_additive=1.0, weak=1.0, ode=1.0)

    def step(self, process: SDE, x: Tensor, s: float, t: float, noise: Stream) -> Tensor:
        """One step on any process."""
        drifted = x + process.drift(x, s) * (t - s)
        if process.direction == 0:
            return drifted
        diffusion = process.diffusion(x, s)
        return drifted + diffusion @ noise.increment(s, t, diffusion.noise_shape(x))

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """On a reversed linear SDE the coefficients of all steps are computed at once."""
        if not isinstance(process, Semilinear):
            return super().prepare(process, grid, noise)
        h = grid.diff()
        a, b, w = process.affine(grid[:-1])
        coefficients = (1 + h * a, h * b, w * h.abs().sqrt())
        if process.direction == 0 and not bool(torch.isfinite(torch.stack(coefficients)).all()):
            return super().prepare(process, grid, noise)  # the flow is finite in another form
        check_coefficients(process, grid, *coefficients)
        return affine_steps(process, grid, Score.__call__, coefficients, noise)


class ReverseDiffusion(AffineStep):
    r"""The reversal of the forward chain :math:`x_t = A x_s + G z` on the grid: :math:`x_s = (2 - A)x_t + cG^2 s + \eta G z`.

    :math:`c = \tfrac12(1+\eta^2)`; A and :math:`G^2` are the exact transition's scale and variance. For VP,
    :math:`A = \sqrt{1-\beta_i}`, :math:`G^2 = \beta_i`. One evaluation a step.

    Source: Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix E.
    """

    orders = Orders(strong_additive=1.0, weak=1.0, ode=1.0)

    def coefficients(self, process: Semilinear, grid: Tensor) -> Coefficients:
        """(2 - A, c G², eta G)."""
        kernel = process.sde.transition(grid[1:], grid[:-1])
        eta = process.eta(grid[:-1])
        return 2 - kernel.scale, 0.5 * (1 + eta**2) * kernel.variance, eta * kernel.variance.sqrt()


class Ancestral(AffineStep):
    r"""DDPM's ancestral step for any linear process: the Gaussian posterior of x_s given x_t and :math:`\hat x_0`.

    With A and :math:`G^2` the scale and variance of the forward transition from s to t,

    .. math:: x_s = A\frac{\sigma_s^2}{\sigma_t^2}x_t + \alpha_s\frac{G^2}{\sigma_t^2}\hat x_0
              + \sqrt{\tilde\beta}\,z, \qquad \tilde\beta = G^2\sigma_s^2/\sigma_t^2 .

    For VP this is :math:`(x + \beta s)/\sqrt{1-\beta} + \sqrt{\tilde\beta}z`. One evaluation a step; :math:`\eta = 1` only.

    Args:
        widest: use the variance :math:`G^2` (DDPM's :math:`\beta`) in place of :math:`\tilde\beta`, except in the step that
            reaches :math:`\sigma_s = 0`.

    Source: Ho et al. 2020, https://arxiv.org/abs/2006.11239, section 3.2.
    """

    instead = "use EulerMaruyama, which takes any SDE, or Heun for the probability flow"
    orders = Orders(strong_additive=1.0, weak=1.0)
    view = staticmethod(Score.data)

    def __init__(self, *, widest: bool = False):
        self.widest = widest

    def check(self, process: SDE) -> None:
        """Only the reversal with eta = 1 has this posterior."""
        super().check(process)
        assert isinstance(process, Semilinear)
        if getattr(process, "stochasticity", None) != 1.0:
            raise ValueError(
                "Ancestral samples the posterior of the forward process, which is the reversal with stochasticity 1; "
                f"{self.instead}."
            )

    def coefficients(self, process: Semilinear, grid: Tensor) -> Coefficients:
        """The posterior's weights and standard deviation."""
        sde, later, earlier = process.sde, grid[:-1], grid[1:]
        kernel = sde.transition(earlier, later)
        var_s, var_t = sde.sigma(earlier) ** 2, sde.sigma(later) ** 2
        variance = kernel.variance * var_s / var_t
        if self.widest:
            variance = torch.where(var_s > 0, kernel.variance, variance)
        return kernel.scale * var_s / var_t, sde.alpha(earlier) * kernel.variance / var_t, variance.sqrt()


class ExactTransition(Solver):
    r"""Exact steps of a linear SDE forward in time: :math:`x_t = A x_s + \sqrt{V}\,z` with its Gaussian transition.

    For the Ornstein-Uhlenbeck process :math:`A = e^{-h/2}`, :math:`V = 1 - e^{-h}`. Exact in law at every step size.
    """

    requires = Linear
    instead = "use EulerMaruyama, which takes any SDE"

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The transitions of all steps at once."""
        assert isinstance(process, Linear)
        steps, nodes = process.steps(grid), grid.tolist()
        return lambda k, x: steps[k](x, noise.unit(nodes[k], nodes[k + 1]))
