r"""The exponential step of a reversed linear SDE: its linear part and its noise exactly, its prediction to be interpolated.

With :math:`\ell = \log(\alpha/\sigma)`, :math:`h = \ell_t - \ell_s > 0` and constant :math:`\eta` in the step,

.. math:: x_t = \frac{\sigma_t}{\sigma_s}e^{-\eta^2h}x_s
            + \alpha_t(1+\eta^2)\int_0^h e^{-(1+\eta^2)v}\,\hat x_0(\ell_t - v)\,dv
            + \sigma_t\sqrt{1-e^{-2\eta^2h}}\,z

for the data prediction, and for the noise prediction

.. math:: x_t = \frac{\alpha_t}{\alpha_s}x_s - \sigma_t(1+\eta^2)\int_0^h e^{v}\,\hat\epsilon(\ell_t - v)\,dv
            + \eta\,\sigma_t\sqrt{e^{2h}-1}\,z .

Every member of the family puts a polynomial in place of the prediction; a :mod:`~sdediff.solvers.exponential.rules` says
which.

Sources: Lu et al. 2022, https://arxiv.org/abs/2211.01095; Zhang and Chen 2023, https://arxiv.org/abs/2204.13902;
Xue et al. 2023, https://arxiv.org/abs/2309.05019.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...score import Score, View
from ...sde import Semilinear

_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(64))


@dataclass(frozen=True)
class Steps:
    """The steps of a grid, each field of shape (N,), float64: from s to t, ``h`` in log(alpha/sigma).

    ``spent`` is eta² h, which may be finite where h is not.
    """

    time_s: Tensor
    time_t: Tensor
    ell_s: Tensor
    ell_t: Tensor
    alpha_s: Tensor
    alpha_t: Tensor
    sigma_s: Tensor
    sigma_t: Tensor
    eta2: Tensor
    spent: Tensor

    @property
    def h(self) -> Tensor:
        """The step in log(alpha/sigma)."""
        return self.ell_t - self.ell_s


class Held(ABC):
    """What is held polynomial, and how it enters the step."""

    view: View

    @abstractmethod
    def linear(self, steps: Steps) -> Tensor:
        """The factor of x_s, (N,)."""

    @abstractmethod
    def noise(self, steps: Steps) -> Tensor:
        """The factor of z, (N,)."""

    @abstractmethod
    def total(self, steps: Steps) -> Tensor:
        """The integral of the weight over the step: the factor of a constant prediction, (N,)."""

    @abstractmethod
    def weight(self, steps: Steps, v: Tensor) -> Tensor:
        """The weight at distance v before the end of each step, (N, Q)."""

    def integral(self, steps: Steps, values: Tensor, v: Tensor, dv: Tensor) -> Tensor:
        """The weighted integral of values (N, Q, K) given at v with quadrature weights dv, (N, K)."""
        return ((self.weight(steps, v) * dv).unsqueeze(-1) * values).sum(1)


class HeldData(Held):
    """The data prediction is held polynomial."""

    view = staticmethod(Score.data)

    def linear(self, steps: Steps) -> Tensor:
        return torch.where(steps.sigma_t > 0, steps.sigma_t / steps.sigma_s * torch.exp(-steps.spent), 0.0)

    def noise(self, steps: Steps) -> Tensor:
        return steps.sigma_t * torch.sqrt(1 - torch.exp(-2 * steps.spent))

    def total(self, steps: Steps) -> Tensor:
        return -steps.alpha_t * torch.expm1(-(1 + steps.eta2) * steps.h)

    def weight(self, steps: Steps, v: Tensor) -> Tensor:
        rate = (1 + steps.eta2).unsqueeze(-1)
        return steps.alpha_t.unsqueeze(-1) * rate * torch.exp(-rate * v)


class HeldNoise(Held):
    """The noise prediction is held polynomial."""

    view = staticmethod(Score.noise)

    def linear(self, steps: Steps) -> Tensor:
        return steps.alpha_t / steps.alpha_s

    def noise(self, steps: Steps) -> Tensor:
        return torch.where(steps.eta2 > 0, steps.sigma_t * torch.sqrt(steps.eta2 * torch.expm1(2 * steps.h)), 0.0)

    def total(self, steps: Steps) -> Tensor:
        # sigma_t e^h = sigma_s alpha_t / alpha_s, finite where sigma_t vanishes
        return -(1 + steps.eta2) * (steps.sigma_s * steps.alpha_t / steps.alpha_s - steps.sigma_t)

    def weight(self, steps: Steps, v: Tensor) -> Tensor:
        return -(steps.sigma_t * (1 + steps.eta2)).unsqueeze(-1) * torch.exp(v)


def steps_of(process: Semilinear, grid: Tensor, eta2: Tensor | None = None) -> Steps:
    """The steps along a grid of N + 1 nodes; eta² (N,) where it is not the process's own, at the middle of each step."""
    if eta2 is None:
        eta = process.eta(0.5 * (grid[1:] + grid[:-1]))
        eta2 = eta.to(grid.dtype).expand(len(grid) - 1) ** 2
    return steps_between(process, grid[:-1], grid[1:], eta2)


def steps_between(process: Semilinear, s: Tensor, t: Tensor, eta2: Tensor) -> Steps:
    """The steps from s to t, with eta², each (N,)."""
    sde = process.sde
    ell_s, ell_t = 0.5 * sde.log_snr(s), 0.5 * sde.log_snr(t)
    spent = torch.where(eta2 > 0, eta2 * (ell_t - ell_s), 0.0)  # 0 without noise, even for infinite h
    return Steps(s, t, ell_s, ell_t, sde.alpha(s), sde.alpha(t), sde.sigma(s), sde.sigma(t), eta2, spent)


def quadrature(h: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes v in [0, h] and their weights, each (N, Q)."""
    half = 0.5 * h.unsqueeze(-1)
    return half * (_NODES + 1), half * _WEIGHTS
