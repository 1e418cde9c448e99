r"""Exponential multistep solvers: one evaluation a step, high order from the predictions of earlier steps.

Order q uses the last q predictions. The first steps, which have fewer, are of lower order; that costs nothing where the
solve starts in noise, for there the predictions hardly change, and limits the order of a solve that starts in the middle.
With a corrector each state is
improved once the prediction at it is known, at no further evaluation: the new prediction joins the polynomial of the step
that led there.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from ...checks import check_count
from ...noise import Stream
from ...sde import SDE, Coefficient, Semilinear, check_coefficient, finite_at
from ..base import Advance, Orders, Remembering, Solver
from ..onestep import check_coefficients
from .guidance import too_high
from .kernel import Held, HeldData, Steps, steps_of
from .rules import Polynomial, Rule


class ExponentialMultistep(Solver):
    """An exponential Adams method for reversed linear SDEs, of any stochasticity.

    Under strong guidance it falls back to order 2, corrector included, with a warning.

    Args:
        order: q, the number of predictions used, 1 to 4.
        prediction: what is held polynomial: the data or the noise prediction.
        rule: how (:mod:`~sdediff.solvers.exponential.rules`).
        corrector: a rule for the corrector, or None for none.
        corrector_order: how many earlier predictions the corrector uses besides the new one; q by default.
        lower_final: lower the order towards the end, so that the last step is of order 1.
        stochasticity: eta instead of the process's own, a number or a function of t; for reversals with noise.

    Raises:
        TypeError: an order is no whole number.
        ValueError: an order is outside 1 to 4.
    """

    requires = Semilinear
    instead = (
        "use CoupledMultistep for the reversal or flow of an AffineSDE, Heun, RK4 or Scipy for another ODE, and EulerMaruyama "
        "for another SDE"
    )

    def __init__(
        self,
        order: int = 2,
        *,
        prediction: Held | None = None,
        rule: Rule | None = None,
        corrector: Rule | None = None,
        corrector_order: int | None = None,
        lower_final: bool = False,
        stochasticity: Coefficient | None = None,
    ):
        self.order, self.prediction, self.rule = check_order(order), prediction or HeldData(), rule or Polynomial()
        self.corrector = corrector
        self.corrector_order = order if corrector_order is None else check_order(corrector_order, "corrector_order")
        self.lower_final = lower_final
        self.stochasticity = None if stochasticity is None else check_coefficient(stochasticity, "stochasticity")
        plain = order == 1 and corrector is None
        # With noise a step knows the increment of its Brownian path and nothing else of it, which is what limits both.
        self.orders = Orders(
            strong_additive=1.0,
            weak=1.0 if plain else 2.0,
            ode=float(order if corrector is None else self.corrector_order + 1),
        )

    def check(self, process: SDE) -> None:
        """A flow takes no stochasticity of the solver's own."""
        super().check(process)
        if process.direction == 0 and self.stochasticity not in (None, 0.0):
            raise ValueError(
                f"{type(self).__name__} with its own stochasticity needs a reversal with noise: solve sde.reverse(score)."
            )

    def steps(self, process: Semilinear, grid: Tensor) -> Steps:
        """The steps along a grid, with the process's eta or the solver's own, at the middle of each."""
        if self.stochasticity is None:
            return steps_of(process, grid)
        return steps_of(process, grid, own_eta2(self.stochasticity, grid))

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """All weights of the grid at once; the steps then are the predictions and a few kernels."""
        assert isinstance(process, Semilinear)
        steps = self.steps(process, grid)
        order, earlier = self.order, self.corrector_order
        if too_high(process.score, max(order, earlier + 1 if self.corrector else 1), "is lowered to 2"):
            order, earlier = min(order, 2), 1
        orders = self._orders(steps, order)
        linear, spread = self.prediction.linear(steps), self.prediction.noise(steps)
        check_coefficients(process, grid, linear, spread, self.prediction.total(steps))
        predictor = _weights(self.rule, self.prediction, steps, orders, process.sde)
        corrector = None
        if self.corrector is not None:
            held = [min(o, earlier) for o in orders]
            corrector = _weights(self.corrector, self.prediction, steps, held, process.sde, new=True)
        predict = process.score.along(grid[:-1], self.prediction.view)
        nodes, a, c = grid.tolist(), linear.tolist(), spread.tolist()
        past: deque[Tensor] = deque(maxlen=max([*orders, earlier]))  # newest first
        base: list[Tensor] = []  # the linear part and noise of the last step

        def advance(k: int, x: Tensor) -> Tensor:
            p = predict[k](x)
            if corrector is not None and k > 0:
                x = _combined(base.pop(), corrector[k - 1], [p, *past])
            past.appendleft(p)
            start = torch.mul(x, a[k])
            if c[k]:
                start.add_(noise.unit(nodes[k], nodes[k + 1]), alpha=c[k])
            if corrector is not None:
                base.append(start)
                return _combined(start, predictor[k], past)
            return _combined_(start, predictor[k], past)

        return Remembering(advance, past, base)

    def _orders(self, steps: Steps, most: int) -> list[int]:
        """The order of each step: what history and finite nodes allow."""
        count = len(steps.h)
        finite = torch.isfinite(steps.ell_s).tolist()
        orders, run = [], 0
        for k in range(count):
            run = run + 1 if finite[k] else 0
            limit = count - k if self.lower_final else most
            ends_finite = bool(torch.isfinite(steps.ell_t[k]))
            orders.append(max(1, min(most, run, limit)) if ends_finite else 1)
        return orders


def check_order(order: object, name: str = "order") -> int:
    """``order``, if it is a whole number from 1 to 4."""
    if check_count(order, name, "1, 2, 3 or 4") > 4:
        raise ValueError(f"{name} = {order!r} must be 1, 2, 3 or 4.")
    return order  # type: ignore[return-value]


def own_eta2(stochasticity: Coefficient, grid: Tensor) -> Tensor:
    """eta² of each step (N,) for a solver with a stochasticity of its own: constant within a step, that at its middle."""
    middle = 0.5 * (grid[1:] + grid[:-1])
    eta = torch.as_tensor(finite_at(stochasticity, middle, "stochasticity"), dtype=grid.dtype)
    return eta.expand_as(middle) ** 2


def _weights(
    rule: Rule, prediction: Held, steps: Steps, orders: list[int], schedule: Any, new: bool = False
) -> list[list[float]]:
    """The rule's weights for each step, newest node first; with ``new`` the end of the step is a node, put first."""
    table: list[list[float]] = [[] for _ in orders]
    for order in sorted(set(orders)):
        rows = torch.tensor([k for k, o in enumerate(orders) if o == order])
        part = Steps(*(getattr(steps, name)[rows] for name in Steps.__dataclass_fields__))
        nodes = torch.stack([steps.ell_s[rows - j] for j in range(order)], 1)
        if new:
            finite = torch.isfinite(part.h)
            nodes = torch.cat([nodes, part.ell_t.unsqueeze(1)], 1)
            weights = rule.weights(prediction, part, nodes, schedule).roll(1, 1)
            # A step from or to an infinite log(alpha/sigma) has no slope to correct.
            plain = torch.zeros_like(weights)
            plain[:, 1] = prediction.total(part)
            weights = torch.where(finite.unsqueeze(1), weights, plain)
        else:
            weights = rule.weights(prediction, part, nodes, schedule)
        for k, row in zip(rows.tolist(), weights.tolist(), strict=True):
            table[k] = row
    return table


def _combined(start: Tensor, weights: list[float], values: Any) -> Tensor:
    """start + the weighted values, start kept."""
    first, *rest = zip(weights, values, strict=False)
    x = torch.add(start, first[1], alpha=first[0])
    for weight, value in rest:
        x.add_(value, alpha=weight)
    return x


def _combined_(start: Tensor, weights: list[float], values: Any) -> Tensor:
    """start + the weighted values, in the memory of start."""
    for weight, value in zip(weights, values, strict=False):
        start.add_(value, alpha=weight)
    return start
