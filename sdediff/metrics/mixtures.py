"""A sample against a mixture: how its modes are filled, and how each looks inside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from ..checks import float64
from ..densities import Mixture
from ..densities.base import host_generator
from .pairs import finite, random_directions


@dataclass(frozen=True)
class Occupancy:
    """How the samples are shared out among the modes.

    Args:
        counts: (K,), the samples for which each mode is the most probable one.
        expected: (K,), n times the weights of the mixture.
        statistic: the chi-square statistic of the mean responsibilities.
        freedom: its degrees of freedom.
        p_value: of the hypothesis that the weights are right.
    """

    counts: Tensor
    expected: Tensor
    statistic: float
    freedom: int
    p_value: float


def mode_occupancy(x: Tensor, mixture: Mixture) -> Occupancy:
    r"""A chi-square test of the weights of the modes.

    The mean responsibilities :math:`\bar r_k = \frac1n\sum_i P(k \mid x_i)` have expectation :math:`w_k` under the mixture
    however much its modes overlap, and :math:`n\,(\bar r - w)^\top\Sigma^+(\bar r - w)` is chi-square with the rank of
    :math:`\Sigma = \mathrm{Cov}\,r` as degrees of freedom. Where modes are far apart this is Pearson's test on counts, and
    like that one it wants an expected count of five or more in each.

    Args:
        x: independent samples (n, *event).
        mixture: the law that they should have, of at least two components; at t > 0 use ``ExactScore.law(t)``.
    """
    if len(mixture.weights) < 2:
        raise ValueError("This mixture has one component: there is nothing to share out.")
    r = mixture.responsibilities(float64(finite(x))).cpu()
    weights, n = mixture.weights.to(r.dtype), len(r)
    values, vectors = torch.linalg.eigh(_responsibility_covariance(mixture))
    kept = values > 1e-3 * values.max()
    shift = vectors[:, kept].T @ (r.mean(0) - weights)
    statistic, freedom = float(n * (shift.square() / values[kept]).sum()), int(kept.sum())
    counts = torch.bincount(r.argmax(1), minlength=len(weights))
    return Occupancy(counts, n * weights, statistic, freedom, float(special.chdtrc(freedom, statistic)))


@dataclass(frozen=True)
class Coverage:
    """Which modes are found, and how many samples are at one.

    Args:
        counts: (K,), the samples at each mode: nearest to it, and within the radius.
        found: how many modes have any.
        quality: the share of samples that are at a mode.
        expected_quality: that of exact samples of modes far apart.
        p_missing: of the hypothesis that the empty modes are so by chance; 1 where none is empty.
        p_quality: of the hypothesis that the quality is at least the expected one.
    """

    counts: Tensor
    found: int
    quality: float
    expected_quality: float
    p_missing: float
    p_quality: float


def mode_coverage(x: Tensor, mixture: Mixture, *, radius: float = 3.0) -> Coverage:
    r"""Modes found and samples at a mode: the count of the literature, with what exact samples would give.

    A sample is at mode k if that is the most probable one for it and :math:`|S_k^{-1/2}(x - m_k)| \le radius`. An exact sample
    has none at mode k with probability :math:`(1 - w_kF)^n`, F the chi distribution function at the radius. The p-values are
    exact for modes far apart and on the large side else.

    Args:
        x: independent samples (n, *event).
        mixture: the law that they should have.
        radius: in standard deviations of each mode.
    """
    if not radius > 0:
        raise ValueError(f"radius = {radius} must be positive.")
    x = float64(finite(x)).cpu()
    nearest, flat = mixture.responsibilities(x).argmax(1), x.reshape(len(x), -1)
    n, (count, d) = len(x), mixture.means.shape
    counts = torch.zeros(count, dtype=torch.long)
    for k in range(count):
        own = flat[nearest == k]
        counts[k] = int((_whitened(own, mixture, k).norm(dim=1) <= radius).sum()) if len(own) else 0
    inside = float(special.chdtr(d, radius**2))
    empty = (counts == 0).nonzero().flatten()
    chance = [count * float((1 - mixture.weights[k] * inside) ** n) for k in empty]
    hits = int(counts.sum())
    p_quality = float(special.bdtr(hits, n, inside))
    return Coverage(counts, count - len(empty), hits / n, inside, min([1.0, *chance]), p_quality)


@dataclass(frozen=True)
class WithinMode:
    """How each mode's own mean and covariance differ from the exact ones, in units of the exact ones.

    Args:
        n: (K,), the samples that each mode accounts for; where that is 0, the entries below are NaN.
        mean: (K, D), :math:`S_k^{-1/2}(\bar x_k - m_k)`: 0 where right, standard error 1/√n_k.
        covariance: (K, D, D), :math:`S_k^{-1/2} C_k S_k^{-1/2} - I` about the exact mean: standard error √(2/n_k) on the
            diagonal.
        variance: the relative error of the variance, over all modes and axes: standard error √(2/(nD)).
        p_mean, p_variance: of the hypotheses that all means, and the variance, are right. At overlapping modes they
            err on the large side.
    """

    n: Tensor
    mean: Tensor
    covariance: Tensor
    variance: float
    p_mean: float
    p_variance: float

    @property
    def p_value(self) -> float:
        """Both p-values as one, by Bonferroni."""
        return min(1.0, 2 * min(self.p_mean, self.p_variance))


def within_mode(x: Tensor, mixture: Mixture) -> WithinMode:
    r"""Means and covariances of the modes, by responsibility-weighted moments of :math:`u_k = S_k^{-1/2}(x - m_k)`.

    As :math:`\mathrm E[r_k(x) h(x)] = w_k\,\mathrm E_{\mathcal N(m_k, S_k)} h`, these are right in expectation even where
    modes overlap; assigning each sample to its nearest mode would cut off the tails. This is the test that sees a noise
    level or a step size that is a little wrong.

    Args:
        x: independent samples (n, *event).
        mixture: the law that they should have; at t > 0 use ``ExactScore.law(t)``.
    """
    x = float64(finite(x)).cpu()
    r = mixture.responsibilities(x)
    flat = x.reshape(len(x), -1)
    count, d = mixture.means.shape
    n, mean, covariance = flat.new_zeros(count), flat.new_zeros(count, d), flat.new_zeros(count, d, d)
    squares = 0.0  # chi-square of n d under the mixture
    for k in range(count):
        u = _whitened(flat, mixture, k)
        n[k] = r[:, k].sum()
        mean[k] = r[:, k] @ u / n[k]
        squares += float(r[:, k] @ u.square().sum(1))
        covariance[k] = (r[:, k, None] * u).T @ u / n[k] - torch.eye(d, dtype=u.dtype)
    freedom = len(x) * d
    tail = min(special.chdtrc(freedom, squares), special.chdtr(freedom, squares))
    p_mean = float(special.chdtrc(count * d, float((n * mean.square().sum(1)).nansum())))
    return WithinMode(n, mean, covariance, squares / freedom - 1, p_mean, min(1.0, 2 * float(tail)))


@dataclass(frozen=True)
class Projections:
    """Kolmogorov-Smirnov tests of projections.

    Args:
        directions: (P, D), unit vectors.
        statistics: (P,), the largest difference between the distribution functions.
        p_values: (P,), exact at any n.
        p_value: all of them as one, by Bonferroni.
    """

    directions: Tensor
    statistics: Tensor
    p_values: Tensor
    p_value: float


def ks_projections(x: Tensor, mixture: Mixture, *, projections: int = 16, seed: int | None = 0) -> Projections:
    r"""Kolmogorov-Smirnov tests of random projections, against the exact distribution function of the projected mixture.

    :math:`F_u(y) = \sum_k w_k\,\Phi\bigl((y - u\cdot m_k)/\sqrt{u^\top S_k u}\bigr)`.

    Args:
        x: independent samples (n, *event).
        mixture: the law that they should have; at t > 0 use ``ExactScore.law(t)``.
        projections: how many directions; in one dimension there is just one.
        seed: of the directions; None for fresh ones.
    """
    from scipy import stats  # half a second to import: only where it is needed

    x = float64(finite(x)).cpu().reshape(len(x), -1)
    u = random_directions(x.shape[1], projections, host_generator(seed, None))
    uniform = [project_cdf(mixture, direction, x @ direction) for direction in u]
    tests = [stats.kstest(values.numpy(), "uniform") for values in uniform]
    statistics = torch.tensor([float(test.statistic) for test in tests], dtype=torch.float64)
    p_values = torch.tensor([float(test.pvalue) for test in tests], dtype=torch.float64)
    return Projections(u, statistics, p_values, min(1.0, len(tests) * float(p_values.min())))


class Line:
    """A mixture of normals on the line.

    Args:
        means, stds, weights: (K,).
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor):
        self.means, self.stds, self.weights = means, stds, weights

    def cdf(self, y: Tensor) -> Tensor:
        """The distribution function at y (n,)."""
        z = (y.unsqueeze(-1) - self.means) / self.stds
        return torch.special.ndtr(z) @ self.weights

    @property
    def mean(self) -> float:
        """The expectation."""
        return float(self.weights @ self.means)

    @property
    def variance(self) -> float:
        """The variance."""
        return float(self.weights @ (self.stds**2 + (self.means - self.mean) ** 2))


def projected(mixture: Mixture, direction: Tensor) -> Line:
    """The law of u·x for x of the mixture and u = ``direction`` (D,): per mode, mean u·m and variance uᵀSu."""
    if mixture.basis is None:
        variances = mixture.variances[:, 0] * direction.square().sum()
    else:
        variances = (mixture.variances * (direction @ mixture.basis).square()).sum(1)
    return Line(mixture.means @ direction, variances.sqrt(), mixture.weights)


def project_cdf(mixture: Mixture, direction: Tensor, y: Tensor) -> Tensor:
    """The distribution function of direction·x at y (n,), for x of the mixture and a direction (D,)."""
    return projected(mixture, direction).cdf(y)


def _whitened(flat: Tensor, mixture: Mixture, k: int) -> Tensor:
    """S_k^{-1/2}(x - m_k) for flat states (n, D), with the symmetric root."""
    r = flat - mixture.means[k]
    if mixture.basis is None:
        return r / mixture.variances[k].sqrt()
    return (r @ mixture.basis[k] / mixture.variances[k].sqrt()) @ mixture.basis[k].T


def _responsibility_covariance(mixture: Mixture) -> Tensor:
    """Cov r under the mixture (K, K). Its mean is known; its spread comes from a fixed sample, the same from each mode,
    which is exact where modes are far apart, however rare one of them is."""
    count, d = mixture.means.shape
    each = max(20, 20_000 // count)
    z = torch.randn(count, each, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z * mixture.variances.sqrt().unsqueeze(1)
    if mixture.basis is not None:
        z = z @ mixture.basis.mT
    x = (mixture.means.unsqueeze(1) + z).reshape(count * each, *mixture.event_shape)
    away = mixture.responsibilities(x) - mixture.weights
    return away.T @ (away * (mixture.weights / each).repeat_interleave(each).unsqueeze(1))
