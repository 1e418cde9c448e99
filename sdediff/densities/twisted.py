"""Smooth targets with a density and a score of their own, but no closed form once diffused: the banana, the funnel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check_number, check_scale, check_size, check_whole, float64
from .base import Density

_LOG_2PI = math.log(2 * math.pi)


class Banana(Density):
    r"""A Gaussian bent along a parabola, states (2,): :math:`x_1 = s_1z_1`, :math:`x_2 = s_2z_2 + b(x_1^2 - s_1^2)`.

    The bending keeps volume, so :math:`p(x) = \mathcal N(x_1; 0, s_1^2)\,\mathcal N(x_2; b(x_1^2 - s_1^2), s_2^2)`.

    Args:
        bend: b, in 1/units of the data.
        std: (s_1, s_2).

    Raises:
        ValueError: a standard deviation is not positive.

    Source: Haario et al. 1999, https://doi.org/10.1007/s001800050022.
    """

    event_shape = (2,)

    def __init__(self, bend: float = 0.8, std: tuple[float, float] = (1.0, 0.3)):
        if not isinstance(std, (tuple, list)) or len(std) != 2 or not all(check_number(s, "std") > 0 for s in std):
            raise ValueError(f"std = {std} must be two positive numbers.")
        self.bend, self.std = check_size(bend, "bend"), (check_scale(std[0], "std"), check_scale(std[1], "std"))

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Samples in float64."""
        z = torch.randn((n, 2), generator=generator, dtype=torch.float64)
        first = self.std[0] * z[:, 0]
        return torch.stack([first, self.std[1] * z[:, 1] + self._spine(first)], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,)."""
        first, second = float64(self._check(x)).unbind(1)
        squares = (first / self.std[0]).square() + ((second - self._spine(first)) / self.std[1]).square()
        return (-0.5 * squares - math.log(self.std[0] * self.std[1]) - _LOG_2PI).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """The score in closed form."""
        first, second = float64(self._check(x)).unbind(1)
        across = (second - self._spine(first)) / self.std[1] ** 2
        return torch.stack([2 * self.bend * first * across - first / self.std[0] ** 2, -across], 1).to(x.dtype)

    def _spine(self, first: Tensor) -> Tensor:
        return self.bend * (first * first - self.std[0] ** 2)


class Funnel(Density):
    r"""Neal's funnel, states (d,): a Gaussian whose width is the exponential of another one.

    .. math:: v = x_1 \sim \mathcal N(0, s^2), \qquad x_i \mid v \sim \mathcal N(0, e^v) \quad (i > 1) .

    Args:
        dim: d, at least 2.
        std: s.

    Raises:
        ValueError: dim < 2 or std is not positive.

    Source: Neal 2003, https://doi.org/10.1214/aos/1056562461, section 8 (d = 10, s = 3).
    """

    def __init__(self, dim: int = 2, std: float = 3.0):
        if check_whole(dim, "dim") < 2 or check_number(std, "std") <= 0:
            raise ValueError(f"dim = {dim} must be at least 2 and std = {std} positive.")
        if check_scale(std, "std") > 100:
            raise ValueError(f"std = {std:g} is that of a logarithm: beyond 100 the scales it makes are no floats.")
        self.event_shape, self.std = (dim,), float(std)

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Samples in float64."""
        z = torch.randn((n, *self.event_shape), generator=generator, dtype=torch.float64)
        v = self.std * z[:, :1]
        return torch.cat([v, torch.exp(0.5 * v) * z[:, 1:]], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,)."""
        v, rest = self._parts(x)
        mouth = -0.5 * (v / self.std).square() - math.log(self.std)
        inside = -0.5 * (rest.square().sum(1) * torch.exp(-v) + rest.shape[1] * v)
        return (mouth + inside - 0.5 * x.shape[1] * _LOG_2PI).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """The score in closed form."""
        v, rest = self._parts(x)
        shrink = torch.exp(-v)
        along = -v / self.std**2 + 0.5 * (rest.square().sum(1) * shrink - rest.shape[1])
        return torch.cat([along.unsqueeze(1), -rest * shrink.unsqueeze(1)], 1).to(x.dtype)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        at = float64(self._check(x))
        return at[:, 0], at[:, 1:]
