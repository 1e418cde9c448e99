r"""How a chain goes back: each rule gives the law of x_{i-1} given x_i, a Gaussian.

.. math::
    \text{vanilla} &: (1+\tfrac12\beta)x + \beta s + \sqrt\beta\,\epsilon \\
    \text{common} &: (x + \beta s)/\sqrt{1-\beta} + \sqrt\beta\,\epsilon \\
    \text{reverse diffusion} &: (2-\sqrt{1-\beta})x + \beta s + \sqrt\beta\,\epsilon \\
    \text{ancestral} &: \tilde\mu(x, \hat x_0) + \sigma_i\epsilon, \quad \sigma_i^2 = \beta_i \text{ or } \tilde\beta_i
    \text{ or between} \\
    \text{DDIM} &: \sqrt{\bar\alpha_{i-1}}\,\hat x_0 + \sqrt{1-\bar\alpha_{i-1}-\sigma_i^2}\,\hat\epsilon + \sigma_i\epsilon,
    \quad \sigma_i^2 = \eta^2\tilde\beta_i

Ancestral and common have one mean in two spellings. DDIM at :math:`\eta = 0` is *not* the ancestral step without noise: its
mean carries the noise estimate on.

Sources: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix E;
Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672 (learned variance); Song et al. 2021,
https://arxiv.org/abs/2010.02502 (DDIM).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..gaussian import Gaussian


class Predictor(Protocol):
    """What a step may ask: the chain's tables, and what the score says of x_i = x; each answer is one evaluation."""

    @property
    def chain(self) -> Any: ...
    def score(self, x: Tensor, i: int) -> Tensor: ...
    def noise(self, x: Tensor, i: int) -> Tensor: ...
    def data(self, x: Tensor, i: int) -> Tensor: ...
    def split(self, x: Tensor, i: int) -> tuple[Tensor, Tensor]: ...


VarianceRule = Callable[[Predictor, Tensor, int], Tensor]
"""``rule(back, x, i)``: the variance of the step from x_i = x, a number or a tensor that broadcasts to x."""


class LargeVariance:
    r""":math:`\sigma_i^2 = \beta_i`: right for data that are N(0, I)."""

    def __call__(self, back: Predictor, x: Tensor, i: int) -> Tensor:
        """β_i."""
        return back.chain.betas[i]


class SmallVariance:
    r""":math:`\sigma_i^2 = \tilde\beta_i`: right for data that are one point. At i = 1 that is 0, and β̃_2 stands in for it."""

    def __call__(self, back: Predictor, x: Tensor, i: int) -> Tensor:
        """β̃_i."""
        chain = back.chain
        return chain.posterior_variances[max(i, 2)] if len(chain) > 1 else chain.betas[1]


class LearnedVariance:
    r"""Between the two, :math:`\log\sigma_i^2 = v\log\beta_i + (1-v)\log\tilde\beta_i`.

    Args:
        fraction: v: a number, or a function ``v(x, t)`` such as a network's second output, of x's shape, with t the time of
            x_i on the clock of ``chain.process``.

    Source: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, eq. 15.
    """

    def __init__(self, fraction: float | Callable[[Tensor, Tensor], Tensor]):
        self.fraction = fraction

    def __call__(self, back: Predictor, x: Tensor, i: int) -> Tensor:
        """The geometric interpolation."""
        v = self.fraction(x, back.chain.times[i]) if callable(self.fraction) else self.fraction
        large, small = LargeVariance()(back, x, i), SmallVariance()(back, x, i)
        return torch.exp(v * large.log() + (1 - v) * small.log())


class BackwardStep(ABC):
    """A rule for going from x_i to x_{i-1}. To write your own: return the Gaussian law of x_{i-1}."""

    @abstractmethod
    def law(self, back: Predictor, x: Tensor, i: int) -> Gaussian:
        """The law of x_{i-1} given x_i = x (B, *event). ``back`` answers ``score(x, i)``, ``noise(x, i)``, ``data(x, i)``."""


class AncestralStep(BackwardStep):
    r"""Bayes' posterior with the predicted data in place of x_0, and a variance.

    Args:
        variance: :class:`LargeVariance`, :class:`SmallVariance` (the default), :class:`LearnedVariance`, or your own rule.
    """

    def __init__(self, variance: VarianceRule | None = None):
        self.variance = SmallVariance() if variance is None else variance

    def law(self, back: Predictor, x: Tensor, i: int) -> Gaussian:
        """N(μ̃(x, x̂_0), σ_i²)."""
        mean = back.chain.mean_from_data(x, i, back.data(x, i))
        return Gaussian(mean, self.variance(back, x, i).sqrt(), tuple(x.shape[1:]))


class VanillaStep(BackwardStep):
    r""":math:`(1+\tfrac12\beta)x + \beta s`, variance :math:`\beta`: Euler-Maruyama on the reverse SDE."""

    def law(self, back: Predictor, x: Tensor, i: int) -> Gaussian:
        """N((1 + ½β)x + βs, β)."""
        beta = back.chain.betas[i]
        return Gaussian((1 + 0.5 * beta) * x + beta * back.score(x, i), beta.sqrt(), tuple(x.shape[1:]))


class CommonStep(BackwardStep):
    r""":math:`(x+\beta s)/\sqrt{1-\beta}`, variance :math:`\beta`: the ancestral step with the large variance, by the score."""

    def law(self, back: Predictor, x: Tensor, i: int) -> Gaussian:
        """N((x + βs)/√(1-β), β)."""
        beta = back.chain.betas[i]
        return Gaussian((x + beta * back.score(x, i)) / (1 - beta).sqrt(), beta.sqrt(), tuple(x.shape[1:]))


class ReverseDiffusionStep(BackwardStep):
    r""":math:`(2-\sqrt{1-\beta})x + \beta s`, variance :math:`\beta`: the forward step's discretisation, reversed."""

    def law(self, back: Predictor, x: Tensor, i: int) -> Gaussian:
        """N((2 - √(1-β))x + βs, β)."""
        beta = back.chain.betas[i]
        mean = (2 - (1 - beta).sqrt()) * x + beta * back.score(x, i)
        return Gaussian(mean, beta.sqrt(), tuple(x.shape[1:]))


class DDIMStep(BackwardStep):
    r"""DDIM: the predicted data, and the predicted noise carried on; variance :math:`\eta^2\tilde\beta_i`.

    Args:
        eta: from 0, without noise, to 1, which is :class:`AncestralStep` with the small variance.
    """

    def __init__(self, eta: float = 0.0):
        if not 0 <= eta <= 1:
            raise ValueError(f"eta = {eta} must lie in [0, 1].")
        self.eta = float(eta)

    def law(self, back: Predictor, x: Tensor, i: int) -> Gaussian:
        """N(√ᾱ_{i-1} x̂_0 + √(1 - ᾱ_{i-1} - σ²) ε̂, σ²)."""
        chain = back.chain
        variance = self.eta**2 * chain.posterior_variances[i]
        data, noise = back.split(x, i)
        carried = (chain.variances[i - 1] - variance).clamp_min(0).sqrt()
        return Gaussian(chain.alpha_bars[i - 1].sqrt() * data + carried * noise, variance.sqrt(), tuple(x.shape[1:]))
