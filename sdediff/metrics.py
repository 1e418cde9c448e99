r"""Distances between samples and laws, as numbers.

No single one sees everything: the energy distance is nearly blind to a wrong width of the modes, the kernel Stein
discrepancy to wrong weights, sliced Wasserstein to most small defects. Use several, and put beside each its
:func:`noise_floor`: what it says of two exact samples. Verdicts with stated levels are in :mod:`~sdediff.verify`.

All functions take samples (n, *event), flatten them and compute in float64. The unbiased ones scatter around 0 where two
laws agree, and are then negative about half of the time: that is a merit, not a fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from .checks import check_finite, check_state, float64
from .densities import Density, Mixture
from .densities.base import host_generator

_BLOCK = 2**22  # entries of one block of pairwise distances (float64: 32 MiB)

Drawer = Callable[..., Tensor]
"""``sampler(n, generator=...)``: n samples (n, *event)."""


# ---- two samples ------------------------------------------------------------------------------------------------


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""The energy distance :math:`2\,\mathrm E|X-Y| - \mathrm E|X-X'| - \mathrm E|Y-Y'|`, unbiased.

    Args:
        x, y: independent samples (n, *event) and (m, *event), n, m >= 2.

    Returns:
        A number in units of the data; 0 in expectation if and only if the laws are equal.

    Raises:
        TypeError, ValueError: no samples of one event shape, or entries that are not finite.

    Source: Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018.
    """
    x, y = _pair(x, y)
    return 2 * _mean_of(_distance, x, y) - _mean_of(_distance, x) - _mean_of(_distance, y)


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> float:
    r"""The squared maximum mean discrepancy with the kernel :math:`k(x, y) = e^{-|x-y|^2/2h^2}`, unbiased.

    .. math:: \mathrm{MMD}^2 = \mathrm E\,k(X, X') + \mathrm E\,k(Y, Y') - 2\,\mathrm E\,k(X, Y) .

    Args:
        x, y: independent samples (n, *event) and (m, *event), n, m >= 2.
        bandwidth: h, in units of the data; by default :func:`median_bandwidth` of the two.

    Raises:
        TypeError, ValueError: as :func:`energy_distance`, or a bandwidth that is not positive.

    Source: Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html.
    """
    x, y = _pair(x, y)
    h = median_bandwidth(x, y) if bandwidth is None else bandwidth
    if not h > 0:
        raise ValueError(f"bandwidth = {h} must be positive (the median distance of constant samples is 0).")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * (_distance(a, b) / h).square())

    return _mean_of(kernel, x) + _mean_of(kernel, y) - 2 * _mean_of(kernel, x, y)


def median_bandwidth(x: Tensor, y: Tensor) -> float:
    """The median distance between points of x and y pooled, from at most the first 1,000 of each."""
    pool = torch.cat([_flat(x)[:1000], _flat(y)[:1000]])
    return float(torch.pdist(pool).median())


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, order: float = 2.0, projections: int = 128, seed: int | None = 0
) -> float:
    r"""The sliced Wasserstein distance :math:`\bigl(\mathrm E_u\,W_p^p(u\cdot X, u\cdot Y)\bigr)^{1/p}`, u on the unit sphere.

    Args:
        x, y: samples (n, *event) and (m, *event), of any two sizes.
        order: p >= 1.
        projections: how many directions; in one dimension there is just one.
        seed: of the directions; None for fresh ones.

    Returns:
        A number in units of the data, biased upwards by the samples' own noise.

    Source: Bonneel et al. 2015, https://doi.org/10.1007/s10851-014-0506-3.
    """
    x, y = _pair(x, y)
    if not order >= 1:
        raise ValueError(f"order = {order} must be at least 1.")
    u = random_directions(x.shape[1], projections, host_generator(seed, None)).to(x.device, x.dtype)
    quantiles = ((x @ u.T).sort(0).values, (y @ u.T).sort(0).values)
    # Between neighbouring levels of i/n and j/m both quantile functions are constant: an exact integral over the level.
    n, m = (torch.arange(1, len(q) + 1, device=x.device, dtype=x.dtype) / len(q) for q in quantiles)
    levels = torch.cat([n, m]).sort().values
    width = levels.diff(prepend=levels.new_zeros(1))
    middle = levels - 0.5 * width
    a, b = (q[torch.searchsorted(c, middle)] for q, c in zip(quantiles, (n, m), strict=True))
    return float((width @ (a - b).abs() ** order).mean() ** (1 / order))


# ---- a sample and a mixture -------------------------------------------------------------------------------------


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
    r = mixture.responsibilities(float64(_finite(x))).cpu()
    weights, n = mixture.weights.to(r.dtype), len(r)
    values, vectors = torch.linalg.eigh(_responsibility_covariance(mixture))
    kept = values > 1e-3 * values.max()
    shift = vectors[:, kept].T @ (r.mean(0) - weights)
    statistic, freedom = float(n * (shift.square() / values[kept]).sum()), int(kept.sum())
    counts = torch.bincount(r.argmax(1), minlength=len(weights))
    return Occupancy(counts, n * weights, statistic, freedom, float(special.chdtrc(freedom, statistic)))


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
    x = float64(_finite(x)).cpu()
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

    x = float64(_finite(x)).cpu().reshape(len(x), -1)
    u = random_directions(x.shape[1], projections, host_generator(seed, None))
    uniform = [project_cdf(mixture, direction, x @ direction) for direction in u]
    tests = [stats.kstest(values.numpy(), "uniform") for values in uniform]
    statistics = torch.tensor([float(test.statistic) for test in tests], dtype=torch.float64)
    p_values = torch.tensor([float(test.pvalue) for test in tests], dtype=torch.float64)
    return Projections(u, statistics, p_values, min(1.0, len(tests) * float(p_values.min())))


def project_cdf(mixture: Mixture, direction: Tensor, y: Tensor) -> Tensor:
    """The distribution function of direction·x at y (n,), for x of the mixture and a direction (D,)."""
    if mixture.basis is None:
        spread = mixture.variances[:, 0] * direction.square().sum()
    else:
        spread = (mixture.variances * (direction @ mixture.basis).square()).sum(1)
    z = (y.unsqueeze(1) - mixture.means @ direction) / spread.sqrt()
    return torch.special.ndtr(z) @ mixture.weights


# ---- a sample and a score ---------------------------------------------------------------------------------------


def kernel_stein_discrepancy(x: Tensor, score: Tensor | Callable[[Tensor], Tensor], *, scale: float = 1.0) -> float:
    r"""The squared kernel Stein discrepancy with the inverse multiquadric kernel :math:`(c^2 + |x-y|^2)^{-1/2}`, unbiased.

    Needs the score of the law and no sample of it. It looks at the score where the samples are, and so is blind to a mode
    that is missing and to weights of separate modes.

    Args:
        x: independent samples (n, *event), n >= 2.
        score: the score of the law that they should have: a function of x, e.g. ``density.score`` or
            ``lambda x: exact(x, t)``, or its values.
        scale: c, in units of the data.

    Source: Liu et al. 2016, https://arxiv.org/abs/1602.03253; Gorham and Mackey 2017, https://arxiv.org/abs/1703.01717.
    """
    if not scale > 0:
        raise ValueError(f"scale = {scale} must be positive.")
    values = score if isinstance(score, Tensor) else score(_finite(x))
    if values.shape != x.shape:
        raise ValueError(f"score has shape {tuple(values.shape)} for x of shape {tuple(x.shape)}: they must be equal.")
    both = torch.cat([_flat(x), _flat(values)], 1)

    def stein(a: Tensor, b: Tensor) -> Tensor:
        (a, s), (b, t) = a.chunk(2, 1), b.chunk(2, 1)
        square = _distance(a, b).square()
        inverse = 1 / (scale**2 + square)  # k = inverse^(1/2)
        towards = (s * a).sum(1, keepdim=True) - s @ b.T - a @ t.T + (t * b).sum(1)  # (s - t)·(a - b)
        inner = a.shape[1] + towards - 3 * square * inverse
        return inverse.sqrt() * (s @ t.T + inverse * inner)

    return _mean_of(stein, both)


# ---- the noise of a number --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseFloor:
    """What a metric says of two exact samples.

    Args:
        mean: over the repeats.
        upper: the 95 % quantile: a value below it says nothing against a sample.
        values: (repeats,), sorted.
    """

    mean: float
    upper: float
    values: Tensor


def noise_floor(
    metric: Callable[[Tensor, Tensor], float], sampler: Density | Drawer, n: int, repeats: int = 20, seed: int = 0
) -> NoiseFloor:
    """The metric between pairs of independent exact samples: what a perfect sampler would be told.

    Args:
        metric: ``metric(x, y)``, a number; for a metric of one sample ``lambda x, _: ...``.
        sampler: a density, or a function ``sampler(n, generator=...)``, e.g. ``functools.partial(exact.sample, t=t)``.
        n: the size of each sample: that of the sample to be judged.
        repeats: how many pairs; the 95 % quantile wants 20 or more.
        seed: of all of them.
    """
    if repeats < 2:
        raise ValueError(f"repeats = {repeats} must be at least 2.")
    draw = sampler.sample if isinstance(sampler, Density) else sampler
    generator = torch.Generator().manual_seed(seed)
    seen = [float(metric(draw(n, generator=generator), draw(n, generator=generator))) for _ in range(repeats)]
    values = torch.tensor(seen, dtype=torch.float64).sort().values
    return NoiseFloor(float(values.mean()), float(values.quantile(0.95)), values)


# ---- shared -----------------------------------------------------------------------------------------------------


def random_directions(d: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Unit vectors (count, d), uniform on the sphere; (1, 1) on the line, where there is but one."""
    if count < 1:
        raise ValueError(f"projections = {count} must be at least 1.")
    if d == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    u = torch.randn(count, d, generator=generator, dtype=torch.float64)
    return u / u.norm(dim=1, keepdim=True)


def _finite(x: Tensor) -> Tensor:
    return check_finite(check_state(x, "samples"), "samples")


def _flat(x: Tensor) -> Tensor:
    """(n, *event) as float64 (n, D)."""
    return float64(_finite(x)).detach().reshape(len(x), -1)


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: their event shapes must be equal.")
    return _flat(x), _flat(y)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _mean_of(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor | None = None) -> float:
    """The mean of kernel(x_i, y_j) over all pairs, or of kernel(x_i, x_j) over all i != j, in blocks of rows."""
    other = x if y is None else y
    pairs = len(x) * (len(x) - 1) if y is None else len(x) * len(other)
    if pairs == 0:
        raise ValueError("An unbiased estimate needs at least two samples.")
    rows = max(1, _BLOCK // len(other))
    total = x.new_zeros(())
    for start in range(0, len(x), rows):
        values = kernel(x[start : start + rows], other)
        total = total + values.sum()
        if y is None:
            total = total - values.diagonal(start).sum()
    return float(total) / pairs


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
