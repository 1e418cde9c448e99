r"""The continuous side of a discrete chain: a variance-preserving process through given :math:`\bar\alpha_i`.

A chain with :math:`x_i = \sqrt{1-\beta_i}\,x_{i-1} + \sqrt{\beta_i}\,\epsilon` has the kernel of every variance-preserving
SDE with :math:`\alpha^2(t_i) = \bar\alpha_i`: at its nodes such an SDE *is* the chain, at any number of steps. What lies
between the nodes is free. Conversely every linear SDE is variance preserving in the coordinates
:math:`y = x/\sqrt{\alpha^2+\sigma^2}`, so that every linear SDE gives a chain.

Source: Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix B; Kingma et al. 2021,
https://arxiv.org/abs/2107.00630, section 5.1 (all that matters is the signal-to-noise ratio).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from ..checks import Time
from ..linear import LinearSDE, derivative


class Interpolation(LinearSDE):
    r"""The variance-preserving process whose :math:`\log\alpha` is a monotone cubic spline through given values.

    :math:`\beta(t) = -2(\log\alpha)'` is continuous and never negative, so that solvers of low order meet no jump.

    Args:
        log_alphas: :math:`\tfrac12\log\bar\alpha_i` for i = 0 ... N, (N + 1,), falling from 0. Kept as a list, so that a file
            can hold the process.
        t_max: the end of the clock; node i lies at ``t_max * i / N``.

    Source: Fritsch and Carlson 1980, https://doi.org/10.1137/0717021.
    """

    def __init__(self, log_alphas: Tensor | Sequence[float], t_max: float = 1.0):
        values = torch.as_tensor(log_alphas, dtype=torch.float64, device="cpu")
        self.log_alphas = values.tolist()
        self.t_max = float(t_max)
        self.count = len(values) - 1
        self.t_min = (
            self.t_max / self.count if self.count > 1 else 0.0
        )  # the first node with noise: networks know no earlier
        self.ends = torch.linspace(0, self.t_max, self.count + 1, dtype=torch.float64, device="cpu")
        spline = PchipInterpolator(self.ends.numpy(), values.numpy())
        self.pieces = torch.from_numpy(spline.c.copy())  # (4, N), highest power first

    def _local(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients of each time's piece, (4, ...), and the time since the piece began."""
        panel = (t.detach() / self.t_max * self.count).long().clamp(0, self.count - 1)
        return self.pieces.to(t.device)[:, panel], t - self.ends.to(t.device)[panel]

    def log_alpha(self, t: Tensor) -> Tensor:
        """The spline."""
        (c3, c2, c1, c0), u = self._local(t)
        return ((c3 * u + c2) * u + c1) * u + c0

    def variance(self, t: Tensor) -> Tensor:
        """1 - alpha², accurate down to t = 0."""
        return -torch.expm1(2 * self.log_alpha(t))

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """The slope of the spline, -½ β."""
        (c3, c2, c1, _), u = self._local(t)
        return ((3 * c3 * u + 2 * c2) * u + c1).clamp(max=0)

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """√β."""
        return torch.sqrt(-2 * self.drift_coefficient(t))


class Preserving(LinearSDE):
    r"""A linear SDE in the coordinates :math:`y = x/\sqrt{\alpha^2+\sigma^2}`, where it is variance preserving.

    Args:
        sde: any linear process; the clock is its own. ``score.to(...)`` brings its scores along.
    """

    def __init__(self, sde: LinearSDE):
        self.sde, self.t_min, self.t_max = sde, sde.t_min, sde.t_max

    def log_alpha(self, t: Tensor) -> Tensor:
        """½ log of α²/(α² + σ²), by the log-SNR."""
        return 0.5 * torch.nn.functional.logsigmoid(self.sde.log_snr(t))

    def variance(self, t: Tensor) -> Tensor:
        """σ²/(α² + σ²)."""
        return torch.sigmoid(-self.sde.log_snr(t))

    def log_snr(self, t: Time) -> Tensor:
        """That of the process itself."""
        return self.sde.log_snr(t)

    def time_of(self, log_snr: Time) -> Tensor:
        """That of the process itself."""
        return self.sde.time_of(log_snr)

    def diffusion_coefficient(self, t: Tensor) -> Tensor:
        """√(-2 (log alpha)'): variance preserving."""
        return torch.sqrt((-2 * derivative(self.log_alpha, t)).clamp_min(0))


def preserving(sde: LinearSDE, nodes: Tensor) -> LinearSDE:
    """``sde`` where it is variance preserving (seen at these times), else the same in coordinates where it is."""
    total = sde.alpha(nodes) ** 2 + sde.sigma(nodes) ** 2
    return sde if bool(((total - 1).abs() < 1e-9).all()) else Preserving(sde)
