r"""Which error a denoising loss counts.

All forms of prediction are affine in each other, so one error can be read as another:
:math:`\delta s = -\delta\epsilon/\sigma = (\alpha/\sigma^2)\,\delta x_0`. A weighting multiplies the squared error of the
network's *own* target by such a squared factor, so the same weighting means the same loss for every form. A function
``weighting(score, t)`` that returns a tensor of t's shape will do as well.

Sources: Song et al. 2021, https://arxiv.org/abs/2101.09258 (likelihood); Hang et al. 2023,
https://arxiv.org/abs/2303.09556 (min-SNR); Karras et al. 2022, https://arxiv.org/abs/2206.00364 (EDM).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checks import check_positive, float64
from ..score import Schedule, Score

Weighting = Callable[[Score, Tensor], Tensor]
"""``weighting(score, t)``: a factor for the squared error of the score's own target at t, of t's shape."""


class Simple:
    """1: the error of whatever the network predicts. For a noise prediction it is the L_simple of DDPM."""

    def __call__(self, score: Score, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)


class NoiseError:
    r""":math:`|\epsilon - \hat\epsilon|^2 = \mathrm{SNR}\,|x_0 - \hat x_0|^2`, whatever the network predicts: SNR weighting."""

    def __call__(self, score: Score, t: Tensor) -> Tensor:
        """The squared factor from the prediction to the noise."""
        return _factor(score, score.form.noise, t) ** 2


class DataError:
    r""":math:`|x_0 - \hat x_0|^2`, whatever the network predicts."""

    def __call__(self, score: Score, t: Tensor) -> Tensor:
        """The squared factor from the prediction to the data."""
        return _factor(score, score.form.data, t) ** 2


class Likelihood:
    r""":math:`g^2(t)\,|\nabla\log p_t(x_t|x_0) - s|^2`: with uniform times, the variational bound up to constants."""

    def __call__(self, score: Score, t: Tensor) -> Tensor:
        """g² times the squared factor from the prediction to the score."""
        factor = _factor(score, score.form.score, t)
        return (score.sde.diffusion_coefficient(float64(t)) * factor) ** 2


class MinSNR:
    r""":math:`\min(\alpha^2/\sigma^2, \gamma)\,|x_0 - \hat x_0|^2`.

    Args:
        gamma: the largest weight.
    """

    def __init__(self, gamma: float = 5.0):
        self.gamma = check_positive(gamma, "gamma")

    def __call__(self, score: Score, t: Tensor) -> Tensor:
        """The capped signal-to-noise ratio times the squared factor from the prediction to the data."""
        snr = torch.exp(score.sde.log_snr(t))
        return snr.clamp_max(self.gamma) * _factor(score, score.form.data, t) ** 2


class Karras:
    r""":math:`(1/\sigma_d^2 + \alpha^2/\sigma^2)\,|x_0 - \hat x_0|^2`: the error of EDM's raw network output.

    Args:
        sigma_data: :math:`\sigma_d`, that of :class:`~sdediff.Preconditioned`.
    """

    def __init__(self, sigma_data: float):
        self.sigma_data = check_positive(sigma_data, "sigma_data")

    def __call__(self, score: Score, t: Tensor) -> Tensor:
        """1/c_out² times the squared factor from the prediction to the data."""
        weight = self.sigma_data**-2 + torch.exp(score.sde.log_snr(t))
        return weight * _factor(score, score.form.data, t) ** 2


def _factor(score: Score, view: Callable[..., Tensor], t: Tensor) -> Tensor:
    """By what an error of the prediction is multiplied to become one of the score, the noise or the data."""
    if not isinstance(score.sde, Schedule):
        raise TypeError(
            f"{type(score.sde).__name__} has matrices for alpha and sigma, and this weighting needs numbers: use Simple, or a "
            "function weighting(score, t) of your own."
        )
    alpha, sigma = score.sde.alpha(t), score.sde.sigma(t)
    one: Any = torch.ones_like(alpha)
    return view(one, torch.zeros_like(alpha), alpha, sigma)
