r"""The laws that CIR and Jacobi settle in, Gamma and Beta, as densities of independent and alike coordinates."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from scipy import special
from torch import Tensor

from ..checks import check_event
from ..densities import Density


class Independent(Density):
    """A law of independent, equally distributed coordinates, with its quantile function."""

    dtype = torch.float64

    def __init__(self, event_shape: tuple[int, ...], end: float, floor: float):
        self.event_shape, self.end, self.floor = check_event(event_shape), end, floor

    @abstractmethod
    def quantile(self, u: np.ndarray) -> np.ndarray:
        """The value below which a share u lies."""

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """Of each coordinate."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """Its derivative."""

    def from_noise(self, z: Tensor) -> Tensor:
        """Standard normal z (B, *event) carried to this law by its quantile function."""
        return torch.from_numpy(self.quantile(special.ndtr(z.detach().cpu().double().numpy()))).to(z.device, z.dtype)

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """``n`` samples."""
        return self.from_noise(torch.randn(n, *self.event_shape, generator=generator, dtype=torch.float64))

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,); -inf outside the domain."""
        inside = ((self._check(x) >= 0) & (x <= self.end)).reshape(len(x), -1).all(1)
        least = torch.finfo(x.dtype).tiny
        value = (
            self.log_density(x.clamp(least, self.end * (1 - torch.finfo(x.dtype).eps / 2))).reshape(len(x), -1).sum(1)
        )
        return torch.where(inside, value, -torch.inf)

    def score(self, x: Tensor) -> Tensor:
        """Its gradient; at and beyond the walls that at the nearest point inside."""
        return self.slope(self._check(x).clamp(self.floor, self.end - self.floor))


class Gamma(Independent):
    r""":math:`\Gamma(shape)` over ``rate``, on x >= 0; CIR settles in one."""

    def __init__(self, shape: float, rate: float, event_shape: tuple[int, ...], floor: float):
        super().__init__(event_shape, math.inf, floor)
        self.shape, self.rate = shape, rate

    def quantile(self, u: np.ndarray) -> np.ndarray:
        return special.gammaincinv(self.shape, u) / self.rate

    def log_density(self, x: Tensor) -> Tensor:
        constant = self.shape * math.log(self.rate) - math.lgamma(self.shape)
        return (self.shape - 1) * x.log() - self.rate * x + constant

    def slope(self, x: Tensor) -> Tensor:
        return (self.shape - 1) / x - self.rate


class Beta(Independent):
    """Beta(a, b), on [0, 1]; the Jacobi process settles in one."""

    def __init__(self, a: float, b: float, event_shape: tuple[int, ...], floor: float):
        super().__init__(event_shape, 1.0, floor)
        self.a, self.b = a, b

    def quantile(self, u: np.ndarray) -> np.ndarray:
        return special.betaincinv(self.a, self.b, u)

    def log_density(self, x: Tensor) -> Tensor:
        return (self.a - 1) * x.log() + (self.b - 1) * torch.log1p(-x) - float(special.betaln(self.a, self.b))

    def slope(self, x: Tensor) -> Tensor:
        return (self.a - 1) / x - (self.b - 1) / (1 - x)
