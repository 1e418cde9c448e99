r"""EDM's sampler: Heun steps in :math:`\tilde\sigma = \sigma/\alpha`, with churn.

With :math:`y = x/\alpha` the flow of any linear process is :math:`dy = \hat\epsilon\,d\tilde\sigma`. Each step first
raises the noise level from :math:`\tilde\sigma` to :math:`(1+\gamma)\tilde\sigma` by adding noise, then takes a Heun step
down; the step that reaches :math:`\tilde\sigma = 0` is an Euler step.

Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check_number
from ..noise import Stream
from ..score import Score
from ..sde import SDE, Semilinear
from .base import Advance, Orders, Solver


class EDMHeun(Solver):
    """The stochastic sampler of EDM on the flow of any linear process. Two evaluations a step.

    Args:
        churn: the total amount of noise, S_churn; 0 is the deterministic sampler.
        low, high: the range of sigma/alpha in which noise is added, S_tmin and S_tmax.
        inflate: the factor of the noise added, S_noise.

    Raises:
        ValueError: an amount is negative, or alpha vanishes at a node.
    """

    requires = Semilinear
    instead = "use Heun for another ODE"
    orders = Orders(ode=2.0)

    def __init__(self, churn: float = 0.0, *, low: float = 0.0, high: float = math.inf, inflate: float = 1.0):
        settings = {"churn": churn, "low": low, "high": high, "inflate": inflate}
        churn, low, high, inflate = (check_number(value, name) for name, value in settings.items())
        if churn < 0 or low < 0 or high < low or inflate < 0:
            raise ValueError(
                f"churn = {churn}, low = {low}, high = {high}, inflate = {inflate}: none may be negative, nor high below low."
            )
        self.churn, self.low, self.high, self.inflate = churn, low, high, inflate

    def check(self, process: SDE) -> None:
        """The noise is the solver's own, so the process must be the flow."""
        super().check(process)
        if process.direction != 0:
            raise ValueError("EDMHeun adds its own noise to the flow: solve sde.probability_flow(score).")

    def prepare(self, process: SDE, grid: Tensor, noise: Stream) -> Advance:
        """Noise levels, and the noise predictions at them."""
        assert isinstance(process, Semilinear)
        sde, count = process.sde, len(grid) - 1
        level = torch.exp(-0.5 * sde.log_snr(grid))
        if not bool(torch.isfinite(level).all()):
            raise ValueError(
                "alpha vanishes at a node, where sigma/alpha is infinite: start a little nearer to the data."
            )
        inside = (level[:-1] >= self.low) & (level[:-1] <= self.high)
        gamma = inside.to(level.dtype) * min(self.churn / count, math.sqrt(2) - 1)  # not where: float32 of two numbers
        raised = torch.minimum(level[:-1] * (1 + gamma), torch.exp(-0.5 * sde.log_snr(sde.t_max)))
        times = torch.where(gamma > 0, sde.time_of(-2 * torch.log(raised)), grid[:-1])
        start, end = process.score.along(times, Score.noise), process.score.along(grid[1:], Score.noise)
        scale = (sde.alpha(times) / sde.alpha(grid[:-1])).tolist()
        added = (sde.alpha(times) * (raised**2 - level[:-1] ** 2).clamp_min(0).sqrt() * self.inflate).tolist()
        ratio = (sde.alpha(grid[1:]) / sde.alpha(times)).tolist()
        step = (sde.alpha(grid[1:]) * (level[1:] - raised)).tolist()
        last = (level[1:] == 0).tolist()

        def advance(k: int, x: Tensor) -> Tensor:
            if added[k]:
                x = torch.mul(x, scale[k]).add_(noise.normal(), alpha=added[k])
            slope = start[k](x)
            euler = torch.mul(x, ratio[k]).add_(slope, alpha=step[k])
            if last[k]:
                return euler
            return torch.mul(x, ratio[k]).add_(slope, alpha=0.5 * step[k]).add_(end[k](euler), alpha=0.5 * step[k])

        return advance
