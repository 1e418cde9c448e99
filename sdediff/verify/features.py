"""Bounded functions of a state, for tests of their means."""

from __future__ import annotations

import torch
from torch import Tensor

from .laws import Law
from .operator import rows


class Features:
    """Bounded functions of x: their means are easy to test, whatever the tails of the law.

    The log density, squashed, sees what happens inside a mode; sine and cosine of projections see where it is.

    Args:
        law, t: the law, whose density at t is the one.
        directions: (P, D), unit vectors to project on.
        sample: of the law at t, (n, *event), to which the functions are scaled.
        frequency: of the waves, in radians per standard deviation of the projection.
    """

    def __init__(self, law: Law, t: float, directions: Tensor, sample: Tensor, frequency: float = 2.0):
        self.law, self.t, self.directions = law, t, directions
        log_p, y = law.log_prob(sample, t), rows(sample) @ directions.T
        self.centre, self.width, self.frequency = log_p.median(), log_p.std(), frequency / y.std(0)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, 1 + 2P)."""
        level = torch.tanh((self.law.log_prob(x, self.t) - self.centre) / self.width)
        phase = rows(x) @ self.directions.T * self.frequency
        return torch.cat([level[:, None], phase.sin(), phase.cos()], 1)
