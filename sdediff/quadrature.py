r"""The Gaussian kernel of :math:`dx = a(t)\,x\,dt + g(t)\,dW` by quadrature in float64.

.. math:: \log\alpha(t) = \int_0^t a, \qquad \sigma^2(t) = \int_0^t g^2(u)\,e^{2(\log\alpha(t)-\log\alpha(u))}\,du .

Both are tabulated at panel ends and completed by Gauss-Legendre quadrature inside a panel, so they are accurate in the
relative sense down to t = 0, work for batched t, and stay differentiable in t.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .collocation import Legendre, panel_of, refined, relative

_RULE = Legendre(16)


class LinearKernel:
    """log alpha and the variance of a linear SDE from its two coefficients.

    Args:
        a: the drift coefficient, an elementwise function of t.
        g: the diffusion coefficient, likewise.
        t_max: the end of the domain.

    Raises:
        ValueError: the integrals do not converge to ``1e-11``, as for a coefficient that is infinite in the domain.
    """

    def __init__(self, a: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor], t_max: float):
        self.a, self.g, self.t_max = a, g, t_max
        cure = "; give log_alpha(t) and variance(t) instead"
        self.ends, self.log_alphas, self.variances = refined(self._tabulate, _change, t_max, cure)

    def log_alpha(self, t: Tensor) -> Tensor:
        """The integral of a from 0 to t."""
        panel, start = self._panel(t)
        return self.log_alphas.to(t.device)[panel] + self._integral_a(start, t)

    def variance(self, t: Tensor) -> Tensor:
        """The variance of x_t given x_0."""
        panel, start = self._panel(t)
        decay = torch.exp(2 * self._integral_a(start, t))
        return self.variances.to(t.device)[panel] * decay + self._added(start, t)

    def _panel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        panel = panel_of(t, self.t_max, len(self.ends) - 1)
        return panel, self.ends.to(t.device)[panel]

    def _integral_a(self, start: Tensor, end: Tensor) -> Tensor:
        length = (end - start).unsqueeze(-1)
        u = start.unsqueeze(-1) + length * _RULE.nodes.to(end.device)
        return (_values(self.a, u) * _RULE.weights.to(end.device)).sum(-1) * length.squeeze(-1)

    def _added(self, start: Tensor, end: Tensor) -> Tensor:
        """The variance gained between start and end."""
        length = (end - start).unsqueeze(-1)
        u = start.unsqueeze(-1) + length * _RULE.nodes.to(end.device)
        decay = torch.exp(2 * length * (_values(self.a, u) @ _RULE.after.to(end.device).T))
        return (_values(self.g, u) ** 2 * decay * _RULE.weights.to(end.device)).sum(-1) * length.squeeze(-1)

    def _tabulate(self, panels: int) -> tuple[Tensor, Tensor, Tensor]:
        ends = torch.linspace(0, self.t_max, panels + 1, dtype=torch.float64)
        with torch.inference_mode(False), torch.no_grad():  # tables that later derivatives may use
            steps = self._integral_a(ends[:-1], ends[1:])
            added = self._added(ends[:-1], ends[1:])
        variances = [torch.zeros((), dtype=torch.float64)]
        for decay, gain in zip(torch.exp(2 * steps), added, strict=True):
            variances.append(variances[-1] * decay + gain)
        return ends, torch.cat([steps.new_zeros(1), steps.cumsum(0)]), torch.stack(variances)


def _values(coefficient: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """The coefficient on u, a constant spread out."""
    return torch.as_tensor(coefficient(u), dtype=torch.float64, device=u.device).expand_as(u)


def _change(fine: tuple[Tensor, ...], coarse: tuple[Tensor, ...]) -> float:
    """The largest relative difference of log alpha and the variance at the ends that both tables have."""
    return max(relative(f[::2], c, c.abs()) for f, c in zip(fine[1:], coarse[1:], strict=True))
