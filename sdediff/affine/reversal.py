r"""Reversals of affine processes: linear in the state but for the score.

.. math:: dx = \bigl[Ax + b - \tfrac12(1+\eta^2)LL^\top s(x, t)\bigr]dt + \eta L\,d\bar W .
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import Time, float64
from ..sde import CoupledSemilinear, ProbabilityFlow, Reverse, finite_at


class CoupledReverse(CoupledSemilinear, Reverse):
    r"""The reversal with noise :math:`\eta L`; see :meth:`sdediff.SDE.reverse`."""

    sde: Any

    def eta(self, t: Time) -> Tensor:
        """The stochasticity at t."""
        return torch.as_tensor(finite_at(self.stochasticity, float64(t), "stochasticity"), dtype=torch.float64)


class CoupledFlow(CoupledSemilinear, ProbabilityFlow):
    """The probability flow; see :meth:`sdediff.SDE.probability_flow`."""

    sde: Any

    def eta(self, t: Time) -> Tensor:
        """0."""
        return torch.zeros((), dtype=torch.float64)
