r"""Exponential multistep for reversals of affine processes with matrix coefficients.

The linear part and the noise of a step are exact (:mod:`~sdediff.solvers.exponential.propagators`), and a polynomial through
the last predictions stands in for :math:`\hat x_0`. Where one number multiplies x this is
:class:`~sdediff.ExponentialMultistep` with the data prediction.

Source: Zhang et al. 2022, https://arxiv.org/abs/2206.05564.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

from ...blocks import act, like
from ...noise import Stream
from ...score import Score
from ...sde import SDE, Coefficient, CoupledSemilinear, check_coefficient
from ..base import Advance, Orders, Remembering, Solver
from .guidance import too_high
from .multistep import check_order, own_eta2
from .propagators import steps_of
from .rules import Variable, in_power

_LEVEL = in_power(0.65)


class CoupledMultistep(Solver):
    r"""Exponential Adams steps with matrix propagators, one evaluation a step, of any stochasticity.

    Meant for flows, and for steps that shorten towards the data, such as ``grids.Power(n, 3.0)``. It takes reversals with
    noise, of which :class:`~sdediff.CoupledTrapezoid` makes more. Under strong guidance it falls back to order 2, corrector
    included, with a warning.

    Args:
        order: the number q of data predictions used, 1 to 4. The first steps, which have fewer, are of lower order.
        variable: what the prediction is taken to be polynomial in, by default :math:`(\sigma/\alpha)^{0.65}` with the mean
            log-SNR of the coordinates.
        corrector: improve each state once the prediction at it is known, at no further evaluation; on a flow the order is
            then q + 1.
        stochasticity: eta instead of the process's own, a number or a function of t; for reversals with noise.

    Raises:
        TypeError: the order is no whole number.
        ValueError: the order is outside 1 to 4.
    """

    requires = CoupledSemilinear
    instead = (
        "use ExponentialMultistep or one of its presets for the reversal of a LinearSDE, EulerMaruyama for any SDE"
    )

    def __init__(
        self,
        order: int = 3,
        *,
        variable: Variable = _LEVEL,
        corrector: bool = True,
        stochasticity: Coefficient | None = None,
    ):
        self.order, self.variable, self.corrector = check_order(order), variable, corrector
        self.stochasticity = None if stochasticity is None else check_coefficient(stochasticity, "stochasticity")
        # With noise a step knows the increment of its Brownian path and nothing else of it: weak order 2 is the most.
        self.orders = Orders(weak=float(min(2, order + corrector)), ode=float(order + corrector))

    def check(self, process: SDE) -> None:
        """A flow takes no stochasticity of the solver's own."""
        super().check(process)
        if process.direction == 0 and self.stochasticity not in (None, 0.0):
            raise ValueError(
                f"{type(self).__name__} with its own stochasticity needs a reversal with noise: solve sde.reverse(score)."
            )

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """All matrices of the grid at once; a step then is the prediction and a few products."""
        assert isinstance(process, CoupledSemilinear)
        sde = process.sde
        steps = steps_of(process, grid, None if self.stochasticity is None else own_eta2(self.stochasticity, grid))
        count = len(grid) - 1
        order, earlier = self.order, self.order
        if too_high(process.score, order + self.corrector, "is lowered to 2"):
            order, earlier = min(order, 2), 1
        orders = [min(order, k + 1) for k in range(count)]
        predictor = [steps.weights(self.variable, sde, k, range(k, k - orders[k], -1)) for k in range(count)]
        corrector = [
            steps.weights(self.variable, sde, k, range(k + 1, k - min(orders[k], earlier), -1)) for k in range(count)
        ]
        spread = steps.spread()
        predict = process.score.along(grid[:-1], Score.data)
        nodes = grid.tolist()
        past: deque[Tensor] = deque(maxlen=order)  # predictions as blocks, newest first
        base: list[Tensor] = []  # the linear part and noise of the last step

        def advance(k: int, x: Tensor) -> Tensor:
            p = sde.split(predict[k](x))
            corrects = self.corrector and k > 0
            y = _combined(base.pop(), corrector[k - 1], [p, *past]) if corrects else sde.split(x)
            past.appendleft(p)
            start = steps.linear(k, y)
            if spread is not None:
                start = start + act(like(spread[k], y), sde.split(noise.unit(nodes[k], nodes[k + 1])))
            if self.corrector:
                base.append(start)
            return sde.join(_combined(start, predictor[k], past), x.shape)

        return Remembering(advance, past, base)


def _combined(start: Tensor, weights: Tensor, values: Any) -> Tensor:
    """start + the predictions, each times its matrix."""
    for weight, value in zip(weights, values, strict=False):
        start = start + act(like(weight, value), value)
    return start
