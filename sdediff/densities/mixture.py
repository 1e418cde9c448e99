r"""Gaussian mixtures, which stay mixtures under every linear SDE.

Component k of :math:`p_0` with mean :math:`m_k` and covariance :math:`S_k` becomes
:math:`\mathcal N(\alpha m_k, V_k)`, :math:`V_k = \alpha^2 S_k + \sigma^2 I`, so score, posterior mean and density at
every time are exact. With the posterior weights :math:`w_k(x)` of the modes,

.. math:: \nabla\log p_t(x) = \sum_k w_k V_k^{-1}(\alpha m_k - x), \qquad
          \mathrm E[x_0 \mid x] = \sum_k w_k \bigl(m_k + \alpha S_k V_k^{-1}(x - \alpha m_k)\bigr).

Inside, modes come first and the batch last, which is the fast layout for the softmax over modes, and the arithmetic is
float64: in float32 the logits of two modes that are both far away differ by less than they are rounded.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import LARGEST, check_parameter, float64
from .base import Density, Posterior, beside

_LOG_2PI = math.log(2 * math.pi)

# Logits as a quadratic form in x lose log10(|m|²/v) digits; up to here they keep ten (float64) or four (float32).
CANCELS = {torch.float64: 1e6, torch.float32: 1e3}
# Full covariances have d(d+1)/2 quadratic features; above this d the residuals are cheaper and smaller.
_FEW = 8


class Mixture(Density):
    """A mixture of Gaussians.

    Args:
        means: (K, *event); for scalar states (event shape ()) a plain list of K numbers.
        std: isotropic standard deviations, a number or (K,); or
        covariance: full covariances, (K, d, d) or (d, d) for one event axis.
        weights: (K,), positive, normalised here; equal by default.

    Raises:
        ValueError: shapes do not fit, a mean is not finite, a weight or standard deviation is not positive, or a
            covariance is not symmetric positive definite.
    """

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]] | Sequence[float],
        *,
        std: float | Tensor | Sequence[float] | None = None,
        covariance: Tensor | None = None,
        weights: Tensor | Sequence[float] | None = None,
    ):
        centres = check_parameter(means, "means")
        if centres.ndim < 1 or centres.numel() == 0 or not bool((centres.abs() <= LARGEST).all()):
            raise ValueError(
                f"means has shape {tuple(centres.shape)}; it must be finite, of shape (K, *event) with K >= 1, its entries "
                f"at most {LARGEST:g} in size."
            )
        self.event_shape = tuple(centres.shape[1:])
        self.means = centres.reshape(len(centres), -1)  # (K, D)
        self.weights = self._checked_weights(weights)
        self.basis: Tensor | None = None  # (K, D, D) columns: principal axes
        if (std is None) == (covariance is None):
            raise ValueError("Give exactly one of std and covariance.")
        if std is not None:
            self.variances = self._checked_std(std) ** 2  # (K, 1)
        else:
            self.variances, self.basis = self._principal_axes(
                check_parameter(covariance, "covariance")
            )  # (K, D) and the axes
        self.log_weights = self.weights.log().unsqueeze(1)  # (K, 1)
        self.half_norms = 0.5 * self.means.square().sum(1, keepdim=True)  # (K, 1)
        self.reach = 2 * float(self.half_norms.max())  # the largest |m|²
        self._cache: dict[tuple[torch.device, torch.dtype], Mixture] = {}

    # ---- construction -----------------------------------------------------------------------------------------

    def _checked_weights(self, weights: Tensor | Sequence[float] | None) -> Tensor:
        count = len(self.means)
        if weights is None:
            return torch.full((count,), 1 / count, dtype=torch.float64)
        w = check_parameter(weights, "weights")
        if w.shape != (count,) or not bool((w > 0).all()) or not bool(torch.isfinite(w).all()):
            raise ValueError(f"weights must be {count} positive numbers, got {w.tolist()}.")
        return w / w.sum()

    def _checked_std(self, std: float | Tensor | Sequence[float]) -> Tensor:
        s = check_parameter(std, "std")
        if s.ndim > 1 or (s.ndim == 1 and len(s) != len(self.means)) or not bool(((s > 0) & s.isfinite()).all()):
            raise ValueError(f"std must be a positive number or {len(self.means)} of them, got {s.tolist()}.")
        if not bool(((s >= 1 / LARGEST) & (s <= LARGEST)).all()):
            raise ValueError(f"std = {s.tolist()} must lie between {1 / LARGEST:g} and {LARGEST:g}: use other units.")
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
            raise ValueError("covariance is not symmetric and finite: use 0.5 * (S + S.mT).")
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

    @property
    def covariances(self) -> Tensor:
        """The covariance of each component, over flattened states: (K, D, D)."""
        if self.basis is None:
            return self.variances.unsqueeze(2) * torch.eye(self.means.shape[1], dtype=torch.float64)
        return (self.basis * self.variances.unsqueeze(1)) @ self.basis.mT

    def component(self, n: int, generator: torch.Generator | None) -> Tensor:
        """The component of each of ``n`` samples, (n,)."""
        return torch.multinomial(self.weights, n, replacement=True, generator=generator)

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Samples in float64."""
        k = self.component(n, generator)
        z = torch.randn((n, self.means.shape[1]), generator=generator, dtype=torch.float64)
        z = self.variances[k].sqrt() * z
        if self.basis is not None:
            z = _rotated(z, self.basis, k)
        return (self.means[k] + z).reshape(n, *self.event_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats, (B,)."""
        return self._undiffused(x).log_prob()

    def score(self, x: Tensor) -> Tensor:
        """The score in closed form."""
        return self._undiffused(x).score()

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability of each component given x (B, *event), shape (B, K)."""
        return self._undiffused(x).weights.T.to(x.dtype)

    def diffused(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> MixturePosterior:
        """The posterior at x (B, *event); alpha and sigma of shape () or (B, 1, ..., 1)."""
        self._check(x)
        d = self.means.shape[1]
        if alpha.ndim == sigma.ndim == 0 and alpha.device.type == sigma.device.type == "cpu":
            limit = CANCELS[float64(x[:0]).dtype]
            smallest = float(alpha) ** 2 * float(self.variances.min()) + float(sigma) ** 2
            if float(alpha) ** 2 * self.reach < limit * smallest and (self.basis is None or d <= _FEW):
                return QuadraticPosterior(self, x, alpha, sigma)
        return ResidualPosterior(self, x, alpha, sigma)

    def noised(self, alpha: float | Tensor, sigma: float | Tensor) -> Mixture:
        r"""The law of :math:`\alpha x_0 + \sigma\epsilon`: a mixture again, with covariances :math:`\alpha^2S + \sigma^2I`.

        Args:
            alpha, sigma: two numbers, e.g. ``sde.alpha(0.3)`` and ``sde.sigma(0.3)``; they may not both vanish.
        """
        a, s = float(alpha), float(sigma)
        means = a * self.means.reshape(-1, *self.event_shape)
        variances = a * a * self.variances + s * s
        if self.basis is None:
            law = Mixture(means, std=variances.sqrt().flatten(), weights=self.weights)
        else:
            law = Mixture(means, covariance=_in_axes(variances, self.basis), weights=self.weights)
        law.device, law.dtype = self.device, self.dtype
        return law

    def _undiffused(self, x: Tensor) -> MixturePosterior:
        return self.diffused(x, torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))

    def on(self, device: torch.device, dtype: torch.dtype) -> Mixture:
        """This mixture with its parameters on a device and in a dtype, remembered."""
        if (device, dtype) not in self._cache:
            twin = object.__new__(type(self))
            for name, value in self.__dict__.items():
                twin.__dict__[name] = value.to(device, dtype) if isinstance(value, Tensor) else value
            self._cache[device, dtype] = twin
        return self._cache[device, dtype]


class MixturePosterior(Posterior):
    """The posterior of a mixture at x. Subclasses find ``logits`` (K, B) and the two means over modes."""

    logits: Tensor
    weights: Tensor

    def __init__(self, mixture: Mixture, x: Tensor, alpha: Tensor, sigma: Tensor):
        self.shape, self.dtype = x.shape, x.dtype
        self.x = float64(x).reshape(x.shape[0], -1).T  # (D, B)
        self.mixture = mixture.on(self.x.device, self.x.dtype)
        self.alpha, self.sigma = beside(alpha, self.x), beside(sigma, self.x)  # () or (B,)

    def _out(self, value: Tensor) -> Tensor:
        return value.T.reshape(self.shape).to(self.dtype)

    @abstractmethod
    def _pull(self) -> Tensor:
        """The mean over modes of V⁻¹(x - alpha m), (D, B)."""

    @abstractmethod
    def _data(self) -> Tensor:
        """The mean over modes of the component's own posterior mean, (D, B)."""

    def score(self) -> Tensor:
        """The score of the diffused mixture, of x's shape."""
        return self._out(-self._pull())

    def noise(self) -> Tensor:
        """E[eps | x]."""
        return self._out(self.sigma * self._pull())

    def data(self) -> Tensor:
        """E[x_0 | x]."""
        return self._out(self._data())

    def log_prob(self) -> Tensor:
        """The log density of the diffused mixture, (B,)."""
        return (torch.logsumexp(self.logits, 0) - 0.5 * len(self.x) * _LOG_2PI).to(self.dtype)


class ResidualPosterior(MixturePosterior):
    """By the residuals x - alpha m in the principal axes of each mode: right for any parameters and any times."""

    def __init__(self, mixture: Mixture, x: Tensor, alpha: Tensor, sigma: Tensor):
        super().__init__(mixture, x, alpha, sigma)
        own, d = self.mixture, len(self.x)
        self.variances = self.alpha**2 * own.variances.unsqueeze(2) + self.sigma**2  # (K, D|1, B|1)
        r = self._residuals()
        self.y = r / self.variances
        logdet = self.variances.log().sum(1) * (d // self.variances.shape[1])
        self.logits = own.log_weights - 0.5 * ((r * self.y).sum(1) + logdet)
        self.weights = torch.softmax(self.logits, 0)

    def _residuals(self) -> Tensor:
        """x - alpha m in each mode's axes, (K, D, B)."""
        means, basis = self.mixture.means, self.mixture.basis
        if basis is None:
            return self.x - self.alpha * means.unsqueeze(2)
        count, d = means.shape
        into_axes = basis.mT.reshape(count * d, d)  # all modes in one product
        turned = (basis.mT @ means.unsqueeze(2)).squeeze(2)
        return (into_axes @ self.x).reshape(count, d, -1) - self.alpha * turned.unsqueeze(2)

    def _mean(self, y: Tensor) -> Tensor:
        """The mean over modes of vectors given in the modes' axes, (D, B)."""
        y = y * self.weights.unsqueeze(1)
        basis = self.mixture.basis
        if basis is None:
            return y.sum(0)
        count, d = basis.shape[:2]
        return basis.mT.reshape(count * d, d).T @ y.reshape(count * d, -1)

    def _pull(self) -> Tensor:
        return self._mean(self.y)

    def _data(self) -> Tensor:
        own = self.mixture
        return own.means.T @ self.weights + self._mean(self.alpha * own.variances.unsqueeze(2) * self.y)


class QuadraticPosterior(MixturePosterior):
    r"""By one matrix product: at one time all logits are linear in the features :math:`(xx^\top, x)`, many times faster."""

    def __init__(self, mixture: Mixture, x: Tensor, alpha: Tensor, sigma: Tensor):
        super().__init__(mixture, x, alpha, sigma)
        own, d = self.mixture, len(self.x)
        variances = self.alpha**2 * own.variances + self.sigma**2  # (K, D|1)
        self.precision = _in_axes(1 / variances, own.basis)  # (K, D, D) or (K, 1, 1)
        self.shift = self.alpha * _apply(self.precision, own.means)  # V⁻¹ alpha m, (K, D)
        offset = -0.5 * (
            self.alpha * (self.shift * own.means).sum(1) + variances.log().sum(1) * (d // variances.shape[1])
        )
        square, coefficients = self._squares()
        factors = torch.cat([coefficients, self.shift], 1)  # (K, F + D)
        self.logits = torch.addmm(own.log_weights + offset.unsqueeze(1), factors, torch.cat([square, self.x]))
        self.weights = torch.softmax(self.logits, 0)

    def _squares(self) -> tuple[Tensor, Tensor]:
        """The quadratic features of x (F, B) and their coefficients in each mode's logit (K, F)."""
        if self.mixture.basis is None:
            return self.x.square().sum(0, keepdim=True), -0.5 * self.precision[:, 0]
        i, j = torch.triu_indices(len(self.x), len(self.x), device=self.x.device)
        return self.x[i] * self.x[j], self.precision[:, i, j] * torch.where(i == j, -0.5, -1.0)

    def _pull(self) -> Tensor:
        return self._averaged(self.precision) - self.shift.T @ self.weights

    def _data(self) -> Tensor:
        own = self.mixture
        gain = _in_axes(self.alpha * own.variances / (self.alpha**2 * own.variances + self.sigma**2), own.basis)
        return self._averaged(gain) + (own.means - self.alpha * _apply(gain, own.means)).T @ self.weights

    def _averaged(self, matrices: Tensor) -> Tensor:
        """The weighted mean of the modes' matrices (K, D, D) or (K, 1, 1), applied to x."""
        count, d = matrices.shape[:2]
        mean = matrices.reshape(count, d * d).T @ self.weights
        return mean * self.x if d == 1 else (mean.reshape(d, d, -1) * self.x).sum(1)


def _in_axes(diagonal: Tensor, basis: Tensor | None) -> Tensor:
    """The matrices with these eigenvalues (K, D|1) in the modes' principal axes: (K, D, D), isotropic (K, 1, 1)."""
    return diagonal.unsqueeze(2) if basis is None else (basis * diagonal.unsqueeze(1)) @ basis.mT


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Each mode's matrix (K, D, D) or (K, 1, 1) on its vector (K, D)."""
    return matrices[:, 0] * vectors if matrices.shape[1] == 1 else (matrices @ vectors.unsqueeze(2)).squeeze(2)


def _rotated(z: Tensor, basis: Tensor, k: Tensor) -> Tensor:
    """basis[k] @ z row by row, one component after another so that no (n, D, D) is made."""
    out = torch.empty_like(z)
    for component in k.unique().tolist():
        rows = k == component
        out[rows] = z[rows] @ basis[component].T
    return out
