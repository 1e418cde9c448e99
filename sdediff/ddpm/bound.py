r"""The likelihood of a generative chain: the variational bound term by term, and importance weights.

.. math:: -\log p(x_0) \;\le\; \underbrace{\mathrm{KL}(q(x_N|x_0)\,\|\,\mathcal N(0,I))}_{L_N}
          + \sum_{i=2}^{N}\underbrace{\mathrm E_q\,\mathrm{KL}(q(x_{i-1}|x_i,x_0)\,\|\,p(x_{i-1}|x_i))}_{L_{i-1}}
          \underbrace{-\,\mathrm E_q\log p(x_0|x_1)}_{L_0} .

These are the terms of a hierarchical variational autoencoder whose encoder is fixed: L_N and L_{i-1} its rate, level by
level, and L_0 its distortion. All are in nats, summed over the coordinates of a sample.

Sources: Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 5; Burda et al. 2016, https://arxiv.org/abs/1509.00519
(importance weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import counting
from ..checks import check_count, check_finite, check_state, float64
from ..densities.base import host_generator
from ..gaussian import Gaussian
from ..likelihood.estimate import bits_per_dim, careful_error, log_mean_weight

Decoder = Callable[[Gaussian, Tensor], Tensor]
"""``decoder(law, x0)``: the log-likelihood (B,) of x0 under the last law, in nats."""


class Backward(Protocol):
    """A generative chain: its forward chain, and the law of x_{i-1} given x_i = x."""

    @property
    def chain(self) -> Any: ...
    def law(self, x: Tensor, i: int) -> Gaussian: ...


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    r""":math:`\mathrm{KL}(p\,\|\,q)` of two Gaussians with diagonal covariances over one event shape, in nats, (B,).

    .. math:: \sum_d \log\frac{\sigma_q}{\sigma_p} + \frac{\sigma_p^2 + (\mu_p-\mu_q)^2}{2\sigma_q^2} - \tfrac12 .
    """
    difference = float64(p.mean) - float64(q.mean)
    ratio = float64(p.std).to(difference.device) / float64(q.std).to(difference.device)
    spread = 0.5 * (ratio * ratio - 1) - ratio.log()
    each = spread + 0.5 * (difference / float64(q.std).to(difference.device)) ** 2
    batch = max(each.shape[0] if each.ndim > len(p.event_shape) else 1, 1)
    return each.expand(batch, *p.event_shape).reshape(batch, -1).sum(1)


class Discretised:
    r"""The probability that a Gaussian gives to the cell around a lattice point, the two end cells reaching to infinity.

    .. math:: P(x_0 \mid x_1) = \prod_d \int_{x_0-w/2}^{x_0+w/2} \mathcal N(u;\,\mu, \sigma^2)\,du .

    Args:
        width: w, the distance of neighbouring lattice points: 2/255 for 8-bit images scaled to [-1, 1].
        low, high: the end points of the lattice.

    Source: Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 13.
    """

    def __init__(self, width: float, low: float = -1.0, high: float = 1.0):
        if not (0 < width <= high - low):
            raise ValueError(f"width = {width} must lie between 0 and high - low = {high - low}.")
        self.width, self.low, self.high = width, low, high

    def __call__(self, law: Gaussian, x0: Tensor) -> Tensor:
        """The log-probability, (B,)."""
        x, half = float64(x0), 0.5 * self.width
        mean, std = float64(law.mean), float64(law.std).to(x.device)
        upper = torch.where(x > self.high - half, math.inf, (x + half - mean) / std)
        lower = torch.where(x < self.low + half, -math.inf, (x - half - mean) / std)
        # In the far upper tail both distribution functions are 1: by symmetry the lower tail says the same with all its digits.
        flip = lower > 0
        upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
        a, b = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        return (a + torch.log1p(-torch.exp(b - a))).reshape(len(x), -1).sum(1)


@dataclass(frozen=True)
class VariationalBound:
    """The terms of the bound for each sample, in nats.

    Args:
        prior: L_N, (B,): what is left of the data in x_N.
        levels: (B, N - 1); column k is L_{k+1}, the KL of level x_{k+1}, so that the last column belongs to x_{N-1}.
        data: L_0, (B,): minus the expected log-likelihood of x_0 given x_1.
        standard_error: of their sum, (B,), none below the root mean square over the batch; NaN with one draw.
        dimensions: D, the number of coordinates of a sample.
        nfe: score evaluations per sample.
    """

    prior: Tensor
    levels: Tensor
    data: Tensor
    standard_error: Tensor
    dimensions: int
    nfe: int

    @property
    def value(self) -> Tensor:
        """The bound on log p(x_0), (B,): minus the sum of the terms."""
        return -(self.rate + self.data)

    @property
    def rate(self) -> Tensor:
        """What the latents cost, (B,): L_N and all levels."""
        return self.prior + self.levels.sum(1)

    @property
    def bits_per_dim(self) -> Tensor:
        """The sum of the terms in bits per coordinate, (B,)."""
        return bits_per_dim(self.value, self.dimensions)


@dataclass(frozen=True)
class Weighted:
    """An importance-weighted estimate of a log-likelihood.

    Args:
        value: log of the mean weight, (B,), in nats: below the log-likelihood in expectation, above the bound.
        standard_error: that of the mean weight relative to it, (B,): reliable where it is small.
        effective: the effective number of paths, (B,).
        nfe: score evaluations per sample.
    """

    value: Tensor
    standard_error: Tensor
    effective: Tensor
    nfe: int


def variational_bound(
    back: Backward,
    x0: Tensor,
    draws: int,
    decoder: Decoder | None,
    seed: int | None,
    generator: torch.Generator | None,
) -> VariationalBound:
    """See :meth:`~sdediff.ddpm.ReverseChain.bound`."""
    x0 = check_finite(check_state(x0, "x0"), "x0")
    check_count(draws, "draws")
    source, chain, count = host_generator(seed, generator), back.chain, len(back.chain)
    terms, squares = [], float64(x0.new_zeros(len(x0)))
    with torch.no_grad(), counting.count() as tally:
        for i in range(1, count + 1):
            seen = torch.stack([term(back, x0, i, _normal(x0, source), decoder) for _ in range(draws)])  # (draws, B)
            terms.append(seen.mean(0))
            spread = (seen - terms[-1]).square().sum(0)  # Tensor.var over a short first axis is ten times slower
            squares = squares + (spread / (draws * (draws - 1)) if draws > 1 else torch.nan)
        prior = kl(chain.marginal(x0, count), _standard(x0))
    levels = torch.stack(terms[1:], 1) if count > 1 else squares.new_zeros(len(x0), 0)
    nfe = tally.rows // len(x0)
    return VariationalBound(prior, levels, terms[0], careful_error(squares), x0[0].numel(), nfe)


def term(back: Backward, x0: Tensor, i: int, noise: Tensor, decoder: Decoder | None) -> Tensor:
    """See :meth:`~sdediff.ddpm.ReverseChain.term`."""
    x = back.chain.jump(x0, i, noise)
    law = _noisy(back.law(x, i), i)
    return -float64((decoder or _density)(law, x0)) if i == 1 else kl(back.chain.posterior(x0, x, i), law)


def importance_weighted(
    back: Backward,
    x0: Tensor,
    paths: int,
    decoder: Decoder | None,
    seed: int | None,
    generator: torch.Generator | None,
) -> Weighted:
    """See :meth:`~sdediff.ddpm.ReverseChain.importance_weighted`."""
    x0 = check_finite(check_state(x0, "x0"), "x0")
    check_count(paths, "paths", "at least 2, as one path has no standard error", least=2)
    decode, source = decoder or _density, host_generator(seed, generator)
    with torch.no_grad(), counting.count() as tally:
        weights = torch.stack([_log_weight(back, x0, decode, source) for _ in range(paths)])  # (K, B)
    return Weighted(*log_mean_weight(weights), tally.rows // len(x0))


def _log_weight(back: Backward, x0: Tensor, decode: Decoder, source: torch.Generator | None) -> Tensor:
    """log p(x_0, ..., x_N) - log q(x_1, ..., x_N | x_0) on one path of the encoder, drawn from x_N down, (B,)."""
    chain, count = back.chain, len(back.chain)
    encoder = chain.marginal(x0, count)
    x = encoder.from_noise(_normal(x0, source))
    total = _standard(x0).log_prob(float64(x)) - _density(encoder, x)
    for i in range(count, 0, -1):
        law = _noisy(back.law(x, i), i)
        if i == 1:
            return total + float64(decode(law, x0))
        encoder = chain.posterior(x0, x, i)
        x = encoder.from_noise(_normal(x0, source))
        total = total + _density(law, x) - _density(encoder, x)
    raise AssertionError("a chain has at least one step")


def _density(law: Gaussian, x: Tensor) -> Tensor:
    """The log density, (B,), in float64."""
    return Gaussian(float64(law.mean), float64(law.std), law.event_shape).log_prob(float64(x))


def _standard(x: Tensor) -> Gaussian:
    zero = torch.zeros((), dtype=torch.float64)
    return Gaussian(zero, zero + 1, tuple(x.shape[1:]))


def _noisy(law: Gaussian, i: int) -> Gaussian:
    if law.std.device.type == "cpu" and not bool((law.std > 0).all()):
        raise ValueError(
            f"The step from x_{i} has no noise, so it has no density: a likelihood needs AncestralStep or another step with "
            "noise at every level (a DDIM step has none at level 1)."
        )
    return law


def _normal(x: Tensor, source: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=source, dtype=torch.float64).to(x.device, x.dtype)
