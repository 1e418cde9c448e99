r"""The probability of data on a lattice, from a density on the space between its points.

A model gives a density p(y); data are counts :math:`k \in \{0, \dots, K-1\}^D`. With :math:`y = low + w(k + u)`,
:math:`u \in [0, 1)^D` and :math:`w = (high - low)/K`,

.. math:: P(k) = w^D\int_{[0,1)^D} p(y)\,du, \qquad
          \log P(k) \ge \mathrm E_{q(u|k)}\bigl[\log p(y) - \log q(u|k)\bigr] + D\log w .

A uniform q is the customary choice; a learned one comes closer (variational dequantisation). A density alone has no bits per
dimension: what is coded is k.

Sources: Theis et al. 2016, https://arxiv.org/abs/1511.01844; Ho et al. 2019, https://arxiv.org/abs/1902.00275.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_count
from ..densities.base import host_generator
from .estimate import Estimate, log_mean_weight

LogDensityFunction = Callable[[Tensor], Tensor]
"""y (B, *event) to log p(y), (B,), in nats: ``lambda y: sd.log_prob(sde, score, y).value``."""


class Dequantisation(ABC):
    """Counts k, lifted into the space of a density; subclasses say by which law q(u | k).

    Args:
        levels: K.
        low, high: where the lattice begins and ends: level k fills the cell from low + w k to low + w (k + 1).
    """

    def __init__(self, levels: int = 256, low: float = -1.0, high: float = 1.0):
        if levels < 2 or not low < high:
            raise ValueError(f"levels = {levels} must be at least 2, and low = {low} below high = {high}.")
        self.levels, self.low, self.width = levels, low, (high - low) / levels

    @abstractmethod
    def noise(self, k: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """u in [0, 1) of k's shape, and log q(u | k), (B,)."""

    def lift(self, k: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(y, c) for counts k (B, *event): the bound on log P(k) is the mean of log p(y) + c."""
        if bool(((k < 0) | (k >= self.levels) | (k != k.round())).any()):
            raise ValueError(f"Counts are whole numbers from 0 to {self.levels - 1}, got {k.min()} to {k.max()}.")
        k = k.to(
            torch.promote_types(torch.get_default_dtype(), k.dtype) if k.dtype.is_floating_point else torch.float64
        )
        u, log_q = self.noise(k, generator)
        return self.low + self.width * (k + u), k[0].numel() * math.log(self.width) - log_q

    def bound(self, log_density: LogDensityFunction, k: Tensor, *, draws: int = 4, seed: int | None = None) -> Estimate:
        """The bound on log P(k), (B,), in nats; two or more draws give a standard error."""
        seen = self._weights(log_density, k, draws, seed)
        error = seen.std(0) / math.sqrt(draws) if draws > 1 else torch.full_like(seen[0], math.nan)
        return Estimate(seen.mean(0), error, draws)

    def importance_weighted(
        self, log_density: LogDensityFunction, k: Tensor, *, draws: int = 16, seed: int | None = None
    ) -> Estimate:
        """log of the mean weight of two or more draws, (B,): nearer to log P(k), below it in expectation."""
        check_count(draws, "draws", "at least 2, as one draw has no standard error (bound takes draws=1)", least=2)
        value, error, _ = log_mean_weight(self._weights(log_density, k, draws, seed))
        return Estimate(value, error, draws)

    def _weights(self, log_density: LogDensityFunction, k: Tensor, draws: int, seed: int | None) -> Tensor:
        """log p(y) + c for each draw, (draws, B)."""
        check_count(draws, "draws")
        generator = host_generator(seed, None)
        lifted = (self.lift(k, generator) for _ in range(draws))
        return torch.stack([log_density(y) + c.to(y.device) for y, c in lifted])


class UniformDequantisation(Dequantisation):
    """u uniform on [0, 1)^D: log q = 0. Takes the arguments of :class:`Dequantisation`."""

    def noise(self, k: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Uniform numbers."""
        u = torch.rand(k.shape, generator=generator, dtype=k.dtype).to(k.device)
        return u, torch.zeros(len(k), dtype=k.dtype, device=k.device)


class VariationalDequantisation(Dequantisation):
    r"""u = sigmoid(m + e^r z), z standard normal, with m and r from a network that sees k.

    .. math:: \log q(u|k) = \sum_d \log\mathcal N(z_d) - r_d - \log u_d(1-u_d) .

    The draw is differentiable in the network: train it, alone or with the score, on minus the mean of ``log_density(y) + c``.

    Args:
        network: ``network(k)``, a pair (m, r) of tensors of k's shape.
        levels, low, high: as in :class:`Dequantisation`.
    """

    def __init__(
        self,
        network: Callable[[Tensor], tuple[Tensor, Tensor]],
        levels: int = 256,
        low: float = -1.0,
        high: float = 1.0,
    ):
        super().__init__(levels, low, high)
        self.network = network

    def noise(self, k: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Logistic-normal numbers."""
        mean, log_std = self.network(k)
        z = torch.randn(k.shape, generator=generator, dtype=k.dtype).to(k.device)
        y = mean + log_std.exp() * z
        # log u(1 - u) = -y - 2 log(1 + e^-y), finite where u rounds to 0 or 1
        slope = torch.nn.functional.logsigmoid(y) + torch.nn.functional.logsigmoid(-y)
        each = -0.5 * z * z - 0.5 * math.log(2 * math.pi) - log_std - slope
        return torch.sigmoid(y), each.reshape(len(k), -1).sum(1)
