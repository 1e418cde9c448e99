r"""The law of a solver's samples, read off from the solver itself.

Where drift and noise are affine in the state, what a solver makes of a start and its random numbers is

.. math:: x_N = A x_0 + c + \sum_j K_j z_j .

A, c and the :math:`K_j` are found by feeding it known starts and known numbers, one at a time, all in one batch. Mean and
covariance at the end follow without sampling: :math:`A m + c` and :math:`A C A^\top + \sum_j K_jK_j^\top`. Nothing is left in
them but the solver's own error, at every number of steps, and its real samples must agree with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..sde import SDE
from ..solve import solve
from ..solvers import Method


@dataclass(frozen=True)
class AffineMap:
    """What a solver does to Gaussian data.

    Args:
        matrix: A, (D, D).
        shift: c, (D,).
        gains: the K_j, (J, D), one row for each number drawn.
        own: how many of the draws belonged to no path (:meth:`Stream.normal`), as in a Langevin corrector.
    """

    matrix: Tensor
    shift: Tensor
    gains: Tensor
    own: int

    @property
    def noisy(self) -> bool:
        """True where the end depends on the numbers drawn."""
        return bool((self.gains != 0).any())

    def law(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) at the end, for a start with these."""
        return self.matrix @ mean + self.shift, self.matrix @ covariance @ self.matrix.T + self.gains.T @ self.gains


def affine_map(process: SDE, solver: Method, dimension: int, **options: Any) -> AffineMap:
    """Read off by one solve.

    Args:
        process: affine in x, states (B, D).
        solver: a fixed-step solver.
        dimension: D.
        options: those of :func:`~sdediff.solve`.
    """
    count = OneByOne(dimension)
    solve(process, torch.zeros(1, dimension, dtype=torch.float64), solver=solver, noise=count, **options)
    start = torch.zeros(1 + dimension + count.drawn * count.width, dimension, dtype=torch.float64)
    start[1 : 1 + dimension] = torch.eye(dimension, dtype=torch.float64)
    end = solve(process, start, solver=solver, noise=OneByOne(dimension), **options).x
    away = end[1:] - end[0]
    return AffineMap(away[:dimension].T, end[0], away[dimension:], count.own)


class OneByOne(Noise):
    """Each number drawn is 1 for one sample and 0 for all others.

    The samples up to ``dimension`` get zeros; number i of draw j is that of sample 1 + dimension + j width + i.

    Attributes:
        drawn: how often a stream was asked, own: how often for numbers of no path, width: the size of one draw.
    """

    def __init__(self, dimension: int):
        self.dimension = dimension
        self.drawn = self.own = 0
        self.width = 1

    def open(self, x: Tensor) -> Stream:
        """A stream of these numbers."""
        return _OneByOneStream(self, x)

    def integer(self) -> int:
        """Refused: a backend's own numbers cannot be given to it."""
        raise NotImplementedError("a backend draws its own numbers")

    def initial(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Refused: starts are given."""
        raise NotImplementedError("starting states are given")


class _OneByOneStream(Stream):
    def __init__(self, noise: OneByOne, x: Tensor):
        self.noise, self.x = noise, x

    def normal(self, shape: torch.Size | None = None) -> Tensor:
        self.noise.own += 1
        return self._next(self.x.shape if shape is None else shape)

    def unit(self, s: float, t: float, shape: torch.Size | None = None) -> Tensor:
        return self._next(self.x.shape if shape is None else shape)

    def with_integral(self, s: float, t: float, shape: torch.Size | None = None) -> tuple[Tensor, Tensor]:
        before = self.noise.own
        both = super().with_integral(s, t, shape)
        self.noise.own = before  # the area under a path is no noise of the solver's own
        return both

    def _next(self, shape: torch.Size) -> Tensor:
        noise, z = self.noise, torch.zeros(shape, dtype=self.x.dtype)
        noise.width = max(noise.width, shape[1:].numel())
        first = 1 + noise.dimension + noise.drawn * noise.width
        noise.drawn += 1
        rows = torch.arange(min(first, shape[0]), min(first + shape[1:].numel(), shape[0]))
        z.reshape(shape[0], -1)[rows, rows - first] = 1.0
        return z
