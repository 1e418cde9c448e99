r"""A box cut into equal cells, and laws on it as the shares of mass in each cell.

A finite-volume method knows cell averages, not values at points. A density becomes averages by Gauss-Legendre quadrature
in every cell, samples by counting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..checks import check_finite, check_state
from ..densities import Density

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(3)
_BLOCK = 2**16
_MOST = 2**24


@dataclass(frozen=True, init=False)
class Cells:
    """The box low <= x <= high in one or two dimensions, cut into equal cells.

    Args:
        low, high: the corners: a number each on the line, (2,) of them in the plane; numbers in the state's units.
        count: cells along each axis: one number, or one per axis.

    Raises:
        TypeError, ValueError: another number of axes, an empty box, or fewer than four cells along an axis.

    States are (B, 1) or (B, 2).
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    count: tuple[int, ...]

    def __init__(self, low: float | Sequence[float], high: float | Sequence[float], count: int | Sequence[int] = 400):
        corner, opposite = _numbers(low, "low"), _numbers(high, "high")
        sides = tuple(count) if isinstance(count, Sequence) else (count,) * len(corner)
        if not 1 <= len(corner) <= 2 or not len(corner) == len(opposite) == len(sides):
            raise ValueError(
                f"A box has one or two axes; low has {len(corner)}, high {len(opposite)}, count {len(sides)}. For more "
                "dimensions simulate particles: solve(sde, x, ...)."
            )
        if not all(math.isfinite(b - a) and a < b for a, b in zip(corner, opposite, strict=True)):
            raise ValueError(f"low = {corner} must be finite and below high = {opposite} on every axis.")
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in sides):
            raise TypeError(f"count must be a whole number of cells for each axis, got {count!r}.")
        if min(sides) < 4 or math.prod(sides) > _MOST:
            raise ValueError(
                f"count = {sides}: take at least 4 cells along each axis and at most {_MOST:,} altogether."
            )
        for name, value in (("low", corner), ("high", opposite), ("count", sides)):
            object.__setattr__(self, name, value)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(d,), the shape of one state."""
        return (len(self.count),)

    @property
    def widths(self) -> tuple[float, ...]:
        """The width of a cell along each axis."""
        return tuple((b - a) / n for a, b, n in zip(self.low, self.high, self.count, strict=True))

    @property
    def volume(self) -> float:
        """The volume of one cell."""
        return math.prod(self.widths)

    def axis(self, i: int) -> Tensor:
        """The centres along axis i, float64, (count[i],)."""
        return self.low[i] + self.widths[i] * (torch.arange(self.count[i], dtype=torch.float64) + 0.5)

    @property
    def centres(self) -> Tensor:
        """The centres of all cells, (N, d), the last axis running fastest."""
        return torch.cartesian_prod(*(self.axis(i) for i in range(len(self.count)))).reshape(-1, len(self.count))

    def averages(self, density: Density) -> Tensor:
        """The cell averages of a density, of shape ``count``, by three Gauss-Legendre points along each axis."""
        if tuple(density.event_shape) != self.event_shape:
            raise ValueError(
                f"The density has states of shape {tuple(density.event_shape)}, the cells need {self.event_shape}."
            )
        centres, total = self.centres, torch.zeros(math.prod(self.count), dtype=torch.float64)
        half = 0.5 * torch.tensor(self.widths, dtype=torch.float64)
        for node in product(range(3), repeat=len(self.count)):
            at = centres + half * torch.tensor([_NODES[i] for i in node], dtype=torch.float64)
            weight = math.prod(0.5 * _WEIGHTS[i] for i in node)
            with torch.no_grad():
                total += weight * torch.cat([density.log_prob(part).exp() for part in at.split(_BLOCK)])
        if not bool(total.isfinite().all()):
            raise ValueError(
                "The density is NaN or infinite somewhere in the box: move its walls, or start from samples."
            )
        return total.reshape(self.count)

    def counts(self, x: Tensor) -> Tensor:
        """The samples (B, d) as a density on the cells, of shape ``count``: the share of each cell over its volume."""
        x = check_finite(check_state(x)).detach().cpu().double()
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; these cells need samples (B, {len(self.count)}).")
        outside = ((x < torch.tensor(self.low)) | (x > torch.tensor(self.high))).any(1)
        if bool(outside.any()):
            raise ValueError(
                f"{int(outside.sum())} of {len(x)} samples lie outside the box {self.low} to {self.high}: enlarge it."
            )
        edges = [np.linspace(a, b, n + 1) for a, b, n in zip(self.low, self.high, self.count, strict=True)]
        found, _ = np.histogramdd(x.numpy(), bins=edges)
        return torch.from_numpy(found) / (len(x) * self.volume)


def _numbers(value: float | Sequence[float], name: str) -> tuple[float, ...]:
    values = (value,) if isinstance(value, (int, float)) else value
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, or one for each axis, got {value!r}.") from None
