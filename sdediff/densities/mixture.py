r"""Gaussian mixtures, which stay mixtures under every linear SDE.

Component k of :math:`p_0` with mean :math:`m_k` and covariance :math:`S_k` becomes
:math:`\mathcal N(\alpha m_k, \alpha^2 S_k + \sigma^2 I)`, so score, posterior mean and density at every time are exact.
Inside, modes come first and the batch after them, which is the fast layout for the softmax over modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Density

_LOG_2PI = math.log(2 * math.pi)


class Mixture(Density):
    """A mixture of Gaussians.

    Args:
        means: (K, *event).
        std: isotropic standard deviations, a number or (K,); or
        covariance: full covariances, (K, d, d) or (d, d) for one event axis.
        weights: (K,), positive, normalised here; equal by default.

    Raises:
        ValueError: shapes do not fit, a weight or standard deviation is not positive, or a covariance is not
            symmetric positive definite.
    """

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        *,
        std: float | Tensor | Sequence[float] | None = None,
        covariance: Tensor | None = None,
        weights: Tensor | Sequence[float] | None = None,
    ):
        centres = torch.as_tensor(means, dtype=torch.float64)
        if centres.ndim < 1 or len(centres) == 0:
            raise ValueError(f"means has shape {tuple(centres.shape)}; it must be (K, *event) with K >= 1.")
        self.event_shape = tuple(centres.shape[1:])
        self.means = centres.reshape(len(centres), -1)  # (K, D)
        self.weights = self._checked_weights(weights)
        if (std is None) == (covariance is None):
            raise ValueError("Give exactly one of std and covariance.")
        self.basis: Tensor | None = None  # (K, D, D) columns: principal axes
        if covariance is None:
            self.variances = self._checked_std(std) ** 2  # (K, 1)
        else:
            self.variances, self.basis = self._principal_axes(torch.as_tensor(covariance, dtype=torch.float64))
        self.log_weights = self.weights.log().unsqueeze(1)  # (K, 1)
        self.half_norms = 0.5 * self.means.square().sum(1, keepdim=True)  # (K, 1)
        self.reach = 2 * float(self.half_norms.max())  # the largest |m|²
        self._cache: dict[tuple[torch.device, torch.dtype], Mixture] = {}

    # ---- construction -----------------------------------------------------------------------------------------

    def _checked_weights(self, weights: Tensor | Sequence[float] | None) -> Tensor:
        count = len(self.means)
        if weights is None:
            return torch.full((count,), 1 / count, dtype=torch.float64)
        w = torch.as_tensor(weights, dtype=torch.float64)
        if w.shape != (count,) or not bool((w > 0).all()) or not bool(torch.isfinite(w).all()):
            raise ValueError(f"weights must be {count} positive numbers, got {w.tolist()}.")
        return w / w.sum()

    def _checked_std(self, std: float | Tensor | Sequence[float] | None) -> Tensor:
        s = torch.as_tensor(std, dtype=torch.float64)
        if s.ndim > 1 or (s.ndim == 1 and len(s) != len(self.means)) or not bool(((s > 0) & s.isfinite()).all()):
            raise ValueError(f"std must be a positive number or {len(self.means)} of them, got {s.tolist()}.")
        return s.reshape(-1, 1).expand(len(self.means), 1).contiguous()

    def _principal_axes(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        count, d = self.means.shape
        if tuple(covariance.shape) not in ((count, d, d), (d, d)) or len(self.event_shape) != 1:
            raise ValueError(
                f"covariance has shape {tuple(covariance.shape)}; for means of shape {(count, *self.event_shape)} it must "
                f"be ({count}, {d}, {d}) or ({d}, {d})."
            )
        covariance = covariance.expand(count, d, d)
        if not torch.allclose(covariance, covariance.mT, rtol=1e-8, atol=1e-12):
            raise ValueError("covariance is not symmetric: use 0.5 * (S + S.mT).")
        variances, basis = torch.linalg.eigh(covariance)
        if not bool((variances > 0).all()):
            raise ValueError(f"covariance is not positive definite: its smallest eigenvalue is {variances.min():.3g}.")
        return variances, basis

    # ---- the density itself -----------------------------------------------------------------------------------

    @property
    def shared_variance(self) -> float | None:
        """The variance, where all components have one isotropic variance in common."""
        first = self.variances.flatten()[0]
        return float(first) if self.basis is None and bool((self.variances == first).all()) else None

    def component(self, n: int, generator: torch.Generator | None) -> Tensor:
        """The component of each of ``n`` samples, (n,)."""
        return torch.multinomial(self.weights, n, replacement=True, generator=generator)

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Samples in float64."""
        k = self.component(n, generator)
        z = torch.randn((n, self.means.shape[1]), generator=generator, dtype=torch.float64)
        z = self.variances[k].sqrt() * z
        if self.basis is not None:
            z = (self.basis[k] @ z.unsqueeze(-1)).squeeze(-1)
        return (self.means[k] + z).reshape(n, *self.event_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,)."""
        return self.diffused(x, torch.ones(()), torch.zeros(())).log_prob()

    def score(self, x: Tensor) -> Tensor:
        """The score in closed form."""
        return self.diffused(x, torch.ones(()), torch.zeros(())).score()

    def diffused(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> MixturePosterior:
        """The posterior at x (B, *event); alpha and sigma of shape () or (B, 1, ..., 1)."""
        return MixturePosterior(self.like(x), self._check(x), alpha, sigma)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability of each component given x (B, *event), shape (B, K)."""
        return self.diffused(x, torch.ones(()), torch.zeros(())).weights.T

    def like(self, x: Tensor) -> Mixture:
        """This mixture with its parameters in x's dtype and on x's device, remembered."""
        key = (x.device, x.dtype)
        if key not in self._cache:
            twin = object.__new__(type(self))
            for name, value in self.__dict__.items():
                twin.__dict__[name] = value.to(*key) if isinstance(value, Tensor) else value
            self._cache[key] = twin
        return self._cache[key]


class MixturePosterior:
    """The posterior of a mixture at x. Symbols: r = x - alpha m, y = (alpha² S + sigma²)⁻¹ r, per mode."""

    def __init__(self, mixture: Mixture, x: Tensor, alpha: Tensor, sigma: Tensor):
        self.mixture, self.shape = mixture, x.shape
        flat = x.reshape(x.shape[0], -1)  # (B, D)
        self.alpha, self.sigma = (_beside(c, flat) for c in (alpha, sigma))
        r = flat - self.alpha * mixture.means.unsqueeze(1)  # (K, B, D)
        if mixture.basis is not None:
            r = r @ mixture.basis
        variances = self.alpha**2 * mixture.variances.unsqueeze(1) + self.sigma**2  # (K, B|1, D|1)
        self.y = r / variances
        logdet = variances.log().sum(-1) * (r.shape[-1] // variances.shape[-1])
        self.logits = mixture.weights.log().unsqueeze(1) - 0.5 * ((r * self.y).sum(-1) + logdet)  # (K, B)
        self.weights = torch.softmax(self.logits, 0)

    def _mean(self, per_mode: Tensor) -> Tensor:
        return (self.weights.unsqueeze(-1) * per_mode).sum(0)  # (B, D)

    def _rotated(self, y: Tensor) -> Tensor:
        return y if self.mixture.basis is None else y @ self.mixture.basis.mT

    def score(self) -> Tensor:
        """The score of the diffused mixture, of x's shape."""
        return -self._mean(self._rotated(self.y)).reshape(self.shape)

    def noise(self) -> Tensor:
        """E[eps | x]."""
        return (self.sigma * self._mean(self._rotated(self.y))).reshape(self.shape)

    def data(self) -> Tensor:
        """E[x_0 | x]."""
        pull = self._rotated(self.mixture.variances.unsqueeze(1) * self.y)
        return self._mean(self.mixture.means.unsqueeze(1) + self.alpha * pull).reshape(self.shape)

    def log_prob(self) -> Tensor:
        """The log density of the diffused mixture, (B,)."""
        return torch.logsumexp(self.logits, 0) - 0.5 * self.mixture.means.shape[1] * _LOG_2PI


def _beside(c: Tensor, flat: Tensor) -> Tensor:
    """A schedule value of shape () or (B, 1, ..., 1) beside (B, D)."""
    return c if c.ndim == 0 else c.reshape(-1, 1).to(flat.dtype)
