r"""What stands in for the prediction within a step, given its values at a few nodes.

A rule turns the nodes :math:`\ell_j` into weights :math:`c_j` so that the integral of the step becomes
:math:`\sum_j c_j p_j`. :class:`Polynomial` integrates the interpolating polynomial exactly, in a variable of one's choice;
the others are the short formulas of the literature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .kernel import Held, Steps, quadrature

Variable = Callable[[Any, Tensor], Tensor]
"""A monotone function of (schedule, ell): what a prediction is taken to be polynomial in."""


def in_log_snr(schedule: Any, ell: Tensor) -> Tensor:
    """Polynomial in log(alpha/sigma)."""
    return ell


def in_noise_level(schedule: Any, ell: Tensor) -> Tensor:
    """Polynomial in sigma/alpha."""
    return torch.exp(-ell)


def in_power(power: float) -> Variable:
    """Polynomial in (sigma/alpha)^power: between log(alpha/sigma) (power to 0) and sigma/alpha (power 1)."""
    return lambda schedule, ell: torch.exp(-power * ell)


def in_time(schedule: Any, ell: Tensor) -> Tensor:
    """Polynomial in t."""
    return schedule.time_of(2 * ell)


class Rule(ABC):
    """Weights of the predictions at K nodes for each of N steps."""

    @abstractmethod
    def weights(self, prediction: Held, steps: Steps, nodes: Tensor, schedule: Any) -> Tensor:
        """(N, K) for nodes (N, K) in log(alpha/sigma); column 0 is the start of the step."""


class Polynomial(Rule):
    """The interpolating polynomial, integrated exactly (64-point Gauss quadrature in float64).

    Args:
        variable: what it is a polynomial in: :func:`in_log_snr`, :func:`in_noise_level`, :func:`in_time` or your own.
    """

    def __init__(self, variable: Variable = in_log_snr):
        self.variable = variable

    def weights(self, prediction: Held, steps: Steps, nodes: Tensor, schedule: Any) -> Tensor:
        """The integrals of the Lagrange polynomials."""
        if nodes.shape[1] == 1:
            return prediction.total(steps).unsqueeze(-1)
        v, dv = quadrature(steps.h)
        at = self.variable(schedule, steps.ell_t.unsqueeze(-1) - v)  # (N, Q)
        return prediction.integral(steps, lagrange(self.variable(schedule, nodes), at), v, dv)


class Midpoint(Rule):
    """A line through two nodes, taken at the middle of the step and multiplied by the weight's integral.

    The rule of DPM-Solver-2 and of DPM-Solver++ 2M in its midpoint form.
    """

    def weights(self, prediction: Held, steps: Steps, nodes: Tensor, schedule: Any) -> Tensor:
        """The line's value at the middle."""
        _at_most(nodes, 2, self)
        middle = 0.5 * (steps.ell_s + steps.ell_t).unsqueeze(-1)
        return prediction.total(steps).unsqueeze(-1) * lagrange(nodes, middle).squeeze(1)


class UniPC(Rule):
    """Exact in log(alpha/sigma), but for two nodes the slope is weighted with B(h)/2.

    Args:
        linear: B(h) = h (bh1 in the source) instead of the weight's integral (bh2).

    Source: Zhao et al. 2023, https://arxiv.org/abs/2302.04867.
    """

    def __init__(self, *, linear: bool = False):
        self.linear = linear

    def weights(self, prediction: Held, steps: Steps, nodes: Tensor, schedule: Any) -> Tensor:
        """Exact weights, or those of the B(h) rule."""
        if nodes.shape[1] != 2:
            return Polynomial().weights(prediction, steps, nodes, schedule)
        total = prediction.total(steps)
        rate = (1 + steps.eta2) * steps.h
        b = total * rate / -torch.expm1(-rate) if self.linear else total
        slope = 0.5 * b * steps.h / (nodes[:, 1] - nodes[:, 0])
        return torch.stack([total - slope, slope], 1)


class Published3M(Rule):
    """DPM-Solver++ 3M as published, whose second difference lacks a factor 2: of second order.

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, appendix; the corrected rule is :class:`Polynomial`.
    """

    def weights(self, prediction: Held, steps: Steps, nodes: Tensor, schedule: Any) -> Tensor:
        """Polynomial up to two nodes (midpoint), the published differences for three."""
        if nodes.shape[1] < 3:
            return Midpoint().weights(prediction, steps, nodes, schedule)
        _at_most(nodes, 3, self)
        h, rate = steps.h, (1 + steps.eta2) * steps.h
        r0, r1 = (nodes[:, 0] - nodes[:, 1]) / h, (nodes[:, 1] - nodes[:, 2]) / h
        total = prediction.total(steps)
        mean = total / -torch.expm1(-rate)  # alpha_t
        phi2 = mean * (torch.expm1(-rate) / rate + 1)
        phi3 = mean * ((torch.expm1(-rate) + rate) / rate**2 - 0.5)
        # D1 = d0 + r0/(r0+r1) (d0 - d1), D2 = (d0 - d1)/(r0+r1), d0 = (p0-p1)/r0, d1 = (p1-p2)/r1
        c0 = phi2 * (1 + r0 / (r0 + r1)) - phi3 / (r0 + r1)  # factor of d0
        c1 = -phi2 * r0 / (r0 + r1) + phi3 / (r0 + r1)  # factor of d1
        return torch.stack([total + c0 / r0, c1 / r1 - c0 / r0, -c1 / r1], 1)


class Adams(Rule):
    """The classical Adams-Bashforth weights for equal steps, whatever the nodes: the rule of iPNDM.

    Source: Zhang and Chen 2023, https://arxiv.org/abs/2204.13902, section 4; Liu et al. 2022,
    https://arxiv.org/abs/2202.09778.
    """

    _BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

    def weights(self, prediction: Held, steps: Steps, nodes: Tensor, schedule: Any) -> Tensor:
        """The weight's integral times the classical weights."""
        _at_most(nodes, 4, self)
        classical = torch.tensor(self._BASHFORTH[nodes.shape[1] - 1], dtype=nodes.dtype)
        return prediction.total(steps).unsqueeze(-1) * classical


def lagrange(nodes: Tensor, at: Tensor) -> Tensor:
    """The Lagrange polynomials of nodes (N, K) at (N, Q), as (N, Q, K)."""
    columns = []
    for j in range(nodes.shape[1]):
        column = torch.ones_like(at)
        for i in range(nodes.shape[1]):
            if i != j:
                column = column * (at - nodes[:, i : i + 1]) / (nodes[:, j : j + 1] - nodes[:, i : i + 1])
        columns.append(column)
    return torch.stack(columns, -1)


def _at_most(nodes: Tensor, count: int, rule: Rule) -> None:
    if nodes.shape[1] > count:
        raise ValueError(f"{type(rule).__name__} is a rule for at most {count} nodes, order {count}.")
