r"""Explicit Runge-Kutta methods for ODEs, each given by its tableau.

.. math:: k_i = f\Bigl(x + h\sum_{j<i} a_{ij}k_j,\; s + c_i h\Bigr), \qquad x_t = x_s + h\sum_i b_i k_i .

Source: Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, chapter II.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..noise import Stream
from ..sde import ODE, SDE
from .base import Advance, Orders, Solver


class RungeKutta(Solver):
    """An explicit Runge-Kutta method.

    Args:
        a: the strictly lower triangle of the tableau, row i of length i (the first row is empty).
        b: the weights.
        order: the order of convergence claimed.

    Raises:
        ValueError: the rows do not form a lower triangle or the weights do not sum to 1.
    """

    requires = ODE
    instead = "solve sde.probability_flow(score), or use EulerMaruyama for an SDE with noise"

    def __init__(self, a: Sequence[Sequence[float]], b: Sequence[float], order: float):
        if len(a) != len(b) or any(len(row) != i for i, row in enumerate(a)):
            raise ValueError("a must have one row per stage, row i of length i; b one weight per stage.")
        if abs(sum(b) - 1) > 1e-12:
            raise ValueError(f"The weights b sum to {sum(b):g}; a consistent method needs 1.")
        self.a, self.b = [list(row) for row in a], list(b)
        self.c = [sum(row) for row in a]
        self.orders = Orders(ode=order)

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The drift at every stage of every step is prepared at once."""
        h = grid.diff()
        times = grid[:-1, None] + h[:, None] * torch.tensor(self.c, dtype=grid.dtype)  # (N, stages)
        times = torch.where(torch.tensor(self.c) == 1, grid[1:, None], times)  # exact ends
        flat = process.drifts(times.reshape(-1))
        stages = len(self.b)
        lengths = h.tolist()

        def advance(k: int, x: Tensor) -> Tensor:
            return self._step(flat[k * stages : (k + 1) * stages], lengths[k], x)

        return advance

    def _step(self, drifts: Sequence[Callable[[Tensor], Tensor]], h: float, x: Tensor) -> Tensor:
        slopes: list[Tensor] = []
        for drift, row in zip(drifts, self.a, strict=True):
            slopes.append(drift(_combine(x, h, row, slopes)))
        return _combine(x, h, self.b, slopes)


def _combine(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = torch.add(x, slope, alpha=h * weight)
    return x


class Midpoint(RungeKutta):
    """The explicit midpoint method: order 2, two evaluations a step."""

    def __init__(self) -> None:
        super().__init__([[], [0.5]], [0.0, 1.0], order=2)


class Heun(RungeKutta):
    """Heun's method: order 2, two evaluations a step, the second at the end of the step."""

    def __init__(self) -> None:
        super().__init__([[], [1.0]], [0.5, 0.5], order=2)


class RK4(RungeKutta):
    """The classical method of order 4, four evaluations a step."""

    def __init__(self) -> None:
        super().__init__([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], order=4)
