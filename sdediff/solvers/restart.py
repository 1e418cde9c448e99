"""Restart sampling: go back up by adding noise, come down again by the flow, several times.

The forward jump contracts the error made so far; the way down is as cheap as any ODE solve.

Source: Xu et al. 2023, https://arxiv.org/abs/2306.14878.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_count, check_number
from ..grids import Grid
from ..noise import Stream
from ..sde import SDE, Semilinear
from .base import Advance, Remembering, Solver, memory_of


class Restart(Solver):
    """Another solver, with restarts between two times.

    Args:
        solver: solves the flow, on the way down and in the restarts.
        low, high: the times between which to restart; ``low`` is moved to the nearest node that the solve reaches.
        inner: the grid of one way down from ``high`` to ``low``.
        repeats: how many restarts.

    Raises:
        TypeError: the solver chooses its own steps, ``inner`` is no grid, or ``repeats`` no whole number.
        ValueError: the interval is empty, outside the solve or without a node of it, or there is no repeat.
    """

    requires = Semilinear
    instead = "use Heun for another ODE"

    def __init__(self, solver: Solver, *, low: float, high: float, inner: Grid, repeats: int = 1):
        if not isinstance(solver, Solver):
            raise TypeError(f"solver must be one that steps along a grid, such as ExponentialAdams(), got {solver!r}.")
        if not isinstance(inner, Grid):
            raise TypeError(f"inner must be a grid such as grids.LogSNR(10), got {inner!r}.")
        self.solver, self.inner = solver, inner
        self.low, self.high = check_number(low, "low"), check_number(high, "high")
        if not low < high:
            raise ValueError(f"low = {low:g} must lie below high = {high:g}.")
        self.repeats = check_count(repeats, "repeats", "at least one, or use the solver alone")
        self.orders, self.couples_samples = solver.orders, solver.couples_samples

    def check(self, process: SDE) -> None:
        """The restarts bring the noise, so the process must be the flow."""
        super().check(process)
        self.solver.check(process)
        if process.direction != 0:
            raise ValueError("Restart adds its own noise to the flow: solve sde.probability_flow(score).")

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """The way down, and the restarts after the node nearest to ``low``."""
        assert isinstance(process, Semilinear)
        if not grid[-1] <= self.low < self.high <= grid[0]:
            raise ValueError(
                f"Restarts between {self.low:g} and {self.high:g} lie outside the solve from {grid[0]:g} to {grid[-1]:g}."
            )
        reached = 1 + int((grid[1:] - self.low).abs().argmin())
        low = float(grid[reached])
        if low >= self.high:  # then the jump up would lead backward in time
            raise ValueError(
                f"The node nearest to low = {self.low:g} is {low:g}, not below high = {self.high:g}: give the solve a node in "
                "[low, high), or restart over a longer interval."
            )
        nodes = self.inner.nodes(process, self.high, low)
        nodes[0], nodes[-1] = self.high, low
        jump = process.sde.transition(torch.tensor(low, dtype=grid.dtype), torch.tensor(self.high, dtype=grid.dtype))
        scale, std = float(jump.scale), float(jump.variance) ** 0.5
        outer = self.solver.prepare(process, grid, noise)
        later = self.solver.prepare(process, grid[reached:], noise) if reached < len(grid) - 1 else outer

        def advance(k: int, x: Tensor) -> Tensor:
            if k >= reached:
                return later(k - reached, x)
            x = outer(k, x)
            for _ in range(self.repeats if k + 1 == reached else 0):
                x = torch.mul(x, scale).add_(noise.normal(), alpha=std)
                down = self.solver.prepare(process, nodes, noise)
                for j in range(len(nodes) - 1):
                    x = down(j, x)
            return x

        return Remembering(advance, *memory_of(outer, later))
