r"""The tests behind a verdict, and what each of them can see.

A test answers with a p-value, a noise floor and the smallest effect that it detects with probability ``POWER``. Where a
method has a known bias (a step size, say), the null hypothesis is not "no effect" but "an effect of at most ``margin``".

Sources: Lehmann and Romano 2005, https://doi.org/10.1007/0-387-27605-X; Massart 1990,
https://doi.org/10.1214/aop/1176990746 (the Kolmogorov-Smirnov bound).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from scipy import special
from torch import Tensor

POWER = 0.99
"""The probability with which a test sees the effect that it claims to detect."""


@dataclass(frozen=True)
class Outcome:
    """What a test measured, before the verdict.

    Args:
        statistic: the effect seen.
        floor: its typical size (one standard error, or the median) where there is no effect.
        p: the p-value.
        detectable: level -> the smallest effect detected with probability ``POWER`` at that level.
        unit: of the statistic and of the effect.
        detail: of what can only fail, what was seen and what to do about it, where that is known.
    """

    statistic: float
    floor: float
    p: float
    detectable: Callable[[float], float]
    unit: str = ""
    detail: str = ""


def quantile(p: float) -> float:
    """The standard normal quantile, -inf ... inf."""
    return NormalDist().inv_cdf(p)


def two_sided(z: float) -> float:
    """The probability that a standard normal exceeds abs(z) in size; NaN becomes 0: a broken sample is no evidence."""
    return 0.0 if math.isnan(z) else math.erfc(abs(z) / math.sqrt(2))


def detectable_effect(n: int, variance: float, level: float, power: float = POWER) -> float:
    r"""The shift of the mean that a two-sided z-test sees at n: :math:`(z_{1-\alpha/2} + z_{power})\sqrt{Var/n}`."""
    return (quantile(1 - level / 2) + quantile(power)) * math.sqrt(variance / n)


def bonferroni(p: Sequence[float]) -> float:
    """One p-value for several tests of one hypothesis: the smallest, times their number."""
    return min(1.0, len(p) * min(p))


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Several tests of one hypothesis as one: the outcome with the smallest p-value, at its Bonferroni price."""
    count, chosen = len(outcomes), min(outcomes, key=lambda outcome: outcome.p)
    p = bonferroni([outcome.p for outcome in outcomes])
    return replace(chosen, p=p, detectable=lambda level: chosen.detectable(level / count))


def z_test(values: Tensor, mean: float = 0.0, *, margin: float = 0.0, scale: float = 1.0, unit: str = "") -> Outcome:
    """Two-sided test of abs(E[values] - mean) <= margin.

    Args:
        values: (n,), independent, n large enough for the central limit theorem.
        mean: the claimed expectation.
        margin: a deviation that is allowed, in units of the values.
        scale, unit: the statistic, its floor and its effect are reported in multiples of ``scale``, named ``unit``.
    """
    n, values = len(values), values.double()
    shift, variance = float(values.mean()) - mean, float(values.var())
    error = math.sqrt(variance / n)
    excess = max(abs(shift) - margin, 0.0) if math.isfinite(shift) else math.nan
    p = two_sided(excess / error) if error > 0 else float(excess == 0)
    return Outcome(
        shift / scale, error / scale, p, lambda level: (margin + detectable_effect(n, variance, level)) / scale, unit
    )


def joint_test(values: Tensor, unit: str = "sd") -> Outcome:
    r"""Hotelling's test that the means of several functions, values (n, k), are 0 all together.

    The statistic is the length of the mean in standard deviations, :math:`\sqrt{\bar v^\top S^{-1}\bar v}`. Unlike the
    smallest of k p-values this one is uniform where the means vanish. Directions in which the values hardly vary are left out.
    Source: Hotelling 1931, https://doi.org/10.1214/aoms/1177732979.
    """
    n, mean = len(values), values.double().mean(0)
    if not bool(torch.isfinite(values).all()):
        return Outcome(math.nan, 0.0, 0.0, lambda level: math.inf, unit)
    variances, axes = torch.linalg.eigh(torch.cov(values.double().T).reshape(len(mean), len(mean)))
    kept = variances > 1e-10 * variances[-1].clamp_min(1e-300)
    k, parts = int(kept.sum()), (mean @ axes)[kept] / variances[kept].sqrt()
    if k == 0:  # constants
        size = float(mean.abs().max())
        return Outcome(size, 0.0, float(size == 0), lambda level: 0.0, unit)
    size = float(parts.norm())
    p = float(special.fdtrc(k, n - k, size**2 * n * (n - k) / (k * (n - 1))))

    def detectable(level: float) -> float:
        return math.sqrt(float(special.chndtrinc(special.chdtri(k, level), k, 1 - POWER)) / n)

    return Outcome(size, math.sqrt(k / n), p, detectable, unit)


def ks_test(uniforms: Tensor, *, margin: float = 0.0) -> Outcome:
    """Kolmogorov-Smirnov test that ``uniforms`` = F(x), (n,), are uniform up to ``margin`` in the distribution function.

    The p-value is twice the exact one-sided one: an upper bound, and sharp where it is small.
    """
    u, _ = uniforms.double().flatten().sort()
    n = len(u)
    steps = torch.arange(n + 1, dtype=torch.float64, device=u.device) / n
    distance = float(torch.maximum((steps[1:] - u).max(), (u - steps[:-1]).max()))
    p = _ks_tail(n, distance - margin)
    return Outcome(distance, 0.83 / math.sqrt(n), p, lambda level: margin + _ks_effect(n, level), "in F")


def ks_two_sample(x: Tensor, y: Tensor, *, margin: float = 0.0) -> Outcome:
    """Kolmogorov-Smirnov test that x (n,) and y (m,), independent, have one law up to ``margin``; asymptotic."""
    x, y = x.double().sort().values, y.double().sort().values
    both = torch.cat([x, y])
    below = [torch.searchsorted(v, both, right=True).double() / len(v) for v in (x, y)]
    distance, n = float((below[0] - below[1]).abs().max()), len(x) * len(y) / (len(x) + len(y))
    p = 0.0 if math.isnan(float(both.sum())) else float(special.kolmogorov(math.sqrt(n) * max(distance - margin, 0.0)))
    return Outcome(distance, 0.83 / math.sqrt(n), p, lambda level: margin + _ks_effect(n, level), "in F")


def retry(first: Outcome, again: Callable[[], Outcome], level: float) -> tuple[Outcome, float]:
    r"""The outcome that decides a test at false-alarm rate ``level``, and the limit that its p-value must exceed.

    With b = level/2: the first outcome decides, with limit b, unless b < p <= b + √b. In that case of doubt the test is
    repeated, on fresh and more samples, and decided with limit √b. Each of the two ways to fail has probability b.
    """
    b = 0.5 * level
    if b < first.p <= b + math.sqrt(b):
        return again(), math.sqrt(b)
    return first, b


def _ks_tail(n: int, distance: float) -> float:
    if math.isnan(distance):
        return 0.0
    return 1.0 if distance <= 0 else min(1.0, 2 * float(special.smirnov(n, min(distance, 1.0))))


def _ks_effect(n: float, level: float) -> float:
    """The critical distance at this level, and what the sample moves at one point, 0.5/√n at most."""
    return math.sqrt(math.log(2 / level) / (2 * n)) + quantile(POWER) * 0.5 / math.sqrt(n)
